package smtp

import "strings"

// ParseRcpt reads what follows "RCPT " (clauses S5.6 and S5.7). caps are the extensions
// that were announced. If refusal is not zero it is the answer, and the rest means nothing.
func ParseRcpt(args string, caps Cap, w Workarounds) (to Path, params RcptParams, refusal Reply) {
	to, args, refusal = pathAndParams(args, "TO", forwardPath, w)
	if !refusal.IsZero() {
		return Path{}, params, refusal
	}
	if to.Domain == "" && !strings.EqualFold(to.Local, "postmaster") {
		return Path{}, params, syntax("Invalid TO: " + errNoDomain.Error())
	}
	refusal = eachParam("RCPT", args, func(p param) Reply {
		switch {
		case p.is("NOTIFY") && caps&CapDSN != 0:
			return params.parseNotify(p)
		case p.is("ORCPT") && caps&CapDSN != 0:
			return params.parseOrcpt(p)
		}
		return unknownParam
	})
	return to, params, refusal
}

var notifyNames = [...]string{"NEVER", "SUCCESS", "FAILURE", "DELAY"} // by bit

// parseNotify reads NOTIFY= (RFC 3461 section 4.1).
func (r *RcptParams) parseNotify(p param) Reply {
	if refusal := p.once("NOTIFY", r.Notify != 0); !refusal.IsZero() {
		return refusal
	}
	unknown, invalid := false, false
words:
	for word := range strings.SplitSeq(p.value, ",") {
		if word == "" {
			continue
		}
		for bit, name := range notifyNames {
			if strings.EqualFold(word, name) {
				n := Notify(1) << bit
				invalid = invalid || r.Notify != 0 && (n|r.Notify)&NotifyNever != 0
				r.Notify |= n
				continue words
			}
		}
		unknown = true
	}
	const text = "Invalid NOTIFY= parameter value"
	switch {
	case invalid:
		return syntax(text)
	case unknown:
		return unsupported(text)
	case r.Notify == 0:
		return syntax(text)
	}
	return Reply{}
}

// parseOrcpt reads ORCPT= (RFC 3461 section 4.2).
func (r *RcptParams) parseOrcpt(p param) Reply {
	if refusal := p.once("ORCPT", r.OrcptType != ""); !refusal.IsZero() {
		return refusal
	}
	sc := scanner{s: p.value}
	r.OrcptType = sc.take(&atext)
	if r.OrcptType == "" || !sc.skip(';') {
		return syntax("Invalid addr-type for ORCPT= parameter")
	}
	begin := sc.i
	value, err := sc.xtext()
	switch {
	case err != nil:
	case !sc.end():
		err = errXtextChar
	case begin == len(p.value):
		err = errXtextEmpty
	}
	if err != nil {
		return syntax("Invalid ORCPT= parameter: " + err.Error())
	}
	if !textString.all(value) {
		return syntax("Invalid ORCPT= address value: Contains non-printable characters")
	}
	if strings.EqualFold(r.OrcptType, "rfc822") {
		addr, ok := parseRFC822(value)
		if !ok {
			return syntax("Invalid ORCPT= address value: Invalid RFC822 address")
		}
		value = addr.String()
	}
	r.Orcpt = value
	return Reply{}
}

// AppendRcpt adds the RCPT command that a relay with caps gets, without its CRLF (clause
// S5.7).
func AppendRcpt(b []byte, to Path, params *RcptParams, caps Cap) []byte {
	b = append(b, "RCPT TO:"...)
	b = to.AppendPath(b)
	if caps&CapDSN == 0 {
		return b
	}
	if params.Notify != 0 {
		b = append(b, " NOTIFY="...)
		for bit, name := range notifyNames {
			if params.Notify>>bit&1 != 0 {
				if b[len(b)-1] != '=' {
					b = append(b, ',')
				}
				b = append(b, name...)
			}
		}
	}
	if params.OrcptType != "" {
		b = append(b, " ORCPT="...)
		b = append(append(b, params.OrcptType...), ';')
		b = AppendXtext(b, params.Orcpt)
	}
	return b
}

// Missing returns the refusal for what r asks of a relay with caps in vain; zero if it can
// have everything.
func (r *RcptParams) Missing(caps Cap) Reply {
	if caps&CapDSN == 0 && (r.Notify != 0 || r.OrcptType != "") {
		return unknownParam
	}
	return Reply{}
}
