package imapurl

import (
	"encoding/hex"
	"strings"
	"time"
)

// A parser reads the path of an URL: mailbox, message, section, authorization.
type parser struct {
	u        *URL
	url      string   // the whole URL, whose end is that of the last segment
	segments []string // still to be read
}

// next returns the segment that is to be read.
func (p *parser) next() (string, bool) {
	if len(p.segments) == 0 {
		return "", false
	}
	return p.segments[0], true
}

// command reads everything. A semicolon that stands for itself is %-encoded, so each one
// found begins a parameter.
func (p *parser) command() error {
	if err := p.mailbox(); err != nil {
		return err
	}
	ext, err := p.uid()
	if err == nil && p.u.UID != 0 && ext == "" {
		ext, err = p.section()
	}
	if err == nil && p.u.UID != 0 && ext == "" {
		ext, err = p.partial()
	}
	if err != nil {
		return err
	}
	if seg, ok := p.next(); ok && (ext != "" || seg != "" || len(p.segments) > 1) {
		return faultf("Unexpected IMAP URL path segment: `%.80s'", seg)
	}
	if ext == "" {
		return nil
	}
	return p.urlauth(ext)
}

// mailbox reads mailbox[;UIDVALIDITY=n]. The mailbox may have several segments.
func (p *parser) mailbox() error {
	var name strings.Builder
	add := func(i int, seg string) error {
		if i > 0 {
			name.WriteByte('/')
		}
		s, err := decode(seg)
		name.WriteString(s)
		return err
	}
	for i, seg := range p.segments {
		semi := strings.IndexByte(seg, ';')
		if semi < 0 {
			if seg != "" {
				if err := add(i, seg); err != nil {
					return err
				}
			}
			continue
		}
		p.segments = p.segments[i:]
		p.u.Mailbox = name.String()
		if !hasPrefixFold(seg[semi:], ";UIDVALIDITY=") {
			if semi > 0 {
				return fault("Encountered stray ';' in mailbox reference")
			}
			return nil
		}
		if semi > 0 {
			if err := add(i, seg[:semi]); err != nil {
				return err
			}
			p.u.Mailbox = name.String()
		}
		p.segments = p.segments[1:]
		value := seg[semi+len(";UIDVALIDITY="):]
		if strings.IndexByte(value, ';') >= 0 {
			return fault("Encountered stray ';' after UIDVALIDITY")
		}
		var err error
		p.u.UIDValidity, err = nonZero("UIDVALIDITY", value)
		return err
	}
	p.segments = nil
	p.u.Mailbox = name.String()
	return nil
}

// nonZero reads an nz-number.
func nonZero(name, value string) (uint32, error) {
	if value == "" {
		return 0, faultf("Empty %s value", name)
	}
	n, err := number(value, 32)
	if err == nil && n == 0 {
		err = faultf("%s cannot be zero", name)
	}
	return uint32(n), err
}

// uid reads ;UID=n. ext is what follows in the last segment, with its semicolon.
func (p *parser) uid() (ext string, err error) {
	seg, _ := p.next()
	if !hasPrefixFold(seg, ";UID=") {
		return "", nil
	}
	value, ext := cutExtension(seg[len(";UID="):])
	if ext != "" && len(p.segments) > 1 {
		return "", fault("Encountered stray ';' in UID path segment")
	}
	p.segments = p.segments[1:]
	p.u.UID, err = nonZero("UID", value)
	return ext, err
}

// cutExtension splits a value from what begins with a semicolon.
func cutExtension(s string) (value, ext string) {
	if i := strings.IndexByte(s, ';'); i >= 0 {
		return s[:i], s[i:]
	}
	return s, ""
}

// section reads ;SECTION=s, which may have several segments.
func (p *parser) section() (ext string, err error) {
	seg, _ := p.next()
	if !hasPrefixFold(seg, ";SECTION=") {
		return "", nil
	}
	var section string
	add := func(value string) error {
		s, err := decode(value)
		if section != "" {
			s = "/" + s
		}
		section += s
		return err
	}
	for value := seg[len(";SECTION="):]; ; value = p.segments[0] {
		if strings.HasPrefix(value, ";") {
			break
		}
		value, ext = cutExtension(value)
		if ext != "" && len(p.segments) > 1 {
			return "", fault("Encountered stray ';' in SECTION path segment")
		}
		if err := add(value); err != nil {
			return "", err
		}
		if p.segments = p.segments[1:]; ext != "" || len(p.segments) == 0 {
			break
		}
	}
	if section == "" {
		return "", fault("Empty SECTION value")
	}
	p.u.Section = section
	return ext, nil
}

