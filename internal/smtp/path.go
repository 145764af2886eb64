package smtp

import (
	"strings"
)

// Workarounds are the forms of paths that a client may use against the rules (clause
// S5.12).
type Workarounds uint8

const (
	WhitespaceBeforePath Workarounds = 1 << iota
	MailboxForPath
)

// pathKind says what a path may be.
type pathKind uint8

const (
	nullPath     pathKind    = 1 << iota // <>
	bareLocal                            // a local part without a domain
	noBrackets                           // a mailbox instead of a path
	reversePath  = nullPath              // of MAIL
	forwardPath  = bareLocal             // of RCPT
	onlyAMailbox = bareLocal | noBrackets
)

const (
	errPathEmpty      reason = "Path is empty string"
	errPathBegin      reason = "Missing '<' at beginning of path"
	errPathEnd        reason = "Missing '>' at end of path"
	errPathUnmatched  reason = "Unmatched '>' at end of path"
	errPathNull       reason = "Null path not allowed"
	errPathOnlyRoute  reason = "Path only consists of source route"
	errPathChar       reason = "Invalid character in path"
	errLocalChar      reason = "Invalid character in localpart"
	errNoDomain       reason = "Missing domain"
	errNoDomainAt     reason = "Missing domain after '@'"
	errDomain         reason = "Invalid domain"
	errRouteDomain    reason = "Missing domain after '@' in source route"
	errRouteAt        reason = "Missing '@' after ',' in source route"
	errRouteEnd       reason = "Missing ':' at end of source route"
	errMailboxEmpty   reason = "Mailbox is empty string"
	errMailboxChar    reason = "Invalid character in mailbox"
	errUsernameEmpty  reason = "Username is empty string"
	errUsernameChar   reason = "Invalid character in user name"
	errWhitespacePath reason = "Unexpected whitespace before path"
)

// parsePath reads the path at the beginning of args and returns what follows it. Source
// routes are dropped (RFC 5321 appendix C).
func parsePath(args string, kind pathKind) (p Path, rest string, err error) {
	if args == "" {
		return Path{}, "", errPathEmpty
	}
	sc := scanner{s: args}
	brackets := sc.skip('<')
	if !brackets && kind&noBrackets == 0 {
		return Path{}, "", errPathBegin
	}
	route := false
	if brackets {
		if route, err = sc.sourceRoute(); err != nil {
			return Path{}, "", err
		}
	}
	p, ok, err := sc.mailbox(kind, brackets)
	switch {
	case err != nil:
		return Path{}, "", err
	case ok:
	case !sc.at('>'):
		return Path{}, "", errLocalChar
	case route:
		return Path{}, "", errPathOnlyRoute
	case kind&nullPath == 0:
		return Path{}, "", errPathNull
	}
	switch {
	case brackets && !sc.skip('>'):
		return Path{}, "", errPathEnd
	case !brackets && sc.at('>'):
		return Path{}, "", errPathUnmatched
	}
	return p, sc.rest(), nil
}

// sourceRoute reads "@a,@b:".
func (p *scanner) sourceRoute() (ok bool, err error) {
	if !p.skip('@') {
		return false, nil
	}
	for {
		if _, ok, err := p.domain(); !ok || err != nil {
			return false, errRouteDomain
		}
		if !p.skip(',') {
			break
		}
		if !p.skip('@') {
			return false, errRouteAt
		}
	}
	if !p.skip(':') {
		return false, errRouteEnd
	}
	return true, nil
}

