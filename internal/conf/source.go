package conf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds that no real configuration meets. Each has its own error.
const (
	maxFileSize = 256 << 20 // of one file
	maxPipeSize = 32 << 20  // of what comes from a pipe or a device
	maxFiles    = 100_000   // opened in one Load
	maxInclude  = 100       // files including each other
	maxDepth    = 100       // sections inside each other
	maxErrors   = 1000      // diagnostics of one Load

	lookupTimeout = 30 * time.Second // for a host name in local or remote
)

// readTimeout is how long the pipes and devices among the files of a Load may take in all.
// Tests shorten it.
var readTimeout = 5 * time.Second

// maxTotalSize is of all files of a Load, an included file counted each time, and of values
// made of variables. Tests make it smaller.
var maxTotalSize int64 = 512 << 20

var errTooLarge = errors.New("the file is too large")

// readFile returns the content of a file. It never hangs: pipes and devices get readTimeout
// in all, counted from the first one. dir says that path is a directory; it has no content.
func (p *parser) readFile(path string) (content string, dir bool, err error) {
	if r, ok := p.again(path); ok {
		return r.text, false, r.err
	}
	// Without O_NONBLOCK the open of a pipe would wait for a writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return "", false, err
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		return "", false, err
	case st.IsDir():
		return "", true, nil
	case st.Mode().IsRegular():
		if st.Size() > maxFileSize {
			return "", false, errTooLarge
		}
		content, err = readAll(f, st.Size(), maxFileSize)
		return content, false, err
	}
	content, err = p.readPipe(f, st)
	p.keep(path, pipeRead{content, err})
	return content, false, err
}

func (p *parser) readPipe(f *os.File, st fs.FileInfo) (string, error) {
	until := &p.opt.Pipes.until
	if until.IsZero() {
		*until = time.Now().Add(readTimeout)
	}
	if st.Mode()&fs.ModeNamedPipe != 0 {
		if err := awaitWriter(f, *until); err != nil {
			return "", err
		}
	}
	// Devices that cannot wait (/dev/null, /dev/zero) refuse a deadline and need none.
	_ = f.SetReadDeadline(*until)
	return readAll(f, 0, maxPipeSize)
}

// readAll reads up to limit bytes; size are expected.
func readAll(f *os.File, size, limit int64) (string, error) {
	var text strings.Builder
	text.Grow(int(size))
	n, err := io.Copy(&text, io.LimitReader(f, limit+1))
	switch {
	case err != nil:
		return "", err
	case n > limit:
		return "", errTooLarge
	}
	return text.String(), nil
}

// awaitWriter waits until someone has written to a pipe, or closed it after that; a pipe
// without a writer would be empty at once.
func awaitWriter(f *os.File, until time.Time) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = conn.Control(func(fd uintptr) {
		for {
			left := time.Until(until)
			if left <= 0 {
				failed = os.ErrDeadlineExceeded
				return
			}
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
			if err == unix.EINTR {
				continue
			}
			if failed = err; n > 0 || err != nil {
				return
			}
		}
	})
	return errors.Join(err, failed)
}

// reason is what strerror would say about an error of the os package.
func reason(err error) string {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Sprintf("nothing came for %v", readTimeout)
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return strerror(errno)
	}
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = pe.Err
	}
	return err.Error()
}

// strerror gives the C library's words, which begin with a capital letter.
func strerror(e syscall.Errno) string {
	s := e.Error()
	if s != "" && s[0] >= 'a' && s[0] <= 'z' {
		return string(s[0]-'a'+'A') + s[1:]
	}
	return s
}

// lookupHost is the resolver of Load: the first address of host.
func lookupHost(ctx context.Context, host string) (netip.Addr, error) {
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil || len(addrs) == 0 || host == "" {
		//lint:ignore ST1005 the C library's words, which Dovecot prints
		return netip.Addr{}, errors.New("Name or service not known")
	}
	return addrs[0].Unmap(), nil
}
