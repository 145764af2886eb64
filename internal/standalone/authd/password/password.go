// Package password reads, checks and makes stored passwords in Dovecot's form:
//
//	{SSHA256}base64...       scheme, then the data in the scheme's own encoding
//	{SHA512.hex}0f3a...      the encoding said by name: b64, base64 or hex
//	$6$salt$hash             no scheme: the passdb's default one, often CRYPT
//
// Names of schemes are compared without regard to case. The hash functions are those of
// the standard library and of go-crypt; DES-CRYPT is here. Not here: OTP and PLAIN-MD4,
// and of crypt(3) what only old systems wrote (bsdi, NT, gost, scrypt), which are errors.
//
// Comparing takes the same time wherever the difference is. Hashing costs time and memory:
// a Pool bounds how much of it goes on at a time.
package password

import (
	"bytes"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strings"
)

// A coding is how data are written.
type coding uint8

const (
	raw coding = iota
	b64
	hexa
)

// A scheme is one row of the table. Without verify, a password is right if generate makes
// of it what is stored; without generate, nothing is ever made in this scheme.
type scheme struct {
	name     string
	family   string // schemes of one family are the same under several names
	coding   coding
	size     int // of the decoded data; 0 for any
	generate func(plain, user string) ([]byte, error)
	verify   func(plain string, stored []byte) (bool, error)
	cost     func(stored []byte) cost // nil: so cheap that it needs no place in a Pool
}

// schemes has Dovecot's builtin schemes.
var schemes = [...]scheme{
	{"MD5", "MD5", raw, 0, nil, md5Verify, slow},
	{"MD5-CRYPT", "MD5", raw, 0, nil, md5CryptVerify, slow},
	{"SHA", "SHA1", b64, sha1.Size, digest(sha1.New), nil, nil},
	{"SHA1", "SHA1", b64, sha1.Size, digest(sha1.New), nil, nil},
	{"SHA256", "SHA256", b64, sha256.Size, digest(sha256.New), nil, nil},
	{"SHA512", "SHA512", b64, sha512.Size, digest(sha512.New), nil, nil},
	{"SMD5", "SMD5", b64, 0, nil, salted("SMD5", md5.New), nil},
	{"SSHA", "SSHA", b64, 0, nil, salted("SSHA", sha1.New), nil},
	{"SSHA256", "SSHA256", b64, 0, nil, salted("SSHA256", sha256.New), nil},
	{"SSHA512", "SSHA512", b64, 0, nil, salted("SSHA512", sha512.New), nil},
	{"PLAIN", "PLAIN", raw, 0, plain, nil, nil},
	{"CLEAR", "PLAIN", raw, 0, plain, nil, nil},
	{"CLEARTEXT", "PLAIN", raw, 0, plain, nil, nil},
	{"PLAIN-TRUNC", "PLAIN", raw, 0, plain, truncVerify, nil},
	{"CRAM-MD5", "CRAM-MD5", hexa, CRAMSize, cramGenerate, nil, nil},
	{"HMAC-MD5", "CRAM-MD5", hexa, CRAMSize, cramGenerate, nil, nil},
	{"DIGEST-MD5", "DIGEST-MD5", hexa, md5.Size, digestMD5, nil, nil},
	{"PLAIN-MD5", "PLAIN-MD5", hexa, md5.Size, digest(md5.New), nil, nil},
	{"LDAP-MD5", "PLAIN-MD5", b64, md5.Size, digest(md5.New), nil, nil},
	{"SCRAM-SHA-1", "SCRAM-SHA-1", raw, 0, scramGenerate("SCRAM-SHA-1"), scramVerify("SCRAM-SHA-1"), slow},
	{"SCRAM-SHA-256", "SCRAM-SHA-256", raw, 0, scramGenerate("SCRAM-SHA-256"), scramVerify("SCRAM-SHA-256"), slow},
	{"PBKDF2", "PBKDF2", raw, 0, nil, pbkdf2Verify, slow},
	{"CRYPT", "CRYPT", raw, 0, nil, cryptVerify, cryptCost},
	{"DES-CRYPT", "DES-CRYPT", raw, 0, nil, cryptVerify, cryptCost},
	{"SHA256-CRYPT", "SHA256-CRYPT", raw, 0, nil, cryptVerify, cryptCost},
	{"SHA512-CRYPT", "SHA512-CRYPT", raw, 0, nil, cryptVerify, cryptCost},
	{"BLF-CRYPT", "CRYPT", raw, 0, nil, blowfishVerify, slow},
	{"ARGON2I", "ARGON2I", raw, 0, nil, argon2Verify, argon2Cost},
	{"ARGON2ID", "ARGON2ID", raw, 0, nil, argon2Verify, argon2Cost},
}

