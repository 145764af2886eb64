package proxy

import (
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
)

// A backend dies with 500 sessions: each client is closed within
// login_proxy_max_disconnect_delay, not all at once; sessions on another backend are not
// touched; nothing stays behind; and when it is back, logins work.
func TestBackendDies(t *testing.T) {
	const sessions, most = 500, 3 * time.Second
	onBoth(t, systems, func(t *testing.T, sys system.System) {
		f := start(t, sys, []user{{name: "dying", relay: &relay.Options{Timeout: time.Minute}}, {name: "living", relay: &relay.Options{}}},
			"login_proxy_max_disconnect_delay = 3 s", oneProcess, "default_client_limit = 3000", "default_process_limit = 1000", "mail_max_userip_connections = 0")
		living := passes(t, f, "living", client.Options{})
		pid := f.loginPID(t)
		before := descriptors(t, pid)
		var clients []*client.Client
		for i := range sessions {
			o := client.Options{}
			if i%2 == 1 {
				o.TLS = f.TLS()
			}
			clients = append(clients, passes(t, f, "dying", o))
		}
		f.backends["dying"].Stop()
		died := time.Now()
		var wg sync.WaitGroup
		took := make([]time.Duration, sessions)
		for i, c := range clients {
			wg.Go(func() { // ends with the client's connection
				c.Conn.SetReadDeadline(time.Now().Add(4 * most))
				n, err := c.Conn.Read(make([]byte, 1))
				if n > 0 || isTimeout(err) {
					t.Errorf("client %d: %d octets, %v", i, n, err)
				}
				took[i] = time.Since(died)
			})
		}
		wg.Wait()
		slices.Sort(took)
		t.Logf("closed after %v, %v, %v", took[0], took[sessions/2], took[sessions-1])
		if slow := took[sessions-1]; slow > most+2*time.Second {
			t.Errorf("the last client is closed after %v", slow)
		}
		if ours(sys) && (took[sessions/2] < most/5 || took[sessions/2] > most*4/5) {
			t.Errorf("half of the clients are closed after %v", took[sessions/2])
		}
		living.Do("NOOP", "250")
		within(t, 10*time.Second, "descriptors to be closed", func() bool { return descriptors(t, pid) <= before+2 })
		lines := f.WaitFor(func(lines []string) bool { return count(lines, "Disconnected by server") == sessions })
		if n, delayed := count(lines, "Disconnected by server"), count(lines, " - disconnecting client in "); n != sessions || delayed < sessions/2 || delayed >= sessions {
			t.Errorf("%d lines about disconnects, %d with a delay", n, delayed)
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", f.ports["dying"]))
		if err != nil {
			t.Fatal(err)
		}
		relay.Start(t, relay.Options{Caps: dovecotCaps, Listener: l})
		passes(t, f, "dying", client.Options{}).Do("NOOP", "250")
		if p := f.loginPID(t); p != pid {
			t.Errorf("another process: %d, %d", pid, p)
		}
	})
}

func isTimeout(err error) bool {
	ne, ok := err.(net.Error)
	return ok && ne.Timeout()
}

func count(lines []string, text string) (n int) {
	for _, l := range lines {
		if strings.Contains(l, text) {
			n++
		}
	}
	return n
}

// loginPID returns the only login process.
func (f *front) loginPID(t *testing.T) int {
	t.Helper()
	pids := slices.DeleteFunc(f.Processes("submission-login"), func(pid int) bool {
		cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		return !strings.Contains(string(cmd), "submission-login")
	})
	if len(pids) != 1 {
		t.Fatalf("login processes: %v", pids)
	}
	return pids[0]
}

func descriptors(t *testing.T, pid int) int {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// When the process ends, idle proxied sessions end after two seconds, with a line.
func TestShutdown(t *testing.T) {
	onBoth(t, systems, func(t *testing.T, sys system.System) {
		f := start(t, sys, []user{{name: "u", relay: &relay.Options{}}}, oneProcess)
		idle := passes(t, f, "u", client.Options{})
		time.Sleep(2500 * time.Millisecond)
		busy := passes(t, f, "u", client.Options{TLS: f.TLS()})
		began := time.Now()
		if err := syscall.Kill(f.loginPID(t), syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		idle.ExpectGone()
		if d := time.Since(began); d > 1500*time.Millisecond {
			t.Errorf("the idle session ends after %v", d)
		}
		busy.ExpectGone()
		if d := time.Since(began); d > 5*time.Second {
			t.Errorf("the busy session ends after %v", d)
		}
		lines := f.WaitFor(func(lines []string) bool {
			return count(lines, "): Disconnected by proxy: Process shutting down: user=<u>") == 2
		})
		if n := count(lines, "): Disconnected by proxy: Process shutting down: user=<u>"); n != 2 {
			t.Errorf("%d lines", n)
		}
	})
}

// A client that does not take what its backend sends: the log says how much waits.
func TestBlocked(t *testing.T) {
	onBoth(t, systems, func(t *testing.T, sys system.System) {
		f := start(t, sys, []user{{name: "u", relay: &relay.Options{Script: relay.Script{relay.NOOP: {relay.ManyLines("250", strings.Repeat("x", 1000), 20000)}}}}}, oneProcess)
		c := passes(t, f, "u", client.Options{})
		c.Send("NOOP")
		f.stuck(t, "u")
		c.Reset()
		// Who hears of the reset first, writing or reading, leaves an end of file to the other.
		line := f.WaitLine("): Disconnected by client")
		if !regexp.MustCompile(`Disconnected by client(: Connection reset by peer|: Broken pipe|: .*Connection reset by peer|) \(\d+s idle, in=\d+, out=\d+\+\d+, client output blocked\): user=<u>`).MatchString(line) {
			t.Errorf("the log has %s", line)
		}
	})
}

// stuck waits until the client takes no more of what a user's backend sends, and the
// frontend, for that reason, neither: octets wait at both, and none moves.
func (f *front) stuck(t *testing.T, user string) {
	t.Helper()
	const quiet = 10
	var before [2]string
	same := 0
	within(t, time.Minute, "everything on the way to fill up", func() bool {
		time.Sleep(50 * time.Millisecond)
		toClient, fromBackend := queues(fmt.Sprintf(" 0100007F:%04X ", f.Port), 0), queues(fmt.Sprintf(" 0100007F:%04X 01 ", f.ports[user]), 1)
		now := [2]string{toClient, fromBackend}
		if now != before || toClient == "" || fromBackend == "" {
			before, same = now, 0
			return false
		}
		same++
		return same == quiet
	})
}

// queues are the octets that wait in sockets of this machine, to be sent (0) or read (1),
// where any do; mark tells which sockets.
func queues(mark string, which int) (all string) {
	for line := range strings.Lines(procTCP()) {
		words := strings.Fields(line)
		if !strings.Contains(line, mark) || len(words) < 5 || words[3] != "01" {
			continue
		}
		if n := strings.Split(words[4], ":")[which]; strings.Trim(n, "0") != "" {
			all += words[1] + " " + words[2] + " " + n + "\n"
		}
	}
	return all
}

// No log has a password, whatever is being debugged.
func TestNoPasswordInLogs(t *testing.T) {
	const secret, other = "Sesame-opens", "Other-secret"
	for _, sys := range []system.System{system.OursLogin, system.OursBoth, system.Standalone} {
		t.Run(sys.String(), func(t *testing.T) {
			t.Parallel()
			users := []user{
				{name: "ok", relay: &relay.Options{}},
				{name: "given", fields: "pass=" + other + " master=boss", relay: &relay.Options{}},
				{name: "refused", relay: &relay.Options{Script: script(relay.AUTH, relay.Reply("535 5.7.8 no"))}},
				{name: "later", relay: &relay.Options{Script: script(relay.AUTH, relay.Reply("454 4.7.0 later"))}},
				{name: "closes", relay: &relay.Options{Script: script(relay.AUTH, relay.Close())}},
				{name: "garbage", relay: &relay.Options{Script: script(relay.AUTH, relay.Raw("what\r\n"))}},
				{name: "challenge", fields: "proxy_mech=SCRAM-SHA-1", relay: &relay.Options{Script: script(relay.AUTH, relay.Reply("334 "+encode("nonsense")))}},
				{name: "token", fields: "proxy_mech=XOAUTH2 pass=" + other, relay: &relay.Options{Script: script(relay.AUTH, relay.Reply("535 5.7.8 no"))}},
				{name: "login", fields: "proxy_mech=LOGIN", relay: &relay.Options{}},
				{name: "down"},
				{name: "nomech", fields: "proxy_mech=NTLM"},
				{name: "nothere", bare: true, fields: "proxy=y host=no.such.host.invalid port={port}"},
			}
			f := frontend{users: users, config: []string{
				"auth_debug = yes", "auth_verbose = yes", "mail_debug = yes", "log_debug = event=* or category=auth or category=login", "verbose_ssl = yes", "verbose_proctitle = yes", "login_proxy_max_reconnects = 1",
				"login_log_format_elements = user=<%u> method=%m session=<%{session}> pass=%{passdb:pass} %{passdb:host}",
				"auth_mechanisms = plain login",
			}}.start(t, sys)
			// The password of these users is another one than everybody's.
			data, err := os.ReadFile(f.Dir + "/etc/proxied")
			if err != nil {
				t.Fatal(err)
			}
			f.WriteFile("etc/proxied", system.File{Data: strings.ReplaceAll(string(data), "{PLAIN}pw", "{PLAIN}"+secret)})
			for _, u := range users {
				for _, o := range []client.Options{{}, {TLS: f.TLS()}} {
					c := f.dial(t, o)
					c.Send("EHLO x", "AUTH PLAIN "+plain(u.name, secret))
					c.Reply()
					reply := c.Reply()
					t.Logf("%s: %q", u.name, reply)
					if !strings.HasPrefix(reply[0], "235") {
						c.Do("AUTH LOGIN", "334")
						c.Do(encode(u.name), "334")
						c.Send(encode(secret))
						c.Reply()
					}
					c.Close()
				}
			}
			c := f.dial(t, client.Options{})
			c.Do("AUTH PLAIN "+plain("ok", secret+"x"), "535")
			c.Send("AUTH PLAIN " + plain("ok", secret)[:20]) // breaks off
			c.Reply()
			c.Send(plain("ok", secret)) // out of place
			c.Reply()
			c.Close()
			f.Stop()
			log := f.WholeLog()
			if !strings.Contains(log, "Debug: ") || !strings.Contains(log, "user=<ok>") {
				t.Fatalf("nothing was debugged:\n%s", log)
			}
			for _, s := range []string{secret, other} {
				forms := []string{s, base64.StdEncoding.EncodeToString([]byte(s)), strconv.Quote(s)}
				for _, u := range append(users, user{name: "boss"}) {
					forms = append(forms, plain(u.name, s), plain3(u.name, u.name, s), encode("\x00" + u.name + "\x00" + s)[:24])
				}
				// In base64 a text has three forms, by where it begins.
				for i := range 3 {
					e := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("x", i) + s))
					forms = append(forms, e[(i*8+5)/6:len(e)-2])
				}
				for _, form := range forms {
					if i := strings.Index(log, form); i >= 0 {
						begin := strings.LastIndexByte(log[:i], '\n') + 1
						line, _, _ := strings.Cut(log[begin:], "\n")
						t.Errorf("the log has %q:\n%s", form, line)
					}
				}
			}
		})
	}
}
