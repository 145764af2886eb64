package sasl

import (
	"crypto/sha1"
	"crypto/sha256"
	"hash"
	"strings"
	"testing"

	"github.com/xdg-go/scram"
)

// The exchanges of RFC 5802 section 5 and RFC 7677 section 3.
func TestScramOfTheRFCs(t *testing.T) {
	for _, c := range []struct {
		name                        string
		hash                        func() hash.Hash
		nonce, first, answer, final string
	}{
		{
			"SCRAM-SHA-1", sha1.New, "fyko+d2lbbFgONRv9qkxdawL",
			"r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096",
			"c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
			"v=rmF9pqV8S7suAoZWja4dJRkFsKQ=",
		},
		{
			"SCRAM-SHA-256", sha256.New, "rOprNGfwEbeRWgbNEkqO",
			"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
			"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
			"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
		},
	} {
		s := newScram(c.name, c.hash, Credentials{User: "user", Password: "pencil"})
		s.nonce = c.nonce
		if _, ir, _ := s.Start(); string(ir) != "n,,n=user,r="+c.nonce {
			t.Errorf("%s: initial response %q", c.name, ir)
		}
		if got, err := s.Next([]byte(c.first)); err != nil || string(got) != c.answer {
			t.Errorf("%s: %q, %v, want %q", c.name, got, err, c.answer)
		}
		if _, err := s.Next([]byte(c.final)); err != nil || !s.Verified() {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestScramRefuses(t *testing.T) {
	for _, first := range []string{
		"", "r=x", "r=x,s=QSXCR+Q6sek8bf92,i=4096", "r=NONCE,s=QSXCR+Q6sek8bf92,i=4096", "r=NONCEx,s=!,i=4096",
		"r=NONCEx,s=QSXCR+Q6sek8bf92,i=0", "r=NONCEx,s=QSXCR+Q6sek8bf92,i=99999999", "m=x,r=NONCEx,s=QSXCR+Q6sek8bf92,i=4096",
	} {
		s := newScram("SCRAM-SHA-1", sha1.New, Credentials{User: "u", Password: "p"})
		s.nonce = "NONCE"
		s.Start()
		if got, err := s.Next([]byte(first)); err == nil {
			t.Errorf("%q: answered with %q", first, got)
		}
	}
	s := newScram("SCRAM-SHA-1", sha1.New, Credentials{User: "u", Password: "p"})
	s.nonce = "N"
	s.Start()
	s.Next([]byte("r=Nx,s=QSXCR+Q6sek8bf92,i=4096"))
	if _, err := s.Next([]byte("v=AAAA")); err == nil {
		t.Error("took a server that does not know the password")
	}
}

// Against a server that others wrote, with an authorization name.
func TestScramWithServer(t *testing.T) {
	client, _ := scram.SHA256.NewClient("us,er=x", "pw", "")
	stored, err := client.GetStoredCredentialsWithError(scram.KeyFactors{Salt: "salt", Iters: 4096})
	if err != nil {
		t.Fatal(err)
	}
	server, _ := scram.SHA256.NewServer(func(user string) (scram.StoredCredentials, error) { return stored, nil })
	conv := server.NewConversation()
	c, err := New("scram-sha-256", Credentials{User: "us,er=x", Password: "pw", Authzid: "other"})
	if err != nil {
		t.Fatal(err)
	}
	_, msg, _ := c.Start()
	for !conv.Done() {
		challenge, err := conv.Step(string(msg))
		if err != nil {
			t.Fatal(err)
		}
		if msg, err = c.Next([]byte(challenge)); err != nil {
			t.Fatal(err)
		}
	}
	if !conv.Valid() || conv.Username() != "us,er=x" || conv.AuthzID() != "other" {
		t.Errorf("valid %v, user %q, authzid %q", conv.Valid(), conv.Username(), conv.AuthzID())
	}
}

// RFC 2195 section 2.
func TestCramMD5(t *testing.T) {
	c, _ := New("CRAM-MD5", Credentials{User: "tim", Password: "tanstaaftanstaaf"})
	got, err := c.Next([]byte("<1896.697170952@postoffice.reston.mci.net>"))
	if want := "tim b913a602c7eda7a495b4e6e7334d3890"; err != nil || string(got) != want {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
}

func FuzzScram(f *testing.F) {
	f.Add("r=NONCEx,s=QSXCR+Q6sek8bf92,i=4096", "v=rmF9pqV8S7suAoZWja4dJRkFsKQ=")
	f.Add("r=NONCEx,s=,i=1,x", "e=no")
	f.Fuzz(func(t *testing.T, first, final string) {
		s := newScram("SCRAM-SHA-1", sha1.New, Credentials{User: "u", Password: "p"})
		s.nonce = "NONCE"
		s.Start()
		if _, err := s.Next([]byte(first)); err != nil {
			return
		}
		if _, err := s.Next([]byte(final)); err == nil && !s.Verified() {
			t.Error("neither refused nor verified")
		}
	})
}

// The messages of the other mechanisms, from RFC 4616, RFC 4422, RFC 7628 and Google's page.
func TestMessages(t *testing.T) {
	c := Credentials{User: "tim", Password: "tok", Authzid: "ursel", Host: "mx.test", Port: 587}
	for _, m := range []struct {
		mech, initial string
		answers       []string // to challenges, "!" for an error
	}{
		{"PLAIN", "ursel\x00tim\x00tok", []string{"!"}},
		{"EXTERNAL", "ursel", []string{"!"}},
		{"LOGIN", "", []string{"tim", "tok", "!"}},
		{"XOAUTH2", "user=tim\x01auth=Bearer tok\x01\x01", []string{"", "!"}},
		{"OAUTHBEARER", "n,a=tim,\x01host=mx.test\x01port=587\x01auth=Bearer tok\x01\x01", []string{"\x01", "!"}},
	} {
		client, err := New(m.mech, c)
		if err != nil {
			t.Fatal(err)
		}
		mech, ir, err := client.Start()
		if mech != m.mech || string(ir) != m.initial || err != nil || (ir == nil) != (m.mech == "LOGIN") {
			t.Errorf("%s: %s, %q, %v", m.mech, mech, ir, err)
		}
		for _, want := range m.answers {
			got, err := client.Next([]byte("challenge"))
			if err != nil && strings.Contains(err.Error(), "tok") {
				t.Errorf("%s: %v tells the secret", m.mech, err)
			}
			if want == "!" && err == nil || want != "!" && (err != nil || string(got) != want) {
				t.Errorf("%s: %q, %v, want %q", m.mech, got, err, want)
			}
		}
	}
	if _, err := New("NTLM", c); err != ErrUnsupported || Known("NTLM") || !Known("plain") {
		t.Error(err)
	}
	if _, ir, _ := mechanisms["OAUTHBEARER"](Credentials{User: "a,b=c", Password: "t"}).Start(); string(ir) != "n,a=a=2Cb=3Dc,\x01auth=Bearer t\x01\x01" {
		t.Errorf("%q", ir)
	}
}
