package submission

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"dovetail/internal/dovecot/handoff"
	"dovetail/internal/testkit/relay"
)

func TestOneMessage(t *testing.T) {
	for name, caps := range map[string][]string{"BDAT": nil, "DATA": {"PIPELINING", "8BITMIME"}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			r := relay.Start(t, relay.Options{Caps: caps})
			c := w.open(r)
			c.Do("EHLO me.example", "250")
			begin(c)
			c.Do("DATA", "354 OK")
			c.Send("Subject: x", "", "..dot", ".")
			c.ExpectCode("250 2.0.0")
			c.Do("QUIT", "221 2.0.0 Bye")
			c.ExpectEOF()
			m := r.WaitMessages(1)[0]
			if got := body(t, m); got != "Subject: x\r\n\r\n.dot\r\n" {
				t.Errorf("%q", got)
			}
			head, _, _ := strings.Cut(string(m.Data), "; ")
			id := strings.Split(head, "id ")[1][:22]
			want := "Received: from me.example ([192.0.2.7])\r\n\tby host.test with ESMTPA\r\n\tid " + id +
				"\r\n\t(envelope-from <alice@example.org>)\r\n\tfor <bob@example.net>"
			if head != want {
				t.Errorf("%q\nwant %q", head, want)
			}
			w.svc.AwaitLog("Successfully relayed message: from=<alice@example.org>, size=20, id=" + id + ", nrcpt=1, reply=`250 2.0.0 ")
			w.svc.AwaitLog("Info: Disconnected: Logged out (state=READY) in=")
			if conn := r.Ended(0); conn.End != "QUIT" || len(conn.Violations) > 0 {
				t.Errorf("relay: ended by %q, violations %q", conn.End, conn.Violations)
			}
			awaitFiles(t, w)
		})
	}
}

// What is pipelined behind the login, and what the login process knows of the client.
func TestHandOver(t *testing.T) {
	w := newWorld(t, map[string]string{"submission_relay_trusted": "yes"})
	r := relay.Start(t, relay.Options{Caps: []string{"PIPELINING", "XCLIENT HELO PROTO LOGIN PORT ADDR"}})
	c := w.login(visit{user: "bob@example.org", helo: "login.example", flags: handoff.TLS, fields: []string{port(r)},
		pending: "MAIL FROM:<>\r\nRCPT TO:<a@b>\r\nDATA\r\nx\r\n.\r\nQUIT\r\n"})
	c.Expect("235 2.7.0 Logged in.", "250 2.1.0 2.1.0 Ok", "250 2.0.0 2.1.5 Ok", "354 OK")
	c.ExpectCode("250")
	c.Expect("221 2.0.0 Bye")
	want := "XCLIENT HELO=login.example PROTO=ESMTP LOGIN=bob@example.org PORT=1234 ADDR=192.0.2.7"
	if lines := r.Commands(0, 3); lines[1] != want {
		t.Errorf("%q", lines)
	}
	if m := r.WaitMessages(1)[0]; !strings.HasPrefix(string(m.Data), "Received: from login.example ([192.0.2.7])\r\n\tby host.test with ESMTPSA\r\n") {
		t.Errorf("%q", m.Data)
	}

	// Without AUTH there is no greeting.
	c = w.login(visit{flags: handoff.Implicit, fields: []string{port(r)}, pending: "MAIL FROM:<a@b>\r\n"})
	c.ExpectCode("250 2.1.0")
}

