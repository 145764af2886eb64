package smtp

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestMailSizeBeyondInt64(t *testing.T) {
	for size, ok := range map[string]bool{"9223372036854775807": true, "9223372036854775808": false, "18446744073709551615": false, "18446744073709551616": false} {
		_, params, refusal := ParseMail("FROM:<a@b> SIZE="+size, CapSize, 0)
		if ok != refusal.IsZero() || !ok && refusal.String() != "555 5.5.4 Unsupported SIZE parameter value" {
			t.Errorf("SIZE=%s: %v", size, refusal)
		}
		if sent := string(AppendMail(nil, Path{}, &params, CapSize)); ok && sent != "MAIL FROM:<> SIZE=9223372036854776831" {
			t.Errorf("SIZE=%s is sent as %s", size, sent)
		}
	}
}

func TestParametersThatTheRelayLacks(t *testing.T) {
	announced := Cap8BitMIME | CapBinaryMIME | CapChunking | CapDSN | CapSize
	for args, want := range map[string]string{
		"FROM:<a@b> SIZE=1":          "",
		"FROM:<a@b> BODY=7BIT":       "",
		"FROM:<a@b> BODY=8BITMIME":   "555 5.5.4 Unsupported mail BODY type",
		"FROM:<a@b> BODY=BINARYMIME": "555 5.5.4 Unsupported mail BODY type",
		"FROM:<a@b> RET=HDRS":        "555 5.5.4 Unsupported parameters",
		"FROM:<a@b> ENVID=x":         "555 5.5.4 Unsupported parameters",
	} {
		_, params, refusal := ParseMail(args, announced, 0)
		if !refusal.IsZero() {
			t.Fatal(refusal)
		}
		if refusal = params.Missing(0); want == "" != refusal.IsZero() || want != "" && refusal.String() != want {
			t.Errorf("%s: %v, want %q", args, refusal, want)
		}
		if refusal = params.Missing(announced); !refusal.IsZero() {
			t.Errorf("%s: refused although the relay can: %v", args, refusal)
		}
	}
	_, params, _ := ParseRcpt("TO:<a@b> NOTIFY=NEVER", announced, 0)
	if got := params.Missing(0).String(); got != "555 5.5.4 Unsupported parameters" {
		t.Errorf("NOTIFY: %s", got)
	}
}

func TestParseUsername(t *testing.T) {
	for name, want := range map[string]string{
		"alice":             "alice",
		"alice@example.org": "alice@example.org",
		"a@b@c":             `"a@b"@c`,
		"a b":               `"a b"`,
		"@b":                `"@b"`,
		`"a b"@c`:           `"a b"@c`,
		"":                  "error: Username is empty string",
		"é":                 "error: Invalid character in localpart",
		"a@":                "error: Missing domain after '@'",
		"a@b!":              "error: Invalid character in user name",
		"a@!":               "error: Invalid domain",
	} {
		p, err := ParseUsername(name)
		got := p.String()
		if err != nil {
			got = "error: " + err.Error()
		}
		if got != want {
			t.Errorf("%q: %s, want %s", name, got, want)
		}
	}
}

