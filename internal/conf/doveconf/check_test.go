package doveconf

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dovetail/internal/testkit/need"
)

// write makes files in a new folder that others cannot enter.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func call(args ...string) (stdout, stderr string, status int) {
	var o, e bytes.Buffer
	status = Main(args, Env{Stdout: &o, Stderr: &e, LookupEnv: func(string) (string, bool) { return "", false }})
	return o.String(), e.String(), status
}

// certificate makes a certificate for names and its key, both PEM.
func certificate(t *testing.T, until time.Time, names ...string) (cert, key string) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names, NotBefore: until.Add(-1000 * time.Hour), NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, priv.Public(), priv)
	if err != nil {
		t.Fatal(err)
	}
	pkcs, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs}))
}

// What check says, as a pattern for each line that begins with error or warning; the exit
// status is the last.
func TestCheck(t *testing.T) {
	next := time.Now().Add(1000 * time.Hour)
	cert, key := certificate(t, next, "mx.example.org")
	old, oldKey := certificate(t, time.Now().Add(-time.Hour), "mx.example.org")
	const base = "protocols = submission\nhostname = mx.example.org\n"
	for _, x := range []struct {
		name, conf string
		status     int
		want       []string
	}{
		{"nothing wrong", base + "ssl_cert = <cert\nssl_key = <key\n", 0, nil},
		{"all errors at once", base + "foo = 1\nssl = maybe\nservice x {\n  client_limit = many\n}\n}\n", 2,
			[]string{"error.*line 3: Unknown setting: foo", "error.*line 4: Invalid value: maybe", "error.*line 6: Invalid number many", "error.*line 8: Unexpected '}'"}},
		{"expired", base + "ssl_cert = <old\nssl_key = <oldkey\n", 1, []string{"warning.*line 3: ssl_cert: the certificate expired on"}},
		{"not a pair", base + "ssl_cert = <cert\nssl_key = <oldkey\n", 2, []string{"error.*line 4: ssl_cert and ssl_key do not make a pair"}},
		{"another name", "protocols = submission\nhostname = other.example\nssl_cert = <cert\nssl_key = <key\n", 1, []string{"warning.*the certificate is not for other.example"}},
		{"local_name", base + "ssl_key = <key\nlocal_name a.example {\n  ssl_cert = <cert\n}\n", 1, []string{"warning.*line 5: ssl_cert: the certificate is not for a.example"}},
		{"memory", base + "service submission {\n  executable = /opt/submission\n}\nservice submission-login {\n  vsz_limit = 0\n}\n", 1, []string{"warning.*line 3: service.submission.: vsz_limit = 256 M is too small"}},
		{"what is different", base + "login_plugins = x\nprotocol submission {\n  mail_plugins = quota\n}\nmail_plugins = acl\n", 1,
			[]string{"warning.*line 3: login_plugins has no effect", "warning.*line 5: mail_plugins has no effect", "warning.*line 7: Global setting mail_plugins"}},
		{"2.4", "dovecot_config_version = 2.4.4\ndovecot_storage_version = 2.4.4\nprotocols = submission\nssl_cert = <x\nservice submission {\n  vsz_limit = 64M\n}\nssl_server_cert_file = old\nssl_server_key_file = key\n", 2,
			[]string{"error.*line 4: ssl_cert: Can't open file", "warning.*line 6: service.submission.: vsz_limit", "warning.*line 8:.*expired", "error.*line 9:.*pair"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			dir := write(t, map[string]string{"main.conf": x.conf, "cert": cert, "key": key, "old": old, "oldkey": oldKey})
			out, errs, status := call("check", filepath.Join(dir, "main.conf"))
			var got []string
			for _, l := range strings.Split(out, "\n") {
				if strings.HasPrefix(l, "error: ") || strings.HasPrefix(l, "warning: ") {
					got = append(got, l)
				}
			}
			same := len(got) == len(x.want)
			for i := range min(len(got), len(x.want)) {
				same = same && regexp.MustCompile(x.want[i]).MatchString(got[i])
			}
			if !same || status != x.status {
				t.Errorf("status %d, want %d\n%s%s", status, x.status, out, errs)
			}
		})
	}
}

