package authd

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"dovetail/internal/standalone/authd/password"
)

const (
	maxPasswdLine  = 64 << 10
	maxPasswdFile  = 256 << 20 // octets
	maxPasswdFiles = 1000      // that a path with %variables keeps in memory

	slowAtStart  = 60 * time.Second // a Warning says how long reading took
	slowAtReload = 10 * time.Second
)

// A passwdTable is what was read of a file; it is constant.
type passwdTable struct {
	users map[string]passwdUser
	names []string // in the file's order
	stamp stamp
}

// A stamp tells versions of a file apart.
type stamp struct {
	modified time.Time
	changed  syscall.Timespec // when it was written, renamed, linked or given to others
	size     int64
	inode    uint64
	links    uint64
}

func stampOf(i os.FileInfo) stamp {
	s := stamp{modified: i.ModTime(), size: i.Size()}
	if st, ok := i.Sys().(*syscall.Stat_t); ok {
		s.inode, s.changed, s.links = st.Ino, st.Ctim, uint64(st.Nlink)
	}
	return s
}

// A passwdDB is the files of one path, which may have %variables. Passdbs and userdbs with
// the same path share it.
type passwdDB struct {
	srv     *Server
	path    string
	vars    bool
	dir     string // with %variables: up to the last / in front of the first one
	begin   string // what stands between dir and the first variable
	rest    string // the template of what stands behind dir
	userdb  bool   // set while the server is built, as is warn
	warn    bool   // lines without userdb fields are errors
	mu      sync.Mutex
	files   map[string]*passwdFile // guarded by mu; by expanded path
	defFile *passwdFile            // without %variables
}

// A passwdFile is one file.
type passwdFile struct {
	db     *passwdDB
	path   string
	mu     sync.Mutex   // held while the file is looked at and read
	table  *passwdTable // guarded by mu; nil if it could not be read
	opened *os.File     // guarded by mu; opened as root, for when nothing else can be
	stamp  stamp        // guarded by mu; of opened, when it was last read
	place  string       // guarded by mu; where opened was at first, as the kernel calls it
	lost   bool         // guarded by mu; another file has taken the place of opened
}

// passwdDB returns the one of a path.
func (s *Server) passwdDB(path string, userdb bool) *passwdDB {
	for _, db := range s.passwd {
		if db.path == path {
			db.userdb = db.userdb || userdb
			return db
		}
	}
	db := &passwdDB{srv: s, path: path, userdb: userdb, files: map[string]*passwdFile{}}
	for i := 0; i+1 < len(path) && !db.vars; i++ {
		if path[i] == '%' {
			if db.vars = path[i+1] != '%'; db.vars {
				slash := strings.LastIndexByte(path[:i], '/') + 1
				db.dir, db.begin, db.rest = unescape(path[:slash]), unescape(path[slash:i]), path[slash:]
			}
			i++
		}
	}
	if !db.vars {
		db.defFile = &passwdFile{db: db, path: unescape(path)}
	}
	s.passwd = append(s.passwd, db)
	return db
}

// unescape makes a path of a template without variables.
func unescape(template string) string { return strings.ReplaceAll(template, "%%", "%") }

// open reads the file of a path without variables, and keeps it open. Root calls it before
// rights are dropped. That it cannot is logged, and a temporary failure until it can.
func (db *passwdDB) open() {
	if db.defFile == nil {
		return
	}
	f := db.defFile
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.readLocked(true); err != nil {
		db.srv.log.Error("passwd-file %s: %s", f.path, err)
	}
}

// errOutside: a name, such as "..", would lead to a file elsewhere. The text is Dovecot's.
var errOutside = dovecots("Path is outside")

