package smtp

import (
	"net/netip"
	"time"
)

// Received is the trace header of a message (clause S6.7).
type Received struct {
	Helo string     // domain or address literal of the client; "" if unknown
	IP   netip.Addr // of the client; zero: left out
	Host string     // our name
	Ext  bool       // the client used EHLO, not HELO
	TLS  bool       // ... and TLS
	ID   string     // of the transaction
	From Path
	For  *Path // nil unless there is exactly one recipient
	Date time.Time
}

// Append adds the header to b.
func (r *Received) Append(b []byte) []byte {
	b = append(b, "Received: from "...)
	if r.Helo == "" {
		b = append(b, "unknown"...)
	} else {
		b = append(b, r.Helo...)
	}
	if r.IP.IsValid() {
		b = append(b, " (["...)
		b = r.IP.Unmap().WithZone("").AppendTo(b)
		b = append(b, "])"...)
	}
	b = append(b, "\r\n\tby "...)
	b = append(b, r.Host...)
	b = append(b, " with "...)
	if r.Ext {
		b = append(b, 'E')
	}
	b = append(b, "SMTP"...)
	if r.TLS {
		b = append(b, 'S')
	}
	b = append(b, "A\r\n\tid "...)
	b = append(b, r.ID...)
	b = append(b, "\r\n\t(envelope-from "...)
	b = r.From.AppendPath(b)
	b = append(b, ')')
	if r.For != nil {
		b = append(b, "\r\n\tfor "...)
		b = r.For.AppendPath(b)
	}
	b = append(b, "; "...)
	b = r.Date.AppendFormat(b, "Mon, 02 Jan 2006 15:04:05 -0700")
	return append(b, '\r', '\n')
}
