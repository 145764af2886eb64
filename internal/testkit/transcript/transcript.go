// Package transcript reads recorded SMTP dialogues and replays them against a running
// system. The format is that of tests/transcripts/README.md:
//
//	# title            C: x   the client sends line x       S: x   the server answers
//	@config LINE       R: x   the server sends to the relay M: x   the relay answers
//	@relay up          C! S! R! M!  connect, close, eof, tls ...   L: x   a log line
//
// Within C/S and within R/M the events are in wire order; what stands above a C event was
// complete before it. A replay runs the two sides as two ordered lists.
package transcript

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// A Kind is the first column of an event line.
type Kind byte

const (
	Client Kind = 'C'
	Server Kind = 'S'
	ToMTA  Kind = 'R'
	MTA    Kind = 'M'
)

// An Event is one line behind the header, other than a log line.
type Event struct {
	Line   int  // in the file, from 1
	Kind   Kind // C S R M
	Conn   int  // 1 or 2: which client connection
	Action bool // "C! ..." instead of "C: ..."
	Text   Text
	Word   string        // of an action: connect, starttls, shutdown, close, wait, eof, tls-failed, tls, error, rst
	TLS    bool          // of connect
	Source string        // of connect: "127.0.0.2", "" for any
	Wait   time.Duration // of wait

	// Optional is set by a rule: the end of the connection may come instead.
	Optional bool
}

// A Case is one transcript.
type Case struct {
	Path, Name, Title string
	Number            string // "07"
	Clauses           []string
	Config, Unset     []string
	Notes             []string
	Relay             bool // somebody listens on the relay's port: relay or backend
	Events            []Event
	Log               []LogLine

	// Of a variant: whose program it is about (login, worker), and which differences it
	// shows.
	Sides       []string
	Differences []string

	// Set by rules.
	Extra []ExtraLines
	Used  []string // ids of the rules that changed the case
}

// A LogLine is an expected line of the log.
type LogLine struct {
	Line int
	Text Text
}

// ExtraLines are log lines that may stand anywhere, but exactly so many times.
type ExtraLines struct {
	Text  Text
	Count int
}

// Load reads one file.
func Load(path string) (*Case, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return Parse(path, string(data))
}

// LoadAll reads the files that glob names, in order.
func LoadAll(glob string) ([]*Case, error) {
	paths, err := filepath.Glob(glob)
	if err != nil {
		return nil, err
	}
	var cases []*Case
	for _, p := range paths {
		c, err := Load(p)
		if err != nil {
			return nil, err
		}
		cases = append(cases, c)
	}
	return cases, nil
}

// Parse reads a transcript; path is for messages, and names the case.
func Parse(path, data string) (*Case, error) {
	c := &Case{Path: path, Name: strings.TrimSuffix(filepath.Base(path), ".txt")}
	c.Number, _, _ = strings.Cut(c.Name, "-")
	body := false
	lines := strings.Split(data, "\n")
	if lines[len(lines)-1] != "" {
		return nil, fmt.Errorf("%s: the last line has no LF", path)
	}
	for i, line := range lines[:len(lines)-1] {
		var err error
		switch {
		case body:
			err = c.event(i+1, line)
		case line == "--":
			body = true
		default:
			err = c.header(line)
		}
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, i+1, err)
		}
	}
	if len(c.Events) == 0 {
		return nil, fmt.Errorf("%s: no events", path)
	}
	return c, nil
}

