package stats

import (
	"bufio"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"dovetail/internal/testkit/instance"
	"dovetail/internal/testkit/tlsfiles"
)

// To record testdata anew, as root: go test -run Real -record ./internal/dovecot/stats
var recording = flag.Bool("record", false, "write what a private real Dovecot says to testdata")

// collector is a stats service that wants everything and keeps all lines.
type collector struct {
	mu    sync.Mutex
	lines []string // guarded by mu; "submission-login" or what the process calls itself, then the line
}

func collect(t *testing.T, paths ...string) *collector {
	t.Helper()
	c := &collector{}
	for _, path := range paths {
		_ = os.Remove(path)
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o666); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() { // ends when l is closed
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go c.serve(conn) // ends with the process that connects
			}
		}()
	}
	return c
}

func (c *collector) serve(conn net.Conn) {
	defer conn.Close()
	_, _ = io.WriteString(conn, "VERSION\tstats-server\t4\t0\nFILTER\t(event=\"*\")\n")
	who := "?"
	br := bufio.NewReader(conn)
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimSuffix(line, "\n")
		if s, ok := strings.CutPrefix(line, "CATEGORY\tservice:"); ok {
			who = s
		}
		c.mu.Lock()
		c.lines = append(c.lines, who+": "+line)
		c.mu.Unlock()
	}
}

func (c *collector) take() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.lines...)
}

// smtpServer answers everything well, but for recipients that begin with "bad".
func smtpServer(t *testing.T, addr string) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { // ends when l is closed
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serveSMTP(c) // ends when the client closes
		}
	}()
}

func serveSMTP(c net.Conn) {
	defer c.Close()
	br := bufio.NewReader(c)
	fmt.Fprint(c, "220 relay\r\n")
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return
		}
		f := strings.Fields(strings.ToUpper(line) + " x")
		switch {
		case f[0] == "EHLO":
			fmt.Fprint(c, "250-relay\r\n250-8BITMIME\r\n250-PIPELINING\r\n250-CHUNKING\r\n250-XCLIENT ADDR PORT PROTO HELO LOGIN SESSION TTL TIMEOUT FORWARD\r\n250 AUTH PLAIN\r\n")
		case f[0] == "XCLIENT":
			fmt.Fprint(c, "220 relay\r\n")
		case f[0] == "AUTH":
			fmt.Fprint(c, "235 2.7.0 Logged in.\r\n")
		case f[0] == "BDAT":
			var n int64
			fmt.Sscan(f[1], &n)
			_, _ = io.CopyN(io.Discard, br, n)
			fmt.Fprint(c, "250 2.0.0 Chunk taken\r\n")
		case f[0] == "RCPT" && strings.HasPrefix(f[1], "TO:<BAD"):
			fmt.Fprint(c, "550 5.1.1 No such user\r\n")
		case f[0] == "QUIT":
			fmt.Fprint(c, "221 2.0.0 Bye\r\n")
			return
		default:
			fmt.Fprint(c, "250 2.0.0 OK\r\n")
		}
	}
}

// talk is a dialog: each line is sent when the reply to the one before is there.
func talk(t *testing.T, addr string, lines ...string) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	br := bufio.NewReader(conn)
	reply := func(after string) {
		t.Helper()
		for {
			line, err := br.ReadString('\n')
			if err == io.EOF && after == "QUIT" {
				return
			}
			if err != nil {
				t.Fatalf("after %q: %v", after, err)
			}
			if len(line) > 3 && line[3] == ' ' {
				return
			}
		}
	}
	reply("connect")
	for _, l := range lines {
		if _, err := io.WriteString(conn, l+"\r\n"); err != nil {
			t.Fatal(err)
		}
		reply(l)
		if l == "STARTTLS" {
			tc := tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
			conn, br = tc, bufio.NewReader(tc)
		}
	}
}

const (
	authAlice = "AUTH PLAIN AGFsaWNlAHBhc3M=" // pass
	authWrong = "AUTH PLAIN AGFsaWNlAGJhZA==" // bad
	authProxy = "AUTH PLAIN AHByb3h5AHBhc3M="
)

