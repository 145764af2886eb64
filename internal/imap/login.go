package imap

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"strings"
)

// ErrNoLogin: the server offers no way to log in with a password, on this connection.
var ErrNoLogin = errors.New("IMAP server offers neither AUTH=PLAIN nor LOGIN")

// Login logs in, by AUTHENTICATE PLAIN if the server has it, else by LOGIN. A refusal is a
// *StatusError. Whether the connection is protected is the caller's business. No error
// shows the password.
func (c *Conn) Login(ctx context.Context, user, password string) error {
	if strings.ContainsAny(user+password, "\x00") {
		return errors.New("imap: NUL in user name or password")
	}
	plain, err := c.Has(ctx, "AUTH=PLAIN")
	if err != nil {
		return err
	}
	disabled, err := c.Has(ctx, "LOGINDISABLED")
	if err != nil {
		return err
	}
	initial, err := c.Has(ctx, "SASL-IR")
	if err != nil {
		return err
	}
	response := base64.StdEncoding.EncodeToString([]byte("\x00" + user + "\x00" + password))
	c.caps = nil // those after the login are others
	switch {
	case plain && initial:
		return c.command(ctx, "AUTHENTICATE PLAIN "+response, nil)
	case plain:
		return c.dialogue(ctx, "AUTHENTICATE PLAIN", response)
	case disabled:
		return ErrNoLogin
	}
	var parts []string
	text := "LOGIN"
	for _, s := range []string{user, password} {
		if q, ok := quote(s); ok {
			text += " " + q
			continue
		}
		text += " {" + itoa(len(s)) + "}"
		parts = append(parts, text)
		text = s
	}
	parts = append(parts, text)
	return c.dialogue(ctx, parts[0], parts[1:]...)
}

// dialogue sends a command in parts, each when the server asks for it.
func (c *Conn) dialogue(ctx context.Context, text string, parts ...string) error {
	tag, unbind, err := c.send(ctx, text)
	if err != nil {
		return err
	}
	defer unbind()
	for len(parts) > 0 {
		b, err := c.in.peek()
		if err != nil {
			return c.fail(err)
		}
		if b != '+' { // the answer already, or data
			if _, done, err := c.line(tag, nil); err != nil || done {
				var st *StatusError
				switch {
				case err == nil:
					return c.fail(protocolError("OK before the command was complete"))
				case done && errors.As(err, &st):
					return err
				}
				return c.fail(err)
			}
			continue
		}
		if _, err := c.in.text(); err != nil {
			return c.fail(err)
		}
		if _, err := io.WriteString(c.nc, parts[0]+"\r\n"); err != nil {
			return c.fail(err)
		}
		parts = parts[1:]
	}
	_, err = c.answer(tag, nil)
	return err
}
