// Package demo is `dovetail demo`: a whole submission server to try things with, in a
// directory of its own, without root, Dovecot or configuration. It makes a certificate, a
// user and a configuration file, starts a relay that writes what it gets into files
// (relay.go) and `dovetail run`, and shows commands to talk to it. When it ends it ends
// everything it has started, and removes the directory.
//
// As root it first becomes nobody, with copies of the programs where nobody can run them.
package demo

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	login  = "demo"
	sender = "demo@example.org"
	rcpt   = "friend@example.net"

	startTimeout = 30 * time.Second // for the server to greet
	mailTimeout  = 60 * time.Second // for one message, sent and received
	stopTimeout  = 15 * time.Second // for the server to end by itself
	killTimeout  = 5 * time.Second  // for what is left of it
	poll         = 20 * time.Millisecond
)

// ports are tried first; when they are taken the kernel gives others.
const (
	wantPort = 10587
	wantTLS  = 10465
)

// Options are those of the command line.
type Options struct {
	Self   string // path of dovetail; the other programs are beside it
	Once   bool   // send one message, print it, end
	Stdout io.Writer
	Stderr io.Writer
}

// Run is the demo. It ends with ctx, with Once, or when the server ends.
func Run(ctx context.Context, opt Options) error {
	if os.Geteuid() == 0 {
		return asNobody(ctx, opt)
	}
	dir := os.Getenv(dirEnv)
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "dovetail-demo-"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
	}
	d := &demo{Options: opt, dir: dir}
	return d.run(ctx)
}

// A demo is one run.
type demo struct {
	Options
	dir       string
	password  string
	cert      string // path of the certificate
	port, tls int
	relay     *relay
	server    *exec.Cmd
	ended     chan struct{} // closed when the server has ended
	log       *tail
}

