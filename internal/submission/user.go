package submission

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"dovetail/internal/conf/settings"
	"dovetail/internal/dovecot/authmaster"
	"dovetail/internal/process/privs"
	"dovetail/internal/smtp"
	"dovetail/internal/submission/burl"
	"dovetail/internal/varexpand"
)

// A user is who logged in, and with what settings. It is immutable once a session has it.
type user struct {
	name      string
	authUser  string // whose password it was: a master user, or name
	master    string // the master user who logged in as him; "": he did
	session   string // ID of the login session
	token     string // proves the login to other services; a secret
	anonymous bool
	postlogin string // socket of a post-login script

	local, remote netip.AddrPort

	fields userFields
	userSettings
	plugin   map[string]string // settings that nobody knows, without "plugin/"
	burl     burl.Options
	hostname string
	twoHomes bool // the userdb's home stands in place of mail_home
	identity privs.Identity
	nice     int
	admin    bool
}

// userSettings are the settings that a user has.
type userSettings struct {
	set         settings.Submission
	workarounds smtp.Workarounds // of set
	burlSet     settings.BURLServer
	burlErrs    []error // what is wrong with burlSet
}

// decodeSettings makes them of the values that get knows.
func decodeSettings(get func(name string) (string, bool)) (s userSettings, err error) {
	var errs []error
	s.set, errs = settings.Decode[settings.Submission](get)
	if s.set.RelayMaxIdleTime == 0 {
		errs = append(errs, errors.New("submission_relay_max_idle_time must not be 0"))
	}
	if s.workarounds, err = parseWorkarounds(s.set.ClientWorkarounds); err != nil {
		errs = append(errs, err)
	}
	s.burlSet, s.burlErrs = decodeBURL(get)
	return s, errors.Join(errs...)
}

// userFields are the fields of the auth service's answer that are no settings (clauses
// P4.4, P4.6).
type userFields struct {
	uid, gid, home, chroot, chdir, systemGroups, postlogin string
	hasUID, hasGID                                         bool
	badNice                                                string // what is no number
	overrides                                              []override
	raw                                                    []string // all of them, for a post-login script
}

// An override is a setting that the userdb sets for its user.
type override struct {
	name, value string
	add         bool // name+=value
}

// newUser reads the auth service's answer.
func newUser(answer authmaster.User) (*user, userFields) {
	u := &user{name: answer.Name, authUser: answer.Name}
	var f userFields
	for _, field := range answer.Fields {
		v := field.Value
		if raw := field.Key; field.HasValue {
			f.raw = append(f.raw, raw+"="+v)
		} else {
			f.raw = append(f.raw, raw)
		}
		switch field.Key {
		case "uid":
			f.uid, f.hasUID = v, true
		case "gid":
			f.gid, f.hasGID = v, true
		case "home":
			f.home = v
		case "chroot":
			f.chroot = v
		case "chdir":
			f.chdir = v
		case "system_groups_user":
			f.systemGroups = v
		case "postlogin":
			f.postlogin = v
		case "nice":
			n, err := strconv.Atoi(v)
			u.nice, f.badNice = n, ""
			if err != nil {
				u.nice, f.badNice = 0, v
			}
		case "anonymous":
			u.anonymous = true
		case "auth_user":
			u.authUser = v
		case "auth_token":
			u.token = v
		case "master_user":
			u.master = v
		case "auth_mech", "user":
		case "admin":
			u.admin = v != "" && strings.ContainsRune("yY1", rune(v[0]))
		default:
			if !field.HasValue {
				v = "yes"
			}
			name, add := strings.CutSuffix(field.Key, "+")
			f.overrides = append(f.overrides, override{name, v, add})
		}
	}
	u.postlogin = f.postlogin
	return u, f
}

