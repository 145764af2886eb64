package stats

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dovetail/internal/dovecot/tabline"
	"dovetail/internal/process/event"
	"dovetail/internal/testkit/leak"
)

// service is a stats service of a test.
type service struct {
	t     *testing.T
	l     net.Listener
	conns chan *peer
}

// peer is a client's connection.
type peer struct {
	t *testing.T
	net.Conn
	br *bufio.Reader
}

func newService(t *testing.T) *service {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "stats-writer"))
	if err != nil {
		t.Fatal(err)
	}
	s := &service{t: t, l: l, conns: make(chan *peer, 10)}
	done := make(chan struct{})
	go func() { // ends when l is closed
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			s.conns <- &peer{t, c, bufio.NewReader(c)}
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
		for close(s.conns); ; { // those that no test has taken
			p, ok := <-s.conns
			if !ok {
				return
			}
			p.Close()
		}
	})
	return s
}

// dial connects a Client and returns both ends, the client's handshake read.
func (s *service) dial(log *event.Log) (*Client, *peer) {
	s.t.Helper()
	conn, err := net.Dial("unix", s.l.Addr().String())
	if err != nil {
		s.t.Fatal(err)
	}
	c := start(conn, s.l.Addr().String(), "submission", log, time.Millisecond)
	return c, s.accept()
}

func (s *service) accept() *peer {
	s.t.Helper()
	p := <-s.conns
	s.t.Cleanup(func() { p.Close() })
	want := []string{"VERSION\tstats-client\t4\t0", "CATEGORY\tservice:submission", "CATEGORY\tsmtp-server", "CATEGORY\tsmtp-client",
		"CATEGORY\tauth-client", "CATEGORY\tsubmission", "CATEGORY\tstorage"}
	for _, w := range want {
		if got := p.line(); got != w {
			s.t.Fatalf("handshake: got %q, want %q", got, w)
		}
	}
	return p
}

// say sends the service's greeting, or another filter.
func (p *peer) say(lines ...string) {
	p.t.Helper()
	if _, err := io.WriteString(p, strings.Join(lines, "\n")+"\n"); err != nil {
		p.t.Fatal(err)
	}
}

const greeting = "VERSION\tstats-server\t4\t0"

func (p *peer) line() string {
	p.t.Helper()
	line, err := p.br.ReadString('\n')
	if err != nil {
		p.t.Fatalf("%q, %v", line, err)
	}
	return strings.TrimSuffix(line, "\n")
}

var varying = regexp.MustCompile(`[0-9]{10}\t[0-9]{1,6}\b`)

// want reads lines and compares them; times are written T.
func (p *peer) want(lines ...string) {
	p.t.Helper()
	for _, w := range lines {
		if got := varying.ReplaceAllString(p.line(), "T"); got != w {
			p.t.Errorf("got  %q\nwant %q", got, w)
		}
	}
}

// until waits for what another goroutine does.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still not so: %s", what)
		}
	}
}

