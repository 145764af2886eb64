package smtp

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"dovetail/internal/testkit/need"
)

var record = flag.Bool("record", false, "ask the installed Dovecot and write testdata/dovecot-VERSION.txt")

// A goldenLine is what Dovecot's worker did with a command: what it sent to its relay, ""
// for nothing, and what it answered.
type goldenLine struct {
	setup, command string
	relayed, reply string
}

// setups are the configurations under which the golden lines were recorded: what the relay
// announces, and submission_client_workarounds.
var setups = []struct {
	name, ehlo, workarounds string
}{
	{"full", "PIPELINING SIZE 8BITMIME ENHANCEDSTATUSCODES DSN VRFY CHUNKING BINARYMIME AUTH", ""},
	{"lenient", "PIPELINING SIZE 8BITMIME ENHANCEDSTATUSCODES DSN VRFY CHUNKING", "whitespace-before-path mailbox-for-path"},
	{"bare", "PIPELINING", ""},
}

// TestRecord is how the golden file was made: thousands of generated commands were sent to
// Dovecot's submission, running by itself on two pipes, with a relay that says yes to
// everything.
func TestRecord(t *testing.T) {
	need.Asked(t, *record, "-record")
	need.Root(t) // Dovecot's worker changes its user
	dovecot := need.Dovecot(t)
	var out strings.Builder
	for _, s := range setups {
		w := startWorker(t, dovecot.Libexec, s.ehlo, s.workarounds)
		for _, command := range goldenCommands(s.name) {
			g := w.ask(t, command)
			fmt.Fprintf(&out, "%s\t%s\t%s\t%s\n", s.name, strconv.QuoteToASCII(command), strconv.QuoteToASCII(g.relayed), strconv.QuoteToASCII(g.reply))
		}
	}
	writeGolden(t, "commands-"+dovecot.Version+".txt", out.String())
	out.Reset()
	for _, s := range []int{0, 2} { // with enhanced codes and without
		w := startWorker(t, dovecot.Libexec, setups[s].ehlo, "")
		for _, reply := range goldenReplies() {
			fmt.Fprintf(&out, "%s\t%s\t%s\n", setups[s].name, strconv.QuoteToASCII(reply), strconv.QuoteToASCII(w.forwarded(t, reply)))
		}
	}
	writeGolden(t, "replies-"+dovecot.Version+".txt", out.String())
}

func writeGolden(t *testing.T, name, text string) {
	if err := os.MkdirAll("testdata", 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join("testdata", name), []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
}

// forwarded returns what the client hears when the relay answers RSET with reply: the lines,
// or "bad: " and what the log says, if the relay's connection is given up.
func (w *worker) forwarded(t *testing.T, reply string) string {
	w.next <- reply
	fmt.Fprintf(w.to, "RSET\r\n")
	got := w.read(t)
	if got == "" {
		t.Fatalf("no answer to %q", reply)
	}
	if code := got[:3]; code != "421" && code != "221" { // it takes both for its own, and ends
		return got
	}
	<-w.log.ended
	if strings.HasSuffix(got, "(bad reply)\r\n") {
		_, why, _ := strings.Cut(w.log.text.String(), "Invalid command reply: ")
		why, _, _ = strings.Cut(why, "\n")
		got = "bad: " + why
	}
	w.start(t)
	return got
}

// A logPipe keeps what a worker logs.
type logPipe struct {
	ended chan struct{}
	text  strings.Builder
}

func (l *logPipe) read(r io.Reader) {
	io.Copy(&l.text, r)
	close(l.ended)
}

// A worker is a running submission of Dovecot and its relay.
type worker struct {
	start   func(t *testing.T)
	to      io.Writer
	from    *os.File
	br      *bufio.Reader
	relayed chan string
	next    chan string // what the relay answers to the next RSET
	log     *logPipe
	mail    bool // a transaction is open
}

func startWorker(t *testing.T, libexec, ehlo, workarounds string) *worker {
	dir, err := os.MkdirTemp("", "record")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	w := &worker{relayed: make(chan string, 1000), next: make(chan string, 1)}
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go w.relay(c, strings.Fields(ehlo)) // ends when the worker closes
		}
	}()
	conf := fmt.Sprintf("base_dir = %[1]s\nstate_dir = %[1]s\nprotocols = submission\nlog_path = %[1]s/log\nhostname = host.test\nssl = no\n"+
		"mail_location = maildir:%[1]s/mail\nmail_uid = nobody\nmail_gid = nogroup\nfirst_valid_uid = 1\n"+
		"submission_relay_host = 127.0.0.1\nsubmission_relay_port = %[2]d\nsubmission_client_workarounds = %[3]s\n",
		dir, l.Addr().(*net.TCPAddr).Port, workarounds)
	if err := os.WriteFile(filepath.Join(dir, "conf"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	w.start = func(t *testing.T) {
		cmd := exec.Command(filepath.Join(libexec, "submission"), "-c", filepath.Join(dir, "conf"))
		cmd.Env = []string{"USER=alice", "HOME=" + dir, "PATH=/usr/bin:/bin"}
		// Pipes, because it refuses to be started by inetd.
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		stderr, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		w.to, w.from = in, out.(*os.File)
		w.log = &logPipe{ended: make(chan struct{})}
		go w.log.read(stderr) // ends when the worker does
		w.br, w.mail = bufio.NewReader(out), false
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		w.read(t) // 235
	}
	w.start(t)
	return w
}

func (w *worker) relay(c net.Conn, ehlo []string) {
	defer c.Close()
	br := bufio.NewReader(c)
	fmt.Fprintf(c, "220 relay.test\r\n")
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimSuffix(line, "\r\n")
		var n int
		switch _, err := fmt.Sscanf(line, "BDAT %d", &n); {
		case err == nil:
			body := make([]byte, n)
			for i := range body {
				body[i], _ = br.ReadByte()
			}
			line = string(body)
		case strings.HasPrefix(line, "EHLO"):
			fmt.Fprintf(c, "250-relay.test\r\n")
			for _, e := range ehlo {
				fmt.Fprintf(c, "250-%s\r\n", e)
			}
			fmt.Fprintf(c, "250 HELP\r\n")
			continue
		}
		if line == "RSET" {
			select {
			case reply := <-w.next:
				io.WriteString(c, reply)
				continue
			default:
			}
		}
		w.relayed <- line
		io.WriteString(c, "250 Ok\r\n")
	}
}

