package submission

import (
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/tlsfiles"
)

// What a relay may do at a step, and the code that the client hears for it; "421" means the
// end of the session.
var mischief = []struct {
	name string
	does relay.Behaviour
	code string // "" for a 2xx that depends on the step
}{
	{"2xx", relay.Reply("250 2.0.0 fine"), ""},
	{"3xx", relay.Reply("334 what"), "334"},
	{"4xx", relay.Reply("450 4.2.0 later"), "450"},
	{"421", relay.Reply("421 4.3.2 relay.test bye"), "421"},
	{"5xx", relay.Reply("554 5.7.1 no"), "554"},
	{"530", relay.Reply("530 5.7.0 log in first"), "421"},
	{"multi-line 5xx", relay.Reply("554-5.7.1 no", "554-5.7.1 never", "554 5.7.1 go away"), "554"},
	{"multi-line 2xx", relay.Reply("250-2.0.0 a", "250-2.0.0 b", "250 2.0.0 c"), ""},
	{"8 MiB line", relay.LongLine("554", 8<<20), "554"},
	{"10000 lines", relay.ManyLines("554", "5.7.1 no", 10000), "554"},
	{"garbage", relay.Raw("\x00\xff\xfe what\r\n"), "421"},
	{"half a line", relay.HalfLine("250 2.0"), "421"},
	{"silence", relay.Silence(), "421"},
	{"close", relay.Close(), "421"},
	{"reset", relay.Reset(), "421"},
}

// Each of these is answered as clause S4 says, or by a 4xx, in time; never by a 250 for a
// message that the relay has not taken; and the next session works.
func TestRelayMatrix(t *testing.T) {
	ca := tlsfiles.NewCA(t, "test CA")
	dir, err := os.MkdirTemp("", "ca") // readable by the worker's user
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	os.Chmod(dir, 0o755)
	caFile := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(caFile, ca.Cert, 0o644); err != nil {
		t.Fatal(err)
	}
	server := &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, tlsfiles.Request{CN: "relay.test", Names: []string{"127.0.0.1"}}).TLS()}}
	other := &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, tlsfiles.Request{CN: "other.test", Names: []string{"other.test"}}).TLS()}}
	w := newWorld(t, map[string]string{"ssl_client_ca_file": caFile, "submission_relay_trusted": "yes"})
	caps := map[bool][]string{
		true:  {"PIPELINING", "SIZE", "8BITMIME", "ENHANCEDSTATUSCODES", "DSN", "VRFY", "CHUNKING", "AUTH PLAIN", "XCLIENT ADDR HELO"},
		false: {"PIPELINING", "ENHANCEDSTATUSCODES", "VRFY", "AUTH PLAIN", "XCLIENT ADDR HELO"},
	}
	type cell struct {
		name   string
		step   relay.Step
		does   relay.Behaviour
		code   string
		chunks bool
		fields []string
	}
	var cells []cell
	for _, step := range relay.Steps {
		for _, m := range mischief {
			c := cell{name: string(step) + "/" + m.name, step: step, does: m.does, code: m.code, chunks: true}
			switch step {
			case relay.HELO, relay.AuthData, relay.Other:
				continue
			case relay.STARTTLS:
				c.fields = []string{"submission_relay_ssl=starttls"}
			case relay.AUTH:
				c.fields = []string{"submission_relay_user=u", "submission_relay_password=p"}
			case relay.DATA, relay.Body, relay.Dot:
				c.chunks = false
			}
			cells = append(cells, c)
			if step == relay.BDAT { // and before the octets were read
				c.name, c.does = string(step)+" early/"+m.name, m.does.Early()
				cells = append(cells, c)
			}
		}
	}
	for name, does := range map[string]relay.Behaviour{"TLS failure": relay.BreakTLS(), "wrong certificate": relay.OtherTLS(other)} {
		cells = append(cells, cell{name: "STARTTLS/" + name, step: relay.STARTTLS, does: does, code: "421", chunks: true, fields: []string{"submission_relay_ssl=starttls"}})
	}
	for _, c := range cells {
		t.Run(c.name, func(t *testing.T) {
			r := relay.Start(t, relay.Options{
				Caps: caps[c.chunks], TLS: server, Scripts: []relay.Script{{c.step: {c.does.Always()}}, {}},
			})
			limit := "30 s" // on a busy machine answers take their time
			if strings.HasSuffix(c.name, "/silence") || strings.HasSuffix(c.name, "/half a line") {
				limit = "400 ms"
			}
			runCell(t, w, r, c.step, c.code, c.name, append(c.fields, "submission_relay_connect_timeout="+limit, "submission_relay_command_timeout="+limit, port(r)))
		})
	}
}

