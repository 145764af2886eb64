package interop

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/system"
)

// service sets limits of one of the two services.
func service(name string, lines ...string) func(*system.Setup) {
	return config("service " + name + " {\n  " + strings.Join(lines, "\n  ") + "\n}")
}

func processCases() (cases []scenario) {
	cases = append(cases,
		scenario{
			name: "who and kick",
			run: func(w *world) {
				a := w.local("a")
				a.login("alice", "wonder")
				b := w.local("b")
				b.login("bob@example.test", "bpass")
				w.eventually("anvil to know both", func() bool { return strings.Count(w.inst.Doveadm("who"), "submission") == 2 })
				w.noteWho()
				w.inst.Doveadm("kick", "alice")
				a.gone()
				b.do("NOOP")
				w.eventually("anvil to forget alice", func() bool { return strings.Count(w.inst.Doveadm("who"), "submission") == 1 })
				w.noteWho()
				b.do("QUIT")
				b.gone()
			},
		},
		scenario{
			name: "reload with sessions open",
			run: func(w *world) {
				early := w.local("early")
				early.do("EHLO early.example.org")
				in := w.local("in")
				in.login("alice", "wonder")
				tls := w.dial("tls", client.Options{TLS: w.inst.TLS()})
				tls.login("bob@example.test", "bpass")
				w.reload("login_greeting = after the reload.")
				late := w.local("late")
				late.login("alice", "wonder")
				late.message(hello)
				in.message(hello)
				tls.message(hello)
				early.do("NOOP")
				for _, s := range []*session{early, in, tls, late} {
					s.do("QUIT")
					s.gone()
				}
			},
		},
		scenario{
			name: "a setting changes between two sessions",
			run: func(w *world) {
				s := w.local("before")
				s.login("alice", "wonder")
				s.do("MAIL FROM:<a@b> SIZE=2000")
				s.do("QUIT")
				s.gone()
				w.reload("submission_max_mail_size = 1000")
				s = w.local("after")
				s.do("EHLO x")
				s.login("alice", "wonder")
				s.do("MAIL FROM:<a@b> SIZE=2000")
				s.do("QUIT")
				s.gone()
			},
		},
		scenario{
			name: "stop with sessions open", quietLog: true, slow: true,
			run: func(w *world) {
				in := w.local("in")
				in.login("alice", "wonder")
				in.do("MAIL FROM:<alice@example.test>", "RCPT TO:<bob@dest.test>")
				in.do("DATA")
				w.inst.Signal(syscall.SIGTERM)
				w.eventually("nobody to listen", func() bool { return !w.inst.Reachable() })
				// A message that was begun is finished.
				in.batch(1, "x", ".")
				in.do("QUIT")
				in.gone()
			},
		},
		scenario{
			name: "auth restarts", quietLog: true,
			setup: all(service("submission-login", "service_count = 0")),
			run: func(w *world) {
				s := w.local("before")
				s.login("alice", "wonder")
				waiting := w.local("waiting")
				w.killAll("/auth\x00")
				s.do("NOOP")
				s.do("QUIT")
				s.gone()
				w.eventually("a login after the restart", func() bool { return strings.HasPrefix(w.quiet("alice", "wonder"), "235") })
				waiting.do("NOOP")
				waiting.do("QUIT")
				waiting.gone()
			},
		},
		scenario{
			name: "kill -9 of a login process", quietLog: true,
			run: func(w *world) {
				in := w.local("in")
				in.login("alice", "wonder")
				early := w.local("early")
				w.killAll("submission-login")
				early.gone()
				in.message(hello) // it is the worker's
				in.do("QUIT")
				in.gone()
				w.eventually("a login", func() bool { return strings.HasPrefix(w.quiet("alice", "wonder"), "235") })
			},
		},
		scenario{
			name: "kill -9 of a worker", quietLog: true,
			run: func(w *world) {
				in := w.local("in")
				in.login("alice", "wonder")
				w.eventually("anvil to count", func() bool { return strings.Contains(w.inst.Doveadm("who"), "alice") })
				w.killAll("/submission\x00")
				in.gone()
				w.eventually("anvil to forget", func() bool { return !strings.Contains(w.inst.Doveadm("who"), "alice") })
				w.eventually("a login", func() bool { return strings.HasPrefix(w.quiet("alice", "wonder"), "235") })
			},
		},
		scenario{
			name: "kill -9 of each service", quietLog: true,
			run: func(w *world) {
				in := w.local("in")
				in.login("alice", "wonder")
				for _, name := range []string{"/anvil\x00", "/config\x00", "/auth\x00", "/stats\x00"} {
					w.killAll(name)
					in.message(hello) // who is logged in needs none of them
					w.eventually("a login without "+name, func() bool { return strings.HasPrefix(w.quiet("bob@example.test", "bpass"), "235") })
				}
				in.do("QUIT")
				in.gone()
			},
		},
		scenario{
			name: "idle processes go", quietLog: true, slow: true,
			setup: all(service("submission-login", "service_count = 0", "idle_kill = 1 s"), service("submission", "service_count = 0", "idle_kill = 1 s")),
			run: func(w *world) {
				oneOfEach(w)
				w.eventually("the login process to go", func() bool { return len(w.inst.Processes("/submission-login")) == 0 })
				w.eventually("the worker to go", func() bool { return len(w.inst.Processes("/submission")) == 0 })
				s := w.local("later")
				s.login("alice", "wonder")
				s.do("QUIT")
				s.gone()
			},
		},
		scenario{
			name:  "a Unix socket listener",
			setup: service("submission-login", "unix_listener local-submission {", "mode = 0666", "}"),
			run: func(w *world) {
				s := w.dialTo("unix", w.inst.Dir+"/run/local-submission", client.Options{})
				s.reply()
				s.do("EHLO x")
				s.login("alice", "wonder")
				s.message(hello)
				s.do("QUIT")
				s.gone()
			},
		},
		scenario{
			name: "post-login script",
			setup: func(s *system.Setup) {
				s.Files = map[string]system.File{"etc/post": {Mode: 0o755, Data: `#!/bin/sh
echo "$USER $IP $USERDB_KEYS" >>{dir}/mail/post.log
case $USER in
carlo) exit 1;;
esac
SUBMISSION_MAX_RECIPIENTS=1 USERDB_KEYS="$USERDB_KEYS submission_max_recipients" exec "$@"
`}}
				s.Users = append(s.Users, "carlo:{PLAIN}x:12001:12001::{dir}/mail/carlo::")
				s.Args = map[string]string{"submission": "post-login"}
				s.Config = append(s.Config, "service post-login {\n  executable = script-login {dir}/etc/post\n  user = root\n  unix_listener post-login {\n  }\n}")
			},
			run: func(w *world) {
				s := w.local("alice")
				s.login("alice", "wonder")
				s.do("MAIL FROM:<a@b>")
				s.do("RCPT TO:<c@d>")
				s.do("RCPT TO:<e@f>")
				s.do("QUIT")
				s.gone()
				s = w.local("carlo")
				s.send("AUTH PLAIN " + plain("carlo", "x") + "\r\n")
				s.gone()
				w.inst.WaitLine("Post-login script denied")
				w.inst.WaitLine("returned error 1") // the master, of the script
				data, err := os.ReadFile(w.inst.Dir + "/mail/post.log")
				w.note("script: %s %v", strings.ReplaceAll(strings.TrimSpace(string(data)), "\n", " / "), err)
			},
		},
		scenario{
			name: "post-login scripts that do not answer", slow: true,
			setup: func(s *system.Setup) {
				s.Files = map[string]system.File{"etc/post": {Mode: 0o755, Data: "#!/bin/sh\nexec sleep 5\n"}}
				s.Users = append(s.Users, "late:{PLAIN}x:12001:12001::{dir}/mail/late::", "lost:{PLAIN}x:12001:12001::{dir}/mail/lost::userdb_postlogin=nowhere")
				s.Args = map[string]string{"submission": "-t 1 post-login"}
				s.Config = append(s.Config, "service post-login {\n  executable = script-login {dir}/etc/post\n  user = root\n  unix_listener post-login {\n  }\n}")
			},
			run: func(w *world) {
				for _, user := range []string{"late", "lost"} {
					s := w.local(user)
					s.send("AUTH PLAIN " + plain(user, "x") + "\r\n")
					s.gone()
					w.inst.WaitLine("submission(" + user)
				}
			},
		},
		scenario{
			name:  "process_limit of the worker reached",
			setup: service("submission", "process_limit = 1"),
			slow:  true, quietLog: true,
			run: func(w *world) {
				one := w.local("one")
				one.login("alice", "wonder")
				two := w.dial("two", client.Options{Timeout: patience}) // 10 s go by
				two.send("AUTH PLAIN " + plain("bob@example.test", "bpass") + "\r\n")
				w.inst.WaitLine("client connections are being dropped")
				two.gone()
				one.do("QUIT")
				one.gone()
			},
		},
		scenario{
			name:  "login full: the oldest goes",
			setup: service("submission-login", "client_limit = 2", "process_limit = 1", "service_count = 0"),
			run: func(w *world) {
				one := w.local("one")
				two := w.local("two")
				three := w.local("three")
				one.gone()
				two.do("NOOP")
				three.do("NOOP")
				for _, s := range []*session{two, three} {
					s.do("QUIT")
					s.gone()
				}
			},
		},
		scenario{
			name:  "no chroot",
			setup: service("submission-login", "chroot ="),
			run:   oneOfEach,
		},
		scenario{
			name: "user's chroot",
			setup: all(config("valid_chroot_dirs = {dir}/mail", "mail_location = maildir:~/Maildir"), users("jail:{PLAIN}x:12001:12001::{dir}/mail/./jail::"),
				func(s *system.Setup) {
					s.Files = map[string]system.File{"mail/jail/.keep": {UID: system.UID}}
				}),
			run: func(w *world) {
				s := w.local("jail")
				s.login("jail", "x")
				s.message(hello)
				s.do("QUIT")
				s.gone()
			},
		},
		scenario{
			name: "several listeners",
			setup: func(s *system.Setup) {
				s.Config = append(s.Config, "haproxy_trusted_networks = 127.0.0.0/8", "haproxy_timeout = 2 s", "service submission-login {\n"+
					"  inet_listener six {\n    address = ::1\n    port = {port}\n  }\n"+
					"  inet_listener proxied {\n    address = 127.0.0.9\n    port = {port}\n    haproxy = yes\n  }\n"+
					"  inet_listener proxied-tls {\n    address = 127.0.0.9\n    port = {port2}\n    haproxy = yes\n    ssl = yes\n  }\n"+
					"}")
			},
			run: func(w *world) {
				six := w.dialTo("six", fmt.Sprintf("[::1]:%d", w.inst.Port), client.Options{})
				six.reply()
				six.login("alice", "wonder")
				six.message(hello)
				six.do("QUIT")
				six.gone()
				at := fmt.Sprintf("127.0.0.9:%d", w.inst.Port)
				for _, h := range []struct{ name, header string }{
					{"v1", "PROXY TCP4 192.0.2.44 192.0.2.45 1044 587\r\n"},
					{"v1-6", "PROXY TCP6 2001:db8::44 2001:db8::45 1044 587\r\n"},
					{"unknown", "PROXY UNKNOWN\r\n"},
					{"v2", "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x2c\xc0\x00\x02\x2d\x04\x14\x02\x4b"},
					{"local", "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"},
				} {
					s := w.dialTo("haproxy "+h.name, at, client.Options{Before: h.header})
					s.reply()
					s.do("EHLO x")
					s.do("AUTH PLAIN " + plain("alice", "wonder"))
					s.startTLS()
					s.login("alice", "wonder")
					s.message(hello)
					s.do("QUIT")
					s.gone()
				}
				s := w.dialTo("haproxy tls", fmt.Sprintf("127.0.0.9:%d", w.inst.TLSPort), client.Options{Before: "PROXY TCP4 192.0.2.46 192.0.2.45 1044 465\r\n", TLS: w.inst.TLS()})
				s.reply()
				s.login("alice", "wonder")
				s.do("QUIT")
				s.gone()
				s = w.dialTo("no header", at, client.Options{Before: "EHLO x\r\n"})
				s.gone()
			},
		},
	)
	// Process models: the same clients, one after the other and at the same time.
	for _, m := range []struct {
		name  string
		setup func(*system.Setup)
	}{
		{"as shipped", all()},
		{"long-lived login", service("submission-login", "service_count = 0", "client_limit = 100", "process_min_avail = 1")},
		{"workers one after the other", all(service("submission-login", "service_count = 0"), service("submission", "service_count = 0", "client_limit = 1"))},
		{"shared workers", all(service("submission-login", "service_count = 0"), service("submission", "service_count = 0", "client_limit = 10", "process_limit = 1"))},
		{"three clients a worker", service("submission", "service_count = 3", "client_limit = 3", "process_limit = 2")},
		{"waiting workers", service("submission", "process_min_avail = 2")},
	} {
		cases = append(cases, scenario{name: "model: " + m.name, setup: m.setup, run: func(w *world) {
			oneOfEach(w)
			var open []*session
			for i := range 4 {
				s := w.dial(fmt.Sprintf("together %d", i), client.Options{})
				s.login("alice", "wonder")
				open = append(open, s)
			}
			for _, s := range open {
				s.message(hello)
			}
			for _, s := range open {
				s.do("QUIT")
				s.gone()
			}
		}})
	}
	return cases
}