// A session is told in order: what events happen in before them, what has changed, and
// the ends. A scope in which nothing happens is not told.
func TestSessionIsTold(t *testing.T) {
	leak.Check(t)
	s := newService(t)
	c, p := s.dial(nil)
	p.say(greeting, "FILTER\t(event=\"*\")")
	until(t, "there is a filter", func() bool { return !waits(c) })
	var server, tx, silent Scope
	bytes := int64(0)
	server.Begin(c, nil, SMTPServer, func(f *Fields) {
		f.Str("protocol", "smtp")
		f.Addr("remote_ip", netip.MustParseAddr("::ffff:192.0.2.7"))
		f.Addr("local_ip", netip.Addr{})
		if bytes > 0 {
			f.Int("bytes_in", bytes)
		}
	})
	silent.Begin(c, &server, ServerTransaction, func(*Fields) { t.Error("asked for nothing") })
	server.Event(ServerCommandStarted).Command("mail", "FROM:<a\tb>", true).Send(time.Now())
	tx.Begin(c, &server, ServerTransaction, func(f *Fields) { f.Str("mail_from", "a\tb") })
	server.Event(ServerCommandFinished).Status(250, "2.1.0", "OK").Command("mail", "FROM:<a\tb>", true).Send(time.Now())
	tx.Event(ServerRcptFinished).Status(550, "", "no\nsuch").Str("rcpt_to", "x").Send(time.Now())
	bytes = 99
	server.Changed()
	tx.Event(ServerTransactionFinished).Recipients(Recipients{5, 1, 2, 3, 4}).Addr("x", netip.MustParseAddr("2001:db8::1")).Addr("y", netip.Addr{}).Send(time.Now())
	tx.End()
	silent.End()
	server.Event(ServerCommandFinished).Status(501, "5.5.4", "no").Command("AUTH", "PLAIN AGFsaWNlAHBhc3M=", true).Send(time.Now())
	server.Event(ServerCommandFinished).Status(500, "", "no").Command("AHTU", "PLAIN AGFsaWNlAHBhc3M=", false).Send(time.Now())
	server.End()
	server.End()
	c.Close()
	p.want(
		"BEGIN\t1\t0\t0\tT\tssmtp-server-connection\t1\tcservice:submission\tcsmtp-server\tSprotocol\tsmtp\tSremote_ip\t192.0.2.7",
		"EVENT\t0\t1\t0\tT\tssmtp-server-connection\t1\tlT\tnsmtp_server_command_started\tScmd_name\tMAIL\tScmd_input_name\tmail\tScmd_args\tFROM:<a\x01tb>\tScmd_human_args\tFROM:<a\x01tb>",
		"EVENT\t0\t1\t0\tT\tssmtp-server-connection\t1\tlT\tnsmtp_server_command_finished\tIstatus_code\t250\tSenhanced_code\t2.1.0\tScmd_name\tMAIL\tScmd_input_name\tmail\tScmd_args\tFROM:<a\x01tb>\tScmd_human_args\tFROM:<a\x01tb>",
		"BEGIN\t2\t1\t0\tT\tssmtp-server-transaction\t1\tSmail_from\ta\x01tb",
		"EVENT\t0\t2\t0\tT\tssmtp-server-transaction\t1\tlT\tnsmtp_server_transaction_rcpt_finished\tIstatus_code\t550\tSerror\tno\x01nsuch\tSrcpt_to\tx",
		"UPDATE\t1\t0\tT\tssmtp-server-connection\t1\tcservice:submission\tcsmtp-server\tSprotocol\tsmtp\tSremote_ip\t192.0.2.7\tIbytes_in\t99",
		"EVENT\t0\t2\t0\tT\tssmtp-server-transaction\t1\tlT\tnsmtp_server_transaction_finished\tIrecipients\t5\tIrecipients_denied\t1\tIrecipients_aborted\t2\tIrecipients_failed\t3\tIrecipients_succeeded\t4\tSx\t2001:db8::1",
		"END\t2",
		"EVENT\t0\t1\t0\tT\tssmtp-server-connection\t1\tlT\tnsmtp_server_command_finished\tIstatus_code\t501\tSenhanced_code\t5.5.4\tSerror\tno\tScmd_name\tAUTH\tScmd_input_name\tAUTH\tScmd_args\tPLAIN\tScmd_human_args\tPLAIN",
		"EVENT\t0\t1\t0\tT\tssmtp-server-connection\t1\tlT\tnsmtp_server_command_finished\tIstatus_code\t500\tSerror\tno\tScmd_name\tunknown\tScmd_input_name\tAHTU\tScmd_args\t\tScmd_human_args\t",
		"END\t1",
	)
	if _, err := p.br.ReadByte(); err != io.EOF {
		t.Errorf("then %v", err)
	}
}

func waits(c *Client) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.waits
}

