package varexpand

import (
	"errors"
	"strings"
)

// An ere is a POSIX extended regular expression (IEEE 1003.1, 9.4) over octets, made for
// one question: does it match anywhere in a text. It runs in time proportional to
// its size times the text's. Package regexp is not used because what it links (tables of
// Unicode classes) costs every process memory, for an operator that hardly anyone uses.
//
// Of the GNU additions it has \w \W \s \S; back references and \b \B \< \> \` \' are errors,
// as are collating elements [.x.] and [=x=] of more than one octet.
type ere struct {
	prog  []inst
	start int // index of the first instruction
	steps int // taken by compile
}

const (
	maxProg    = 4096 // instructions of a compiled expression
	maxRepeat  = 255  // RE_DUP_MAX
	maxNesting = 100  // of parentheses
	maxSteps   = 16 * maxProg
)

type opcode uint8

const (
	opSet   opcode = iota // an octet in set
	opSplit               // go on at next and at alt
	opBegin               // only at the begin of the text
	opEnd                 // only at its end
	opMatch
)

type inst struct {
	op        opcode
	next, alt int
	set       *octets
}

// octets is a set of octets.
type octets [256 / 32]uint32

func (o *octets) add(c byte)      { o[c/32] |= 1 << (c % 32) }
func (o *octets) has(c byte) bool { return o[c/32]&(1<<(c%32)) != 0 }
func (o *octets) invert() {
	for i := range o {
		o[i] = ^o[i]
	}
}

// node is the parse tree; it is compiled as often as a repetition needs.
type node struct {
	kind     opcode // opSet, opBegin, opEnd; opSplit: alternatives; opMatch: a sequence
	set      *octets
	subs     []*node
	min, max int // of a repetition of subs[0]; max -1 is without bound
	repeat   bool
}

var (
	errParen   = errors.New("unmatched ( or )")
	errBracket = errors.New("unmatched [, [^, [:, [., or [=")
	errBrace   = errors.New("invalid content of \\{\\}")
	errRepeat  = errors.New("invalid preceding regular expression")
	errEscape  = errors.New("trailing backslash")
	errClass   = errors.New("invalid character class name")
	errRange   = errors.New("invalid range end")
	errGNU     = errors.New("back references and word boundaries are not supported")
	errSize    = errors.New("regular expression too big")
)

func compileERE(s string) (*ere, error) {
	p := ereParser{s: s}
	n, err := p.alternatives()
	if err != nil {
		return nil, err
	}
	re := &ere{}
	match := re.emit(inst{op: opMatch})
	if re.start = re.compile(n, match); re.tooBig() {
		return nil, errSize
	}
	return re, nil
}

type ereParser struct {
	s     string
	i     int
	depth int
}

func (p *ereParser) peek() byte {
	if p.i < len(p.s) {
		return p.s[p.i]
	}
	return 0
}

func (p *ereParser) alternatives() (*node, error) {
	if p.depth++; p.depth > maxNesting {
		return nil, errSize
	}
	defer func() { p.depth-- }()
	n := &node{kind: opSplit}
	for {
		sub, err := p.sequence()
		if err != nil {
			return nil, err
		}
		n.subs = append(n.subs, sub)
		if p.i >= len(p.s) || p.s[p.i] != '|' {
			return n, nil
		}
		p.i++
	}
}

// sequence reads up to | or ). A ) that closes nothing is an ordinary character.
func (p *ereParser) sequence() (*node, error) {
	n := &node{kind: opMatch}
	for p.i < len(p.s) && p.s[p.i] != '|' && (p.s[p.i] != ')' || p.depth == 1) {
		sub, err := p.atom()
		if err != nil {
			return nil, err
		}
		for p.i < len(p.s) {
			lo, hi, ok, err := p.repetition()
			if err != nil {
				return nil, err
			}
			if !ok {
				break
			}
			sub = &node{repeat: true, min: lo, max: hi, subs: []*node{sub}}
		}
		n.subs = append(n.subs, sub)
	}
	return n, nil
}

// repetition reads * + ? or {m,n}.
func (p *ereParser) repetition() (lo, hi int, ok bool, err error) {
	switch p.peek() {
	case '*':
		lo, hi = 0, -1
	case '+':
		lo, hi = 1, -1
	case '?':
		lo, hi = 0, 1
	case '{':
		return p.interval()
	default:
		return 0, 0, false, nil
	}
	p.i++
	return lo, hi, true, nil
}

