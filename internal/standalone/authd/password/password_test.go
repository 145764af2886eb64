package password

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"flag"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dovetail/internal/testkit/need"

	"github.com/go-crypt/x/yescrypt"
)

var record = flag.Bool("record", false, "record testdata/doveadm.txt with the installed doveadm")

// testdata/doveadm.txt holds stored passwords, many of them made by doveadm, and what
// doveadm said of them: stored, user, password and verdict, separated by TAB. Its first
// line is the version. To record anew: go test ./.../password -run TestRecord -record
const vectors = "testdata/doveadm.txt"

const (
	user  = "alice@example.org"
	right = "secr3t pass"
	wrong = "Secr3t pass"
)

// handmade are stored passwords that doveadm does not make, with right as the password
// where there is one.
var handmade = []string{
	"{CRYPT}$y$j9T$abcdefgh$Z.ED5R0zMWeA9TqpGBnqO5lqmylED4HKYYgeyZRpNY/",
	"{CRYPT}$sha1$1000$abcdefgh$uoAiIj3Df.8dY5Ye56b/2hsLsaWf",
	"{CRYPT}$2b$05$abcdefghijklmnopqrstuuh4bSXEvnIZ17pExrpoTWNq7r6L30vrG",
	"{CRYPT}$5$rounds=1500$abcdefgh$EqCjYB7jitFbxPqL5zcOO1Dhq1ncDqvrEWq.jOquliC",
	"{MD5}5924964c7569e479c548a7a9335a2e94", "{MD5}WSSWTHVp5HnFSKepM1oulA==", "{md5}xyz",
	"$1$.t1nbgQF$OjQnxhukI6gVa4AbtZSYk.", "$1$.t1nbgQF$OjQnxhukI6gVa4AbtZSYk.$ignored",
	"{PLAIN-TRUNC}8-secr3t p", "{PLAIN-TRUNC}6-secr3t pass", "{PLAIN-TRUNC}8-secr3t", "{PLAIN-TRUNC}99999999999999999999-",
	"{sha}6gxAVHaJCUFWelSMhgtDB8APhtQ=", "{Sha.b64}6gxAVHaJCUFWelSMhgtDB8APhtQ=", "{SHA.base64}6gxAVHaJCUFWelSMhgtDB8APhtQ",
	"{SHA.hex}6gxAVHaJCUFWelSMhgtDB8APhtQ=", "{SHA}ea0c405476890941567a548c860b4307c00f86d4", "{SHA.foo}x",
	"{SSHA}AAAA", "{SMD5}AAAA", "{SHA}zz", "{SHA}", "{FOO}AAAA", "{}x", "{PLAIN}", "{CLEARTEXT}secr3t pass ",
	"{PBKDF2}x", "{PBKDF2}$1$salt$5000$zz", "{PBKDF2}$1$salt$5000", "{PBKDF2}$1$salt$x$a5d847094be16a5dc9439c7fb01c2daff5fffbb8",
	"{CRYPT}", "{CRYPT}x", "{CRYPT}$9$asd", "{CRYPT}*", "{CRYPT}!!", "{DES-CRYPT}..", "{DES-CRYPT}!!IDHOntWAg2.",
	"{MD5-CRYPT}x", "{MD5-CRYPT}", "{MD5-CRYPT}IDHOntWAg2.", "{MD5-CRYPT}$5$rounds=1500$abcdefgh$EqCjYB7jitFbxPqL5zcOO1Dhq1ncDqvrEWq.jOquliC",
	"{SHA512-CRYPT}$6$", "{SHA512-CRYPT}$6$rounds=x$salt$hash", "{SHA512-CRYPT}$6$rounds=10$salt$hash",
	"{BLF-CRYPT}x", "{BLF-CRYPT}$2y$05$0LSrxi6coXa7LyzlLyc6wOdi4wwKaWkfMK0UFzD0TIM/l9lBXUKE", "{BLF-CRYPT}$2y$03$0LSrxi6coXa7LyzlLyc6wOdi4wwKaWkfMK0UFzD0TIM/l9lBXUKE6",
	"{SCRAM-SHA-1}x", "{SCRAM-SHA-1}4095,m76hW33/y6uU4HbxSKeYzQ==,woqXI9D+0Nn+TOPitDnRJeEMkDE=,7924iWwDFcrMscCmLRqNlAmQ/a8=",
	"{SCRAM-SHA-256}4096,AAAA,woqXI9D+0Nn+TOPitDnRJeEMkDE=,7924iWwDFcrMscCmLRqNlAmQ/a8=", "{SCRAM-SHA-1}4096,AAAA,woqXI9D+0Nn+TOPitDnRJeEMkDE=,7924",
	"{CRAM-MD5}51ebf3e0", "{CRAM-MD5}51ebf3e04675f5c92a092e6d465d03d544c059367c0058f5d3b11ea61385b40g",
	"{ARGON2ID}x", "{ARGON2ID}$argon2id$v=19$m=8,t=0,p=1$5VQ1ORpnnTpZ2WskV0fYWg$Pu3HN7t0GtrzZwHgSIt66CwdO4gB/eNJCHY2W78dyPc",
	"{ARGON2I}$argon2id$v=19$m=65536,t=3,p=1$5VQ1ORpnnTpZ2WskV0fYWg$Pu3HN7t0GtrzZwHgSIt66CwdO4gB/eNJCHY2W78dyPc",
}