// oneOfEach logs in on each kind of connection and sends a message.
func oneOfEach(w *world) {
	for _, way := range ways {
		s := way.dial(w, way.name)
		s.login("alice", "wonder")
		s.message(hello)
		s.do("QUIT")
		s.gone()
	}
}

// noteWho records what doveadm who says, without pids.
func (w *world) noteWho() {
	w.t.Helper()
	var lines []string
	for _, l := range strings.Split(w.inst.Doveadm("who"), "\n") {
		if f := strings.Fields(l); len(f) > 4 && f[0] != "username" {
			lines = append(lines, fmt.Sprintf("who: %s %s %s (pid) %s", f[0], f[1], f[2], f[len(f)-1]))
		}
	}
	slices.Sort(lines)
	for _, l := range lines {
		w.note("%s", l)
	}
}

// reload appends a line to the configuration and makes the master read it.
func (w *world) reload(line string) {
	w.t.Helper()
	w.inst.Append(line)
	w.inst.Reload()
}

// killAll kills the processes whose command line contains one of the names.
func (w *world) killAll(names ...string) {
	w.t.Helper()
	killed := 0
	for _, name := range names {
		for _, pid := range w.inst.Processes(name) {
			if syscall.Kill(pid, syscall.SIGKILL) == nil {
				killed++
			}
		}
	}
	if killed == 0 {
		w.t.Fatalf("%v: no process called %q", w.inst.System, names)
	}
}

// quiet logs in on a connection that is not recorded, sends nothing, and returns the reply.
func (w *world) quiet(user, password string) string {
	w.t.Helper()
	c := client.Dial(w.t, w.inst.Addr(), client.Options{})
	defer c.Close()
	if _, err := c.TryLine(); err != nil {
		return ""
	}
	if c.TryWrite("AUTH PLAIN "+plain(user, password)+"\r\n") != nil {
		return ""
	}
	line, _ := c.TryLine()
	_ = c.TryWrite("QUIT\r\n")
	_, _ = c.TryLine()
	if strings.HasPrefix(line, "235") {
		w.quietLogins++
	}
	return line
}