func TestRefusedLogins(t *testing.T) {
	w := newWorld(t, nil)
	for name, tt := range map[string]struct {
		v    visit
		want []string
		log  string
	}{
		"unknown user": {visit{fail: "NOTFOUND"}, []string{"451 4.7.0 " + internalError, "421 4.3.2 machine Shutting down due to fatal error"},
			"Login auth request failed: Authenticated user not found from userdb"},
		"failure": {visit{fail: "FAIL", fields: []string{"reason=not now"}}, []string{"451 4.7.0 not now", "421 4.3.2 machine Shutting down due to fatal error"},
			"Login auth request failed"},
		"login before a reload": {visit{auth: 1}, []string{"421 4.3.2 machine Shutting down"},
			fmt.Sprintf("Login auth request failed: Auth server restarted (pid 1 -> %d), aborting auth", os.Getpid())},
		"no relay": {visit{fields: []string{"submission_relay_host="}}, []string{"451 4.3.5 " + internalError, "421 4.3.2 host.test Shutting down due to fatal error"},
			"Error: No relay host configured for submission proxy (submission_relay_host is unset)"},
		"anonymous": {visit{fields: []string{"anonymous"}}, []string{"534 5.7.9 Anonymous login is not allowed for submission"}, ""},
		"bad setting": {visit{fields: []string{"submission_relay_port=x"}}, []string{"451 4.7.0 " + internalError},
			"submission(alice): Error: Invalid settings in userdb: Invalid userdb input 'submission_relay_port=x': Invalid port number x"},
		"bad workaround": {visit{fields: []string{"submission_client_workarounds=x"}}, []string{"451 4.7.0 " + internalError},
			"submission(alice): Error: Invalid settings (probably caused by userdb): submission_client_workarounds: Unknown workaround: x"},
		"idle time 0": {visit{fields: []string{"submission_relay_max_idle_time=0"}}, []string{"451 4.7.0 " + internalError},
			"submission_relay_max_idle_time must not be 0"},
		"uid 0":    {visit{fields: []string{"uid=0"}}, []string{"451 4.7.0 " + internalError}, "userdb returned 0 as uid"},
		"low uid":  {visit{fields: []string{"uid=3"}}, []string{"451 4.7.0 " + internalError}, "Mail access for users with UID 3 not permitted (see first_valid_uid in config file, uid from userdb lookup)."},
		"bad home": {visit{fields: []string{"home=x"}}, []string{"451 4.7.0 " + internalError}, "Relative home directory paths not supported: x"},
		"chroot":   {visit{fields: []string{"chroot=/x"}}, []string{"451 4.7.0 " + internalError}, "userdb returned invalid chroot directory: /x (see valid_chroot_dirs setting)"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := w.tryLogin(tt.v)
			if (tt.v.fail != "" || tt.v.auth != 0) != (err != nil) {
				t.Errorf("the login process hears %v", err)
			}
			c.Expect(tt.want...)
			if len(tt.want) < 2 && tt.v.auth == 0 {
				c.ExpectCode("421 4.3.2 ")
			}
			c.ExpectEOF()
			w.svc.AwaitLog(tt.log)
		})
	}
}

// The userdb overrides any setting, and plus appends.
func TestOverrides(t *testing.T) {
	w := newWorld(t, map[string]string{"submission_max_recipients": "5", "submission_client_workarounds": "whitespace-before-path"})
	r := relay.Start(t, relay.Options{})
	c := w.open(r, "submission_max_recipients=1", "submission_client_workarounds+= mailbox-for-path", "submission_max_mail_size=1 k", "hostname=other.test")
	if lines := c.Do("EHLO x", "250"); lines[0] != "250-other.test" || !strings.Contains(strings.Join(lines, "|"), "SIZE 1024|") {
		t.Errorf("%q", lines)
	}
	c.Do("MAIL FROM: a@b", "250")
	c.Do("RCPT TO:\tc@d", "250")
	c.Do("RCPT TO:<e@f>", "451 4.5.3 Too many recipients")
}

func TestLogs(t *testing.T) {
	w := newWorld(t, map[string]string{
		"mail_log_prefix":          "%s[%u %n %d %r %l %{session} %{auth_user}]: ",
		"submission_logout_format": "i=%i o=%{output} c=%{command_count} r=%{reply_count} u=%u %{unknown}",
	})
	r := relay.Start(t, relay.Options{})
	c := w.login(visit{user: "bob@example.org", fields: []string{port(r), "auth_user=master"}, session: "S1"})
	c.Expect("235 2.7.0 Logged in.")
	c.Do("NOOP", "250")
	c.Close()
	w.svc.AwaitLog("submission[bob@example.org bob example.org 192.0.2.7 192.0.2.1 S1 master]: Info: Disconnected: Connection closed (state=GREETING) " +
		"i=6 o=36 c=1 r=2 u=bob@example.org UNSUPPORTED_VARIABLE_unknown")
	w.svc.AwaitLog("Error: Failed to expand submission_logout_format=")
}

