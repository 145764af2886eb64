package urlauth

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	goimap "github.com/emersion/go-imap/v2"

	"dovetail/internal/dovecot/authclient"
	"dovetail/internal/dovecot/authmaster"
	"dovetail/internal/dovecot/config"
	"dovetail/internal/imap"
	"dovetail/internal/testkit/instance"
	"dovetail/internal/testkit/mailbox"
	"dovetail/internal/testkit/wiretest"
)

// These tests run against a private Dovecot, as the worker does: a child process opens
// sockets and claims a login as root, becomes the user for good, and then fetches.

const liveConf = `
protocols = imap submission
imap_urlauth_host = imap.example.test
mail_attribute_dict = file:%h/dovecot-attributes
imap_metadata = yes
service imap-login {
  inet_listener imap {
    port = @PORT:imap@
  }
  inet_listener imaps {
    port = 0
  }
}
`

// A job is what the child does.
type job struct {
	Base, Libexec, User, Password string
	Way                           string // "dial", "token", "tape", "imap", "exec"
	Fetches                       []fetch
}

// A fetch is one thing to get.
type fetch struct {
	Target, URL string // of the imap-urlauth service

	Mailbox string // of IMAP
	UID     uint32
	Part    imap.Part
}

// A result is what came of it.
type result struct {
	Size uint64
	Sum  string // of the octets
	Err  string
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:8])
}

