package authd

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"dovetail/internal/standalone/authd/password"

	"github.com/xdg-go/scram"
)

var sockets = map[byte]string{'L': "login/login", 'M': "auth-master", 'C': "auth-client", 'U': "auth-userdb", 'T': "token-login/tokenlogin"}

// A player plays the steps of dialogs.
type player struct {
	t      *testing.T
	dir    string
	conns  map[byte]*playerConn
	token  string // last auth_token seen
	convs  map[string]*scram.ClientConversation
	lastIn map[byte]string // last challenge, decoded
}

type playerConn struct {
	net.Conn
	br     *bufio.Reader
	greet  []string
	cookie string
}

func (p *player) conn(letter byte) *playerConn {
	if c := p.conns[letter]; c != nil {
		return c
	}
	nc, err := net.Dial("unix", filepath.Join(p.dir, "run", sockets[letter]))
	if err != nil {
		p.t.Fatal(err)
	}
	c := &playerConn{Conn: nc, br: bufio.NewReader(nc)}
	p.conns[letter] = c
	p.deadline(c)
	pid := os.Getpid()
	if letter == 'T' {
		pid++ // unique among all connections
	}
	hello, last := fmt.Sprintf("VERSION\t1\t2\nCPID\t%d\n", pid), "DONE"
	if letter == 'M' || letter == 'U' {
		hello, last = "VERSION\t1\t1\n", "SPID"
	}
	if _, err := io.WriteString(c, hello); err != nil {
		p.t.Fatal(err)
	}
	for {
		l, err := c.br.ReadString('\n')
		if err != nil {
			p.t.Fatalf("greeting of %c: %v", letter, err)
		}
		f := strings.Split(strings.TrimSuffix(l, "\n"), "\t")
		if f[0] == "COOKIE" {
			c.cookie = f[1]
		}
		if f[0] == "SPID" || f[0] == "CUID" || f[0] == "COOKIE" {
			f[1] = "*"
		}
		c.greet = append(c.greet, strings.Join(f, "|"))
		if f[0] == last {
			return c
		}
	}
}

func (p *player) deadline(c net.Conn) {
	if err := c.SetDeadline(time.Now().Add(15 * time.Second)); err != nil {
		p.t.Fatal(err)
	}
}

var macro = regexp.MustCompile(`\{[^{}]*\}`)

// expand replaces macros of a line that is to be sent.
func (p *player) expand(letter byte, line string) string {
	line = strings.ReplaceAll(line, "$A", commonFields)
	line = strings.ReplaceAll(line, "$PID", strconv.Itoa(os.Getpid()))
	line = strings.ReplaceAll(line, "$TOKEN", p.token)
	if c := p.conns['L']; c != nil {
		line = strings.ReplaceAll(line, "$COOKIE", c.cookie)
	}
	line = strings.ReplaceAll(line, "|", "\t")
	id := strings.Split(line, "\t")
	return macro.ReplaceAllStringFunc(line, func(m string) string {
		m = m[1 : len(m)-1]
		word, arg, _ := strings.Cut(m, ":")
		args := append(strings.Split(arg, ":"), "", "")
		enc := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
		switch word {
		case "b64":
			s, err := strconv.Unquote(`"` + strings.ReplaceAll(arg, `\0`, `\x00`) + `"`)
			if err != nil {
				p.t.Fatalf("%s: %v", m, err)
			}
			s = strings.ReplaceAll(s, "$TOKEN", p.token)
			return enc(s)
		case "repeat":
			n, _ := strconv.Atoi(args[1])
			return strings.Repeat(args[0], n)
		case "cram":
			secret, err := password.Generate("CRAM-MD5", args[1], "")
			if err != nil {
				p.t.Fatal(err)
			}
			answer, err := password.CRAM(secret, p.lastIn[letter])
			if err != nil {
				p.t.Fatal(err)
			}
			return enc(args[0] + " " + answer)
		case "scram-sha-1", "scram-sha-256":
			h := scram.SHA1
			if word == "scram-sha-256" {
				h = scram.SHA256
			}
			client, err := h.NewClient(args[0], args[1], args[2])
			if err != nil {
				p.t.Fatal(err)
			}
			conv := client.NewConversation()
			p.convs[id[1]] = conv
			first, err := conv.Step("")
			if err != nil {
				p.t.Fatal(err)
			}
			return enc(first)
		case "next":
			out, err := p.convs[id[1]].Step(p.lastIn[letter])
			if err != nil {
				p.t.Fatalf("%s: SCRAM: %v", line, err)
			}
			return enc(out)
		}
		p.t.Fatalf("unknown macro %s", m)
		return ""
	})
}

