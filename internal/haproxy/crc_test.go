package haproxy

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
)

// withCRC fills in the checksum of a header that ends with a TLV for it.
func withCRC(b []byte) []byte {
	b = bytes.Clone(b)
	sum := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
	binary.BigEndian.PutUint32(b[len(b)-4:], sum)
	return b
}