func TestParseXclient(t *testing.T) {
	long := strings.Repeat("s", 100)
	for args, want := range map[string]Xclient{
		"":                       {},
		"ADDR=192.0.2.1 PORT=25": {Addr: netip.MustParseAddr("192.0.2.1"), Port: 25},
		"addr=IPV6:2001:db8::1":  {Addr: netip.MustParseAddr("2001:db8::1")},
		"ADDR=[UNAVAILABLE] PORT=[unavailable] HELO=[UNAVAILABLE] LOGIN=[UNAVAILABLE]": {},
		"HELO=a.example PROTO=esmtp":   {Helo: "a.example", Proto: "ESMTP"},
		"HELO=!":                       {},
		"LOGIN=a+40b SESSION=" + long:  {Login: "a@b", Session: long},
		"TTL=0 TIMEOUT=5":              {HasTTL: true, Timeout: 5},
		"FORWARD=YT1i+3D NAME=x FOO=y": {Forward: "YT1i=", HasForward: true},
	} {
		x, refusal := ParseXclient(args)
		if !refusal.IsZero() || x != want {
			t.Errorf("%q: %+v %v, want %+v", args, x, refusal, want)
		}
	}
	for args, want := range map[string]string{
		"ADDR":                   "Invalid ADDR parameter",
		"ADDR=[TEMPUNAVAIL]":     "Invalid ADDR parameter",
		"ADDR=IPV6:192.0.2.1":    "Invalid ADDR parameter",
		"ADDR=fe80::1%25eth0":    "Invalid ADDR parameter",
		"PORT=65536":             "Invalid PORT parameter",
		"PORT=x":                 "Invalid PORT parameter",
		"proto=[UNAVAILABLE]":    "Invalid PROTO parameter",
		"TTL=x":                  "Invalid TTL parameter",
		"TIMEOUT=":               "Invalid TIMEOUT parameter",
		"LOGIN=+4":               "Invalid LOGIN parameter: Invalid hexchar after '+' in xtext",
		"FORWARD=+00":            "Invalid FORWARD parameter: Encountered NUL character in xtext",
		"=x":                     "Invalid parameter: Unexpected character in parameter keyword",
		"A_B=x":                  "Invalid parameter: Unexpected character in parameter keyword",
		"ADDR=192.0.2.1  PORT=1": "Invalid parameter: Parameter is empty",
	} {
		x, refusal := ParseXclient(args)
		if got := refusal.String(); got != "501 5.5.4 "+want || x != (Xclient{}) {
			t.Errorf("%q: %s, want %s", args, got, want)
		}
	}
}

func TestXclientMerge(t *testing.T) {
	x, _ := ParseXclient("ADDR=192.0.2.1 PORT=1 LOGIN=a TTL=3")
	later, _ := ParseXclient("PORT=2 LOGIN=b HELO=h FORWARD=eA==")
	if later.HasForward {
		t.Fatal("= is no xtext")
	}
	later, _ = ParseXclient("PORT=2 LOGIN=b HELO=h FORWARD=eA+3D+3D")
	x.Merge(later)
	want := Xclient{Addr: netip.MustParseAddr("192.0.2.1"), Port: 1, Login: "b", Helo: "h", TTL: 3, HasTTL: true, Forward: "eA==", HasForward: true}
	if x != want {
		t.Errorf("%+v, want %+v", x, want)
	}
}

