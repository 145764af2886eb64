package clients

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net"
	"net/smtp"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"dovetail/internal/testkit/need"
)

// A way is how a connection is secured.
type way string

const (
	startTLS way = "starttls"
	implicit way = "tls"
)

// A job is a message to be sent.
type job struct {
	s    *server
	way  way
	file string // the message, with CRLF
	text []byte // what is in the file
}

func (j job) port() string {
	if j.way == implicit {
		return strconv.Itoa(j.s.tlsPort)
	}
	return strconv.Itoa(j.s.port)
}

// programs run a mail program as its manual says, with the server's certificate checked.
var programs = map[string]func(t *testing.T, j job) *exec.Cmd{
	"swaks": func(t *testing.T, j job) *exec.Cmd {
		how := map[way]string{startTLS: "--tls", implicit: "--tls-on-connect"}[j.way]
		// It puts a line end behind all that it is given.
		if err := os.WriteFile(j.file, bytes.TrimSuffix(j.text, []byte("\r\n")), 0o600); err != nil {
			t.Fatal(err)
		}
		return exec.Command(need.Program(t, "swaks"), "--server", "127.0.0.1", "--port", j.port(), how, "--tls-verify", "--tls-ca-path", j.s.ca,
			"--auth", "PLAIN", "--auth-user", "alice", "--auth-password", password, "--from", sender, "--to", rcpt, "--data", "@"+j.file, "--suppress-data")
	},
	"curl": func(t *testing.T, j job) *exec.Cmd {
		how := map[way]string{startTLS: "smtp", implicit: "smtps"}[j.way]
		return exec.Command(need.Program(t, "curl"), "--silent", "--show-error", "--url", how+"://127.0.0.1:"+j.port(), "--ssl-reqd", "--cacert", j.s.ca,
			"--user", "alice:"+password, "--mail-from", sender, "--mail-rcpt", rcpt, "--upload-file", j.file)
	},
	"msmtp": func(t *testing.T, j job) *exec.Cmd {
		how := map[way]string{startTLS: "on", implicit: "off"}[j.way]
		cmd := exec.Command(need.Program(t, "msmtp"), "--host=127.0.0.1", "--port="+j.port(), "--tls=on", "--tls-starttls="+how, "--tls-trust-file="+j.s.ca,
			"--auth=plain", "--user=alice", "--passwordeval=echo "+password, "--from="+sender, rcpt)
		cmd.Stdin = bytes.NewReader(bytes.ReplaceAll(j.text, []byte("\r\n"), []byte("\n"))) // as Unix has text
		return cmd
	},
	"Python smtplib": func(t *testing.T, j job) *exec.Cmd {
		return exec.Command(need.Program(t, "python3"), "testdata/send.py", "127.0.0.1", j.port(), string(j.way), j.s.ca, "alice", password, sender, rcpt, j.file)
	},
	"nodemailer": func(t *testing.T, j job) *exec.Cmd {
		node := need.Program(t, "node")
		if _, err := os.Stat("testdata/node/node_modules/nodemailer"); err != nil {
			need.Missing(t, "nodemailer, which `make test` has npm install")
		}
		return exec.Command(node, "testdata/node/send.js", "127.0.0.1", j.port(), string(j.way), j.s.ca, "alice", password, sender, rcpt, j.file)
	},
}

