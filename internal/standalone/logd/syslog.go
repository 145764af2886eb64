package logd

import (
	"net"
	"time"

	"dovetail/internal/dovecot/log"
	"dovetail/internal/process/event"
)

// syslogSockets are where the local syslog service may listen.
var syslogSockets = []string{"/dev/log", "/var/run/syslog", "/var/run/log"}

const syslogTimeout = 2 * time.Second

// facilities are the numbers of syslog_facility, RFC 3164 section 4.1.1. An unknown one is
// refused by the checks of the configuration.
var facilities = map[string]int{
	"kern": 0, "user": 1, "mail": 2, "daemon": 3, "auth": 4, "syslog": 5, "lpr": 6, "news": 7,
	"uucp": 8, "cron": 9, "authpriv": 10, "ftp": 11, "local0": 16, "local1": 17, "local2": 18,
	"local3": 19, "local4": 20, "local5": 21, "local6": 22, "local7": 23,
}

// severities are syslog's, by level, as Dovecot maps them.
var severities = [...]int{event.Debug: 7, event.Info: 6, event.Warning: 4, event.Error: 3, event.Fatal: 2, event.Panic: 2}

// A syslogConn is the connection to the local syslog service, made when first needed and
// again after it broke. The zero one is not connected.
type syslogConn struct {
	facility int
	ident    string
	conn     net.Conn
	stream   bool
}

func (c *syslogConn) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

func (c *syslogConn) connect() error {
	var first error
	for _, network := range []string{"unixgram", "unix"} {
		for _, path := range syslogSockets {
			conn, err := net.DialTimeout(network, path, syslogTimeout)
			if err == nil {
				c.conn, c.stream = conn, network == "unix"
				return nil
			}
			if first == nil {
				first = err
			}
		}
	}
	return first
}

// sysLocked sends a record to syslog. Of an Info line the severity word is left out, as
// Dovecot does there. There is no pid: the prefix has it if somebody wants it.
func (o *Output) sysLocked(service string, r log.Record, t time.Time) error {
	c := &o.syslog
	o.b = append(o.b[:0], '<')
	o.b = number(o.b, c.facility<<3|severities[r.Level], 1, '0')
	o.b = append(o.b, '>')
	o.b = t.AppendFormat(o.b, time.Stamp)
	o.b = append(o.b, ' ')
	o.b = append(o.b, c.ident...)
	o.b = append(o.b, ": "...)
	switch {
	case o.set.JSON:
		o.b = appendJSON(o.b, service, r, t)
	default:
		o.b = append(o.b, r.Prefix...)
		if r.Level != event.Info {
			o.b = append(o.b, r.Level.String()...)
			o.b = append(o.b, ": "...)
		}
		o.b = append(o.b, r.Text...)
	}
	var err error
	for range 2 { // the service may have been restarted
		if c.conn == nil {
			if err = c.connect(); err != nil {
				return err
			}
		}
		msg := o.b
		if c.stream {
			msg = append(msg, 0)
		}
		if err = c.conn.SetWriteDeadline(time.Now().Add(syslogTimeout)); err == nil {
			if _, err = c.conn.Write(msg); err == nil {
				return nil
			}
		}
		c.close()
	}
	return err
}