// file returns the file that concerns the request. It is below dir, and begins with begin.
func (db *passwdDB) file(r *request) (*passwdFile, error) {
	if db.defFile != nil {
		return db.defFile, nil
	}
	rest, err := r.expand(db.rest, r.user, cutPath)
	if err != nil {
		return nil, err
	}
	clean := path.Clean("./" + rest) // "./": an empty value may leave a / at the begin
	if clean == "." || clean == ".." || strings.HasPrefix(clean, "../") || !strings.HasPrefix(clean, db.begin) {
		return nil, errOutside
	}
	full := db.dir + rest
	if strings.Contains(rest, "..") {
		full = db.dir + clean // behind a symbolic link ".." would lead elsewhere
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	f := db.files[full]
	if f == nil {
		for old := range db.files { // any one: it is read again when it is asked for
			if len(db.files) < maxPasswdFiles {
				break
			}
			delete(db.files, old)
		}
		f = &passwdFile{db: db, path: full}
		db.files[full] = f
	}
	return f, nil
}

// errMissing: there is no such file.
var errMissing = errors.New("missing passwd file")

// current returns the table of the file as it is now. For a path with variables a missing
// file is errMissing.
func (f *passwdFile) current(r *request) (*passwdTable, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	info, err := os.Stat(f.path)
	if err != nil && f.opened != nil && errors.Is(err, fs.ErrPermission) {
		// We may not even look into the directory.
		if now, err2 := f.opened.Stat(); err2 == nil && !f.replacedLocked(stampOf(now)) {
			info, err = now, nil
		} else {
			f.loseLocked()
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		f.table = nil
		if f.db.vars {
			return nil, errMissing
		}
	}
	if err != nil {
		f.table = nil
		return nil, f.errorLocked("stat", err)
	}
	if f.table != nil && f.table.stamp == stampOf(info) {
		return f.table, nil
	}
	if err := f.readLocked(false); err != nil {
		return nil, err
	}
	return f.table, nil
}

// readLocked reads the file. With keep it stays open. If it cannot be opened because
// rights were dropped, what root opened before is read again, if it is still that file.
func (f *passwdFile) readLocked(keep bool) error {
	f.table = nil
	file, err := os.OpenFile(f.path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil && f.opened != nil && errors.Is(err, fs.ErrPermission) && f.sameLocked() {
		file, err = f.opened, nil
		keep = true
	}
	if err != nil {
		return f.errorLocked("open", err)
	}
	if !keep {
		defer file.Close()
	}
	began := time.Now()
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is not a regular file")
	}
	if err != nil {
		if keep && file != f.opened {
			file.Close()
		}
		return f.errorLocked("fstat", err)
	}
	if keep && file != f.opened {
		f.opened, f.place = file, placeOf(file)
	}
	switch {
	case keep:
		f.stamp = stampOf(info)
	case f.opened != nil && stampOf(info).inode != f.stamp.inode:
		f.loseLocked()
	}
	t, err := f.db.parse(f.path, io.NewSectionReader(file, 0, maxPasswdFile+1))
	if err != nil {
		return f.errorLocked("read", err)
	}
	f.lost = false
	t.stamp = stampOf(info)
	f.table = t
	took := time.Since(began)
	if keep && took > slowAtStart || !keep && took > slowAtReload {
		f.db.srv.log.Warning("passwd-file %s: Reading %d users took %d secs", f.path, len(t.users), int(took.Seconds()))
	} else if f.db.srv.protocols[0].set.debug {
		f.db.srv.debugLog.Debug("passwd-file %s: Read %d users in %d secs", f.path, len(t.users), int(took.Seconds()))
	}
	return nil
}

// sameLocked says whether the path still leads to the file that is open, as far as we may
// look. If not, that is given up.
func (f *passwdFile) sameLocked() bool {
	a, err := f.opened.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(f.path)
	if err == nil && os.SameFile(a, b) || errors.Is(err, fs.ErrPermission) && !f.replacedLocked(stampOf(a)) {
		return true
	}
	f.loseLocked()
	return false
}

// replacedLocked says whether the file that is open, which is now as the stamp says, is no
// longer the one at the path, where we may not look. It is gone, or elsewhere, or something
// else than its text has changed: who replaces a file removes it, renames it or links it.
func (f *passwdFile) replacedLocked(now stamp) bool {
	if now.links == 0 {
		return true
	}
	if place := placeOf(f.opened); place != "" && f.place != "" && place != f.place {
		return true
	}
	return now.changed != f.stamp.changed && now.modified.Equal(f.stamp.modified) && now.size == f.stamp.size
}

// loseLocked gives up the file that is open. Nobody may get in by it any more.
func (f *passwdFile) loseLocked() {
	f.opened.Close()
	f.table, f.opened, f.lost = nil, nil, true
}

// errorLocked is the error of a system call. It says what would help, if the file was
// replaced.
func (f *passwdFile) errorLocked(call string, err error) error {
	hint := ""
	if f.lost {
		hint = " (it has replaced the one that root opened; `dovetail reload` reads it)"
	}
	return fmt.Errorf("%s(%s) failed: %s%s", call, f.path, errnoText(err), hint)
}

// placeOf is where the kernel says that an open file is; "" if it does not say.
func placeOf(f *os.File) string {
	place, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return ""
	}
	return place
}

// parse reads the lines. Those that are wrong are logged and left out.
func (db *passwdDB) parse(path string, in io.Reader) (*passwdTable, error) {
	t := &passwdTable{users: map[string]passwdUser{}}
	br := bufio.NewReaderSize(in, maxPasswdLine)
	total, number := 0, 0
	for {
		line, err := br.ReadSlice('\n')
		number++
		total += len(line)
		if total > maxPasswdFile {
			return nil, fmt.Errorf("more than %d bytes", maxPasswdFile)
		}
		if err == bufio.ErrBufferFull {
			db.srv.log.Error("passwd-file %s: line %d has more than %d bytes", path, number, maxPasswdLine)
			for err == bufio.ErrBufferFull {
				line, err = br.ReadSlice('\n')
				total += len(line)
			}
			if err == nil {
				continue
			}
			line = nil
		}
		if err != nil && err != io.EOF {
			return nil, err
		}
		text := bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
		if len(text) > 0 && text[0] != ':' && text[0] != '#' {
			db.add(t, path, string(text))
		}
		if err == io.EOF {
			return t, nil
		}
	}
}

func (db *passwdDB) add(t *passwdTable, path, line string) {
	name, u, err := parsePasswdLine(line, db.userdb, db.srv)
	if _, twice := t.users[name]; twice {
		err = dovecots("User %s exists more than once", name)
	}
	if err != nil {
		db.srv.log.Error("passwd-file %s: %s", path, sanitize(err.Error(), 512))
		return
	}
	if db.warn && db.userdb && u.noUserdb {
		db.srv.log.Error("passwd-file %s: User %s is missing userdb info", path, sanitize(name, 128))
	}
	t.users[name] = u
	t.names = append(t.names, name)
}

// lookup finds the request's user. ok false: there is none, or failed says why not.
func (db *passwdDB) lookup(r *request, usernameFormat string) (u passwdUser, ok, failed bool) {
	f, err := db.file(r)
	if errors.Is(err, errOutside) {
		r.dbInfo("Failed to normalize path: %s '%s'", err, db.dir+db.begin)
		return u, false, false
	}
	if err != nil {
		r.dbError("Failed to expand passwd-file path %s: %s", db.path, err)
		return u, false, true
	}
	t, err := f.current(r)
	if errors.Is(err, errMissing) {
		r.logInfo("missing passwd file: %s", f.path)
		return u, false, false
	}
	if err != nil {
		r.dbError("%s", err)
		return u, false, true
	}
	name, err := r.expand(usernameFormat, r.user, escapeQuotes)
	if err != nil {
		r.dbError("Failed to expand username_format=%s: %s", usernameFormat, err)
		return u, false, true
	}
	r.dbDebug("lookup: user=%s file=%s", name, f.path)
	if u, ok = t.users[name]; !ok {
		r.logFailure("unknown user")
	}
	return u, ok, false
}

// passwdPass is the passdb driver passwd-file.
type passwdPass struct {
	db             *passwdDB
	scheme         string
	usernameFormat string
}

// newPasswdPass reads "scheme=S username_format=F /path" (clause C19.13).
func newPasswdPass(args string, s *Server) (*passwdPass, error) {
	p := &passwdPass{scheme: "CRYPT", usernameFormat: "%u"}
	for args != "" && args[0] != '/' {
		word, rest, _ := strings.Cut(args, " ")
		args = rest
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "":
		case "scheme":
			if !password.Known(value) {
				return nil, fmt.Errorf("passdb passwd-file: args: unknown password scheme %s (known are %s)", value, strings.Join(password.Names(), " "))
			}
			p.scheme = value
		case "username_format":
			p.usernameFormat = value
		default:
			return nil, fmt.Errorf("passdb passwd-file: args: Unknown setting: %s (the path must begin with /)", key)
		}
	}
	if args == "" {
		return nil, errors.New("passdb passwd-file: Missing args")
	}
	p.db = s.passwdDB(args, false)
	return p, nil
}

