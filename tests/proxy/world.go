// Package proxy shows login proxying (clause S9) from outside: a frontend whose passdb
// sends users on, scripted backends, real ones, and what clients, backends and the log
// saw. Whatever has a counterpart in Dovecot runs against Dovecot's own login process in
// the same way.
package proxy

import (
	"crypto/hmac"
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"maps"
	"net"
	"os"
	osuser "os/user"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/need"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
)

const unavailable = "454 4.7.0 Account is temporarily unavailable."

// dovecotCaps are what a backend of Dovecot's kind announces before the login.
var dovecotCaps = []string{"PIPELINING", "ENHANCEDSTATUSCODES", "CHUNKING", "AUTH PLAIN LOGIN", "XCLIENT ADDR PORT PROTO HELO LOGIN SESSION TTL TIMEOUT FORWARD"}

// A user is one that the frontend sends to a backend of its own.
type user struct {
	name   string
	fields string // of the passdb, besides proxy, host and port; {port} is the backend's, {self} ours
	relay  *relay.Options
	bare   bool // fields is all there is
	slow   bool // the backend sends each octet by itself
}

// A front is a frontend with its users and their backends.
type front struct {
	*system.Running
	t        *testing.T
	backends map[string]*relay.Relay // by user; nil: nothing listens
	ports    map[string]int
}

// A frontend is what is to be started.
type frontend struct {
	users  []user
	config []string
	files  map[string]system.File
	args   map[string]string // options of the programs
}

// start starts a frontend with users. Their password is "pw".
func start(t *testing.T, sys system.System, users []user, config ...string) *front {
	t.Helper()
	return frontend{users: users, config: config}.start(t, sys)
}

func (fe frontend) start(t *testing.T, sys system.System) *front {
	t.Helper()
	sys.Need(t)
	f := &front{t: t, backends: map[string]*relay.Relay{}, ports: map[string]int{}}
	var lines []string
	for _, u := range fe.users {
		port := system.Hold(t)
		f.ports[u.name] = port.Number
		if u.relay != nil {
			o := *u.relay
			o.Listener = port.Listen(t)
			if u.slow {
				o.Listener = slowly{o.Listener}
			}
			if o.Caps == nil {
				o.Caps = dovecotCaps
			}
			f.backends[u.name] = relay.Start(t, o)
		}
		fields := "proxy=y host=127.0.0.1 port={port} " + u.fields
		if u.bare {
			fields = u.fields
		}
		fields = strings.NewReplacer("{port}", fmt.Sprint(port.Number), "{self}", "{port}").Replace(fields)
		lines = append(lines, u.name+":{PLAIN}pw::::::"+strings.TrimSpace(fields))
	}
	files := map[string]system.File{"etc/proxied": {Data: strings.Join(lines, "\n") + "\n"}}
	maps.Copy(files, fe.files)
	f.Running = sys.Start(t, system.Setup{
		Config: append([]string{"passdb proxied {", "  driver = passwd-file", "  args = {dir}/etc/proxied", "}"}, fe.config...),
		Files:  files,
		Args:   fe.args,
	})
	return f
}

// slowly is a listener whose connections send each octet by itself.
type slowly struct{ net.Listener }

func (l slowly) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return slowConn{c}, err
}

type slowConn struct{ net.Conn }

func (c slowConn) Write(b []byte) (int, error) {
	for i := range b {
		if _, err := c.Conn.Write(b[i : i+1]); err != nil {
			return i, err
		}
		time.Sleep(time.Millisecond)
	}
	return len(b), nil
}

// dial connects a client and reads the greeting.
func (f *front) dial(t *testing.T, o client.Options) *client.Client {
	t.Helper()
	addr := f.Addr()
	if o.TLS != nil {
		addr = f.TLSAddr()
	}
	c := client.Dial(t, addr, o)
	c.ExpectCode("220 ")
	return c
}

