// Package fdpass hands a descriptor to another process over a Unix stream socket, together
// with data, and takes one. It works on raw descriptors: going through os.File would put
// a socket that both processes share into blocking mode. What the data means is the
// business of the packages that speak a protocol (handoff, urlauth). It also tells who is at
// the other end of such a socket.
package fdpass

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrTooMany: one message brought more than one descriptor. None was kept.
var ErrTooMany = errors.New("more than one descriptor in a message")

const sizeofFD = 4 // a C int

var errNoData = errors.New("a descriptor cannot be passed without data")

// Send writes data to conn and passes fd with its first octet. It lends fd, whose flags
// stay as they are. Send returns when all of data is written; conn's write deadline holds.
func Send(conn *net.UnixConn, data []byte, fd int) error {
	if len(data) == 0 {
		return errNoData
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var n int
	var serr error
	rights := unix.UnixRights(fd)
	err = raw.Write(func(s uintptr) bool {
		for {
			n, serr = unix.SendmsgN(int(s), data, rights, nil, unix.MSG_NOSIGNAL)
			if serr != unix.EINTR {
				return serr != unix.EAGAIN
			}
		}
	})
	if err == nil && serr != nil {
		err = os.NewSyscallError("sendmsg", serr)
	}
	if err != nil {
		return err
	}
	if n < len(data) {
		_, err = conn.Write(data[n:])
	}
	return err
}

// SendConn is Send with the descriptor of client, which stays open and the caller's.
func SendConn(conn *net.UnixConn, data []byte, client syscall.Conn) error {
	raw, err := client.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := raw.Control(func(fd uintptr) { serr = Send(conn, data, int(fd)) }); err != nil {
		return err
	}
	return serr
}

// Receive reads once, at most len(b) octets, and takes the descriptor that came with them:
// fd is -1 when none did. The caller owns fd, which is close-on-exec. io.EOF: the peer
// closed. After an error no descriptor stays open. conn's read deadline holds.
func Receive(conn *net.UnixConn, b []byte) (n, fd int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, -1, err
	}
	// Room for one descriptor is, by alignment, room for two. The kernel closes what
	// does not fit, receivedFD what it does not return.
	oob := make([]byte, unix.CmsgSpace(sizeofFD))
	var oobn, flags int
	var rerr error
	err = raw.Read(func(s uintptr) bool {
		for {
			n, oobn, flags, _, rerr = unix.Recvmsg(int(s), b, oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
			if rerr != unix.EINTR {
				return rerr != unix.EAGAIN
			}
		}
	})
	if err != nil {
		return 0, -1, err
	}
	if rerr != nil {
		return 0, -1, os.NewSyscallError("recvmsg", rerr)
	}
	fd, err = receivedFD(oob[:oobn])
	if err == nil && flags&unix.MSG_CTRUNC != 0 {
		err = ErrTooMany
	}
	if err == nil && n == 0 && len(b) > 0 {
		err = io.EOF
	}
	if err != nil {
		closeFD(fd)
		return 0, -1, err
	}
	return n, fd, nil
}

// receivedFD returns the only descriptor in the control messages, or -1. With more than
// one it closes all of them.
func receivedFD(oob []byte) (int, error) {
	if len(oob) == 0 {
		return -1, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return -1, fmt.Errorf("control message: %w", err)
	}
	fd, count := -1, 0
	for i := range msgs {
		// ParseUnixRights would look past the end of a part of a descriptor.
		msgs[i].Data = msgs[i].Data[:len(msgs[i].Data)/sizeofFD*sizeofFD]
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue // not a message with descriptors
		}
		for _, f := range fds {
			if count++; count == 1 {
				fd = f
			} else {
				closeFD(f)
			}
		}
	}
	if count > 1 {
		closeFD(fd)
		return -1, ErrTooMany
	}
	return fd, nil
}

func closeFD(fd int) {
	if fd >= 0 {
		unix.Close(fd)
	}
}

// NewConn makes a connection of a socket: *net.TCPConn or *net.UnixConn. It takes fd, also
// when it returns an error, as it does for anything but a stream socket of these families.
func NewConn(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "socket")
	if f == nil {
		return nil, os.NewSyscallError("fcntl", unix.EBADF)
	}
	defer f.Close() // net.FileConn makes a descriptor of its own
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	switch c := c.(type) {
	case *net.TCPConn:
		return c, nil
	case *net.UnixConn:
		if a := c.LocalAddr(); a != nil && a.Network() == "unix" {
			return c, nil
		}
	}
	c.Close()
	return nil, errors.New("not a stream socket")
}

// Peer returns the process and user that conn, a Unix socket, was connected to: those that
// made the listener listen. 0 and 0, if that cannot be told.
func Peer(conn net.Conn) (pid, uid int) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return 0, 0
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0, 0
	}
	raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid, uid = int(cred.Pid), int(cred.Uid)
		}
	})
	return pid, uid
}
