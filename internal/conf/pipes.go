package conf

import "time"

// Pipes are what was read of pipes and devices, which give their content only once. Loads
// and Walks with the same Pipes in their Options read alike: what one has read is there for
// the next. The zero value has read nothing yet. Not for several goroutines at once.
type Pipes struct {
	until time.Time             // when all of them must have ended
	read  map[string][]pipeRead // by path, in the order of reading; texts have at most maxPipeSize
}

// A pipeRead is what one reading gave.
type pipeRead struct {
	text string
	err  error
}

// ReadFile returns the content of the file at path, for who looks at the main file before
// it is loaded. The bounds and errors are those of loading.
func (ps *Pipes) ReadFile(path string) (string, error) {
	p := parser{opt: Options{Pipes: ps}}
	text, _, err := p.readFile(path)
	return text, err
}

// again returns what an earlier Load got when it read path for as many times as p has.
func (p *parser) again(path string) (pipeRead, bool) {
	before, n := p.opt.Pipes.read[path], p.piped[path]
	if n >= len(before) {
		return pipeRead{}, false
	}
	p.countPiped(path)
	return before[n], true
}

// keep notes what was read of a pipe or a device.
func (p *parser) keep(path string, r pipeRead) {
	ps := p.opt.Pipes
	if ps.read == nil {
		ps.read = map[string][]pipeRead{}
	}
	ps.read[path] = append(ps.read[path], r)
	p.countPiped(path)
}

func (p *parser) countPiped(path string) {
	if p.piped == nil {
		p.piped = map[string]int{}
	}
	p.piped[path]++
}
