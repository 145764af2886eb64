package doveconf

import (
	"strconv"
	"strings"

	"dovetail/internal/conf"
)

// An authBlock is a passdb or userdb of 2.3, collected until its end: its name in 2.4
// depends on the driver, and its settings on args.
type authBlock struct {
	name     string
	head     conf.SourceLine
	lines    []conf.SourceLine
	comments []string // of lines inside, which come first in the result
}

func (a *authBlock) set(l conf.SourceLine) { a.lines = append(a.lines, l) }

// last is the last line that sets key.
func (a *authBlock) last(key string) (conf.SourceLine, bool) {
	for i := len(a.lines) - 1; i >= 0; i-- {
		if a.lines[i].Key == key {
			return a.lines[i], true
		}
	}
	return conf.SourceLine{}, false
}

// authBlock writes a passdb or userdb (clauses C19.12, C19.13).
func (c *converter) authBlock(b *block, comment string) {
	a := b.auth
	driver := ""
	if l, ok := a.last("driver"); ok {
		driver = l.Value
	}
	name := a.name
	if l, ok := a.last("name"); ok && l.Value != "" {
		name = l.Value
	}
	if name == "" {
		name = driver
	}
	base := name
	for i := 2; c.take(b.typ + " " + name); i++ {
		name = base + "-" + strconv.Itoa(i)
	}
	c.out(b.indent, b.typ+" "+quoteName24(name)+" {", a.head.Comment)
	in := b.indent + "  "
	for _, text := range a.comments {
		c.out(in, text, "")
	}
	if driver != name {
		c.out(in, "driver = "+write24(driver, false), "")
	}
	var fields []string
	for _, l := range a.lines {
		c.at = l
		if last, _ := a.last(l.Key); last.Line != l.Line || last.File != l.File {
			continue // replaced further down
		}
		if l.Comment != "" {
			c.out(in, l.Comment, "")
		}
		l.Comment, l.Indent = "", in
		switch l.Key {
		case "driver", "name":
		case "args":
			fields = append(fields, c.authArgs(l, b.typ, driver)...)
		case "default_fields":
			fields = append(fields, authFields(l.Value, ":default")...)
		case "override_fields":
			fields = append(fields, authFields(l.Value, "")...)
		case "mechanisms":
			c.out(in, "mechanisms_filter = "+l.Value, "")
		case "pass":
			if isYes(l.Value) {
				c.out(in, "result_success = continue", "")
			}
		case "auth_verbose":
			c.lost(l, "2.4 has auth_verbose only outside of sections")
		case "deny", "master", "skip", "result_success", "result_failure", "result_internalfail", "username_filter":
			c.out(in, l.Key+" = "+write24(l.Value, false), "")
		default:
			c.lost(l, "2.4 does not have it")
		}
	}
	c.fields(in, fields)
	c.at = a.head
	c.out(b.indent, "}", comment)
}

// authFields are words key=value, as lines of a fields block.
func authFields(v, suffix string) []string {
	var out []string
	for _, w := range authWords(v) {
		k, val, ok := strings.Cut(w, "=")
		if !ok {
			val = "yes"
		}
		out = append(out, k+suffix+"\x00"+val)
	}
	return out
}

// authWords splits at blanks.
func authWords(v string) []string { return strings.Fields(v) }

// fields writes a fields block.
func (c *converter) fields(in string, fields []string) {
	if len(fields) == 0 {
		return
	}
	c.out(in, "fields {", "")
	for _, f := range fields {
		k, v, _ := strings.Cut(f, "\x00")
		text, bad := percent24("fields", v)
		if len(bad) > 0 {
			c.note(c.at, "not converted: "+oneLine(k+"="+v)+": "+noCounterpart(k+"="+v, bad))
			c.out(in+"  ", "# not converted: "+k+" = "+v, "")
			continue
		}
		c.out(in+"  ", quoteElement(k)+" = "+write24(text, false), "")
	}
	c.out(in, "}", "")
}