// apply makes the user's settings: base, as the config service sent it, with what the userdb
// and the command line say. plain, if not nil, is what base and the command line make of a
// user for whom the userdb has no settings.
func (u *user) apply(f userFields, base func(string) (string, bool), commandLine map[string]string, hostname string, plain *userSettings) error {
	over := map[string]string{}
	get := func(name string) (string, bool) {
		if v, ok := commandLine[name]; ok {
			return v, true
		}
		if v, ok := over[name]; ok {
			return v, true
		}
		return base(name)
	}
	for _, o := range f.overrides {
		name, value := o.name, o.value
		row, known := settings.Lookup(name)
		if !known {
			name = "plugin/" + strings.TrimPrefix(name, "plugin/")
		}
		if o.add {
			if known && row.Type != settings.Str && row.Type != settings.StrVars {
				return fmt.Errorf("userdb setting %s+: '+' can only be used for strings", name)
			}
			old, ok := get(name)
			if !ok && known {
				old = row.Default
			}
			value = old + value
		}
		if known {
			if _, err := row.Normalise(value); err != nil {
				return fmt.Errorf("Invalid settings in userdb: Invalid userdb input '%s=%s': %w", name, value, err) //lint:ignore ST1005 Dovecot's words
			}
		}
		over[name] = value
	}
	if plain != nil && len(over) == 0 {
		u.userSettings = *plain
	} else {
		var err error
		if u.userSettings, err = decodeSettings(get); err != nil {
			return fmt.Errorf("Invalid settings (probably caused by userdb): %w", err) //lint:ignore ST1005 Dovecot's words
		}
	}
	u.hostname = u.set.Hostname
	if u.hostname == "" {
		u.hostname = hostname
	}
	u.plugin = map[string]string{}
	for name, value := range over {
		if p, ok := strings.CutPrefix(name, "plugin/"); ok {
			u.plugin[p] = value
		}
	}
	return u.identify(f)
}

// errDrop begins what Dovecot notices when it has already finished with the user's settings.
var errDrop = errors.New("Couldn't drop privileges") //lint:ignore ST1005 Dovecot's words