// Between transactions the relay may leave; the next command gets a new connection.
func TestRelayComesBack(t *testing.T) {
	for name, leave := range map[string]relay.Behaviour{
		"closes":    relay.Close("250 2.0.0 Ok: bdat"),
		"says 421":  relay.Close("250 2.0.0 Ok: bdat", "421 4.4.2 relay.test timeout"),
		"says more": relay.Close("250 2.0.0 Ok: bdat", "250 2.0.0 unexpected"),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			r := relay.Start(t, relay.Options{Scripts: []relay.Script{{relay.BDAT: {leave}}, {}}})
			c := w.open(r)
			begin(c)
			c.Send("BDAT 3 LAST")
			c.Write("abc")
			c.ExpectCode("250 2.0.0")
			r.Ended(0)
			awaitSockets(t, w, 4) // one is the client's; the worker has noticed
			begin(c)
			c.Send("BDAT 3 LAST")
			c.Write("def")
			c.ExpectCode("250 2.0.0")
			if n := len(r.Conns()); n != 2 {
				t.Errorf("%d connections", n)
			}
		})
	}
}

// With a transaction open it may not.
func TestRelayLeavesInsideTransaction(t *testing.T) {
	w := newWorld(t, nil)
	r := relay.Start(t, relay.Options{Script: relay.Script{relay.RCPT: {relay.Close("250 2.1.5 Ok")}}})
	c := w.open(r)
	c.Do("MAIL FROM:<a@b>", "250")
	c.Send("RCPT TO:<a@b>")
	c.Expect("250 2.1.5 Ok", "421 4.4.0 host.test Lost connection to relay server (connection lost)")
	c.ExpectEOF()
	w.svc.AwaitLog("Info: Disconnected: Lost connection to relay server (connection lost) (state=RCPT TO)")
}

func TestRelayIdle(t *testing.T) {
	w := newWorld(t, nil)
	r := relay.Start(t, relay.Options{})
	c := w.open(r, "submission_relay_max_idle_time=1 secs")
	begin(c) // with a transaction open it stays
	c.Send("BDAT 0 LAST")
	c.ExpectCode("250")
	if end := r.Ended(0).End; end != "QUIT" {
		t.Errorf("ended by %q", end)
	}
	c.Do("NOOP", "250 2.0.0 OK")
	if n := len(r.Conns()); n != 2 {
		t.Errorf("%d connections", n)
	}
}

// A relay is asked only when it is needed.
func TestLazyRelay(t *testing.T) {
	w := newWorld(t, map[string]string{"submission_backend_capabilities": "8BITMIME DSN foo"})
	r := relay.Start(t, relay.Options{Caps: []string{"PIPELINING"}})
	c := w.open(r)
	w.svc.AwaitLog("Warning: Unknown SMTP capability in submission_backend_capabilities: foo")
	c.Send("EHLO x")
	c.Expect("250-host.test", "250-8BITMIME", "250-AUTH", "250-CHUNKING", "250-DSN", "250-ENHANCEDSTATUSCODES", "250-PIPELINING", "250 SIZE 41943040")
	if n := len(r.Conns()); n != 0 {
		t.Fatalf("%d connections", n)
	}
	c.Do("MAIL FROM:<a@b> BODY=8BITMIME", "555 5.5.4 Unsupported mail BODY type")
	c.Do("MAIL FROM:<a@b> RET=HDRS", "555 5.5.4 Unsupported parameters")
	c.Do("MAIL FROM:<a@b> BODY=7BIT", "250")
	c.Do("RCPT TO:<a@b> NOTIFY=NEVER", "555 5.5.4 Unsupported parameters")
	c.Do("RCPT TO:<a@b>", "250")
	c.Do("QUIT", "221")
	if lines := r.Ended(0).Lines; fmt.Sprint(lines) != "[EHLO host.test MAIL FROM:<a@b> BODY=7BIT RCPT TO:<a@b> QUIT]" {
		t.Errorf("%q", lines)
	}
}

