package command

import (
	"context"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"dovetail/internal/dovecot/masterproto"
	"dovetail/internal/process/service"
	"dovetail/internal/standalone/anvild"
	"dovetail/internal/standalone/authd"
	"dovetail/internal/standalone/configd"
	"dovetail/internal/standalone/dnsd"
	"dovetail/internal/standalone/logd"
)

// runRole is `dovetail role NAME`: a process that the master starts.
func runRole(c *call, args []string) int {
	name := ""
	if len(args) > 0 {
		name = args[0]
	}
	os.Args = append(os.Args[:1:1], args[min(1, len(args)):]...) // package service reads the options
	switch name {
	case "log":
		return logd.Main()
	case "auth":
		service.Main(authd.Program())
	case "dns-client":
		service.Main(dnsd.Program())
	case "config":
		service.Main(configProgram())
	case "anvil":
		pipes, err := takePipes(2)
		if err != nil {
			c.error("anvil: %v", err)
			return exitFatal
		}
		service.Main(anvilProgram(pipes))
	}
	c.error("role: there is no %q", name)
	return exitUsage
}

// configProgram is the config process: it reads the configuration once. It stays root, as
// the files may be root's; all it takes from others is one line at a time.
func configProgram() service.Program {
	var srv *configd.Server
	return service.Program{
		Name: "config", About: "it answers questions about the configuration",
		Setup: func(p *service.Process) error {
			cfg, err := configd.Load(p.Env.ConfigFile)
			if err != nil {
				return err
			}
			srv = configd.New(cfg, p.Log)
			return nil
		},
		Serve: func(ctx context.Context, c *service.Client) { srv.Serve(ctx, c.Conn) },
	}
}

// anvilProgram is the anvil process. pipes are the master's and everybody's.
func anvilProgram(pipes []*os.File) service.Program {
	var srv *anvild.Server
	return service.Program{
		Name: "anvil", About: "it counts sessions",
		DropAtStart: os.Geteuid() == 0,
		Start: func(p *service.Process) error {
			srv = anvild.New(p.Log)
			for i, from := range []anvild.Source{anvild.FromMaster, anvild.Everybody} {
				go func() { // ends with the master
					if err := srv.ServePipe(pipes[i], from); err != nil {
						p.Log.Error("%v", err)
					}
				}()
			}
			go followLog(p) // ends with the master
			return nil
		},
		Serve: func(ctx context.Context, c *service.Client) { srv.Serve(ctx, c.Conn) },
	}
}

// takePipes takes the first n descriptors for listeners away: they are pipes, which package
// service does not have. The sockets behind them move to their place, in the environment,
// too.
func takePipes(n int) ([]*os.File, error) {
	const first = masterproto.FirstListenerFD
	count, err := strconv.Atoi(os.Getenv("SOCKET_COUNT"))
	if err != nil {
		return nil, nil // not started by a master; service says so
	}
	if count < n {
		return nil, fmt.Errorf("%d descriptors, at least %d are pipes", count, n)
	}
	var pipes []*os.File
	for i := range count {
		if i < n {
			fd, err := unix.FcntlInt(uintptr(first+i), unix.F_DUPFD_CLOEXEC, first+count)
			if err != nil {
				return nil, fmt.Errorf("descriptor %d: %w", first+i, err)
			}
			if err := unix.SetNonblock(fd, true); err != nil { // reading must not need a thread
				return nil, fmt.Errorf("descriptor %d: %w", first+i, err)
			}
			pipes = append(pipes, os.NewFile(uintptr(fd), "pipe"))
			continue
		}
		if err := unix.Dup2(first+i, first+i-n); err != nil {
			return nil, fmt.Errorf("descriptor %d: %w", first+i, err)
		}
		os.Setenv(socketVar(i-n), os.Getenv(socketVar(i)))
	}
	for i := count - n; i < count; i++ {
		unix.Close(first + i)
		os.Unsetenv(socketVar(i))
	}
	os.Setenv("SOCKET_COUNT", strconv.Itoa(count-n))
	return pipes, nil
}

func socketVar(i int) string { return fmt.Sprintf("SOCKET%d_SETTINGS", i) }

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
