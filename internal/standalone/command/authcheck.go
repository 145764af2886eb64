package command

import (
	"bufio"
	"bytes"
	"strings"

	"github.com/hashicorp/hcl/v2"

	"dovetail/internal/conf"
	"dovetail/internal/dovecot/config"
	"dovetail/internal/process/event"
	"dovetail/internal/standalone/authd"
	"dovetail/internal/standalone/configd"
)

// CheckAuth finds what the auth process would not start with: it asks what that would ask,
// and puts the answers into its place in the configuration.
func CheckAuth(cfg *conf.Config) hcl.Diagnostics {
	quiet := event.New(event.SinkFunc(func(event.Level, string, string) {}), "", false)
	var diags hcl.Diagnostics
	for _, err := range each(authd.Check(answers{configd.New(cfg, quiet)})) {
		var at hcl.Range
		if b, ok := err.(*authd.BlockError); ok { // one that is wrapped is about other blocks
			at = placeOf(cfg, b)
		} else if name := strings.FieldsFunc(err.Error(), func(c rune) bool { return c == ' ' || c == ':' }); len(name) > 0 {
			if set, ok := cfg.Root.Get(name[0]); ok && set.Last != nil {
				at = set.Last.Range.Range
			}
		}
		if at.Filename == "" && strings.HasSuffix(err.Error(), " is missing driver") {
			continue // the configuration's own checks know which
		}
		diags = append(diags, problem(at, err.Error(), advice(err)))
	}
	return diags
}

// advice says what would be right, where the error does not.
func advice(err error) string {
	if strings.HasPrefix(err.Error(), "No passdbs specified") {
		return "A block such as `passdb { driver = passwd-file; args = /etc/dovecot/users }`, each setting on a line of its own."
	}
	b, ok := err.(*authd.BlockError)
	if !ok || b.Key != "args" {
		return ""
	}
	switch {
	case strings.Contains(err.Error(), "passwd-file"):
		return "`args = [scheme=SCHEME] [username_format=FORMAT] /path/of/file`"
	case b.Type == "userdb":
		return "`args = uid=USER gid=GROUP home=/path [field=value]...`; users and groups are names of this system, or numbers."
	}
	return "`args = password=PASSWORD [field=value]...`"
}

// answers is a config service without sockets.
type answers struct{ srv *configd.Server }

func (a answers) Request(r config.Request) (config.Answer, error) {
	b, err := a.srv.Answer(nil, r)
	if err != nil {
		return config.Answer{}, err
	}
	return config.ReadAnswer(bufio.NewReader(bytes.NewReader(b)))
}

// each returns the errors that err joins.
func each(err error) []error {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, each(e)...)
	}
	return all
}

// placeOf finds the setting that b is about.
func placeOf(cfg *conf.Config, b *authd.BlockError) hcl.Range {
	blocks := cfg.Root.Of(b.Type)
	if b.Number > len(blocks) {
		return hcl.Range{}
	}
	block := blocks[b.Number-1]
	for _, key := range []string{b.Key, "driver"} {
		if set, ok := block.Get(key); ok && set.Last != nil {
			return set.Last.Range.Range
		}
	}
	return block.Pos().Range
}