func (p *ereParser) interval() (lo, hi int, ok bool, err error) {
	body, _, closed := strings.Cut(p.s[p.i+1:], "}")
	if !closed {
		return 0, 0, false, errBrace
	}
	p.i += len(body) + 2
	from, to, comma := strings.Cut(body, ",")
	_, lo, n := number(from, 0)
	if n != len(from) || n == 0 {
		return 0, 0, false, errBrace
	}
	hi = lo
	if comma {
		if _, hi, n = number(to, 0); n != len(to) {
			return 0, 0, false, errBrace
		}
		if to == "" {
			hi = -1
		}
	}
	if lo > maxRepeat || hi > maxRepeat || hi >= 0 && hi < lo {
		return 0, 0, false, errBrace
	}
	return lo, hi, true, nil
}

func (p *ereParser) atom() (*node, error) {
	c := p.s[p.i]
	p.i++
	switch c {
	case '(':
		n, err := p.alternatives()
		if err != nil {
			return nil, err
		}
		if p.peek() != ')' {
			return nil, errParen
		}
		p.i++
		return n, nil
	case '^':
		return &node{kind: opBegin}, nil
	case '$':
		return &node{kind: opEnd}, nil
	case '*', '+', '?', '{':
		return nil, errRepeat
	case '[':
		return p.bracket()
	case '.':
		set := new(octets)
		set.invert()
		return &node{kind: opSet, set: set}, nil
	case '\\':
		if p.i >= len(p.s) {
			return nil, errEscape
		}
		return p.escaped()
	}
	set := new(octets)
	set.add(c)
	return &node{kind: opSet, set: set}, nil
}

// escaped reads what stands behind a backslash.
func (p *ereParser) escaped() (*node, error) {
	c := p.s[p.i]
	p.i++
	set := new(octets)
	switch c {
	case 'w', 'W':
		set.addClass("alnum")
		set.add('_')
	case 's', 'S':
		set.addClass("space")
	case 'b', 'B', '<', '>', '`', '\'', '1', '2', '3', '4', '5', '6', '7', '8', '9':
		return nil, errGNU
	default:
		set.add(c)
	}
	if c == 'W' || c == 'S' {
		set.invert()
	}
	return &node{kind: opSet, set: set}, nil
}

// bracket reads a bracket expression behind its [.
func (p *ereParser) bracket() (*node, error) {
	set := new(octets)
	negate := p.peek() == '^'
	if negate {
		p.i++
	}
	for first := true; ; first = false {
		if p.i >= len(p.s) {
			return nil, errBracket
		}
		if p.s[p.i] == ']' && !first {
			p.i++
			break
		}
		if strings.HasPrefix(p.s[p.i:], "[:") {
			name, _, closed := strings.Cut(p.s[p.i+2:], ":]")
			if !closed {
				return nil, errBracket
			}
			if !set.addClass(name) {
				return nil, errClass
			}
			p.i += len(name) + 4
			continue
		}
		lo, err := p.element()
		if err != nil {
			return nil, err
		}
		hi := lo
		if rest := p.s[p.i:]; len(rest) > 1 && rest[0] == '-' && rest[1] != ']' {
			p.i++
			if hi, err = p.element(); err != nil {
				return nil, err
			}
			if hi < lo {
				return nil, errRange
			}
		}
		for c := int(lo); c <= int(hi); c++ {
			set.add(byte(c))
		}
	}
	if negate {
		set.invert()
	}
	return &node{kind: opSet, set: set}, nil
}

// element reads an octet of a bracket expression, or [.x.] or [=x=].
func (p *ereParser) element() (byte, error) {
	if rest := p.s[p.i:]; len(rest) >= 2 && rest[0] == '[' && (rest[1] == '.' || rest[1] == '=') {
		if len(rest) < 5 || rest[3] != rest[1] || rest[4] != ']' {
			return 0, errBracket
		}
		p.i += 5
		return rest[2], nil
	}
	p.i++
	return p.s[p.i-1], nil
}

