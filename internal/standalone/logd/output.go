package logd

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"dovetail/internal/dovecot/log"
	"dovetail/internal/process/event"

	"golang.org/x/sys/unix"
)

const (
	// fileMode is that of a new log file.
	fileMode = 0o600
	// retryAfter a write failed, the same place is tried again.
	retryAfter = 10 * time.Second
	// writeWait is how long a pipe or terminal that is full is waited for.
	writeWait = 5 * time.Second
)

// An Output writes records where the settings say. Any goroutine may use it.
//
// A place that cannot be written to is reported once, where that is possible: the records
// go to syslog, or else to stderr, until it works again.
type Output struct {
	set Settings // constant

	mu     sync.Mutex // held for one record
	places map[string]*place
	main   *place
	info   *place
	debug  *place
	syslog syslogConn
	b      []byte // of the record being written
	sec    int64  // second of stamp
	stamp  []byte // log_timestamp of sec, when it has no usecs
}

// A place is a file, a descriptor, or syslog. Its fields are guarded by Output.mu.
type place struct {
	path   string // "syslog" for syslog
	fd     int    // -1: syslog, or not open
	ours   bool   // fd is to be closed
	broken error  // what was said of it
	since  time.Time
	lost   int // records that went elsewhere meanwhile
}

// Open opens all places of s. The error names all that cannot be opened; then nothing is.
func Open(s Settings) (*Output, error) {
	o := &Output{set: s, places: map[string]*place{}, sec: -1}
	o.syslog.facility = facilities[s.Facility]
	o.syslog.ident = s.Instance
	var errs []error
	get := func(path string) *place {
		if p := o.places[path]; p != nil {
			return p
		}
		p := &place{path: path, fd: -1}
		o.places[path] = p
		if err := p.open(); err != nil {
			errs = append(errs, err)
		}
		return p
	}
	main, info, debug := s.paths()
	o.main, o.info, o.debug = get(main), get(info), get(debug)
	if len(errs) > 0 {
		o.Close()
		return nil, errors.Join(errs...)
	}
	return o, nil
}

// open opens a place; syslog is connected when first used.
func (p *place) open() error {
	if p.path == syslogPath {
		return nil
	}
	if fd := standardFile(p.path); fd >= 0 {
		p.fd = fd
		return nil
	}
	fd, err := unix.Open(p.path, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, fileMode)
	if err != nil {
		//lint:ignore ST1005 the words of Dovecot's own message
		return fmt.Errorf("Can't open log file %s: %s", p.path, reason(err))
	}
	p.set(fd)
	return nil
}

// reason is an error in C's words: "No such file or directory".
func reason(err error) string {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return err.Error()
	}
	s := errno.Error()
	return strings.ToUpper(s[:1]) + s[1:]
}

func (p *place) set(fd int) {
	p.close()
	p.fd, p.ours = fd, true
}

func (p *place) close() {
	if p.ours {
		unix.Close(p.fd)
	}
	p.fd, p.ours = -1, false
}

// Close closes everything.
func (o *Output) Close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, p := range o.places {
		p.close()
	}
	o.syslog.close()
}

// Reopen opens all files anew, after they were moved away. One that cannot be opened goes
// on being written where it is; the error says so.
func (o *Output) Reopen() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var errs []error
	for _, p := range o.places {
		if p.path == syslogPath || standardFile(p.path) >= 0 {
			continue
		}
		next := place{path: p.path, fd: -1}
		if err := next.open(); err != nil {
			errs = append(errs, err)
			continue
		}
		p.set(next.fd)
	}
	return errors.Join(errs...)
}

// Replace takes fd, the file at path opened anew by somebody else. False: path is none of
// the places, and fd was closed.
func (o *Output) Replace(path string, fd int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	p := o.places[path]
	if p == nil || p.path == syslogPath || standardFile(path) >= 0 {
		unix.Close(fd)
		return false
	}
	p.set(fd)
	return true
}

// Write writes one record of a service, which happened at t.
func (o *Output) Write(service string, r log.Record, t time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	p := o.main
	switch r.Level {
	case event.Debug:
		p = o.debug
	case event.Info:
		p = o.info
	}
	o.writeLocked(p, service, r, t)
}