// submission_max_recipients holds also for recipients that are pipelined: the relay never
// gets one too many.
func TestMaxRecipientsPipelined(t *testing.T) {
	w := newWorld(t, map[string]string{"submission_max_recipients": "2"})
	r := relay.Start(t, relay.Options{Script: relay.Script{relay.RCPT: {relay.Reply("250 2.1.5 Ok"), relay.Reply("550 5.1.1 no")}}})
	c := w.open(r)
	c.Send("MAIL FROM:<a@b>", "RCPT TO:<1@b>", "RCPT TO:<2@b>", "RCPT TO:<3@b>", "RCPT TO:<4@b>", "RCPT TO:<5@b>", "DATA", "x", ".")
	c.Expect("250 2.1.0 Ok", "250 2.1.5 Ok", "550 5.1.1 <2@b> no", "250 2.1.5 Ok", "451 4.5.3 Too many recipients", "451 4.5.3 Too many recipients", "354 OK")
	c.ExpectCode("250")
	if m := r.WaitMessages(1)[0]; fmt.Sprint(m.Rcpts) != "[<1@b> <3@b>]" {
		t.Errorf("%q", m.Rcpts)
	}
}

// Sessions of one user share a process; another user's is refused.
func TestManySessions(t *testing.T) {
	w := newWorld(t, nil)
	r := relay.Start(t, relay.Options{})
	a, b := w.open(r), w.open(r)
	begin(a)
	begin(b)
	for _, c := range []string{"a", "b"} {
		x := a
		if c == "b" {
			x = b
		}
		x.Send("BDAT 1 LAST")
		x.Write(c)
		x.ExpectCode("250")
	}
	if os.Geteuid() == 0 { // otherwise there is only one user to be
		c := w.login(visit{fields: []string{"uid=12002", "gid=12002", port(r)}})
		c.Expect("451 4.7.0 " + internalError)
		w.svc.AwaitLog("Error: Couldn't drop privileges: ")
	}
	begin(a)
}

// Three transactions and a QUIT in one write.
func TestThreeTransactionsInOneWrite(t *testing.T) {
	for name, caps := range map[string][]string{"BDAT": nil, "DATA": {"PIPELINING"}, "DATA alone": {}, "BDAT alone": {"CHUNKING"}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			r := relay.Start(t, relay.Options{Caps: caps})
			c := w.open(r)
			var in strings.Builder
			for i := range 3 {
				fmt.Fprintf(&in, "MAIL FROM:<%d@a>\r\nRCPT TO:<x@b>\r\nRCPT TO:<y@b>\r\n", i)
				if i == 1 {
					fmt.Fprintf(&in, "BDAT 2\r\n1\nNOOP\r\nBDAT 3 LAST\r\n2\r\n")
				} else {
					fmt.Fprintf(&in, "DATA\r\nm%d\r\n.\r\n", i)
				}
			}
			c.Write(in.String() + "QUIT\r\n")
			for i := range 3 {
				c.ExpectCode("250 2.1.0")
				c.ExpectCode("250 2.")
				c.ExpectCode("250 2.")
				if i == 1 {
					c.Expect("250 2.0.0 Added 2 octets", "250 2.0.0 OK")
				} else {
					c.Expect("354 OK")
				}
				c.ExpectCode("250 2.0.0")
			}
			c.Expect("221 2.0.0 Bye")
			c.ExpectEOF()
			for i, m := range r.WaitMessages(3) {
				if got, want := body(t, m), []string{"m0\r\n", "1\r\n2\r\n", "m2\r\n"}[i]; got != want {
					t.Errorf("message %d: %q", i, got)
				}
			}
			if v := r.Ended(0).Violations; len(v) > 0 {
				t.Errorf("%q", v)
			}
		})
	}
}

