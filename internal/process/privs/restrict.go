package privs

import (
	"fmt"
	"strconv"
	"strings"
)

// Unset is an id that the master did not give, as in Dovecot's own (uid_t)-1.
const Unset = ^uint32(0)

// A Restrict is what the master's RESTRICT_* variables ask a process to become (clauses
// P1.2.1 and P1.4). The ids are Unset, Chroot and ExtraGroups empty, where nothing was
// asked for.
type Restrict struct {
	UID         uint32   // RESTRICT_SETUID
	GID         uint32   // RESTRICT_SETGID
	PrivGID     uint32   // RESTRICT_SETGID_PRIV, a group that Dovecot keeps as saved gid; Apply does not
	ExtraGroups []uint32 // RESTRICT_SETEXTRAGROUPS, besides GID
	Chroot      string   // RESTRICT_CHROOT
}

// maxGroups is the kernel's NGROUPS_MAX.
const maxGroups = 65536

// ParseRestrict reads the RESTRICT_* variables through get, which returns "" for what is
// not set, as os.Getenv does.
func ParseRestrict(get func(string) string) (Restrict, error) {
	r := Restrict{UID: Unset, GID: Unset, PrivGID: Unset, Chroot: get("RESTRICT_CHROOT")}
	for _, v := range []struct {
		name string
		id   *uint32
	}{
		{"RESTRICT_SETUID", &r.UID},
		{"RESTRICT_SETGID", &r.GID},
		{"RESTRICT_SETGID_PRIV", &r.PrivGID},
	} {
		if text := get(v.name); text != "" {
			id, err := parseID(text)
			if err != nil {
				return r, fmt.Errorf("environment: %s: %w", v.name, err)
			}
			*v.id = id
		}
	}
	groups, err := ParseGroups(get("RESTRICT_SETEXTRAGROUPS"))
	if err != nil {
		return r, fmt.Errorf("environment: RESTRICT_SETEXTRAGROUPS: %w", err)
	}
	r.ExtraGroups = groups
	if r.Chroot != "" && r.Chroot[0] != '/' {
		return r, fmt.Errorf("environment: RESTRICT_CHROOT: %q is not an absolute path", r.Chroot)
	}
	return r, nil
}

// ParseGroups reads a comma separated list of numeric group ids. "" is the empty list.
func ParseGroups(list string) ([]uint32, error) {
	if list == "" {
		return nil, nil
	}
	if strings.Count(list, ",") >= maxGroups {
		return nil, fmt.Errorf("more than %d groups", maxGroups)
	}
	var groups []uint32
	for word := range strings.SplitSeq(list, ",") {
		id, err := parseID(word)
		if err != nil {
			return nil, err
		}
		groups = append(groups, id)
	}
	return groups, nil
}

func parseID(text string) (uint32, error) {
	id, err := strconv.ParseUint(text, 10, 32)
	if err != nil || uint32(id) == Unset {
		return Unset, fmt.Errorf("%q is not a numeric id", text)
	}
	return uint32(id), nil
}

// AppendEnv adds the variables that ParseRestrict reads to environ, in the master's order.
// What is not set adds nothing.
func (r Restrict) AppendEnv(environ []string) []string {
	if r.Chroot != "" {
		environ = append(environ, "RESTRICT_CHROOT="+r.Chroot)
	}
	add := func(name string, id uint32) {
		if id != Unset {
			environ = append(environ, name+"="+strconv.FormatUint(uint64(id), 10))
		}
	}
	add("RESTRICT_SETUID", r.UID)
	add("RESTRICT_SETGID", r.GID)
	add("RESTRICT_SETGID_PRIV", r.PrivGID)
	if len(r.ExtraGroups) > 0 {
		environ = append(environ, "RESTRICT_SETEXTRAGROUPS="+joinGroups(r.ExtraGroups))
	}
	return environ
}

func joinGroups(groups []uint32) string {
	var b []byte
	for i, g := range groups {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, uint64(g), 10)
	}
	return string(b)
}