func (p *passwdPass) find(r *request) (stored, scheme string, ok bool, _ passResult) {
	u, ok, failed := p.db.lookup(r, p.usernameFormat)
	switch {
	case failed:
		return "", "", false, passInternalFailure
	case !ok:
		return "", "", false, passUserUnknown
	}
	scheme, stored, named := password.Split(u.password)
	if !named {
		scheme = p.scheme
	}
	r.setField("password", "{"+scheme+"}"+stored)
	if err := template(u.extra).apply(r, r.setField); err != nil {
		r.dbError("Failed to expand extra field %s", err)
		return "", "", false, passInternalFailure
	}
	return stored, scheme, true, passOK
}

// passwdUserdb is the userdb driver passwd-file.
type passwdUserdb struct {
	db             *passwdDB
	usernameFormat string
}

// newPasswdUser reads "username_format=F /path".
func newPasswdUser(args string, s *Server) (*passwdUserdb, error) {
	u := &passwdUserdb{usernameFormat: "%u"}
	if rest, ok := strings.CutPrefix(args, "username_format="); ok {
		u.usernameFormat, args, _ = strings.Cut(rest, " ")
	}
	if args == "" {
		return nil, errors.New("userdb passwd-file: Missing args")
	}
	if args[0] != '/' {
		return nil, fmt.Errorf("userdb passwd-file: args: the path %q must begin with /", args)
	}
	u.db = s.passwdDB(args, true)
	return u, nil
}

