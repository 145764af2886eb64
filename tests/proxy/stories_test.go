package proxy

import (
	"crypto/tls"
	"fmt"
	"net"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
	"dovetail/internal/testkit/tlsfiles"
)

// oneProcess makes the login service one long-lived process.
const oneProcess = "service submission-login {\n  service_count = 0\n  client_limit = 2000\n  process_limit = 1\n}"

// onBoth runs a story with Dovecot's login process and with ours.
func onBoth(t *testing.T, systems []system.System, story func(t *testing.T, sys system.System)) {
	for _, sys := range systems {
		t.Run(sys.String(), func(t *testing.T) {
			t.Parallel()
			story(t, sys)
		})
	}
}

// passes logs in and fails the test unless it works.
func passes(t *testing.T, f *front, name string, o client.Options) *client.Client {
	t.Helper()
	c := f.dial(t, o)
	if got := login(c, name); !strings.HasPrefix(got[0], "235") {
		t.Fatalf("login of %s: %q", name, got)
	}
	return c
}

// within waits until ok says so.
func within(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(d); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still waiting for %s", what)
		}
	}
}

// A backend's certificate is checked against ssl_client_ca_file, which is read before the
// chroot, and for the field host. (Dovecot's login process does not read that file.)
func TestCertificates(t *testing.T) {
	for _, sys := range []system.System{system.OursLogin, system.Standalone} {
		t.Run(sys.String(), func(t *testing.T) {
			sys.Need(t)
			ca, other := tlsfiles.NewCA(t, "backend CA"), tlsfiles.NewCA(t, "other CA")
			good := ca.Issue(t, tlsfiles.Request{CN: "x", Names: []string{"backend.test", "127.0.0.1"}})
			certs := []struct {
				name, host string
				pair       tlsfiles.Pair
				why        string
			}{
				{"good", "backend.test", good, ""},
				{"good-ip", "127.0.0.1", good, ""},
				{"wrong-name", "other.test", good, "SSL certificate doesn't match expected host name other.test: did not match to any IP or DNS fields"},
				{"wrong-ca", "backend.test", other.Issue(t, tlsfiles.Request{CN: "x", Names: []string{"backend.test"}}), "Received invalid SSL certificate: unable to get local issuer certificate: /CN=x (check ssl_client_ca_* settings?)"},
				{"expired", "backend.test", ca.Issue(t, tlsfiles.Request{CN: "x", Names: []string{"backend.test"}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)}), "Received invalid SSL certificate: certificate has expired: /CN=x (check ssl_client_ca_* settings?)"},
			}
			var users []user
			for _, mode := range []string{"ssl", "starttls"} {
				for _, c := range certs {
					users = append(users, user{
						name: mode + "-" + c.name, fields: fmt.Sprintf("proxy=y host=%s hostip=127.0.0.1 port={port} %s=yes", c.host, mode), bare: true,
						relay: &relay.Options{TLS: &tls.Config{Certificates: []tls.Certificate{c.pair.TLS()}}, Implicit: mode == "ssl"},
					})
				}
			}
			f := frontend{users: users, config: []string{"ssl_client_ca_file = {dir}/etc/backend-ca.pem", "login_proxy_max_reconnects = 0"},
				files: map[string]system.File{"etc/backend-ca.pem": {Data: string(ca.Cert), Mode: 0o600}}}.start(t, sys)
			for i, u := range users {
				c := certs[i%len(certs)]
				conn := f.dial(t, client.Options{})
				got := login(conn, u.name)[0]
				if c.why == "" {
					if !strings.HasPrefix(got, "235 ") {
						t.Errorf("%s: %s", u.name, got)
					}
					if state := f.backends[u.name].Conns()[0].TLS; state == nil {
						t.Errorf("%s: no TLS", u.name)
					} else if c.host != "127.0.0.1" && state.ServerName != c.host {
						t.Errorf("%s: server name %q", u.name, state.ServerName)
					}
					continue
				}
				if got != unavailable {
					t.Errorf("%s: %s", u.name, got)
				}
				f.WaitLine("Disconnected by server: Connection closed: " + c.why + " (state=")
				if lines := f.backends[u.name].Conns()[0].Lines; slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, "AUTH") }) {
					t.Errorf("%s: the password was sent: %q", u.name, lines)
				}
			}
		})
	}
}

