package masterproto

import (
	"errors"
	"fmt"
	"strconv"

	"dovetail/internal/dovecot/tabline"
)

// The control channel is this project's own addition to the contract: a socketpair
// (SOCK_SEQPACKET, non-blocking) between our master and each process that runs a program of
// the project. The process knows its end from ControlEnv, and does without it under
// Dovecot's master. One packet is one line without LF, its fields separated by TAB and
// escaped (package tabline):
//
//	C: READY                               once, by a process that knows this protocol
//	M: KICK <tag> <user mask> <network>    end these sessions with 421 4.3.2
//	C: <tag> <count>                       so many were
//	M: LOGS <tag> <path>...                + a descriptor for each path, to the log process:
//	                                       its files, opened anew
//	C: <tag> 1
//
// User mask and network are those of package usermask. tag is a number that the answer
// repeats. An order that a process does not know it answers with the tag alone. Before
// READY nothing is asked.
//
// There are two points to it. A worker may serve several users: SIGTERM, the only word of
// Dovecot's own contract, would end all of them. And the channel lives as long as the
// master: a process whose dead pipe broke, but not this, has seen a reload and no stop.
const (
	ControlEnv   = "DOVETAIL_CONTROL_FD"
	ControlReady = "READY"
	ControlKick  = "KICK"
	ControlLogs  = "LOGS"

	// MaxControl bounds a packet, in bytes.
	MaxControl = 4096
)

// An Order is one packet from the master.
type Order struct {
	Word string
	Tag  uint64
	Args []string
}

var errControl = errors.New("control channel: invalid packet")

// Append adds the wire form of o to b. ParseOrder reverses it.
func (o Order) Append(b []byte) []byte {
	b = tabline.AppendEscaped(b, o.Word)
	b = strconv.AppendUint(append(b, '\t'), o.Tag, 10)
	for _, a := range o.Args {
		b = tabline.AppendEscaped(append(b, '\t'), a)
	}
	return b
}

// ParseOrder parses a packet from the master.
func ParseOrder(b []byte) (Order, error) {
	f := tabline.Split(string(b))
	if len(b) > MaxControl || len(f) < 2 {
		return Order{}, fmt.Errorf("%w: %.100q", errControl, b)
	}
	tag, err := strconv.ParseUint(f[1], 10, 64)
	if err != nil {
		return Order{}, fmt.Errorf("%w: %.100q", errControl, b)
	}
	return Order{Word: f[0], Tag: tag, Args: f[2:]}, nil
}

// AppendAnswer adds the answer to the order with this tag to b; without fields it says that
// the order is not known. ParseAnswer reverses it.
func AppendAnswer(b []byte, tag uint64, fields ...string) []byte {
	b = strconv.AppendUint(b, tag, 10)
	for _, f := range fields {
		b = tabline.AppendEscaped(append(b, '\t'), f)
	}
	return b
}

// ParseAnswer parses what a process says; ready, that it is READY.
func ParseAnswer(b []byte) (tag uint64, fields []string, ready bool, err error) {
	f := tabline.Split(string(b))
	if f[0] == ControlReady {
		return 0, nil, true, nil
	}
	if tag, err = strconv.ParseUint(f[0], 10, 64); err != nil || len(b) > MaxControl {
		return 0, nil, false, fmt.Errorf("%w: %.100q", errControl, b)
	}
	return tag, f[1:], false, nil
}
