package smtp

import (
	"math"
	"strconv"
	"strings"
)

// maxSize is the largest SIZE that is taken: what can be added to without overflow.
const maxSize = math.MaxInt64

// ParseMail reads what follows "MAIL " (clauses S5.1 to S5.3). caps are the extensions
// that were announced: a parameter of another one is refused. If refusal is not zero it is
// the answer, and the rest means nothing.
func ParseMail(args string, caps Cap, w Workarounds) (from Path, params MailParams, refusal Reply) {
	from, args, refusal = pathAndParams(args, "FROM", reversePath, w)
	if !refusal.IsZero() {
		return Path{}, params, refusal
	}
	refusal = eachParam("MAIL", args, func(p param) Reply {
		switch {
		case p.is("AUTH") && caps&CapAuth != 0:
			return params.parseAuth(p)
		case p.is("BODY"):
			return params.parseBody(p, caps)
		case p.is("ENVID") && caps&CapDSN != 0:
			return params.parseEnvid(p)
		case p.is("RET") && caps&CapDSN != 0:
			return params.parseRet(p)
		case p.is("SIZE") && caps&CapSize != 0:
			return params.parseSize(p)
		}
		return unknownParam
	})
	return from, params, refusal
}

// parseAuth checks the address of AUTH= (RFC 4954 section 5).
func (m *MailParams) parseAuth(p param) Reply {
	if refusal := p.once("AUTH", m.HasAuth); !refusal.IsZero() {
		return refusal
	}
	value, err := ParseXtext(p.value)
	if err != nil {
		return syntax("Invalid AUTH= parameter value: " + err.Error())
	}
	if value != "<>" {
		if _, err := parseMailbox(value); err != nil {
			return syntax("Invalid AUTH= address value: " + err.Error())
		}
	}
	m.Auth, m.HasAuth = value, true
	return Reply{}
}

var bodyNames = [...]string{Body7Bit: "7BIT", Body8BitMIME: "8BITMIME", BodyBinaryMIME: "BINARYMIME"}

// String returns the name of b, such as "8BITMIME"; "" for none.
func (b Body) String() string { return bodyNames[b] }

// needs returns the extensions that b takes.
func (b Body) needs() Cap {
	switch b {
	case Body8BitMIME:
		return Cap8BitMIME
	case BodyBinaryMIME:
		return CapBinaryMIME | CapChunking
	}
	return 0
}

// parseBody reads BODY= (RFC 6152, RFC 3030).
func (m *MailParams) parseBody(p param, caps Cap) Reply {
	if refusal := p.once("BODY", m.Body != BodyUnset); !refusal.IsZero() {
		return refusal
	}
	for b := Body7Bit; b <= BodyBinaryMIME; b++ {
		if strings.EqualFold(p.value, b.String()) && caps&b.needs() == b.needs() {
			m.Body = b
			return Reply{}
		}
	}
	return unsupported("Unsupported mail BODY type")
}

// parseEnvid reads ENVID= (RFC 3461 section 4.4).
func (m *MailParams) parseEnvid(p param) Reply {
	if refusal := p.once("ENVID", m.HasEnvid); !refusal.IsZero() {
		return refusal
	}
	value, err := ParseXtext(p.value)
	if err != nil {
		return syntax("Invalid ENVID= parameter value: " + err.Error())
	}
	if !textString.all(value) {
		return syntax("Invalid ENVID= parameter value: Contains non-printable characters")
	}
	m.Envid, m.HasEnvid = value, true
	return Reply{}
}

// parseRet reads RET= (RFC 3461 section 4.3).
func (m *MailParams) parseRet(p param) Reply {
	if refusal := p.once("RET", m.Ret != ""); !refusal.IsZero() {
		return refusal
	}
	for _, ret := range [...]string{"FULL", "HDRS"} {
		if strings.EqualFold(p.value, ret) {
			m.Ret = ret
			return Reply{}
		}
	}
	return unsupported("Unsupported RET= parameter keyword")
}

// parseSize reads SIZE= (RFC 1870). SIZE=0 counts as not given.
func (m *MailParams) parseSize(p param) Reply {
	if refusal := p.once("SIZE", m.HasSize); !refusal.IsZero() {
		return refusal
	}
	n, ok := parseUint(p.value)
	if !ok || n > maxSize {
		return unsupported("Unsupported SIZE parameter value")
	}
	m.Size, m.HasSize = n, n != 0
	return Reply{}
}

// parseUint reads decimal digits, any number of them; no sign, no underscore.
func parseUint(s string) (uint64, bool) {
	if s == "" {
		return 0, false
	}
	var n uint64
	for i := 0; i < len(s); i++ {
		d := uint64(s[i] - '0')
		if d > 9 || n > (math.MaxUint64-d)/10 {
			return 0, false
		}
		n = n*10 + d
	}
	return n, true
}

// extraSize is what SIZE grows by on its way to the relay: room for the Received header
// (clause S5.4).
const extraSize = 1024

// AppendMail adds the MAIL command that a relay with caps gets, without its CRLF: the
// parameters in the order AUTH BODY ENVID RET SIZE, each if the relay knows it (clause
// S5.4). A Body that the relay does not know must have been refused before (Missing).
func AppendMail(b []byte, from Path, params *MailParams, caps Cap) []byte {
	b = append(b, "MAIL FROM:"...)
	b = from.AppendPath(b)
	if params.HasAuth && caps&CapAuth != 0 {
		b = append(b, " AUTH="...)
		b = AppendXtext(b, params.Auth)
	}
	if params.Body != BodyUnset {
		b = append(b, " BODY="...)
		b = append(b, params.Body.String()...)
	}
	if params.HasEnvid && caps&CapDSN != 0 {
		b = append(b, " ENVID="...)
		b = AppendXtext(b, params.Envid)
	}
	if params.Ret != "" && caps&CapDSN != 0 {
		b = append(b, " RET="...)
		b = append(b, params.Ret...)
	}
	if params.HasSize && caps&CapSize != 0 {
		b = append(b, " SIZE="...)
		b = strconv.AppendUint(b, params.Size+extraSize, 10)
	}
	return b
}

// Missing returns the refusal for what params ask of a relay with caps in vain; zero if it
// can have everything. A SIZE does no harm to a relay that is not told.
func (m *MailParams) Missing(caps Cap) Reply {
	switch {
	case caps&m.Body.needs() != m.Body.needs():
		return unsupported("Unsupported mail BODY type")
	case (m.HasEnvid || m.Ret != "") && caps&CapDSN == 0:
		return unknownParam
	}
	return Reply{}
}
