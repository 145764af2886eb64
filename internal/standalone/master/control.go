package master

import (
	"errors"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"dovetail/internal/dovecot/tabline"
)

// The control channel is this project's own addition to the contract: a socketpair
// (SOCK_SEQPACKET) to each process that runs a program of the project. The process knows
// its end from DOVETAIL_CONTROL_FD, and does without it under Dovecot's master. One packet
// is one line without LF, its fields separated by TAB and escaped (package tabline):
//
//	C: READY                               once, by a process that knows this protocol
//	M: KICK <tag> <user mask> <network>    end these sessions with 421 4.3.2
//	C: <tag> <count>                       so many were
//	M: LOGS <tag>                          + up to 3 descriptors, to the log process: log,
//	                                       info and debug file, opened anew
//	C: <tag> 1
//
// A mask is of user names, with * and ?, without regard to case; network is an address or
// address/bits. Either may be empty: any. tag is a number that the answer repeats. An
// order that a process does not know it answers with the tag alone. Before READY nothing
// is asked.
//
// The point of it is a worker that serves several users: SIGTERM, the only word of
// Dovecot's own contract, would end all of them.

const (
	controlTimeout = 5 * time.Second // for an answer
	maxControl     = 4096            // bytes of a packet
)

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
	line := order + "\t" + strconv.FormatUint(tag, 10)
	for _, a := range args {
		line += "\t" + tabline.Escape(a)
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if err := unix.Sendmsg(c.fd, []byte(line), rights, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT); err != nil {
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
	var b [maxControl]byte
	n, err := unix.Read(c.fd, b[:])
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		return
	case err != nil || n == 0: // the process closed it, or is ending
		c.close()
		return
	}
	fields := tabline.Split(strings.TrimSuffix(string(b[:n]), "\n"))
	if fields[0] == "READY" {
		c.ready = true
		return
	}
	tag, err := strconv.ParseUint(fields[0], 10, 64)
	if err != nil {
		return
	}
	c.answer(tag, fields[1:], nil)
}