func TestMain(m *testing.M) {
	if text := os.Getenv("URLAUTH_JOB"); text != "" {
		var j job
		if err := json.Unmarshal([]byte(text), &j); err != nil {
			panic(err)
		}
		results, err := j.run()
		if err != nil {
			results = []result{{Err: err.Error()}}
		}
		if err := json.NewEncoder(os.Stdout).Encode(results); err != nil {
			panic(err)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// do runs a job in a child process.
func (j job) do(t testing.TB, d *instance.Instance) []result {
	t.Helper()
	j.Base, j.Libexec = d.Base, d.Libexec
	if j.Password == "" {
		j.Password = "pass"
	}
	text, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), "URLAUTH_JOB="+string(text))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	if stderr.Len() > 0 {
		t.Logf("child: %s", stderr.String())
	}
	var results []result
	if err := json.Unmarshal(out, &results); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return results
}

// run is the child's part.
func (j job) run() ([]result, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	sockets, err := Open(j.Base)
	if err != nil {
		return nil, err
	}
	defer sockets.Close()
	login, user, err := j.login(ctx)
	if err != nil {
		return nil, fmt.Errorf("login: %w", err)
	}
	settings, err := config.Dial(j.Base + "/config")
	if err != nil {
		return nil, err
	}
	answer, err := settings.Request(config.Request{Modules: []string{"imap"}, Service: "imap", User: user.Name})
	if err != nil {
		return nil, err
	}
	home, _ := user.Fields.Get("home")
	uid, gid := number(user.Fields.Get("uid")), number(user.Fields.Get("gid"))
	if err := errors.Join(syscall.Setgroups([]int{gid}), syscall.Setgid(gid), syscall.Setuid(uid)); err != nil {
		return nil, err
	}
	if syscall.Setuid(0) == nil {
		return nil, errors.New("still root")
	}
	switch j.Way {
	case "dial", "token":
		c, err := sockets.URLAuth(ctx, login)
		if j.Way == "dial" {
			c, err = Dial(ctx, j.Base+"/imap-urlauth", login)
		}
		if err != nil {
			return nil, err
		}
		defer c.Close()
		return j.urlauth(ctx, c), nil
	case "tape": // as token; the last result is what was said
		nc, err := sockets.login(ctx, login, "imap-urlauth", sockets.urlauth, nil)
		if err != nil {
			return nil, err
		}
		var tape wiretest.Tape
		c := newConn(tape.Record(nc), Timeout)
		reply, err := c.readLine()
		if c, err = c.begun(reply, err); err != nil {
			return nil, err
		}
		defer c.Close()
		return append(j.urlauth(ctx, c), result{Err: tape.String()}), nil
	case "imap":
		nc, tag, err := sockets.IMAP(ctx, login)
		if err != nil {
			return nil, err
		}
		c, err := imap.Resume(ctx, nc, tag, imap.Options{})
		if err != nil {
			return nil, err
		}
		return j.imap(ctx, c), nil
	case "exec":
		nc, err := Exec(Program{Path: j.Libexec + "/imap", Env: Environment(answer.Values, user.Name, user.Fields, "127.0.0.1", "127.0.0.1"), Dir: home,
			Log: func(line string) { fmt.Fprintln(os.Stderr, line) }})
		if err != nil {
			return nil, err
		}
		c, err := imap.New(ctx, nc, imap.Options{})
		if err != nil {
			return nil, err
		}
		return j.imap(ctx, c), nil
	}
	return nil, errors.New("no such way")
}

// login logs in at the submission service and claims the login, as login process and
// worker do.
func (j job) login(ctx context.Context) (l Login, u authmaster.User, err error) {
	pid := uint32(os.Getpid())
	auth, err := authclient.Dial(ctx, j.Base+"/login/login", pid)
	if err != nil {
		return l, u, err
	}
	defer auth.Close()
	ex, err := auth.Begin(&authclient.Request{Mechanism: "PLAIN", Service: "submission", Secured: authclient.SecuredTrusted, Session: "SeSsIoN", NoPenalty: true,
		HasInitial: true, Initial: base64Plain(j.User, j.Password)})
	if err != nil {
		return l, u, err
	}
	defer ex.Close()
	if reply, err := ex.Next(ctx); err != nil || reply.Kind != authclient.OK {
		return l, u, fmt.Errorf("AUTH: %v %v", reply.Fields(), err)
	}
	master, err := authmaster.Dial(ctx, j.Base+"/auth-master")
	if err != nil {
		return l, u, err
	}
	defer master.Close()
	u, err = master.Request(ctx, authmaster.Request{ClientPID: pid, AuthID: ex.ID(), Cookie: authmaster.Cookie(auth.Cookie()), SessionPID: pid, WantToken: true})
	if err != nil {
		return l, u, err
	}
	ex.HandedOver()
	token, _ := u.Fields.Get("auth_token")
	return Login{PID: int(pid), User: u.Name, Session: "SeSsIoN", Token: token}, u, nil
}

func number(s string, ok bool) int {
	n, err := strconv.Atoi(s)
	if !ok || err != nil {
		panic("no number: " + s)
	}
	return n
}

func (j job) urlauth(ctx context.Context, c *Conn) (results []result) {
	for _, f := range j.Fetches {
		body, err := c.Fetch(ctx, f.Target, f.URL)
		if err != nil {
			results = append(results, result{Err: err.Error()})
			continue
		}
		results = append(results, read(body, body.Size))
	}
	return results
}

func (j job) imap(ctx context.Context, c *imap.Conn) (results []result) {
	defer func() { _ = c.Logout(ctx) }()
	for _, f := range j.Fetches {
		if _, err := c.Examine(ctx, f.Mailbox); err != nil {
			results = append(results, result{Err: err.Error()})
			continue
		}
		body, err := c.Fetch(ctx, f.UID, f.Part)
		if err != nil {
			results = append(results, result{Err: err.Error()})
			continue
		}
		results = append(results, read(body, body.Size))
	}
	return results
}

func read(r io.Reader, size uint64) result {
	h := sha256.New()
	n, err := io.Copy(h, r)
	if err != nil {
		return result{Err: err.Error()}
	}
	if uint64(n) != size {
		return result{Err: fmt.Sprintf("%d octets, not %d", n, size)}
	}
	return result{Size: size, Sum: hex.EncodeToString(h.Sum(nil)[:8])}
}

// mails are messages of all kinds: of parts, with octets of 8 bits, with NULs, empty, large.
func mails() map[string][]byte {
	return map[string][]byte{
		"plain": []byte("Subject: hello\r\nFrom: a@b\r\n\r\nbody of alice\r\n.dot line\r\n"),
		"parts": []byte("MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nfirst\r\n--b\r\nContent-Type: application/octet-stream\r\n\r\n" +
			strings.Repeat("\x80\xff\xc3\xa4", 1000) + "\r\n--b\r\nContent-Type: text/plain\r\n\r\n\r\n--b--\r\n"),
		"large": append([]byte("Subject: large\r\n\r\n"), bytes.Repeat([]byte("0123456789 the quick brown fox jumps over the lazy dog 0123456789 .\r\n"), 1<<17)...), // 9 MB
	}
}

// URLs with URLAUTH, the user's own and another's, come to the octet, in whatever order;
// what is refused is refused with the service's words.
func TestURLAuthByToken(t *testing.T) {
	d := instance.Start(t, liveConf)
	alice := mailbox.Account{Addr: d.Addr("imap"), User: "alice", Password: "pass"}
	bob := alice
	bob.User = "bob"
	m := mails()
	alice.Append(t, "INBOX", m["plain"], m["parts"], m["large"])
	bob.Append(t, "Shared & more", m["plain"])

	const own, other = "imap://alice@imap.example.test/INBOX/;UID=", "imap://bob@imap.example.test/Shared%20%26%20more/;UID="
	const auth = ";URLAUTH=submit+alice"
	mint := alice.Mint
	expired := mint(t, own+"1;EXPIRE="+time.Now().Add(2*time.Second).UTC().Format(time.RFC3339)+auth)
	good := mint(t, own+"1"+auth)
	bad := good[:len(good)-2] + "00"
	if bad == good {
		bad = good[:len(good)-2] + "11"
	}
	revoked := mint(t, own+"1/;SECTION=TEXT"+auth)
	part := alice.Fetch(t, "INBOX", 2, goimap.FetchItemBodySection{Part: []int{2}})
	header := alice.Fetch(t, "INBOX", 2, goimap.FetchItemBodySection{Specifier: goimap.PartSpecifierHeader})
	if len(part) != 4000 || len(header) == 0 {
		t.Fatalf("part of %d octets, header of %d", len(part), len(header))
	}
	for _, c := range []struct {
		what        string
		target, url string
		data        []byte
		err         string
	}{
		{"whole", "alice", good, m["plain"], ""},
		{"large", "alice", mint(t, own+"3"+auth), m["large"], ""},
		{"again", "alice", good, m["plain"], ""},
		{"of bob", "bob", bob.Mint(t, other+"1"+auth), m["plain"], ""},
		{"a part", "alice", mint(t, own+"2/;SECTION=2"+auth), part, ""},
		{"a part of a part", "alice", mint(t, own+"2/;SECTION=2/;PARTIAL=1000.500"+auth), part[1000:1500], ""},
		{"an empty part", "alice", mint(t, own+"2/;SECTION=3"+auth), nil, ""},
		{"no part", "alice", mint(t, own+"2/;SECTION=9"+auth), nil, ""},
		{"beyond the end", "alice", mint(t, own+"1/;PARTIAL=500.5"+auth), nil, ""},
		{"header", "alice", mint(t, own+"2/;SECTION=HEADER"+auth), header, ""},
		{"wrong token", "alice", bad, nil, "URL refused"},
		{"not for submission", "alice", mint(t, own+"1;URLAUTH=user+alice"), nil, "No 'user+alice' access allowed for submission service"},
		{"for another", "alice", mint(t, own+"1;URLAUTH=submit+bob"), nil, "No 'submit+bob' access allowed for user alice"},
		{"expired", "alice", expired, nil, "URLAUTH has expired"},
		{"no URLAUTH", "alice", own + "1", nil, "Must be a full URLAUTH URL"},
		{"no URL", "alice", "foo", nil, "Relative URL not allowed"},
		{"another's, in the name of the first", "alice", bob.Mint(t, other+"1"+auth), nil, "Not permitted to fetch URLAUTH for user bob"},
		{"too long", "alice", own + strings.Repeat("1", 2048), nil, ErrTooLong.Error()},
		{"unknown user", "no/such", good, nil, ErrNoUser.Error()},
		{"after all that", "alice", good, m["plain"], ""},
	} {
		time.Sleep(time.Until(deadline(c.url)))
		r := job{Way: "token", User: "alice", Fetches: []fetch{{Target: c.target, URL: c.url}}}.do(t, d)
		check(t, c.what, r, c.data, c.err)
	}
	// Several in one session, with another user between.
	r := job{Way: "token", User: "alice", Fetches: []fetch{{Target: "alice", URL: good}, {Target: "bob", URL: bob.Mint(t, other+"1"+auth)}, {Target: "alice", URL: bad}, {Target: "alice", URL: good}}}.do(t, d)
	if len(r) != 4 || r[0] != r[3] || r[1] != r[0] || r[0].Sum != sum(m["plain"]) || r[2].Err == "" {
		t.Errorf("in one session: %+v", r)
	}
	// A token is revoked with the key of its mailbox.
	alice.Raw(t, `RESETKEY "INBOX"`)
	check(t, "revoked", job{Way: "token", User: "alice", Fetches: []fetch{{Target: "alice", URL: revoked}}}.do(t, d), nil, "URL refused")
	// And what is gone is not found.
	gone := mint(t, own+"1"+auth)
	alice.Raw(t, `SELECT INBOX`, `UID STORE 1 +FLAGS.SILENT (\Deleted)`, `EXPUNGE`)
	check(t, "expunged", job{Way: "token", User: "alice", Fetches: []fetch{{Target: "alice", URL: gone}}}.do(t, d), nil, "Message not found")
}

// deadline is a second after an URL expires.
func deadline(url string) time.Time {
	_, s, _ := strings.Cut(url, ";EXPIRE=")
	s, _, _ = strings.Cut(s, ";")
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}
	}
	return at.Add(time.Second)
}

