package password

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"math"
	"strconv"
	"strings"
)

const (
	scramMinRounds = 4096 // also what we use
	scramMaxRounds = math.MaxInt32
	scramSaltSize  = 16
)

func scramHash(name string) func() hash.Hash {
	if name == "SCRAM-SHA-256" {
		return sha256.New
	}
	return sha1.New
}

// A SCRAM holds a password for the mechanisms SCRAM-SHA-1 or SCRAM-SHA-256 (RFC 5802):
//
//	4096,<salt>,<StoredKey>,<ServerKey>    all but the number in base64
type SCRAM struct {
	Rounds               int
	Salt                 []byte
	StoredKey, ServerKey []byte
}

// ParseSCRAM reads the data of a scheme "SCRAM-SHA-1" or "SCRAM-SHA-256".
func ParseSCRAM(name string, stored []byte) (SCRAM, error) {
	var s SCRAM
	size := scramHash(name)().Size()
	f := strings.Split(string(stored), ",")
	if len(f) != 4 {
		return s, dovecots("Invalid %s passdb entry format", name)
	}
	n, err := strconv.ParseUint(f[0], 10, 32)
	if err != nil || n < scramMinRounds || n > scramMaxRounds {
		return s, dovecots("Invalid %s iteration count in passdb", name)
	}
	s.Rounds = int(n)
	for i, k := range []struct {
		name string
		to   *[]byte
	}{{"StoredKey", &s.StoredKey}, {"ServerKey", &s.ServerKey}} {
		if *k.to, err = base64.StdEncoding.DecodeString(f[i+2]); err != nil || len(*k.to) != size {
			return s, dovecots("Invalid %s %s in passdb", name, k.name)
		}
	}
	if s.Salt, err = base64.StdEncoding.DecodeString(f[1]); err != nil {
		return s, dovecots("Invalid %s salt in passdb", name)
	}
	return s, nil
}

// scramKeys derives the keys of a password. As in Dovecot, it is not prepared
// (RFC 4013): what the user types must be the octets that were stored.
func scramKeys(h func() hash.Hash, plain string, salt []byte, rounds int) (stored, server []byte, err error) {
	salted, err := pbkdf2.Key(h, plain, salt, rounds, h().Size())
	if err != nil {
		return nil, nil, err
	}
	mac := func(text string) []byte {
		m := hmac.New(h, salted)
		m.Write([]byte(text))
		return m.Sum(nil)
	}
	d := h()
	d.Write(mac("Client Key"))
	return d.Sum(nil), mac("Server Key"), nil
}

func scramVerify(name string) func(string, []byte) (bool, error) {
	return func(plain string, stored []byte) (bool, error) {
		s, err := ParseSCRAM(name, stored)
		if err != nil {
			return false, err
		}
		key, _, err := scramKeys(scramHash(name), plain, s.Salt, s.Rounds)
		return err == nil && equal(key, s.StoredKey), err
	}
}

func scramGenerate(name string) func(string, string) ([]byte, error) {
	return func(plain, _ string) ([]byte, error) {
		salt := make([]byte, scramSaltSize)
		_, _ = rand.Read(salt) // never fails
		stored, server, err := scramKeys(scramHash(name), plain, salt, scramMinRounds)
		if err != nil {
			return nil, err
		}
		enc := base64.StdEncoding.EncodeToString
		return fmt.Appendf(nil, "%d,%s,%s,%s", scramMinRounds, enc(salt), enc(stored), enc(server)), nil
	}
}

// pbkdf2Verify: $1$salt$rounds$<SHA-1 key in hex>
func pbkdf2Verify(plain string, stored []byte) (bool, error) {
	rest, ok := strings.CutPrefix(string(stored), "$1$")
	if !ok {
		return false, dovecots("Invalid PBKDF2 passdb entry prefix")
	}
	f := strings.Split(rest, "$")
	if len(f) != 3 {
		return false, dovecots("Invalid PBKDF2 passdb entry format")
	}
	rounds, err := strconv.ParseUint(f[1], 10, 31)
	if err != nil || rounds == 0 {
		return false, dovecots("Invalid PBKDF2 passdb entry format")
	}
	want, err := hex.DecodeString(f[2])
	if err != nil || len(want) != sha1.Size {
		return false, errors.New("PBKDF2 hash not 160bit hex-encoded")
	}
	key, err := pbkdf2.Key(sha1.New, plain, []byte(f[0]), int(rounds), sha1.Size)
	return err == nil && equal(key, want), err
}
