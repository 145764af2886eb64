package proxy

import (
	"context"
	"slices"
	"strings"
	"time"

	"dovetail/internal/smtp"
)

const (
	maxXclient = 512 // octets of an XCLIENT line (clause S9.2)

	// How long a backend that wants to know the client's name waits for it.
	nameTimeout = time.Second
)

// AllowXclient says what to do about a backend that takes no XCLIENT from here.
const AllowXclient = "allow it there for this server: login_trusted_networks of Dovecot and Dovetail, smtpd_authorized_xclient_hosts of Postfix"

// Value of an attribute that is not known.
const unavailable = "[UNAVAILABLE]"

// A ClientName is what the client's host is called: its name if that leads back to its
// address, and whatever the address is called. Each is the value of an attribute.
type ClientName struct{ Verified, Reverse string }

// NoName is the name of a host without one.
var NoName = ClientName{unavailable, unavailable}

// askName begins to look for the client's name.
func (d *dialog) askName(ctx context.Context) {
	if d.name != nil || d.o.Name == nil {
		return
	}
	ch := make(chan ClientName, 1)
	d.name = ch
	go func() { // ends after nameTimeout
		ctx, cancel := context.WithTimeout(ctx, nameTimeout)
		defer cancel()
		ch <- d.o.Name(ctx)
	}()
}

// named adds the client's name, if the backend wants it. Its old value is our own name
// there, so that something must be said in any case.
func (d *dialog) named(ctx context.Context, attrs []smtp.XclientAttr) []smtp.XclientAttr {
	verified, reverse := d.listens("NAME"), d.listens("REVERSE_NAME")
	if !verified && !reverse {
		return attrs
	}
	name := NoName
	if d.askName(ctx); d.name != nil {
		select {
		case name = <-d.name:
		case <-ctx.Done():
		}
	}
	return append([]smtp.XclientAttr{{Name: "NAME", Value: name.Verified}, {Name: "REVERSE_NAME", Value: name.Reverse}}, attrs...)
}

// listens says whether the backend knows an attribute.
func (d *dialog) listens(attr string) bool { return slices.Contains(d.caps.Xclient, attr) }

// xclient tells the backend whose connection it is, as far as it listens.
func (d *dialog) xclient(ctx context.Context) error {
	d.mta = !d.listens("TTL") // which backends of Dovecot's kind know
	var commands []string
	if !d.t.NotTrusted && d.caps.Has(smtp.CapXCLIENT) {
		commands = smtp.XclientCommands(d.caps.Xclient, maxXclient, d.named(ctx, d.o.Attrs))
	}
	if len(commands) == 0 {
		return d.repeat()
	}
	// A command behind XCLIENT comes before the new greeting, which not every MTA forgives.
	together := d.caps.Has(smtp.CapPipelining) && !d.mta
	d.told = true
	hello := d.hello()
	lines := strings.Join(commands, "\r\n")
	if together {
		lines += "\r\n" + hello
	}
	d.state = "xclient"
	if err := d.send(lines); err != nil {
		return err
	}
	for range commands {
		r, err := d.r.reply()
		if err == nil && r.Class() == 2 {
			continue
		}
		if err == nil || err == errNoReply {
			err = abort("XCLIENT failed: "+short(d.r.first)+" ("+AllowXclient+")", true)
		}
		return err
	}
	if together {
		return d.ehloReply("xclient-ehlo")
	}
	return d.sayHello(hello, "xclient-ehlo")
}

// repeat makes the client's greeting ours, where no XCLIENT was sent.
func (d *dialog) repeat() error {
	if hello := d.hello(); hello != d.ourHello() {
		return d.sayHello(hello, "xclient-ehlo")
	}
	return nil
}

func (d *dialog) ourHello() string { return "EHLO " + d.o.Hostname }

// hello is the last greeting before the client takes over, or before AUTH. Where the
// connection passes for the client's it is the client's own, which then stands in the
// Received header: with most servers a greeting takes the place of XCLIENT's HELO.
func (d *dialog) hello() string {
	switch {
	case d.o.Helo == "" || !d.told && !d.t.NoAuth:
		return d.ourHello()
	case d.o.Esmtp || !d.t.NoAuth: // AUTH needs EHLO
		return "EHLO " + d.o.Helo
	}
	return "HELO " + d.o.Helo
}
