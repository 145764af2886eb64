package master

import (
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"

	"dovetail/internal/dovecot/masterproto"
)

// Times and limits of Dovecot's master.
const (
	firstStatusTimeout = 30 * time.Second       // P1.5.3
	throttleMin        = 2 * time.Second        // P1.9.3
	throttleMax        = 60 * time.Second       // P1.9.3
	dropTimeout        = 10 * time.Second       // P1.7.5
	dropWarningDelay   = 500 * time.Millisecond // of workers
	notifyInterval     = 2 * time.Second        // P1.7.3
	maxExitFailures    = 10                     // in one second, P1.9.3
	preforkAtOnce      = 10
	idleSpread         = 100 // so many steps of 10 ms are added to idle_kill at random
)

// A service is a Service with its processes. How many of them accept clients decides
// everything (clause P1.5): while none does, the master waits for connections itself.
type service struct {
	*Service
	gen       *generation
	sockets   []*socket
	processes map[int]*process // by pid
	avail     int              // processes that accept clients, with those just started
	total     uint64           // processes ever started

	logPipe  pipe
	logIndex int // descriptor of logPipe in the log process
	status   pipe
	dead     pipe
	reader   *watch // of status

	throttle      time.Duration // the next one
	throttled     *timer
	failedIn      int64 // second of the last failures
	failures      int   // in that second
	everSucceeded bool

	notifyFD   int // of login services; -1 without
	full       bool
	lastNotify time.Time
	notify     *timer

	listening    bool // sockets are watched
	pending      bool // clients wait, and all processes are busy
	drop         *timer
	dropWarning  *timer
	lastDropWarn time.Time
	prefork      *timer
	preforkSeen  uint64 // gen.forks when the timer was set

	stopped   bool // by an admin
	unlimited bool // vsz_limit cannot be set, which has been said
}

func (s *service) errorf(format string, args ...any) {
	s.gen.m.log.Error("service(%s): %s", s.Name, fmt.Sprintf(format, args...))
}

func (s *service) loop() *loop { return s.gen.m.loop }

// start makes the pipes that are missing and begins to listen. Processes come later.
func (s *service) start() {
	var err error
	if s.Type == Login && s.notifyFD < 0 {
		if s.notifyFD, err = s.gen.makeNotifyFile(); err != nil {
			s.errorf("%v", err)
			return
		}
	}
	if !s.dead.open() {
		if s.dead, err = makePipe(0); err != nil {
			s.errorf("%v", err)
			return
		}
	}
	if !s.status.open() {
		if s.status, err = makePipe(unix.O_NONBLOCK); err != nil {
			s.errorf("%v", err)
			return
		}
	}
	if s.reader == nil {
		s.reader = s.loop().watch(s.status.r, s.readStatus)
	}
	s.listen()
}

// quiesce lets the processes know that they are no longer wanted (clause P1.6). The
// service starts nothing more, but goes on reading what they report.
func (s *service) quiesce() {
	s.dead.close()
	s.listenStop()
	s.throttled.stop()
	s.prefork.stop()
	for _, p := range s.processes {
		p.idle.stop()
	}
	if s.Type == Anvil { // its process and status pipe are the next generation's
		s.reader.stop()
		s.reader, s.status = nil, pipe{}
	}
}

// monitorStop is quiesce, and does not look at the service any more.
func (s *service) monitorStop() {
	s.quiesce()
	s.reader.stop()
	s.reader = nil
	s.status.close()
	if s.notifyFD >= 0 {
		unix.Close(s.notifyFD)
		s.notifyFD = -1
	}
	s.notify.stop()
}

// stopAndClose is monitorStop for a service that an admin stops: nobody listens any more,
// and to its processes it is as if the master had ended.
func (s *service) stopAndClose() {
	s.monitorStop()
	for _, p := range s.processes {
		p.control.close()
	}
	for _, k := range s.sockets {
		k.close()
	}
	s.stopped = true
}

// readStatus reads status records (clause P1.5).
func (s *service) readStatus() {
	var b [1024 / masterproto.StatusSize * masterproto.StatusSize]byte
	n, err := unix.Read(s.status.r, b[:])
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		return
	case err != nil:
		s.errorf("read(status) failed: %v", err)
		s.monitorStop()
		return
	case n == 0:
		s.errorf("read(status) failed: EOF")
		s.monitorStop()
		return
	case n%masterproto.StatusSize != 0:
		s.errorf("service sent partial status update (%d bytes)", n)
		return
	}
	for i := 0; i < n; i += masterproto.StatusSize {
		if st, err := masterproto.ParseStatus(b[i : i+masterproto.StatusSize]); err == nil {
			s.update(st)
		}
	}
}

