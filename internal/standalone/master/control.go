package master

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"dovetail/internal/dovecot/masterproto"
)

// controlTimeout is how long an answer may take. The protocol is package masterproto's.
const controlTimeout = 5 * time.Second

var errNoAnswer = errors.New("no answer")

// A control is the master's end of the control channel of one process.
type control struct {
	m       *Master
	fd      int
	watch   *watch
	ready   bool // READY came
	lastTag uint64
	waiting map[uint64]*asked
}

// asked is an order that has no answer yet.
type asked struct {
	done    func(answer []string, err error)
	timeout *timer
}

// newControl takes fd.
func newControl(m *Master, fd int) *control {
	c := &control{m: m, fd: fd, waiting: map[uint64]*asked{}}
	c.watch = m.loop.watch(fd, c.read)
	return c
}

// close ends the channel. It may be called twice, and for nil.
func (c *control) close() {
	if c == nil || c.fd < 0 {
		return
	}
	c.watch.stop()
	unix.Close(c.fd)
	c.fd = -1
	for tag := range c.waiting {
		c.answer(tag, nil, errNoAnswer)
	}
}

// ask sends an order; done is called once, with the fields behind the tag. fds are lent.
func (c *control) ask(order string, args []string, fds []int, done func(answer []string, err error)) {
	if c == nil || c.fd < 0 || !c.ready {
		done(nil, errNoAnswer)
		return
	}
	c.lastTag++
	tag := c.lastTag
	line := masterproto.Order{Word: order, Tag: tag, Args: args}.Append(nil)
	if len(line) > masterproto.MaxControl {
		done(nil, unix.EMSGSIZE)
		return
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if err := unix.Sendmsg(c.fd, line, rights, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT); err != nil {
		done(nil, err)
		return
	}
	c.waiting[tag] = &asked{done, c.m.loop.after(controlTimeout, func() { c.answer(tag, nil, errNoAnswer) })}
}

func (c *control) answer(tag uint64, fields []string, err error) {
	a := c.waiting[tag]
	if a == nil {
		return
	}
	delete(c.waiting, tag)
	a.timeout.stop()
	a.done(fields, err)
}

// read takes one answer.
func (c *control) read() {
	var b [masterproto.MaxControl + 1]byte
	n, err := unix.Read(c.fd, b[:])
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		return
	case err != nil || n == 0: // the process closed it, or is ending
		c.close()
		return
	}
	tag, fields, ready, err := masterproto.ParseAnswer(b[:n])
	switch {
	case err != nil: // nobody is waiting for that
	case ready:
		c.ready = true
	default:
		c.answer(tag, fields, nil)
	}
}