// lookup finds a scheme and the encoding of its data; guess says that it was not named.
func lookup(name string) (s *scheme, e coding, guess bool) {
	name, suffix, named := strings.Cut(name, ".")
	for i := range schemes {
		if strings.EqualFold(schemes[i].name, name) {
			s = &schemes[i]
		}
	}
	if s == nil {
		return nil, raw, false
	}
	if !named {
		return s, s.coding, true
	}
	switch strings.ToLower(suffix) {
	case "b64", "base64":
		return s, b64, false
	case "hex":
		return s, hexa, false
	}
	return nil, raw, false
}

// Known says whether there is a scheme of that name, which may have an encoding.
func Known(name string) bool {
	s, _, _ := lookup(name)
	return s != nil
}

// Names returns the schemes' names.
func Names() []string {
	out := make([]string, len(schemes))
	for i := range schemes {
		out[i] = schemes[i].name
	}
	return out
}

// Split returns the scheme that a stored password names, and the data behind it. Without a
// name, named is false: the default scheme counts.
func Split(stored string) (name, data string, named bool) {
	if rest, ok := strings.CutPrefix(stored, "$1$"); ok {
		// $1$salt$hash, and whatever some programs wrote behind it
		if salt, rest, ok := strings.Cut(rest, "$"); ok {
			hash, _, _ := strings.Cut(rest, "$")
			return "MD5-CRYPT", "$1$" + salt + "$" + hash, true
		}
	}
	if rest, ok := strings.CutPrefix(stored, "{"); ok {
		if name, data, ok := strings.Cut(rest, "}"); ok {
			return name, data, true
		}
	}
	return "", stored, false
}

// SameScheme says whether two names mean the same kind of data.
func SameScheme(a, b string) bool {
	if a == "" || b == "" {
		return false
	}
	a, _, _ = strings.Cut(a, ".")
	b, _, _ = strings.Cut(b, ".")
	if strings.EqualFold(a, b) {
		return true
	}
	x, _, _ := lookup(a)
	y, _, _ := lookup(b)
	return x != nil && y != nil && x.family == y.family
}

// ErrScheme: there is no such scheme. Other errors of this package say what is wrong with
// stored data; their text has Dovecot's words, and nothing of a password.
var ErrScheme = dovecots("Unknown scheme")

// dovecots makes an error with Dovecot's words, which begin with a capital letter.
func dovecots(format string, args ...any) error { return fmt.Errorf(format, args...) }

// Decode decodes stored data (without {SCHEME}) by the scheme's encoding. If that is not
// named, hex and base64 are told apart by their length.
func Decode(name, data string) ([]byte, error) {
	s, e, guess := lookup(name)
	if s == nil {
		return nil, ErrScheme
	}
	return decode(data, e, s.size, guess)
}