// login sends AUTH PLAIN and returns the lines of the reply, or what came before the end.
func login(c *client.Client, user string) (lines []string) {
	c.Send("AUTH PLAIN " + plain(user, "pw"))
	for {
		line, err := c.TryLine()
		if err != nil {
			return append(lines, "(end)")
		}
		lines = append(lines, line)
		if len(line) < 4 || line[3] != '-' {
			return lines
		}
	}
}

func encode(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func plain(user, password string) string { return plain3("", user, password) }

func plain3(authzid, user, password string) string {
	return encode(authzid + "\x00" + user + "\x00" + password)
}

func encodeToken(port int) string {
	return encode("n,a=oauthbearer,\x01host=127.0.0.1\x01port=" + itoa(port) + "\x01auth=Bearer tok\x01\x01")
}

func itoa(n int) string { return strconv.Itoa(n) }

// logOf returns the log lines that are about a user, as they are compared: without the
// session's own data, with places for what varies.
func (f *front) logOf(user string) (lines []string) {
	for _, l := range f.Log() {
		if strings.Contains(l, "user=<"+user+">") || strings.Contains(l, "proxy("+user+",") || strings.Contains(l, "proxy("+user+")") {
			lines = append(lines, f.normal(l, user))
		}
	}
	return lines
}

var varying = []struct {
	re *regexp.Regexp
	by string
}{
	{regexp.MustCompile(`: user=<[^>]*>,.*$`), ""},
	{regexp.MustCompile(`local=127\.0\.0\.1:\d+`), "local=127.0.0.1:{port}"},
	{regexp.MustCompile(`\b\d\.\d{3} secs`), "{n.nnn} secs"},
	{regexp.MustCompile(`duration=\d+s`), "duration={n}s"},
	{regexp.MustCompile(`\((\d+)s idle, in=(\d+), out=(\d+)`), "({n}s idle, in={n}, out={n}"},
	{regexp.MustCompile(`in \d+ms`), "in {n}ms"},
	{regexp.MustCompile(`waited \d+ secs`), "waited {n} secs"},
	// A backend that closes before it has read all resets the connection.
	{regexp.MustCompile(`Connection closed: (read\(size=\d+\) failed: )?Connection reset by peer \(state=`), "Connection closed (state="},
}

func (f *front) normal(line, user string) string {
	line = strings.TrimPrefix(line, "submission-login: ")
	line = strings.ReplaceAll(line, fmt.Sprintf(":%d", f.ports[user]), ":{backend}")
	line = strings.ReplaceAll(line, fmt.Sprintf(", %d)", f.ports[user]), ", {backend})")
	for _, v := range varying {
		line = v.re.ReplaceAllString(line, v.by)
	}
	return line
}

var wire = []struct {
	re *regexp.Regexp
	by string
}{
	{regexp.MustCompile(`PORT=\d+`), "PORT={port}"},
	{regexp.MustCompile(`SESSION=\S+`), "SESSION={session}"},
}

// said is what a backend heard on its connection number n, joined with " / ".
func said(r *relay.Relay, n int) string {
	text := strings.Join(r.Conns()[n].Lines, " / ")
	for _, v := range wire {
		text = v.re.ReplaceAllString(text, v.by)
	}
	return text
}

// ours says whether the login process is.
func ours(sys system.System) bool { return sys.Login == system.Ours }

// procTCP lists the TCP sockets of this machine.
func procTCP() string {
	data, _ := os.ReadFile("/proc/net/tcp")
	return string(data)
}

// cramMD5 logs in without saying the password; the reply is the caller's to read.
func cramMD5(c *client.Client, user, password string) {
	c.Send("AUTH CRAM-MD5")
	challenge, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(c.Line(), "334 "))
	h := hmac.New(md5.New, []byte(password))
	h.Write(challenge)
	c.Send(encode(user + " " + hex.EncodeToString(h.Sum(nil))))
}

// loginUID is the user that the login processes run as.
func loginUID(t *testing.T) int {
	t.Helper()
	u, err := osuser.Lookup("dovenull")
	if err != nil {
		need.Missing(t, "the user dovenull")
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		t.Fatal(err)
	}
	return uid
}
