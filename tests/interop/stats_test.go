package interop

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
)

// metrics count every event that Dovecot's two programs send, by what it says.
func metrics() (lines []string) {
	for _, m := range []struct{ event, groupBy, fields string }{
		{"client_connection_connected", "", ""},
		{"client_connection_disconnected", "reason", ""},
		{"smtp_server_command_started", "cmd_name", ""},
		{"smtp_server_command_finished", "cmd_name status_code enhanced_code error", ""},
		{"smtp_server_transaction_started", "mail_from", ""},
		{"smtp_server_transaction_rcpt_finished", "status_code rcpt_to error", ""},
		{"smtp_server_transaction_finished", "status_code enhanced_code error is_reset", "recipients recipients_denied recipients_aborted recipients_failed recipients_succeeded data_size"},
		{"server_connection_connected", "dest_ip socket_path", ""},
		{"server_connection_disconnected", "dest_ip socket_path reason", ""},
		{"smtp_client_command_started", "cmd_name", ""},
		{"smtp_client_command_sent", "cmd_name", ""},
		{"smtp_client_command_finished", "cmd_name status_code error", ""},
		{"smtp_client_transaction_started", "mail_from", ""},
		{"smtp_client_transaction_rcpt_finished", "status_code rcpt_to error", ""},
		{"smtp_client_transaction_finished", "status_code error is_reset", "recipients recipients_denied recipients_aborted recipients_failed recipients_succeeded data_sent"},
		{"auth_client_request_started", "mechanism transport", ""},
		{"auth_client_request_challenged", "mechanism", ""},
		{"auth_client_request_continued", "mechanism", ""},
		{"auth_client_request_finished", "mechanism user error", ""},
		{"auth_master_client_login_started", "", ""},
		{"auth_master_client_login_finished", "user error", ""},
		{"proxy_session_started", "dest_ip", ""},
		{"proxy_session_established", "dest_ip", ""},
		{"proxy_session_finished", "disconnect_side error", ""},
		{"mail_user_session_finished", "user", ""},
	} {
		for _, service := range []string{"submission-login", "submission"} {
			lines = append(lines,
				"metric "+m.event+"__"+strings.ReplaceAll(service, "-", "_")+" {",
				"  filter = event="+m.event+" AND category=service:"+service,
				"  group_by = "+m.groupBy,
				"  fields = "+m.fields,
				"}")
		}
	}
	return lines
}

// counts are what doveadm stats dump shows: a metric's count, and the sums of its fields.
func counts(r *system.Running) (rows []string) {
	for _, l := range strings.Split(r.Doveadm("stats", "dump"), "\n") {
		f := strings.Split(l, "\t")
		if len(f) < 4 || f[0] == "metric_name" || f[2] == "0" {
			continue
		}
		row := f[0] + " " + f[2]
		if f[1] != "duration" {
			row += " " + f[1] + "=" + f[3]
		}
		rows = append(rows, normalise(row, r))
	}
	slices.Sort(rows)
	return rows
}

