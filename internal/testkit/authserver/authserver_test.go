package authserver

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"dovetail/internal/testkit/leak"
	"dovetail/internal/testkit/system"
)

func TestMain(m *testing.M) { os.Exit(system.Main(m)) }

var world = Options{Users: map[string]User{
	"alice": {Password: "wonder", Userdb: []string{"uid=12001", "gid=12001", "home=/h"}},
	"carol": {Password: "cpass", OK: []string{"nologin"}},
	"ghost": {Password: "boo"},
	"later": {Fail: []string{"code=temp_fail"}},
}}

// A peer is one connection to an auth socket.
type peer struct {
	t  *testing.T
	nc net.Conn
	br *bufio.Reader
}

func dial(t *testing.T, path string) *peer {
	t.Helper()
	nc, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
	return &peer{t, nc, bufio.NewReader(nc)}
}

func (p *peer) send(lines ...string) {
	p.t.Helper()
	if _, err := io.WriteString(p.nc, strings.Join(lines, "\n")+"\n"); err != nil {
		p.t.Fatal(err)
	}
}

func (p *peer) line() string {
	p.t.Helper()
	line, err := p.br.ReadString('\n')
	if err != nil {
		return line + "(" + err.Error() + ")"
	}
	return strings.TrimSuffix(line, "\n")
}

func (p *peer) until(last string) (lines []string) {
	for {
		lines = append(lines, p.line())
		if l := lines[len(lines)-1]; l == last || strings.HasSuffix(l, ")") {
			return lines
		}
	}
}

var varying = regexp.MustCompile(`^(SPID|CUID|COOKIE)\t.*`)

// said runs one dialogue on both sockets and returns what the service said.
func said(t *testing.T, login, master string) (out []string) {
	l, m := dial(t, login), dial(t, master)
	l.send("VERSION\t1\t2", "CPID\t4711")
	cookie := ""
	for _, line := range l.until("DONE") {
		if v, ok := strings.CutPrefix(line, "COOKIE\t"); ok {
			cookie = v
		}
		out = append(out, varying.ReplaceAllString(line, "$1"))
	}
	const to = "\tservice=submission\tsecured\tno-penalty\trip=127.0.0.1"
	for _, ask := range []string{
		"AUTH\t1\tPLAIN" + to + "\tresp=AGFsaWNlAHdvbmRlcg==",
		"AUTH\t2\tPLAIN" + to + "\tresp=AGFsaWNlAGJhZA==",
		"AUTH\t3\tLOGIN" + to,
		"CONT\t3\tYWxpY2U=",
		"CONT\t3\td29uZGVy",
		"AUTH\t4\tPLAIN" + to,
		"CONT\t4\tAGNhcm9sAGNwYXNz",
		"AUTH\t5\tPLAIN" + to + "\tresp=AGdob3N0AGJvbw==",
	} {
		l.send(ask)
		out = append(out, l.line())
	}
	l.send("CANCEL\t3")
	m.send("VERSION\t1\t1")
	out = append(out, m.line(), varying.ReplaceAllString(m.line(), "$1"))
	for _, ask := range []string{
		"REQUEST\t71\t4711\t1\t" + strings.Repeat("0", 32), // not the cookie
		"REQUEST\t72\t4711\t1\t" + cookie,
		"REQUEST\t73\t4711\t1\t" + cookie, // a second time
		"REQUEST\t74\t4711\t4\t" + cookie, // nologin
		"REQUEST\t75\t4711\t5\t" + cookie, // no userdb entry
		"USER\t76\talice\tservice=submission",
		"USER\t77\tnobody\tservice=submission",
	} {
		m.send(ask)
		out = append(out, m.line())
	}
	l.send("AUTH\t9\tNONE" + to)
	return append(out, l.line())
}

// The fake says what Dovecot says.
func TestLikeDovecot(t *testing.T) {
	r := system.Dovecot.Start(t, system.Setup{
		Config: []string{"passdb more {", " driver = passwd-file", " args = {dir}/etc/more", "}"},
		Users:  []string{},
		Files: map[string]system.File{
			"etc/users": {Data: "alice:{PLAIN}wonder:12001:12001::/h::\n"},
			"etc/more":  {Data: "carol:{PLAIN}cpass::::::nologin\nghost:{PLAIN}boo::::::\n"},
		},
	})
	want := said(t, r.Dir+"/run/login/login", r.Dir+"/run/auth-master")
	s := Start(t, t.TempDir(), world)
	got := said(t, s.Login, s.Master)
	for i := range max(len(got), len(want)) {
		var g, w string
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			t.Errorf("line %d: %q, Dovecot says %q", i, g, w)
		}
	}
}

func TestMisbehaviour(t *testing.T) {
	leak.Check(t)
	o := world
	o.OnAuth = func(r Request) []string {
		if v, _ := r.Get("session"); v == "silent" {
			return []string{}
		}
		if v, _ := r.Get("session"); v == "odd" {
			return []string{"CONT\t" + r.ID + "\t!!!", "garbage"}
		}
		return nil
	}
	s := Start(t, t.TempDir(), o)
	s.Hold()
	p := dial(t, s.Login)
	p.send("VERSION\t1\t2", "CPID\t1")
	if got := p.until("COOKIE\t" + fmt.Sprintf("%032x", s.SPID()*1000+1)); len(got) != 6 {
		t.Errorf("handshake %q", got)
	}
	s.Release()
	if got := p.line(); got != "DONE" {
		t.Errorf("got %q", got)
	}
	p.send("AUTH\t1\tPLAIN\tsession=silent\tresp=AGFsaWNlAHdvbmRlcg==", "AUTH\t2\tPLAIN\tsession=odd", "AUTH\t3\tPLAIN\tresp=AGxhdGVyAHg=", "AUTH\t4\tPLAIN\tresp=!", "AUTH\t5\tPLAIN\tresp=AGFsaWNlAHdvbmRlcg==")
	for _, want := range []string{"CONT\t2\t!!!", "garbage", "FAIL\t3\tuser=later\tcode=temp_fail", "FAIL\t4\tcode=invalid_base64\treason=Invalid base64 data in continued response", "OK\t5\tuser=alice"} {
		if got := p.line(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if n := s.Unclaimed(); n != 1 {
		t.Errorf("%d unclaimed", n)
	}
	p.send("CANCEL\t5")
	if c := s.Wait("CANCEL", 1); c[0].ID != "5" {
		t.Errorf("%+v", c)
	}
	before := s.SPID()
	s.Restart()
	if got := p.line(); !strings.Contains(got, "EOF") && !strings.Contains(got, "reset") {
		t.Errorf("after a restart: %q", got)
	}
	p = dial(t, s.Login)
	p.send("VERSION\t1\t2", "CPID\t1")
	p.until("DONE")
	if s.SPID() == before {
		t.Error("the same pid after a restart")
	}
	s.Mute()
	p.send("AUTH\t1\tPLAIN\tresp=AGFsaWNlAHdvbmRlcg==")
	s.Wait("AUTH", 6)
	_ = p.nc.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if got := p.line(); !strings.Contains(got, "timeout") {
		t.Errorf("a mute service says %q", got)
	}
	p.nc.Close()
	s.Stop()
	if _, err := net.Dial("unix", s.Login); err == nil {
		t.Error("a stopped service can be reached")
	}
}
