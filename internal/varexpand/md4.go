package varexpand

import (
	"encoding/binary"
	"hash"
	"math/bits"
)

// An md4 is the hash of RFC 1320. It is broken as a cryptographic hash and here only
// because %{md4:...} may stand in an old configuration.
type md4 struct {
	state [4]uint32
	block [64]byte // its first n%64 octets wait to be hashed
	n     uint64   // octets so far
}

func newMD4() hash.Hash {
	h := new(md4)
	h.Reset()
	return h
}

func (h *md4) Size() int      { return 16 }
func (h *md4) BlockSize() int { return 64 }

func (h *md4) Reset() {
	*h = md4{state: [4]uint32{0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476}}
}

func (h *md4) Write(p []byte) (int, error) {
	for i := range p {
		h.block[h.n%64] = p[i]
		if h.n++; h.n%64 == 0 {
			h.mix()
		}
	}
	return len(p), nil
}

func (h *md4) Sum(b []byte) []byte {
	c := *h
	length := c.n * 8
	c.Write([]byte{0x80})
	for c.n%64 != 56 {
		c.Write([]byte{0})
	}
	c.Write(binary.LittleEndian.AppendUint64(nil, length))
	for _, v := range c.state {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

// mix adds the full block to the state: three rounds of sixteen steps.
func (h *md4) mix() {
	var x [16]uint32
	for i := range x {
		x[i] = binary.LittleEndian.Uint32(h.block[4*i:])
	}
	order := [3][16]int{
		{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
		{0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15},
		{0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15},
	}
	shift := [3][4]int{{3, 7, 11, 19}, {3, 5, 9, 13}, {3, 9, 11, 15}}
	a, b, c, d := h.state[0], h.state[1], h.state[2], h.state[3]
	for round := range 3 {
		for i, k := range order[round] {
			var f uint32
			switch round {
			case 0:
				f = b&c | ^b&d
			case 1:
				f = b&c | b&d | c&d
				f += 0x5a827999
			case 2:
				f = b ^ c ^ d
				f += 0x6ed9eba1
			}
			a, b, c, d = d, bits.RotateLeft32(a+f+x[k], shift[round][i%4]), b, c
		}
	}
	h.state[0] += a
	h.state[1] += b
	h.state[2] += c
	h.state[3] += d
}
