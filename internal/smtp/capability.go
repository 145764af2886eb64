package smtp

import (
	"strings"
)

// capNames are in the order of the bits of Cap.
var capNames = [...]string{
	"AUTH", "STARTTLS", "PIPELINING", "SIZE", "ENHANCEDSTATUSCODES", "8BITMIME", "CHUNKING",
	"BINARYMIME", "BURL", "DSN", "VRFY", "ETRN", "XCLIENT",
}

// FindCap returns the extension of that name, in any case; 0 if it is unknown.
func FindCap(name string) Cap {
	for bit, n := range capNames {
		if strings.EqualFold(n, name) {
			return 1 << bit
		}
	}
	return 0
}

// ParseCapList reads submission_backend_capabilities: names separated by spaces or commas
// (clause S2.3). BINARYMIME brings CHUNKING with it. unknown are names to be warned about.
func ParseCapList(setting string) (set Cap, unknown []string) {
	for name := range strings.FieldsFuncSeq(setting, func(r rune) bool { return r == ' ' || r == ',' }) {
		c := FindCap(name)
		if c == 0 {
			unknown = append(unknown, name)
		}
		set |= c
	}
	if set&CapBinaryMIME != 0 {
		set |= CapChunking
	}
	return set, unknown
}

const (
	errEhloEmpty   reason = "Parameter is empty"
	errEhloKeyword reason = "Unexpected character in EHLO keyword"
	errEhloParam   reason = "Unexpected character in EHLO parameter"
	errEhloNoParam reason = "Missing EHLO parameter after ' '"
)

// parseEhloLine reads "KEYWORD param param".
func parseEhloLine(line string) (key string, params []string, err error) {
	if line == "" {
		return "", nil, errEhloEmpty
	}
	sc := scanner{s: line}
	if !alnum.has(line[0]) {
		return "", nil, errEhloKeyword
	}
	key = sc.take(&keyword)
	if sc.end() {
		return key, nil, nil
	}
	if !sc.at(' ') {
		return "", nil, errEhloKeyword
	}
	for sc.skip(' ') {
		param := sc.take(&visible)
		if !sc.end() && !sc.at(' ') {
			return "", nil, errEhloParam
		}
		if param == "" && len(params) > 0 {
			return "", nil, errEhloNoParam
		}
		params = append(params, param)
	}
	return key, params, nil
}

// ParseEhlo reads the capabilities out of a reply to EHLO (clause S4.5). What cannot be
// read is left out, and warnings say so; of a name that comes again the last line counts.
func ParseEhlo(r Reply) (cs Capabilities, warnings []string) {
	if len(r.Text) == 0 {
		return cs, nil
	}
	for _, line := range r.Text[1:] {
		key, params, err := parseEhloLine(line)
		if err != nil {
			warnings = append(warnings, "Received invalid EHLO response line: "+err.Error())
			continue
		}
		c := FindCap(key)
		switch c {
		case CapAuth:
			cs.Auth = upper(params)
		case CapXCLIENT:
			cs.Xclient = upper(params)
		case CapSize:
			if len(params) == 0 {
				break
			}
			n, ok := parseUint(params[0])
			if !ok {
				warnings = append(warnings, "Received invalid SIZE capability in EHLO response line")
				c = 0
				break
			}
			cs.Size = n
		}
		cs.Set |= c
	}
	return cs, warnings
}

func upper(words []string) []string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = strings.ToUpper(w)
	}
	return out
}