// What failed once works the second time, within the timeout.
func TestReconnects(t *testing.T) {
	onBoth(t, systems, func(t *testing.T, sys system.System) {
		f := start(t, sys, []user{
			{name: "twice", relay: &relay.Options{Scripts: []relay.Script{{relay.Banner: {relay.Reply("421 later")}}, {}}}},
			{name: "thrice", relay: &relay.Options{Scripts: []relay.Script{{relay.EHLO: {relay.Close()}}, {relay.AUTH: {relay.Reply("451 4.3.0 later")}}, {}}}},
			{name: "little", fields: "proxy_timeout=2"},
		}, "login_proxy_max_reconnects = 3")
		// There is time for one more only.
		if got := login(f.dial(t, client.Options{}), "little")[0]; got != unavailable {
			t.Error(got)
		}
		f.WaitLine(fmt.Sprintf("Error: proxy(little,127.0.0.1:%d): connect(127.0.0.1, %[1]d) failed: Connection refused (after 1 secs, 1 reconnects, local=", f.ports["little"]))
		for name, n := range map[string]int{"twice": 1, "thrice": 2} {
			passes(t, f, name, client.Options{}).Do("NOOP", "250")
			f.WaitLine(fmt.Sprintf(" secs, %d reconnects): user=<%s>", n, name))
		}
	})
}

// A host that has been failing is not waited for by those who come while others do; when it
// is back, it is asked again.
func TestHostIsDown(t *testing.T) {
	onBoth(t, systems, func(t *testing.T, sys system.System) {
		f := start(t, sys, []user{{name: "down", fields: "proxy_timeout=3 proxy_host_immediate_failure_after=1s"}}, "login_proxy_max_reconnects = 0", oneProcess)
		silent := deafListener(t, f.ports["down"])
		first := f.dial(t, client.Options{})
		if got := login(first, "down")[0]; got != unavailable {
			t.Fatal(got)
		}
		f.WaitLine("failed: Connection timed out (after 3 secs")
		waiting, next := f.dial(t, client.Options{}), f.dial(t, client.Options{})
		waiting.Send("AUTH PLAIN " + plain("down", "pw"))
		within(t, 5*time.Second, "the login to begin", func() bool { return synSent(f.ports["down"]) })
		began := time.Now()
		if got := login(next, "down")[0]; got != unavailable || time.Since(began) > 2*time.Second {
			t.Errorf("%s after %v", got, time.Since(began))
		}
		f.WaitLine(fmt.Sprintf("Error: proxy(down,127.0.0.1:%d): Host is down: user=<down>", f.ports["down"]))
		waiting.Expect(unavailable)
		silent()
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", f.ports["down"]))
		if err != nil {
			t.Fatal(err)
		}
		relay.Start(t, relay.Options{Caps: dovecotCaps, Listener: l})
		if got := login(next, "down")[0]; !strings.HasPrefix(got, "235") {
			t.Errorf("when it is back: %s", got)
		}
	})
}

// deafListener makes somebody listen on a port of the loopback who accepts nobody, so that
// connections hang.
func deafListener(t *testing.T, port int) (stop func()) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
	}
	if err == nil {
		err = unix.Listen(fd, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)) // fills the queue
	if err != nil {
		t.Fatal(err)
	}
	done := false
	stop = func() {
		if !done {
			done = true
			c.Close()
			unix.Close(fd)
		}
	}
	t.Cleanup(stop)
	return stop
}

// synSent says whether somebody is connecting to the port.
func synSent(port int) bool {
	return strings.Contains(procTCP(), fmt.Sprintf(" 0100007F:%04X 02 ", port))
}

// Connections to backends come from login_source_ips in turn; with a ? only from those
// that are ours, and only from those that can reach the backend.
func TestSourceIPs(t *testing.T) {
	onBoth(t, systems, func(t *testing.T, sys system.System) {
		f := start(t, sys, []user{{name: "u", relay: &relay.Options{}}}, "login_source_ips = ?127.0.0.5 192.0.2.1, 127.0.0.6", oneProcess)
		for range 4 {
			passes(t, f, "u", client.Options{}).Do("QUIT", "221")
		}
		var from []string
		f.WaitFor(func([]string) bool {
			from = regexp.MustCompile(`Started proxying to <127\.0\.0\.1> from (\S+) \(`).FindAllString(strings.Join(f.Log(), "\n"), -1)
			return len(from) == 4
		})
		if len(from) != 4 || from[0] != from[2] || from[1] != from[3] || from[0] == from[1] || strings.Contains(from[0]+from[1], "192.0.2.1") {
			t.Errorf("%q", from)
		}
	})
	t.Run("family", func(t *testing.T) {
		f := start(t, system.OursLogin, []user{{name: "u", relay: &relay.Options{}}}, "login_source_ips = ::1 127.0.0.5")
		for range 3 {
			passes(t, f, "u", client.Options{})
		}
	})
}

