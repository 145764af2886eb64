// Package log speaks the line protocol between a process and the log service (clause
// P1.8): Writer is the process's end, on descriptor 2, and Reader the log service's. Where
// lines end up (files, syslog) is the log service's business.
//
//	0x01 <type> <pid> SP <text> LF
//	0x01 <type> <pid> SP prefix=<text> LF     type 8: the prefix of this pid's lines from now on
//	0x01 <type> <pid> SP ip=<address> LF      type 8: the client of this pid, for the notice of its death
//	<text> LF                                 anything else: an error, under the service's prefix
//
// pid is decimal. type is one byte: 1 debug, 2 info, 3 warning, 4 error, 5 fatal, 6 panic,
// 8 option; 7 makes Dovecot's log service abort and is never sent. Two bits may be added:
//
//	0x80   the stored prefix is not put before this line
//	0x40   text is <n> SP <text>: its first n octets are the prefix of this line
//
// A line has at most 4096 bytes with its LF, so that one write to the pipe stays whole;
// longer texts are sent as several lines, each with the head. The master begins the pipe
// with a handshake, of 32-bit words in host byte order:
//
//	0 4 magic   0x02ff03fe
//	4 4 length  of what follows, the service's prefix: "submission-login: "
package log

import (
	"encoding/binary"
	"fmt"
	"io"

	"dovetail/internal/process/event"
)

// MaxLine is the length of a line with its LF: PIPE_BUF, up to which writes to a pipe do
// not mix.
const MaxLine = 4096

const (
	startByte = 0x01

	typeOption    = 8
	typeMask      = 0x3f
	flagPrefixLen = 0x40
	flagNoPrefix  = 0x80

	optionPrefix = "prefix="
	optionIP     = "ip="

	handshakeMagic  = 0x02ff03fe
	handshakeHead   = 8
	maxHandshake    = 1024 // of the prefix
	maxStoredPrefix = 1024 // of a prefix= option
)

// typeByte returns the type of an ordinary line.
func typeByte(l event.Level) byte {
	if l < event.Debug || l > event.Panic {
		l = event.Error
	}
	return byte(l) + 1
}

// AppendHandshake adds what a master writes into a service's log pipe before the service
// does. prefix ends in ": " and has at most 1024 bytes.
func AppendHandshake(b []byte, prefix string) []byte {
	b = binary.NativeEndian.AppendUint32(b, handshakeMagic)
	b = binary.NativeEndian.AppendUint32(b, uint32(len(prefix)))
	return append(b, prefix...)
}

// readHandshake returns the service's prefix.
func readHandshake(r io.Reader) (string, error) {
	var head [handshakeHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return "", fmt.Errorf("log handshake: %w", err)
	}
	if magic := binary.NativeEndian.Uint32(head[:]); magic != handshakeMagic {
		return "", fmt.Errorf("log handshake: magic %#x, want %#x", magic, handshakeMagic)
	}
	n := binary.NativeEndian.Uint32(head[4:])
	if n > maxHandshake {
		return "", fmt.Errorf("log handshake: prefix of %d bytes, at most %d are allowed", n, maxHandshake)
	}
	prefix := make([]byte, n)
	if _, err := io.ReadFull(r, prefix); err != nil {
		return "", fmt.Errorf("log handshake: %w", err)
	}
	return string(prefix), nil
}
