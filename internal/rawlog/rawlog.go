// Package rawlog keeps what passes on a connection, to the octet, for somebody who looks
// for a mistake (clause P5.15a). The files have the names and the form of Dovecot's: two
// for each connection, in a directory that must exist, each line behind the time at which
// its first octet passed.
//
//	20260131-094501.4711.1.in   1769849101.123456 EHLO client.example
//	20260131-094501.4711.1.out  1769849101.123501 250-mx.example.net
//
// They hold everything that they are given, passwords too: who makes the directory wants
// that.
package rawlog

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// MaxFile is how large a file may get, in octets; what comes behind is not kept.
const MaxFile = 1 << 30

var counter atomic.Uint32 // of this process; part of the names

// A Log is the pair of files of one connection. The nil Log keeps nothing. Any goroutine may
// use it.
type Log struct {
	in, out file
}

// file is one direction.
type file struct {
	mu   sync.Mutex // held for one write
	f    *os.File   // guarded by mu; nil after Close, or an error
	open bool       // guarded by mu; the last line has no end yet
	size int64      // guarded by mu
}

// Open makes the files of a new connection in dir. If there is no such directory, or it
// is not for us, nothing is to be kept: both results are nil.
func Open(dir string) (*Log, error) {
	if dir == "" {
		return nil, nil
	}
	if _, err := os.Stat(dir); err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
			return nil, nil
		}
		return nil, fmt.Errorf("rawlog: %w", err)
	}
	prefix := filepath.Join(dir, fmt.Sprintf("%s.%d.%d", time.Now().Format("20060102-150405"), os.Getpid(), counter.Add(1)))
	in, err := create(prefix + ".in")
	if err != nil {
		return nil, err
	}
	out, err := create(prefix + ".out")
	if err != nil {
		in.Close()
		os.Remove(prefix + ".in")
		return nil, err
	}
	return &Log{in: file{f: in}, out: file{f: out}}, nil
}

func create(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("rawlog: %w", err)
	}
	return f, nil
}

// In keeps b as received. An error ends the file, and is returned once.
func (l *Log) In(b []byte) error {
	if l == nil {
		return nil
	}
	return l.in.write(b)
}

// Out keeps b as sent, as In does.
func (l *Log) Out(b []byte) error {
	if l == nil {
		return nil
	}
	return l.out.write(b)
}

// Close ends both files. Nothing is kept any more.
func (l *Log) Close() {
	if l != nil {
		l.in.close()
		l.out.close()
	}
}

func (f *file) write(b []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.f == nil || len(b) == 0 {
		return nil
	}
	text := f.stamp(b, time.Now())
	n, err := f.f.Write(text)
	if f.size += int64(n); err != nil || f.size > MaxFile {
		f.f.Close()
		f.f = nil
	}
	if err != nil {
		return fmt.Errorf("rawlog: %w", err)
	}
	return nil
}

// stamp puts the time before each line that begins in b.
func (f *file) stamp(b []byte, now time.Time) []byte {
	text := make([]byte, 0, len(b)+32)
	for _, c := range b {
		if !f.open {
			us := now.UnixMicro()
			text = strconv.AppendInt(text, us/1e6, 10)
			text = append(text, '.')
			us = us%1e6 + 1e6 // with zeros in front, and a 1 that is cut
			text = append(text, strconv.Itoa(int(us))[1:]...)
			text = append(text, ' ')
		}
		text = append(text, c)
		f.open = c != '\n'
	}
	return text
}

func (f *file) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.f != nil {
		f.f.Close()
		f.f = nil
	}
}

// Tap returns what is lent the octets that pass, as received (in) or as sent; of errors,
// failed hears. For the nil Log it is nil.
func (l *Log) Tap(failed func(error)) func(in bool, b []byte) {
	if l == nil {
		return nil
	}
	return func(in bool, b []byte) {
		write := l.Out
		if in {
			write = l.In
		}
		if err := write(b); err != nil {
			failed(err)
		}
	}
}

// Wrap returns nc with what passes on it kept in l; of errors of l, failed hears. For the
// nil Log it is nc.
func (l *Log) Wrap(nc net.Conn, failed func(error)) net.Conn {
	if l == nil {
		return nc
	}
	return &conn{Conn: nc, log: l, failed: failed}
}

// conn is a connection that is kept.
type conn struct {
	net.Conn
	log    *Log
	failed func(error)
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if lerr := c.log.In(b[:n]); lerr != nil {
		c.failed(lerr)
	}
	return n, err
}

func (c *conn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if lerr := c.log.Out(b[:n]); lerr != nil {
		c.failed(lerr)
	}
	return n, err
}

// CloseWrite ends what is sent, where nc can.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}
