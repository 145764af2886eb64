package authclient

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"dovetail/internal/dovecot/tabline"
)

// The server's half, for package authd. Every error of a Parse function ends the
// connection, as in Dovecot (clause P3.9).

// A Greeting is what the server sends on connect.
type Greeting struct {
	Mechanisms []Mechanism
	PID, CUID  uint32 // of the server; of the connection
	Cookie     Cookie
}

// Append adds the greeting's lines to b.
func (g Greeting) Append(b []byte) []byte {
	b = fmt.Appendf(b, "VERSION\t%d\t%d\n", major, minor)
	for _, m := range g.Mechanisms {
		b = append(b, "MECH\t"...)
		b = append(b, m.Name...)
		for _, w := range flagWords {
			if m.Flags&w.flag != 0 {
				b = append(b, '\t')
				b = append(b, w.word...)
			}
		}
		b = append(b, '\n')
	}
	return fmt.Appendf(b, "SPID\t%d\nCUID\t%d\nCOOKIE\t%s\nDONE\n", g.PID, g.CUID, g.Cookie)
}

// ErrVersion: the client speaks another major version.
var ErrVersion = errors.New("another major version")

// ParseVersion reads a client's first line, without its LF, and returns the minor version.
func ParseVersion(line string) (uint32, error) {
	rest, ok := strings.CutPrefix(line, "VERSION\t")
	maj, min, _ := strings.Cut(rest, "\t")
	n, err1 := parseID(maj)
	m, err2 := parseID(min)
	if !ok || err1 != nil || err2 != nil {
		return 0, fmt.Errorf("invalid VERSION line: %.80q", line)
	}
	if n != major {
		return 0, ErrVersion
	}
	return m, nil
}

// ParseCPID reads what stands behind "CPID".
func ParseCPID(args string) (uint32, error) {
	n, err := parseID(args)
	if err == nil && n == 0 {
		err = errors.New("process ID 0")
	}
	return n, err
}

// parseID reads decimal digits.
func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%.20q is not a number", s)
	}
	return uint32(n), nil
}

// An Auth is an AUTH line. Fields are those between the mechanism and resp.
type Auth struct {
	ID         uint32
	Mechanism  string
	Fields     tabline.Fields
	HasInitial bool
	Initial    string // as sent
}

// Errors of ParseAuth.
var (
	ErrAuthBroken  = errors.New("broken AUTH request")
	ErrAuthTrailer = errors.New("AUTH parameters after 'resp'")
)

// ParseAuth reads what stands behind "AUTH\t".
func ParseAuth(args string) (Auth, error) {
	f := tabline.Split(args)
	if len(f) < 2 {
		return Auth{}, ErrAuthBroken
	}
	id, err := parseID(f[0])
	if err != nil || id == 0 {
		return Auth{}, ErrAuthBroken
	}
	a := Auth{ID: id, Mechanism: f[1], Fields: tabline.ParseFields(f[2:])}
	for i, p := range a.Fields {
		if p.Key != "resp" {
			continue
		}
		rest := a.Fields[i+1:]
		a.HasInitial, a.Initial, a.Fields = true, p.Value, a.Fields[:i]
		if len(rest) > 0 {
			return a, ErrAuthTrailer
		}
	}
	return a, nil
}

// ParseCont reads what stands behind "CONT\t": the request's ID, and base64.
func ParseCont(args string) (id uint32, data string, err error) {
	number, data, ok := strings.Cut(args, "\t")
	if id, err = parseID(number); err != nil || !ok {
		return 0, "", errors.New("broken CONT request")
	}
	return id, data, nil
}

// ParseCancel reads what stands behind "CANCEL\t".
func ParseCancel(args string) (uint32, error) {
	id, err := parseID(args)
	if err != nil {
		return 0, errors.New("broken CANCEL")
	}
	return id, nil
}