// ofLength are stored passwords of n octets, which password returns: of crypt(3), of which
// libcrypt takes 511 octets, and of those that have no bound.
func ofLength(t *testing.T, n int, doveadm func(args ...string) string) (password string, stored []string) {
	t.Helper()
	password = strings.Repeat("long", n/4+1)[:n]
	made := func(hash []byte, err error) {
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, "{CRYPT}"+string(hash))
	}
	made(shaCrypt(sha256.New, password, "$5$abcdefgh$"))
	made(shaCrypt(sha512.New, password, "$6$abcdefgh$"))
	made(sha1Crypt(password, "$sha1$100$abcdefgh$"))
	made(yescrypt.Hash([]byte(password), []byte("$y$j75$abcdefgh$")))
	made(desCrypt(password, "ab"), nil)
	hash := md5Crypt(password, "$1$abcdefgh$")
	made(hash, nil)
	for i, name := range []string{"{SHA256-CRYPT}", "{SHA512-CRYPT}"} {
		stored = append(stored, strings.Replace(stored[i], "{CRYPT}", name, 1))
	}
	stored = append(stored, "{MD5-CRYPT}"+string(hash), "{MD5}"+string(hash), "{DES-CRYPT}"+string(desCrypt(password, "ab")))
	for _, name := range []string{"BLF-CRYPT", "CRYPT", "PBKDF2", "SCRAM-SHA-256", "ARGON2ID", "SSHA512"} {
		stored = append(stored, doveadm("-s", name, "-u", user, "-p", password))
	}
	return password, stored
}

func TestRecord(t *testing.T) {
	need.Asked(t, *record, "-record")
	b := need.Dovecot(t)
	doveadm := func(args ...string) string {
		out, _ := exec.Command(b.Doveadm, append([]string{"pw"}, args...)...).CombinedOutput()
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		return lines[len(lines)-1]
	}
	stored := handmade
	for i := range schemes {
		names := []string{schemes[i].name}
		if schemes[i].cost == nil {
			names = append(names, schemes[i].name+".hex", schemes[i].name+".B64")
		}
		for _, n := range names {
			stored = append(stored, doveadm("-s", n, "-u", user, "-p", right))
		}
	}
	out := "version " + b.Version + "\n"
	ask := func(s, p string) {
		verdict := doveadm("-t", s, "-u", user, "-p", p)
		if strings.HasSuffix(verdict, " (verified)") {
			verdict = "verified"
		}
		out += strings.Join([]string{s, user, p, strings.TrimPrefix(verdict, "Fatal: ")}, "\t") + "\n"
	}
	for _, s := range stored {
		ask(s, right)
		ask(s, wrong)
	}
	for _, n := range []int{511, 512} {
		p, stored := ofLength(t, n, doveadm)
		for _, s := range stored {
			ask(s, p)
		}
	}
	if err := os.WriteFile(vectors, []byte(out), 0o644); err != nil {
		t.Fatal(err)
	}
}

