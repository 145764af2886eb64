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
	"syscall"
	"time"
)

// Bounds that no real configuration meets. Each has its own error.
const (
	maxFileSize  = 64 << 20  // of one file
	maxTotalSize = 256 << 20 // of all files of a Load, an included file counted each time, and of values made of variables
	maxFiles     = 100_000   // opened in one Load
	maxInclude   = 100       // files including each other
	maxDepth     = 100       // sections inside each other
	maxErrors    = 1000      // diagnostics of one Load

	readTimeout   = 5 * time.Second  // for a pipe or a device to give its whole content
	lookupTimeout = 30 * time.Second // for a host name in local or remote
)

var errTooLarge = errors.New("the file is too large")

// readFile returns the content of a file, at most limit bytes. It never hangs: pipes and
// devices get readTimeout in all. dir says that path is a directory; its content is nil.
func readFile(path string, limit int64) (content []byte, dir bool, err error) {
	// Without O_NONBLOCK the open of a pipe would wait for a writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		return nil, false, err
	case st.IsDir():
		return nil, true, nil
	case st.Mode().IsRegular():
		if st.Size() > limit {
			return nil, false, errTooLarge
		}
		content = make([]byte, 0, st.Size()+1)
	default:
		// Devices that cannot wait (/dev/null, /dev/zero) refuse a deadline and need none.
		_ = f.SetReadDeadline(time.Now().Add(readTimeout))
	}
	for {
		if len(content) == cap(content) {
			content = append(content, 0)[:len(content)]
		}
		n, err := f.Read(content[len(content):cap(content)])
		content = content[:len(content)+n]
		if int64(len(content)) > limit {
			return nil, false, errTooLarge
		}
		if err == io.EOF {
			return content, false, nil
		}
		if err != nil {
			return nil, false, err
		}
	}
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
