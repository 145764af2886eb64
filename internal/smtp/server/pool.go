package server

import "sync"

// Buffers are shared by all connections of the process. Small ones hold command lines and
// replies, large ones message data.
const large = 64 << 10

var (
	smallPool = sync.Pool{New: func() any { b := make([]byte, lineBuffer); return &b }}
	largePool = sync.Pool{New: func() any { b := make([]byte, large); return &b }}
)

func getSmall() []byte { return (*smallPool.Get().(*[]byte))[:0] }

// putSmall takes b. A buffer that has grown is left to the collector.
func putSmall(b []byte) {
	if cap(b) == lineBuffer {
		b = b[:lineBuffer]
		smallPool.Put(&b)
	}
}

func getBuffer(size int) *[]byte {
	switch {
	case size <= lineBuffer:
		return smallPool.Get().(*[]byte)
	case size <= large:
		return largePool.Get().(*[]byte)
	}
	b := make([]byte, size)
	return &b
}

func putBuffer(b *[]byte) {
	switch len(*b) {
	case lineBuffer:
		smallPool.Put(b)
	case large:
		largePool.Put(b)
	}
}