func (s *service) update(st masterproto.Status) {
	p := s.gen.m.pids[int(st.PID)]
	if p == nil {
		return // it has ended
	}
	if p.uid != st.Generation || p.service != s {
		s.errorf("Ignoring invalid update from child %d (UID=%d)", st.PID, st.Generation)
		return
	}
	p.lastStatus = time.Now()
	p.firstStatus.stop()
	p.initialized = true
	if was := p.available; was != st.Available {
		if was > st.Available {
			s.busier(p, st.Available)
		} else {
			s.freer(p)
		}
		p.available = st.Available
	}
	s.checkIdle(p)
}

// busier: p took more clients, and accepts n more.
func (s *service) busier(p *process, n uint32) {
	p.total += uint64(p.available - n)
	p.idleStart = time.Time{}
	p.idle.stop()
	if n != 0 {
		return
	}
	s.avail--
	if s.Type == Login && s.avail == 0 && len(s.processes) == int(s.ProcessLimit) {
		s.tellFull(true)
	}
	s.startExtra()
	s.listen()
}

// freer: p finished clients.
func (s *service) freer(p *process) {
	s.dropWarning.stop()
	if p.available == 0 {
		if s.avail++; s.avail == 1 {
			s.listenStop()
		}
	}
	if s.Type == Login {
		s.tellFull(false)
	}
}

// checkIdle sets the time after which an idle process is told to go (clause P1.7.1).
func (s *service) checkIdle(p *process) {
	if p.available != s.ClientLimit {
		return
	}
	p.idleStart = time.Now()
	if s.avail > int(s.ProcessMinAvail) && !p.idle.pending() && s.IdleKill != Never && !s.gen.destroying {
		spread := time.Duration(rand.IntN(idleSpread)) * 10 * time.Millisecond
		p.idle = s.loop().after(s.IdleKill+spread, func() { s.killIdle(p) })
	}
}

func (s *service) killIdle(p *process) {
	switch {
	case s.avail <= int(s.ProcessMinAvail):
		// The others are needed, and so is this one.
	case p.lastKill.After(p.lastStatus.Add(time.Second)):
		s.errorf("Process %d is ignoring idle SIGINT", p.pid)
		s.busier(p, 0)
		p.available = 0
	default:
		if err := unix.Kill(p.pid, unix.SIGINT); err != nil && err != unix.ESRCH {
			s.errorf("kill(%d, SIGINT) failed: %v", p.pid, err)
		}
		p.lastKill = time.Now()
		// An answer renews the timer; without one it comes again.
		p.idle = s.loop().after(s.IdleKill, func() { s.killIdle(p) })
	}
}

// listen waits for connections while no process does.
func (s *service) listen() {
	if s.avail > 0 || s.throttled.pending() || s.stopped || s.gen.destroying ||
		len(s.processes) == int(s.ProcessLimit) && s.pending {
		return
	}
	s.listenForce()
}

func (s *service) listenForce() {
	s.listening, s.pending = true, false
	s.drop.stop()
	s.dropWarning.stop()
	for _, k := range s.sockets {
		if k.watch == nil && k.fd >= 0 {
			k.watch = s.loop().watch(k.fd, func() { s.accept(k) })
		}
	}
}

// listenStop leaves the sockets to the processes.
func (s *service) listenStop() {
	for _, k := range s.sockets {
		k.watch.stop()
		k.watch = nil
	}
	s.listening, s.pending = false, false
	s.drop.stop()
	s.dropWarning.stop()
}

// accept: a connection waits at k, and no process is there to take it.
func (s *service) accept(k *socket) {
	if len(s.processes) >= int(s.ProcessLimit) {
		s.gen.m.reap() // perhaps one has just ended
		if s.avail > 0 {
			return
		}
	}
	if len(s.processes) >= int(s.ProcessLimit) {
		s.dropConnections(k)
		return
	}
	if s.startProcess() {
		s.listenStop()
	} else {
		s.throttleNow()
	}
}

// dropConnections is for connections beyond process_limit (clauses P1.7.5, P1.7.6).
func (s *service) dropConnections(k *socket) {
	if s.Type != Worker {
		s.warnDrop()
	}
	switch {
	case s.Type == Login:
		s.tellFull(true) // they are to drop clients of their own
		s.listenPending()
	case !s.pending:
		s.listenPending() // perhaps a peak that passes
		if !s.dropWarning.pending() && s.Type == Worker {
			s.dropWarning = s.loop().after(dropWarningDelay, s.warnDrop)
		}
	default:
		k.dropOne()
	}
}

