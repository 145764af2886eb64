package authmaster

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"dovetail/internal/dovecot/tabline"
)

// The server's half, for package authd. Every error of a Parse function ends the
// connection, as in Dovecot.

// AppendGreeting adds what the server sends on connect.
func AppendGreeting(b []byte, pid uint32) []byte {
	return fmt.Appendf(b, "VERSION\t%d\t%d\nSPID\t%d\n", major, minor, pid)
}

// CheckVersion reads a client's first line, without its LF.
func CheckVersion(line string) error {
	rest, ok := strings.CutPrefix(line, "VERSION\t")
	maj, _, _ := strings.Cut(rest, "\t")
	if !ok || maj != strconv.Itoa(major) {
		return fmt.Errorf("no VERSION line of major version %d", major)
	}
	return nil
}

// ParseRequest reads what stands behind "REQUEST\t". Unknown parameters are ignored.
func ParseRequest(args string) (id uint32, r Request, err error) {
	f := tabline.Split(args)
	if len(f) < 4 {
		return 0, r, errors.New("broken REQUEST")
	}
	var n [3]uint32
	for i := range n {
		v, err := strconv.ParseUint(f[i], 10, 32)
		if err != nil {
			return 0, r, errors.New("broken REQUEST")
		}
		n[i] = uint32(v)
	}
	id, r.ClientPID, r.AuthID = n[0], n[1], n[2]
	cookie, err := hex.DecodeString(f[3])
	if err != nil || len(cookie) > len(r.Cookie) {
		return id, r, errors.New("broken REQUEST cookie")
	}
	copy(r.Cookie[:], cookie) // a short one is only a wrong one (clause P4.5)
	for _, p := range tabline.ParseFields(f[4:]) {
		switch p.Key {
		case "session_pid":
			if v, err := strconv.ParseUint(p.Value, 10, 32); err == nil {
				r.SessionPID = uint32(v)
			}
		case "request_auth_token":
			r.WantToken = true
		}
	}
	return id, r, nil
}

// A Lookup is a USER, PASS or LIST line; a LIST has no Name.
type Lookup struct {
	ID     uint32
	Name   string
	Fields tabline.Fields
}

// ParseLookup reads what stands behind "USER\t" or "PASS\t".
func ParseLookup(args string) (Lookup, error) {
	f := tabline.Split(args)
	if len(f) < 2 {
		return Lookup{}, errors.New("no user")
	}
	id, err := strconv.ParseUint(f[0], 10, 32)
	if err != nil {
		return Lookup{}, errors.New("no ID")
	}
	return Lookup{ID: uint32(id), Name: f[1], Fields: tabline.ParseFields(f[2:])}, nil
}

// ParseList reads what stands behind "LIST\t".
func ParseList(args string) (Lookup, error) {
	f := tabline.Split(args)
	id, err := strconv.ParseUint(f[0], 10, 32)
	if err != nil {
		return Lookup{}, errors.New("no ID")
	}
	return Lookup{ID: uint32(id), Fields: tabline.ParseFields(f[1:])}, nil
}
