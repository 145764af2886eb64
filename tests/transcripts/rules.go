// Package transcripts replays the recorded SMTP dialogues of this directory (README.md
// says what they are) against Dovecot and against our programs.
//
// What ours does differently on purpose is in differences.txt, one paragraph each. Most
// are shown by a transcript of their own: variants/ holds those that take the place of a
// recording, own/ those that no recording corresponds to. What touches many cases is a
// rule below: it changes what a case expects, by name, and is printed where it is used.
// Nothing else is loosened.
package transcripts

import (
	"regexp"
	"strconv"
	"strings"

	"dovetail/internal/testkit/system"
	"dovetail/internal/testkit/transcript"
)

func ourLogin(s system.System) bool  { return s.Login == system.Ours }
func ourWorker(s system.System) bool { return s.Worker == system.Ours }

// Rules are the differences that touch many cases. Their ids are in differences.txt.
var Rules = []transcript.Rule{
	{
		ID:      "burl-announced-only-when-it-works",
		Applies: func(s system.System) bool { return ourLogin(s) || ourWorker(s) },
		Change: func(c *transcript.Case, s system.System) bool {
			works := false
			for _, line := range c.Config {
				works = works || strings.HasPrefix(line, "imap_urlauth_host = ")
			}
			const burl = "250-BURL imap"
			before := 0 // announced by the login process
			n := c.RemoveServerLines(func(line string, loggedIn bool) bool {
				if works {
					return false
				}
				if loggedIn {
					return ourWorker(s) && strings.HasPrefix(line, burl)
				}
				if ourLogin(s) && line == burl {
					before++
					return true
				}
				return false
			})
			shortenProxied(c, before*len(burl+"\r\n"))
			return n > 0
		},
	},
	{
		ID:      "greeting-repeated-to-backend",
		Applies: ourLogin,
		Change: func(c *transcript.Case, s system.System) bool {
			helo, changed := "", false
			for i, e := range c.Events {
				if e.Kind != transcript.ToMTA || e.Action {
					continue
				}
				if m := xclientHelo.FindStringSubmatch(e.Text.Source); m != nil {
					helo = m[1]
				} else if helo != "" && helo != "[UNAVAILABLE]" && strings.HasPrefix(e.Text.Source, "EHLO ") {
					text, err := transcript.ParseText("EHLO " + helo)
					if err == nil {
						c.Events[i].Text, changed, helo = text, true, ""
					}
				}
			}
			return changed
		},
	},
	{
		ID:      "failed-attempts-logged-at-once",
		Applies: ourLogin,
		Change: func(c *transcript.Case, s system.System) bool {
			n := c.FailedAttempts()
			c.ExtraLog("submission-login: Info: Login attempt {n} failed: {text}: user=<{text}>, {text}session=<{session}>", n)
			return n > 0
		},
	},
}

// xclientHelo is an XCLIENT of the login process: the worker's to the relay begins otherwise.
var xclientHelo = regexp.MustCompile(`^XCLIENT HELO=(\S+) PROTO=\S+ .*ADDR=\S+ SESSION=`)

var proxiedOut = regexp.MustCompile(`(: Disconnected by (?:client|server)[^(]* \(.*, out=)(\d+)(\))`)

// shortenProxied corrects what the login process counts as sent to a client that it passes
// on: everything, from the greeting on.
func shortenProxied(c *transcript.Case, octets int) {
	for _, l := range c.Log {
		m := proxiedOut.FindStringSubmatch(l.Text.Source)
		if m == nil || octets == 0 {
			continue
		}
		n, err := strconv.Atoi(m[2])
		if err == nil {
			c.ReplaceInLog(m[0], m[1]+strconv.Itoa(n-octets)+m[3])
		}
	}
}

// Peculiarities are what the recorded server itself does not always do in the same way.
var Peculiarities = []transcript.Rule{
	{
		// The login process shuts the client's connection down when the worker says no,
		// which may be before the worker wrote its two lines (clause S3.2).
		ID:      "userdb-missing-race",
		Applies: func(s system.System) bool { return s.Login == system.Theirs },
		Change: func(c *transcript.Case, s system.System) bool {
			if c.Name != "52-userdb-missing" {
				return false
			}
			for i, e := range c.Events {
				if e.Kind == transcript.Server && (strings.HasPrefix(e.Text.Source, "451 ") || strings.HasPrefix(e.Text.Source, "421 ")) {
					c.Events[i].Optional = true
				}
			}
			return true
		},
	},
	{
		// How much of the message the worker has read when it is too large depends on the
		// pieces in which it comes.
		ID:      "read-before-size-abort",
		Applies: func(s system.System) bool { return s.Worker == system.Theirs },
		Change: func(c *transcript.Case, s system.System) bool {
			return c.Name == "35-size-abort" && c.ReplaceInLog(" in=1056068 ", " in={n} ") > 0
		},
	},
	{
		// Our master says less about core dumps.
		ID:      "under-our-master",
		Applies: func(s system.System) bool { return s.Master == system.Ours && s != system.Standalone },
		Change: func(c *transcript.Case, s system.System) bool {
			return c.ReplaceInLog("(core dumps disabled - https://dovecot.org/bugreport.html#coredumps)", "(core not dumped)") > 0
		},
	},
	{
		ID:      "times-vary",
		Applies: func(system.System) bool { return true },
		Change: func(c *transcript.Case, s system.System) bool {
			return c.ReplaceInLog("auth connected 0 msecs ago, request took 0 msecs", "auth connected {n} msecs ago, request took {n} msecs")+
				c.ReplaceInLog("failed: Connection refused (after 1 secs, 1 reconnects, ", "failed: Connection refused (after {n} secs, 1 reconnects, ") > 0
		},
	},
}
