package interop

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/system"
)

// adminCases: what doveadm shows and does.
func adminCases() []scenario {
	return []scenario{
		{
			name: "doveadm who",
			run: func(w *world) {
				for i, o := range []client.Options{{}, {}, {From: "127.0.0.2", TLS: w.inst.TLS()}, {From: "127.0.0.3", TLS: w.inst.TLS()}} {
					s := w.dial(fmt.Sprint("alice ", i), o)
					s.login("alice", "wonder")
				}
				s := w.local("bob")
				s.login("bob@example.test", "bpass")
				w.whoCounts(5)
				for _, mask := range [][]string{{"alice"}, {"*example*"}, {"127.0.0.2"}, {"127.0.0.0/30"}, {"nobody"}} {
					w.noteDoveadm(append([]string{"who"}, mask...)...)
				}
			},
		},
		{
			name: "doveadm kick by address", quietLog: true, // the workers' lines have no order
			run: func(w *world) {
				a := w.local("a")
				a.login("alice", "wonder")
				b := w.dial("b", client.Options{From: "127.0.0.2", TLS: w.inst.TLS()})
				b.login("alice", "wonder")
				w.whoCounts(2)
				w.noteDoveadm("kick", "nobody")
				w.noteDoveadm("kick", "alice", "127.0.0.2")
				b.gone()
				a.do("NOOP")
				w.noteDoveadm("kick", "*")
				a.gone()
			},
		},
		{
			name:  "doveadm kick of a shared worker",
			setup: all(service("submission-login", "service_count = 0"), service("submission", "service_count = 0", "client_limit = 10", "process_limit = 1")),
			run: func(w *world) {
				a := w.local("a")
				a.login("alice", "wonder")
				a.do("NOOP")
				b := w.local("b")
				b.login("bob@example.test", "bpass")
				b.do("NOOP")
				w.whoCounts(2)
				w.noteDoveadm("kick", "alice") // the process has somebody else, too
				a.do("NOOP")
				w.noteDoveadm("kick", "-f", "alice")
				a.gone()
				b.gone()
				w.eventually("a login", func() bool { return strings.HasPrefix(w.quiet("alice", "wonder"), "235") })
			},
		},
		{
			name: "doveadm process status",
			setup: all(service("submission-login", "service_count = 0", "client_limit = 7", "process_min_avail = 1"),
				service("submission", "service_count = 0", "client_limit = 5", "process_min_avail = 1", "process_limit = 1")),
			run: func(w *world) {
				w.processes("nobody")
				s := w.local("c")
				w.processes("before the login")
				s.login("alice", "wonder")
				w.processes("after it")
				tls := w.dial("tls", client.Options{TLS: w.inst.TLS()})
				tls.login("alice", "wonder")
				w.processes("behind TLS")
				for _, x := range []*session{s, tls} {
					x.do("QUIT")
					x.gone()
				}
				w.processes("all gone")
			},
		},
		{
			name: "doveadm service stop", quietLog: true,
			setup: service("submission-login", "service_count = 0"),
			run: func(w *world) {
				in := w.local("in")
				in.login("alice", "wonder")
				tls := w.dial("tls", client.Options{TLS: w.inst.TLS()})
				tls.login("bob@example.test", "bpass")
				early := w.local("early")
				early.do("EHLO early.example.org")
				w.noteDoveadm("service", "stop", "submission-login")
				w.eventually("nobody to listen", func() bool { return !w.inst.Reachable() })
				// Who is there stays, logs in, sends.
				early.login("alice", "wonder")
				early.message(hello)
				in.message(hello)
				tls.message(hello)
				w.noteDoveadm("service", "stop", "submission")
				in.message(hello)
				for _, s := range []*session{early, in, tls} {
					s.do("QUIT")
					s.gone()
				}
				w.reload("login_greeting = again.")
				s := w.local("again")
				s.login("alice", "wonder")
				s.do("QUIT")
				s.gone()
			},
		},
		{
			name:  "doveadm log errors",
			setup: config("passdb x {", " driver = static", " args = password=x", "}", "submission_relay_port = 1"),
			run: func(w *world) {
				s := w.local("no userdb")
				s.send("AUTH PLAIN " + plain("zork", "x") + "\r\n")
				s.c.ExpectGone() // Dovecot may lose the worker's answer
				w.inst.WaitLine("Internal login failure")
				s = w.local("no relay")
				s.login("alice", "wonder")
				s.gone()
				w.inst.WaitLine("Failed to connect to relay server (connect) (state")
				out := w.inst.Doveadm("log", "errors")
				for _, l := range strings.Split(strings.TrimSpace(out), "\n") {
					if strings.Contains(l, "submission") {
						_, line, _ := strings.Cut(errorTime.ReplaceAllString(l, ""), ": ") // behind the level
						w.note("log errors: %s", normalise(line, w.inst))
					}
				}
				slices.Sort(w.notes)
			},
		},
	}
}

