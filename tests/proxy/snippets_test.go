package proxy

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
)

// snippet reads an example, without its comments, with other addresses and paths.
func snippet(t *testing.T, name string, changes ...string) []string {
	t.Helper()
	data, err := os.ReadFile("../../conf.d/" + name)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(changes); i += 2 {
		if !strings.Contains(string(data), changes[i]) {
			t.Fatalf("%s has no %q", name, changes[i])
		}
	}
	var lines []string
	for _, l := range strings.Split(strings.NewReplacer(changes...).Replace(string(data)), "\n") {
		if l != "" && l[0] != '#' {
			lines = append(lines, l)
		}
	}
	return lines
}

// The examples for a frontend and its backend work as they are.
func TestFrontendAndBackendSnippets(t *testing.T) {
	for _, sys := range []system.System{system.OursLogin, system.Standalone} {
		t.Run(sys.String(), func(t *testing.T) {
			t.Parallel()
			sys.Need(t)
			sink := relay.Start(t, relay.Options{})
			back := system.OursBoth.Start(t, system.Setup{RelayPort: sink.Port, Users: []string{tina}, Config: snippet(t, "97-dovetail-backend.conf", "192.0.2.20 192.0.2.21", "127.0.0.1")})
			f := &front{t: t, Running: sys.Start(t, system.Setup{
				Config: snippet(t, "97-dovetail-frontend.conf", "host=192.0.2.10 port=587", fmt.Sprintf("host=127.0.0.1 port=%d", back.Port), "/etc/dovecot/backend-ca.pem", "{dir}/etc/backend-ca.pem", "process_min_avail = 2", "process_min_avail = 1"),
				Files:  map[string]system.File{"etc/backend-ca.pem": {Data: string(back.Cert.Cert)}},
			})}
			c := tlsClient(t, f, "127.0.0.7", "client.example")
			c.Do("AUTH PLAIN "+plain("tina", "wrong"), "535 5.7.8")
			c.Plain("tina", "wonder")
			send(c)
			c.Do("QUIT", "221")
			if got := arrived(t, sink.WaitMessages(1)[0].Data); !strings.HasPrefix(got, "Received: from client.example ([127.0.0.7])") {
				t.Errorf("header %s", got)
			}
			back.WaitLine("Login: user=<tina>, method=PLAIN, rip=127.0.0.7, ")
		})
	}
}

// The example for a frontend before Postfix works, with the lines that it has for Postfix.
func TestMTASnippet(t *testing.T) {
	sys := system.OursLogin
	sys.Need(t)
	data, err := os.ReadFile("../../conf.d/97-dovetail-mta.conf")
	if err != nil {
		t.Fatal(err)
	}
	var options []string
	for _, m := range regexp.MustCompile(`(?m)^#     -o (\S+)$`).FindAllStringSubmatch(string(data), -1) {
		options = append(options, strings.Replace(m[1], "192.0.2.20", "127.0.0.1", 1))
	}
	if len(options) != 4 {
		t.Fatalf("%q", options)
	}
	sink := relay.Start(t, relay.Options{})
	mta := startPostfix(t, sink.Port, options...)
	f := &front{t: t, Running: sys.Start(t, system.Setup{
		Config: snippet(t, "97-dovetail-mta.conf", "host=192.0.2.25 port=587", fmt.Sprintf("host=127.0.0.1 port=%d", mta.Port), "/etc/dovecot/users", "{dir}/etc/mta-users"),
		Files:  map[string]system.File{"etc/mta-users": {Data: "tina:{PLAIN}wonder\n"}},
	})}
	announced := f.dial(t, client.Options{}).Do("EHLO x", "250")
	for _, l := range announced {
		if strings.Contains(l, "BINARYMIME") || strings.Contains(l, "BURL") {
			t.Errorf("announced: %s", l)
		}
	}
	c := tlsClient(t, f, "127.0.0.7", "client.example")
	c.Plain("tina", "wonder")
	send(c)
	c.Do("QUIT", "221")
	if got := arrived(t, sink.WaitMessages(1)[0].Data); !strings.Contains(got, "from client.example (") || !strings.Contains(got, "[127.0.0.7])") || !strings.Contains(got, "(Authenticated sender: tina)") {
		t.Errorf("header %s", got)
	}
}
