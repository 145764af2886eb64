package proxy

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
)

const manual = "../../docs/proxy.md"

// example is what the manual shows as a file, with other addresses and paths.
func example(t *testing.T, name string, changes ...string) string {
	t.Helper()
	_, text, ok := strings.Cut(readManual(t), "<!-- tested: "+name+" -->\n```\n")
	text, _, end := strings.Cut(text, "```\n")
	if !ok || !end {
		t.Fatalf("%s has no %s", manual, name)
	}
	for i := 0; i < len(changes); i += 2 {
		if !strings.Contains(text, changes[i]) {
			t.Fatalf("%s of %s has no %q", name, manual, changes[i])
		}
	}
	return strings.NewReplacer(changes...).Replace(text)
}

func readManual(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(manual)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// The manual's load balancers work before the manual's frontend: STARTTLS and TLS from the
// start pass through, or TLS ends there.
func TestManualLoadBalancer(t *testing.T) {
	for _, sys := range []system.System{system.OursLogin, system.Standalone} {
		t.Run(sys.String(), func(t *testing.T) {
			t.Parallel()
			sys.Need(t)
			sink := relay.Start(t, relay.Options{})
			back := system.OursBoth.Start(t, system.Setup{RelayPort: sink.Port, Users: []string{tina}, Config: snippet(t, "97-dovetail-backend.conf", "192.0.2.20 192.0.2.21", "127.0.0.1")})
			clear, implicit := system.Hold(t), system.Hold(t)
			frontConf := example(t, "frontend.conf", "192.0.2.30", "127.0.0.1", "10587", itoa(clear.Number), "10465", itoa(implicit.Number))
			f := &front{t: t, Running: sys.Start(t, system.Setup{Config: append(onward(back.Port, ""), strings.Split(frontConf, "\n")...)})}
			lb := func(name string, port, other string, changes ...string) *peer {
				t.Helper()
				spare := system.Hold(t)
				changes = append(changes, "bind "+port, "bind 127.0.0.1:PORT", "192.0.2.20", "127.0.0.1", "10587", itoa(clear.Number))
				if other != "" {
					changes = append(changes, "bind "+other, fmt.Sprintf("bind 127.0.0.1:%d", spare.Number), "10465", itoa(implicit.Number))
				}
				return startHAProxy(t, example(t, name, changes...), map[string]string{"both.pem": string(f.Cert.Cert) + string(f.Cert.Key)})
			}
			for i, way := range []struct {
				lb   *peer
				tls  bool // from the start
				ends bool // at the load balancer
			}{
				{lb("haproxy.cfg", ":587", ":465"), false, false},
				{lb("haproxy.cfg", ":465", ":587"), true, false},
				{lb("haproxy-tls.cfg", ":465", "", "/etc/haproxy/mail.pem", "DIR/both.pem"), true, true},
			} {
				from := fmt.Sprintf("127.0.0.%d", 30+i)
				o := client.Options{From: from}
				if way.tls {
					o.TLS = f.TLS()
				}
				c := client.Dial(t, way.lb.Addr(), o)
				c.ExpectCode("220 ")
				c.Do("EHLO client.example", "250")
				if !way.tls {
					c.Do("STARTTLS", "220")
					c.StartTLS(f.TLS())
					c.Do("EHLO client.example", "250")
				}
				c.Plain("tina", "wonder")
				send(c)
				c.Do("QUIT", "221")
				if got := arrived(t, sink.WaitMessages(i + 1)[i].Data); !strings.HasPrefix(got, "Received: from client.example (["+from+"])") {
					t.Errorf("%d: header %s", i, got)
				}
				if line := f.WaitLine(", rip=" + from + ", "); !strings.Contains(line, ", TLS, ") {
					t.Errorf("%d: %s", i, line)
				}
			}
		})
	}
}

var inManual = regexp.MustCompile("`([^`]+)`")

// Each log line that the manual has for a failure is one that a test has seen, and whether
// it is tried again is as there.
func TestManualFailures(t *testing.T) {
	_, text, _ := strings.Cut(readManual(t), "| cause | tried again | log |\n| --- | --- | --- |\n")
	text, _, ok := strings.Cut(text, "\n\n")
	if !ok {
		t.Fatal("no table")
	}
	elsewhere := []string{ // other tests see these
		"Host is down", "password not given", "Proxying loops to itself",
		"Aborting due to remote server: TTL reached zero - proxies appear to be looping?",
	}
	rows := failures()
	agrees := map[string]bool{} // whether the manual says of a row how often it is tried
	for line := range strings.Lines(text) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 3 {
			t.Fatalf("%q", line)
		}
		for _, m := range inManual.FindAllStringSubmatch(cells[2], -1) {
			if m[1] == "auth_verbose" || slices.Contains(elsewhere, m[1]) {
				continue
			}
			pattern := regexp.QuoteMeta(m[1])
			for _, word := range []string{"ADDRESS", "PORT", "SECONDS", "NUMBER", "STATE", "REASON", "LINE", "NAME", "TEXT"} {
				pattern = strings.ReplaceAll(pattern, word, ".+")
			}
			re := regexp.MustCompile("^" + pattern + "$")
			found := false
			for _, r := range rows {
				if !re.MatchString(r.log) {
					continue
				}
				found = true
				again := strings.HasPrefix(strings.TrimSpace(cells[1]), "yes")
				agrees[r.name] = agrees[r.name] || r.tries != 1 && again || r.tries != 2 && !again
			}
			if !found {
				t.Errorf("no test sees %s", m[1])
			}
		}
	}
	for _, r := range rows {
		if ok, there := agrees[r.name]; !ok && there {
			t.Errorf("%s: the manual is wrong about how often it is tried", r.name)
		}
	}
	if len(agrees) < 40 {
		t.Errorf("only %d rows of the tests are in the manual", len(agrees))
	}
}
