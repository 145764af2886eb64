package sasl

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"hash"
	"strconv"
	"strings"
)

// maxIterations bounds the work that a server can ask for.
const maxIterations = 1_000_000

// scramClient is the client of RFC 5802 and RFC 7677, without channel binding. Names and
// passwords go as they are: who uses others than ASCII ones gives them prepared.
type scramClient struct {
	name  string
	hash  func() hash.Hash
	c     Credentials
	nonce string
	bare  string // client-first-message-bare
	proof []byte // the server's signature that must come; nil before
	done  bool
}

func newScram(name string, h func() hash.Hash, c Credentials) *scramClient {
	return &scramClient{name: name, hash: h, c: c, nonce: rand.Text()}
}

var saslName = strings.NewReplacer("=", "=3D", ",", "=2C")

func (s *scramClient) header() string {
	if s.c.Authzid == "" || s.c.Authzid == s.c.User {
		return "n,,"
	}
	return "n,a=" + saslName.Replace(s.c.Authzid) + ","
}

func (s *scramClient) Start() (string, []byte, error) {
	s.bare = "n=" + saslName.Replace(s.c.User) + ",r=" + s.nonce
	return s.name, []byte(s.header() + s.bare), nil
}

func (s *scramClient) Next(challenge []byte) ([]byte, error) {
	switch {
	case s.done:
		return nil, errors.New(s.name + ": the server goes on after its last message")
	case s.proof != nil:
		s.done = true
		return []byte{}, s.verify(string(challenge))
	}
	return s.respond(string(challenge))
}

// respond answers the server-first-message: r=nonce,s=salt,i=iterations.
func (s *scramClient) respond(first string) ([]byte, error) {
	bad := errors.New(s.name + ": the server's first message cannot be read")
	parts := strings.Split(first, ",")
	if len(parts) < 3 {
		return nil, bad
	}
	nonce, ok1 := strings.CutPrefix(parts[0], "r=")
	salt64, ok2 := strings.CutPrefix(parts[1], "s=")
	count, ok3 := strings.CutPrefix(parts[2], "i=")
	salt, err1 := base64.StdEncoding.DecodeString(salt64)
	n, err2 := strconv.ParseUint(count, 10, 31)
	if !ok1 || !ok2 || !ok3 || err1 != nil || err2 != nil || n == 0 {
		return nil, bad
	}
	if !strings.HasPrefix(nonce, s.nonce) || len(nonce) == len(s.nonce) {
		return nil, errors.New(s.name + ": the server's nonce is not ours")
	}
	if n > maxIterations {
		return nil, errors.New(s.name + ": the server wants more than a million iterations")
	}
	salted, err := pbkdf2.Key(s.hash, s.c.Password, salt, int(n), s.hash().Size())
	if err != nil {
		return nil, errors.New(s.name + ": key derivation failed")
	}
	final := "c=" + base64.StdEncoding.EncodeToString([]byte(s.header())) + ",r=" + nonce
	message := s.bare + "," + first + "," + final
	clientKey := s.mac(salted, "Client Key")
	h := s.hash()
	h.Write(clientKey)
	signature := s.mac(h.Sum(nil), message)
	for i := range clientKey {
		clientKey[i] ^= signature[i]
	}
	s.proof = s.mac(s.mac(salted, "Server Key"), message)
	return []byte(final + ",p=" + base64.StdEncoding.EncodeToString(clientKey)), nil
}

// verify checks the server-final-message: v=signature, or e=error.
func (s *scramClient) verify(final string) error {
	v, ok := strings.CutPrefix(final, "v=")
	got, err := base64.StdEncoding.DecodeString(v)
	if !ok || err != nil || !hmac.Equal(got, s.proof) {
		return errors.New(s.name + ": the server does not know the password")
	}
	return nil
}

// Verified says whether the server has proved that it knows the password.
func (s *scramClient) Verified() bool { return s.done }

func (s *scramClient) mac(key []byte, message string) []byte {
	h := hmac.New(s.hash, key)
	h.Write([]byte(message))
	return h.Sum(nil)
}