func (c *Case) header(line string) error {
	if title, ok := strings.CutPrefix(line, "# "); ok {
		c.Title = title
		return nil
	}
	word, rest, _ := strings.Cut(line, " ")
	switch word {
	case "@case":
		if rest != c.Name {
			return fmt.Errorf("the case is called %q, the file %q", rest, c.Name)
		}
	case "@side":
		c.Sides = append(c.Sides, rest)
		if rest != "login" && rest != "worker" {
			return fmt.Errorf("side is login or worker, not %q", rest)
		}
	case "@difference":
		c.Differences = append(c.Differences, rest)
	case "@clauses":
		c.Clauses = strings.Fields(rest)
	case "@recorded":
	case "@config":
		c.Config = append(c.Config, rest)
	case "@unset":
		c.Unset = append(c.Unset, rest)
	case "@note":
		c.Notes = append(c.Notes, rest)
	case "@relay", "@backend":
		if rest != "up" && rest != "down" {
			return fmt.Errorf("%s is up or down, not %q", word, rest)
		}
		c.Relay = rest == "up"
	default:
		return fmt.Errorf("unknown header line %q", line)
	}
	return nil
}

// event reads "C: text", "C2! word args" or "L: text".
func (c *Case) event(n int, line string) error {
	head, rest := line, ""
	if i := strings.IndexAny(line, ":!"); i > 0 {
		head, rest = line[:i+1], strings.TrimPrefix(line[i+1:], " ")
	}
	if head == "L:" {
		text, err := ParseText(rest)
		if err != nil {
			return err
		}
		c.Log = append(c.Log, LogLine{n, text})
		return nil
	}
	if len(c.Log) > 0 {
		return fmt.Errorf("%q behind the log lines", line)
	}
	if len(head) < 2 {
		return fmt.Errorf("unknown event %q", line)
	}
	e := Event{Line: n, Kind: Kind(line[0]), Conn: 1}
	mark := head[1:]
	if strings.HasPrefix(mark, "2") && (e.Kind == Client || e.Kind == Server) {
		e.Conn, mark = 2, mark[1:]
	}
	if mark != ":" && mark != "!" || !strings.ContainsRune("CSRM", rune(e.Kind)) {
		return fmt.Errorf("unknown event %q", line)
	}
	var err error
	if mark == ":" {
		e.Text, err = ParseText(rest)
	} else {
		e.Action = true
		err = e.action(strings.Fields(rest))
	}
	c.Events = append(c.Events, e)
	return err
}

// actions lists the words of each side.
var actions = map[Kind]string{
	Client: " connect starttls shutdown close wait ",
	Server: " eof tls-failed ",
	ToMTA:  " connect tls eof error ",
	MTA:    " close rst wait ",
}

func (e *Event) action(words []string) error {
	if len(words) == 0 || !strings.Contains(actions[e.Kind], " "+words[0]+" ") {
		return fmt.Errorf("unknown action %q of %c", words, e.Kind)
	}
	e.Word = words[0]
	args := words[1:]
	switch {
	case e.Word == "wait" && len(args) == 1:
		seconds, err := strconv.ParseFloat(args[0], 64)
		if err != nil || seconds < 0 || seconds > 60 {
			return fmt.Errorf("wait %q", args[0])
		}
		e.Wait = time.Duration(seconds * float64(time.Second))
		return nil
	case e.Word == "tls-failed" && len(args) <= 1:
		return nil // the argument is the name of an error in another client's library
	case e.Kind == Client && e.Word == "connect":
		for _, a := range args {
			if src, ok := strings.CutPrefix(a, "src="); ok {
				e.Source = src
			} else if a == "tls" {
				e.TLS = true
			} else {
				return fmt.Errorf("connect %q", a)
			}
		}
		return nil
	case e.Word != "wait" && len(args) == 0:
		return nil
	}
	return fmt.Errorf("%s %q", e.Word, args)
}

// groups says whether e continues the write or answer of the event before it.
func (e *Event) continues(before *Event) bool {
	return !e.Action && !before.Action && e.Kind == before.Kind && e.Conn == before.Conn && e.Line == before.Line+1
}

var defectNote = regexp.MustCompile(`\(DO NOT COPY\)`)

// IsDefect says whether the case records what must not be copied.
func (c *Case) IsDefect() bool { return defectNote.MatchString(c.Title) }