// A host with several addresses (dovetail_hostips): the next one is tried at once, and the
// one that failed comes last the next time.
func TestOtherAddresses(t *testing.T) {
	for _, sys := range []system.System{system.OursLogin, system.Standalone} {
		t.Run(sys.String(), func(t *testing.T) {
			f := start(t, sys, []user{
				{name: "u", fields: "hostip=127.0.0.9 dovetail_hostips=127.0.0.8,127.0.0.1 proxy_timeout=20", relay: &relay.Options{}},
				{name: "none", fields: "hostip=127.0.0.9 dovetail_hostips=127.0.0.8"},
				{name: "no", fields: "dovetail_hostips=127.0.0.8", relay: &relay.Options{Script: script(relay.AUTH, relay.Reply("535 5.7.8 no"))}},
				{name: "deaf", fields: "dovetail_hostips=127.0.0.9 proxy_timeout=4"},
			}, "login_proxy_max_reconnects = 0", oneProcess)
			began := time.Now()
			passes(t, f, "u", client.Options{}).Do("QUIT", "221")
			passes(t, f, "u", client.Options{}).Do("QUIT", "221")
			if d := time.Since(began); d > 5*time.Second {
				t.Errorf("took %v", d)
			}
			f.WaitLine(fmt.Sprintf("proxy(u,127.0.0.1:%d): Started proxying to <127.0.0.1> (", f.ports["u"]))
			c := f.dial(t, client.Options{})
			if got := login(c, "none")[0]; got != unavailable {
				t.Error(got)
			}
			f.WaitLine(fmt.Sprintf("Error: proxy(none,127.0.0.8:%d): connect(127.0.0.8, %d) failed: Connection refused (after 0 secs, local=127.0.0.1:", f.ports["none"], f.ports["none"]))
			// A refused password is the same everywhere.
			if got := login(c, "no")[0]; got != "535 5.7.8 no" || len(f.backends["no"].Conns()) != 1 {
				t.Error(got, len(f.backends["no"].Conns()))
			}
			// One that says nothing leaves time for the other.
			deafListener(t, f.ports["deaf"])
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.9:%d", f.ports["deaf"]))
			if err != nil {
				t.Fatal(err)
			}
			relay.Start(t, relay.Options{Caps: dovecotCaps, Listener: l})
			if got := login(c, "deaf")[0]; !strings.HasPrefix(got, "235 ") {
				t.Error(got)
			}
		})
	}
}

// doveadm proxy list and kick see and end sessions, also those that are logging in.
func TestDoveadm(t *testing.T) {
	onBoth(t, []system.System{system.Dovecot, system.OursLogin}, func(t *testing.T, sys system.System) {
		for _, config := range []string{"", "service submission-login {\n  chroot =\n}"} {
			f := start(t, sys, []user{
				{name: "a", fields: "user_alt=first user_other=x", relay: &relay.Options{}},
				{name: "b", relay: &relay.Options{}},
				{name: "c", fields: "user_alt=third", relay: &relay.Options{}},
				{name: "slow", relay: &relay.Options{Script: script(relay.AUTH, relay.Silence())}},
			}, config, oneProcess)
			a, b, c := passes(t, f, "a", client.Options{}), passes(t, f, "b", client.Options{}), passes(t, f, "c", client.Options{})
			slow := f.dial(t, client.Options{})
			slow.Send("AUTH PLAIN " + plain("slow", "pw"))
			want := []string{"a first x submission 127.0.0.1 127.0.0.1 a", "b submission 127.0.0.1 127.0.0.1 b", "c third submission 127.0.0.1 127.0.0.1 c", "slow submission 127.0.0.1 127.0.0.1 slow", "username user_alt user_other proto src ip dest ip port"}
			f.listed(t, want)
			kicked := func(want string, args ...string) {
				if got := strings.TrimSpace(f.Doveadm(append([]string{"proxy", "kick"}, args...)...)); got != want {
					t.Errorf("kick %q: %q", args, got)
				}
			}
			kicked("1 connections kicked", "a")
			a.ExpectGone()
			f.WaitLine(fmt.Sprintf("Info: proxy(a,127.0.0.1:%d): Disconnected by proxy: Kicked by admin: user=<a>", f.ports["a"]))
			kicked("1 connections kicked", "-f", "user_alt", "third")
			c.ExpectGone()
			kicked("1 connections kicked", "slow")
			slow.ExpectGone()
			f.WaitLine(fmt.Sprintf("Info: proxy(slow,127.0.0.1:%d): Disconnected by proxy: Kicked by admin (internal failure, 1 successful auths): user=<slow>", f.ports["slow"]))
			b.Do("NOOP", "250")
			f.listed(t, []string{want[1], want[4]})
			b.Do("QUIT", "221")
			b.ExpectEOF()
			f.listed(t, want[4:])
			f.Stop()
		}
	})
}

