package doveconf

import (
	"crypto/sha1"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// header is the part of a dump's head that names the machine (clause C17.4).
func header() string {
	var u unix.Utsname
	_ = unix.Uname(&u)
	text := func(b []byte) string { return unix.ByteSliceToString(b) }
	return fmt.Sprintf("# OS: %s %s %s %s \n# Hostname: %s\n", text(u.Sysname[:]), text(u.Release[:]), text(u.Machine[:]), distro(), fqdn())
}

// distro names the distribution as Dovecot does for the commonest.
func distro() string {
	if b, err := os.ReadFile("/etc/debian_version"); err == nil {
		return "Debian " + strings.TrimSpace(firstLine(string(b)))
	}
	for _, f := range []string{"/etc/redhat-release", "/etc/SuSE-release", "/etc/fedora-release"} {
		if b, err := os.ReadFile(f); err == nil {
			return strings.TrimSpace(firstLine(string(b)))
		}
	}
	return ""
}

func firstLine(s string) string {
	l, _, _ := strings.Cut(s, "\n")
	return l
}

// fqdn is the host's name with its domain, as far as /etc/hosts tells; nothing is asked
// over the network.
func fqdn() string {
	host, err := os.Hostname()
	if err != nil || strings.Contains(host, ".") {
		return host
	}
	b, _ := os.ReadFile("/etc/hosts")
	for l := range strings.Lines(string(b)) {
		l, _, _ = strings.Cut(l, "#")
		f := strings.Fields(l)
		for i := 1; i < len(f); i++ {
			if f[i] == host {
				return f[1]
			}
		}
	}
	return host
}

// hostHashes is -H: whether any two of the hosts of a pattern have the same hash.
func (r *run) hostHashes(args []string) error {
	missing := fatal("Host parameter missing %d")
	var prefix, suffix string
	width, zero := 1, false
	if len(args) > 0 {
		before, rest, ok := strings.Cut(args[0], "%")
		if !ok {
			return missing
		}
		prefix = before
		rest, zero = strings.CutPrefix(rest, "0")
		if rest != "" && rest[0] >= '1' && rest[0] <= '6' {
			width, rest = int(rest[0]-'0'), rest[1:]
		}
		if suffix, ok = strings.CutPrefix(rest, "d"); !ok {
			return missing
		}
	} else {
		host := fqdn()
		first := strings.IndexAny(host, "0123456789")
		if first < 0 {
			return fatalf("Hostname '%s' has no digits, can't verify", host)
		}
		rest := strings.TrimLeft(host[first:], "0123456789")
		prefix, suffix = host[:first], rest
		width, zero = min(len(host)-first-len(rest), 6), host[first] == '0'
	}
	limit := 1
	for range width {
		limit *= 10
	}
	name := func(n int) string {
		if zero {
			return fmt.Sprintf("%s%0*d%s", prefix, width, n, suffix)
		}
		return fmt.Sprintf("%s%d%s", prefix, n, suffix)
	}
	seen := map[[4]byte]string{}
	duplicates := false
	for n := range limit {
		sum := sha1.Sum([]byte(name(n)))
		key := [4]byte(sum[16:])
		if first, ok := seen[key]; ok {
			duplicates = true
			r.say("Error", fmt.Sprintf("Duplicate host hashes: %s and %s", first, name(n)))
		}
		seen[key] = name(n)
	}
	if duplicates {
		return errSaid
	}
	r.out.line(fmt.Sprintf("No duplicate host hashes in %s .. %s\n", name(0), name(limit-1)))
	return nil
}