// identify finds out who the process has to become (clause P1.4.3), with Dovecot's checks
// and words.
func (u *user) identify(f userFields) error {
	uid, uidSource := u.set.MailUID, "mail_uid setting"
	if f.hasUID {
		uid, uidSource = f.uid, "userdb lookup"
		if uid == "0" {
			return errors.New("Invalid settings in userdb: userdb returned 0 as uid") //lint:ignore ST1005 Dovecot's words
		}
	}
	gid, gidSource := u.set.MailGID, "mail_gid setting"
	if f.hasGID {
		gid, gidSource = f.gid, "userdb lookup"
	}
	id := privs.Identity{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
	asRoot := id.UID == 0
	var err error
	if uid != "" {
		if id.UID, err = lookupID("/etc/passwd", uid, "Unknown UNIX UID user: "); err != nil {
			return fmt.Errorf("%w (from %s)", err, uidSource)
		}
		if id.UID < u.set.FirstValidUID || u.set.LastValidUID != 0 && id.UID > u.set.LastValidUID {
			return fmt.Errorf("Mail access for users with UID %d not permitted (see first_valid_uid in config file, uid from %s).", id.UID, uidSource) //lint:ignore ST1005 Dovecot's words
		}
	} else if asRoot {
		return fmt.Errorf("%w: User is missing UID (see mail_uid setting)", errDrop)
	}
	if gid != "" {
		if id.GID, err = lookupID("/etc/group", gid, "Unknown UNIX GID group: "); err != nil {
			return fmt.Errorf("%w (from %s)", err, gidSource)
		}
		if id.GID < u.set.FirstValidGID || u.set.LastValidGID != 0 && id.GID > u.set.LastValidGID {
			return fmt.Errorf("Mail access for users with GID %d not permitted (see first_valid_gid in config file, gid from %s).", id.GID, gidSource) //lint:ignore ST1005 Dovecot's words
		}
	} else if asRoot && u.set.FirstValidGID > 0 {
		return fmt.Errorf("%w: User is missing GID (see mail_gid setting)", errDrop)
	}
	if asRoot && id.UID == 0 {
		return fmt.Errorf("%w: Mail access not allowed for root", errDrop)
	}
	if err := u.groups(&id, f); err != nil {
		return err
	}
	return u.directories(&id, f)
}

// groups are those besides the user's own.
func (u *user) groups(id *privs.Identity, f userFields) error {
	for _, name := range settings.Words(u.set.MailAccessGroups) {
		g, err := lookupID("/etc/group", name, "Unknown UNIX GID group: ")
		if err != nil {
			return fmt.Errorf("%w (in mail_access_groups setting)", err)
		}
		id.ExtraGroups = append(id.ExtraGroups, g)
	}
	if f.systemGroups != "" {
		more, err := privs.SystemGroups(f.systemGroups)
		if err != nil {
			return err
		}
		id.ExtraGroups = append(id.ExtraGroups, more...)
	}
	return nil
}

// directories are home and chroot.
func (u *user) directories(id *privs.Identity, f userFields) error {
	home, chroot := f.home, f.chroot
	u.twoHomes = home != "" && u.set.MailHome != ""
	if chroot == "" && u.set.ValidChrootDirs != "" {
		// <chroot>/./<home>, as some FTP servers have it.
		if i := strings.Index(home, "/./"); i >= 0 {
			home, chroot = home[i+2:], home[:i]
		}
	}
	if chroot != "" && !validChroot(u.set.ValidChrootDirs, chroot) {
		return fmt.Errorf("Invalid settings in userdb: userdb returned invalid chroot directory: %s (see valid_chroot_dirs setting)", chroot) //lint:ignore ST1005 Dovecot's words
	}
	var err error
	if home == "" && u.set.MailHome != "" {
		if home, err = varexpand.Expand(u.set.MailHome, u.variable); err != nil {
			return fmt.Errorf("Failed to expand mail_home '%s': %w", u.set.MailHome, err) //lint:ignore ST1005 Dovecot's words
		}
	}
	if chroot == "" && u.set.MailChroot != "" {
		if chroot, err = varexpand.Expand(u.set.MailChroot, u.variable); err != nil {
			return fmt.Errorf("Failed to expand mail_chroot '%s': %w", u.set.MailChroot, err) //lint:ignore ST1005 Dovecot's words
		}
	}
	if home != "" && home[0] != '/' {
		return fmt.Errorf("Relative home directory paths not supported: %s", home) //lint:ignore ST1005 Dovecot's words
	}
	if base, ok := strings.CutSuffix(chroot, "/."); ok && strings.HasPrefix(home, base) {
		// The home has the chroot in it.
		chroot = base
		if home = home[len(base):]; home == "" {
			home = "/"
		}
	}
	id.Home, id.Chroot = home, chroot
	if f.chdir != "" {
		id.Home = f.chdir
	}
	u.set.MailHome = home
	u.identity = *id
	return nil
}

func validChroot(dirs, chroot string) bool {
	for dir := range strings.SplitSeq(dirs, ":") {
		if dir != "" && strings.HasPrefix(chroot, dir) {
			return true
		}
	}
	return false
}

// maxDatabaseLine is for a group that everybody is in.
const maxDatabaseLine = 16 << 20

// lookupID returns the number of a user or group, which may be given as one.
func lookupID(path, name, unknown string) (uint32, error) {
	if n, err := strconv.ParseUint(name, 10, 32); err == nil {
		return uint32(n), nil
	}
	file, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	sc := bufio.NewScanner(file)
	sc.Buffer(nil, maxDatabaseLine)
	for sc.Scan() {
		f := strings.SplitN(sc.Text(), ":", 4)
		if len(f) < 3 || f[0] != name {
			continue
		}
		if n, err := strconv.ParseUint(f[2], 10, 32); err == nil {
			return uint32(n), nil
		}
	}
	if err := sc.Err(); err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return 0, errors.New(unknown + name)
}

// variable is the value of a variable in the user's settings, log prefix and logout line.
func (u *user) variable(key byte, long string) (string, bool) {
	if key != 0 {
		long = longNames[key]
	}
	get, ok := variables[long]
	if !ok {
		return "", false
	}
	return get(u), true
}

var longNames = map[byte]string{
	'u': "user", 'n': "username", 'd': "domain", 's': "service", 'h': "home", 'l': "lip", 'r': "rip", 'p': "pid", 'i': "uid",
}

// variables are by their long names.
var variables = map[string]func(*user) string{
	"user":          func(u *user) string { return u.name },
	"username":      func(u *user) string { return localPart(u.name) },
	"domain":        func(u *user) string { return domainPart(u.name) },
	"service":       func(*user) string { return "submission" },
	"home":          func(u *user) string { return u.set.MailHome },
	"lip":           func(u *user) string { return ipText(u.local) },
	"rip":           func(u *user) string { return ipText(u.remote) },
	"local_ip":      func(u *user) string { return ipText(u.local) },
	"remote_ip":     func(u *user) string { return ipText(u.remote) },
	"pid":           func(*user) string { return strconv.Itoa(os.Getpid()) },
	"uid":           func(u *user) string { return strconv.Itoa(int(u.identity.UID)) },
	"gid":           func(u *user) string { return strconv.Itoa(int(u.identity.GID)) },
	"session":       func(u *user) string { return u.session },
	"auth_user":     func(u *user) string { return u.authUser },
	"auth_username": func(u *user) string { return localPart(u.authUser) },
	"auth_domain":   func(u *user) string { return domainPart(u.authUser) },
}

func localPart(name string) string {
	local, _, _ := strings.Cut(name, "@")
	return local
}

func domainPart(name string) string {
	_, domain, _ := strings.Cut(name, "@")
	return domain
}

func ipText(a netip.AddrPort) string {
	if !a.Addr().IsValid() {
		return ""
	}
	return a.Addr().Unmap().WithZone("").String()
}

// expandPath expands a setting that names a directory: variables, and ~/ for the home.
func (u *user) expandPath(path string) (string, error) {
	path, err := varexpand.Expand(path, u.variable)
	if err != nil {
		return "", err
	}
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		path = u.set.MailHome + "/" + rest
	}
	return path, nil
}
