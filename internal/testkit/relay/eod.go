package relay

import "bytes"

// An EndOfData is one server's idea of how message data ends: at the first of its marks.
// Data begins as if a CRLF stood before it, so an immediate ".\r\n" ends it.
type EndOfData struct {
	Name  string
	Marks []string
}

// Strict is RFC 5321's: CRLF . CRLF and nothing else.
var Strict = EndOfData{"strict", []string{"\r\n.\r\n"}}

// Sloppy are those of servers, real ones of some age and feared ones.
var Sloppy = []EndOfData{
	{"LF.LF", []string{"\r\n.\r\n", "\n.\n"}},
	{"LF.CRLF", []string{"\r\n.\r\n", "\n.\r\n"}},
	{"CRLF.LF", []string{"\r\n.\r\n", "\r\n.\n"}},
	{"any LF", []string{"\n.\r\n", "\n.\n"}},
	{"CR.CR", []string{"\r\n.\r\n", "\r.\r"}},
	{"CR.CRLF", []string{"\r\n.\r\n", "\r.\r\n"}},
	{"CRLF.CR", []string{"\r\n.\r\n", "\r\n.\r"}},
	{"CR.LF", []string{"\r\n.\r\n", "\r.\n"}},
	{"any line end", []string{"\r.\r", "\r.\n", "\n.\r", "\n.\n"}},
	{"NUL before the dot", []string{"\r\n.\r\n", "\n\x00.\r\n", "\n\x00.\n", "\r\x00.\r", "\r\x00.\n"}},
	{"NUL after the dot", []string{"\r\n.\r\n", "\n.\x00\r\n", "\n.\x00\n", "\r.\x00\r"}},
}

// In returns the length of the data up to and with the first mark, or -1.
func (e EndOfData) In(data []byte) int {
	at, _ := e.in(data, 0)
	return at
}

// in is In; it searches from, which is the second result of the call before, with less
// data.
func (e EndOfData) in(data []byte, from int) (at, next int) {
	const before = "\r\n"
	at = -1
	longest := 0
	for _, mark := range e.Marks {
		longest = max(longest, len(mark))
		// A mark whose beginning is the CRLF (or LF) before the data.
		for cut := 1; cut <= len(before) && cut < len(mark); cut++ {
			if from == 0 && bytes.HasSuffix([]byte(before), []byte(mark[:cut])) && bytes.HasPrefix(data, []byte(mark[cut:])) {
				at = earlier(at, len(mark)-cut)
			}
		}
		if i := bytes.Index(data[from:], []byte(mark)); i >= 0 {
			at = earlier(at, from+i+len(mark))
		}
	}
	if at > 0 && at < len(data) && data[at-1] == '\r' && data[at] == '\n' {
		at++ // who takes a CR for a line end takes CRLF for one
	}
	if len(data) <= longest { // the beginning must be looked at again
		return at, 0
	}
	return at, len(data) - longest
}

func earlier(a, b int) int {
	if a < 0 {
		return b
	}
	return min(a, b)
}

// Smuggled says whether some server would see the message end before its true end, which
// is that of wire (everything the relay got behind its 354, the final mark included). It
// returns that server's name and the octets behind its end, "" for none.
func Smuggled(wire []byte) (server string, rest []byte) {
	for _, e := range append([]EndOfData{Strict}, Sloppy...) {
		if at := e.In(wire); at >= 0 && at < len(wire) {
			return e.Name, wire[at:]
		}
	}
	return "", nil
}