// partial reads ;PARTIAL=offset[.size].
func (p *parser) partial() (ext string, err error) {
	seg, _ := p.next()
	if !hasPrefixFold(seg, ";PARTIAL=") {
		return "", nil
	}
	value, ext := cutExtension(seg[len(";PARTIAL="):])
	if value == "" {
		return "", fault("Empty PARTIAL value")
	}
	var r Range
	offset, size, hasSize := strings.Cut(value, ".")
	if hasSize {
		if size == "" {
			return "", fault("Empty PARTIAL size")
		}
		if r.Size, err = number(size, 64); err != nil {
			return "", err
		}
		if r.Size == 0 {
			return "", fault("PARTIAL size cannot be zero")
		}
		if offset == "" {
			return "", fault("Empty PARTIAL offset")
		}
	}
	if r.Offset, err = number(offset, 64); err != nil {
		return "", err
	}
	p.segments = p.segments[1:]
	p.u.Partial = &r
	return ext, nil
}

// minToken is the least number of hexadecimal digits of a token (RFC 4467).
const minToken = 32

// urlauth reads [;EXPIRE=t];URLAUTH=access[:mechanism:token], which ends the URL.
func (p *parser) urlauth(ext string) error {
	all, u := ext, p.u
	if hasPrefixFold(ext, ";EXPIRE=") {
		value, rest := cutExtension(ext[len(";EXPIRE="):])
		if rest != "" {
			t, ok := parseTime(value)
			if !ok {
				return fault("invalid date-time for `;EXPIRE='")
			}
			u.Expire, ext = t, rest
		}
	}
	if !hasPrefixFold(ext, ";URLAUTH=") {
		if !u.Expire.IsZero() {
			return fault("`;EXPIRE=' without `;URLAUTH='")
		}
		return faultf("Unrecognized IMAP URL extension: %.80s", all)
	}
	access, verifier, hasVerifier := strings.Cut(ext[len(";URLAUTH="):], ":")
	switch {
	case access == "" && !hasVerifier:
		return fault("Missing URLAUTH access specifier")
	case access == "":
		return fault("Empty URLAUTH access specifier")
	}
	application, user, hasUser := strings.Cut(access, "+")
	if hasUser {
		if application == "" {
			return fault("Empty URLAUTH access application")
		}
		if user == "" {
			return faultf("Empty URLAUTH access user for `%s' application", application)
		}
		var err error
		if u.AccessUser, err = decode(user); err != nil {
			return err
		}
	}
	u.Access, u.Rump = application, p.url
	if !hasVerifier {
		return nil
	}
	u.Rump = p.url[:len(p.url)-len(verifier)-1]
	mechanism, token, _ := strings.Cut(verifier, ":")
	switch {
	case verifier == "":
		return fault("Missing URLAUTH verifier")
	case token == "":
		return fault("Missing URLAUTH token")
	case mechanism == "":
		return fault("Missing URLAUTH mechanism")
	case len(token) < minToken:
		return fault("Too short URLAUTH token")
	}
	u.Mechanism = mechanism
	var err error
	if u.Token, err = hex.DecodeString(token); err != nil {
		return fault("Invalid URLAUTH token")
	}
	return nil
}

// parseTime reads a date-time of RFC 3339, of the year 1900 or later.
func parseTime(s string) (t time.Time, ok bool) {
	const form = "0000-00-00T00:00:00"
	if len(s) <= len(form) || !hasForm(s[:len(form)], form) {
		return t, false
	}
	leap := s[17:19] == "60" // the 61st second of a minute is the first of the next
	if leap {
		s = s[:17] + "59" + s[19:]
	}
	zone := strings.TrimPrefix(s[len(form):], ".")
	if len(zone) < len(s)-len(form) { // a fraction, which does not matter
		rest := strings.TrimLeft(zone, "0123456789")
		if rest == zone {
			return t, false
		}
		zone = rest
	}
	if !strings.EqualFold(zone, "Z") && (zone == "" || !hasForm(zone[1:], "00:00") || zone[1:3] > "23" || zone[4:] > "59") {
		return t, false
	}
	t, err := time.Parse(time.RFC3339, s[:10]+"T"+s[11:len(form)]+strings.ToUpper(zone))
	if leap {
		t = t.Add(time.Second)
	}
	return t, err == nil && s >= "1900"
}

// hasForm says whether s is like form: any digit where that has 0, the same elsewhere but
// for the case of letters.
func hasForm(s, form string) bool {
	if len(s) != len(form) {
		return false
	}
	for i := range len(s) {
		if form[i] == '0' && !isDigit(s[i]) || form[i] != '0' && s[i]|0x20 != form[i]|0x20 {
			return false
		}
	}
	return true
}