// writeLocked writes to p, or elsewhere if p is broken.
func (o *Output) writeLocked(p *place, service string, r log.Record, t time.Time) {
	if p.broken != nil && t.Sub(p.since) < retryAfter {
		p.lost++
		o.elsewhereLocked(p, service, r, t)
		return
	}
	if err := o.tryLocked(p, service, r, t); err != nil {
		if p.broken == nil {
			p.lost = 0
			o.elsewhereLocked(p, "log", own(event.Error, "writing to %s failed: %s. Lines go elsewhere until it works again", p.path, reason(err)), t)
		}
		p.broken, p.since = err, t
		p.lost++
		o.elsewhereLocked(p, service, r, t)
		return
	}
	if p.broken != nil {
		lost := p.lost
		p.broken, p.lost = nil, 0
		_ = o.tryLocked(p, "log", own(event.Warning, "%s can be written to again; %d lines went elsewhere", p.path, lost), t)
	}
}

// own is a record of the log process itself.
func own(level event.Level, format string, args ...any) log.Record {
	return log.Record{Level: level, Prefix: "log: ", Text: string(log.AppendSanitised(nil, fmt.Sprintf(format, args...))), PID: os.Getpid()}
}

// elsewhereLocked writes where p would not be.
func (o *Output) elsewhereLocked(p *place, service string, r log.Record, t time.Time) {
	if p.path != syslogPath && o.sysLocked(service, r, t) == nil {
		return
	}
	if p.fd != 2 {
		_ = o.fdLocked(2, service, r, t)
	}
}

func (o *Output) tryLocked(p *place, service string, r log.Record, t time.Time) error {
	if p.path == syslogPath {
		return o.sysLocked(service, r, t)
	}
	return o.fdLocked(p.fd, service, r, t)
}

// fdLocked writes a line to a descriptor.
func (o *Output) fdLocked(fd int, service string, r log.Record, t time.Time) error {
	o.b = o.b[:0]
	if o.set.JSON {
		o.b = appendJSON(o.b, service, r, t)
	} else {
		o.b = o.appendStampLocked(o.b, t)
		o.b = append(o.b, r.Prefix...)
		o.b = append(o.b, r.Level.String()...)
		o.b = append(o.b, ": "...)
		o.b = append(o.b, r.Text...)
	}
	o.b = append(o.b, '\n')
	return writeAll(fd, o.b)
}

// appendStampLocked adds log_timestamp. It is made once a second.
func (o *Output) appendStampLocked(b []byte, t time.Time) []byte {
	if sec := t.Unix(); sec != o.sec || o.stamp == nil {
		o.stamp, o.sec = o.stamp[:0], sec
		if hasUsecs(o.set.Timestamp) {
			o.sec = -1
		}
		o.stamp = appendTime(o.stamp, o.set.Timestamp, t)
	}
	return append(b, o.stamp...)
}

func hasUsecs(format string) bool {
	for i := range len(format) - len(usecs) + 1 {
		if format[i:i+len(usecs)] == usecs {
			return true
		}
	}
	return false
}

// writeAll writes b, waiting for a pipe or terminal that is full.
func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := syscall.Write(fd, b)
		switch {
		case err == nil && n == 0:
			return syscall.ENOSPC
		case err == nil:
			b = b[n:]
		case err == syscall.EINTR:
		case err == syscall.EAGAIN:
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
			if n, err := unix.Poll(p, int(writeWait.Milliseconds())); n == 0 || err != nil && err != unix.EINTR {
				return syscall.EAGAIN
			}
		default:
			return err
		}
	}
	return nil
}

// Sink returns an event.Sink for the process's own lines, as service.
func (o *Output) Sink(service string) event.Sink {
	return event.SinkFunc(func(level event.Level, prefix, text string) {
		o.Write(service, log.Record{
			Level: level, PID: os.Getpid(),
			Prefix: string(log.AppendSanitised(nil, prefix)), Text: string(log.AppendSanitised(nil, text)),
		}, time.Now())
	})
}