// verdict is what doveadm would say of the stored password.
func verdict(stored, user, password string) string {
	name, data, named := Split(stored)
	if !named {
		return "Missing {scheme} prefix from hash"
	}
	raw, err := Decode(name, data)
	if err != nil {
		return "reverse decode check failed: " + err.Error()
	}
	ok, err := NewPool(0).Verify(context.Background(), name, password, user, raw)
	switch {
	case err != nil:
		return "reverse password verification check failed: " + err.Error()
	case !ok:
		return "reverse password verification check failed: Password mismatch"
	}
	return "verified"
}

// Every verdict is doveadm's. Where a hash function of ours has an error, doveadm's may
// only see a mismatch; both refuse the password.
func TestVerdictsMatchDoveadm(t *testing.T) {
	text, err := os.ReadFile(vectors)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	verified := map[string]bool{}
	for _, l := range lines[1:] {
		f := strings.Split(l, "\t")
		got := verdict(f[0], f[1], f[2])
		if got == f[3] {
			if name, _, _ := Split(f[0]); got == "verified" {
				verified[strings.ToUpper(name)] = true
			}
			continue
		}
		const blowfish = "reverse password verification check failed: crypt_blowfish_rn failed: "
		if strings.HasPrefix(f[3], blowfish) && strings.HasPrefix(got, blowfish) {
			continue
		}
		if strings.HasSuffix(f[3], ": Password mismatch") && got != "verified" {
			t.Logf("%s: a mismatch, for which we say: %s", f[0], got)
			continue
		}
		t.Errorf("%s, password %q:\ngot  %s\nwant %s", f[0], f[2], got, f[3])
	}
	for _, n := range Names() {
		if n != "PLAIN-TRUNC" && !verified[n] {
			t.Errorf("no vector of %s was verified", n)
		}
	}
}

// What we make is what we take.
func TestGenerate(t *testing.T) {
	p := NewPool(0)
	for _, n := range []string{"PLAIN", "SHA256", "CRAM-MD5", "DIGEST-MD5", "SCRAM-SHA-1", "SCRAM-SHA-256"} {
		raw, err := p.Generate(context.Background(), n, right, user)
		if err != nil {
			t.Fatal(err)
		}
		for pw, want := range map[string]bool{right: true, wrong: false} {
			if ok, err := p.Verify(context.Background(), n, pw, user, raw); ok != want || err != nil {
				t.Errorf("%s %q: %v, %v", n, pw, ok, err)
			}
		}
	}
	if _, err := Generate("BLF-CRYPT", right, user); !errors.Is(err, ErrScheme) {
		t.Errorf("BLF-CRYPT: %v", err)
	}
}

// RFC 2195 section 2 has a whole exchange.
func TestCRAM(t *testing.T) {
	secret, err := Generate("CRAM-MD5", "tanstaaftanstaaf", "tim")
	if err != nil {
		t.Fatal(err)
	}
	got, err := CRAM(secret, "<1896.697170952@postoffice.reston.mci.net>")
	if want := "b913a602c7eda7a495b4e6e7334d3890"; got != want || err != nil {
		t.Errorf("got %s, %v; want %s", got, err, want)
	}
	if _, err := CRAM(secret[1:], "x"); err == nil {
		t.Error("a short secret was taken")
	}
}

func TestSameScheme(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"PLAIN", "cleartext", true}, {"CRAM-MD5.b64", "HMAC-MD5", true}, {"SHA", "SHA1", true}, {"CRYPT", "BLF-CRYPT", true},
		{"PLAIN", "SHA", false}, {"", "", false}, {"FOO", "foo", true}, {"FOO", "BAR", false}, {"MD5", "PLAIN-MD5", false},
	} {
		if got := SameScheme(c.a, c.b); got != c.want {
			t.Errorf("%q, %q: %v", c.a, c.b, got)
		}
	}
}

