package proxy

import (
	"fmt"
	"strings"
	"time"

	"dovetail/internal/smtp"
)

// A Failure says why a login at a backend did not work (clause S9.7).
type Failure struct {
	Text  string     // for the log, of the backend's refusal the text alone
	Reply smtp.Reply // the backend's word on the login itself; zero: something else was wrong
	Retry bool       // another attempt may help

	local string // our end of the connection, for After
	timed bool   // After tells how long it took
}

func (f *Failure) Error() string { return f.Text }

// IsAuth says whether the backend refused the login, or put it off.
func (f *Failure) IsAuth() bool { return !f.Reply.IsZero() }

// After is the text for the log. Where a connection could not be made, or took too long, it
// says how long the login took, and how often it was tried again.
func (f *Failure) After(took time.Duration, reconnects int) string {
	if !f.timed {
		return f.Text
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s (after %d secs", f.Text, int(took/time.Second))
	if reconnects > 0 {
		fmt.Fprintf(&b, ", %d reconnects", reconnects)
	}
	if f.local != "" {
		b.WriteString(", local=" + f.local)
	}
	return b.String() + ")"
}

// protocol is a backend that does not speak as it should.
func protocol(text string) *Failure {
	return &Failure{Text: "Remote server sent invalid input: " + text, Retry: true}
}

func invalid(what, line string) *Failure { return protocol(what + ": " + line) }

// abort is a backend that says no to something that has to be.
func abort(text string, retry bool) *Failure {
	return &Failure{Text: "Aborting due to remote server: " + text, Retry: retry}
}
