// Package event is how the programs say what happened: one line for the admin, with
// Dovecot's severity words, and (where a metric exists for it) a counter. It knows
// neither the wire to the log service (package dovecot/log) nor files.
package event

import "fmt"

// A Level is a severity, in Dovecot's order and with Dovecot's words.
type Level int

const (
	Debug Level = iota
	Info
	Warning
	Error
	Fatal
	Panic
)

// String returns the word that stands before the text: "Info", "Warning", ...
func (l Level) String() string {
	return [...]string{"Debug", "Info", "Warning", "Error", "Fatal", "Panic"}[l]
}

// A Sink takes lines. Implementations are safe for concurrent use, sanitise what they
// write, and never fail visibly: a log that cannot be written is dropped.
// prefix is what stands before the severity word, such as "submission-login: ".
type Sink interface {
	Log(level Level, prefix, text string)
}

// SinkFunc makes a function a Sink.
type SinkFunc func(level Level, prefix, text string)

// Log calls f.
func (f SinkFunc) Log(level Level, prefix, text string) { f(level, prefix, text) }

// A Log writes to one sink under one prefix. It is immutable: safe for concurrent use.
// The nil Log drops everything.
type Log struct {
	sink   Sink
	prefix string
	debug  bool
}

// New returns a log that writes to sink under prefix; debug lines only if debug is set.
func New(sink Sink, prefix string, debug bool) *Log {
	return &Log{sink: sink, prefix: prefix, debug: debug}
}

// WithPrefix returns a log to the same sink whose lines carry prefix instead.
func (l *Log) WithPrefix(prefix string) *Log {
	if l == nil {
		return nil
	}
	c := *l
	c.prefix = prefix
	return &c
}

// WithDebug returns a log to the same sink that writes debug lines, or does not.
func (l *Log) WithDebug(on bool) *Log {
	if l == nil {
		return nil
	}
	c := *l
	c.debug = on
	return &c
}

// Prefix returns what stands before the severity word.
func (l *Log) Prefix() string {
	if l == nil {
		return ""
	}
	return l.prefix
}

// Debugging says whether debug lines are written, so that costly ones can be left out.
func (l *Log) Debugging() bool { return l != nil && l.debug }

func (l *Log) write(level Level, format string, args []any) {
	if l == nil || (level == Debug && !l.debug) {
		return
	}
	text := format
	if len(args) > 0 {
		text = fmt.Sprintf(format, args...)
	}
	l.sink.Log(level, l.prefix, text)
}

// Debug writes a line that only a debugging admin sees. A format without args is
// written as it is, so text from outside goes through %s.
func (l *Log) Debug(format string, args ...any) { l.write(Debug, format, args) }

// Info writes a line about normal work.
func (l *Log) Info(format string, args ...any) { l.write(Info, format, args) }

// Warning writes a line about something that works but should be looked at.
func (l *Log) Warning(format string, args ...any) { l.write(Warning, format, args) }

// Error writes a line about something that did not work.
func (l *Log) Error(format string, args ...any) { l.write(Error, format, args) }

// Fatal writes the line a process ends with. It does not end the process.
func (l *Log) Fatal(format string, args ...any) { l.write(Fatal, format, args) }

// Panic writes a line about a bug of ours. It does not panic.
func (l *Log) Panic(format string, args ...any) { l.write(Panic, format, args) }
