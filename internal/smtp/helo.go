package smtp

// HeloDomain returns the domain or, after EHLO, the address literal that args begin with;
// further words do not count (clause S2.5). ok is false if args begin with something else:
// the command is still accepted, and the name is unknown.
func HeloDomain(args string, literal bool) (name string, ok bool) {
	sc := scanner{s: args}
	name, ok, err := sc.domain()
	if err == nil && !ok && literal {
		name, ok, err = sc.addressLiteral()
	}
	if err != nil || !ok || !sc.end() && !sc.at(' ') {
		return "", false
	}
	return name, true
}

const errStringChar reason = "Invalid character in string"

// ParseString reads the argument of NOOP and VRFY, an atom or a quoted string (clauses S2.1,
// S8.1). given is false if there is none.
func ParseString(args string) (value string, given bool, refusal Reply) {
	if args == "" {
		return "", false, Reply{}
	}
	sc := scanner{s: args}
	value, quoted, err := sc.quotedString()
	if err == nil && !quoted {
		value = sc.take(&atext)
	}
	if err == nil && !sc.end() {
		err = errStringChar
	}
	if err != nil {
		return "", true, syntax("Invalid string parameter: " + err.Error())
	}
	return value, true, Reply{}
}

// AppendString adds s as an atom or, if it is none, as a quoted string.
func AppendString(b []byte, s string) []byte {
	if s != "" && atext.all(s) {
		return append(b, s...)
	}
	return appendQuoted(b, s)
}
