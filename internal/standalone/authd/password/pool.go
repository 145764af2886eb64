package password

import (
	"context"
	"runtime"

	"golang.org/x/sync/semaphore"
)

// DefaultMemory is how much memory, in octets, hashes of a Pool may need at a time: four of
// Dovecot's ARGON2ID. One that needs more than all of it runs alone.
const DefaultMemory = 256 << 20

// A cost is what a slow hash needs, besides a core.
type cost struct{ memory int64 }

func slow([]byte) cost { return cost{} }

// A Pool bounds how many slow hashes are computed at a time, so that a flood of logins
// takes neither all memory nor all cores from the rest. Those that wait do so in the
// order in which they came. Cheap hashes, such as SSHA, do not wait. Any goroutine may use
// it.
type Pool struct {
	cores  *semaphore.Weighted
	memory *semaphore.Weighted
	max    int64
}

// NewPool returns a Pool for as many hashes at a time as there are cores, and 2 at least.
// memory is in octets; 0 means DefaultMemory.
func NewPool(memory int64) *Pool {
	if memory <= 0 {
		memory = DefaultMemory
	}
	return &Pool{
		cores:  semaphore.NewWeighted(int64(max(2, runtime.GOMAXPROCS(0)))),
		memory: semaphore.NewWeighted(memory), max: memory,
	}
}

// Verify says whether plain is the password of which stored is the decoded data. user, as
// the client wrote it, matters to DIGEST-MD5 alone. Errors: ErrScheme, what is wrong with
// the data, ctx's error if it ended while others were hashing.
func (p *Pool) Verify(ctx context.Context, name, plain, user string, stored []byte) (bool, error) {
	s, _, _ := lookup(name)
	if s == nil {
		return false, ErrScheme
	}
	if s.cost != nil {
		release, err := p.acquire(ctx, s.cost(stored))
		if err != nil {
			return false, err
		}
		defer release()
	}
	return s.check(plain, user, stored)
}

// Generate is the function Generate within the pool's bounds.
func (p *Pool) Generate(ctx context.Context, name, plain, user string) ([]byte, error) {
	s, _, _ := lookup(name)
	if s == nil || s.generate == nil {
		return nil, ErrScheme
	}
	if s.cost != nil {
		release, err := p.acquire(ctx, cost{})
		if err != nil {
			return nil, err
		}
		defer release()
	}
	return s.generate(plain, user)
}

// acquire waits for memory first: who waits for it holds no core.
func (p *Pool) acquire(ctx context.Context, c cost) (release func(), err error) {
	n := min(c.memory, p.max)
	if err := p.memory.Acquire(ctx, n); err != nil {
		return nil, err
	}
	if err := p.cores.Acquire(ctx, 1); err != nil {
		p.memory.Release(n)
		return nil, err
	}
	return func() {
		p.cores.Release(1)
		p.memory.Release(n)
	}, nil
}
