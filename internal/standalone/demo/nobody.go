package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// dirEnv names the directory that root made for the demo.
const dirEnv = "DOVETAIL_DEMO_DIR"

// programs are what the demo runs.
var programs = []string{"dovetail", "submission-login", "submission"}

// asNobody runs the demo as the user nobody, with copies of the programs that he can run:
// nothing here needs root, and what comes from a network should not be read by it.
func asNobody(ctx context.Context, opt Options) error {
	nobody, err := user.Lookup("nobody")
	if err != nil {
		return fmt.Errorf("the demo does not run as root, and %w", err)
	}
	uid, err1 := strconv.Atoi(nobody.Uid)
	gid, err2 := strconv.Atoi(nobody.Gid)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "dovetail-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return err
	}
	for _, p := range programs {
		if err := copyFile(filepath.Join(filepath.Dir(opt.Self), p), filepath.Join(bin, p)); err != nil {
			return err
		}
	}
	if err := os.Chown(dir, uid, gid); err != nil {
		return err
	}
	fmt.Fprintln(opt.Stderr, "As root the demo becomes the user nobody.")
	args := []string{"demo"}
	if opt.Once {
		args = append(args, "-once")
	}
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "dovetail"), args...)
	cmd.Env = []string{dirEnv + "=" + dir, "HOME=/nonexistent"}
	for _, name := range []string{"PATH", "TERM", "TZ", "NO_COLOR"} {
		if v, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = opt.Stdout, opt.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopTimeout + 2*killTimeout
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return errSaid // by the process itself
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

var errSaid = errors.New("the demo failed")

func copyFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}