// dialogue is what the client says in each cell: one line that is answered once, each.
var dialogue = []struct {
	step  relay.Step
	lines []string
}{
	{relay.NOOP, []string{"NOOP"}},
	{relay.VRFY, []string{"VRFY joe"}},
	{relay.MAIL, []string{"MAIL FROM:<a@b>"}},
	{relay.RCPT, []string{"RCPT TO:<c@d>"}},
	{relay.Body, []string{"DATA", "Subject: x", "", strings.Repeat("x", 900), "."}},
	{relay.RSET, []string{"RSET"}},
	{relay.QUIT, []string{"QUIT"}},
}

func runCell(t *testing.T, w *world, r *relay.Relay, step relay.Step, code, name string, fields []string) {
	here := w.in(t)
	c := here.login(visit{fields: fields})
	c.Expect("235 2.7.0 Logged in.")
	codes := map[relay.Step]string{}
	for _, d := range dialogue {
		if c.TryWrite(strings.Join(d.lines, "\r\n")+"\r\n") != nil {
			break
		}
		got := nextCode(t, c.TryLine)
		if d.step == relay.Body && got == "354" {
			got = nextCode(t, c.TryLine)
		} else if d.step == relay.Body && got != "" && got != "421" {
			// No recipient, or no MAIL: the lines of the body are commands then.
			for range d.lines[1:] {
				if next := nextCode(t, c.TryLine); next == "" || next == "421" {
					break
				}
			}
		}
		codes[d.step] = got
		if got == "421" || got == "" {
			break
		}
	}
	accepted := slices.ContainsFunc(r.Messages(), func(m relay.Message) bool { return m.Accepted })
	// Who says 250 before the end of the message is believed; who says it then tells a lie.
	lies := code == "" && (step == relay.Body || strings.Contains(name, "early"))
	if codes[relay.Body] == "250" && !accepted && !lies {
		t.Errorf("the client heard 250, and the relay took nothing: %v\n%s", codes, r.Transcript())
	}
	var last string
	for _, d := range dialogue {
		if got, ok := codes[d.step]; ok {
			last = got
		}
	}
	ended := last == "421" || last == ""
	// What the step's command should have been answered.
	want, at := code, step
	switch step {
	case relay.Banner, relay.EHLO, relay.STARTTLS, relay.AUTH:
		at = relay.NOOP
		if want == "" && step == relay.Banner {
			want = "421" // 250 is no greeting
		} else if want != "" {
			want = "421"
		}
	case relay.XCLIENT: // a refusal does not matter
		at = relay.MAIL
		if want != "421" || strings.HasSuffix(name, "/530") {
			want = ""
		}
	case relay.DATA:
		at = relay.Body
		if want == "" {
			want = "451"
		}
	case relay.Dot, relay.BDAT:
		at = relay.Body
	case relay.Body: // it comes before the end, or just behind it
	case relay.QUIT:
		want = "221"
	}
	got := codes[at]
	switch {
	case step == relay.Body && code == "":
		if got != "250" && got != "421" {
			t.Errorf("%s: %q", at, got)
		}
	case want == "":
		if !strings.HasPrefix(got, "2") {
			t.Errorf("%s: %q, want 2xx; all: %v", at, got, codes)
		}
	case got != want && !(want == "421" && got == "" && step != relay.Banner):
		t.Errorf("%s: %q, want %q; all: %v", at, got, want, codes)
	}
	if want == "421" && !ended {
		t.Errorf("the session goes on: %v", codes)
	}
	c.Close()
	if step != relay.Body { // where the rest is taken for commands
		checkTurns(t, r)
	}
	// The next session.
	next := relay.Start(t, relay.Options{})
	c = here.open(next)
	begin(c)
	c.Send("BDAT 1 LAST")
	c.Write("x")
	c.ExpectCode("250")
	c.Do("QUIT", "221")
}

// nextCode returns the code of the next reply, "" at the end of the connection.
func nextCode(t *testing.T, line func() (string, error)) string {
	t.Helper()
	began := time.Now()
	for {
		l, err := line()
		if time.Since(began) > 20*time.Second {
			t.Errorf("no answer for %v", time.Since(began))
		}
		if err != nil {
			return ""
		}
		if len(l) < 4 || strings.Trim(l[:3], "0123456789") != "" {
			t.Fatalf("%q is no reply", l)
		}
		if len(l) > relayLine {
			t.Errorf("a line of %d octets", len(l))
		}
		if l[3] == ' ' {
			return l[:3]
		}
	}
}