// What happens before the service has said what it wants is told when it wants it, and
// not if it does not. Wishes can change.
func TestWishesChange(t *testing.T) {
	leak.Check(t)
	s := newService(t)
	c, p := s.dial(nil)
	defer c.Close()
	var scope Scope
	scope.Begin(c, nil, SMTPServer, nil)
	scope.Event(ClientConnected).Send(time.Now()) // too early
	p.say(greeting, "FILTER\t")
	until(t, "there is a filter", func() bool { return !waits(c) })
	if c.Wants(ClientConnected) || scope.Event(ClientConnected) != nil {
		t.Error("wanted")
	}
	p.say("FILTER\t(event=\"client_connection_connected\")")
	until(t, "it is wanted", func() bool { return c.Wants(ClientConnected) })
	if c.Wants(ClientDisconnected) {
		t.Error("wanted")
	}
	scope.Event(ClientConnected).Int("n", 2).Send(time.Now())
	p.want("BEGIN\t2\t0\t0\tT\tssmtp-server-connection\t1\tcservice:submission\tcsmtp-server",
		"EVENT\t0\t2\t0\tT\tssmtp-server-connection\t1\tlT\tnclient_connection_connected\tIn\t2")
	p.say("FILTER\t")
	until(t, "it is not wanted", func() bool { return !c.Wants(ClientConnected) })
	scope.End()
	p.want("END\t2") // the service has to forget it all the same

	c, p = s.dial(nil)
	defer c.Close()
	scope.Begin(c, nil, SMTPServer, nil)
	scope.Event(ClientConnected).Int("n", 1).Send(time.Now())
	p.say(greeting, "FILTER\t(event=\"client_*\")")
	p.want("BEGIN\t1\t0\t0\tT\tssmtp-server-connection\t1\tcservice:submission\tcsmtp-server",
		"EVENT\t0\t1\t0\tT\tssmtp-server-connection\t1\tlT\tnclient_connection_connected\tIn\t1")
}

// A lost connection is made anew, and what events happen in is told again.
func TestServiceComesBack(t *testing.T) {
	leak.Check(t)
	s := newService(t)
	c, p := s.dial(nil)
	defer c.Close()
	var outer, inner Scope
	outer.Begin(c, nil, SMTPClient, nil)
	inner.Begin(c, &outer, ClientTransaction, nil)
	for n := range 2 {
		p.say(greeting, "FILTER\t(event=\"*\")")
		until(t, "there is a filter", func() bool { return !waits(c) })
		inner.Event(ClientRcptFinished).Send(time.Now())
		p.want(fmt.Sprintf("BEGIN\t%d\t0\t0\tT\tssmtp-client-connection\t1\tcservice:submission\tcsmtp-client", 2*n+1),
			fmt.Sprintf("BEGIN\t%d\t%d\t0\tT\tssmtp-client-transaction\t1", 2*n+2, 2*n+1),
			fmt.Sprintf("EVENT\t0\t%d\t0\tT\tssmtp-client-transaction\t1\tlT\tnsmtp_client_transaction_rcpt_finished", 2*n+2))
		if n == 0 {
			p.Close()
			p = s.accept()
		}
	}
}

// A service of another version, or that says nothing sensible, gets nothing.
func TestNotAService(t *testing.T) {
	leak.Check(t)
	for _, text := range []string{"VERSION\tstats-server\t5\t0\nFILTER\t(event=\"*\")", "VERSION\tstats-client\t4\t0", "", strings.Repeat("x", maxFilter+4096)} {
		s := newService(t)
		c, p := s.dial(nil)
		_, _ = io.WriteString(p, text+"\n")
		if b, err := io.ReadAll(p.br); err != nil && !strings.Contains(err.Error(), "reset") || len(b) > 0 {
			t.Errorf("%.40q: got %q, %v", text, b, err)
		}
		c.Close()
	}
	if _, err := Dial(t.Context(), filepath.Join(t.TempDir(), "none"), "x", nil); err == nil {
		t.Error("no error")
	}
}

// A service that wants everything and does not read costs no more than a bounded buffer,
// and nobody waits for it.
func TestServiceDoesNotRead(t *testing.T) {
	leak.Check(t)
	s := newService(t)
	var log lines
	c, p := s.dial(event.New(&log, "", true))
	p.say(greeting, "FILTER\t(event=\"*\")")
	until(t, "there is a filter", func() bool { return !waits(c) })
	var scope Scope
	scope.Begin(c, nil, SMTPServer, nil)
	long := strings.Repeat("x", 2*maxValue)
	largest := 0
	until(t, "the connection is given up", func() bool {
		for range 100 {
			scope.Event(ServerCommandStarted).Str("cmd_args", long).Send(time.Now())
			c.mu.Lock()
			largest = max(largest, len(c.buf))
			c.mu.Unlock()
		}
		return !c.Wants(ServerCommandStarted)
	})
	if largest > maxBuffer {
		t.Errorf("%d bytes were kept", largest)
	}
	p.Close()
	until(t, "the log says so", func() bool { return strings.Contains(log.all(), "connection lost") })
	c.Close()
}

