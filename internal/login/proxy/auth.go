package proxy

import (
	"encoding/base64"
	"strings"

	"dovetail/internal/sasl"
	"dovetail/internal/smtp"
)

const maxIR = 510 // octets of an AUTH line with its initial response (clause S9.3)

// authenticate returns the reply that the client hears. No error tells what was sent.
func (d *dialog) authenticate() (smtp.Reply, error) {
	if len(d.caps.Auth) == 0 {
		return smtp.Reply{}, abort("Authentication support not advertised (TLS required?)", false)
	}
	client, err := sasl.New(d.t.Mech, d.credentials())
	if err != nil {
		return smtp.Reply{}, &Failure{Text: "Unsupported SASL mechanism " + d.t.Mech}
	}
	mech, initial, err := client.Start()
	if err != nil {
		return smtp.Reply{}, &Failure{Text: mech + ": " + err.Error()}
	}
	line := "AUTH " + mech
	waiting := initial != nil // the initial response has not been sent
	if waiting && len(line)+1+base64.StdEncoding.EncodedLen(len(initial)) <= maxIR {
		line += " " + encode(initial)
		waiting = false
	}
	for {
		if err := d.send(line); err != nil {
			return smtp.Reply{}, err
		}
		r, err := d.r.reply()
		switch {
		case err == errNoReply:
			return smtp.Reply{}, invalid("Invalid AUTH reply", short(d.r.first))
		case err != nil:
			return smtp.Reply{}, err
		case r.Code != 334:
			return d.outcome(client, r)
		}
		if line, err = answer(client, r, initial, waiting); err != nil {
			d.send("*")
			return smtp.Reply{}, err
		}
		waiting = false
	}
}

// answer is the line that a challenge gets. waiting: it is the initial response.
func answer(client sasl.Client, r smtp.Reply, initial []byte, waiting bool) (string, error) {
	if len(r.Text) > 1 {
		return "", invalid("Server returned multi-line challenge", "334 "+short(r.Text[0]))
	}
	if waiting {
		if r.Text[0] != "" {
			return "", invalid("Server sent unexpected server-first challenge", "334 "+short(r.Text[0]))
		}
		return base64.StdEncoding.EncodeToString(initial), nil
	}
	challenge, err := base64.StdEncoding.DecodeString(r.Text[0])
	if err != nil {
		return "", protocol("Invalid base64 data in AUTH response")
	}
	b, err := client.Next(challenge)
	if err != nil {
		return "", invalid("Invalid authentication data", err.Error())
	}
	return base64.StdEncoding.EncodeToString(b), nil
}

// outcome is what the backend decided.
func (d *dialog) outcome(client sasl.Client, r smtp.Reply) (smtp.Reply, error) {
	codes := d.caps.Has(smtp.CapEnhancedStatusCodes)
	if codes {
		r = r.Split()
	}
	switch {
	case r.Code == 235:
		if v, ok := client.(interface{ Verified() bool }); ok && !v.Verified() {
			return smtp.Reply{}, abort(d.t.Mech+": the server has not proved that it knows the password", false)
		}
		return r, nil
	case r.Class() == 4 || r.Class() == 5:
		return smtp.Reply{}, &Failure{Text: r.Text[len(r.Text)-1], Reply: r, Retry: r.Class() == 4 && r.Code != 421}
	}
	// A 2xx that is not 235 may be the answer to something else.
	return smtp.Reply{}, invalid("Unexpected AUTH reply", short(d.r.first))
}

// encode is the form of an initial response: an empty one is "=".
func encode(b []byte) string {
	if len(b) == 0 {
		return "="
	}
	return base64.StdEncoding.EncodeToString(b)
}

// credentials: PLAIN names the user twice, and with a master user both.
func (d *dialog) credentials() sasl.Credentials {
	c := sasl.Credentials{
		User: d.t.DestUser, Authzid: d.t.DestUser, Password: d.t.Password,
		Host: strings.TrimSuffix(d.t.Host, "."), Port: int(d.addr.Port()),
	}
	if d.t.Master != "" {
		c.User = d.t.Master
	}
	return c
}
