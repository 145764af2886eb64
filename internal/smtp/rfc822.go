package smtp

// parseRFC822 reads an address as it stands in a header: addr-spec or "Name <addr-spec>",
// with white space and comments (RFC 5322 section 3.4). Where Dovecot is lenient it is,
// too: dots may stand anywhere in the local part, and what follows the address is ignored,
// unless a comma says that there is another one. Groups are no addresses.
func parseRFC822(text string) (Path, bool) {
	if at, ok := (&scanner{s: text}).nameAddr(); ok {
		return at.addr, at.alone()
	}
	sc := scanner{s: text}
	addr, ok := sc.addrSpec()
	if !ok {
		return Path{}, false
	}
	return addr, foundAddr{addr, &sc}.alone()
}

// foundAddr is an address and what follows it.
type foundAddr struct {
	addr Path
	sc   *scanner
}

// alone says whether there is no second address.
func (f foundAddr) alone() bool {
	if !f.sc.skip(',') {
		return true
	}
	return f.sc.cfws() && f.sc.end()
}

// nameAddr reads "Name <local@domain>".
func (p *scanner) nameAddr() (foundAddr, bool) {
	if !p.cfws() || !p.phrase() || !p.skip('<') || !p.cfws() {
		return foundAddr{}, false
	}
	if p.at('@') && !p.route() {
		return foundAddr{}, false
	}
	addr, ok := p.addrSpec()
	if !ok || !p.skip('>') || !p.cfws() {
		return foundAddr{}, false
	}
	return foundAddr{addr, p}, true
}

// route reads "@a,@b:".
func (p *scanner) route() bool {
	for p.skip('@') {
		if _, ok := p.rfc822Domain(); !ok {
			return false
		}
		for p.skip(',') {
			if !p.cfws() {
				return false
			}
		}
	}
	return p.skip(':')
}

// phrase reads words and dots. No word at all is a phrase, too.
func (p *scanner) phrase() bool {
	if p.at('.') {
		return false
	}
	for p.at('"') || p.at('.') || !p.end() && atext.has(p.s[p.i]) {
		if _, ok, err := p.quotedString(); err != nil {
			return false
		} else if !ok {
			p.dotString()
		}
		if !p.cfws() {
			return false
		}
	}
	return true
}

// addrSpec reads local@domain with the white space around it.
func (p *scanner) addrSpec() (addr Path, ok bool) {
	if !p.cfws() {
		return Path{}, false
	}
	local, quoted, err := p.quotedString()
	if err != nil || quoted && !p.cfws() {
		return Path{}, false
	}
	if !quoted {
		if local, ok = p.dottedWords(); !ok {
			return Path{}, false
		}
	}
	if local == "" || !graphic.all(local) || !p.at('@') {
		return Path{}, false
	}
	p.i++
	addr.Local = local
	addr.Domain, ok = p.rfc822Domain()
	return addr, ok
}

// dottedWords reads a local part: atoms and dots in any order, white space behind atoms.
func (p *scanner) dottedWords() (value string, ok bool) {
	for {
		for p.skip('.') {
			value += "."
		}
		if p.at('@') && value != "" {
			return value, true
		}
		atom := p.take(&atext)
		if atom == "" || !p.cfws() {
			return "", false
		}
		value += atom
		if !p.at('.') {
			return value, true
		}
	}
}

// rfc822Domain reads a domain or domain literal with the white space around it.
func (p *scanner) rfc822Domain() (domain string, ok bool) {
	if !p.cfws() {
		return "", false
	}
	if !p.at('[') {
		return p.dotAtom()
	}
	start := p.i
	for p.i++; !p.end(); p.i++ {
		switch p.s[p.i] {
		case '[':
			return "", false
		case '\\':
			if p.i++; p.end() {
				return "", false
			}
		case ']':
			p.i++
			return p.s[start:p.i], p.cfws()
		}
	}
	return "", false
}

// dotAtom reads atoms with dots between them, and white space around each.
func (p *scanner) dotAtom() (value string, ok bool) {
	for {
		atom := p.take(&atext)
		if atom == "" || !p.cfws() {
			return "", false
		}
		value += atom
		if !p.skip('.') {
			return value, true
		}
		value += "."
		if !p.cfws() {
			return "", false
		}
	}
}

// cfws reads white space and comments, which nest. It is false for a comment without end.
func (p *scanner) cfws() bool {
	for depth := 0; ; p.i++ {
		switch c := p.peek(); {
		case p.end():
			return depth == 0
		case c == '(':
			depth++
		case depth == 0:
			if c != ' ' && c != '\t' {
				return true
			}
		case c == ')':
			depth--
		case c == '\\':
			p.i++ // what follows is not looked at
		}
	}
}