// lines collects what is logged.
type lines struct {
	mu   sync.Mutex
	text []string // guarded by mu
}

func (l *lines) Log(level event.Level, prefix, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, text)
}

func (l *lines) all() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.text, "\n")
}

// Without a client nothing happens, and nothing fails.
func TestNoClient(t *testing.T) {
	var c *Client
	var scope, inner Scope
	scope.Begin(c, nil, SMTPServer, func(*Fields) { t.Error("asked") })
	inner.Begin(c, &scope, ServerTransaction, nil)
	scope.Changed()
	e := scope.Event(ServerCommandFinished)
	if e != nil {
		t.Error("an event")
	}
	e.Command("NOOP", "", true).Status(250, "2.0.0", "OK").Str("a", "b").Int("c", 1).Addr("d", netip.Addr{}).
		Recipients(Recipients{}).With(func(*Fields) { t.Error("asked") }).Send(time.Now())
	inner.End()
	scope.End()
	if c.Wants(ClientConnected) {
		t.Error("wanted")
	}
	c.Close()
}

// The filters that the real service makes of metrics say what has to be sent.
func TestFiltersOfDovecot(t *testing.T) {
	b, err := os.ReadFile("testdata/filters.golden")
	if err != nil {
		t.Fatal(err)
	}
	golden := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	if len(golden) != len(metrics) {
		t.Fatalf("%d filters for %d metrics", len(golden), len(metrics))
	}
	check := func(text, wanted string) {
		t.Helper()
		f, err := parseFilter(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
		}
		if got := maskString(mask(f, "submission")); got != wanted {
			t.Errorf("%s: wants %q, not %q", text, got, wanted)
		}
	}
	for n, m := range metrics {
		check(tabline.Split(golden[n])[1], m.wanted)
		check(m.filter, m.wanted) // in the language of the configuration it is the same
	}
	all := ""
	for _, m := range metrics[:2] {
		all += " OR (" + m.filter + ")"
	}
	check(all[4:], "smtp_server_command_finished")
	check("", "")
	check("  ", "")
}

// A filter that is not understood is one that wants everything; one that goes deep ends.
func TestBrokenFilters(t *testing.T) {
	for _, text := range []string{
		"event", "event=", "event=a event=b", "(event=a", "event=a)", "NOT", "event=a AND", "OR", "=a", `event="a`, `"a`, "()", "event==a", "a=(b)", "event a", "a=b OR OR c=d",
		strings.Repeat("(", maxDepth+1) + "a=b" + strings.Repeat(")", maxDepth+1), strings.Repeat("NOT ", 100000) + "a=b", strings.Repeat("(", 1<<20),
	} {
		f, err := parseFilter(text)
		if err == nil {
			t.Errorf("%.40q was taken", text)
		}
		if events := mask(f, "submission"); events != 1<<numNames-1 {
			t.Errorf("%.40q: wants %s", text, maskString(events))
		}
	}
	if _, err := parseFilter(strings.Repeat("(", maxDepth-1) + "a=b" + strings.Repeat(")", maxDepth-1)); err != nil {
		t.Error(err)
	}
}

func TestWildcard(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"", "", true}, {"", "a", false}, {"*", "", true}, {"*", "abc", true}, {"a*", "abc", true}, {"*c", "abc", true}, {"a*c", "abc", true},
		{"a*b", "abc", false}, {"?bc", "abc", true}, {"?", "", false}, {"a?c?", "abc", false}, {"**b**", "abc", true}, {"*a*b*c*", "xaxbxcx", true},
		{"*a*b*c*", "xaxcxbx", false}, {"ABC", "abc", false}, {"abc", "abcd", false}, {"abcd", "abc", false}, {"abc*", "abc", true},
	} {
		if got := wildcard(c.pattern, c.s); got != c.want {
			t.Errorf("%q, %q: %v", c.pattern, c.s, got)
		}
	}
	if wildcard(strings.Repeat("*a", 1000)+"b", strings.Repeat("a", 2000)) {
		t.Error("matches")
	}
}

