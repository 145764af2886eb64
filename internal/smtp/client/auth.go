package client

import (
	"encoding/base64"

	"dovetail/internal/sasl"
	"dovetail/internal/smtp"
)

// mechanisms are tried in this order when the relay does not offer PLAIN.
var mechanisms = [...]string{"SCRAM-SHA-256", "SCRAM-SHA-1", "CRAM-MD5", "LOGIN", "XOAUTH2", "OAUTHBEARER"}

// mechanism chooses how to log in. A relay that offers nothing known gets PLAIN, as from
// Dovecot.
func (c *Conn) mechanism() string {
	offered := map[string]bool{}
	for _, m := range c.caps.Auth {
		offered[m] = true
	}
	if !offered["PLAIN"] {
		for _, m := range mechanisms {
			if offered[m] {
				return m
			}
		}
	}
	return "PLAIN"
}

// login authenticates. No error, log line or tap has what it sends, nor the challenges, by
// which passwords can be tried.
func (c *Conn) login() *Error {
	c.hidden = true
	defer func() { c.hidden = false }()
	if !c.has(smtp.CapAuth) {
		return &Error{Kind: ConnectFailed, Log: "Authentication not supported"}
	}
	credentials := sasl.Credentials{User: c.cfg.User, Password: c.cfg.Password, Host: c.cfg.Host, Port: int(c.cfg.Port)}
	if c.cfg.MasterUser != "" {
		credentials.User, credentials.Authzid = c.cfg.MasterUser, c.cfg.User
	}
	name := c.mechanism()
	mech, err := sasl.New(name, credentials)
	if err != nil {
		return authFailed(err.Error())
	}
	_, initial, err := mech.Start()
	if err != nil {
		return authFailed(err.Error())
	}
	line := "AUTH " + name
	switch encoded := base64.StdEncoding.EncodeToString(initial); {
	case initial == nil:
	case encoded == "":
		line += " ="
		initial = nil
	case len(line)+1+len(encoded) <= maxLine:
		line += " " + encoded
		initial = nil
	}
	c.phase = "Authentication"
	c.show(false, "AUTH "+name+" <hidden>\r\n")
	for kind := command; ; kind = answer {
		r, e := c.step(line, kind)
		if e != nil {
			return e
		}
		c.showReply(r)
		if r.Class() == 2 {
			if v, ok := mech.(interface{ Verified() bool }); ok && !v.Verified() {
				return authFailed(name + ": the server has not proved that it knows the password")
			}
			return nil
		}
		if r.Code != 334 {
			e := refusal(r, Refused)
			if e.Kind != Closing {
				e.Log = "Authentication failed: " + r.Split().OneLine(maxLogged)
			}
			return e
		}
		if len(r.Text) > 1 {
			return authFailed("Server returned multi-line reply: " + r.OneLine(maxLogged))
		}
		answer := initial
		switch {
		case initial == nil:
			challenge, err := base64.StdEncoding.DecodeString(r.Text[0])
			if err != nil {
				return authFailed("Server sent non-base64 input for AUTH: " + r.OneLine(maxLogged))
			}
			if answer, err = mech.Next(challenge); err != nil {
				return authFailed(err.Error())
			}
		case r.Text[0] != "":
			return authFailed("Server sent unexpected server-first challenge: " + r.OneLine(maxLogged))
		}
		initial = nil
		line = base64.StdEncoding.EncodeToString(answer)
	}
}

// show gives the tap what stands for something hidden.
func (c *Conn) show(in bool, text string) {
	if c.cfg.Tap != nil {
		c.cfg.Tap(in, []byte(text))
	}
}

func (c *Conn) showReply(r smtp.Reply) {
	if r.Code == 334 {
		c.show(true, "334 <hidden>\r\n")
	} else {
		c.show(true, string(r.Append(nil)))
	}
}

func authFailed(why string) *Error {
	return &Error{Kind: ConnectFailed, Log: "Authentication failed: " + why}
}