func (p *passwdUserdb) find(r *request) userResult {
	u, ok, failed := p.db.lookup(r, p.usernameFormat)
	switch {
	case failed:
		return userInternalFailure
	case !ok || u.noUserdb:
		return userUnknown
	}
	if u.uid >= 0 {
		r.setUserdbField("uid", strconv.FormatInt(u.uid, 10))
	}
	if u.gid >= 0 {
		r.setUserdbField("gid", strconv.FormatInt(u.gid, 10))
	}
	if u.home != "" {
		r.setUserdbField("home", u.home)
	}
	var t template
	for _, p := range u.extra {
		if k, ok := strings.CutPrefix(p.key, "userdb_"); ok {
			t = append(t, pair{k, p.value})
		}
	}
	if err := t.apply(r, r.setUserdbField); err != nil {
		r.dbError("Failed to expand extra field %s", err)
		return userInternalFailure
	}
	return userOK
}

func (p *passwdUserdb) list(r *request, each func(string) bool) error {
	if p.db.vars {
		return errors.New("passwd-file: User iteration isn't currently supported with %variable paths")
	}
	t, err := p.db.defFile.current(r)
	if err != nil {
		return err
	}
	for _, n := range t.names {
		if (p.db.warn || t.users[n].listed) && !each(n) {
			return nil
		}
	}
	return nil
}

// errnoText is the text of the system's error alone.
func errnoText(err error) string {
	var no syscall.Errno
	if errors.As(err, &no) {
		if no == syscall.EACCES {
			return fmt.Sprintf("Permission denied (euid=%d egid=%d)", os.Geteuid(), os.Getegid())
		}
		s := no.Error()
		return strings.ToUpper(s[:1]) + s[1:]
	}
	return err.Error()
}
