package proxy

import (
	"dovetail/internal/smtp"
)

// A Failure says why a login at a backend did not work (clause S9.7).
type Failure struct {
	Text  string     // for the log
	Reply smtp.Reply // the backend's word on the login itself; zero: something else was wrong
	Retry bool       // another attempt may help
}

func (f *Failure) Error() string { return f.Text }

// IsAuth says whether the backend refused the login, or put it off.
func (f *Failure) IsAuth() bool { return !f.Reply.IsZero() }

func invalid(what, line string) *Failure {
	return &Failure{Text: "Remote server sent invalid input: " + what + ": " + line, Retry: true}
}

func abort(text string, retry bool) *Failure {
	return &Failure{Text: "Aborting due to remote server: " + text, Retry: retry}
}
