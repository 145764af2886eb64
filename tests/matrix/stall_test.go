package matrix

import (
	"crypto/tls"
	"net"
	"strings"
	"testing"
	"time"

	"dovetail/internal/testkit/dovetail"
	"dovetail/internal/testkit/relay"
)

// Fixed timers in programs whose minutes are seconds.
const (
	loginTime = 3 * time.Second  // clause S1.6, of 180 s
	idleTime  = 10 * time.Second // clause S1.7, of 600 s
)

// silence says how long a client at a point may be silent, and what it then hears: nothing
// for a connection that is just closed.
func (v *visit) silence() (least time.Duration, hears string) {
	const end = "421 4.4.2 " + host + " Disconnected for inactivity"
	switch {
	case v.ways == "h":
		return 3 * time.Second, "" // haproxy_timeout
	case strings.Contains(v.name, "handshake") || v.name == "STARTTLS":
		return loginTime, ""
	case strings.HasPrefix(v.name, "AUTH"):
		return loginTime, end + " during authentication."
	case v.before:
		return loginTime, end + "."
	case v.holds == relay.QUIT:
		return 2 * time.Second, "221 2.0.0 Bye"
	case v.holds != "": // clause S1.7: the time does not run meanwhile; that of the relay does
		return relayTime, "421 4.4.0 " + host + " Lost connection to relay server (timed out)"
	}
	return idleTime, end
}

const relayTime = 15 * time.Second // see shortRelay

// A client that is silent is told so when its time is over, and not before. Then its
// session ends, and so does the one with the relay.
func TestStalledClients(t *testing.T) {
	t.Parallel()
	s, all, idle := hastyServer(t, points(), []string{"stalls"}, shortRelay+"auth_failure_delay = 30 s\n")
	t.Run("cells", func(t *testing.T) {
		for _, v := range all {
			v.s = s
			t.Run(v.name, func(t *testing.T) {
				t.Parallel()
				defer v.onFailure(t)
				began := time.Now()
				v.reach(t)
				least, hears := v.silence()
				if !v.before {
					began = time.Now() // the time runs from the last input, which was about now
					least -= time.Second
				}
				if hears == "" {
					v.c.ExpectGone()
				} else {
					v.c.Expect(hears)
					v.c.ExpectGone()
				}
				if v.name == "handshake of nonsense" { // is over at once
					least = 0
				}
				if took := time.Since(began); took < least || took > least+late {
					t.Errorf("after %v, want %v", took, least)
				}
				v.tell()
				if !v.before {
					v.s.WaitLine(t, "("+v.user+")", "Info: Disconnected: ")
				}
				for n := range v.r.Conns() {
					v.r.Ended(n)
				}
			})
		}
		// The time until the login counts from the connection, and commands do not change it.
		t.Run("NOOP again and again", func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			c := s.Greeted(t, dovetail.Clear)
			for {
				c.Send("NOOP")
				line, err := c.TryLine()
				if err != nil {
					t.Fatalf("%v\n%s", err, c.Dialogue())
				}
				if strings.HasPrefix(line, "421") {
					break
				}
				time.Sleep(20 * time.Millisecond)
			}
			if took := time.Since(began); took < loginTime || took > loginTime+late {
				t.Errorf("after %v", took)
			}
		})
		// After it, each command gives more time.
		t.Run("NOOP now and then", func(t *testing.T) {
			t.Parallel()
			c := s.Login(t, dovetail.TLS, "steady")
			for range 4 {
				time.Sleep(idleTime * 4 / 10)
				c.Do("NOOP", "250")
			}
			c.Expect("421 4.4.2 " + host + " Disconnected for inactivity")
			c.ExpectGone()
		})
		for _, way := range []dovetail.Way{dovetail.Clear, dovetail.TLS} {
			t.Run("takes no replies, "+way.String(), func(t *testing.T) {
				t.Parallel()
				user := map[dovetail.Way]string{dovetail.Clear: "deaf1", dovetail.TLS: "deaf2"}[way]
				c := s.Login(t, way, user)
				takeLittle(c.Conn)
				_ = c.Conn.SetWriteDeadline(time.Now().Add(2 * time.Second))
				_, _ = c.Conn.Write([]byte(strings.Repeat("EHLO x\r\n", 200000)))
				s.WaitLine(t, "("+user+")", "Info: Disconnected: ")
			})
		}
	})
	s.Settled(t, idle)
	s.NoSessions(t, "submission")
	s.NoSessions(t, "submission-login")
}

// takeLittle makes a connection hold few octets that were not read, so that the server
// notices soon.
func takeLittle(conn net.Conn) {
	if tc, ok := conn.(*tls.Conn); ok {
		conn = tc.NetConn()
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetReadBuffer(4096)
	}
}

// Clients leave while the relay has not answered, and never will: the session ends before
// the relay's time is over.
func TestLeavingASilentRelay(t *testing.T) {
	t.Parallel()
	var held []point
	for _, p := range points() {
		if p.holds != "" {
			held = append(held, p)
		}
	}
	names := []string{"closes", "resets", "half-closes"}
	s, all, idle := hastyServer(t, held, names, "submission_relay_command_timeout = 5 mins\n")
	t.Run("cells", func(t *testing.T) {
		for _, v := range all {
			v.s = s
			t.Run(v.name+"/"+v.does, func(t *testing.T) {
				t.Parallel()
				defer v.onFailure(t)
				v.reach(t)
				switch v.does {
				case "closes":
					v.c.Close()
				case "resets":
					v.c.Reset()
				case "half-closes":
					v.c.CloseWrite()
					v.c.ExpectGone()
				}
				v.s.WaitLine(t, "("+v.user+")", "Info: Disconnected: ")
				v.tell()
				v.r.Ended(0)
			})
		}
	})
	s.Settled(t, idle)
	s.NoSessions(t, "submission")
	s.NoSessions(t, "submission-login")
}

func hastyServer(t *testing.T, pts []point, deeds []string, config string) (*dovetail.Server, []*visit, dovetail.Census) {
	t.Helper()
	all, users := visits(t, pts, deeds)
	steady := relay.Start(t, relay.Options{})
	for _, name := range []string{"steady", "deaf1", "deaf2"} {
		users = append(users, dovetail.User{Name: name, Fields: []string{dovetail.Relay(steady.Port)}})
	}
	s := dovetail.Start(t, dovetail.Setup{Shared: true, Hasty: true, Users: users, Config: config})
	return s, all, s.Idle(t, "steady")
}
