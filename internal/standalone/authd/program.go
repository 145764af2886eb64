package authd

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"time"

	"dovetail/internal/dovecot/anvil"
	"dovetail/internal/dovecot/config"
	"dovetail/internal/process/event"
	"dovetail/internal/process/service"
)

// Program is the auth process. It becomes the user of `service auth` after Setup, which is
// default_internal_user unless somebody changed it; as in Dovecot that may be root, for
// passwd-files that nobody else can read.
func Program() service.Program {
	var srv *Server
	return service.Program{
		Name: "auth", About: "it checks passwords and knows users",
		Setup: func(p *service.Process) error {
			c, err := config.Dial(p.Env.ConfigFile)
			if err != nil {
				return err
			}
			set, err := Load(c)
			c.Close()
			if err != nil {
				return err
			}
			srv, err = New(set, Options{Log: p.Log, Penalty: dialPenalty(p.Context(), "anvil-auth-penalty", p.Log)})
			return err
		},
		Serve: func(ctx context.Context, c *service.Client) {
			srv.Serve(ctx, c.Conn, c.Listener.Name, c.Conn.LocalAddr().String())
		},
	}
}

// penaltyRetry is how long a lost connection to anvil is left alone.
const penaltyRetry = 5 * time.Second

// anvilPenalty is anvil's list of penalties. Its socket is root's: when the connection is
// lost after root was dropped it stays lost, and there are no penalties until the process
// is started again. Failures are still delayed.
type anvilPenalty struct {
	path string
	log  *event.Log

	mu     sync.Mutex
	client *anvil.Client // guarded by mu; nil without a connection
	tried  time.Time     // guarded by mu
	said   bool          // guarded by mu: that there are no penalties
}

// dialPenalty connects to anvil. Without anvil it returns nil: there are no penalties.
func dialPenalty(ctx context.Context, path string, log *event.Log) Penalty {
	a := &anvilPenalty{path: path, log: log}
	err := a.dialLocked(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	a.sayLocked(err)
	return a
}

// sayLocked logs that there are no penalties, once until there are.
func (a *anvilPenalty) sayLocked(err error) {
	if err != nil && !a.said {
		a.log.Error("%v (failed logins are delayed, but not held against addresses, until auth is started again)", err)
	}
	a.said = err != nil
}

func (a *anvilPenalty) dialLocked(ctx context.Context) error {
	a.tried = time.Now()
	c, err := anvil.Dial(ctx, a.path)
	if err == nil {
		err = c.SetPenaltyExpire(PenaltyTimeout)
	}
	if err != nil {
		if c != nil {
			c.Close()
		}
		return err
	}
	a.client = c
	return nil
}

// connection returns nil while there is none.
func (a *anvilPenalty) connection(ctx context.Context) *anvil.Client {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.client != nil {
		select {
		case <-a.client.Done():
			a.client = nil
		default:
			return a.client
		}
	}
	if time.Since(a.tried) >= penaltyRetry {
		a.sayLocked(a.dialLocked(ctx))
	}
	return a.client
}

func (a *anvilPenalty) Get(ctx context.Context, ident string) (uint32, time.Time) {
	c := a.connection(ctx)
	if c == nil {
		return 0, time.Time{}
	}
	p, err := c.Penalty(ctx, ident)
	if err != nil {
		return 0, time.Time{} // a login is not held up because something else is
	}
	return p.Value, p.Last
}

func (a *anvilPenalty) Set(ident string, checksum, penalty uint32) {
	if c := a.connection(context.Background()); c != nil {
		_ = c.SetPenalty(ident, checksum, penalty)
	}
}
