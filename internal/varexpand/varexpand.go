// Package varexpand puts values for %variables, in the language of Dovecot 2.3 (clauses
// C12.1 to C12.4). Which variables exist is the caller's business; the language itself,
// the built-in names, hashes and conditions are here.
//
//	%u  %{session}             a variable by its letter, or by its long name
//	%Lu  %UMu                  modifiers, applied from left to right
//	%2.3u  %-4.2u  %05p        skip 2 and take 3; the last 4, of these 2; padded with zeros
//	%%                         a percent sign
//	%{sha256;rounds=2,salt=x:user}   a hash of the variable user
//	%{if;%u;eq;root;yes;no}    a condition
//	%{env:TZ} %{pid} %{uid} %{gid} %{hostname}
//
// Lengths count octets, not characters, as in Dovecot.
package varexpand

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

const (
	maxModifiers = 10       // what follows the tenth is taken as the variable's letter
	maxResult    = 64 << 10 // octets of a result
	maxDepth     = 16       // of variables within variables
	maxWidth     = maxResult
)

// A Lookup gives the value of a variable. A short variable has key, its letter, and no
// long; a long one has key 0 and its name as written between the braces, such as
// "session" or "passdb:field". ok is false for a variable that does not exist; an empty
// value is one that does. It is asked before the built-in names, except for %%.
type Lookup func(key byte, long string) (value string, ok bool)

// Expand returns template with its variables replaced. An unknown variable becomes
// UNSUPPORTED_VARIABLE_x, another mistake becomes nothing; the error then names all of
// them, and the result is still good to use. A result over 64 KiB is cut.
func Expand(template string, get Lookup) (string, error) {
	if strings.IndexByte(template, '%') < 0 {
		return template, nil
	}
	e := expander{get: get}
	out, _ := e.expand(template)
	return out, errors.Join(e.errs...)
}

// Uses says whether template has one of the variables whose letters are in keys. Long
// names do not count: Dovecot treats elements of log lines with %u so, but not %{user}.
func Uses(template, keys string) bool {
	for i := 0; i < len(template); i++ {
		if template[i] != '%' {
			continue
		}
		var f field
		i = f.parse(template, i+1)
		if i < len(template) && strings.IndexByte(keys, template[i]) >= 0 {
			return true
		}
	}
	return false
}

type expander struct {
	get   Lookup
	errs  []error
	depth int
}

func (e *expander) fail(format string, args ...any) {
	e.errs = append(e.errs, fmt.Errorf(format, args...))
}

// expand returns template expanded; ok is false if a variable in it could not be.
func (e *expander) expand(template string) (result string, ok bool) {
	if e.depth++; e.depth > maxDepth {
		e.depth--
		e.fail("variables nested more than %d deep", maxDepth)
		return "", false
	}
	defer func() { e.depth-- }()
	ok = true
	out := make([]byte, 0, len(template)+64)
	for i := 0; i < len(template) && len(out) <= maxResult; i++ {
		next := strings.IndexByte(template[i:], '%')
		if next < 0 {
			out = append(out, template[i:]...)
			break
		}
		out = append(out, template[i:i+next]...)
		var f field
		i = f.parse(template, i+next+1)
		if i >= len(template) { // a % at the end is dropped
			break
		}
		var value string
		var found bool
		if end := longEnd(template, i); end > 0 {
			value, found = e.long(template[i+1:end], &f)
			i = end
		} else {
			value, found = e.short(template[i])
		}
		if found {
			out = f.append(out, value)
		} else {
			out = append(out, value...)
			ok = false
		}
	}
	if len(out) > maxResult {
		e.fail("result of more than %d octets", maxResult)
		out, ok = out[:maxResult], false
	}
	return string(out), ok
}

// longEnd returns where the } of the long name is whose { is at i; len(s) if braces within
// do not balance; 0 if this is no long name.
func longEnd(s string, i int) int {
	if s[i] != '{' || strings.IndexByte(s[i:], '}') < 0 {
		return 0
	}
	depth := 1
	for i++; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++ // what follows is neither { nor }
		case '{':
			depth++
		case '}':
			if depth--; depth == 0 {
				return i
			}
		}
	}
	return len(s)
}

func (e *expander) short(key byte) (string, bool) {
	if key == '%' {
		return "%", true
	}
	if v, ok := e.get(key, ""); ok {
		return v, true
	}
	e.fail("Unknown variable '%%%c'", key)
	return "UNSUPPORTED_VARIABLE_" + string([]byte{key}), false
}

// long returns the value of %{name}; f is the field it stands in, whose width and offset
// a hash may use up.
func (e *expander) long(name string, f *field) (string, bool) {
	if v, ok := e.get(0, name); ok {
		return v, true
	}
	switch name {
	case "pid":
		return strconv.Itoa(os.Getpid()), true
	case "uid":
		return strconv.Itoa(os.Geteuid()), true
	case "gid":
		return strconv.Itoa(os.Getegid()), true
	case "hostname":
		return hostname(), true
	}
	key, data, _ := strings.Cut(name, ":")
	function, args, _ := strings.Cut(key, ";")
	switch {
	case strings.EqualFold(function, "if"):
		return e.condition(name)
	case isHash(function):
		return e.hash(strings.ToLower(function), args, data)
	case key == "env":
		return os.Getenv(data), true
	}
	e.fail("Unknown variable '%%%s'", key)
	return "UNSUPPORTED_VARIABLE_" + key, false
}

// hostname is the name that the master found; names may not be resolvable later.
func hostname() string {
	if h := os.Getenv("DOVECOT_HOSTNAME"); h != "" {
		return h
	}
	h, _ := os.Hostname()
	return h
}