func check(t testing.TB, what string, r []result, data []byte, err string) {
	t.Helper()
	switch {
	case len(r) != 1:
		t.Errorf("%s: %+v", what, r)
	case err != "" && !strings.HasSuffix(r[0].Err, err):
		t.Errorf("%s: %+v, want %s", what, r[0], err)
	case err == "" && (r[0].Err != "" || r[0].Sum != sum(data) || r[0].Size != uint64(len(data))):
		t.Errorf("%s: %+v, want %d octets %s", what, r[0], len(data), sum(data))
	}
}

// What listens on imap-urlauth in Dovecot 2.3 aborts, which looks like this.
func TestDialBroken(t *testing.T) {
	d := instance.Start(t, liveConf)
	r := job{Way: "dial", User: "alice", Fetches: []fetch{{Target: "alice", URL: "imap://x"}}}.do(t, d)
	check(t, "direct", r, nil, io.ErrUnexpectedEOF.Error())
	d.WaitLog("imap-urlauth-login: Panic: ")
}

// With a token socket that does not make imap-urlauth-login abort its own way works, and
// so does URLFETCH of a submit user over IMAP, as from a server elsewhere.
func TestRepairedChain(t *testing.T) {
	d := instance.Start(t, liveConf+"imap_urlauth_submit_user = submit\n"+mailbox.RepairConf)
	mailbox.RepairTokens(t, d.Base)
	accounts := map[string]mailbox.Account{}
	for _, user := range []string{"alice", "bob", "submit"} {
		accounts[user] = mailbox.Account{Addr: d.Addr("imap"), User: user, Password: "pass"}
	}
	m := mails()
	accounts["bob"].Append(t, "INBOX", m["plain"], m["large"])
	const rump = "imap://bob@imap.example.test/INBOX/;UID=%d;URLAUTH=submit+alice"
	plain, large := accounts["bob"].Mint(t, fmt.Sprintf(rump, 1)), accounts["bob"].Mint(t, fmt.Sprintf(rump, 2))
	r := job{Way: "dial", User: "alice", Fetches: []fetch{{Target: "bob", URL: plain}, {Target: "bob", URL: large}, {Target: "bob", URL: plain + "0"}}}.do(t, d)
	if len(r) != 3 || r[0].Sum != sum(m["plain"]) || r[1].Sum != sum(m["large"]) || r[2].Err == "" {
		t.Errorf("direct: %+v", r)
	}
	bad := Login{PID: os.Getpid(), User: "alice", Session: "x", Token: strings.Repeat("00", 20)}
	if _, err := Dial(context.Background(), d.Base+"/imap-urlauth", bad); !errors.Is(err, ErrDenied) {
		t.Errorf("wrong token: %v", err)
	}

	nc, err := net.Dial("tcp", d.Addr("imap"))
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	c, err := imap.New(ctx, nc, imap.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Login(ctx, "submit", "pass"); err != nil {
		t.Fatal(err)
	}
	for i, f := range []struct {
		url  string
		data []byte
		err  error
	}{{plain, m["plain"], nil}, {large, m["large"], nil}, {plain[:len(plain)-2] + "zz", nil, imap.ErrRefused}, {plain, m["plain"], nil}} {
		body, err := c.URLFetch(ctx, f.url)
		if !errors.Is(err, f.err) {
			t.Errorf("URLFETCH %d: %v, want %v", i, err, f.err)
		}
		if err == nil {
			check(t, fmt.Sprint("URLFETCH ", i), []result{read(body, body.Size)}, f.data, "")
		}
	}
	if err := c.Logout(ctx); err != nil {
		t.Error(err)
	}
}

// Both ways to an IMAP session as the user give what FETCH gives.
func TestIMAPSession(t *testing.T) {
	d := instance.Start(t, liveConf)
	alice := mailbox.Account{Addr: d.Addr("imap"), User: "alice", Password: "pass"}
	bob := alice
	bob.User = "bob"
	m := mails()
	alice.Append(t, "INBOX", m["plain"], m["parts"], m["large"])
	alice.Append(t, "Entwürfe & more", m["parts"])
	bob.Append(t, "INBOX", m["plain"], m["plain"], m["plain"], m["plain"])
	part := alice.Fetch(t, "INBOX", 2, goimap.FetchItemBodySection{Part: []int{2}})
	fetches := []fetch{
		{Mailbox: "INBOX", UID: 1}, {Mailbox: "INBOX", UID: 3}, {Mailbox: "Entwürfe & more", UID: 1},
		{Mailbox: "INBOX", UID: 2, Part: imap.Part{Section: "2"}}, {Mailbox: "INBOX", UID: 2, Part: imap.Part{Section: "2", Partial: true, Offset: 100, Size: 7}},
		{Mailbox: "INBOX", UID: 2, Part: imap.Part{Section: "2", Partial: true, Offset: 100}}, {Mailbox: "INBOX", UID: 2, Part: imap.Part{Section: "3"}},
		{Mailbox: "INBOX", UID: 2, Part: imap.Part{Section: "9"}}, {Mailbox: "INBOX", UID: 1, Part: imap.Part{Partial: true, Offset: 1 << 40}},
		{Mailbox: "INBOX", UID: 1, Part: imap.Part{Section: `HEADER.FIELDS ("SUBJECT")`}},
		{Mailbox: "INBOX", UID: 4}, {Mailbox: "none", UID: 1}, {Mailbox: "../bob", UID: 1}, {Mailbox: "INBOX", UID: 1, Part: imap.Part{Section: "FOO"}}, {Mailbox: "INBOX", UID: 1},
	}
	want := []struct {
		data []byte
		err  string
	}{
		{m["plain"], ""}, {m["large"], ""}, {m["parts"], ""}, {part, ""}, {part[100:107], ""}, {part[100:], ""}, {nil, ""}, {nil, ""}, {nil, ""}, {[]byte("Subject: hello\r\n\r\n"), ""},
		{nil, "Message not found"}, {nil, "Mailbox doesn't exist: none (0.001 + 0.000 secs)."}, {nil, ""}, {nil, "BAD "}, {m["plain"], ""},
	}
	for _, way := range []string{"imap", "exec"} {
		r := job{Way: way, User: "alice", Fetches: fetches}.do(t, d)
		if len(r) != len(want) {
			t.Errorf("%s: %+v", way, r)
			continue
		}
		for i, w := range want {
			switch {
			case i == 12: // refused, in whatever words
				if r[i].Err == "" {
					t.Errorf("%s: another user's mailbox: %+v", way, r[i])
				}
			case i == 11:
				if !strings.Contains(r[i].Err, "Mailbox doesn't exist: none") {
					t.Errorf("%s: %+v", way, r[i])
				}
			case i == 13:
				if !strings.Contains(r[i].Err, "answered BAD") {
					t.Errorf("%s: %+v", way, r[i])
				}
			default:
				check(t, fmt.Sprintf("%s, fetch %d", way, i), r[i:i+1], w.data, w.err)
			}
		}
	}
}