// documented are the fields that each event has in Dovecot, of its own and of its scope.
var documented = map[string]string{
	"auth_client_request_started":           "id mechanism service transport session local_ip remote_ip local_port remote_port real_local_ip real_remote_ip real_local_port real_remote_port tls_cipher tls_cipher_bits tls_pfs tls_protocol",
	"auth_client_request_challenged":        "as auth_client_request_started",
	"auth_client_request_continued":         "as auth_client_request_started",
	"auth_client_request_finished":          "as auth_client_request_started user error",
	"auth_master_client_login_started":      "id local_ip local_port remote_ip remote_port",
	"auth_master_client_login_finished":     "as auth_master_client_login_started user error",
	"client_connection_connected":           "remote_ip remote_port",
	"client_connection_disconnected":        "reason",
	"server_connection_connected":           "protocol host dest_ip dest_port socket_path remote_pid remote_uid",
	"server_connection_disconnected":        "reason socket_path remote_pid remote_uid bytes_in bytes_out",
	"smtp_server_command_started":           "cmd_name cmd_input_name cmd_args cmd_human_args remote_ip remote_port connection_id session",
	"smtp_server_command_finished":          "as smtp_server_command_started status_code enhanced_code error",
	"smtp_server_transaction_started":       "transaction_id session mail_from mail_from_raw mail_param_auth mail_param_size",
	"smtp_server_transaction_rcpt_finished": "as smtp_server_transaction_started status_code enhanced_code error rcpt_to data_size",
	"smtp_server_transaction_finished":      "as smtp_server_transaction_started status_code enhanced_code recipients recipients_denied recipients_aborted recipients_failed recipients_succeeded is_reset data_size",
	"smtp_client_command_started":           "cmd_name",
	"smtp_client_command_sent":              "cmd_name",
	"smtp_client_command_finished":          "cmd_name status_code error",
	"smtp_client_transaction_started":       "mail_from mail_from_raw mail_param_auth mail_param_size",
	"smtp_client_transaction_rcpt_finished": "status_code error rcpt_to",
	"smtp_client_transaction_finished":      "as smtp_client_transaction_started status_code recipients recipients_denied recipients_aborted recipients_failed recipients_succeeded is_reset",
	"proxy_session_started":                 "source_ip dest_ip dest_port dest_host",
	"proxy_session_established":             "as proxy_session_started source_port",
	"proxy_session_finished":                "as proxy_session_established disconnect_reason disconnect_side idle_secs bytes_in bytes_out",
	"mail_user_session_finished":            "utime stime minor_faults major_faults rss vsz in_blocks out_blocks volcs involcs user session",
}

func fieldsOf(name string) []string {
	f := strings.Fields(documented[name])
	if len(f) > 1 && f[0] == "as" {
		return append(fieldsOf(f[1]), f[2:]...)
	}
	return f
}