// Hashes that need much memory wait for each other, cheap ones do not wait at all, and who
// waits can give up.
func TestPoolBounds(t *testing.T) {
	p := NewPool(1 << 20)
	release, err := p.acquire(context.Background(), cost{memory: 8 << 20}) // all of it
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	argon := "$argon2id$v=19$m=64,t=1,p=1$5VQ1ORpnnTpZ2WskV0fYWg$Pu3HN7t0GtrzZwHgSIt66CwdO4gB/eNJCHY2W78dyPc"
	gone, giveUp := context.WithCancel(ctx)
	giveUp()
	if _, err := p.Verify(gone, "ARGON2ID", right, user, []byte(argon)); !errors.Is(err, context.Canceled) {
		t.Errorf("who gave up got %v", err)
	}
	if ok, err := p.Verify(ctx, "PLAIN", right, user, []byte(right)); !ok || err != nil {
		t.Errorf("PLAIN waited: %v, %v", ok, err)
	}
	var done atomic.Bool
	finished := make(chan struct{})
	go func() { // ends when the hash is computed
		defer close(finished)
		_, err := p.Verify(ctx, "ARGON2ID", right, user, []byte(argon))
		if !done.Load() || err != nil {
			t.Errorf("did not wait: %v", err)
		}
	}()
	done.Store(true)
	release()
	<-finished
}

func FuzzVerify(f *testing.F) {
	for _, s := range handmade {
		f.Add(s, right)
	}
	f.Add("{ARGON2ID}$argon2id$v=19$m=64,t=1,p=2$5VQ1ORpnnTpZ2WskV0fYWg$Pu3HN7t0Gtrz", "x")
	f.Add("{SCRAM-SHA-1.hex}3430", "x")
	p := NewPool(0)
	f.Fuzz(func(t *testing.T, stored, password string) {
		name, data, _ := Split(stored)
		raw, err := Decode(name, data)
		if err != nil || len(raw) > 1000 || len(password) > 1000 || costly(string(raw)) {
			return
		}
		ok, err := p.Verify(context.Background(), name, password, user, raw)
		if ok && err != nil {
			t.Fatal("right, with an error")
		}
	})
}

// costly keeps the fuzzer from spending its time on hashing.
func costly(raw string) bool {
	for _, s := range []string{"rounds=", "$2", "$sha1$", "$y$"} {
		if strings.Contains(raw, s) {
			return true
		}
	}
	digits := 0
	for _, c := range raw {
		if '0' <= c && c <= '9' {
			if digits++; digits > 4 && (strings.HasPrefix(raw, "$1$") || strings.Contains(raw, ",") || strings.HasPrefix(raw, "$argon")) {
				return true
			}
		} else {
			digits = 0
		}
	}
	a, err := parseArgon2([]byte(raw))
	return err == nil && (a.memory > 1024 || a.rounds > 10)
}

// A login with each of the schemes that installations use.
func BenchmarkVerify(b *testing.B) {
	text, err := os.ReadFile(vectors)
	if err != nil {
		b.Fatal(err)
	}
	p := NewPool(0)
	for _, l := range strings.Split(string(text), "\n")[1:] {
		f := strings.Split(l, "\t")
		if len(f) != 4 || f[3] != "verified" {
			continue
		}
		name, data, _ := Split(f[0])
		switch name {
		case "PLAIN", "SSHA512", "SHA512-CRYPT", "BLF-CRYPT", "ARGON2ID", "SCRAM-SHA-256", "DES-CRYPT":
		default:
			continue
		}
		raw, _ := Decode(name, data)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for range b.N {
				if ok, err := p.Verify(context.Background(), name, f[2], f[1], raw); !ok || err != nil {
					b.Fatal(ok, err)
				}
			}
		})
	}
}
