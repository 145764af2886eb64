package relay

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"

	"dovetail/internal/conf/settings"
	"dovetail/internal/smtp"
	"dovetail/internal/smtp/client"
)

const label = "smtp-client: conn h:25 [1]: "

// TestFail has the rows of clauses S4.6 and S4.9.
func TestFail(t *testing.T) {
	t.Parallel()
	reply := func(code int, lines ...string) smtp.Reply { return smtp.Reply{Code: code, Text: lines} }
	for _, c := range []struct {
		name   string
		err    client.Error
		codes  bool
		reply  string
		reason string
		errors []string
	}{
		{
			"no address", client.Error{Kind: client.LookupFailed, Log: "dns_lookup(h) failed: No such host"}, false,
			"421 4.4.0 me Failed to connect to relay server (DNS lookup)\r\n",
			"Failed to connect to relay server (DNS lookup)",
			[]string{label + "dns_lookup(h) failed: No such host"},
		},
		{
			"no connection", client.Error{Kind: client.ConnectFailed, Log: "connect(h:25) failed: Connection refused"}, false,
			"421 4.4.0 me Failed to connect to relay server (connect)\r\n",
			"Failed to connect to relay server (connect)",
			[]string{label + "connect(h:25) failed: Connection refused"},
		},
		{
			"refused greeting", client.Error{Kind: client.Refused, Reply: reply(554, "5.7.1 not you")}, false,
			"421 4.4.0 me Failed to establish relay connection\r\n",
			"Failed to establish relay connection",
			[]string{"Failed to establish relay connection: 554 5.7.1 not you"},
		},
		{
			"530", client.Error{Kind: client.NeedsAuth, Reply: reply(530, "5.7.0 log in")}, true,
			"421 4.3.5 me Internal error occurred. Refer to server log for more information.\r\n",
			"Internal error occurred. Refer to server log for more information.",
			[]string{"Relay server requires authentication: 530 5.7.0 log in"},
		},
		{
			"421 with a code", client.Error{Kind: client.Closing, Reply: reply(421, "4.3.2 going down")}, true,
			"421-4.3.2 me Lost connection to relay server:\r\n421 4.3.2 going down (connection lost)\r\n",
			"Lost connection to relay server: going down (connection lost)",
			[]string{"Lost connection to relay server: 421 4.3.2 going down"},
		},
		{
			"421, codes not announced", client.Error{Kind: client.Closing, Reply: reply(421, "4.3.2 going", "down")}, false,
			"421-4.0.0 me Lost connection to relay server:\r\n421-4.0.0 4.3.2 going\r\n421 4.0.0 down (connection lost)\r\n",
			"Lost connection to relay server: 4.3.2 going down (connection lost)",
			[]string{"Lost connection to relay server: 421 4.3.2 going down"},
		},
		{
			"bad reply", client.Error{Kind: client.BadReply, Log: "Unexpected reply: 250 what"}, false,
			"421 4.4.0 me Lost connection to relay server (bad reply)\r\n",
			"Lost connection to relay server (bad reply)",
			[]string{label + "Unexpected reply: 250 what"},
		},
		{
			"closed", client.Error{Kind: client.Lost}, false,
			"421 4.4.0 me Lost connection to relay server (connection lost)\r\n",
			"Lost connection to relay server (connection lost)", nil,
		},
		{
			"silent", client.Error{Kind: client.TimedOut, Log: "Command timed out, disconnecting"}, false,
			"421 4.4.0 me Lost connection to relay server (timed out)\r\n",
			"Lost connection to relay server (timed out)",
			[]string{label + "Command timed out, disconnecting"},
		},
		{
			"given up by ourselves", client.Error{Kind: client.Cancelled}, false,
			"421 4.4.0 me Lost connection to relay server (connection lost)\r\n",
			"Lost connection to relay server (connection lost)", nil,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := Fail(&c.err, "me", label, c.codes)
			if got := string(f.Reply.Append(nil)); got != c.reply {
				t.Errorf("the client gets\n%q, want\n%q", got, c.reply)
			}
			if f.Reason != c.reason {
				t.Errorf("the reason is\n%q, want\n%q", f.Reason, c.reason)
			}
			if strings.Join(f.Errors, "\n") != strings.Join(c.errors, "\n") {
				t.Errorf("the log gets\n%q, want\n%q", f.Errors, c.errors)
			}
		})
	}
}

// TestFailIsBounded: a relay's last words may be 100 lines of 2 kB; a log line is not.
func TestFailIsBounded(t *testing.T) {
	t.Parallel()
	lines := make([]string, 100)
	for i := range lines {
		lines[i] = strings.Repeat("x", 2000)
	}
	f := Fail(&client.Error{Kind: client.Closing, Reply: smtp.Reply{Code: 421, Text: lines}}, "me", label, false)
	if len(f.Reason) > maxLogged {
		t.Errorf("the reason has %d octets", len(f.Reason))
	}
	for _, line := range f.Errors {
		if len(line) > maxLogged+100 {
			t.Errorf("a log line has %d octets", len(line))
		}
	}
}

// TestTLSError: what was wrong with the settings of TLS is said when a connection is wanted,
// and nothing is sent in the clear.
func TestTLSError(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	set := settings.Submission{RelayHost: "127.0.0.1", RelayPort: uint16(ln.Addr().(*net.TCPAddr).Port), RelaySSL: "starttls"}
	_, cerr := New(&set, "me", System{}, nil, errors.New("no such file")).Dial(context.Background(), nil, nil, nil)
	if cerr == nil || cerr.Kind != client.ConnectFailed || cerr.Log != "Couldn't initialize SSL client context: no such file" {
		t.Errorf("got %v", cerr)
	}
}

func TestLabel(t *testing.T) {
	t.Parallel()
	for host, want := range map[string]string{
		"relay.example": "smtp-client: conn relay.example:587 [2]: ",
		"::1":           "smtp-client: conn [::1]:587 [2]: ",
	} {
		set := settings.Submission{RelayHost: host, RelayPort: 587}
		if got := New(&set, "me", nil, nil, nil).Next(2, nil).Label(); got != want {
			t.Errorf("%s: %q, want %q", host, got, want)
		}
	}
}

// TestTrusted: XCLIENT goes first only where AUTH follows.
func TestTrusted(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		trusted bool
		user    string
		first   bool
	}{{false, "", false}, {false, "u", false}, {true, "", false}, {true, "u", true}} {
		r := New(&settings.Submission{RelayTrusted: c.trusted, RelayUser: c.user}, "me", nil, nil, nil)
		if r.Trusted() != c.trusted || r.XclientFirst() != c.first {
			t.Errorf("%+v: trusted %v, first %v", c, r.Trusted(), r.XclientFirst())
		}
	}
}