// read returns a reply, all its lines; "" at the end of the worker.
func (w *worker) read(t *testing.T) string {
	w.from.SetReadDeadline(time.Now().Add(20 * time.Second))
	reply := ""
	for {
		line, err := w.br.ReadString('\n')
		if err != nil {
			return ""
		}
		reply += line
		if len(line) > 3 && line[3] == ' ' {
			return reply
		}
	}
}

// exchange returns what came of a command; reply is "" if the worker died.
func (w *worker) exchange(t *testing.T, command string) (relayed, reply string) {
	fmt.Fprintf(w.to, "%s\r\n", command)
	reply = strings.TrimSuffix(w.read(t), "\r\n")
	if reply == "" {
		t.Logf("no answer to %q", command)
		w.start(t)
	}
	for {
		select {
		case line := <-w.relayed:
			relayed = line
		default:
			return relayed, reply
		}
	}
}

// ask sends a command in the state that it needs. Of EHLO and HELO it records how the
// Received header names the client.
func (w *worker) ask(t *testing.T, command string) goldenLine {
	word, _, _ := strings.Cut(command, " ")
	inMail := word == "RCPT"
	if w.mail != inMail {
		w.exchange(t, "RSET")
		if inMail {
			w.exchange(t, "MAIL FROM:<>")
		}
		w.mail = inMail
	}
	g := goldenLine{command: command}
	g.relayed, g.reply = w.exchange(t, command)
	switch {
	case word == "MAIL":
		w.exchange(t, "RSET")
	case word == "EHLO" || word == "HELO":
		w.exchange(t, "MAIL FROM:<>")
		w.exchange(t, "RCPT TO:<a@b>")
		message, _ := w.exchange(t, "BDAT 0 LAST")
		g.relayed, _, _ = strings.Cut(message, "\r\n")
		g.reply = g.reply[:3]
	case !strings.HasPrefix(g.reply, "2"):
		w.exchange(t, "NOOP") // ends the row of bad commands
	}
	return g
}

