// Package authd is standalone's auth process: it answers login processes and workers as
// Dovecot's auth service does (packages authclient and authmaster, clauses P3 and P4).
// Users and passwords come from the drivers passwd-file and static; a userdb may also be
// prefetch. What Dovecot has beyond that is an error at start that names the setting and
// says to run the two programs under Dovecot instead.
//
//	socket                     kind, by what follows the last "-" of its name
//	login                      a request that succeeded waits for the worker's claim
//	token-login/tokenlogin     the same, for DOVECOT-TOKEN alone
//	auth-client                authentication only
//	auth-token                 the same, for DOVECOT-TOKEN alone
//	auth-master                claims, lookups, CACHE-FLUSH
//	auth-userdb                lookups; with mode 0666 a stranger only gets users of his uid
//
// # Rights
//
// The process starts as root and drops to default_internal_user when it has read its
// settings, its token secret and the passwd-files, which stay open. Afterwards a
// passwd-file that changed is opened again by its path, so the user should be able to read
// it (Dovecot needs that, too: owner root, group dovecot, mode 0640). A file that only root
// can read works as long as it is written in place; when it is replaced by another file,
// which is how most editors write, nobody in it can log in until `dovetail reload` starts
// an auth process that reads it as root: every login is a temporary failure, and the log
// says why. To go on with what was in the old file would let people in who were taken out.
// In a directory where only root may look the old file tells: it is gone, elsewhere, or has
// got other links, owners or modes.
//
// # Load
//
// Every authentication runs in a goroutine of its own; what waits (for the client, for the
// failure delay, for an address) holds up nobody. Hashing is bounded by a password.Pool.
//
// # What is accepted and has no effect
//
// auth_cache_*: as in Dovecot nothing of passwd-file and static is cached, since their
// lookups cost less than a cache's. auth_realms is for DIGEST-MD5, which is not here.
// auth_worker_max_count, auth_stats.
package authd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"dovetail/internal/process/event"
	"dovetail/internal/standalone/authd/password"
)

// Options is what a Server needs besides settings.
type Options struct {
	Log      *event.Log
	PID      uint32   // told to clients; 0 means our own
	Penalty  Penalty  // nil: failures are only delayed
	Resolver Resolver // of proxies' host names; nil means the system's
	Memory   int64    // for hashing, in octets; 0 means password.DefaultMemory
}

// A Server answers on any number of connections.
type Server struct {
	log      *event.Log
	debugLog *event.Log
	pid      uint32
	penalty  Penalty
	resolve  *hostCache
	pool     *password.Pool
	secret   tokenSecret
	failures delayQueue

	protocols  []*auth // the first is the default
	mechanisms []*mechanism
	passwd     []*passwdDB

	ctx  context.Context // of all requests
	stop context.CancelFunc

	mu      sync.Mutex
	clients map[uint32]*loginConn // guarded by mu; by CPID
	lastCID uint32                // guarded by mu
}

// An auth is the databases of one protocol. It is constant.
type auth struct {
	set       *protocol
	passdbs   []*database
	masterdbs []*database
	userdbs   []*database
	broken    int // passdbs that could not be built, which is an error
}

// A BlockError is what is wrong with a passdb or userdb block.
type BlockError struct {
	Type   string // "passdb"
	Number int    // from 1, of the blocks of this type that a protocol has
	Key    string // the block's setting: "args"
	Err    error
}

func (e *BlockError) Unwrap() error { return e.Err }

func (e *BlockError) Error() string {
	switch e.Key {
	case "args", "driver", "deny", "pass": // the error says so itself
		return fmt.Sprintf("%s %d: %v", e.Type, e.Number, e.Err)
	}
	return fmt.Sprintf("%s %d: %s: %v", e.Type, e.Number, e.Key, e.Err)
}

// Check says what New would find wrong with the settings that c has, without the files and
// sockets that New opens. The error may join several, which may be BlockErrors; those of
// one protocol's own settings are wrapped.
func Check(c asker) error {
	set, err := Load(c)
	if len(set.protocols) == 0 {
		return err
	}
	s := bareServer(Options{Log: event.New(event.SinkFunc(func(event.Level, string, string) {}), "", false)})
	defer s.stop()
	return errors.Join(err, s.build(set))
}

