package authd

import (
	"bufio"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"dovetail/internal/dovecot/authmaster"
	"dovetail/internal/dovecot/tabline"
)

// maxLookups is how many lookups of one connection go on at a time; then no more commands
// are read.
const maxLookups = 128

// A masterKind is what a socket is for.
type masterKind struct {
	lookupsOnly bool // auth-userdb
	restricted  bool // by uid: only users with the uid of the peer may be looked up
	uid         uint32
	path        string // of the socket, for the log
}

// A masterConn is a connection of a worker, or of who looks users up.
type masterConn struct {
	srv   *Server
	kind  masterKind
	nc    net.Conn
	out   *outbox
	peer  *syscall.Ucred // nil if the system does not tell
	began time.Time
	ctx   context.Context
	busy  chan struct{} // holds one token for each lookup
	wg    sync.WaitGroup
}

// serveMaster answers on nc until it ends or ctx does.
func (s *Server) serveMaster(ctx context.Context, nc net.Conn, kind masterKind) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := &masterConn{
		srv: s, kind: kind, nc: nc, out: newOutbox(nc), peer: peerOf(nc), began: time.Now(),
		ctx: ctx, busy: make(chan struct{}, maxLookups),
	}
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()
	defer c.out.close()
	defer c.wg.Wait()
	defer cancel()
	c.out.write(authmaster.AppendGreeting(nil, s.pid))
	br := bufio.NewReaderSize(nc, authmaster.MaxLine)
	for first := true; ; first = false {
		c.out.waitRoom(ctx)
		b, err := br.ReadSlice('\n')
		if err == bufio.ErrBufferFull {
			c.error("BUG: Master sent us more than %d bytes", authmaster.MaxLine)
		}
		if err != nil {
			return
		}
		line := strings.TrimSuffix(string(b[:len(b)-1]), "\r")
		if first {
			if authmaster.CheckVersion(line) != nil {
				c.error("Master not compatible with this server (mixed old and new binaries?)")
				return
			}
			continue
		}
		if !c.command(line) {
			return
		}
	}
}

// error logs with what Dovecot says of such a connection.
func (c *masterConn) error(format string, args ...any) {
	ms := time.Since(c.began).Milliseconds()
	c.srv.log.Error("auth-master client: %s (created %d msecs ago, handshake %d msecs ago)", fmt.Sprintf(format, args...), ms, ms)
}

func (c *masterConn) debugging() bool { return c.srv.protocols[0].set.debug }