// authArgs converts args, and returns what belongs into fields.
func (c *converter) authArgs(l conf.SourceLine, typ, driver string) []string {
	if l.Form == conf.FromFile || l.Form == conf.Variable && namesVariable(l.Value) {
		c.lost(l, "args from a file or with variables")
		return nil
	}
	switch driver {
	case "passwd-file":
		c.passwdFile(l, typ)
		return nil
	case "static":
		return c.static(l, typ)
	case "pam":
		c.pam(l)
		return nil
	case "passwd", "shadow", "bsdauth", "prefetch":
		if l.Value != "" {
			c.lost(l, "2.4 has no args")
		}
		return nil
	}
	if l.Value != "" {
		c.lost(l, "in 2.4 what stands in that file are settings of this block")
	}
	return nil
}

func (c *converter) passwdFile(l conf.SourceLine, typ string) {
	rest := l.Value
	for rest != "" && rest[0] != '/' {
		word, more, _ := strings.Cut(rest, " ")
		key, v, _ := strings.Cut(word, "=")
		switch {
		case key == "scheme" && typ == "passdb":
			c.out(l.Indent, "default_password_scheme = "+v, "")
		case key == "username_format":
			text, bad := percent24("auth_username_format", v)
			if len(bad) > 0 {
				c.lost(l, noCounterpart(l.Raw, bad))
				return
			}
			c.out(l.Indent, "auth_username_format = "+write24(text, false), "")
		case strings.Contains(word, "="):
			c.note(l, "not converted: "+oneLine(word))
			c.out(l.Indent, "# not converted: "+word, "")
		default: // the path, which is not absolute
			more, rest = "", "" // the rest is the path
			c.passwdPath(l, word)
		}
		rest = strings.TrimLeft(more, " ")
	}
	if rest != "" {
		c.passwdPath(l, rest)
	}
}

func (c *converter) passwdPath(l conf.SourceLine, path string) {
	text, bad := percent24("passwd_file_path", path)
	if len(bad) > 0 {
		c.lost(l, noCounterpart(l.Raw, bad))
		return
	}
	c.out(l.Indent, "passwd_file_path = "+write24(text, false), "")
}

func (c *converter) static(l conf.SourceLine, typ string) []string {
	var fields []string
	for _, w := range authWords(l.Value) {
		k, v, ok := strings.Cut(w, "=")
		if !ok {
			v = "yes"
		}
		switch {
		case k == "password" && typ == "passdb":
			text, bad := percent24("passdb_static_password", v)
			if len(bad) > 0 {
				c.lost(l, noCounterpart(l.Raw, bad))
				return fields
			}
			c.out(l.Indent, "passdb_static_password = "+write24(text, false), "")
		case k == "allow_all_users" && typ == "userdb":
			c.out(l.Indent, "userdb_static_allow_all_users = "+v, "")
		default:
			fields = append(fields, k+"\x00"+v)
		}
	}
	return fields
}

// pamWords are the words of args with a counterpart.
var pamWords = map[string]string{
	"session": "passdb_pam_session", "setcred": "passdb_pam_setcred", "max_requests": "passdb_pam_max_requests", "failure_show_msg": "passdb_pam_failure_show_msg",
}

func (c *converter) pam(l conf.SourceLine) {
	for _, w := range authWords(l.Value) {
		k, v, ok := strings.Cut(w, "=")
		switch {
		case w == "*":
			c.out(l.Indent, "passdb_pam_service_name = %{protocol | lower}", "")
		case pamWords[k] != "":
			c.out(l.Indent, pamWords[k]+" = "+v, "")
		case !ok:
			text, bad := percent24("passdb_pam_service_name", w)
			if len(bad) > 0 {
				c.lost(l, noCounterpart(l.Raw, bad))
				return
			}
			c.out(l.Indent, "passdb_pam_service_name = "+write24(text, false), "")
		case k != "blocking":
			c.note(l, "not converted: "+oneLine(w))
			c.out(l.Indent, "# not converted: "+w, "")
		}
	}
}
