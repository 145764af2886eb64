package anvil

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"dovetail/internal/dovecot/tabline"
)

// pipeTimeout is how long an anvil process that does not read can hold a session.
const pipeTimeout = 5 * time.Second

// ErrTooLong: the names are too long for a line. Nothing was sent.
var ErrTooLong = fmt.Errorf("anvil: line of more than %d bytes", MaxLine)

// A Pipe reports sessions on descriptor 3. Any goroutine may use it. The nil Pipe reports
// nothing, as when no master started the process.
type Pipe struct{ f *os.File }

// NewPipe opens the pipe behind fd, which it lends, once more: the descriptor itself is
// blocking and shared with every process, so that its mode cannot be changed. It has to be
// called before privileges and the file system are given up, and needs /proc.
func NewPipe(fd int) (*Pipe, error) {
	f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_WRONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("anvil pipe: %w", err)
	}
	if st, err := f.Stat(); err != nil || st.Mode()&os.ModeNamedPipe == 0 {
		f.Close()
		return nil, fmt.Errorf("anvil pipe: descriptor %d is no pipe", fd)
	}
	return &Pipe{f}, nil
}

// Close closes what NewPipe opened.
func (p *Pipe) Close() error {
	if p == nil {
		return nil
	}
	return p.f.Close()
}

// Connect says that the process pid serves a session of i from now on. A session without
// IP is not counted, and not reported (clause P6.2).
func (p *Pipe) Connect(pid int, i Ident) error { return p.session("CONNECT", pid, i) }

// Disconnect says that such a session has ended.
func (p *Pipe) Disconnect(pid int, i Ident) error { return p.session("DISCONNECT", pid, i) }

func (p *Pipe) session(verb string, pid int, i Ident) error {
	if p == nil || i.IP == "" {
		return nil
	}
	return p.write(tabline.Append(nil, verb, strconv.Itoa(pid), i.String()))
}

// write writes one line in one write, which a pipe takes whole or not at all.
func (p *Pipe) write(line []byte) error {
	if len(line) > MaxLine {
		return ErrTooLong
	}
	if err := p.f.SetWriteDeadline(time.Now().Add(pipeTimeout)); err != nil {
		return fmt.Errorf("anvil pipe: %w", err)
	}
	if _, err := p.f.Write(line); err != nil {
		var pe *os.PathError
		if errors.As(err, &pe) {
			err = pe.Err // the path is of /proc
		}
		return fmt.Errorf("anvil pipe: %w", err)
	}
	return nil
}