func statsDialogues() []scenario {
	say := func(lines ...string) func(w *world) {
		return func(w *world) {
			s := w.local("c")
			for _, l := range lines {
				s.do(l)
			}
			s.gone()
		}
	}
	auth := "AUTH PLAIN " + plain("alice", "wonder")
	return []scenario{
		{name: "nothing", run: func(w *world) { w.local("c").c.Close() }},
		{name: "before the login", run: say("EHLO x", "HELO x", "NOOP", "RSET", "FOO", "MAIL FROM:<a@b>", "VRFY x", "QUIT")},
		{name: "failed logins", run: say("AUTH PLAIN "+plain("alice", "bad"), "AUTH PLAIN "+plain("carol", "cpass"), "AUTH", "AUTH FOO", "AUTH PLAIN", "*", "QUIT")},
		{name: "login", run: say("EHLO x", auth, "QUIT")},
		{name: "login in steps", run: say("AUTH LOGIN", b64("alice"), b64("wonder"), "QUIT")},
		{name: "a message", run: say("EHLO x", auth, "EHLO y", "MAIL FROM:<alice@example.test>", "RCPT TO:<bob@dest.test>", "DATA", "Subject: x\r\n\r\nx\r\n.", "QUIT")},
		{name: "BDAT", run: say(auth, "MAIL FROM:<alice@example.test> SIZE=10", "RCPT TO:<bob@dest.test>", "RCPT TO:<carol@dest.test>", "BDAT 3\r\nabc", "BDAT 3 LAST\r\ndef", "QUIT")},
		{name: "RSET", run: say(auth, "MAIL FROM:<alice@example.test>", "RSET", "MAIL FROM:<>", "RCPT TO:<bob@dest.test>", "RSET", "QUIT")},
		{name: "commands", run: say(auth, "NOOP", "VRFY x", "FOO", "MAIL", "RCPT TO:<a@b>", "DATA", "BDAT 0", "STARTTLS", "AUTH PLAIN", "HELP", "QUIT")},
		{name: "left in MAIL", run: func(w *world) {
			s := w.local("c")
			for _, l := range []string{auth, "MAIL FROM:<alice@example.test>", "RCPT TO:<bob@dest.test>"} {
				s.do(l)
			}
			s.c.Close()
		}},
		{name: "left in DATA", run: func(w *world) {
			s := w.local("c")
			for _, l := range []string{auth, "MAIL FROM:<alice@example.test>", "RCPT TO:<bob@dest.test>", "DATA"} {
				s.do(l)
			}
			s.send("half\r\n")
			s.c.Close()
		}},
		{name: "TLS", run: func(w *world) {
			s := w.dial("c", client.Options{TLS: w.inst.TLS()})
			s.do("EHLO x")
			s.do(auth)
			s.message(hello)
			s.do("QUIT")
			s.gone()
		}},
		{name: "STARTTLS", run: func(w *world) {
			s := w.dial("c", client.Options{From: "127.0.0.2"})
			s.do("EHLO x")
			s.startTLS()
			s.do(auth)
			s.do("QUIT")
			s.gone()
		}},
		{name: "relay refuses", relay: relay.Options{Script: relay.Script{relay.MAIL: {relay.Reply("550 5.1.1 no")}, relay.RCPT: {relay.Reply("450 4.1.1 later")}, relay.Dot: {relay.Reply("554 5.6.0 no")}, relay.BDAT: {relay.Reply("554 5.6.0 no")}}},
			run: say(auth, "MAIL FROM:<alice@example.test>", "RSET", "MAIL FROM:<alice@example.test>", "RCPT TO:<bob@dest.test>", "RCPT TO:<carol@dest.test>", "DATA", "x\r\n.", "QUIT")},
		{name: "relay lost", relay: relay.Options{Script: relay.Script{relay.RCPT: {relay.Close()}}},
			run: func(w *world) {
				s := w.local("c")
				for _, l := range []string{auth, "MAIL FROM:<alice@example.test>", "RCPT TO:<bob@dest.test>"} {
					s.do(l)
				}
				s.gone()
			}},
	}
}

func (sc scenario) stats(t *testing.T, sys system.System, want []string) []string {
	t.Helper()
	port := system.Hold(t)
	o := sc.relay
	o.Listener = port.Listen(t)
	w := &world{t: t, relay: relay.Start(t, o)}
	setup := system.Setup{RelayPort: port.Number, Config: metrics()}
	if sc.setup != nil {
		sc.setup(&setup)
	}
	w.inst = sys.Start(t, setup)
	sc.run(w)
	w.chapter("all")
	var got []string
	steady := 0
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		now := counts(w.inst)
		if slices.Equal(now, want) {
			return now
		}
		if slices.Equal(now, got) {
			steady++
		} else {
			steady = 0
		}
		got = now
		if want == nil && steady >= 5 {
			break
		}
	}
	return got
}

func TestStats(t *testing.T) {
	system.OursBoth.Need(t)
	for _, sc := range statsDialogues() {
		t.Run(id(sc.name), func(t *testing.T) {
			t.Parallel()
			want := sc.stats(t, system.Dovecot, nil)
			fmt.Printf("== %s\n%s\n", sc.name, strings.Join(want, "\n"))
			got := sc.stats(t, system.OursBoth, want)
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("doveadm stats dump (-Dovecot +ours):\n%s", d)
			}
		})
	}
}