func TestTimeouts(t *testing.T) {
	w := newWorld(t, nil)
	r := relay.Start(t, relay.Options{Script: relay.Script{relay.MAIL: {relay.Silence()}}})
	c := w.open(r, "submission_relay_command_timeout=300 ms")
	began := time.Now()
	c.Send("MAIL FROM:<a@b>")
	c.Expect("421 4.4.0 host.test Lost connection to relay server (timed out)")
	if d := time.Since(began); d < 300*time.Millisecond || d > 5*time.Second {
		t.Errorf("after %v", d)
	}
	w.svc.AwaitLog("Command timed out, disconnecting")
}

// Too large a message is read to its end, refused, and forgotten, whether the relay has a
// part of it or not.
func TestTooLarge(t *testing.T) {
	for _, size := range []string{"1 k", "300 k"} {
		for name, caps := range map[string][]string{"BDAT": nil, "DATA": {"PIPELINING"}} {
			t.Run(name+" "+size, func(t *testing.T) {
				w := newWorld(t, map[string]string{"submission_max_mail_size": size})
				r := relay.Start(t, relay.Options{Caps: caps})
				c := w.open(r)
				begin(c)
				c.Do("DATA", "354")
				c.Write(strings.Repeat("line\r\n", 100000) + ".\r\n")
				c.Expect("552 5.2.3 Message size exceeds administrative limit")
				begin(c)
				c.Send("BDAT 600")
				c.Write(strings.Repeat("x", 600))
				c.Expect("250 2.0.0 Added 600 octets")
				c.Send("BDAT 400000 LAST")
				c.Write(strings.Repeat("x", 400000))
				c.Expect("552 5.2.3 Message size exceeds administrative limit")
				c.Do("MAIL FROM:<a@b>", "503 5.5.0 MAIL already given")
				c.Do("BDAT 0 LAST", "503 5.5.0 Previous data chunk failed, issue RSET first")
				c.Do("RSET", "250")
				begin(c)
				c.Send("BDAT 1 LAST")
				c.Write("x")
				c.ExpectCode("250")
				c.Do("QUIT", "221")
				var taken int
				for _, m := range r.Messages() {
					if m.Accepted {
						taken++
					}
				}
				if taken != 1 {
					t.Errorf("the relay took %d messages", taken)
				}
			})
		}
	}
}

// ... unless it goes on for too long.
func TestMuchTooLarge(t *testing.T) {
	w := newWorld(t, map[string]string{"submission_max_mail_size": "1 k"})
	r := relay.Start(t, relay.Options{})
	c := w.open(r)
	begin(c)
	c.Send("BDAT " + fmt.Sprint(skipLimit+1025))
	c.Expect("552 5.2.3 Message size exceeds administrative limit")
	c.ExpectEOF()
	w.svc.AwaitLog("Info: Disconnected: Command data size exceeds absolute limit (unfinished BDAT command) ")

	c = w.open(r)
	begin(c)
	c.Do("DATA", "354")
	for chunk := []byte(strings.Repeat("line\r\n", 10000)); ; {
		if _, err := c.Conn.Write(chunk); err != nil {
			break
		}
	}
	if rest := c.ExpectGone(); rest != "" && rest != "552 5.2.3 Message size exceeds administrative limit\r\n" {
		t.Errorf("%q", rest)
	}
	w.svc.AwaitLog("Info: Disconnected: Command data size exceeds absolute limit (unfinished DATA command) (state=DATA)")
}

// A recipient may come between chunks, and counts.
func TestRecipientBetweenChunks(t *testing.T) {
	w := newWorld(t, nil)
	r := relay.Start(t, relay.Options{})
	c := w.open(r)
	begin(c)
	c.Send("BDAT 1")
	c.Write("x")
	c.Expect("250 2.0.0 Added 1 octets")
	c.Do("RCPT TO:<carol@example.net>", "250")
	c.Do("BDAT 0 LAST", "250")
	w.svc.AwaitLog(", nrcpt=2, reply=`250 2.0.0 ")
	if m := r.WaitMessages(1)[0]; len(m.Rcpts) != 2 {
		t.Errorf("%q", m.Rcpts)
	}
}