// dovetail kick ends sessions that our login proxies, too.
func TestKick(t *testing.T) {
	f := start(t, system.Standalone, []user{{name: "a", relay: &relay.Options{}}, {name: "b", relay: &relay.Options{}}})
	a, b := passes(t, f, "a", client.Options{}), passes(t, f, "b", client.Options{TLS: f.TLS()})
	out, err := exec.Command(system.Binary(t, "dovetail"), "kick", "-c", f.Conf, "a").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	a.ExpectGone()
	f.WaitLine(fmt.Sprintf("Info: proxy(a,127.0.0.1:%d): Disconnected by proxy: Kicked by admin: user=<a>", f.ports["a"]))
	b.Do("NOOP", "250")
}

// listed waits until doveadm proxy list shows the sessions; ports have their backend's name.
func (f *front) listed(t *testing.T, want []string) {
	t.Helper()
	var got []string
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		got = got[:0]
		for _, l := range strings.Split(strings.TrimSpace(f.Doveadm("proxy", "list")), "\n") {
			w := strings.Fields(l)
			for name, port := range f.ports {
				if n := len(w) - 1; n >= 0 && w[n] == itoa(port) {
					w[n] = name
				}
			}
			got = append(got, strings.Join(w, " "))
		}
		slices.Sort(got)
		if slices.Equal(got, want) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("doveadm proxy list:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

// A client that leaves while its login goes on ends that login. (Dovecot goes on until the
// backend answers.)
func TestClientLeaves(t *testing.T) {
	onBoth(t, []system.System{system.OursLogin, system.Standalone}, func(t *testing.T, sys system.System) {
		f := start(t, sys, []user{{name: "u", relay: &relay.Options{Script: script(relay.AUTH, relay.Silence())}}})
		c := f.dial(t, client.Options{})
		c.Send("AUTH PLAIN " + plain("u", "pw"))
		f.backends["u"].Commands(0, 4)
		c.Close()
		if end := f.backends["u"].Ended(0).End; end != "eof" {
			t.Errorf("the backend's connection ends by %q", end)
		}
		line := f.WaitLine("proxy(u,127.0.0.1:" + itoa(f.ports["u"]) + "): Disconnected: ")
		if got, want := f.normal(line, "u"), "Info: proxy(u,127.0.0.1:{backend}): Disconnected: Connection closed (internal failure, 1 successful auths)"; got != want {
			t.Errorf("the log has\n     %s\nwant %s", got, want)
		}
	})
}

// nologin is for servers that do not proxy.
func TestNologin(t *testing.T) {
	onBoth(t, systems, func(t *testing.T, sys system.System) {
		f := start(t, sys, []user{{name: "u", fields: "nologin=y reason=elsewhere", relay: &relay.Options{}}})
		passes(t, f, "u", client.Options{})
	})
}

// What the client sends behind AUTH is the backend's, in order.
func TestPipelined(t *testing.T) {
	onBoth(t, systems, func(t *testing.T, sys system.System) {
		f := start(t, sys, []user{{name: "u", relay: &relay.Options{}}})
		c := f.dial(t, client.Options{})
		c.Write("NOOP\r\nAUTH PLAIN " + plain("u", "pw") + "\r\nNOOP\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\nSubject: x\r\n\r\n..dot\r\n.\r\nQUIT\r\n")
		for _, want := range []string{"250", "235", "250", "250", "250", "354", "250", "221"} {
			c.ExpectCode(want)
		}
		if m := f.backends["u"].WaitMessages(1)[0]; string(m.Data) != "Subject: x\r\n\r\n.dot\r\n" {
			t.Errorf("%q", m.Data)
		}
	})
}

// A client that has finished sending still gets its answers.
func TestHalfClose(t *testing.T) {
	for _, sys := range []system.System{system.OursLogin, system.Standalone} { // Dovecot drops them
		t.Run(sys.String(), func(t *testing.T) {
			f := start(t, sys, []user{{name: "u", relay: &relay.Options{Script: relay.Script{relay.Dot: {relay.After(300*time.Millisecond, relay.Reply("250 2.0.0 kept"))}}}}})
			for _, o := range []client.Options{{}, {TLS: f.TLS()}} {
				c := passes(t, f, "u", o)
				for _, line := range []string{"MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA"} {
					c.Do(line, "")
				}
				c.Write("Subject: x\r\n\r\n.\r\n")
				c.CloseWrite()
				c.Expect("250 2.0.0 kept")
				c.ExpectEOF()
			}
		})
	}
}

// A client whose certificate is as good as a login: MAIL logs it in, and is the backend's.
func TestImplicitExternal(t *testing.T) {
	for _, sys := range []system.System{system.OursLogin, system.Standalone} { // Dovecot answers MAIL with the 235
		t.Run(sys.String(), func(t *testing.T) {
			o := relay.Options{}
			f := frontend{users: []user{{name: "unused", relay: &o}}, config: []string{
				"auth_mechanisms = plain external", "ssl_ca = <{dir}/tls/ca.pem", "ssl_verify_client_cert = yes", "ssl_require_crl = no",
				"auth_ssl_username_from_cert = yes", "submission_client_workarounds = implicit-auth-external",
				"passdb static {", "  driver = static", "  args = nopassword=y proxy=y host=127.0.0.1 port={relayport} proxy_mech=EXTERNAL pass=", "  mechanisms = external", "}",
			}}.start(t, sys)
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", f.RelayPort))
			if err != nil {
				t.Fatal(err)
			}
			b := relay.Start(t, relay.Options{Caps: dovecotCaps, Listener: l})
			c := f.dial(t, client.Options{TLS: f.TLS()})
			c.Write("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nQUIT\r\n")
			c.Expect("250 2.1.0 Ok", "250 2.1.5 Ok", "221 2.0.0 Bye")
			c.ExpectEOF()
			if got := said(b, 0); !strings.Contains(got, "AUTH EXTERNAL "+encode("alice")+" / MAIL FROM:<a@b> / RCPT TO:<c@d> / QUIT") {
				t.Errorf("the backend hears %s", got)
			}
		})
	}
}

// Before the login clients are promised what submission_backend_capabilities says, and
// with exotic-backend nothing else.
func TestPromises(t *testing.T) {
	onBoth(t, systems, func(t *testing.T, sys system.System) {
		f := start(t, sys, nil, "submission_client_workarounds = exotic-backend", "submission_backend_capabilities = 8BITMIME PIPELINING SIZE DSN")
		got := f.dial(t, client.Options{}).Do("EHLO x", "250 ")
		if want := []string{"250-sub.example.test", "250-8BITMIME", "250-AUTH PLAIN LOGIN", "250-DSN", "250-SIZE", "250-STARTTLS", "250 PIPELINING"}; !slices.Equal(got, want) {
			t.Errorf("%q", got)
		}
	})
}

// A passdb that sends a user to ourselves would do so for ever.
func TestLoop(t *testing.T) {
	for _, sys := range []system.System{system.OursLogin, system.Standalone} { // Dovecot's process dies (S13.6)
		t.Run(sys.String(), func(t *testing.T) {
			f := start(t, sys, []user{
				{name: "loop", bare: true, fields: "proxy=y host=127.0.0.1 port={self}"},
				{name: "other", bare: true, fields: "proxy=y host=127.0.0.1 port={self} destuser=loop"},
			})
			c := f.dial(t, client.Options{})
			if got := login(c, "loop")[0]; got != unavailable {
				t.Error(got)
			}
			f.WaitLine("Error: proxy(loop): Proxying loops to itself: user=<loop>")
			if got := login(c, "other")[0]; got != unavailable { // by way of ourselves
				t.Error(got)
			}
		})
	}
}

// Without a password only those can be passed on who need none: Dovecot's process dies
// (S13.6).
func TestNoPassword(t *testing.T) {
	for _, sys := range []system.System{system.OursLogin, system.Standalone} {
		t.Run(sys.String(), func(t *testing.T) {
			f := start(t, sys, []user{{name: "u", relay: &relay.Options{}}, {name: "n", fields: "proxy_noauth=y", relay: &relay.Options{}}}, "auth_mechanisms = plain cram-md5")
			for name, want := range map[string]string{"u": unavailable, "n": "235 2.7.0 Logged in."} {
				c := f.dial(t, client.Options{})
				cramMD5(c, name, "pw")
				c.Expect(want)
			}
			f.WaitLine("Error: proxy(u): password not given: user=<u>")
		})
	}
}