func (d *demo) run(ctx context.Context) (err error) {
	if d.relay, err = startRelay(filepath.Join(d.dir, "mail")); err != nil {
		return err
	}
	defer d.relay.close()
	if d.cert, err = makeCertificate(d.dir); err != nil {
		return err
	}
	d.password = secret()
	if d.port, err = freePort(wantPort); err != nil {
		return err
	}
	if d.tls, err = freePort(wantTLS); err != nil {
		return err
	}
	if err := d.configure(); err != nil {
		return err
	}
	if err := d.start(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	if err := d.awaitGreeting(ctx); err != nil {
		return err
	}
	if d.Once {
		return d.once(ctx)
	}
	d.explain()
	for {
		select {
		case m := <-d.relay.messages:
			fmt.Fprintf(d.Stdout, "The relay got a message from %s for %s: %s\n", m.from, strings.Join(m.to, ", "), m.path)
		case <-ctx.Done():
			fmt.Fprintln(d.Stdout, "Stopping.")
			return nil
		case <-d.ended:
			return errors.New("the server has ended; its log is above")
		}
	}
}

// secret is a password.
func secret() string {
	b := make([]byte, 9)
	rand.Read(b) // never fails
	return base64.RawURLEncoding.EncodeToString(b)
}

// freePort returns want if it can be listened on now, or another port.
func freePort(want int) (int, error) {
	for _, p := range []int{want, 0} {
		ln, err := net.Listen("tcp4", net.JoinHostPort(host, strconv.Itoa(p)))
		if err != nil {
			continue
		}
		defer ln.Close()
		return ln.Addr().(*net.TCPAddr).Port, nil
	}
	return 0, fmt.Errorf("no port can be listened on at %s", host)
}

const host = "127.0.0.1"

// configuration is an ordinary dovecot.conf.
const configuration = `# Made by dovetail demo.
protocols = submission
listen = 127.0.0.1
base_dir = {dir}/run
state_dir = {dir}/state
log_path = {dir}/log
hostname = localhost
login_greeting = Dovetail demo ready.

ssl = yes
ssl_cert = <{dir}/cert.pem
ssl_key = <{dir}/key.pem

submission_relay_host = 127.0.0.1
submission_relay_port = {relay}

first_valid_uid = 1
passdb {
  driver = passwd-file
  args = {dir}/users
}
userdb {
  driver = static
  args = uid={uid} gid={gid} home={dir}/home
}

service submission-login {
  inet_listener submission {
    port = {port}
  }
  inet_listener submissions {
    port = {tls}
    ssl = yes
  }
}
`

func (d *demo) configure() error {
	text := strings.NewReplacer("{dir}", d.dir, "{relay}", strconv.Itoa(d.relay.port), "{port}", strconv.Itoa(d.port),
		"{tls}", strconv.Itoa(d.tls), "{uid}", strconv.Itoa(os.Getuid()), "{gid}", strconv.Itoa(os.Getgid())).Replace(configuration)
	for name, text := range map[string]string{
		"dovecot.conf": text,
		"users":        login + ":{PLAIN}" + d.password + "\n",
		"log":          "",
	} {
		if err := os.WriteFile(filepath.Join(d.dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return os.MkdirAll(filepath.Join(d.dir, "home"), 0o700)
}

// start starts the server in a process group of its own, so that stop finds all of it.
func (d *demo) start() error {
	var err error
	if d.log, err = follow(filepath.Join(d.dir, "log"), d.logTo()); err != nil {
		return err
	}
	d.server = exec.Command(d.Self, "run", "-F", "-c", filepath.Join(d.dir, "dovecot.conf"))
	d.server.Stdout, d.server.Stderr = d.Stderr, d.Stderr
	d.server.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.server.Start(); err != nil {
		return err
	}
	d.ended = make(chan struct{})
	go func() { // ends with the server, which stop ends
		_ = d.server.Wait()
		close(d.ended)
	}()
	return nil
}

// logTo is where the server's log is shown; a single message needs it only when it fails.
func (d *demo) logTo() io.Writer {
	if d.Once {
		return nil
	}
	return d.Stdout
}

// stop ends the server, what it has started, and waits for all of that.
func (d *demo) stop() error {
	defer d.log.stop()
	group := -d.server.Process.Pid
	_ = d.server.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.ended:
	case <-time.After(stopTimeout):
		_ = d.server.Process.Kill()
		<-d.ended
	}
	// Workers may still be telling their clients.
	for sig, end := syscall.SIGTERM, time.Now().Add(killTimeout); ; time.Sleep(poll) {
		if syscall.Kill(group, sig) == syscall.ESRCH {
			return nil
		}
		if time.Now().After(end) {
			if sig == syscall.SIGKILL {
				return errors.New("some processes of the server do not end")
			}
			sig, end = syscall.SIGKILL, time.Now().Add(killTimeout)
		}
		if sig == syscall.SIGTERM {
			sig = 0 // once is enough
		}
	}
}

// awaitGreeting returns when the server greets.
func (d *demo) awaitGreeting(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		if d.greets(ctx) {
			return nil
		}
		select {
		case <-d.ended:
			return errors.New("the server did not start:\n" + d.log.all())
		case <-ctx.Done():
			return errors.New("the server does not greet:\n" + d.log.all())
		case <-time.After(poll):
		}
	}
}

func (d *demo) greets(ctx context.Context) bool {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", d.addr())
	if err != nil {
		return false
	}
	defer conn.Close()
	if conn.SetDeadline(time.Now().Add(startTimeout)) != nil {
		return false
	}
	var b [4]byte
	if _, err = io.ReadFull(conn, b[:]); err != nil || string(b[:]) != "220 " {
		return false
	}
	_, _ = io.WriteString(conn, "QUIT\r\n")
	_, err = io.Copy(io.Discard, conn)
	return err == nil
}

func (d *demo) addr() string { return net.JoinHostPort(host, strconv.Itoa(d.port)) }

// explain says what there is, and how to talk to it.
func (d *demo) explain() {
	plain := base64.StdEncoding.EncodeToString([]byte("\x00" + login + "\x00" + d.password))
	fmt.Fprintf(d.Stdout, `
Dovetail runs. What it is given ends up in files below %[9]s.

  host      %[1]s
  port      %[2]d (STARTTLS), %[3]d (TLS from the start)
  user      %[4]s
  password  %[5]s

Send a message:

  printf 'From: %[6]s\nTo: %[7]s\nSubject: Hello\n\nHello!\n' | \
    curl --url smtp://%[1]s:%[2]d --ssl-reqd --cacert %[8]s --user '%[4]s:%[5]s' \
      --mail-from %[6]s --mail-rcpt %[7]s --crlf --upload-file -

  swaks --server %[1]s:%[2]d --tls --auth PLAIN --auth-user %[4]s --auth-password '%[5]s' \
    --from %[6]s --to %[7]s

Talk to it by hand:

  openssl s_client -quiet -crlf -starttls smtp -CAfile %[8]s -connect %[1]s:%[2]d
  openssl s_client -quiet -crlf -CAfile %[8]s -connect %[1]s:%[3]d

  and there: EHLO me, then AUTH PLAIN %[10]s

Look at it:

  %[11]s status -c %[12]s
  %[11]s who -c %[12]s

Ctrl-C ends everything.

`, host, d.port, d.tls, login, d.password, sender, rcpt, d.cert, d.relay.dir, plain, d.Self, filepath.Join(d.dir, "dovecot.conf"))
}

// A tail copies what is appended to a file.
type tail struct {
	path string
	file *os.File
	to   io.Writer // nil: nobody
	quit chan struct{}
	done sync.WaitGroup
}

func follow(path string, to io.Writer) (*tail, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	t := &tail{path: path, file: f, to: to, quit: make(chan struct{})}
	if to != nil {
		t.done.Go(func() { // ends with stop
			for {
				_, _ = io.Copy(to, f)
				select {
				case <-t.quit:
					_, _ = io.Copy(to, f)
					return
				case <-time.After(5 * poll):
				}
			}
		})
	}
	return t, nil
}

// all returns the whole file.
func (t *tail) all() string {
	b, _ := os.ReadFile(t.path)
	return string(b)
}

func (t *tail) stop() {
	close(t.quit)
	t.done.Wait()
	t.file.Close()
}
