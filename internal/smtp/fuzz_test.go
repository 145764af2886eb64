package smtp

import (
	"reflect"
	"strings"
	"testing"
)

const allCaps = CapAuth | CapSize | Cap8BitMIME | CapBinaryMIME | CapChunking | CapDSN

// What is sent on for a MAIL is understood as the same MAIL, is one line of ASCII, and
// comes out the same when sent on again.
func FuzzMail(f *testing.F) {
	for _, p := range pathSeeds {
		f.Add("FROM:"+p+" "+mailParams[len(p)%len(mailParams)], uint8(len(p)))
	}
	f.Fuzz(func(t *testing.T, args string, w uint8) {
		from, params, refusal := ParseMail(args, allCaps, Workarounds(w)&3)
		if !refusal.IsZero() {
			if c := refusal.Code; c != 501 && c != 555 {
				t.Fatalf("%q: %v", args, refusal)
			}
			return
		}
		line := string(AppendMail(nil, from, &params, allCaps&^CapSize))
		if !graphic.all(line) {
			t.Fatalf("%q is sent as %q", args, line)
		}
		from2, params2, refusal := ParseMail(strings.TrimPrefix(line, "MAIL "), allCaps, 0)
		params2.Size, params2.HasSize = params.Size, params.HasSize
		if !refusal.IsZero() || from2 != from || params2 != params {
			t.Fatalf("%q is sent as %q and understood as %+v %+v (%v), not %+v %+v", args, line, from2, params2, refusal, from, params)
		}
	})
}

func FuzzRcpt(f *testing.F) {
	for _, p := range pathSeeds {
		f.Add("TO:"+p+" "+rcptParams[len(p)%len(rcptParams)], uint8(len(p)))
	}
	for _, p := range rcptParams {
		f.Add("TO:<a@b> "+p, uint8(0))
	}
	f.Fuzz(func(t *testing.T, args string, w uint8) {
		to, params, refusal := ParseRcpt(args, allCaps, Workarounds(w)&3)
		if !refusal.IsZero() {
			return
		}
		line := string(AppendRcpt(nil, to, &params, allCaps))
		if !graphic.all(line) || to.IsNull() {
			t.Fatalf("%q is sent as %q", args, line)
		}
		to2, params2, refusal := ParseRcpt(strings.TrimPrefix(line, "RCPT "), allCaps, 0)
		if !refusal.IsZero() || to2 != to || params2 != params {
			t.Fatalf("%q is sent as %q and understood as %+v %+v (%v), not %+v %+v", args, line, to2, params2, refusal, to, params)
		}
	})
}

func FuzzXclient(f *testing.F) {
	f.Add("ADDR=IPV6:::1 PORT=25 HELO=[1.2.3.4] LOGIN=a+20b FORWARD=YQ+3D+3D")
	f.Add("TTL=5 TIMEOUT=x")
	f.Fuzz(func(t *testing.T, args string) {
		x, refusal := ParseXclient(args)
		if !refusal.IsZero() && x != (Xclient{}) {
			t.Fatalf("%q: refused, and yet %+v", args, x)
		}
		for _, line := range XclientCommands([]string{"LOGIN", "SESSION"}, 510, []XclientAttr{{"LOGIN", x.Login}, {"SESSION", x.Session}}) {
			again, refusal := ParseXclient(strings.TrimPrefix(line, "XCLIENT "))
			if !refusal.IsZero() || again.Login != x.Login && strings.Contains(line, " LOGIN=") && !strings.EqualFold(x.Login, unavailable) {
				t.Fatalf("%q sends %q: %v", args, line, refusal)
			}
		}
	})
}

func FuzzString(f *testing.F) {
	for _, s := range stringSeeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, args string) {
		value, given, refusal := ParseString(args)
		if !given || !refusal.IsZero() {
			return
		}
		again, _, refusal := ParseString(string(AppendString(nil, value)))
		if !refusal.IsZero() || again != value {
			t.Fatalf("%q is sent as %q and understood as %q (%v)", args, value, again, refusal)
		}
	})
}

// A reply is read the same however it is split, and what was read can be written and read.
func FuzzReplyParser(f *testing.F) {
	for i, s := range replySeeds {
		f.Add(s+"250 next\r\n", uint16(i%7))
	}
	f.Add("250-"+strings.Repeat("x", 3000)+"\r\n250 y\r\n", uint16(2060))
	f.Fuzz(func(t *testing.T, s string, n uint16) {
		whole, err := parseReplies(s, max(len(s), 1))
		pieces, err2 := parseReplies(s, int(n)+1)
		if err == nil && (err2 != nil || !reflect.DeepEqual(whole, pieces)) {
			t.Fatalf("%q: %v, in pieces %v (%v)", s, whole, pieces, err2)
		}
		for _, r := range whole {
			again, err := parseReplies(string(r.Append(nil)), 1<<20)
			if err != nil || len(again) != 1 || !reflect.DeepEqual(again[0], r) {
				t.Fatalf("%q is read as %v, and that as %v (%v)", s, r, again, err)
			}
			for _, line := range Forward(r, true, "").WithPath(Path{"a", "b"}).Text {
				if !textString.all(line) {
					t.Fatalf("%q is forwarded with %q", s, line)
				}
			}
			ParseEhlo(r)
		}
	})
}
