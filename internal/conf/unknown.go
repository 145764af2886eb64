package conf

import (
	"fmt"
	"slices"
	"strings"

	"dovetail/internal/conf/settings"
	"dovetail/internal/conf/settings/all"
)

// unknown reports a name that is none here (clause C8.7). section: it heads a section.
func (p *parser) unknown(f *frame, key string, at Range, section bool) {
	var b strings.Builder
	b.WriteString("Unknown setting: ")
	for _, o := range p.open[1:] {
		if !o.filter {
			b.WriteString(o.key)
			b.WriteString(" { ")
		}
	}
	if section {
		b.WriteString(key)
		b.WriteString(" { ")
	}
	b.WriteString(key)
	p.fail(at, b.String(), p.suggest(f, key, section))
}

// suggest says where an unknown name belongs, or which name it resembles.
func (p *parser) suggest(f *frame, key string, section bool) string {
	if f.block == nil {
		return fmt.Sprintf("Nothing can be set inside `%s {`.", f.key)
	}
	path := f.block.path
	if f.block.Kind == Map && !section {
		return "Names in `" + f.block.Type + "` have no slash."
	}
	if path != "" && (section && p.isSection(key) || !section && known(p.schema, key)) {
		return fmt.Sprintf("`%s` belongs outside of `%s`. Perhaps the } that ends the section opened at %s line %d is missing before this line.",
			key, f.key, f.file, f.at.Line)
	}
	names := p.schema.Settings(path)
	what := "setting"
	if section {
		what = "section"
		names = p.schema.Sections(path)
		if path == "" {
			names = append(slices.Clone(names), "protocol", "local", "remote", "local_name")
		}
	}
	if where := renamed24[key]; where != "" {
		return where
	}
	if old := nameIn23(key); old != "" {
		return fmt.Sprintf("This is the name in 2.4; in 2.3 it is `%s`.", old)
	}
	if best := closest(key, names); best != "" {
		return fmt.Sprintf("Did you mean `%s`?", best)
	}
	for _, sec := range p.schema.Sections("") {
		if !section && path == "" && known(p.schema, sec+"/"+key) {
			return fmt.Sprintf("`%s` is a setting of `%s {` sections.", key, sec)
		}
	}
	if path == "" {
		return fmt.Sprintf("There is no %s of this name.", what)
	}
	return fmt.Sprintf("There is no %s of this name in `%s {`.", what, f.key)
}

func known(s Schema, path string) bool {
	_, ok := s.Setting(path)
	return ok
}

// renamed24 are names of 2.4 that are met most in files for 2.3.
var renamed24 = map[string]string{
	"dovecot_config_version":  "This is a file for Dovecot 2.4; here the language is that of 2.3.",
	"dovecot_storage_version": "This is a file for Dovecot 2.4; here the language is that of 2.3.",
	"ssl_server_cert_file":    "In 2.3 it is `ssl_cert = <file`.",
	"ssl_server_key_file":     "In 2.3 it is `ssl_key = <file`.",
	"ssl_server_ca_file":      "In 2.3 it is `ssl_ca = <file`.",
	"ssl_server_dh_file":      "In 2.3 it is `ssl_dh = <file`.",
	"auth_allow_cleartext":    "In 2.3 it is `disable_plaintext_auth`, with the opposite meaning.",
	"restart_request_count":   "In 2.3 it is `service_count`.",
}

// nameIn23 is the setting of 2.3 that 2.4 calls key, "" if there is none of another name.
func nameIn23(key string) string {
	best := ""
	for old, now := range all.Renamed {
		if now.To == key && old != key && (best == "" || old < best) {
			best = old
		}
	}
	return best
}

// closest returns the name nearest to key, if it is near enough to be a slip.
func closest(key string, names []string) string {
	best, most := "", 1+len(key)/5
	for _, n := range names {
		if strings.EqualFold(n, key) {
			return n
		}
		if d := len(n) - len(key); d > most || -d > most {
			continue
		}
		if d := distance(key, n, most); d <= most && (best == "" || d < most) {
			best, most = n, d
		}
	}
	return best
}

// distance counts the letters to change, insert, drop or swap to make b of a. Above limit
// it may return any larger number. Names longer than 64 bytes are far from everything.
func distance(a, b string, limit int) int {
	const longest = 64
	if len(a) > longest || len(b) > longest {
		return limit + 1
	}
	var rows [3][longest + 1]int
	before, last, row := &rows[0], &rows[1], &rows[2]
	for j := range len(b) + 1 {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}

// rightValue says what a value should look like.
func rightValue(key string, k Known, a *Assignment) string {
	if a.Form == FromFile && strings.HasPrefix(a.Raw, "<") {
		return fmt.Sprintf("`%s` does not take its value from a file.", key)
	}
	if a.Form == Variable && strings.Contains(a.Value, "$") {
		return "Variables are put in only when the server runs."
	}
	if k.Type == settings.Enum {
		return fmt.Sprintf("`%s` is one of %s.", key, strings.Join(k.Enum, ", "))
	}
	return fmt.Sprintf("`%s` is %s.", key, k.Type.Right())
}
