package master

import (
	"errors"
	"io/fs"
	"strings"
	"syscall"
)

// Reason is an error as C programs say it: "Address already in use". Of a path error it is
// the part behind the path.
func Reason(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return err.Error()
	}
	s := errno.Error()
	return strings.ToUpper(s[:1]) + s[1:]
}

// A failure is "<what> failed: <reason>", in C's words.
type failure struct {
	what string
	err  error
}

func failed(what string, err error) error { return &failure{what, err} }

func (f *failure) Error() string { return f.what + " failed: " + Reason(f.err) }
func (f *failure) Unwrap() error { return f.err }
