package log

import (
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"dovetail/internal/process/event"
	"dovetail/internal/process/rawio"
)

const (
	// maxText is how much of one text is written, in as many lines as it needs. A stack
	// trace is what comes near it.
	maxText = 64 << 10

	// maxPrefix is how much of a prefix is written. It holds a user name and a session id.
	maxPrefix = 1024

	keep = 8 << 10 // of a buffer, between texts

	// patience is how long a full pipe is waited for. Dovecot waits for ever; here a log
	// service that stands still costs lines, not sessions.
	patience = 5 * time.Second
)

// A Writer writes to the log service. It is an event.Sink: any goroutine may use it, and a
// line that cannot be written is dropped. After drops the next line that gets through is
// followed by one that counts them.
//
// Lines have their prefix with them, unless it is the service's own: a log service that was
// started anew knows that, but has forgotten what processes told the one before it.
type Writer struct {
	fd       int           // lent by the caller of NewWriter, constant
	pid      int           // constant
	service  string        // what the log service puts before lines without a prefix, constant
	patience time.Duration // constant

	mu      sync.Mutex // held for the writing of one text
	prefix  string     // guarded by mu; what the log service was told; "" for nothing
	head    []byte     // guarded by mu; of the lines being written
	text    []byte     // guarded by mu; sanitised
	line    []byte     // guarded by mu; head, a piece of text, LF
	dropped int        // guarded by mu; texts since the last that got through
	stuck   bool       // guarded by mu; the last wait was in vain, the next one is short
}

// NewWriter returns a Writer to the pipe fd, which may be non-blocking. It lends fd.
// servicePrefix is what the master has told the log service to put before this service's
// lines: its name and ": ".
func NewWriter(fd int, servicePrefix string) *Writer {
	return &Writer{fd: fd, pid: os.Getpid(), patience: patience, service: servicePrefix}
}

// SetPrefix makes prefix what the log service puts before what the master says of this
// process's death, and before what it says without a Writer.
func (w *Writer) SetPrefix(prefix string) {
	prefix = cut(prefix, maxPrefix)
	w.mu.Lock()
	defer w.mu.Unlock()
	if prefix == w.prefix {
		return
	}
	w.headLocked(typeOption)
	if w.writeLocked(optionPrefix + prefix) {
		w.prefix = prefix
	}
}

// Nudge makes the log service read once more, by a line that changes nothing. What
// Dovecot's (2.3.19) reads together with the master's handshake, the first lines of a
// service's life, it handles only with its next read, which may never come. A process that
// ends after its first line waits a moment and calls Nudge.
func (w *Writer) Nudge() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.headLocked(typeOption)
	w.writeLocked(optionPrefix + w.prefix)
}

// SetIP tells the log service the address of the client being served, which it adds to
// the master's notice if the process dies (clause P1.8.4).
func (w *Writer) SetIP(addr string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.headLocked(typeOption)
	w.writeLocked(optionIP + addr)
}

// Log implements event.Sink. At most 64 KiB of text and 1 KiB of prefix are written, in
// lines of up to MaxLine bytes.
func (w *Writer) Log(level event.Level, prefix, text string) {
	prefix = cut(prefix, maxPrefix)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lineHeadLocked(level, prefix)
	if !w.writeLocked(cut(text, maxText)) {
		w.dropped++
		return
	}
	if n := w.dropped; n > 0 {
		w.lineHeadLocked(event.Warning, prefix)
		if w.writeLocked("Log: " + strconv.Itoa(n) + " lines were lost, the log service did not take them") {
			w.dropped = 0
		}
	}
}

// cut returns at most the first n bytes of s.
func cut(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}

func (w *Writer) headLocked(typ byte) {
	w.head = append(w.head[:0], startByte, typ)
	w.head = strconv.AppendInt(w.head, int64(w.pid), 10)
	w.head = append(w.head, ' ')
}

// lineHeadLocked is headLocked for a line of text. A prefix that is not the service's goes
// with the line.
func (w *Writer) lineHeadLocked(level event.Level, prefix string) {
	if prefix == w.service && (w.prefix == "" || w.prefix == w.service) {
		w.headLocked(typeByte(level))
		return
	}
	w.headLocked(typeByte(level) | flagNoPrefix | flagPrefixLen)
	w.text = AppendSanitised(w.text[:0], prefix) // as long as prefix or shorter
	w.head = strconv.AppendInt(w.head, int64(len(w.text)), 10)
	w.head = append(w.head, ' ')
	w.head = append(w.head, w.text...)
}

// writeLocked writes text behind head, in lines that each have the head. It reports
// whether all of it got through.
func (w *Writer) writeLocked(text string) bool {
	w.text = AppendSanitised(w.text[:0], text)
	room := MaxLine - len(w.head) - 1
	for rest := w.text; ; {
		n := min(len(rest), room)
		for n < len(rest) && n > room-utf8.UTFMax && !utf8.RuneStart(rest[n]) {
			n--
		}
		w.line = append(append(append(w.line[:0], w.head...), rest[:n]...), '\n')
		if !w.pipeLocked(w.line) {
			return false
		}
		if rest = rest[n:]; len(rest) == 0 {
			break
		}
	}
	if cap(w.text) > keep {
		w.text = nil
	}
	return true
}

// pipeLocked makes one write of line, waiting while the pipe is full.
func (w *Writer) pipeLocked(line []byte) bool {
	wait := w.patience
	if w.stuck {
		wait = 0
	}
	end := time.Now().Add(wait)
	for {
		n, err := rawio.Write(uintptr(w.fd), line)
		switch {
		case err == nil:
			w.stuck = false
			return n == len(line)
		case err == syscall.EINTR:
		case err == syscall.EAGAIN:
			if w.stuck = !writable(w.fd, time.Until(end)); w.stuck {
				return false
			}
		default: // EPIPE: no log service
			return false
		}
	}
}

// writable waits until fd can be written to, or is broken. False: not within wait.
func writable(fd int, wait time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	for end := time.Now().Add(wait); ; wait = time.Until(end) {
		n, err := unix.Poll(fds, int(max(wait, 0).Milliseconds()))
		if err != unix.EINTR {
			return n > 0
		}
	}
}
