// Package sasl makes the client's side of SASL mechanisms, for the login at a relay or a
// backend. How messages travel is the caller's business; servers' sides are the auth
// service's.
//
//	PLAIN          authzid NUL user NUL password
//	LOGIN          the user, then the password, whatever is asked
//	EXTERNAL       authzid
//	CRAM-MD5       RFC 2195
//	SCRAM-SHA-1, SCRAM-SHA-256   RFC 5802, RFC 7677, without channel binding
//	XOAUTH2, OAUTHBEARER         user and token (RFC 7628)
//
// The interface is that of github.com/emersion/go-sasl. That package itself brings
// encoding/json along, which each process of the two programs would pay for.
package sasl

import (
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"strconv"
	"strings"
)

// A Client runs one exchange: Start gives the mechanism and the initial response (nil: the
// server speaks first), Next answers a challenge.
type Client interface {
	Start() (mech string, ir []byte, err error)
	Next(challenge []byte) (response []byte, err error)
}

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
	"PLAIN": func(c Credentials) Client {
		return &oneMessage{"PLAIN", c.Authzid + "\x00" + c.User + "\x00" + c.Password}
	},
	"LOGIN": func(c Credentials) Client { return &login{c: c} },
	"EXTERNAL": func(c Credentials) Client {
		if c.Authzid == "" {
			c.Authzid = c.User
		}
		return &oneMessage{"EXTERNAL", c.Authzid}
	},
	"CRAM-MD5":    func(c Credentials) Client { return &cramMD5{c} },
	"SCRAM-SHA-1": func(c Credentials) Client { return newScram("SCRAM-SHA-1", sha1.New, c) },
	"SCRAM-SHA-256": func(c Credentials) Client {
		return newScram("SCRAM-SHA-256", func() hash.Hash { return sha256.New() }, c)
	},
	"XOAUTH2": func(c Credentials) Client {
		return &token{"XOAUTH2", "user=" + c.User + "\x01auth=Bearer " + c.Password + "\x01\x01", ""}
	},
	"OAUTHBEARER": func(c Credentials) Client {
		m := "n,a=" + saslName.Replace(c.User) + ",\x01"
		if c.Host != "" {
			m += "host=" + c.Host + "\x01"
		}
		if c.Port != 0 {
			m += "port=" + strconv.Itoa(c.Port) + "\x01"
		}
		return &token{"OAUTHBEARER", m + "auth=Bearer " + c.Password + "\x01\x01", "\x01"}
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

// oneMessage is a mechanism in which the client says everything at once.
type oneMessage struct{ mech, message string }

func (m *oneMessage) Start() (string, []byte, error) { return m.mech, []byte(m.message), nil }

func (m *oneMessage) Next([]byte) ([]byte, error) {
	return nil, errors.New(m.mech + ": the server wants more than one message")
}

// login is the mechanism LOGIN. The server speaks first. (Dovecot sends an empty initial
// response, which other servers take for an empty name.)
type login struct {
	c    Credentials
	step int
}

func (l *login) Start() (string, []byte, error) { return "LOGIN", nil, nil }

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

// token is a mechanism in which a server that refuses says why in a challenge. Its reply
// comes when that has been answered (RFC 7628 section 3.2.3).
type token struct{ mech, message, answer string }

func (m *token) Start() (string, []byte, error) { return m.mech, []byte(m.message), nil }

func (m *token) Next([]byte) ([]byte, error) {
	if m.message == "" {
		return nil, errors.New(m.mech + ": the server goes on after its refusal")
	}
	m.message = ""
	return []byte(m.answer), nil
}