// goSMTP is Go's own client.
func goSMTP(j job) error {
	config := &tls.Config{RootCAs: j.s.pair.Pool(), ServerName: "mail.example.test"}
	addr := net.JoinHostPort("127.0.0.1", j.port())
	var c *smtp.Client
	var err error
	if j.way == implicit {
		var conn *tls.Conn
		if conn, err = tls.Dial("tcp", addr, config); err == nil {
			c, err = smtp.NewClient(conn, "127.0.0.1")
		}
	} else if c, err = smtp.Dial(addr); err == nil {
		err = c.StartTLS(config)
	}
	if err != nil {
		return err
	}
	defer c.Close()
	for _, step := range []func() error{
		func() error { return c.Auth(smtp.PlainAuth("", "alice", password, "127.0.0.1")) },
		func() error { return c.Mail(sender) },
		func() error { return c.Rcpt(rcpt) },
		func() error {
			w, err := c.Data()
			if err == nil {
				_, err = w.Write(j.text)
			}
			if err == nil {
				err = w.Close()
			}
			return err
		},
		c.Quit,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// header is what every message begins with; programs add what they miss.
const header = "Date: Tue, 24 Nov 2026 20:00:00 +0000\r\nFrom: Alice <" + sender + ">\r\nTo: <" + rcpt + ">\r\nMessage-ID: <1@example.org>\r\n"

// plain is a message of text, with lines that look like something else.
func plain() []byte {
	return []byte(header + "Subject: plain\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" +
		"Grüße!\r\n.\r\n..\r\n.x\r\n\r\nFrom here on\ttabs and  spaces \r\nQUIT\r\n" + strings.Repeat("long ", 199) + "\r\n.\r\n\r\n\r\nthe end\r\n")
}

// attachment is its size, in octets before they are encoded.
const attachment = 10 << 20

// mime is a message with a large attachment.
func mime(t *testing.T) []byte {
	t.Helper()
	raw := make([]byte, attachment)
	if _, err := rand.Read(raw); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	b.WriteString(header + "Subject: with an attachment\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=limit\r\n\r\n" +
		"--limit\r\nContent-Type: text/plain\r\n\r\nSee the attachment.\r\n\r\n--limit\r\nContent-Type: application/octet-stream\r\n" +
		"Content-Disposition: attachment; filename=noise.bin\r\nContent-Transfer-Encoding: base64\r\n\r\n")
	for text := base64.StdEncoding.EncodeToString(raw); text != ""; {
		n := min(76, len(text))
		b.WriteString(text[:n] + "\r\n")
		text = text[n:]
	}
	b.WriteString("--limit--\r\n")
	return b.Bytes()
}

// Each program sends each message in each way; but for the Received field they arrive as
// they were sent.
func TestClients(t *testing.T) {
	s := installed(t)
	messages := map[string][]byte{"plain": plain(), "10 MB attachment": mime(t)}
	send := func(t *testing.T, run func(t *testing.T, j job) error) {
		for name, text := range messages {
			file := filepath.Join(t.TempDir(), "message.eml")
			if err := os.WriteFile(file, text, 0o600); err != nil {
				t.Fatal(err)
			}
			for _, w := range []way{startTLS, implicit} {
				t.Run(string(w)+"/"+name, func(t *testing.T) {
					if err := run(t, job{s, w, file, text}); err != nil {
						t.Fatal(err)
					}
					got := s.mta.next(t)
					if got.from != sender || len(got.to) != 1 || got.to[0] != rcpt {
						t.Errorf("from %q to %q", got.from, got.to)
					}
					same(t, got.data, text)
				})
			}
		}
	}
	for name, command := range programs {
		t.Run(name, func(t *testing.T) {
			send(t, func(t *testing.T, j job) error {
				out, err := command(t, j).CombinedOutput()
				if err != nil {
					return fmt.Errorf("%w\n%.2000s", err, out)
				}
				return nil
			})
		})
	}
	t.Run("Go net/smtp", func(t *testing.T) { send(t, func(_ *testing.T, j job) error { return goSMTP(j) }) })
}

// same fails the test unless got is want behind one Received field.
func same(t *testing.T, got, want []byte) {
	t.Helper()
	rest, ok := bytes.CutPrefix(got, []byte("Received: from "))
	if !ok {
		t.Fatalf("no Received field: %.200q", got)
	}
	for {
		_, after, ok := bytes.Cut(rest, []byte("\r\n"))
		if !ok {
			t.Fatalf("no end of the Received field: %.200q", got)
		}
		if rest = after; len(rest) == 0 || rest[0] != ' ' && rest[0] != '\t' {
			break
		}
	}
	if bytes.Equal(rest, want) {
		return
	}
	n := 0
	for n < min(len(rest), len(want)) && rest[n] == want[n] {
		n++
	}
	around := func(b []byte) []byte { return b[max(0, min(n-40, len(b))):min(len(b), n+40)] }
	t.Errorf("%d octets arrived, %d were sent; they differ from %d on:\n%q\n%q", len(rest), len(want), n, around(rest), around(want))
}