var token = regexp.MustCompile(`auth_token=([0-9a-f]{40})`)

// reply reads a line and replaces what differs from run to run.
func (p *player) reply(letter byte, c *playerConn) string {
	l, err := c.br.ReadString('\n')
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return "closed"
	}
	if err != nil {
		return "error: " + err.Error()
	}
	l = strings.TrimSuffix(l, "\n")
	f := strings.Split(l, "\t")
	if f[0] == "CONT" && len(f) == 3 {
		b, err := base64.StdEncoding.DecodeString(f[2])
		if err != nil {
			p.t.Errorf("%s: %v", l, err)
		}
		p.lastIn[letter] = string(b)
		for _, c := range []struct{ re, name string }{
			{`^<\d{16}\.\d+@[^>]+>$`, "{challenge}"}, {`^r=[^,]+,s=[^,]+,i=\d+$`, "{server-first}"}, {`^v=.*$`, "{server-final}"},
		} {
			if regexp.MustCompile(c.re).Match(b) {
				f[2] = c.name
			}
		}
	}
	for i, x := range f {
		if strings.HasPrefix(x, "resp=") {
			f[i] = "resp=*"
		}
	}
	l = strings.Join(f, "|")
	if m := token.FindStringSubmatch(l); m != nil {
		p.token = m[1]
		l = strings.Replace(l, m[1], "*", 1)
	}
	return strings.ReplaceAll(strings.ReplaceAll(l, p.dir, "@DIR@"), strconv.Itoa(os.Getpid()), "$PID")
}

var stepLine = regexp.MustCompile(`^([LMCUT])(\d+|x|\+)?:(?: (.*))?$`)

// play does the steps and returns them with the replies: the text of the section dialog.
func (p *player) play(steps []string) []string {
	var out []string
	for _, s := range steps {
		if strings.HasPrefix(s, "do ") {
			p.do(strings.Fields(s)[1:])
			out = append(out, s)
			continue
		}
		m := stepLine.FindStringSubmatch(s)
		if m == nil {
			if len(s) < 2 || s[1] != ':' || s[0] != '!' && (s[0] < 'a' || s[0] > 'z') { // not a reply
				out = append(out, s)
			}
			continue
		}
		out = append(out, s)
		letter := m[1][0]
		c := p.conn(letter)
		small := string(letter|0x20) + ": "
		if m[2] == "+" {
			for _, l := range c.greet {
				out = append(out, small+l)
			}
			continue
		}
		p.deadline(c)
		if _, err := io.WriteString(c, p.expand(letter, m[3])+"\n"); err != nil {
			p.t.Errorf("%s: %v", s, err)
		}
		n := 1
		if m[2] != "" && m[2] != "x" {
			n, _ = strconv.Atoi(m[2])
		}
		for range n {
			out = append(out, small+p.reply(letter, c))
		}
		if m[2] == "x" {
			c.Close()
			delete(p.conns, letter)
		}
	}
	return out
}

// do changes files.
func (p *player) do(args []string) {
	path := filepath.Join(p.dir, args[1])
	var err error
	switch args[0] {
	case "remove":
		err = os.Remove(path)
	case "append":
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			p.t.Fatal(err)
		}
		var f *os.File
		if f, err = os.OpenFile(path, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o644); err == nil {
			_, err = f.WriteString(strings.Join(args[2:], " ") + "\n")
			f.Close()
		}
	default:
		err = errors.New("unknown")
	}
	if err != nil {
		p.t.Fatalf("do %v: %v", args, err)
	}
	if *record {
		time.Sleep(1100 * time.Millisecond) // Dovecot looks at a file once in a second
	}
}

func newPlayer(t *testing.T, dir string) *player {
	return &player{t: t, dir: dir, conns: map[byte]*playerConn{}, convs: map[string]*scram.ClientConversation{}, lastIn: map[byte]string{}}
}

func (p *player) close() {
	for _, letter := range []byte("LCTMU") { // in an order, for the log
		if c := p.conns[letter]; c != nil {
			c.Close()
		}
	}
}