// TestRealEvents records what the real login process and worker say of sessions.
func TestRealEvents(t *testing.T) {
	cert, key := tlsfiles.SelfSigned(t, tlsfiles.Request{CN: "sub.example.test"}).Write(t, t.TempDir(), "tls")
	i := instance.Start(t, `
ssl = yes
ssl_cert = <`+cert+`
ssl_key = <`+key+`
submission_relay_host = 127.0.0.1
submission_relay_port = @PORT:relay@
passdb {
  driver = passwd-file
  args = @DIR@/users
}
service anvil {
  unix_listener anvil-auth-penalty {
    mode = 0
  }
}
`)
	users := "alice:{PLAIN}pass\nproxy:{PLAIN}pass::::::proxy=y host=127.0.0.1 port=" + i.Addr("backend")[len("127.0.0.1:"):] + "\n"
	if err := os.WriteFile(i.Dir+"/users", []byte(users), 0o644); err != nil {
		t.Fatal(err)
	}
	smtpServer(t, i.Addr("relay"))
	smtpServer(t, i.Addr("backend"))
	c := collect(t, i.Socket("stats-writer"), i.Socket("login/stats-writer"))
	addr := i.Addr("submission")
	talk(t, addr, "EHLO me.test", "BOGUS", authWrong, "AUTH PLAIN", "*", "AUTH PLAIN", authWrong[len("AUTH PLAIN "):], "AUTH LOGIN", "QUIT")
	talk(t, addr, "EHLO me.test", authAlice, "EHLO me.test", "MAIL FROM:<alice@example.org> SIZE=100", "RCPT TO:<bad@example.net>", "RCPT TO:<bob@example.net>",
		"DATA", "Subject: x\r\n\r\nbody\r\n.", "NOOP", "FOO", "MAIL FROM:<alice@example.org>", "RSET", "MAIL FROM:<>", "RCPT TO:<bob@example.net>", "BDAT 3 LAST\r\nhi\r", "VRFY x", "QUIT")
	talk(t, addr, "STARTTLS", "EHLO me.test", authAlice, "QUIT")
	talk(t, addr, "EHLO me.test", authProxy, "NOOP", "QUIT")
	i.Until("everything is said", func() bool {
		n := 0
		for _, l := range c.take() {
			if strings.Contains(l, "\tnproxy_session_finished\t") || strings.Contains(l, "\tnmail_user_session_finished\t") {
				n++
			}
		}
		return n == 3
	})
	seen, keep := map[string]bool{}, []string(nil)
	for _, l := range c.take() {
		who, line, _ := strings.Cut(l, ": ")
		if who != "submission" && who != "submission-login" || strings.HasPrefix(line, "END") {
			continue
		}
		// One of each sort is kept: with the same process, event, and fields.
		sort := who
		for n, f := range strings.Split(line, "\t") {
			if n == 0 || f != "" && strings.Contains("nSIc", f[:1]) {
				sort += " " + f
			}
		}
		sort = regexp.MustCompile(`[0-9.]+`).ReplaceAllString(sort, "0")
		if !seen[sort] {
			seen[sort] = true
			keep = append(keep, l)
		}
	}
	if *recording {
		text := strings.ReplaceAll(strings.Join(keep, "\n")+"\n", i.Dir, "@DIR@")
		for path, text := range map[string]string{"testdata/events.golden": text, "testdata/version": i.Version + "\n"} {
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// metrics are added to a real service, whose filter is then read. Some depend on what is
// only known when the event happens, so that it has to be sent in any case.
var metrics = []struct{ filter, wanted string }{
	{"event=smtp_server_command_finished", "smtp_server_command_finished"},
	{"event=smtp_server_command_finished AND cmd_name=RCPT", "smtp_server_command_finished"},
	{"event=a OR (event=b AND NOT category=smtp-server)", ""},
	{"event=smtp_server_transaction_* AND category=smtp-server AND NOT event=*_started", "smtp_server_transaction_rcpt_finished smtp_server_transaction_finished"},
	{"event=smtp_server_transaction_* AND NOT category=smtp-server", ""},
	{"event=smtp_* AND remote_ip=\"10.0.0.0/8\" AND event=*rcpt*", "smtp_server_transaction_rcpt_finished smtp_client_transaction_rcpt_finished"},
	{"event=proxy_session_finished AND source_location=\"foo.c:12\"", "proxy_session_finished"},
	{"event=mail_user_session_finished AND user=\"a b\\\"c\"", "mail_user_session_finished"},
	{"event=mail_user_session_finished AND NOT NOT (a=1 OR b=2 AND c>3)", "mail_user_session_finished"},
	{"event=?roxy_session_started AND (status_code>=400 AND NOT status_code<500)", "proxy_session_started"},
	{"event=server_connection_connected AND category=service:submission AND category=auth-client", "server_connection_connected"},
	{"event=server_connection_connected AND category=service:imap", ""},
	{"event=proxy_session_* AND category=info", "proxy_session_established proxy_session_finished"},
	{"category=error", ""},
	{"category=warning OR event=\"x AND y\"", ""},
	{"event=x and foo=bar", ""},
}

// TestRealFilters records how the real service writes the filters of metrics.
func TestRealFilters(t *testing.T) {
	i := instance.Start(t, "")
	var all strings.Builder
	for n, m := range metrics {
		name := fmt.Sprintf("m%d", n)
		if out, err := i.Doveadm("stats", "add", name, m.filter); err != nil {
			t.Fatalf("%s: %v\n%s", m.filter, err, out)
		}
		conn, err := net.Dial("unix", i.Socket("stats-writer"))
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = io.WriteString(conn, handshake)
		br := bufio.NewReader(conn)
		for range 2 {
			line, err := br.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(line, "FILTER") {
				all.WriteString(line)
			} else if line != "VERSION\tstats-server\t4\t0\n" {
				t.Errorf("line %q", line)
			}
		}
		conn.Close()
		if out, err := i.Doveadm("stats", "remove", name); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	if *recording {
		if err := os.WriteFile("testdata/filters.golden", []byte(all.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// The real service counts what we send, by fields of the event and of what it happens in.
func TestRealService(t *testing.T) {
	i := instance.Start(t, `
metric commands {
  filter = event=smtp_server_command_finished AND category=smtp-server AND category=service:submission
  fields = duration
  group_by = cmd_name status_code
}
metric from {
  filter = event=smtp_server_command_finished AND remote_ip="192.0.2.7"
}
metric failed {
  filter = event=smtp_server_command_finished AND status_code>=500
}
metric recipients {
  filter = event=smtp_server_transaction_finished AND mail_from="alice@example.org"
  fields = recipients data_size
}
metric bytes {
  filter = event=client_connection_disconnected
  fields = bytes_in
}
metric proxies {
  filter = event=proxy_session_finished AND category=submission
}
`)
	c, err := Dial(t.Context(), i.Socket("stats-writer"), "submission", nil)
	if err != nil {
		t.Fatal(err)
	}
	var server, tx, login Scope
	bytes := int64(0)
	server.Begin(c, nil, SMTPServer, func(f *Fields) {
		f.Str("protocol", "smtp")
		f.Str("remote_ip", "192.0.2.7")
		f.Int("bytes_in", bytes)
	})
	start := time.Now().Add(-time.Second)
	for _, e := range []struct {
		verb string
		code int
	}{{"EHLO", 250}, {"MAIL", 250}, {"RCPT", 250}, {"RCPT", 550}, {"RCPT", 250}, {"FOO", 500}} {
		server.Event(ServerCommandFinished).Status(e.code, "", "text").Command(e.verb, "x\ty", e.verb != "FOO").Send(start)
	}
	tx.Begin(c, &server, ServerTransaction, func(f *Fields) {
		f.Str("mail_from", "alice@example.org")
		f.Int("data_size", 215)
	})
	tx.Event(ServerTransactionFinished).Recipients(Recipients{All: 3, Failed: 1, Denied: 1, Succeeded: 2}).Status(250, "2.0.0", "").Send(start)
	tx.End()
	bytes = 4711
	server.Changed()
	server.Event(ClientDisconnected).Str("reason", "Connection closed").Send(start)
	server.End()
	login.Begin(c, nil, Login, nil)
	login.Event(ProxyFinished).Send(start)
	login.End()
	c.Close()
	out := ""
	dump := func() map[string][]string {
		if out, err = i.Doveadm("stats", "dump"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		rows := map[string][]string{}
		for _, l := range strings.Split(out, "\n") {
			if f := strings.Split(l, "\t"); len(f) > 3 {
				rows[f[0]+" "+f[1]] = f[2:]
			}
		}
		return rows
	}
	i.Until("the last is counted", func() bool { r := dump()["proxies duration"]; return len(r) > 0 && r[0] == "1" })
	rows := dump()
	for key, want := range map[string]string{
		"commands duration": "6", "commands_RCPT duration": "3", "commands_RCPT_550 duration": "1", "commands_RCPT_250 duration": "2",
		"commands_unknown_500 duration": "1", "from duration": "6", "failed duration": "2", "recipients recipients": "1 3",
		"recipients data_size": "1 215", "bytes bytes_in": "1 4711", "proxies duration": "1",
	} {
		if got := strings.Join(rows[key][:min(len(rows[key]), len(strings.Fields(want)))], " "); got != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
	var min int
	if fmt.Sscan(rows["commands duration"][2], &min); min < 1e6 || min > 60e6 {
		t.Errorf("the shortest command took %d µs", min)
	}
	if t.Failed() {
		t.Log(out)
	}
	if strings.Contains(i.Log(), "stats: Error") {
		t.Error("the stats process complains")
	}
}