func TestXclientCommands(t *testing.T) {
	attrs := []XclientAttr{{"HELO", "h"}, {"LOGIN", "a b"}, {"NAME", "x"}, {"ADDR", "IPV6:::1"}}
	got := XclientCommands([]string{"addr", "HELO", "LOGIN"}, 510, attrs)
	if want := []string{"XCLIENT HELO=h LOGIN=a+20b ADDR=IPV6:::1"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := XclientCommands([]string{"PORT"}, 510, attrs); len(got) != 0 {
		t.Errorf("no attribute is known, and %q is sent", got)
	}
	for _, limit := range []int{20, 27, 28, 510} {
		var values []string
		for _, line := range XclientCommands([]string{"HELO", "LOGIN", "ADDR"}, limit, attrs) {
			fields := strings.Fields(line)
			if len(line) > limit && len(fields) > 2 {
				t.Errorf("%q is longer than %d", line, limit)
			}
			values = append(values, fields[1:]...)
		}
		if want := []string{"HELO=h", "LOGIN=a+20b", "ADDR=IPV6:::1"}; !slices.Equal(values, want) {
			t.Errorf("limit %d: %q, want %q", limit, values, want)
		}
	}
}

func TestParseCapList(t *testing.T) {
	set, unknown := ParseCapList("8bitmime, DSN  foo,VRFY")
	if set != Cap8BitMIME|CapDSN|CapVRFY || !slices.Equal(unknown, []string{"foo"}) {
		t.Errorf("%b, unknown %q", set, unknown)
	}
	if set, _ := ParseCapList("BINARYMIME"); set != CapBinaryMIME|CapChunking {
		t.Errorf("BINARYMIME alone: %b", set)
	}
	if set, unknown := ParseCapList(""); set != 0 || unknown != nil {
		t.Errorf("empty: %b, %q", set, unknown)
	}
}

func TestParseEhlo(t *testing.T) {
	reply := NewReply(250, "", "relay.test hello", "PIPELINING", "size 100", "AUTH PLAIN login", "AUTH=LOGIN", "DSN a  x", "", "FOO bar", "XCLIENT NAME addr", "8BITMIME ", "SIZE 200")
	cs, warnings := ParseEhlo(reply)
	want := Capabilities{Set: CapPipelining | CapSize | CapAuth | CapXCLIENT | Cap8BitMIME, Size: 200, Auth: []string{"PLAIN", "LOGIN"}, Xclient: []string{"NAME", "ADDR"}}
	if !reflect.DeepEqual(cs, want) {
		t.Errorf("%+v, want %+v", cs, want)
	}
	const prefix = "Received invalid EHLO response line: "
	wantWarnings := []string{prefix + "Unexpected character in EHLO keyword", prefix + "Missing EHLO parameter after ' '", prefix + "Parameter is empty"}
	if !slices.Equal(warnings, wantWarnings) {
		t.Errorf("%q, want %q", warnings, wantWarnings)
	}
	cs, warnings = ParseEhlo(NewReply(250, "", "x", "SIZE 10M"))
	if cs.Set != 0 || !slices.Equal(warnings, []string{"Received invalid SIZE capability in EHLO response line"}) {
		t.Errorf("%+v, %q", cs, warnings)
	}
}

// parseReplies reads all replies in s, in pieces of n octets.
func parseReplies(s string, n int) (replies []Reply, err error) {
	var p ReplyParser
	for i := 0; i < len(s); i += n {
		for piece := []byte(s[i:min(i+n, len(s))]); len(piece) > 0; {
			used, r, ok, err := p.Parse(piece)
			if err != nil {
				return replies, err
			}
			if ok {
				replies = append(replies, r)
			} else if used != len(piece) {
				return nil, fmt.Errorf("%d of %d octets taken and no reply", used, len(piece))
			}
			piece = piece[used:]
		}
	}
	if p.Partial() {
		err = fmt.Errorf("partial")
	}
	return replies, err
}

func TestReplyParserBounds(t *testing.T) {
	line := func(n int) string { return strings.Repeat("x", n) }
	for _, n := range []int{MaxReplyLine - 1, MaxReplyLine, MaxReplyLine + 1, MaxReplyLine + lineRoom + 1, 8 << 20} {
		for _, piece := range []int{4096, 1000, 7} {
			if piece == 7 && n > 1<<20 {
				continue
			}
			got, err := parseReplies("250 "+line(n)+"\r\n250 next\r\n", piece)
			if err != nil || len(got) != 2 || got[0].Text[0] != line(min(n, MaxReplyLine)) || got[1].Text[0] != "next" {
				t.Errorf("a line of %d in pieces of %d: %d replies, %v", n, piece, len(got), err)
			}
		}
	}
	for _, n := range []int{MaxReplyLines - 1, MaxReplyLines, MaxReplyLines + 1, 50000} {
		got, err := parseReplies(strings.Repeat("250-x\r\n", n-1)+"250 x\r\n250 next\r\n", 4096)
		if err != nil || len(got) != 2 || len(got[0].Text) != min(n, MaxReplyLines) {
			t.Errorf("%d lines: %v", n, err)
		}
	}
	if _, err := parseReplies("250 "+line(maxReply)+"\r\n", 1<<16); err != errReplySize {
		t.Errorf("a line of %d: %v", maxReply, err)
	}
	if _, err := parseReplies(strings.Repeat("250-x\r\n", maxReply/7+1), 1<<16); err != errReplySize {
		t.Errorf("lines of %d: %v", maxReply, err)
	}
}

// What is no reply is noticed before its line ends.
func TestReplyParserFailsEarly(t *testing.T) {
	for _, s := range []string{"H", "2x", "19", "260", "25x", "SSH-2.0"} {
		var p ReplyParser
		if _, _, _, err := p.Parse([]byte(s)); err != errReplyCode {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestReplyParserEhlo(t *testing.T) {
	p := ReplyParser{Ehlo: true}
	_, r, ok, err := p.Parse([]byte("250-relay\x01\x00 \x7f hi\r\n250 DSN\r\n"))
	if err != nil || !ok || !slices.Equal(r.Text, []string{"relay     hi", "DSN"}) {
		t.Errorf("%q, %v, %v", r.Text, ok, err)
	}
}

func TestForwardFallback(t *testing.T) {
	for _, tt := range []struct {
		code     int
		text     string
		fallback string
		want     string
	}{
		{250, "ok", "2.1.0", "250 2.1.0 ok"},
		{250, "", "2.1.0", "250 2.1.0 "},
		{354, "go", "", "354 3.0.0 go"},
		{550, "5.7.1 no", "", "550 5.7.1 no"},
	} {
		got := string(Forward(NewReply(tt.code, "", tt.text), true, tt.fallback).Append(nil))
		if got != tt.want+"\r\n" {
			t.Errorf("%d %s: %q, want %q", tt.code, tt.text, got, tt.want)
		}
	}
}

func TestWithPath(t *testing.T) {
	p := Path{"bob", "dest.test"}
	for text, want := range map[string]string{
		"no such user":     "<bob@dest.test> no such user",
		"<bob@x> no":       "<bob@x> no",
		"<bob@x>":          "<bob@x>",
		"<bob@x>: unknown": "<bob@dest.test> <bob@x>: unknown",
		"<bob":             "<bob@dest.test> <bob",
		"":                 "<bob@dest.test> ",
	} {
		if got := NewReply(550, "5.1.1", text, "more").WithPath(p); got.Text[0] != want || got.Text[1] != "more" {
			t.Errorf("%q: %q, want %q", text, got.Text[0], want)
		}
	}
}

func TestOneLine(t *testing.T) {
	r := NewReply(250, "2.0.0", "a\tb", strings.Repeat("x", 200))
	if got := r.OneLine(20); got != "250 2.0.0 a?b xxx..." {
		t.Errorf("%q", got)
	}
	if got := NewReply(250, "", "ok").OneLine(20); got != "250 ok" {
		t.Errorf("%q", got)
	}
}

func TestReceived(t *testing.T) {
	r := Received{
		Helo: "[192.0.2.9]", IP: netip.MustParseAddr("::ffff:192.0.2.1"), Host: "host.test", Ext: true, TLS: true, ID: "ID:T2",
		From: Path{"a b", "c"}, For: &Path{"bob", "d"}, Date: time.Date(2026, 11, 3, 1, 2, 3, 0, time.FixedZone("", -3600)),
	}
	want := "Received: from [192.0.2.9] ([192.0.2.1])\r\n\tby host.test with ESMTPSA\r\n\tid ID:T2\r\n\t(envelope-from <\"a b\"@c>)\r\n\tfor <bob@d>; Tue, 03 Nov 2026 01:02:03 -0100\r\n"
	if got := string(r.Append(nil)); got != want {
		t.Errorf("%q\nwant %q", got, want)
	}
	r = Received{Host: "host.test", ID: "ID", Date: time.Date(2026, 11, 23, 10, 48, 42, 0, time.UTC)}
	want = "Received: from unknown\r\n\tby host.test with SMTPA\r\n\tid ID\r\n\t(envelope-from <>); Mon, 23 Nov 2026 10:48:42 +0000\r\n"
	if got := string(r.Append(nil)); got != want {
		t.Errorf("%q\nwant %q", got, want)
	}
	r.IP = netip.MustParseAddr("2001:db8::1")
	if got := string(r.Append(nil)); !strings.HasPrefix(got, "Received: from unknown ([2001:db8::1])\r\n") {
		t.Errorf("%q", got)
	}
}
