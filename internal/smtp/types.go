// Package smtp holds the words of the protocol that both engines and both roles use:
// reply, path, parameters, capabilities, xtext, XCLIENT, dot stuffing. It reads and
// writes them; packages smtp/server and smtp/client hold the dialogues.
package smtp

// A Path is a reverse or forward path without its brackets (RFC 5321 section 4.1.2).
// The zero Path is the null path, <>. Local is the decoded local part (unquoted);
// Domain is a domain or an address literal with its brackets, "" only for <postmaster>.
type Path struct {
	Local, Domain string
}

// IsNull says whether p is the null path.
func (p Path) IsNull() bool { return p == Path{} }

// A Body is the BODY parameter of MAIL.
type Body uint8

const (
	BodyUnset Body = iota
	Body7Bit
	Body8BitMIME
	BodyBinaryMIME
)

// MailParams are the parameters of MAIL (clause S5.3).
type MailParams struct {
	Size     uint64
	HasSize  bool
	Body     Body
	Ret      string // "FULL", "HDRS" or ""
	Envid    string // decoded
	HasEnvid bool
	Auth     string // decoded
	HasAuth  bool
}

// RcptParams are the parameters of RCPT (clause S5.7).
type RcptParams struct {
	Notify    Notify
	OrcptType string // as written; "" for none
	Orcpt     string // decoded address
}

// Notify is the set of the NOTIFY parameter; zero means it was not given.
type Notify uint8

const (
	NotifyNever Notify = 1 << iota
	NotifySuccess
	NotifyFailure
	NotifyDelay
)

// A Cap is a set of service extensions.
type Cap uint32

const (
	CapAuth Cap = 1 << iota
	CapStartTLS
	CapPipelining
	CapSize
	CapEnhancedStatusCodes
	Cap8BitMIME
	CapChunking
	CapBinaryMIME
	CapBURL
	CapDSN
	CapVRFY
	CapETRN
	CapXCLIENT
)

// Capabilities are what a peer announced in its EHLO reply.
type Capabilities struct {
	Set     Cap
	Size    uint64   // limit of SIZE in octets; 0: none given
	Auth    []string // SASL mechanisms, upper case
	Xclient []string // XCLIENT attributes, upper case
}

// Has says whether all of c is announced.
func (cs Capabilities) Has(c Cap) bool { return cs.Set&c == c }
