// Package sasl makes the client's side of SASL mechanisms, for the login at a relay or a
// backend: those of go-sasl, and beside them SCRAM, CRAM-MD5 and XOAUTH2. How messages
// travel is the caller's business; servers' sides are the auth service's.
package sasl

import (
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"strings"

	"github.com/emersion/go-sasl"
)

// A Client runs one exchange: Start gives the mechanism and the initial response (nil for
// none), Next answers a challenge.
type Client = sasl.Client

// Credentials are what a mechanism may need. They are secrets: no error tells them.
type Credentials struct {
	User     string // whose password it is
	Password string // or the token of XOAUTH2 and OAUTHBEARER
	Authzid  string // who to be, if not User
	Host     string // of the server, for OAUTHBEARER
	Port     int
}

// ErrUnsupported: there is no such mechanism here.
var ErrUnsupported = errors.New("unsupported SASL mechanism")

var mechanisms = map[string]func(Credentials) Client{
	"PLAIN":       func(c Credentials) Client { return sasl.NewPlainClient(c.Authzid, c.User, c.Password) },
	"LOGIN":       func(c Credentials) Client { return &login{c: c} },
	"EXTERNAL":    func(c Credentials) Client { return sasl.NewExternalClient(c.Authzid) },
	"CRAM-MD5":    func(c Credentials) Client { return &cramMD5{c} },
	"SCRAM-SHA-1": func(c Credentials) Client { return newScram("SCRAM-SHA-1", sha1.New, c) },
	"SCRAM-SHA-256": func(c Credentials) Client {
		return newScram("SCRAM-SHA-256", func() hash.Hash { return sha256.New() }, c)
	},
	"XOAUTH2": func(c Credentials) Client { return &xoauth2{c} },
	"OAUTHBEARER": func(c Credentials) Client {
		return sasl.NewOAuthBearerClient(&sasl.OAuthBearerOptions{Username: c.User, Token: c.Password, Host: c.Host, Port: c.Port})
	},
}

// Known says whether there is a mechanism of that name, in any case.
func Known(mechanism string) bool { return mechanisms[strings.ToUpper(mechanism)] != nil }

// New makes an exchange of the mechanism of that name, in any case.
func New(mechanism string, c Credentials) (Client, error) {
	f := mechanisms[strings.ToUpper(mechanism)]
	if f == nil {
		return nil, ErrUnsupported
	}
	return f(c), nil
}

// login is the mechanism LOGIN. Dovecot sends an empty initial response, and the name in
// answer to whatever comes first; so does this one.
type login struct {
	c    Credentials
	step int
}

func (l *login) Start() (string, []byte, error) { return "LOGIN", []byte{}, nil }

func (l *login) Next([]byte) ([]byte, error) {
	l.step++
	switch l.step {
	case 1:
		return []byte(l.c.User), nil
	case 2:
		return []byte(l.c.Password), nil
	}
	return nil, errors.New("LOGIN: the server wants more than name and password")
}

// cramMD5 is the mechanism of RFC 2195.
type cramMD5 struct{ c Credentials }

func (m *cramMD5) Start() (string, []byte, error) { return "CRAM-MD5", nil, nil }

func (m *cramMD5) Next(challenge []byte) ([]byte, error) {
	h := hmac.New(md5.New, []byte(m.c.Password))
	h.Write(challenge)
	return []byte(m.c.User + " " + hex.EncodeToString(h.Sum(nil))), nil
}

// xoauth2 is Google's forerunner of OAUTHBEARER.
type xoauth2 struct{ c Credentials }

func (x *xoauth2) Start() (string, []byte, error) {
	return "XOAUTH2", []byte("user=" + x.c.User + "\x01auth=Bearer " + x.c.Password + "\x01\x01"), nil
}

// Next answers the error that a server sends as a challenge: its reply then says the rest.
func (x *xoauth2) Next([]byte) ([]byte, error) { return []byte{}, nil }