var errorTime = regexp.MustCompile(`^[A-Z][a-z]{2} [ 0-9]\d [0-9:]{8} `)

// whoCounts waits until anvil has so many sessions.
func (w *world) whoCounts(n int) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("anvil to count %d", n), func() bool {
		total := 0
		for _, l := range strings.Split(w.inst.Doveadm("who"), "\n") {
			if f := strings.Fields(l); len(f) > 4 && f[0] != "username" {
				var k int
				fmt.Sscan(f[1], &k)
				total += k
			}
		}
		return total == n
	})
}

var pids = regexp.MustCompile(`\(\d+( \d+)*\)`)

// noteDoveadm records what a doveadm command says, lines sorted, without pids.
func (w *world) noteDoveadm(args ...string) {
	w.t.Helper()
	out, err := w.inst.TryDoveadm(args...)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	for i, l := range lines {
		lines[i] = strings.Join(strings.Fields(pids.ReplaceAllString(l, "(pids)")), " ")
		// The order of addresses of one user is that of a hash table.
		if a, b, ok := strings.Cut(lines[i], "(pids) ("); ok {
			f := strings.Fields(strings.TrimSuffix(b, ")"))
			slices.Sort(f)
			lines[i] = a + "(pids) (" + strings.Join(f, " ") + ")"
		}
	}
	slices.Sort(lines)
	status := "ok"
	if err != nil {
		status = err.Error()
	}
	w.note("doveadm %s: %s", strings.Join(args, " "), status)
	for _, l := range lines {
		w.note("  %s", normalise(l, w.inst))
	}
}

// processes records how many clients the processes of the two services can take.
func (w *world) processes(when string) {
	w.t.Helper()
	show := func() (lines []string) {
		for _, l := range strings.Split(w.inst.Doveadm("process", "status"), "\n") {
			f := strings.Fields(l) // name pid available_count total_count idle_start last_status_update last_kill_sent
			if len(f) > 3 && (f[0] == "submission" || f[0] == "submission-login") {
				lines = append(lines, fmt.Sprintf("  %s available %s total %s", f[0], f[2], f[3]))
			}
		}
		slices.Sort(lines)
		return lines
	}
	// Counts that do not cross 0 are told once a second.
	var last []string
	for same := time.Now(); time.Since(same) < 1500*time.Millisecond; time.Sleep(100 * time.Millisecond) {
		if now := show(); !slices.Equal(now, last) {
			last, same = now, time.Now()
		}
	}
	w.note("process status, %s:", when)
	for _, l := range last {
		w.note("%s", l)
	}
}

