package interop

import (
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/xdg-go/scram"

	"dovetail/internal/testkit/system"
)

func itoa(n int) string { return strconv.Itoa(n) }

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func plain(user, password string) string { return b64("\x00" + user + "\x00" + password) }

// A mechanism logs a session in and returns the last reply. Challenges vary, so what is
// said in between is recorded without them.
type mechanism struct {
	name string
	auth func(s *session, user, password string) []string
}

var mechanisms = []mechanism{
	{"PLAIN", func(s *session, user, password string) []string {
		return s.do("AUTH PLAIN " + plain(user, password))
	}},
	{"PLAIN", func(s *session, user, password string) []string { // without initial response
		s.do("AUTH PLAIN")
		return s.do(plain(user, password))
	}},
	{"LOGIN", func(s *session, user, password string) []string {
		s.do("AUTH LOGIN")
		s.do(b64(user))
		return s.do(b64(password))
	}},
	{"CRAM-MD5", func(s *session, user, password string) []string {
		challenge := s.challenge("AUTH CRAM-MD5")
		mac := hmac.New(md5.New, []byte(password))
		mac.Write([]byte(challenge))
		return s.do(b64(user + " " + hex.EncodeToString(mac.Sum(nil))))
	}},
	{"SCRAM-SHA-1", func(s *session, user, password string) []string {
		return s.scram(scram.SHA1, "SCRAM-SHA-1", user, password)
	}},
	{"SCRAM-SHA-256", func(s *session, user, password string) []string {
		return s.scram(scram.SHA256, "SCRAM-SHA-256", user, password)
	}},
}

// A key for tokens, as oauthConfig has it.
const oauthKey = "not a secret of anybody"

// token makes a JWT with which the oauth2 driver knows who comes.
func token(user, key string, expires time.Time) string {
	part := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	text := part(`{"alg":"HS256","typ":"JWT"}`) + "." + part(fmt.Sprintf(`{"sub":%q,"iat":%d,"exp":%d}`, user, time.Now().Unix()-60, expires.Unix()))
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// withTokens lets users log in with tokens that auth checks by itself.
func withTokens(s *system.Setup) {
	if s.Files == nil {
		s.Files = map[string]system.File{}
	}
	s.Files["etc/oauth2.conf"] = system.File{Data: "introspection_mode = local\nlocal_validation_key_dict = fs:posix:prefix={dir}/etc/keys/\nusername_attribute = sub\n"}
	s.Files["etc/keys/default/HS256/default"] = system.File{Data: b64(oauthKey)}
	s.Config = append(s.Config, "auth_mechanisms = plain oauthbearer xoauth2",
		"passdb tokens {", " driver = oauth2", " mechanisms = oauthbearer xoauth2", " args = {dir}/etc/oauth2.conf", "}")
}

// bearer are the two mechanisms that take a token.
var bearer = []struct {
	name    string
	initial func(user, token string) string
}{
	{"OAUTHBEARER", func(user, token string) string { return b64("n,a=" + user + ",\x01auth=Bearer " + token + "\x01\x01") }},
	{"XOAUTH2", func(user, token string) string { return b64("user=" + user + "\x01auth=Bearer " + token + "\x01\x01") }},
}

// challenge sends a line and returns the decoded challenge; the record has only its kind.
func (s *session) challenge(line string) string {
	s.w.t.Helper()
	s.send(line + "\r\n")
	got := s.c.Line()
	text, ok := strings.CutPrefix(got, "334 ")
	if !ok {
		s.add("S:", got)
		return ""
	}
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		s.add("S:", got)
		return ""
	}
	s.add("S:", "334 (challenge)")
	return string(raw)
}

// scram runs the exchange; the server's signature comes in a 334 of its own.
func (s *session) scram(hash scram.HashGeneratorFcn, name, user, password string) []string {
	s.w.t.Helper()
	c, err := hash.NewClient(user, password, "")
	if err != nil {
		s.w.t.Fatal(err)
	}
	conv := c.NewConversation()
	first, _ := conv.Step("")
	second, err := conv.Step(s.challenge("AUTH " + name + " " + b64(first)))
	if err != nil {
		s.add("C!", "SCRAM: "+err.Error())
		return s.do("*")
	}
	s.send(b64(second) + "\r\n")
	got := s.c.Line()
	text, more := strings.CutPrefix(got, "334 ")
	if !more {
		s.add("S:", got)
		return []string{got}
	}
	raw, _ := base64.StdEncoding.DecodeString(text)
	if _, err := conv.Step(string(raw)); err != nil || !conv.Valid() {
		s.add("C!", "the server's signature is wrong")
	}
	s.add("S:", "334 (signature)")
	return s.do("")
}
