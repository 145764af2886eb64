package fail2ban

import (
	"maps"
	"testing"
)

const log = `Nov 24 18:02:11 submission-login: Info: Disconnected: Aborted login by logging out (auth failed, 8 attempts in 0 secs): user=<alice>, method=LOGIN, rip=192.0.2.7, lip=127.0.0.1, secured, session=<9HoJzQlhYI9/AAAB>
Nov 24 18:02:12 submission-login: Info: Disconnected: Connection closed (tried to use disallowed plaintext auth): user=<>, method=PLAIN, rip=2001:db8::7, lip=::1, TLS, session=<9HoJzQlhYI9/AAAB>
Nov 24 18:02:12 submission-login: Info: Disconnected: Connection closed (no auth attempts in 0 secs): user=<>, rip=192.0.2.8, lip=127.0.0.1, TLS, session=<9HoJzQlhYI9/AAAB>
Nov 24 18:02:13 submission-login: Info: Login: user=<alice>, method=PLAIN, rip=192.0.2.9, lip=127.0.0.1, mpid=7, secured, session=<9HoJzQlhYI9/AAAB>
`

func TestMatches(t *testing.T) {
	if got := Count(Matches(t, log, Normal)); !maps.Equal(got, map[string]int{"192.0.2.7": 1, "2001:db8::7": 1}) {
		t.Errorf("normal: %v", got)
	}
	if got := Count(Matches(t, log, Aggressive)); !maps.Equal(got, map[string]int{"192.0.2.7": 1, "2001:db8::7": 1, "192.0.2.8": 1}) {
		t.Errorf("aggressive: %v", got)
	}
	if got := Matches(t, log, Normal); got[0].User != "alice" {
		t.Errorf("%+v", got)
	}
	if got := Matches(t, "Nov 24 18:02:11 nothing\n", Normal); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}
