package anvil

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"dovetail/internal/dovecot/tabline"
)

// A Verb is what a line wants.
type Verb uint8

const (
	Nothing Verb = iota // an empty line
	Connect
	Disconnect
	Kill
	Lookup
	ConnectDump
	PenaltyGet
	PenaltyInc
	PenaltySetExpire
	PenaltyDump
)

// verbs says how each line goes on.
var verbs = map[string]struct {
	verb   Verb
	fields int // that have to be there; more are ignored
	parse  func(r *Request, f []string) error
}{
	"CONNECT":                 {Connect, 2, parseSession},
	"DISCONNECT":              {Disconnect, 2, parseSession},
	"KILL":                    {Kill, 1, parsePID},
	"LOOKUP":                  {Lookup, 1, parseIdent},
	"CONNECT-DUMP":            {ConnectDump, 0, nil},
	"PENALTY-GET":             {PenaltyGet, 1, parseIdent},
	"PENALTY-INC":             {PenaltyInc, 3, parseInc},
	"PENALTY-SET-EXPIRE-SECS": {PenaltySetExpire, 1, parseExpire},
	"PENALTY-DUMP":            {PenaltyDump, 0, nil},
}

// A Request is a line to the service. Which fields are set follows from the verb.
type Request struct {
	Verb     Verb
	PID      int    // not negative
	Ident    string // as it came, unescaped: of any form
	Checksum uint32
	Value    uint32 // penalty, or seconds
}

var errParameters = errors.New("Invalid parameters") //lint:ignore ST1005 Dovecot's words

// ParseVersion checks the first line, without its end.
func ParseVersion(line string) error {
	f := strings.Split(line, "\t")
	ok := len(f) == 4 && f[0] == "VERSION" && f[1] == "anvil" && f[2] == major
	if ok {
		_, err := strconv.ParseUint(f[3], 10, 32) // the minor version, of which any will do
		ok = err == nil
	}
	if !ok {
		return fmt.Errorf("Anvil client not compatible with this server (mixed old and new binaries?) %.100s", line) //lint:ignore ST1005 Dovecot's words
	}
	return nil
}

// ParseRequest reads any further line, without its end. The error's text is Dovecot's, and
// ends the connection.
func ParseRequest(line string) (Request, error) {
	if line == "" {
		return Request{}, nil
	}
	f := tabline.Split(line)
	v, ok := verbs[f[0]]
	if !ok {
		return Request{}, fmt.Errorf("Unknown command: %.100s", f[0]) //lint:ignore ST1005 Dovecot's words
	}
	r := Request{Verb: v.verb}
	if len(f)-1 < v.fields {
		return Request{}, fmt.Errorf("%s: Not enough parameters", f[0])
	}
	if v.parse != nil {
		if err := v.parse(&r, f[1:]); err != nil {
			return Request{}, fmt.Errorf("%s: %w", f[0], err)
		}
	}
	return r, nil
}

func parsePID(r *Request, f []string) error {
	pid, err := strconv.ParseUint(f[0], 10, 31)
	if err != nil {
		return errors.New("Invalid pid") //lint:ignore ST1005 Dovecot's words
	}
	r.PID = int(pid)
	return nil
}

func parseIdent(r *Request, f []string) error {
	r.Ident = f[0]
	return nil
}

func parseSession(r *Request, f []string) error {
	r.Ident = f[1]
	return parsePID(r, f)
}

func parseInc(r *Request, f []string) error {
	r.Ident = f[0]
	checksum, err1 := strconv.ParseUint(f[1], 10, 32)
	value, err2 := strconv.ParseUint(f[2], 10, 32)
	if errors.Join(err1, err2) != nil || value > MaxPenalty || value == 0 && checksum != 0 {
		return errParameters
	}
	r.Checksum, r.Value = uint32(checksum), uint32(value)
	return nil
}

func parseExpire(r *Request, f []string) error {
	value, err := strconv.ParseUint(f[0], 10, 32)
	if err != nil {
		return errParameters
	}
	r.Value = uint32(value)
	return nil
}

// AppendCount adds the answer to LOOKUP to b.
func AppendCount(b []byte, n int) []byte { return append(strconv.AppendInt(b, int64(n), 10), '\n') }

// AppendPenalty adds the answer to PENALTY-GET to b.
func AppendPenalty(b []byte, p Penalty) []byte {
	b = append(strconv.AppendUint(b, uint64(p.Value), 10), ' ')
	return append(appendTime(b, p), '\n')
}

func appendTime(b []byte, p Penalty) []byte {
	if p.Last.IsZero() {
		return append(b, '0')
	}
	return strconv.AppendInt(b, p.Last.Unix(), 10)
}

// AppendConnection adds one line of a CONNECT-DUMP to b. An empty line ends the dump.
func AppendConnection(b []byte, ident string, pid, count int) []byte {
	b = append(tabline.AppendEscaped(b, ident), '\t')
	b = append(strconv.AppendInt(b, int64(pid), 10), '\t')
	return append(strconv.AppendInt(b, int64(count), 10), '\n')
}

// AppendPenaltyLine adds one line of a PENALTY-DUMP to b; update is when it was last set,
// in seconds since 1970. An empty line ends the dump.
func AppendPenaltyLine(b []byte, ident string, p Penalty, update int64) []byte {
	b = append(tabline.AppendEscaped(b, ident), '\t')
	b = append(strconv.AppendUint(b, uint64(p.Value), 10), '\t')
	b = append(appendTime(b, p), '\t')
	return append(strconv.AppendInt(b, update, 10), '\n')
}
