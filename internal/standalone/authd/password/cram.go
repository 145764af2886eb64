package password

import (
	"crypto/md5"
	"encoding"
	"encoding/binary"
	"encoding/hex"
	"errors"
)

// CRAMSize is the length of a CRAM-MD5 secret: the state of MD5 after the first block of
// HMAC's outer hash, then that of the inner one, each as four little-endian words.
const CRAMSize = 32

// stateMagic and stateSize are of crypto/md5's marshalled state: magic, four big-endian
// words, the unfinished block, the number of octets.
const (
	stateMagic = "md5\x01"
	stateSize  = len(stateMagic) + 16 + md5.BlockSize + 8
)

// cramGenerate makes the secret of a password (RFC 2104, RFC 2195).
func cramGenerate(plain, _ string) ([]byte, error) {
	key := []byte(plain)
	if len(key) > md5.BlockSize {
		sum := md5.Sum(key)
		key = sum[:]
	}
	out := make([]byte, 0, CRAMSize)
	for _, pad := range []byte{0x5c, 0x36} {
		var block [md5.BlockSize]byte
		copy(block[:], key)
		for i := range block {
			block[i] ^= pad
		}
		h := md5.New()
		h.Write(block[:])
		state, err := h.(encoding.BinaryMarshaler).MarshalBinary()
		if err != nil || len(state) != stateSize {
			return nil, errors.New("CRAM-MD5: MD5 has no state to keep")
		}
		words := state[len(stateMagic):]
		for i := range 4 {
			out = binary.LittleEndian.AppendUint32(out, binary.BigEndian.Uint32(words[4*i:]))
		}
	}
	return out, nil
}

// CRAM returns the response to a challenge in hex, as the client has to send it. secret has
// CRAMSize octets.
func CRAM(secret []byte, challenge string) (string, error) {
	if len(secret) != CRAMSize {
		return "", errors.New("invalid credentials length")
	}
	inner, err := resume(secret[16:], []byte(challenge))
	if err != nil {
		return "", err
	}
	outer, err := resume(secret[:16], inner)
	return hex.EncodeToString(outer), err
}

// resume goes on from a state after one block.
func resume(words, data []byte) ([]byte, error) {
	state := make([]byte, 0, stateSize)
	state = append(state, stateMagic...)
	for i := range 4 {
		state = binary.BigEndian.AppendUint32(state, binary.LittleEndian.Uint32(words[4*i:]))
	}
	state = append(state, make([]byte, md5.BlockSize)...)
	state = binary.BigEndian.AppendUint64(state, md5.BlockSize)
	h := md5.New()
	if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(state); err != nil {
		return nil, err
	}
	h.Write(data)
	return h.Sum(nil), nil
}
