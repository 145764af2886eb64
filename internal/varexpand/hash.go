package varexpand

import (
	"crypto/md5"
	"crypto/pbkdf2"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha3"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"strconv"
	"strings"
)

// maxRounds bounds the work of one hash. An admin who wants more does not want it in a
// log line.
const maxRounds = 1 << 20

// newHash returns the hash function with that name, in lower case; nil if there is none.
func newHash(name string) func() hash.Hash {
	switch name {
	case "md4":
		return newMD4
	case "md5":
		return md5.New
	case "sha1":
		return sha1.New
	case "sha256":
		return sha256.New
	case "sha384":
		return sha512.New384
	case "sha512":
		return sha512.New
	case "sha3-256":
		return func() hash.Hash { return sha3.New256() }
	case "sha3-512":
		return func() hash.Hash { return sha3.New512() }
	case "size":
		return func() hash.Hash { return new(sizeHash) }
	}
	return nil
}

func isHash(name string) bool {
	name = strings.ToLower(name)
	return name == "pkcs5" || newHash(name) != nil
}

// sizeHash counts octets: its sum is their number, 8 octets, big endian.
type sizeHash uint64

func (n *sizeHash) Write(p []byte) (int, error) { *n += sizeHash(len(p)); return len(p), nil }
func (n *sizeHash) Sum(b []byte) []byte         { return binary.BigEndian.AppendUint64(b, uint64(*n)) }
func (n *sizeHash) Reset()                      { *n = 0 }
func (n *sizeHash) Size() int                   { return 8 }
func (n *sizeHash) BlockSize() int              { return 1 }

// hash returns %{name;args:variable}. The arguments, separated by commas, are rounds=N,
// truncate=BITS (what remains is the number in the first BITS bits), format= and salt=;
// salt is expanded, and must be the last.
func (e *expander) hash(name, args, variable string) (string, bool) {
	var none field
	value, ok := e.long(variable, &none)
	if !ok {
		return "", false
	}
	rounds, bits, format, salt := uint64(1), uint64(0), "hex", ""
	if name == "pkcs5" {
		rounds, salt = 2048, variable
	}
	for arg := range strings.SplitSeq(args, ",") {
		k, v, given := strings.Cut(arg, "=")
		if !given {
			continue
		}
		var err error
		switch k {
		case "rounds":
			if rounds, err = strconv.ParseUint(v, 10, 32); err != nil {
				e.fail("Cannot parse hash arguments: '%s' is not number for rounds", v)
				return "", false
			}
			if rounds < 1 || rounds > maxRounds {
				e.fail("Cannot parse hash arguments: rounds must be from 1 to %d", maxRounds)
				return "", false
			}
		case "truncate":
			if bits, err = strconv.ParseUint(v, 10, 32); err != nil {
				e.fail("Cannot parse hash arguments: '%s' is not number for truncbits", v)
				return "", false
			}
		case "format":
			if v != "hex" && v != "hexuc" && v != "base64" {
				e.fail("Cannot parse hash arguments: '%s' is not supported format", v)
				return "", false
			}
			format = v
		case "salt":
			if salt, ok = e.expand(v); !ok {
				return "", false
			}
		}
		if k == "salt" {
			break
		}
	}
	sum, err := digest(name, value, salt, int(rounds))
	if err != nil {
		e.fail("Cannot hash: %s", err)
		return "", false
	}
	sum = firstBits(sum, int(min(bits, 8*uint64(sumSize(name)))))
	if format == "base64" {
		return base64.StdEncoding.EncodeToString(sum), true
	}
	return hex.EncodeToString(sum), true // hexuc, too: the real one prints no upper case
}

// pkcs5Length is the number of octets of a pkcs5 key, a constant of Dovecot's.
const pkcs5Length = 336

// sumSize is the number of octets that truncate counts from.
func sumSize(name string) int {
	if name == "pkcs5" {
		return sha256.Size
	}
	return newHash(name)().Size()
}

// digest hashes value, each round after the first the sum of the one before. pkcs5 is
// PBKDF2 with HMAC-SHA256.
func digest(name, value, salt string, rounds int) ([]byte, error) {
	if name == "pkcs5" {
		return pbkdf2.Key(sha256.New, value, []byte(salt), rounds, pkcs5Length)
	}
	h := newHash(name)()
	sum := []byte(value)
	for range rounds {
		h.Reset()
		h.Write([]byte(salt))
		h.Write(sum)
		sum = h.Sum(sum[:0])
	}
	return sum, nil
}

// firstBits returns the number in the first bits of sum, big endian; all of sum if bits is
// 0 or more than there are.
func firstBits(sum []byte, bits int) []byte {
	if bits == 0 || bits >= 8*len(sum) {
		return sum
	}
	sum = sum[:(bits+7)/8]
	if n := bits % 8; n > 0 {
		for i := len(sum) - 1; i > 0; i-- {
			sum[i] = sum[i]>>(8-n) + sum[i-1]<<n
		}
		sum[0] >>= 8 - n
	}
	return sum
}