func TestCheckOfOpenFiles(t *testing.T) {
	dir := write(t, map[string]string{"main.conf": "submission_relay_password = x\nssl_key = <key\nssl_cert = <key\n", "key": "k"})
	for _, p := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "main.conf")
	if !readableByAll(filepath.Dir(filepath.Dir(dir))) {
		need.Missing(t, "a temporary folder that all may read")
	}
	for _, name := range []string{"main.conf", "key"} {
		if err := os.Chmod(filepath.Join(dir, name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, _, _ := call("check", file)
	for _, want := range []string{"submission_relay_password holds a secret, and everyone can read", "ssl_key: everyone can read"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
}

func TestCheckJSON(t *testing.T) {
	dir := write(t, map[string]string{"main.conf": "# c\n  hostnam = x \xff<&>\nssl = x\n"})
	out, _, status := call("check", "--json", filepath.Join(dir, "main.conf"))
	var got struct {
		Errors, Warnings int
		Findings         []finding
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || status != 2 {
		t.Fatalf("%v, status %d: %s", err, status, out)
	}
	f := got.Findings[0]
	if got.Errors != 2 || f.Line != 2 || f.Column != 3 || f.Setting != "hostnam" || !strings.Contains(f.Hint, "`hostname`") || !strings.Contains(f.Source, "<&>") {
		t.Errorf("%s", out)
	}
	if out, _, status := call("check", "--json", "/dev/null"); status != 0 || !strings.Contains(out, `"findings": []`) {
		t.Errorf("status %d: %s", status, out)
	}
}

// Nothing crashes or hangs, whatever the file is.
func TestStrangeFiles(t *testing.T) {
	dir := write(t, map[string]string{
		"loop.conf": "!include ./loop.conf\n", "loop24.conf": "dovecot_config_version = 2.4.4\n!include ./loop24.conf\n",
		"deep.conf":   strings.Repeat("service x {\n", 20_000),
		"deep24.conf": "dovecot_config_version = 2.4.4\n" + strings.Repeat("mailbox x {\n", 20_000),
		"long.conf":   "hostname = " + strings.Repeat("x \\\n", 200_000) + "y\n",
		"bin.conf":    string([]byte{0, 1, 2, 0xff, '\n', '{', '\n', '}', 0}),
		"dir/x":       "",
	})
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	files := []string{"/dev/zero", "/dev/null", fifo, filepath.Join(dir, "dir"), filepath.Join(dir, "nosuch")}
	for _, f := range []string{"loop.conf", "loop24.conf", "deep.conf", "deep24.conf", "long.conf", "bin.conf"} {
		files = append(files, filepath.Join(dir, f))
	}
	start := time.Now()
	var waiting sync.WaitGroup
	for _, f := range files {
		for _, args := range [][]string{{"-n", "-c", f}, {"check", f}, {"check", "--dialect=2.4", f}, {"convert", "--to", "2.4", f}, {"--dialect", "2.4", "-a", "-c", f}} {
			if f == fifo { // waits for a writer
				waiting.Go(func() { call(args...) })
			} else {
				call(args...)
			}
		}
	}
	waiting.Wait()
	if d := time.Since(start); d > 2*time.Minute {
		t.Errorf("it took %v", d)
	}
}

// Colour and marks are for terminals; here is none.
func TestPlainOnPipes(t *testing.T) {
	dir := write(t, map[string]string{"main.conf": "foo = 1\n"})
	out, _, _ := call("check", filepath.Join(dir, "main.conf"))
	if strings.Contains(out, "\x1b") || !strings.Contains(out, "^^^") {
		t.Errorf("%q", out)
	}
}
