package logd

import (
	"strconv"
	"strings"
	"sync"
	"time"

	"dovetail/internal/dovecot/log"
	"dovetail/internal/dovecot/tabline"
	"dovetail/internal/process/event"
)

const (
	maxErrors     = 1000    // lines that are remembered, as in Dovecot
	maxErrorBytes = 1 << 20 // of them together
)

// recent remembers the last warnings and errors, for `doveadm log errors`. Any goroutine
// may use it.
type recent struct {
	mu    sync.Mutex
	lines []string // guarded by mu; the oldest first
	bytes int      // guarded by mu
}

// add takes a record that is a warning or worse. Its line is
//
//	<level> <unix time> <prefix> <text>     separated by TAB, escaped
func (r *recent) add(rec log.Record, t time.Time) {
	if rec.Level < event.Warning {
		return
	}
	b := []byte(strings.ToLower(rec.Level.String()))
	b = append(b, '\t')
	b = strconv.AppendInt(b, t.Unix(), 10)
	b = append(b, '\t')
	b = tabline.AppendEscaped(b, rec.Prefix)
	b = append(b, '\t')
	b = tabline.AppendEscaped(b, rec.Text)
	b = append(b, '\n')
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, string(b))
	r.bytes += len(b)
	drop := 0
	for len(r.lines)-drop > maxErrors || r.bytes > maxErrorBytes {
		r.bytes -= len(r.lines[drop])
		drop++
	}
	if drop > 0 {
		r.lines = append(r.lines[:0:0], r.lines[drop:]...)
	}
}

// all returns the lines.
func (r *recent) all() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.lines, "")
}