// listenPending looks away for a while. What waits then is dropped.
func (s *service) listenPending() {
	s.listenStop()
	s.pending = true
	s.drop = s.loop().after(s.gen.m.times.drop, func() {
		for _, k := range s.sockets {
			k.dropAll()
		}
		s.listenForce()
		s.pending = true
	})
}

func (s *service) warnDrop() {
	now := time.Now()
	if now.Sub(s.lastDropWarn) < time.Second {
		return
	}
	s.lastDropWarn = now
	name, limit := "client_limit", s.ClientLimit
	switch {
	case s.ProcessLimit > 1:
		name, limit = "process_limit", s.ProcessLimit
	case s.ServiceCount == 1:
		name, limit = "client_limit/service_count", 1
	}
	s.gen.m.log.Warning("service(%s): %s (%d) reached, client connections are being dropped", s.Name, name, limit)
}

// startExtra starts processes until process_min_avail of them wait for clients.
func (s *service) startExtra() {
	if s.avail >= int(s.ProcessMinAvail) || len(s.processes) >= int(s.ProcessLimit) || s.gen.destroying || s.stopped {
		return
	}
	if s.avail == 0 {
		if !s.startCount(1) || s.avail >= int(s.ProcessMinAvail) {
			return
		}
	}
	if !s.prefork.pending() {
		s.preforkSeen = s.gen.forks
		s.prefork = s.loop().after(0, s.preforkNow)
	}
}

// preforkNow starts more processes, unless others were started since it was set: the
// master is busy with those that somebody waits for.
func (s *service) preforkNow() {
	if s.gen.forks != s.preforkSeen {
		s.preforkSeen = s.gen.forks
		s.prefork = s.loop().after(0, s.preforkNow)
		return
	}
	if s.avail < int(s.ProcessMinAvail) && s.startCount(preforkAtOnce) && s.avail < int(s.ProcessMinAvail) {
		s.preforkSeen = s.gen.forks
		s.prefork = s.loop().after(0, s.preforkNow)
	}
}

// startCount starts up to limit of the processes that are missing; whether it was limit.
func (s *service) startCount(limit int) bool {
	count := min(int(s.ProcessMinAvail)-s.avail, int(s.ProcessLimit)-len(s.processes), limit)
	started := 0
	for ; started < count; started++ {
		if !s.startProcess() {
			s.throttleNow()
			break
		}
	}
	if started > 0 {
		s.listenStop()
	}
	return started >= limit
}

// throttleNow starts nothing for a while: processes fail as soon as they start.
func (s *service) throttleNow() {
	if s.throttled.pending() || s.gen.destroying {
		return
	}
	s.errorf("command startup failed, throttling for %d.%03d secs", s.throttle/time.Second, s.throttle%time.Second/time.Millisecond)
	if len(s.processes) == 0 {
		for _, k := range s.sockets {
			k.dropAll()
		}
	}
	s.listenStop()
	s.throttled = s.loop().after(s.throttle, s.throttleEnd)
	s.throttle = min(2*s.throttle, s.gen.m.times.throttleMax)
}

func (s *service) throttleEnd() {
	s.startExtra() // Dovecot waits for the next connection
	if s.Type == Log && len(s.processes) == 0 {
		if !s.startProcess() {
			s.throttleNow()
			return
		}
	}
	s.listen()
}

// tellFull tells login processes whether all of them are full (clause P1.7.3).
func (s *service) tellFull(full bool) {
	if s.full == full || s.notifyFD < 0 {
		return
	}
	s.full = full
	offset := int64(0)
	if full {
		offset = 1
	}
	if _, err := unix.Seek(s.notifyFD, offset, unix.SEEK_SET); err != nil {
		s.errorf("lseek(notify fd) failed: %v", err)
	}
	if s.notify.pending() {
		return
	}
	send := func() {
		s.lastNotify = time.Now()
		s.signal(unix.SIGUSR1)
	}
	if wait := notifyInterval - time.Since(s.lastNotify); wait > 0 {
		s.notify = s.loop().after(wait, send)
	} else {
		send()
	}
}

// signal sends sig to all processes. Those that have not reported yet are left out, as
// they may not be ready for it, unless it is SIGKILL; early counts them.
func (s *service) signal(sig unix.Signal) (sent, early int) {
	for _, p := range s.processes {
		if !p.initialized && sig != unix.SIGKILL {
			early++
			continue
		}
		if err := unix.Kill(p.pid, sig); err == nil {
			sent++
		} else if err != unix.ESRCH {
			s.errorf("kill(%d, %d) failed: %v", p.pid, sig, err)
		}
	}
	if sent > 0 && sig != unix.SIGUSR1 {
		s.gen.m.log.Warning("Sent %s to %d %s processes", unix.SignalName(sig), sent, s.Name)
	}
	return sent, early
}
