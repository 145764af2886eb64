package smtp

import "bytes"

// A DataDecoder finds the message in what a client sends behind DATA: it takes out the
// dots that the client stuffed and finds the end, which is CRLF.CRLF and nothing else
// (RFC 5321 section 4.5.2). Bare CR, bare LF and NUL are content like any other octet. The
// zero DataDecoder is ready.
type DataDecoder struct{ at dataPlace }

// A dataPlace is what stands before the next octet.
type dataPlace uint8

const (
	lineStart dataPlace = iota // CRLF, or nothing
	lineDot                    // CRLF and a dot, which was not given out
	lineDotCR                  // CRLF, a dot and CR, both not given out
	afterCR                    // CR, given out
	inLine
	dataEnd // CRLF.CRLF
)

var (
	crlfDot = []byte("\r\n.")
	onlyCR  = []byte("\r")
)

// Next returns the next piece of the message in b, and what of b is behind it; both are
// parts of b, or content is a constant. Call it with rest until rest is empty or done is
// true; content may be empty at any time. done says that the message is complete: rest is
// what the client sent behind it.
func (d *DataDecoder) Next(b []byte) (content, rest []byte, done bool) {
	for len(b) > 0 {
		switch d.at {
		case lineStart:
			if b[0] != '.' {
				return d.run(b)
			}
			d.at = lineDot
			b = b[1:]
		case lineDot:
			if b[0] != '\r' {
				return d.run(b)
			}
			d.at = lineDotCR
			b = b[1:]
		case lineDotCR:
			if b[0] != '\n' {
				d.at = afterCR
				return onlyCR, b, false
			}
			d.at = dataEnd
			return nil, b[1:], true
		case afterCR:
			if b[0] != '\n' {
				return d.run(b)
			}
			d.at = lineStart
			return b[:1], b[1:], false
		case inLine:
			return d.run(b)
		case dataEnd:
			return nil, b, true
		}
	}
	return nil, nil, d.at == dataEnd
}

// run gives out everything up to the next dot at the start of a line. The first octet of b
// is content.
func (d *DataDecoder) run(b []byte) (content, rest []byte, done bool) {
	if i := bytes.Index(b, crlfDot); i >= 0 {
		d.at = lineDot
		return b[:i+2], b[i+3:], false
	}
	switch last := len(b) - 1; {
	case b[last] == '\r':
		d.at = afterCR
	case b[last] == '\n' && last > 0 && b[last-1] == '\r':
		d.at = lineStart
	default:
		d.at = inLine
	}
	return b, nil, false
}

// Done says whether the end of data was found.
func (d *DataDecoder) Done() bool { return d.at == dataEnd }

// A Normaliser makes a CRLF of each bare LF (clause S6.9). Nothing else changes. The zero
// Normaliser is ready.
type Normaliser struct{ cr bool }

// Append adds the next piece of content to dst. That is at most twice as long as b.
func (n *Normaliser) Append(dst, b []byte) []byte {
	if len(b) == 0 {
		return dst
	}
	run := 0 // b[run:] is not in dst yet
	for i := 0; ; i++ {
		j := bytes.IndexByte(b[i:], '\n')
		if j < 0 {
			break
		}
		i += j
		if i > 0 && b[i-1] == '\r' || i == 0 && n.cr {
			continue
		}
		dst = append(append(dst, b[run:i]...), '\r')
		run = i
	}
	n.cr = b[len(b)-1] == '\r'
	return append(dst, b[run:]...)
}

// A DotStuffer makes a message fit for DATA: bare LF becomes CRLF, and a dot at the start
// of a line is doubled. A line starts, here, wherever a relay could think that it does: behind
// a bare CR, too, which becomes CRLF when a dot follows; and NULs, which some relays do not
// see, are dropped between the line's start and its dot. So there is no end of data in the
// result, for strict and sloppy relays alike. The zero DotStuffer is ready.
type DotStuffer struct {
	state stuffState
	nuls  int  // held back at the start of a line
	many  bool // more than maxNULs stood there and were given out
	begun bool
}

type stuffState uint8

const (
	stuffStart stuffState = iota // at the start of a line
	stuffCR                      // behind a CR
	stuffIn                      // within a line
)

// maxNULs is how many NULs are held back at the start of a line, so that they can be
// dropped; of more a line keeps them, and its dot is still doubled.
const maxNULs = 1024

// Append adds the next piece of content to dst. That is at most twice as long as b, and
// maxNULs more.
func (s *DotStuffer) Append(dst, b []byte) []byte {
	s.begun = s.begun || len(b) > 0
	for len(b) > 0 {
		if s.state == stuffIn {
			dst, b = s.within(dst, b)
			continue
		}
		c := b[0]
		switch {
		case c == 0:
			dst = s.nul(dst)
			b = b[1:]
			continue
		case c == '.':
			if s.state == stuffCR && !s.many {
				dst = append(dst, '\n')
			}
			s.nuls = 0 // dropped
			dst = append(dst, '.')
		case c == '\n' && s.state == stuffCR && s.nuls == 0 && !s.many:
			dst = append(dst, '\n')
			s.state = stuffStart
			b = b[1:]
			continue
		}
		dst = s.giveNULs(dst)
		s.many, s.state = false, stuffIn
	}
	return dst
}

// nul holds back one more NUL.
func (s *DotStuffer) nul(dst []byte) []byte {
	if s.nuls++; s.nuls > maxNULs {
		s.many = true
		return s.giveNULs(dst)
	}
	return dst
}

func (s *DotStuffer) giveNULs(dst []byte) []byte {
	for ; s.nuls > 0; s.nuls-- {
		dst = append(dst, 0)
	}
	return dst
}

// within copies b up to where a line may start.
func (s *DotStuffer) within(dst, b []byte) (to, rest []byte) {
	run, i := 0, 0 // b[run:i] is to be copied
	for {
		end := bytes.IndexByte(b[i:], '\n')
		line := b[i:]
		if end >= 0 {
			line = line[:end]
		}
		cr := bytes.IndexByte(line, '\r')
		switch {
		case cr >= 0 && cr < len(line)-1 || cr >= 0 && end < 0: // bare, or its LF has not come
			i += cr + 1
			s.state = stuffCR
			return append(dst, b[run:i]...), b[i:]
		case end < 0:
			return append(dst, b[run:]...), nil
		case cr < 0:
			dst = append(append(dst, b[run:i+end]...), '\r', '\n')
			run = i + end + 1
		}
		i += end + 1
		if i == len(b) || b[i] == '.' || b[i] == 0 {
			s.state = stuffStart
			return append(dst, b[run:i]...), b[i:]
		}
	}
}

// Finish adds the end of data: CRLF, if the message does not end with one, and ".CRLF".
func (s *DotStuffer) Finish(dst []byte) []byte {
	if s.begun && (s.state != stuffStart || s.nuls > 0 || s.many) {
		dst = append(s.giveNULs(dst), '\r', '\n')
	}
	return append(dst, '.', '\r', '\n')
}
