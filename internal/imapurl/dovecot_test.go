package imapurl

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"dovetail/internal/testkit/client"
	"dovetail/internal/testkit/instance"
	"dovetail/internal/testkit/relay"
)

const goldenFile = "testdata/burl-2.3.19.1.txt"

// rows returns the lines of the golden file: URL, TAB, the worker's answer. {token} stands
// for a right token of the URL, {bad} for a wrong one; {dies} is a worker that crashes.
func rows(t testing.TB) (rows [][2]string) {
	t.Helper()
	b, err := os.ReadFile(goldenFile)
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(b)) {
		if url, answer, _ := strings.Cut(strings.TrimSuffix(l, "\n"), "\t"); url != "" && url[0] != '#' {
			rows = append(rows, [2]string{url, answer})
		}
	}
	return rows
}

const (
	badToken = "010000000000000000000000000000000000000000"
	host     = "imap.example.test"
)

// The golden file is what the real worker answers. UPDATE=1 writes it anew.
func TestGoldenIsDovecots(t *testing.T) {
	r := relay.Start(t, relay.Options{Discard: true})
	d := instance.Start(t, fmt.Sprintf(`
protocols = imap submission
submission_relay_host = 127.0.0.1
submission_relay_port = %d
imap_urlauth_host = %s
mail_attribute_dict = file:%%h/dovecot-attributes
imap_metadata = yes
service imap-login {
  inet_listener imap {
    port = @PORT:imap@
  }
  inet_listener imaps {
    port = 0
  }
}
`, r.Port, host))
	save := exec.Command(d.Binaries.Doveadm, "-c", d.Conf, "save", "-u", "alice")
	save.Stdin = strings.NewReader("Subject: hello\r\nFrom: a@b\r\n\r\nbody of alice\r\n.dot line\r\n")
	if out, err := save.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	mint := minter(t, d.Addr("imap"))

	login := func() *client.Client {
		c := client.Dial(t, d.Addr("submission"), client.Options{})
		c.ExpectCode("220")
		c.Plain("alice", "pass")
		return c
	}
	c := login()
	var out strings.Builder
	b, _ := os.ReadFile(goldenFile)
	for l := range strings.Lines(string(b)) {
		url, want, _ := strings.Cut(strings.TrimSuffix(l, "\n"), "\t")
		if url == "" || url[0] == '#' {
			out.WriteString(l)
			continue
		}
		full := strings.ReplaceAll(url, "{bad}", badToken)
		if rump, ok := strings.CutSuffix(url, ":internal:{token}"); ok {
			full = rump + ":internal:" + mint(rump)
		}
		for _, cmd := range []string{"RSET", "MAIL FROM:<alice@example.test>", "RCPT TO:<bob@example.test>"} {
			c.Do(cmd, "250 ")
		}
		c.Send("BURL " + full + " LAST")
		got, err := c.TryLine()
		for l := got; err == nil && len(l) > 3 && l[3] == '-'; got += "|" + l {
			l, err = c.TryLine()
		}
		if err != nil {
			got, c = "{dies}", login()
		}
		if token := full[strings.LastIndexByte(full, ':')+1:]; strings.HasSuffix(url, "{token}") {
			got = strings.ReplaceAll(got, token, "{token}")
		}
		got = strings.ReplaceAll(got, badToken, "{bad}")
		out.WriteString(url + "\t" + got + "\n")
		if got != want && os.Getenv("UPDATE") == "" {
			t.Errorf("%s\n got %s\nwant %s", url, got, want)
		}
	}
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(goldenFile, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// minter returns a function that lets alice's IMAP session make a token for a rump.
func minter(t testing.TB, addr string) func(rump string) string {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	br := bufio.NewReader(conn)
	do := func(cmd string) (untagged string) {
		fmt.Fprintf(conn, "a %s\r\n", cmd)
		for {
			l, err := br.ReadString('\n')
			if err != nil {
				t.Fatalf("%s: %v", cmd, err)
			}
			if strings.HasPrefix(l, "a ") {
				if !strings.HasPrefix(l, "a OK") {
					t.Logf("%s: %s", cmd, l)
				}
				return untagged
			}
			untagged += l
		}
	}
	do("LOGIN alice pass")
	return func(rump string) string {
		answer := strings.Trim(strings.TrimSpace(do(`GENURLAUTH "`+rump+`" INTERNAL`)), `"`)
		return answer[strings.LastIndexByte(answer, ':')+1:]
	}
}