// BINARYMIME is not touched; everything else is made of lines.
func TestBinary(t *testing.T) {
	w := newWorld(t, nil)
	r := relay.Start(t, relay.Options{Caps: []string{"PIPELINING", "CHUNKING", "BINARYMIME", "8BITMIME"}})
	c := w.open(r)
	data := strings.Repeat("a\nb\r\x00\r\n.\r\n", 20000)
	for _, tt := range []struct{ body, want string }{
		{"", strings.ReplaceAll(strings.ReplaceAll(data, "\r\n", "\n"), "\n", "\r\n")},
		{" BODY=BINARYMIME", data},
	} {
		c.Do("MAIL FROM:<a@b>"+tt.body, "250")
		c.Do("RCPT TO:<a@b>", "250")
		if tt.body != "" {
			c.Do("DATA", "503 5.5.0 DATA cannot be used with BINARYMIME")
		}
		c.Send(fmt.Sprintf("BDAT %d LAST", len(data)))
		c.Write(data)
		c.ExpectCode("250")
		m := r.Messages()
		if got := body(t, m[len(m)-1]); got != tt.want {
			t.Errorf("%q: %d octets, want %d", tt.body, len(got), len(tt.want))
		}
	}
}

// An answer from before the end of a large message is the answer to it.
func TestEarlyAnswer(t *testing.T) {
	for name, o := range map[string]relay.Options{
		"DATA": {Caps: []string{"PIPELINING", "ENHANCEDSTATUSCODES"}, Scripts: []relay.Script{{relay.Body: {relay.ReadThen(100000, relay.Close("552 5.3.4 too much"))}}, {}}},
		"BDAT": {Scripts: []relay.Script{{relay.BDAT: {relay.Reply("552 5.3.4 too much")}}, {}}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			r := relay.Start(t, o)
			c := w.open(r)
			begin(c)
			c.Do("DATA", "354")
			c.Write(strings.Repeat("line\r\n", 500000) + ".\r\n")
			c.Expect("552 5.3.4 too much")
			w.svc.AwaitLog("Info: Failed to relay message: from=<alice@example.org>, size=3000000, nrcpt=1, reply=`552 5.3.4 too much'")
			begin(c)
			c.Send("BDAT 1 LAST")
			c.Write("x")
			c.ExpectCode("250")
		})
	}
}

func TestRawlogs(t *testing.T) {
	dir, err := os.MkdirTemp("", "rawlog")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, sub := range []string{"", "/alice", "/relay"} {
		os.Mkdir(dir+sub, 0o777)
		os.Chmod(dir+sub, 0o777)
	}
	w := newWorld(t, map[string]string{"rawlog_dir": dir + "/%u", "submission_relay_rawlog_dir": "~/relay"})
	r := relay.Start(t, relay.Options{})
	c := w.login(visit{fields: []string{port(r), "home=" + dir}})
	c.Expect("235 2.7.0 Logged in.")
	c.Do("NOOP", "250")
	c.Do("QUIT", "221")
	c.ExpectEOF()
	w.awaitEnd("sess")
	r.Ended(0)
	for name, want := range map[string]string{
		"/alice/*.in": "NOOP|QUIT|", "/alice/*.out": "235 2.7.0 Logged in.|250 2.0.0 OK|221 2.0.0 Bye|",
		"/relay/*.out": "EHLO host.test|NOOP|QUIT|",
	} {
		files, _ := filepath.Glob(dir + name)
		if len(files) != 1 {
			t.Errorf("%s: %q", name, files)
			continue
		}
		text, _ := os.ReadFile(files[0])
		got := ""
		for line := range strings.Lines(string(text)) {
			stamp, rest, _ := strings.Cut(line, " ")
			if !regexp.MustCompile(`^[0-9]+\.[0-9]{6}$`).MatchString(stamp) {
				t.Errorf("%s: %q", name, line)
			}
			got += strings.TrimRight(rest, "\r\n") + "|"
		}
		if got != want {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestTitle(t *testing.T) {
	w := newWorld(t, map[string]string{"verbose_proctitle": "yes"})
	r := relay.Start(t, relay.Options{})
	c := w.open(r)
	begin(c)
	want := "[alice 192.0.2.7 RCPT TO bob@example.net]"
	for range 200 {
		if strings.Contains(w.child.Cmdline(), want) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%q, want %q", w.child.Cmdline(), want)
}
