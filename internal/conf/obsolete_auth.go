package conf

import "strings"

// The auth block of Dovecot 1.x:
//
//	auth NAME {
//	  mechanisms = plain            -> auth_mechanisms
//	  passdb sql { args = X }       -> passdb { driver = sql  args = X }
//	  socket listen {
//	    master { path mode user group }   -> service auth { unix_listener PATH { mode user group } }
//	    client { path mode user group }
//	  }
//	}

// authPart is where in such a block a frame is.
type authPart uint8

const (
	authNone   authPart = iota
	authBlock           // auth {
	authListen          // socket listen {
	authOne             // master { or client {
)

// authLine acts on a line inside f, a frame of an auth block; false leaves it to the
// ordinary rules.
func (p *parser) authLine(f *frame, l *line) bool {
	switch f.auth {
	case authBlock:
		return p.authBlockLine(f, l)
	case authListen:
		if l.kind == lineOpen && (l.key == "master" || l.key == "client") {
			p.old.socket = &authSocket{master: l.key == "master"}
			p.push(frame{key: l.key, scope: f.scope, filter: true, auth: authOne})
			return true
		}
	case authOne:
		switch l.kind {
		case lineSet:
			p.old.socket.values = append(p.old.socket.values, Setting{Key: l.key, Value: l.value})
			return true
		case lineClose:
			p.endSocket(l)
			p.closeSection()
			return true
		}
	}
	return false
}

func (p *parser) authBlockLine(f *frame, l *line) bool {
	switch {
	case l.kind == lineSet && l.form == Plain && l.key != "":
		if p.obsoleteSetting(f, l) {
			return true
		}
		was := *l
		was.key = "auth_" + strings.TrimPrefix(l.key, "auth_")
		if !p.obsoleteSetting(f, &was) {
			p.become(f, was.key, l.value, l)
		}
		return true
	case l.kind == lineOpen && (l.key == "passdb" || l.key == "userdb"):
		p.noteObsolete("%[1]s %[2]s {} has been replaced by %[1]s { driver=%[2]s }", l.key, l.value)
		driver := l.value
		l.value, l.named = "", false
		p.openSection(*l)
		if t := p.top(); !t.quiet {
			p.becomeQuietly(t, "driver", driver, &line{key: l.key, valueAt: l.valueAt, end: l.end})
		}
		return true
	case l.kind == lineOpen && l.key == "socket" && l.value == "listen":
		p.push(frame{key: l.key, scope: f.scope, filter: true, auth: authListen})
		return true
	case l.kind == lineOpen && l.key == "socket" && l.value == "connect":
		p.noteObsolete("socket connect {} is no longer supported, configure external auth server separately")
	}
	return false
}

// endSocket makes the listener at the end of a master or client block.
func (p *parser) endSocket(l *line) {
	s := p.old.socket
	p.old.socket = nil
	path := ""
	for _, v := range s.values {
		if v.Key == "path" {
			path = v.Value
		}
	}
	at := p.lex.rang(0, len(p.lex.text))
	suffixed := strings.HasSuffix(path, "-master") || strings.HasSuffix(path, "-userdb")
	switch {
	case path == "":
		p.fail(at, "socket listen {} is missing path", "")
		return
	case s.master && !suffixed:
		p.fail(at, "socket listen { master { path=.. } } must end with -master (or -userdb) suffix", "")
		return
	case !s.master && suffixed:
		p.fail(at, "socket listen { client { path=.. } } must end not with -master or -userdb suffix", "")
		return
	}
	base := "/run/dovecot"
	if k, ok := p.schema.Setting("base_dir"); ok {
		base = k.Default
	}
	if b, ok := p.cfg.Root.Get("base_dir"); ok {
		base = b.Value
	}
	if below, ok := strings.CutPrefix(path, base+"/"); ok {
		path = below
	}
	scope := p.top().scope
	auth := p.child(scope.Block, "service", "auth", Section{Kind: Unique})
	auth.Name = "auth"
	c := p.child(auth, "unix_listener", path, Section{Kind: Unique})
	c.Open, c.Name = append(c.Open, at), path
	for _, v := range s.values {
		if v.Key != "path" {
			p.becomeQuietly(&frame{scope: scope, block: c}, v.Key, v.Value, &line{key: "socket", end: l.end})
		}
	}
}