// New builds a server: it reads passwd-files and the token secret, which may take root.
// The error has one line for each setting that is wrong or not supported here.
func New(set Settings, opt Options) (*Server, error) {
	s := bareServer(opt)
	if err := s.build(set); err != nil {
		s.stop()
		return nil, err
	}
	onlyUserdb := len(set.protocols[0].userdbs) == 1
	for _, db := range s.passwd {
		db.warn = db.userdb && onlyUserdb
		db.open()
	}
	s.secret.load(filepath.Join(set.baseDir, tokenSecretName), s)
	return s, nil
}

// bareServer returns a server that serves no protocol yet.
func bareServer(opt Options) *Server {
	s := &Server{
		log: opt.Log, debugLog: opt.Log.WithDebug(true), pid: opt.PID, penalty: opt.Penalty,
		pool: password.NewPool(opt.Memory), clients: map[uint32]*loginConn{},
	}
	if s.pid == 0 {
		s.pid = uint32(os.Getpid())
	}
	s.resolve = newHostCache(opt.Resolver)
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s
}

// build makes what the settings ask for.
func (s *Server) build(set Settings) error {
	var errs []error
	fail := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	var err error
	s.mechanisms, err = registerMechanisms(set.protocols[0])
	fail(err)
	ids := dbIDs{}
	for _, p := range set.protocols {
		a, err := s.buildAuth(p, ids)
		fail(err)
		s.protocols = append(s.protocols, a)
	}
	fail(s.checkPassdbs())
	return errors.Join(errs...)
}

// Close answers the failures that are being delayed and cancels all requests.
// Connections are the callers': their contexts end them.
func (s *Server) Close() {
	s.failures.flush()
	s.stop()
}

// dbIDs gives databases with the same driver and args the same number, as in Dovecot.
type dbIDs map[string]int

func (d dbIDs) of(typ string, set dbSettings) int {
	key := typ + "\x00" + set.driver + "\x00" + set.args
	if _, ok := d[key]; !ok {
		n := 1
		for k := range d {
			if strings.HasPrefix(k, typ) {
				n++
			}
		}
		d[key] = n
	}
	return d[key]
}

func (s *Server) buildAuth(p *protocol, ids dbIDs) (*auth, error) {
	a := &auth{set: p}
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for i, set := range p.passdbs {
		to := &a.passdbs
		about := func(key, text string) {
			errs = append(errs, &BlockError{"passdb", i + 1, key, errors.New(text)})
		}
		if set.master {
			to = &a.masterdbs
		}
		if len(*to) == 0 && set.skip == "unauthenticated" {
			continue // nobody is authenticated before the first passdb
		}
		switch {
		case set.master && set.deny:
			about("deny", "Master passdb can't have deny=yes")
		case set.pass && set.resultSuccess != "return-ok":
			about("pass", "Obsolete pass=yes setting mixed with non-default result_success")
		}
		db, err := s.buildDatabase("passdb", i+1, set, ids)
		if err != nil {
			errs = append(errs, err)
			a.broken++
			continue
		}
		*to = appendDB(*to, db)
	}
	if n := len(a.passdbs); n > 0 && a.passdbs[n-1].set.pass {
		fail("passdb: Last passdb can't have pass=yes")
	}
	for _, db := range a.masterdbs {
		if db.set.pass && len(a.passdbs) == 0 {
			fail("passdb: Master passdb can't have pass=yes if there are no passdbs")
		}
	}
	users := p.userdbs
	if len(users) == 0 {
		users = []dbSettings{{ // as Dovecot: everybody the passdbs know
			driver: "static", skip: "never", resultSuccess: "return-ok", resultFailure: "continue",
			resultInternalFail: "continue", authVerbose: "default",
		}}
	}
	for i, set := range users {
		db, err := s.buildDatabase("userdb", i+1, set, ids)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		a.userdbs = appendDB(a.userdbs, db)
	}
	return a, errors.Join(errs...)
}

func appendDB(list []*database, db *database) []*database {
	if n := len(list); n > 0 {
		list[n-1].next = db
	}
	return append(list, db)
}

