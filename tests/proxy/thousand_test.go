package proxy

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"dovetail/internal/testkit/system"
)

// holder is a backend that accepts every login and then is quiet: what it keeps of a
// session is next to nothing.
func holder(t *testing.T) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	wg.Go(func() { // ends when l is closed
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			wg.Go(func() { // ends with the connection
				defer c.Close()
				fmt.Fprintf(c, "220 holder\r\n")
				br := bufio.NewReaderSize(c, 1024)
				for {
					line, err := br.ReadString('\n')
					if err != nil {
						return
					}
					switch verb, _, _ := strings.Cut(strings.TrimSpace(line), " "); verb {
					case "EHLO":
						fmt.Fprintf(c, "250-holder\r\n250-PIPELINING\r\n250-AUTH PLAIN\r\n250 XCLIENT ADDR PORT HELO PROTO SESSION TTL\r\n")
					case "XCLIENT":
						fmt.Fprintf(c, "220 holder\r\n")
					case "AUTH":
						fmt.Fprintf(c, "235 2.7.0 Logged in.\r\n")
					default:
						fmt.Fprintf(c, "250 2.0.0 OK\r\n")
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().(*net.TCPAddr).Port
}

// pss is a process's share of memory, in KiB.
func pss(t *testing.T, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(string(data), "\n") {
		if f := strings.Fields(l); len(f) > 1 && f[0] == "Pss:" {
			n, _ := strconv.Atoi(f[1])
			return n
		}
	}
	t.Fatal("no Pss")
	return 0
}

// A thousand sessions proxied by one login process cost little while they are idle, and
// all of them work.
func TestThousandSessions(t *testing.T) {
	sessions, bound := 1000, 1
	if system.Race { // which has several octets for each, and is slow
		sessions, bound = 100, 20
	}
	for _, tt := range []struct {
		name string
		tls  bool
		most int // KiB a session
	}{{"plain", false, 16}, {"TLS", true, 60}} {
		for _, sys := range []system.System{system.Dovecot, system.OursLogin} {
			t.Run(tt.name+" "+sys.String(), func(t *testing.T) {
				port := holder(t)
				f := &front{t: t, Running: sys.Start(t, system.Setup{Config: append(onward(port, ""), oneProcess, "default_client_limit = 3000", "default_process_limit = 2000", "disable_plaintext_auth = no", "mail_max_userip_connections = 0")})}
				dial := func(i int) net.Conn {
					addr := f.Addr()
					if tt.tls {
						addr = f.TLSAddr()
					}
					var c net.Conn
					var err error
					if c, err = net.Dial("tcp", addr); err != nil {
						t.Fatal(err)
					}
					if tt.tls {
						c = tls.Client(c, f.TLS())
					}
					c.SetDeadline(time.Now().Add(30 * time.Second))
					b := make([]byte, 4096)
					expect := func(code string) {
						if n, err := c.Read(b); err != nil || !strings.HasPrefix(string(b[:n]), code) {
							t.Fatalf("session %d: %q, %v", i, b[:n], err)
						}
					}
					expect("220")
					fmt.Fprintf(c, "EHLO client.example\r\n")
					expect("250")
					fmt.Fprintf(c, "AUTH PLAIN %s\r\n", plain(fmt.Sprintf("user%d", i), "pw"))
					expect("235")
					return c
				}
				first := dial(0)
				defer first.Close()
				pid := f.loginPID(t)
				before := pss(t, pid)
				var conns []net.Conn
				for i := range sessions {
					conns = append(conns, dial(i+1))
				}
				per := func() float64 { return float64(pss(t, pid)-before) / float64(sessions) }
				busy := per()
				for end := time.Now().Add(15 * time.Second); ours(sys) && per() > float64(tt.most*bound) && time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
				}
				idle := per()
				for i, c := range conns { // each is alive
					c.SetDeadline(time.Now().Add(30 * time.Second))
					fmt.Fprintf(c, "NOOP\r\n")
					b := make([]byte, 100)
					if n, err := c.Read(b); err != nil || !strings.HasPrefix(string(b[:n]), "250") {
						t.Fatalf("session %d: %q, %v", i, b[:n], err)
					}
				}
				used := per()
				t.Logf("%d KiB with one session; %.1f KiB a session right after the logins, %.1f idle, %.1f after a command each", before, busy, idle, used)
				for _, c := range conns {
					c.Close()
				}
				if ours(sys) && idle > float64(tt.most*bound) {
					t.Errorf("%.1f KiB for an idle session, want %d", idle, tt.most*bound)
				}
			})
		}
	}
}
