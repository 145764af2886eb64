package submission

import (
	"bytes"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"dovetail/internal/process/event"
)

// A rawlog keeps a dialogue in two files, each line with its time, as Dovecot's rawlog_dir
// does. The nil rawlog keeps nothing.
type rawlog struct {
	mu    sync.Mutex
	files [2]*os.File // guarded by mu: what comes in, what goes out; nil after an error
	inner [2]bool     // guarded by mu: the last octet was no LF
	log   *event.Log
}

var rawlogs atomic.Uint32 // number of the last one in this process

// openRawlog opens the files in dir, a setting, if that directory exists.
func openRawlog(u *user, dir string, log *event.Log) *rawlog {
	if dir == "" {
		return nil
	}
	dir, err := u.expandPath(dir)
	if err != nil {
		log.Error("rawlog: %v", err)
		return nil
	}
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		if err != nil && !os.IsNotExist(err) && !os.IsPermission(err) {
			log.Error("rawlog: %v", err)
		}
		return nil
	}
	r := &rawlog{log: log}
	base := fmt.Sprintf("%s/%s.%d.%d", dir, time.Now().Format("20060102-150405"), os.Getpid(), rawlogs.Add(1))
	for i, ext := range [...]string{".in", ".out"} {
		if r.files[i], err = os.OpenFile(base+ext, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
			log.Error("rawlog: %v", err)
			r.close()
			return nil
		}
	}
	return r
}

// tap returns what is lent the octets; nil if there is nothing to keep them.
func (r *rawlog) tap() func(in bool, data []byte) {
	if r == nil {
		return nil
	}
	return r.write
}

func (r *rawlog) write(in bool, data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := 1
	if in {
		i = 0
	}
	if r.files[i] == nil || len(data) == 0 {
		return
	}
	now := time.Now()
	stamp := fmt.Appendf(nil, "%d.%06d ", now.Unix(), now.Nanosecond()/1000)
	var out []byte
	for line := range bytes.Lines(data) {
		if !r.inner[i] {
			out = append(out, stamp...)
		}
		out = append(out, line...)
		r.inner[i] = line[len(line)-1] != '\n'
	}
	if _, err := r.files[i].Write(out); err != nil {
		r.log.Error("rawlog: %v", err)
		r.files[i].Close()
		r.files[i] = nil
	}
}

func (r *rawlog) close() {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, f := range r.files {
		if f != nil {
			f.Close()
			r.files[i] = nil
		}
	}
}