// limitCases: how processes come and go.
func limitCases() []scenario {
	return []scenario{
		{
			name:  "idle processes are killed",
			setup: all(service("submission-login", "service_count = 0", "idle_kill = 1 s"), service("submission", "service_count = 0", "client_limit = 1", "idle_kill = 1 s")),
			slow:  true,
			run: func(w *world) {
				for _, name := range []string{"one", "two"} {
					s := w.local(name)
					s.login("alice", "wonder")
					s.do("QUIT")
					s.gone()
					w.eventually("the processes to go", func() bool {
						return len(w.inst.Processes("submission-login"))+len(w.inst.Processes("/submission\x00")) == 0
					})
				}
				// With a client they stay.
				s := w.local("three")
				s.login("alice", "wonder")
				time.Sleep(2500 * time.Millisecond)
				s.message(hello)
				s.do("QUIT")
				s.gone()
			},
		},
		{
			name: "one client a login process, two processes: full", quietLog: true, // which of the two goes depends on the moment
			setup: service("submission-login", "process_limit = 2"),
			run: func(w *world) {
				open := []*session{w.local("one"), w.local("two")}
				three := w.local("three")
				three.login("alice", "wonder")
				three.message(hello)
				three.do("QUIT")
				three.gone()
				for _, s := range open { // one has gone, one answers
					s.c.Close()
					s.said = nil
				}
			},
		},
		{
			name: "rights are given up before exec", quietLog: true, // backtraces and throttling of what cannot start
			setup: service("submission-login", "drop_priv_before_exec = yes", "chroot ="),
			run: func(w *world) {
				// What root alone may open is out of reach, so nobody is served.
				s := w.dialTo("c", w.inst.Addr(), client.Options{})
				s.gone()
				w.inst.WaitLine("service(submission-login): command startup failed, throttling for 2.000 secs")
			},
		},
		{
			name: "rights are given up before exec, and the sockets let in",
			setup: all(service("submission-login", "drop_priv_before_exec = yes", "chroot =", "service_count = 0"),
				config("service config {", "  unix_listener config {", "    mode = 0666", "  }", "}", "service anvil {", "  unix_listener anvil {", "    mode = 0666", "  }", "}", "service stats {", "  unix_listener stats-writer {", "    mode = 0666", "  }", "}")),
			run: oneOfEach,
		},
		{
			name:  "a Unix socket",
			setup: service("submission-login", "unix_listener smtp-here {\n    mode = 0666\n  }"),
			run: func(w *world) {
				s := w.dialTo("unix", w.inst.Dir+"/run/smtp-here", client.Options{})
				s.reply()
				s.do("EHLO unix.example.org")
				s.login("alice", "wonder")
				s.message(hello)
				s.do("QUIT")
				s.gone()
			},
		},
		{
			name: "hand-overs without data do not count", quietLog: true, // the login may have to wait
			setup: service("submission", "service_count = 2", "client_limit = 1", "process_limit = 1"),
			run: func(w *world) {
				for range 5 {
					c := client.Dial(w.t, w.inst.Dir+"/run/login/submission", client.Options{})
					c.Close()
				}
				for _, name := range []string{"one", "two", "three"} {
					s := w.local(name)
					s.login("alice", "wonder")
					s.do("QUIT")
					s.gone()
				}
			},
		},
	}
}

// killCases: each process of Dovecot dies in the middle of things.
func killCases() (cases []scenario) {
	for _, x := range []struct {
		process string // as in the command line
		setup   func(*system.Setup)
	}{
		{"/anvil\x00", nil},
		{"/anvil\x00", config("mail_max_userip_connections = 5")},
		{"/config\x00", nil},
		{"/log\x00", nil},
		{"/stats\x00", config(metrics()...)},
		{"/dns-client\x00", config("submission_relay_host = localhost")},
	} {
		name := strings.Trim(x.process, "/\x00")
		if len(cases) == 1 {
			name += " with a limit"
		}
		cases = append(cases, scenario{
			name: "kill -9 of " + name, quietLog: true,
			setup: func(s *system.Setup) {
				service("submission-login", "service_count = 0", "process_min_avail = 1")(s)
				if x.setup != nil {
					x.setup(s)
				}
			},
			run: func(w *world) {
				in := w.local("in")
				in.login("alice", "wonder")
				tls := w.dial("tls", client.Options{TLS: w.inst.TLS()})
				tls.login("alice", "wonder")
				in.do("NOOP") // the relay is there
				tls.do("NOOP")
				w.killAll(x.process)
				in.message(hello)
				tls.message(hello)
				w.eventually("a login", func() bool { return strings.HasPrefix(w.quiet("alice", "wonder"), "235") })
				for _, s := range []*session{in, tls} {
					s.do("QUIT")
					s.gone()
				}
				w.eventually("another login", func() bool { return strings.HasPrefix(w.quiet("bob@example.test", "bpass"), "235") })
			},
		})
	}
	return append(cases, scenario{
		name: "what the master says of the dead", quietLog: true,
		setup: service("submission-login", "service_count = 0", "process_limit = 1"),
		run: func(w *world) {
			early := w.dial("early", client.Options{From: "127.0.0.2"})
			// When a line of the process is there, the log process knows who came before.
			c := client.Dial(w.t, w.inst.Addr(), client.Options{From: "127.0.0.3"})
			c.ExpectCode("220")
			c.Do("QUIT", "221")
			c.ExpectGone()
			w.inst.WaitLine("Disconnected: ")
			w.killAll("submission-login")
			early.gone()
			in := w.local("in")
			in.login("alice", "wonder")
			in.do("NOOP") // the relay is there
			w.killAll("/submission\x00")
			in.gone()
			w.eventually("both lines", func() bool { return count(w.inst.Log(), "killed with signal 9") == 2 })
			for _, l := range w.inst.Log() {
				if strings.Contains(l, "killed with signal 9") {
					w.note("%s", normalise(l, w.inst))
				}
			}
		},
	})
}
