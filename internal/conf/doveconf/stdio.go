package doveconf

import "io"

// stdioBuffer is how much output the C library holds back when it does not go to a
// terminal.
const stdioBuffer = 4096

// output is the standard output as Dovecot's doveconf writes it: single lines through a
// buffer of the C library, blocks past it. So blocks come before the lines asked for
// earlier, except for what overflowed the buffer. On a terminal all comes in order.
type output struct {
	w        io.Writer
	terminal bool
	held     []byte // at most stdioBuffer, unless terminal
	err      error
}

func (o *output) write(b []byte) {
	if o.err == nil && len(b) > 0 {
		_, o.err = o.w.Write(b)
	}
}

// line writes s through the buffer.
func (o *output) line(s string) {
	if o.terminal {
		o.write([]byte(s))
		return
	}
	o.held = append(o.held, s...)
	if over := (len(o.held) - 1) / stdioBuffer * stdioBuffer; over > 0 {
		o.write(o.held[:over])
		o.held = append(o.held[:0], o.held[over:]...)
	}
}

// block writes b at once.
func (o *output) block(b []byte) { o.write(b) }

// flush writes what is held back.
func (o *output) flush() {
	o.write(o.held)
	o.held = o.held[:0]
}