// addClass adds the octets of a character class, in the C locale.
func (o *octets) addClass(name string) bool {
	is := map[string]func(c byte) bool{
		"alpha":  isAlpha,
		"digit":  isDigit,
		"alnum":  func(c byte) bool { return isAlpha(c) || isDigit(c) },
		"upper":  func(c byte) bool { return c >= 'A' && c <= 'Z' },
		"lower":  func(c byte) bool { return c >= 'a' && c <= 'z' },
		"space":  func(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' },
		"blank":  func(c byte) bool { return c == ' ' || c == '\t' },
		"punct":  func(c byte) bool { return c > ' ' && c < 0x7f && !isAlpha(c) && !isDigit(c) },
		"print":  func(c byte) bool { return c >= ' ' && c < 0x7f },
		"graph":  func(c byte) bool { return c > ' ' && c < 0x7f },
		"cntrl":  func(c byte) bool { return c < ' ' || c == 0x7f },
		"xdigit": func(c byte) bool { return isDigit(c) || c|0x20 >= 'a' && c|0x20 <= 'f' },
	}[name]
	if is == nil {
		return false
	}
	for c := range 256 {
		if is(byte(c)) {
			o.add(byte(c))
		}
	}
	return true
}

func isAlpha(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }
func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// tooBig also bounds expressions that repeat nothing very often.
func (re *ere) tooBig() bool { return len(re.prog) > maxProg || re.steps > maxSteps }

func (re *ere) emit(i inst) int {
	if len(re.prog) <= maxProg {
		re.prog = append(re.prog, i)
	}
	return len(re.prog) - 1
}

// compile adds what matches n and then goes on at next, and returns its start. Once the
// program is too big it adds nothing more.
func (re *ere) compile(n *node, next int) int {
	if re.steps++; re.tooBig() {
		return 0
	}
	switch {
	case n.repeat:
		return re.compileRepeat(n, next)
	case n.kind == opMatch:
		for i := len(n.subs) - 1; i >= 0; i-- {
			next = re.compile(n.subs[i], next)
		}
		return next
	case n.kind == opSplit:
		start := re.compile(n.subs[len(n.subs)-1], next)
		for i := len(n.subs) - 2; i >= 0; i-- {
			start = re.emit(inst{op: opSplit, next: re.compile(n.subs[i], next), alt: start})
		}
		return start
	}
	return re.emit(inst{op: n.kind, set: n.set, next: next})
}

func (re *ere) compileRepeat(n *node, next int) int {
	sub := n.subs[0]
	if n.max < 0 {
		loop := re.emit(inst{op: opSplit, alt: next})
		body := re.compile(sub, loop)
		re.prog[loop].next = body
		next = loop
	} else {
		exit := next
		for range n.max - n.min {
			next = re.emit(inst{op: opSplit, next: re.compile(sub, next), alt: exit})
		}
	}
	for range n.min {
		next = re.compile(sub, next)
	}
	return next
}

// match says whether the expression matches somewhere in s.
func (re *ere) match(s string) bool {
	now := &threads{at: make([]int, len(re.prog))}
	then := &threads{at: make([]int, len(re.prog))}
	for i := 0; ; i++ {
		now.stamp = i + 1
		if re.add(now, re.start, i, len(s)) {
			return true
		}
		if i == len(s) {
			return false
		}
		then.list = then.list[:0]
		then.stamp = i + 2
		for _, pc := range now.list {
			if re.prog[pc].set.has(s[i]) && re.add(then, re.prog[pc].next, i+1, len(s)) {
				return true
			}
		}
		now, then = then, now
	}
}

// threads are the opSet instructions at which the match stands.
type threads struct {
	list  []int
	at    []int // stamp of the last position at which an instruction was added
	stamp int
}

// add follows everything that takes no octet. It returns true on a match.
func (re *ere) add(t *threads, pc, i, end int) bool {
	stack := []int{pc}
	for len(stack) > 0 {
		pc = stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if t.at[pc] == t.stamp {
			continue
		}
		t.at[pc] = t.stamp
		switch in := &re.prog[pc]; in.op {
		case opMatch:
			return true
		case opSet:
			t.list = append(t.list, pc)
		case opSplit:
			stack = append(stack, in.next, in.alt)
		case opBegin:
			if i == 0 {
				stack = append(stack, in.next)
			}
		case opEnd:
			if i == end {
				stack = append(stack, in.next)
			}
		}
	}
	return false
}
