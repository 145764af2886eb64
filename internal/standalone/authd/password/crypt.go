package password

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"strconv"
	"strings"

	"github.com/go-crypt/x/argon2"
	"github.com/go-crypt/x/bcrypt"
	"github.com/go-crypt/x/crypt"
	"github.com/go-crypt/x/yescrypt"
)

// maxCrypt is how many octets of a password crypt(3) takes, as libcrypt has it. A longer
// one matches nothing. Without the bound a stranger could say one that costs seconds of
// hashing: the time of $5$ and $6$ grows with the square of the length.
const maxCrypt = 511

// cryptVerify checks what crypt(3) made, by its prefix. Nothing stored matches nothing. As
// in Dovecot, which has its own bcrypt, that one takes a password of any length.
func cryptVerify(plain string, stored []byte) (bool, error) {
	var made []byte
	var err error
	switch s := string(stored); {
	case s == "":
		return false, nil
	case len(s) > 4 && s[0] == '$' && s[1] == '2' && s[3] == '$':
		return blowfishVerify(plain, stored)
	case len(plain) > maxCrypt:
		return false, nil
	case strings.HasPrefix(s, "$1$"):
		made = md5Crypt(plain, s)
	case strings.HasPrefix(s, "$5$"):
		made, err = shaCrypt(sha256.New, plain, s)
	case strings.HasPrefix(s, "$6$"):
		made, err = shaCrypt(sha512.New, plain, s)
	case strings.HasPrefix(s, "$sha1$"):
		made, err = sha1Crypt(plain, s)
	case strings.HasPrefix(s, "$y$"):
		made, err = yescrypt.Hash([]byte(plain), stored)
	case s[0] != '$' && s[0] != '_':
		// "*", "!" and what else is no hash lock an account: they match nothing.
		made = desCrypt(plain, s)
	default:
		err = errors.New("crypt() failed: hash method is not supported")
	}
	return err == nil && equal(made, stored), err
}

// md5CryptVerify is the scheme of its own. As in Dovecot, whose own function it is, it has
// no bound: what a login line can hold takes it no longer than ARGON2ID takes for any.
func md5CryptVerify(plain string, stored []byte) (bool, error) {
	if !bytes.HasPrefix(stored, []byte("$1$")) {
		return false, nil
	}
	return equal(md5Crypt(plain, string(stored)), stored), nil
}

func md5Crypt(plain, s string) []byte {
	salt, _, _ := strings.Cut(s[3:], "$")
	if len(salt) > 8 {
		salt = salt[:8]
	}
	return fmt.Appendf(nil, "$1$%s$%s", salt, crypt.KeyMD5Crypt([]byte(plain), []byte(salt)))
}

// shaCrypt: $5$[rounds=N$]salt$hash; $6$ for SHA-512.
func shaCrypt(h func() hash.Hash, plain, s string) ([]byte, error) {
	head, rest := s[:3], s[3:]
	rounds := 5000
	if n, after, ok := strings.Cut(rest, "$"); ok && strings.HasPrefix(n, "rounds=") {
		v, err := strconv.ParseUint(n[len("rounds="):], 10, 32)
		if err != nil || v < 1000 || v > 999999999 {
			return nil, errors.New("crypt() failed: rounds are not between 1000 and 999999999")
		}
		rounds = int(v)
		head, rest = head+n+"$", after
	}
	salt, _, _ := strings.Cut(rest, "$")
	if len(salt) > 16 {
		salt = salt[:16]
	}
	return fmt.Appendf(nil, "%s%s$%s", head, salt, crypt.KeySHACrypt(h, []byte(plain), []byte(salt), rounds)), nil
}

// sha1Crypt: $sha1$rounds$salt$hash
func sha1Crypt(plain, s string) ([]byte, error) {
	f := strings.Split(s, "$")
	if len(f) != 5 {
		return nil, errors.New("crypt() failed: $sha1$ has too few parts")
	}
	rounds, err := strconv.ParseUint(f[2], 10, 32)
	if err != nil || rounds == 0 {
		return nil, errors.New("crypt() failed: $sha1$ has no rounds")
	}
	return fmt.Appendf(nil, "$sha1$%d$%s$%s", rounds, f[3], crypt.KeySHA1Crypt([]byte(plain), []byte(f[3]), uint32(rounds))), nil
}

