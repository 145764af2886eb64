package anvild

import (
	"context"
	"os"

	"golang.org/x/sys/unix"

	"dovetail/internal/dovecot/masterproto"
	"dovetail/internal/process/service"
)

// Program is the anvil process. It becomes the user of service anvil in its chroot before
// it reads anything.
func Program() service.Program {
	var srv *Server
	return service.Program{
		Name: "anvil", About: "it counts sessions",
		DropAtStart: os.Geteuid() == 0,
		Start: func(p *service.Process) error {
			srv = New(p.Log)
			go followLog(p) // ends with the master
			return nil
		},
		Serve: func(ctx context.Context, c *service.Client) { srv.Serve(ctx, c.Conn) },
		Pipe: func(p *service.Process, i int, f *os.File) {
			defer f.Close()
			from := Everybody
			if i == 0 {
				from = FromMaster
			}
			if err := srv.ServePipe(f, from); err != nil {
				p.Log.Error("%v", err)
			}
		},
	}
}

// followLog takes new log pipes: anvil lives through reloads, and logs to the new log
// process then, which the old one waits for. They come by the descriptor that login
// processes have their notify file on.
func followLog(p *service.Process) {
	oob := make([]byte, unix.CmsgSpace(4))
	var b [1]byte
	for {
		_, n, _, _, err := unix.Recvmsg(masterproto.LoginNotifyFD, b[:], oob, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return
		}
		msgs, err := unix.ParseSocketControlMessage(oob[:n])
		if err != nil || len(msgs) != 1 {
			continue
		}
		fds, err := unix.ParseUnixRights(&msgs[0])
		if err != nil || len(fds) != 1 {
			continue
		}
		if err := unix.Dup2(fds[0], masterproto.LogFD); err != nil {
			p.Log.Error("new log pipe: %v", err)
		}
		unix.Close(fds[0])
	}
}