// goldenCommands makes the commands to record: well-formed ones, known traps, and those
// with a character or a word changed. It makes the same ones every time.
func goldenCommands(setup string) []string {
	r := rand.New(rand.NewPCG(5321, uint64(len(setup))))
	var out []string
	seen := map[string]bool{}
	add := func(s string) {
		s = strings.TrimRight(s, " \t") // the line reader does so
		if !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	for _, word := range []string{"MAIL FROM:", "RCPT TO:"} {
		params := mailParams
		if word == "RCPT TO:" {
			params = rcptParams
		}
		for _, path := range pathSeeds {
			add(word + path)
			add(word + " " + path)
			add(word + path + " " + pick(r, params))
			for range 6 {
				add(word + mutate(r, path))
			}
		}
		for _, p := range params {
			add(word + "<a@b> " + p)
			add(word + "<a@b>" + p)
			add(word + "<a@b> " + p + " " + p)
			add(word + "<a@b> " + p + " " + pick(r, params))
			for range 6 {
				add(word + "<a@b> " + mutate(r, p))
			}
		}
		for _, s := range []string{"", " ", "FROM", "TO", "FROM:", "TO:", "from:<a@b>", "to:<a@b>", "FROM :<a@b>", "FROM<a@b>", "<a@b>"} {
			add(word[:5] + s)
		}
	}
	for _, word := range []string{"VRFY", "NOOP"} {
		for _, s := range stringSeeds {
			add(word + " " + s)
			for range 4 {
				add(word + " " + mutate(r, s))
			}
		}
	}
	if setup == "full" {
		for _, s := range heloSeeds {
			add("EHLO " + s)
			add("HELO " + s)
			for range 3 {
				add("EHLO " + mutate(r, s))
			}
		}
	}
	return out
}

// goldenReplies makes the relay's replies to record, a single one of which ends the session
// if it is bad.
func goldenReplies() []string {
	r := rand.New(rand.NewPCG(5321, 0))
	var out []string
	for _, s := range replySeeds {
		out = append(out, s)
		for range 4 {
			// A reply remains one only if its line end stays.
			body, eol, _ := strings.Cut(s, "\n")
			if eol == "" {
				if m := mutate(r, strings.TrimSuffix(body, "\r")) + "\r\n"; len(m) < 4 || m[3] != '-' { // else it would not be complete
					out = append(out, m)
				}
			}
		}
	}
	return out
}

var replySeeds = []string{
	"250 2.0.0 Ok\r\n", "250 Ok\r\n", "250\r\n", "250 \r\n", "250 \n", "250 ok\n", "251 2.1.5 x\r\n", "250  two\r\n", "250 2.0.0  two\r\n", "250 2.0.0\tx\r\n",
	"250-2.0.0 a\r\n250 2.0.0 b\r\n", "250-2.0.0 a\r\n250 2.1.0 b\r\n", "250-a\r\n250 2.1.0 bb\r\n", "250-2.1.0 a\r\n250-\r\n250 2.1.0 c\r\n",
	"250-5.1.0 a\r\n250 2.1.0 b\r\n", "250 5.1.0 wrong\r\n", "550 5.1.1 no\r\n", "550 2.1.1 no\r\n", "450 4.2.1 later\r\n", "450 busy\r\n", "354 go\r\n", "354 3.0.0 go\r\n",
	"334 x\r\n", "220 hello\r\n", "221 bye\r\n", "299 x\r\n", "259 x\r\n", "552 5.3.4 big\r\n", "559 x\r\n", "500 what\r\n", "502 5.5.1 no\r\n",
	"250 2.123.456 x\r\n", "250 2.1234.1 x\r\n", "250 2..1 xxx\r\n", "250 2.1. xxx\r\n", "250 3.1.1 xxx\r\n", "250 2.1.1-xxx\r\n", "250 2.1 xxx\r\n",
	"199 x\r\n", "600 x\r\n", "260 x\r\n", "25 x\r\n", "2500 x\r\n", "abc\r\n", "\r\n", "250x\r\n", "250_x\r\n", "250-a\r\n251 b\r\n", "250-a\r\n25 b\r\n",
	"250 a\x00b\r\n", "250 a\x01b\r\n", "250 a\x7fb\r\n", "250 caf\xc3\xa9\r\n", "250 a\rb\r\n", "250 a\r\r\n", "250\rx\n", "250 \x1b[0m\r\n",
	"421 4.3.2 relay.test shutting down\r\n", "421 4.3.2 relay.test\r\n", "421 relay.test down\r\n", "421-4.3.2 relay.test a b\r\n421 4.3.2 c d\r\n", "421 5.3.2 relay.test x\r\n", "421\r\n",
}

func pick(r *rand.Rand, from []string) string { return from[r.IntN(len(from))] }

// mutate changes something in s. The result is a line that the line reader lets through.
func mutate(r *rand.Rand, s string) string {
	const special = "<>@.,:;\"\\[]()=+-_ \tAa1!~%*"
	b := []byte(s)
	for range 1 + r.IntN(2) {
		at := r.IntN(len(b) + 1)
		c := special[r.IntN(len(special))]
		switch r.IntN(4) {
		case 0: // insert
			b = append(b[:at:at], append([]byte{c}, b[at:]...)...)
		case 1: // remove
			if at < len(b) {
				b = append(b[:at:at], b[at+1:]...)
			}
		case 2: // replace
			if at < len(b) {
				b[at] = c
			}
		case 3: // cut
			b = b[:at]
		}
	}
	if string(b) == "" || b[0] == ' ' || b[0] == '\t' {
		b = append([]byte{'x'}, b...)
	}
	return strings.ToValidUTF8(string(b), "?")
}

var pathSeeds = []string{
	"<>", "<a@b>", "<alice@example.org>", "a@b", "<a>", "a", ">", "<", "<a@b", "a@b>", "<postmaster>", "<PostMaster>", "postmaster",
	"<a@>", "<@>", "<@b>", "<a@b@c>", "<a b@c>", `<"a b"@c>`, `<"a"@c>`, `<"a\b"@c>`, `<"a\"b"@c>`, `<"a\\b"@c>`, `<""@c>`, `<"">`,
	`<"a`, `<"a"`, `<"a"@`, `<"a\`, `<"a\@c>`, `<"a"b@c>`, `<a"b"@c>`, "<.a@c>", "<a.@c>", "<a..b@c>", "<.@c>", "<..>", "<a.b.c@d.e.f>",
	"<a@b.>", "<a@.b>", "<a@b..c>", "<a@-b>", "<a@b->", "<a@b_c>", "<a@_>", "<a@b!c>", "<a@b c>", "<a@münchen.example>", "<é@c>", "é@c",
	"<a@[1.2.3.4]>", "<a@[1.2.3]>", "<a@[1.2.3.256]>", "<a@[001.002.0003.4]>", "<a@[1.2.3.4>", "<a@[1.2.3.4x]>", "<a@[]>", "<a@[1]>", "<a@[1",
	"<a@[IPv6:::1]>", "<a@[ipv6:2001:db8::1]>", "<a@[IPv6:1.2.3.4]>", "<a@[IPv6:::1%eth0]>", "<a@[IPv6:::ffff:1.2.3.4]>", "<a@[IPv6:]>",
	"<a@[IPv6:1:2:3:4:5:6:7:8:9]>", "<a@[IPv6:::01.2.3.4]>", "<a@[IPv6:1::2::3]>", "<a@[IPv6:00001::]>", "<a@[x:y]>", "<a@[x-:y]>", "<a@[-x:y z]>",
	"<a@[tag:a(b)<c>@d,e;f:g\"h.i]>", "<a@[tag:a\\b]>", "<a@[tag:a[b]>", "<@x:a@b>", "<@x,@y:a@b>", "<@x,@y:>", "<@x:>", "<@x>", "<@x,y:a@b>", "<@x,@y a@b>",
	"<@:a@b>", "<@x.:a@b>", "<@[1.2.3.4]:a@b>", "@x:a@b", `<@x,@y:"q s"@b>`, "<a@b> ", "<a@b>x", "<a@b>\tSIZE=1", "<a@b>  SIZE=1", "<a@b> SIZE=1  BODY=7BIT",
	"<a+b=c@d>", "<!#$%&'*+-/=?^_`{|}~@c>", "<a(c)@d>", "<a,b@c>", "<a;b@c>", "<a:b@c>", "<a\\b@c>", "<<a@b>>", "<a@b><c@d>", "\ta@b", "<a\t@b>", "<a@\tb>",
	"<" + strings.Repeat("l", 200) + "@" + strings.Repeat("d", 300) + ">",
}

var mailParams = []string{
	"SIZE=0", "SIZE=1", "SIZE=1000", "size=5", "SIZE", "SIZE=", "SIZE=x", "SIZE=-1", "SIZE=+1", "SIZE=1x", "SIZE=007", "SIZE=9223372036854774783",
	"SIZE=18446744073709551616", "SIZE=99999999999999999999999",
	"BODY=7BIT", "BODY=8BITMIME", "BODY=8bitmime", "BODY=BINARYMIME", "BODY", "BODY=", "BODY=FOO", "body=7bit",
	"RET=FULL", "RET=HDRS", "ret=full", "RET", "RET=", "RET=X", "ENVID=abc", "ENVID=", "ENVID", "ENVID=a+20b", "ENVID=a+2Bb", "ENVID=+ZZ", "ENVID=+2", "ENVID=+",
	"ENVID=a+00b", "ENVID=a+0Ab", "ENVID=a+FFb", "ENVID=a+3Db", "ENVID=a+09b", "ENVID=a=b", "ENVID=+2b", "ENVID=a+C3+A9",
	"AUTH=<>", "AUTH=", "AUTH", "AUTH=a@b", "AUTH=alice", "AUTH=+3C+3E", "AUTH=a+40b", "AUTH=a@", "AUTH=a@b@c", "AUTH=<a@b>", "AUTH=+22a+20b+22@c", "AUTH=a@[1.2.3.4]",
	"AUTH=+00", "AUTH=+", "AUTH=a+20b", "AUTH=@b", "AUTH=a@b.", "SMTPUTF8", "REQUIRETLS", "FOO", "FOO=1", "FOO=", "FOO=a=b", "-FOO", "F_O", "F-O=1", "=x", "é=1", "X=é",
	"NOTIFY=NEVER", "HOLDFOR=5", "MT-PRIORITY=3",
}

var rcptParams = []string{
	"NOTIFY=NEVER", "NOTIFY=SUCCESS", "NOTIFY=FAILURE", "NOTIFY=DELAY", "NOTIFY=SUCCESS,FAILURE,DELAY", "NOTIFY=DELAY,SUCCESS", "notify=delay,failure", "NOTIFY",
	"NOTIFY=", "NOTIFY=,", "NOTIFY=,DELAY,,", "NOTIFY=NEVER,DELAY", "NOTIFY=DELAY,NEVER", "NOTIFY=NEVER,NEVER", "NOTIFY=NEVER,FOO", "NOTIFY=FOO", "NOTIFY=FOO,DELAY",
	"NOTIFY=NEVER,DELAY,FOO", "NOTIFY=DELAY,DELAY",
	"ORCPT=rfc822;a@b", "ORCPT=RFC822;a@b", "ORCPT=rfc822;a+40b", "ORCPT=rfc822;+22a+20b+22@c", "ORCPT=rfc822;+22a+22@c", "ORCPT=rfc822;a", "ORCPT=rfc822;", "ORCPT=rfc822",
	"ORCPT=", "ORCPT", "ORCPT=;a@b", "ORCPT=x;", "ORCPT=x;anything", "ORCPT=x;a+20b+2Bc+3Dd", "ORCPT=X-y;a", "ORCPT=x.y;a", "ORCPT=x;a+ZZ", "ORCPT=x;+", "ORCPT=x;a+00", "ORCPT=x;a+0A",
	"ORCPT=x;a+FF", "ORCPT=x;a+09b", "ORCPT=rfc822;Name+20<a@b>", "ORCPT=rfc822;<a@b>", "ORCPT=rfc822;a@b+20(comment)", "ORCPT=rfc822;(c)a@b", "ORCPT=rfc822;a@b,c@d", "ORCPT=rfc822;a@b,",
	"ORCPT=rfc822;a@b+20c", "ORCPT=rfc822;a+20@b", "ORCPT=rfc822;a+20.+20b@c", "ORCPT=rfc822;a..b@c", "ORCPT=rfc822;.a@b", "ORCPT=rfc822;a.@b", "ORCPT=rfc822;a@b.", "ORCPT=rfc822;a@[1.2.3.4]",
	"ORCPT=rfc822;a@[x+20y]", "ORCPT=rfc822;a@[x", "ORCPT=rfc822;g:a@b+3B", "ORCPT=rfc822;g:;", "ORCPT=rfc822;<>", "ORCPT=rfc822;<@x:a@b>", "ORCPT=rfc822;a@b@c", "ORCPT=rfc822;+22a", "ORCPT=rfc822;a@!",
	"ORCPT=rfc822;+22a+5Cb+22@c", "ORCPT=rfc822;+22a+5C+22b+22@c", "ORCPT=rfc822;a+09@b", "ORCPT=rfc822;+22a+09b+22@c", "ORCPT=rfc822;(a", "ORCPT=rfc822;a@b+20(x", "ORCPT=utf-8;a",
	"FOO", "FOO=1", "SIZE=1", "=x", "ORCPT=a=b",
}

var stringSeeds = []string{
	"x", "atom", `"quoted"`, `"a b"`, `""`, `"`, `"a`, `"a\`, `"a\"b"`, `"a\\b"`, `"a\b"`, "a b", "a@b", "<a@b>", "a.b", "é", `"é"`, `a"b"`, `"a"b`, "a\tb", "\"a\tb\"", "!#$", "(c)", "a\\b",
	strings.Repeat("v", 500),
}

var heloSeeds = []string{
	"a", "client.example.org", "a b", "-", "_", "a..b", "a.", ".a", "[1.2.3.4]", "[1.2.3.4", "[1.2.3]", "[IPv6:::1]", "[IPv6:x]", "[tag:x]", "[tag:]", "[]", "a!b", "é", "a.b.c d e", "1.2.3.4", "a@b",
	"[1.2.3.4]x", "[1.2.3.4] x", "a\tb", "(x)",
}