// relayLine is the longest line that a client may hear: the relay's text, cut, with a path.
const relayLine = 2048 + 300

// A client may do anything at any point: the session ends, and nothing of it stays.
func TestClientMatrix(t *testing.T) {
	w := newWorld(t, nil)
	points := []struct {
		name string
		says string
	}{
		{"login", ""},
		{"half a command", "MAIL FR"},
		{"EHLO", "EHLO x\r\n"},
		{"MAIL", "MAIL FROM:<a@b>\r\n"},
		{"RCPT", "MAIL FROM:<a@b>\r\nRCPT TO:<a@b>\r\n"},
		{"DATA", "MAIL FROM:<a@b>\r\nRCPT TO:<a@b>\r\nDATA\r\n"},
		{"body", "MAIL FROM:<a@b>\r\nRCPT TO:<a@b>\r\nDATA\r\nx\r\n"},
		{"large body", "MAIL FROM:<a@b>\r\nRCPT TO:<a@b>\r\nDATA\r\n" + strings.Repeat("x\r\n", 100000)},
		{"dot", "MAIL FROM:<a@b>\r\nRCPT TO:<a@b>\r\nDATA\r\nx\r\n.\r\n"},
		{"half a chunk", "MAIL FROM:<a@b>\r\nRCPT TO:<a@b>\r\nBDAT 10\r\nabc"},
		{"a chunk", "MAIL FROM:<a@b>\r\nRCPT TO:<a@b>\r\nBDAT 3\r\nabc"},
		{"a large chunk", "MAIL FROM:<a@b>\r\nRCPT TO:<a@b>\r\nBDAT 400000\r\n" + strings.Repeat("x", 300000)},
		{"last chunk", "MAIL FROM:<a@b>\r\nRCPT TO:<a@b>\r\nBDAT 3 LAST\r\nabc"},
		{"NOOP", "NOOP\r\n"},
		{"QUIT", "QUIT\r\n"},
		{"flood", strings.Repeat("NOOP\r\n", 1000)},
		{"flood of nonsense", strings.Repeat("x\r\n", 5000)},
		{"flood without a line", strings.Repeat("x", 1<<20)},
	}
	leaves := []struct {
		name string
		how  func(c leaver)
	}{
		{"closes", func(c leaver) { c.Close() }},
		{"half-closes", func(c leaver) { c.CloseWrite(); c.ExpectGone() }},
		{"resets", func(c leaver) { c.Reset() }},
	}
	for _, caps := range [][]string{nil, {"PIPELINING"}} {
		for _, p := range points {
			for _, l := range leaves {
				t.Run(fmt.Sprint(len(caps), "/", p.name, "/", l.name), func(t *testing.T) {
					here := w.in(t)
					r := relay.Start(t, relay.Options{Caps: caps})
					session := fmt.Sprint("m", w.ids.Load())
					c := here.login(visit{session: session, fields: []string{port(r)}})
					c.Expect("235 2.7.0 Logged in.")
					c.TryWrite(p.says)
					l.how(c)
					here.awaitEnd(session)
					whole := p.name == "dot" || p.name == "last chunk"
					for _, m := range r.Messages() {
						if m.Accepted && !whole {
							t.Errorf("the relay took a message: %.200q", m.Data)
						}
					}
					if whole && l.name == "half-closes" {
						r.WaitMessages(1)
					}
				})
			}
		}
	}
	awaitFiles(t, w)
}

type leaver interface {
	Close()
	CloseWrite()
	Reset()
	ExpectGone() string
}

// awaitFiles waits until the worker has no more sockets open than an idle one: to config
// and auth services, and the listener.
func awaitFiles(t *testing.T, w *world) {
	t.Helper()
	awaitSockets(t, w, 3)
}

// awaitSockets waits until the worker has no more than n sockets open.
func awaitSockets(t *testing.T, w *world, n int) {
	t.Helper()
	var open []string
	for range 1000 {
		open = nil
		names, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", w.child.PID))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			if to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", w.child.PID, n.Name())); strings.HasPrefix(to, "socket:") {
				open = append(open, to)
			}
		}
		if len(open) <= n {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("sockets that stay: %v", open)
}
