package authd

import (
	"context"
	"encoding/base64"
	"hash/crc32"
	"net/netip"
	"time"
)

// A Penalty keeps count of failures by address: anvil does. Methods are called by many
// goroutines.
type Penalty interface {
	// Get returns the penalty of ident and when it changed last; 0 if there is none, or
	// if it cannot be known. It returns when ctx is done.
	Get(ctx context.Context, ident string) (penalty uint32, changed time.Time)

	// Set sets the penalty. Two failures with the same checksum of user and password
	// count once. It does not wait.
	Set(ident string, checksum, penalty uint32)
}

// PenaltyTimeout is when a penalty is forgotten after its last change.
const PenaltyTimeout = (penaltyFirst + 4 + 8 + penaltyMost) * time.Second

const (
	penaltyFirst = 2  // seconds of the first penalty, then doubled ...
	penaltyMost  = 15 // ... up to this
	maxPenalty   = 4
	penaltyBits  = 48 // of an IPv6 address; who has one network has all its addresses
)

// penaltySeconds is how long a client with that penalty waits.
func penaltySeconds(penalty uint32) int {
	if penalty > maxPenalty {
		penalty = maxPenalty
	}
	return min(penaltyFirst<<penalty, penaltyMost)
}

// penaltyIdent is the address that failures are held against. Without one it is empty:
// shared by all who have none.
func penaltyIdent(ip netip.Addr) string {
	if !ip.IsValid() {
		return ""
	}
	if ip.Is6() {
		if p, err := ip.Prefix(penaltyBits); err == nil {
			ip = p.Addr()
		}
	}
	return ip.String()
}

// penaltyWait waits as long as the address's failures ask for; false: the request was
// cancelled.
func (r *request) penaltyWait() bool {
	if r.srv.penalty == nil || r.noPenalty {
		return r.ctx.Err() == nil
	}
	penalty, changed := r.srv.penalty.Get(r.ctx, penaltyIdent(r.remoteIP))
	now := time.Now()
	if changed.After(now) {
		changed = now
	}
	penalty = min(penalty, maxPenalty)
	for drop := uint32(maxPenalty); penalty > 0 && now.Sub(changed) >= time.Duration(penaltySeconds(drop))*time.Second; drop-- {
		penalty--
	}
	r.lastPenalty = penalty
	if penalty > 0 {
		wait(r.ctx, time.Duration(penaltySeconds(penalty))*time.Second)
	}
	return r.ctx.Err() == nil
}

// penaltySet tells what became of the request.
func (r *request) penaltySet(penalty uint32) {
	if r.noPenalty {
		return
	}
	var sum uint32
	if penalty > 0 && r.hasPassword {
		sum = crc32.Update(crc32.ChecksumIEEE([]byte(r.password)), crc32.IEEETable, []byte(r.user))
	}
	r.srv.penalty.Set(penaltyIdent(r.remoteIP), sum, min(penalty, maxPenalty))
}

func encode(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