// decode decodes data that have size octets, or any number if that is 0. guess says that
// the encoding may be another one than e.
func decode(data string, e coding, size int, guess bool) ([]byte, error) {
	guess = guess && e != raw && size != 0
	if guess {
		e = b64
		if len(data) == 2*size {
			e = hexa
		}
	}
	var out []byte
	var err error
	switch e {
	case raw:
		out = []byte(data)
	case hexa:
		if out, err = hex.DecodeString(data); err == nil {
			break
		}
		if !guess {
			return nil, dovecots("Input isn't valid HEX encoded data")
		}
		fallthrough
	case b64:
		if out, err = base64.StdEncoding.DecodeString(data); err != nil {
			return nil, dovecots("Input isn't valid base64 encoded data")
		}
	}
	if size != 0 && len(out) != size {
		return nil, dovecots("Input length isn't valid (%d instead of %d)", len(out), size)
	}
	return out, nil
}

// check compares plain with decoded data. user matters to DIGEST-MD5 alone.
func (s *scheme) check(plain, user string, stored []byte) (ok bool, err error) {
	defer func() {
		// The data may be anything that an admin's file holds, and some hash functions
		// panic over parameters out of range.
		if r := recover(); r != nil {
			ok, err = false, fmt.Errorf("hash function failed: %v", r)
		}
	}()
	if s.verify != nil {
		return s.verify(plain, stored)
	}
	made, err := s.generate(plain, user)
	return err == nil && equal(made, stored), err
}

func equal(a, b []byte) bool { return subtle.ConstantTimeCompare(a, b) == 1 }

func plain(plain, _ string) ([]byte, error) { return []byte(plain), nil }

// digest makes unsalted hashes.
func digest(h func() hash.Hash) func(plain, user string) ([]byte, error) {
	return func(plain, _ string) ([]byte, error) {
		d := h()
		d.Write([]byte(plain))
		return d.Sum(nil), nil
	}
}

// salted checks a hash that the salt follows.
func salted(name string, h func() hash.Hash) func(string, []byte) (bool, error) {
	return func(plain string, stored []byte) (bool, error) {
		d := h()
		if len(stored) <= d.Size() {
			return false, fmt.Errorf("%s password is too short", name)
		}
		d.Write([]byte(plain))
		d.Write(stored[d.Size():])
		return equal(d.Sum(nil), stored[:d.Size()]), nil
	}
}

// md5Verify is the old name for both: MD5-CRYPT, and PLAIN-MD5 in hex or base64.
func md5Verify(plain string, stored []byte) (bool, error) {
	if bytes.HasPrefix(stored, []byte("$1$")) {
		return md5CryptVerify(plain, stored)
	}
	want, err := decode(string(stored), hexa, md5.Size, true)
	if err != nil {
		return false, dovecots("Not a valid MD5-CRYPT or PLAIN-MD5 password")
	}
	sum := md5.Sum([]byte(plain))
	return equal(sum[:], want), nil
}

// truncVerify: "8-password" was stored by what cuts passwords at 8 octets.
func truncVerify(plain string, stored []byte) (bool, error) {
	i, n := 0, 0
	for ; i < len(stored) && '0' <= stored[i] && stored[i] <= '9' && n < 1<<20; i++ {
		n = 10*n + int(stored[i]-'0')
	}
	if i == len(stored) || stored[i] != '-' {
		return false, errors.New("PLAIN-TRUNC missing length: prefix")
	}
	stored = stored[i+1:]
	if len(stored) == n && len(plain) >= n {
		plain = plain[:n]
	}
	return equal([]byte(plain), stored), nil
}

// digestMD5 is user:realm:password; the realm is what follows the last @ of the user.
func digestMD5(plain, user string) ([]byte, error) {
	realm := ""
	if i := strings.LastIndexByte(user, '@'); i >= 0 {
		user, realm = user[:i], user[i+1:]
	}
	sum := md5.Sum([]byte(user + ":" + realm + ":" + plain))
	return sum[:], nil
}

// Generate makes the decoded data of a password in a scheme; it is for the schemes that
// mechanisms ask for. user matters to DIGEST-MD5 alone. For SCRAM it is slow: use
// Pool.Generate.
func Generate(name, plain, user string) ([]byte, error) {
	s, _, _ := lookup(name)
	if s == nil || s.generate == nil {
		return nil, ErrScheme
	}
	return s.generate(plain, user)
}
