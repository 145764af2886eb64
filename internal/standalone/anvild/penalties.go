package anvild

import (
	"container/list"
	"slices"
	"sync"
	"time"

	"dovetail/internal/dovecot/anvil"
)

const (
	penaltyExpire    = time.Hour // as long as nobody says otherwise
	penaltyChecksums = 10        // remembered of an ident
	maxPenalties     = 1 << 18   // the oldest is forgotten first
)

// penalties are kept by ident (an address) until nothing has happened for a while.
type penalties struct {
	mu     sync.Mutex
	now    func() time.Time
	expire time.Duration            // guarded by mu
	by     map[string]*list.Element // guarded by mu; of *penalty
	order  list.List                // guarded by mu; the one updated longest ago is first
}

type penalty struct {
	ident     string
	value     uint32
	last      time.Time // when something new failed
	updated   time.Time
	checksums []uint32 // the latest first
}

func (p *penalties) init() {
	p.now = time.Now
	p.expire = penaltyExpire
	p.by = map[string]*list.Element{}
	p.order.Init()
}

// expireLocked forgets what is old enough.
func (p *penalties) expireLocked(now time.Time) {
	for e := p.order.Front(); e != nil && now.Sub(e.Value.(*penalty).updated) > p.expire; e = p.order.Front() {
		p.removeLocked(e)
	}
}

func (p *penalties) removeLocked(e *list.Element) {
	delete(p.by, e.Value.(*penalty).ident)
	p.order.Remove(e)
}

func (p *penalties) setExpire(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expire = d
}

func (p *penalties) get(ident string) anvil.Penalty {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expireLocked(p.now())
	e, ok := p.by[ident]
	if !ok {
		return anvil.Penalty{}
	}
	rec := e.Value.(*penalty)
	return anvil.Penalty{Value: rec.value, Last: rec.last}
}

// set is PENALTY-INC. A checksum that is among the latest makes the value one less, and is
// no new failure.
func (p *penalties) set(ident string, checksum, value uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	p.expireLocked(now)
	e, ok := p.by[ident]
	if !ok {
		if p.order.Len() >= maxPenalties {
			p.removeLocked(p.order.Front())
		}
		e = p.order.PushBack(&penalty{ident: ident})
		p.by[ident] = e
	}
	p.order.MoveToBack(e)
	rec := e.Value.(*penalty)
	rec.updated = now
	if checksum != 0 && rec.seen(checksum) {
		rec.value = value - 1
		return
	}
	rec.value, rec.last = value, now
}

// seen puts checksum first, and says whether it was there.
func (rec *penalty) seen(checksum uint32) bool {
	i := slices.Index(rec.checksums, checksum)
	known := i >= 0
	switch {
	case known:
	case len(rec.checksums) < penaltyChecksums:
		rec.checksums = append(rec.checksums, 0)
		i = len(rec.checksums) - 1
	default:
		i = penaltyChecksums - 1
	}
	copy(rec.checksums[1:i+1], rec.checksums[:i])
	rec.checksums[0] = checksum
	return known
}

// dump adds all lines and the empty one.
func (p *penalties) dump(out *answers) {
	p.mu.Lock()
	p.expireLocked(p.now())
	var b []byte
	for e := p.order.Front(); e != nil; e = e.Next() {
		rec := e.Value.(*penalty)
		b = anvil.AppendPenaltyLine(b, rec.ident, anvil.Penalty{Value: rec.value, Last: rec.last}, rec.updated.Unix())
	}
	p.mu.Unlock()
	out.add(func(o []byte) []byte { return append(append(o, b...), '\n') })
}
