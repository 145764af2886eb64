package proxy

import (
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"dovetail/internal/conf/settings"
	"dovetail/internal/dovecot/tabline"
	"dovetail/internal/sasl"
)

const (
	defaultPort    = 587
	defaultTLSPort = 465

	// How long a backend must have failed before further logins do not wait for it, while
	// others already do (field proxy_host_immediate_failure_after).
	hostDownAfter = 30 * time.Second

	maxAddrs = 8 // addresses of a host that are tried
)

// A TLSMode says what a field ssl or starttls wants.
type TLSMode uint8

const (
	NoTLS   TLSMode = iota
	AnyCert         // whatever certificate the backend has
	Verify          // one that is trusted, for its name
)

// A Target is a backend and the login there, as the auth service's fields say (clause S9.6).
type Target struct {
	Addrs    []netip.AddrPort // at least one; the others are for when it does not work
	Host     string           // as the field host has it: a name, or the address again
	User     string           // who logs in here
	DestUser string           // who that is there
	Master   string           // whose password it is, if not DestUser's
	Password string
	Mech     string // "PLAIN" unless the field proxy_mech says another

	TLS, StartTLS TLSMode
	NoAuth        bool // there is no login: the backend is told, in XCLIENT, who has logged in
	NotTrusted    bool // the backend takes no XCLIENT from here
	Timeout       time.Duration
	DownAfter     time.Duration // 0: never
	SourceIP      netip.Addr
	Forward       []string // key=value of the fields forward_*, without that prefix
	Alt           tabline.Fields
}

// Errors of Parse: what is wrong with the passdb's answer.
var (
	errPassword = errors.New("password not given")
	errHost     = errors.New("host not given")
	errHostIP   = errors.New("host is not an IP address, and hostip is not given")
	errHostIPs  = errors.New("Invalid dovetail_hostips") //lint:ignore ST1005 as Dovecot's
	errPort     = errors.New("Invalid port")             //lint:ignore ST1005 Dovecot's words
	errTimeout  = errors.New("Invalid proxy_timeout")    //lint:ignore ST1005 Dovecot's words
	errSource   = errors.New("Invalid source_ip")        //lint:ignore ST1005 Dovecot's words
)

// Parse reads the fields of an OK that has the field proxy. timeout is the default of
// proxy_timeout.
func Parse(fields tabline.Fields, user string, timeout time.Duration) (Target, error) {
	t := Target{User: user, DestUser: user, Mech: "PLAIN", Timeout: timeout, DownAfter: hostDownAfter}
	port, hostIP, more, havePassword := uint16(0), "", "", false
	var err error
	for _, f := range fields {
		v := f.Value
		switch f.Key {
		case "host":
			t.Host = v
		case "hostip":
			hostIP = v
		case "dovetail_hostips":
			more = v
		case "port":
			n, perr := strconv.ParseUint(v, 10, 16)
			if perr != nil || n == 0 {
				err = errPort
			}
			port = uint16(n)
		case "destuser":
			t.DestUser = v
		case "pass":
			t.Password, havePassword = v, true
		case "master":
			t.Master = v
		case "proxy_mech":
			t.Mech = strings.ToUpper(v)
		case "ssl":
			t.TLS = tlsMode(v)
			if port == 0 {
				port = defaultTLSPort // also if starttls counts in the end, as in Dovecot
			}
		case "starttls":
			t.StartTLS = tlsMode(v)
		case "proxy_timeout":
			if t.Timeout, err = parseTimeout(v, err); err != nil {
				return t, err
			}
		case "proxy_host_immediate_failure_after":
			d, terr := settings.ParseMSecs(v)
			if terr == nil {
				t.DownAfter = d
			}
		case "proxy_noauth":
			t.NoAuth = true
		case "proxy_not_trusted":
			t.NotTrusted = true
		case "source_ip":
			if t.SourceIP, err = parseSource(v, err); err != nil {
				return t, err
			}
		default:
			const forward = "forward_"
			if key := f.Key; len(key) > len(forward) && strings.EqualFold(key[:len(forward)], forward) {
				t.Forward = append(t.Forward, key[len(forward):]+"="+v)
			} else if strings.HasPrefix(f.Key, "user_") {
				t.Alt = append(t.Alt, f)
			}
		}
	}
	if err != nil {
		return t, err
	}
	return t, t.complete(hostIP, more, port, havePassword)
}

func (t *Target) complete(hostIP, more string, port uint16, havePassword bool) error {
	switch {
	case t.Host == "":
		return errHost
	case !t.NoAuth && !havePassword:
		return errPassword
	case !sasl.Known(t.Mech) && !t.NoAuth:
		return errors.New("Unsupported SASL mechanism " + t.Mech)
	}
	if hostIP == "" {
		hostIP = t.Host
	}
	ip, ok := settings.ParseAddr(hostIP)
	if !ok {
		return errHostIP
	}
	if port == 0 {
		port = defaultPort
	}
	if t.StartTLS != NoTLS { // it is TLS already, and AnyCert of either counts
		if t.TLS == AnyCert {
			t.StartTLS = AnyCert
		}
		t.TLS = NoTLS
	}
	t.Addrs = append(t.Addrs, netip.AddrPortFrom(ip.Unmap(), port))
	for text := range strings.FieldsFuncSeq(more, func(r rune) bool { return r == ' ' || r == ',' }) {
		a, ok := settings.ParseAddr(text)
		if !ok {
			return errHostIPs
		}
		if ap := netip.AddrPortFrom(a.Unmap(), port); !slices.Contains(t.Addrs, ap) && len(t.Addrs) < maxAddrs {
			t.Addrs = append(t.Addrs, ap)
		}
	}
	return nil
}

func tlsMode(v string) TLSMode {
	if v == "any-cert" {
		return AnyCert
	}
	return Verify
}

// parseTimeout reads seconds, or a time with its unit.
func parseTimeout(v string, err error) (time.Duration, error) {
	if err != nil {
		return 0, err
	}
	if n, err := strconv.ParseUint(v, 10, 31); err == nil && n > 0 {
		return time.Duration(n) * time.Second, nil
	}
	d, err := settings.ParseMSecs(v)
	if err != nil || d <= 0 {
		return 0, errTimeout
	}
	return d, nil
}

func parseSource(v string, err error) (netip.Addr, error) {
	ip, ok := settings.ParseAddr(v)
	if !ok && err == nil {
		err = errSource
	}
	return ip, err
}