// Every event that the real programs send is known, in the category that it has there,
// and with these fields; and every event that we know, they send.
func TestEventsOfDovecot(t *testing.T) {
	b, err := os.ReadFile("testdata/events.golden")
	if err != nil {
		t.Fatal(err)
	}
	categories := map[string]string{} // of what was begun: process and id
	sent := map[string]bool{}
	for _, l := range strings.Split(strings.TrimSuffix(string(b), "\n"), "\n") {
		who, line, _ := strings.Cut(l, ": ")
		f := strings.Split(line, "\t")
		if f[0] != "BEGIN" && f[0] != "EVENT" {
			continue
		}
		of := who + f[2]
		category, name, at := categories[of], "", 0
		for n := 6; n < len(f); n++ { // behind numbers and times
			switch x := f[n]; {
			case x == "": // an empty one
			case x[0] == 'S', x[0] == 'I', x[0] == 's', x[0] == 'l':
				n++ // its value
			case x[0] == 'c' && !strings.HasPrefix(x, "cservice:") && name == "":
				category = x[1:]
			case x[0] == 'n' && name == "":
				name, at = x[1:], n+1
			}
		}
		if f[0] == "BEGIN" {
			categories[who+f[1]] = category
			continue
		}
		n := slices.IndexFunc(names[:], func(e struct {
			word  string
			kind  Kind
			level event.Level
		}) bool {
			return e.word == name && (kinds[e.kind].category == category || category == "")
		})
		if n < 0 {
			t.Errorf("unknown event %s in category %q", name, category)
			continue
		}
		if got := fmt.Sprint(int(names[n].level)); got != f[3] {
			t.Errorf("%s: severity %s, want %s", name, got, f[3])
		}
		sent[name] = true
		var e Event
		for ; at < len(f); at += 2 {
			switch key := f[at][1:]; {
			case f[at][0] == 'c': // the category of an event without a scope
				at--
				continue
			case !slices.Contains(fieldsOf(name), key):
				t.Errorf("%s: field %s is not documented", name, key)
			case f[at][0] == 'S':
				e.Str(key, tabline.Unescape(f[at+1]))
			case f[at][0] == 'I':
				var v int64
				fmt.Sscan(f[at+1], &v)
				e.Int(key, v)
			default:
				t.Errorf("%s: field of type %c", name, f[at][0])
			}
		}
		if !strings.HasSuffix(line, string(e.f.b)) {
			t.Errorf("fields are written %q\nin %q", e.f.b, line)
		}
	}
	for n := range numNames {
		if !sent[n.String()] {
			t.Errorf("%s is not recorded", n)
		}
	}
}

// FuzzFilter: no panic, and what is taken is decided for every event.
func FuzzFilter(f *testing.F) {
	for _, m := range metrics {
		f.Add(m.filter)
	}
	b, err := os.ReadFile("testdata/filters.golden")
	if err != nil {
		f.Fatal(err)
	}
	for _, l := range strings.Split(string(b), "\n") {
		f.Add(strings.TrimPrefix(l, "FILTER\t"))
	}
	f.Fuzz(func(t *testing.T, text string) {
		flt, err := parseFilter(text)
		events := mask(flt, "submission")
		if err != nil && events != 1<<numNames-1 {
			t.Errorf("%q: %v, and %s", text, err, maskString(events))
		}
	})
}

// FuzzFields: whatever is in a text, a line stays a line and the text comes back.
func FuzzFields(f *testing.F) {
	f.Add("cmd_args", "FROM:<a\tb>\r\n\x00\x01")
	f.Fuzz(func(t *testing.T, key, value string) {
		fields := Fields{[]byte("x")}
		fields.Str(key, value)
		got := tabline.Split(string(fields.b))
		if len(got) != 3 || got[1] != "S"+key || got[2] != value[:min(len(value), maxValue)] || strings.ContainsAny(string(fields.b), "\r\n\x00") {
			t.Errorf("%q", fields.b)
		}
	})
}

// FuzzRead: whatever the service says, the client ends.
func FuzzRead(f *testing.F) {
	f.Add(greeting + "\nFILTER\t(event=\"*\")\nFILTER\t\n")
	f.Add("VERSION\tstats-server\t4\nFILTER\nfoo\n\n")
	f.Fuzz(func(t *testing.T, text string) {
		near, far := net.Pipe()
		go func() { // ends when near is closed
			_, _ = io.WriteString(far, text)
			far.Close()
		}()
		c := &Client{kick: make(chan struct{}, 1)}
		c.begin()
		if err := c.read(near); err == nil {
			t.Error("no error")
		}
		near.Close()
	})
}

func BenchmarkNotWanted(b *testing.B) {
	c := &Client{kick: make(chan struct{}, 1)}
	benchmark(b, c)
}

func BenchmarkWanted(b *testing.B) {
	c := &Client{kick: make(chan struct{}, 1)}
	c.begin()
	benchmark(b, c)
}

func benchmark(b *testing.B, c *Client) {
	var s Scope
	s.Begin(c, nil, SMTPServer, func(f *Fields) { f.Str("protocol", "smtp") })
	start := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		s.Event(ServerCommandFinished).Status(250, "2.0.0", "OK").Command("RCPT", "TO:<bob@example.net>", true).Send(start)
		if len(c.buf) > maxBuffer/2 {
			c.buf = c.buf[:0]
		}
	}
}
