package splice

import (
	"syscall"
	"time"
)

const (
	pipeSize = 256 << 10 // asked for; the system may give less
	setSize  = 1031      // F_SETPIPE_SZ

	move, nonBlock = 1, 2 // flags of splice(2)
)

// bulk passes octets by splice(2) as long as more are there at once. A pipe exists only
// while it runs. ended: it was the last of them.
func (s *Stream) bulk(from, to End, way int) (r Result, ended bool) {
	var p [2]int
	if err := syscall.Pipe2(p[:], syscall.O_CLOEXEC|syscall.O_NONBLOCK); err != nil {
		return r, false // by copying, then
	}
	defer syscall.Close(p[0])
	defer syscall.Close(p[1])
	syscall.Syscall(syscall.SYS_FCNTL, uintptr(p[1]), setSize, pipeSize)
	for {
		n, err := spliceOnce(from.Sock.Raw.Read, func(fd int) (int64, error) {
			return syscall.Splice(fd, nil, p[1], nil, pipeSize, move|nonBlock)
		}, false)
		switch {
		case err == syscall.EAGAIN:
			return r, false
		case err != nil:
			return Result{way == toClient, err}, true
		case n == 0:
			return Result{way == toClient, nil}, true
		}
		for n > 0 {
			s.waits(to, way, n)
			m, err := spliceOnce(to.Sock.Raw.Write, func(fd int) (int64, error) {
				return syscall.Splice(p[0], nil, fd, nil, int(n), move|nonBlock)
			}, true)
			if err != nil {
				return s.refuses(way, err)
			}
			n -= m
			s.waited(to, way, n)
			s.count(way).Add(uint64(m))
			s.last.Store(time.Now().UnixNano())
		}
	}
}

// spliceOnce calls f with the descriptor that ready lends, again when it is ready if wait
// is set.
func spliceOnce(ready func(func(uintptr) bool) error, f func(fd int) (int64, error), wait bool) (n int64, err error) {
	rerr := ready(func(fd uintptr) bool {
		for {
			if n, err = f(int(fd)); err != syscall.EINTR {
				return err != syscall.EAGAIN || !wait
			}
		}
	})
	if rerr != nil {
		return 0, rerr
	}
	return n, err
}