func (s *Server) buildDatabase(typ string, number int, set dbSettings, ids dbIDs) (*database, error) {
	db := &database{set: set, logName: set.name}
	if set.name == "" {
		db.logName = set.driver
	}
	var errs []error
	keep := func(key string, err error) {
		if err != nil {
			errs = append(errs, &BlockError{typ, number, key, err})
		}
	}
	var err error
	db.resultSuccess, err = parseRule(set.resultSuccess)
	keep("result_success", err)
	db.resultFailure, err = parseRule(set.resultFailure)
	keep("result_failure", err)
	db.resultInternalFail, err = parseRule(set.resultInternalFail)
	keep("result_internalfail", err)
	if set.pass {
		db.resultSuccess = ruleContinue
	}
	switch set.skip {
	case "never":
	case "authenticated", "found":
		db.skip = skipDone
	case "unauthenticated", "notfound":
		db.skip = skipUndone
	default:
		keep("skip", fmt.Errorf("%q is not a rule", set.skip))
	}
	db.defaults, err = parseTemplate("default_fields", set.defaultFields)
	keep("default_fields", err)
	db.overrides, err = parseTemplate("override_fields", set.overrideFields)
	keep("override_fields", err)
	words := func(s string) []string {
		return strings.FieldsFunc(s, func(c rune) bool { return c == ' ' || c == ',' })
	}
	if set.mechanisms != "" {
		db.mechanisms = words(set.mechanisms)
		if strings.EqualFold(set.mechanisms, "none") {
			db.mechanisms = []string{}
		}
	}
	db.usernames = words(set.usernameFilter)
	unsupported := func(have string) error {
		if set.driver == "" {
			return nil // Load has said that it is missing
		}
		return fmt.Errorf("driver %s is not supported by standalone, which has %s: %s", set.driver, have, dropIn)
	}
	about := "args"
	if typ == "passdb" {
		switch set.driver {
		case "passwd-file":
			db.passDriver, err = newPasswdPass(set.args, s)
		case "static":
			db.passDriver, err = newStaticPass(set.args)
		default:
			about, err = "driver", unsupported("passwd-file and static")
		}
	} else {
		switch set.driver {
		case "passwd-file":
			db.userDriver, err = newPasswdUser(set.args, s)
		case "static":
			db.userDriver, err = newStaticUser(set.args, s)
		case "prefetch":
			db.userDriver = prefetch{}
		default:
			about, err = "driver", unsupported("passwd-file, static and prefetch")
		}
		keep("default_fields", db.defaults.resolveIDs("userdb "+set.driver, s))
		keep("override_fields", db.overrides.resolveIDs("userdb "+set.driver, s))
	}
	keep(about, err)
	db.id = ids.of(typ, set)
	return db, errors.Join(errs...)
}

// checkPassdbs: every mechanism that needs passdbs has some.
func (s *Server) checkPassdbs() error {
	for _, m := range s.mechanisms {
		for _, a := range s.protocols {
			if m.needsPassdb && len(a.passdbs)+a.broken == 0 && !s.onlyExceptions(a) {
				return dovecots("No passdbs specified in configuration file. %s mechanism needs one", m.Name)
			}
		}
	}
	return nil
}

// onlyExceptions says that a is the default and never used: there are settings for some
// protocol and for all but this protocol.
func (s *Server) onlyExceptions(a *auth) bool {
	if a.set.name != "" {
		return false
	}
	for _, x := range s.protocols {
		for _, y := range s.protocols {
			if not, ok := strings.CutPrefix(x.set.name, "!"); ok && y.set.name == not {
				return true
			}
		}
	}
	return false
}

// auth returns the databases of a service: "submission".
func (s *Server) auth(service string) *auth {
	for _, a := range s.protocols[1:] {
		if a.set.name == service {
			return a
		}
	}
	for _, a := range s.protocols[1:] {
		if not, ok := strings.CutPrefix(a.set.name, "!"); ok && not != service {
			return a
		}
	}
	return s.protocols[0]
}

// newRequest begins a request with the databases of the default service; setService
// comes later.
func (s *Server) newRequest(ctx context.Context, id uint32) *request {
	return &request{srv: s, ctx: ctx, id: id, auth: s.protocols[0]}
}

// chooseService sets the databases by the request's service.
func (r *request) chooseService() {
	r.auth = r.srv.auth(r.service)
	if len(r.auth.passdbs) > 0 {
		r.passdb = r.auth.passdbs[0]
	}
	if len(r.auth.userdbs) > 0 {
		r.userdb = r.auth.userdbs[0]
	}
}