// mailbox reads local@domain. brackets tells that a '>' is to end it.
func (p *scanner) mailbox(kind pathKind, brackets bool) (box Path, ok bool, err error) {
	if box.Local, ok, err = p.quotedString(); err != nil {
		return Path{}, false, err
	}
	if !ok {
		if box.Local = p.dotString(); box.Local == "" {
			return Path{}, false, nil
		}
	}
	ends := func() bool { return p.end() || brackets && p.at('>') }
	if !p.skip('@') {
		switch {
		case kind&bareLocal != 0:
			return box, true, nil
		case ends():
			return Path{}, false, errNoDomain
		}
		return Path{}, false, errLocalChar
	}
	if box.Domain, ok, err = p.domainOrLiteral(); err != nil || ok {
		return box, ok, err
	}
	if ends() {
		return Path{}, false, errNoDomainAt
	}
	return Path{}, false, errDomain
}

// dotString reads a local part that is not quoted. Dots may stand anywhere.
func (p *scanner) dotString() string {
	start := p.i
	for p.take(&atext) != "" || p.skip('.') {
	}
	return p.s[start:p.i]
}

func (p *scanner) domainOrLiteral() (string, bool, error) {
	if d, ok, err := p.domain(); ok || err != nil {
		return d, ok, err
	}
	return p.addressLiteral()
}

// parseMailbox reads text as a whole: a mailbox, or a local part alone.
func parseMailbox(text string) (Path, error) {
	if text == "" {
		return Path{}, errMailboxEmpty
	}
	sc := scanner{s: text}
	box, ok, err := sc.mailbox(onlyAMailbox, false)
	switch {
	case err != nil:
		return Path{}, err
	case !ok:
		return Path{}, errLocalChar
	case !sc.end():
		return Path{}, errMailboxChar
	}
	return box, nil
}

// ParseUsername makes a mailbox of the name of a user: the rightmost "@" divides it, and
// before it stands whatever a quoted string can hold (clause S5.5).
func ParseUsername(name string) (Path, error) {
	if name == "" {
		return Path{}, errUsernameEmpty
	}
	sc := scanner{s: name}
	if sc.at('"') {
		box, _, err := sc.mailbox(onlyAMailbox, false)
		if err == nil && !sc.end() {
			err = errUsernameChar
		}
		return box, err
	}
	at := strings.LastIndexByte(name, '@')
	if at <= 0 {
		at = len(name)
	}
	if !graphic.all(name[:at]) {
		return Path{}, errLocalChar
	}
	box := Path{Local: name[:at]}
	if at == len(name) {
		return box, nil
	}
	sc.i = at + 1
	domain, ok, err := sc.domainOrLiteral()
	switch {
	case err != nil:
		return Path{}, err
	case !ok && sc.end():
		return Path{}, errNoDomainAt
	case !ok:
		return Path{}, errDomain
	case !sc.end():
		return Path{}, errUsernameChar
	}
	box.Domain = domain
	return box, nil
}

// Append adds the address of p to b, without brackets: nothing for the null path. The
// local part is quoted only when it must be.
func (p Path) Append(b []byte) []byte {
	if p.IsNull() {
		return b
	}
	b = appendLocal(b, p.Local)
	if p.Domain != "" {
		b = append(append(b, '@'), p.Domain...)
	}
	return b
}

func appendLocal(b []byte, local string) []byte {
	if isDotAtom(local) {
		return append(b, local...)
	}
	return appendQuoted(b, local)
}

// appendQuoted adds s as a quoted string. s has only graphic characters.
func appendQuoted(b []byte, s string) []byte {
	b = append(b, '"')
	for i := 0; i < len(s); i++ {
		if !qtext.has(s[i]) {
			b = append(b, '\\')
		}
		b = append(b, s[i])
	}
	return append(b, '"')
}

// isDotAtom says whether s is made of atoms with single dots between them.
func isDotAtom(s string) bool {
	for {
		n := atext.span(s)
		switch {
		case n == 0:
			return false
		case n == len(s):
			return true
		case s[n] != '.':
			return false
		}
		s = s[n+1:]
	}
}

// String returns the address without brackets, as Append writes it.
func (p Path) String() string { return string(p.Append(nil)) }

// AppendPath adds p with its brackets.
func (p Path) AppendPath(b []byte) []byte {
	return append(p.Append(append(b, '<')), '>')
}