// blowfishVerify: $2y$05$<22 of salt><31 of hash>. The variants a, b and y are the same;
// x is that of an old mistake, and refused.
func blowfishVerify(plain string, stored []byte) (bool, error) {
	if len(stored) == 0 {
		return false, nil
	}
	if len(stored) < 30 || stored[0] != '$' || stored[1] != '2' || stored[2] < 'a' || stored[2] > 'z' || stored[3] != '$' {
		return false, dovecots("Password is not blowfish password")
	}
	if bytes.IndexByte([]byte("aby"), stored[2]) < 0 {
		return false, fmt.Errorf("crypt_blowfish_rn failed: variant $2%c$ is not supported", stored[2])
	}
	key := []byte(plain)
	if len(key) > 72 { // what bcrypt looks at
		key = key[:72]
	}
	switch err := bcrypt.CompareHashAndPassword(stored, key); {
	case err == nil:
		return true, nil
	case errors.Is(err, bcrypt.ErrMismatchedHashAndPassword), len(stored) != 60:
		return false, nil
	default:
		return false, errors.New("crypt_blowfish_rn failed: invalid cost or salt")
	}
}

// An argon is $argon2id$v=19$m=65536,t=2,p=1$<salt>$<key>, the last two in base64 without
// padding.
type argon struct {
	id              bool
	memory          uint32 // KiB
	rounds, threads uint32
	salt, key       []byte
}

const (
	maxArgonMemory  = 2 << 20 // KiB
	maxArgonThreads = 64
)

func parseArgon2(stored []byte) (a argon, err error) {
	bad := errors.New("not an argon2i or argon2id hash of version 19")
	f := strings.Split(string(stored), "$")
	if len(f) != 6 || f[0] != "" || f[2] != "v=19" {
		return a, bad
	}
	switch f[1] {
	case "argon2id":
		a.id = true
	case "argon2i":
	default:
		return a, bad
	}
	p := strings.Split(f[3], ",")
	if len(p) != 3 {
		return a, bad
	}
	for i, v := range []struct {
		name     string
		to       *uint32
		min, max uint32
	}{{"m=", &a.memory, 8, maxArgonMemory}, {"t=", &a.rounds, 1, 1 << 16}, {"p=", &a.threads, 1, maxArgonThreads}} {
		text, ok := strings.CutPrefix(p[i], v.name)
		n, err := strconv.ParseUint(text, 10, 32)
		if !ok || err != nil {
			return a, bad
		}
		if uint32(n) < v.min || uint32(n) > v.max {
			return a, fmt.Errorf("argon2 hash with %s is not between %d and %d", p[i], v.min, v.max)
		}
		*v.to = uint32(n)
	}
	if a.memory < 8*a.threads {
		return a, bad
	}
	var err1, err2 error
	a.salt, err1 = base64.RawStdEncoding.DecodeString(f[4])
	a.key, err2 = base64.RawStdEncoding.DecodeString(f[5])
	if err1 != nil || err2 != nil || len(a.salt) < 8 || len(a.key) < 4 || len(a.key) > 1024 {
		return a, bad
	}
	return a, nil
}

func argon2Verify(plain string, stored []byte) (bool, error) {
	a, err := parseArgon2(stored)
	if err != nil {
		return false, err
	}
	f := argon2.IKey
	if a.id {
		f = argon2.IDKey
	}
	return equal(f([]byte(plain), a.salt, a.rounds, a.memory, a.threads, uint32(len(a.key))), a.key), nil
}

func argon2Cost(stored []byte) cost {
	a, err := parseArgon2(stored)
	if err != nil {
		return cost{}
	}
	return cost{memory: int64(a.memory) << 10}
}

// cryptCost knows that yescrypt needs memory, 128 * N * r octets, with log2 N and r behind
// "$y$j" as digits that begin at 1. More than it takes is an error of the hash function.
func cryptCost(stored []byte) cost {
	if !bytes.HasPrefix(stored, []byte("$y$j")) || len(stored) < 6 {
		return cost{}
	}
	n := strings.IndexByte(cryptDigits, stored[4]) + 1
	r := strings.IndexByte(cryptDigits, stored[5]) + 1
	return cost{memory: 128 << min(n, 18) * int64(min(r, 32))}
}