// peerOf returns who is at the other end.
func peerOf(nc net.Conn) (cred *syscall.Ucred) {
	u, ok := nc.(*net.UnixConn)
	if !ok {
		return nil
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return nil
	}
	_ = raw.Control(func(fd uintptr) {
		cred, err = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err != nil {
		return nil
	}
	return cred
}

// command handles one line; false ends the connection.
func (c *masterConn) command(line string) bool {
	if c.debugging() {
		c.srv.debugLog.Debug("master in: %s", line)
	}
	word, args, ok := strings.Cut(line, "\t")
	if !ok {
		word = ""
	}
	var do func()
	var err error
	switch {
	case word == "USER":
		do, err = c.user(args)
	case word == "PASS":
		do, err = c.pass(args)
	case word == "LIST":
		do, err = c.list(args)
	case c.kind.lookupsOnly:
		err = dovecots("Unknown command in userdb socket: %s", sanitize(line, 80))
	case word == "REQUEST":
		do, err = c.request(args)
	case word == "CACHE-FLUSH":
		id, _, _ := strings.Cut(args, "\t")
		c.reply(fmt.Appendf(nil, "OK\t%s\t0", tabline.Escape(tabline.Unescape(id)))) // there is no cache
		return true
	case word == "CPID":
		c.error("Authentication client trying to connect to master socket")
		return false
	default:
		err = dovecots("Unknown command in master socket: %s", sanitize(line, 80))
	}
	if err != nil {
		c.error("BUG: %s", err)
		return false
	}
	select {
	case c.busy <- struct{}{}:
	case <-c.ctx.Done():
		return false
	}
	c.wg.Add(1)
	go func() { // ends with the lookup
		defer c.wg.Done()
		defer func() {
			if v := recover(); v != nil { // who asked must not wait for an answer
				c.srv.logPanic(v)
				c.nc.Close()
			}
			<-c.busy
		}()
		do()
	}()
	return true
}

// reply sends a line without its LF.
func (c *masterConn) reply(b []byte) { c.out.write(append(b, '\n')) }

func (c *masterConn) replyDebug(what string, b []byte) {
	if c.debugging() {
		text := string(b)
		if !c.srv.protocols[0].set.debugPasswords {
			text = hidePass(text)
		}
		c.srv.debugLog.Debug("%s out: %s", what, text)
	}
	c.reply(b)
}

// request handles REQUEST: a worker claims a login.
func (c *masterConn) request(args string) (func(), error) {
	id, q, err := authmaster.ParseRequest(args)
	if err != nil {
		return nil, dovecots("Master sent %w", err)
	}
	return func() { c.claim(id, q) }, nil
}

func (c *masterConn) claim(id uint32, q authmaster.Request) {
	fail := func(format string, args ...any) {
		c.error(format, args...)
		c.replyDebug("master userdb", fmt.Appendf(nil, "FAIL\t%d", id))
	}
	client := c.srv.client(q.ClientPID)
	if client == nil {
		fail("Master requested auth for nonexistent client %d", q.ClientPID)
		return
	}
	if subtle.ConstantTimeCompare(client.cookie[:], q.Cookie[:]) != 1 {
		fail("Master requested auth for client %d with invalid cookie", q.ClientPID)
		return
	}
	r, found := client.claim(q.AuthID)
	switch {
	case !found:
		fail("Master request %d.%d not found", q.ClientPID, q.AuthID)
		return
	case q.SessionPID != 0 && c.peer != nil && uint32(c.peer.Pid) != q.SessionPID:
		fail("Session pid %d provided by master for request %d.%d did not match peer credentials (pid=%d, uid=%d)",
			q.SessionPID, q.ClientPID, q.AuthID, c.peer.Pid, c.peer.Uid)
		return
	case r == nil:
		fail("Master requested unfinished authentication request %d.%d", q.ClientPID, q.AuthID)
		return
	}
	r.id, r.sessionPID, r.wantToken = id, q.SessionPID, q.WantToken
	result := r.lookupUser()
	var b []byte
	switch result {
	case userOK:
		b = fmt.Appendf(nil, "USER\t%d\t", id)
		b = tabline.AppendEscaped(b, r.user)
		b = r.appendUserdb(b)
	case userUnknown:
		b = fmt.Appendf(nil, "NOTFOUND\t%d", id)
	default:
		b = r.userdbFail(fmt.Appendf(nil, "FAIL\t%d", id))
	}
	c.replyDebug("master userdb", b)
}

// userdbFail adds the reason that a userdb gave for its temporary failure.
func (r *request) userdbFail(b []byte) []byte {
	if r.userdbTempFailed {
		if reason, ok := r.userdbReply.get("reason"); ok {
			b = appendField(b, "reason", reason)
		}
	}
	return b
}

// appendUserdb adds the fields of a claimed login.
func (r *request) appendUserdb(b []byte) []byte {
	b = append(b, '\t')
	b = r.userdbReply.append(b)
	if r.masterUser != "" && !r.userdbReply.has("master_user") {
		b = appendField(b, "master_user", r.masterUser)
	}
	b = appendField(b, "auth_mech", r.mech.Name)
	if a := r.auth.set.anonymous; a != "" && r.user == a {
		b = append(b, "\tanonymous"...)
	}
	if r.wantToken && r.sessionPID != 0 {
		pid := strconv.FormatUint(uint64(r.sessionPID), 10)
		b = appendField(b, "auth_token", r.srv.secret.token(r.service, pid, r.user, r.session))
	}
	if r.masterUser != "" {
		b = appendField(b, "auth_user", r.masterUser)
	} else if r.hasOriginal && r.original != r.user {
		b = appendField(b, "auth_user", r.original)
	}
	return b
}

// lookup begins a USER or PASS. err ends the connection; nameErr says that there cannot be
// such a user.
func (c *masterConn) lookup(word, args string) (r *request, nameErr, err error) {
	l, err := authmaster.ParseLookup(args)
	if err != nil {
		return nil, nil, dovecots("Master sent broken %s", word)
	}
	r = c.srv.newRequest(c.ctx, l.ID)
	service := false
	for _, f := range l.Fields {
		r.importInfo(f)
		service = service || f.Key == "service"
	}
	if !service {
		return nil, nil, dovecots("Master sent %s request without service", word)
	}
	r.chooseService()
	return r, r.setUsername(l.Name), nil
}

// user handles USER.
func (c *masterConn) user(args string) (func(), error) {
	r, nameErr, err := c.lookup("USER", args)
	if err != nil {
		return nil, err
	}
	return func() {
		result := userUnknown
		if nameErr != nil {
			r.logInfo("%s", nameErr)
		} else {
			result = r.lookupUser()
			if result == userOK && !c.mayKnow(r) {
				result = userInternalFailure
			}
		}
		var b []byte
		switch result {
		case userOK:
			b = fmt.Appendf(nil, "USER\t%d\t", r.id)
			b = tabline.AppendEscaped(b, r.user)
			b = append(b, '\t')
			b = r.userdbReply.append(b)
		case userUnknown:
			b = fmt.Appendf(nil, "NOTFOUND\t%d", r.id)
		default:
			b = r.userdbFail(fmt.Appendf(nil, "FAIL\t%d", r.id))
		}
		c.replyDebug("userdb", b)
	}, nil
}

// mayKnow says whether the peer may have the reply, and logs why not.
func (c *masterConn) mayKnow(r *request) bool {
	if !c.kind.restricted {
		return true
	}
	why := ""
	text, ok := r.userdbReply.get("uid")
	uid, err := strconv.ParseUint(text, 10, 32)
	switch {
	case !ok:
		why = "userdb reply doesn't contain uid"
	case err != nil:
		why = "userdb reply contains invalid uid"
	case uint32(uid) != c.kind.uid:
		why = fmt.Sprintf("userdb uid (%d) doesn't match peer uid (%d)", uid, c.kind.uid)
	default:
		return true
	}
	r.logError("client doesn't have lookup permissions for this user: %s "+
		"(to bypass this check, set: service auth { unix_listener %s { mode=0777 } })", why, c.kind.path)
	return false
}

// restrictedReason is for the log.
func (c *masterConn) restrictedReason() string {
	name := ""
	if u, err := user.LookupId(strconv.FormatUint(uint64(c.kind.uid), 10)); err == nil {
		name = "(" + u.Username + ")"
	}
	return fmt.Sprintf("%s mode=0666, but not owned by UID %d%s", c.kind.path, c.kind.uid, name)
}

// pass handles PASS: what the passdbs say of a user.
func (c *masterConn) pass(args string) (func(), error) {
	r, nameErr, err := c.lookup("PASS", args)
	if err != nil {
		return nil, err
	}
	return func() {
		result := passUserUnknown
		switch {
		case nameErr != nil:
			r.logInfo("%s", nameErr)
		case c.kind.restricted:
			r.logError("Auth client doesn't have permissions to do a PASS lookup: %s", c.restrictedReason())
			result = passInternalFailure
		default:
			result, _ = r.lookupCredentials("")
			if result == passOK {
				if _, err := r.resolveProxy(); err != nil {
					result = passInternalFailure
				}
			} else {
				r.dropProxy()
			}
		}
		var b []byte
		switch result {
		case passOK:
			if r.failed || !r.passdbSuccess {
				b = fmt.Appendf(nil, "FAIL\t%d", r.id)
				break
			}
			b = fmt.Appendf(nil, "PASS\t%d", r.id)
			b = appendField(b, "user", r.user)
			if len(r.extra.list) > 0 {
				b = append(b, '\t')
				b = r.extra.append(b)
			}
		case passUserUnknown, passUserDisabled, passExpired:
			b = fmt.Appendf(nil, "NOTFOUND\t%d", r.id)
		case passSchemeNotAvailable:
			b = appendField(fmt.Appendf(nil, "FAIL\t%d", r.id), "reason", "Configured passdbs don't support credentials lookups")
		default:
			b = fmt.Appendf(nil, "FAIL\t%d", r.id)
		}
		c.replyDebug("passdb", b)
	}, nil
}

// list handles LIST. The mask is not looked at, as Dovecot's passwd-file does not either.
func (c *masterConn) list(args string) (func(), error) {
	l, err := authmaster.ParseList(args)
	if err != nil {
		return nil, dovecots("Master sent broken LIST")
	}
	r := c.srv.newRequest(c.ctx, l.ID)
	for _, f := range l.Fields {
		r.importInfo(f)
	}
	r.chooseService()
	return func() {
		done := func(word string) { c.reply(fmt.Appendf(nil, "DONE\t%d\t%s", l.ID, word)) }
		if c.kind.restricted {
			c.error("Auth client doesn't have permissions to list users: %s", c.restrictedReason())
			done("fail")
			return
		}
		any, word := false, ""
		for _, db := range r.auth.userdbs {
			from, ok := db.userDriver.(lister)
			if !ok {
				continue
			}
			any = true
			err := from.list(r, func(name string) bool {
				c.out.waitRoom(c.ctx)
				b := fmt.Appendf(nil, "LIST\t%d\t", l.ID)
				c.reply(tabline.AppendEscaped(b, name))
				return c.ctx.Err() == nil
			})
			if err != nil {
				c.srv.log.Error("%s", err)
				word = "fail"
			}
		}
		if !any {
			c.error("Trying to iterate users, but userdbs don't support it")
			word = "fail"
		}
		done(word)
	}, nil
}

// userdbKind decides what a client of a userdb socket may know: with mode 0666 only root,
// the socket's owner and its group may know everything.
func userdbKind(nc net.Conn, path string) (masterKind, error) {
	k := masterKind{lookupsOnly: true, path: path}
	info, err := os.Stat(path)
	if err != nil {
		return k, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || info.Mode().Perm() != 0o666 {
		return k, nil
	}
	peer := peerOf(nc)
	if peer == nil {
		return k, errors.New("userdb connection: Failed to get peer's credentials")
	}
	k.uid = peer.Uid
	k.restricted = peer.Uid != 0 && peer.Uid != st.Uid && peer.Gid != st.Gid
	return k, nil
}

// Serve answers on nc, which came by the listener of that name and path, until the client
// leaves or ctx is done. It takes nc. The name decides what the socket is for (clause P3.3).
func (s *Server) Serve(ctx context.Context, nc net.Conn, name, path string) {
	kind := name[strings.LastIndexByte(name, '-')+1:]
	switch kind {
	case "login":
		s.serveLogin(ctx, nc, loginKind{claims: true})
	case "tokenlogin":
		s.serveLogin(ctx, nc, loginKind{claims: true, token: true})
	case "token":
		s.serveLogin(ctx, nc, loginKind{token: true})
	case "master":
		s.serveMaster(ctx, nc, masterKind{path: path})
	case "userdb":
		k, err := userdbKind(nc, path)
		if err != nil {
			s.log.Error("%s", err)
			nc.Close()
			return
		}
		s.serveMaster(ctx, nc, k)
	default:
		s.serveLogin(ctx, nc, loginKind{})
	}
}
