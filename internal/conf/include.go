package conf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// openMain opens the main file (clause C15.4).
func (p *parser) openMain(path string) bool {
	in, err := p.read(path, nil)
	if err != nil {
		text := fmt.Sprintf("open(%s) failed: %s", path, reason(err))
		d := hclError(text, "The main configuration file must exist and be readable.")
		d.Extra = &Report{Level: "Fatal", Text: text}
		p.add(d)
		return false
	}
	p.stack = append(p.stack, in)
	return true
}

// read reads a file for by, which includes it. A directory is empty (clause C7.5).
func (p *parser) read(path string, by *input) (*input, error) {
	in := &input{by: by}
	if by != nil {
		in.depth = by.depth + 1
	}
	f := p.files[path]
	if f == nil {
		content, _, err := p.readFile(path)
		if err != nil {
			return nil, err
		}
		f = &File{Path: path, Text: content}
		p.files[path] = f
		p.cfg.Files = append(p.cfg.Files, f)
	}
	in.stat, _ = os.Stat(path)
	in.file, in.text = f, f.Text
	p.bytes += int64(len(f.Text))
	return in, nil
}

// relative is clauses C5.2 and C7.2: path as the file of in sees it.
func (in *input) relative(path string) string {
	if strings.HasPrefix(path, "/") {
		return path
	}
	if i := strings.LastIndexByte(in.file.Path, '/'); i >= 0 {
		return in.file.Path[:i+1] + path
	}
	return path
}

// include is clause C7. All matches are opened at once and stacked, the first on top.
func (p *parser) include(in *input, l line) {
	at := p.lex.rang(l.valueAt, l.end)
	if p.stopped {
		return
	}
	pattern := in.relative(l.value)
	found := glob(pattern, maxFiles)
	if len(found) == 0 {
		if l.kind == lineInclude {
			p.fail(at, "No matches", p.noMatch(l.value, pattern))
		}
		return
	}
	// Dovecot opens the last match first, and names the file stacked last in errors.
	opened := make([]*input, 0, len(found))
	failed := map[string]bool{} // a recursion is reported once for each path
	for i := len(found) - 1; i >= 0; i-- {
		path, last := found[i], in
		if len(opened) > 0 {
			last = opened[len(opened)-1]
		}
		if p.recursive(in, opened, path) {
			if !failed[path] {
				failed[path] = true
				p.onLine(at, last.file.Path, last.line, "Recursive include file: "+path,
					"The file is being read already: by one of the including files, or as another match of the same pattern.")
			}
			continue
		}
		next, err := p.read(path, in)
		if err != nil {
			if l.kind == lineInclude {
				p.onLine(at, last.file.Path, last.line, fmt.Sprintf("Couldn't open include file %s: %s", path, reason(err)),
					"`!include_try` goes on without files that cannot be opened.")
			}
			continue
		}
		if text := p.passed(next); text != "" {
			p.stopped = true
			p.fail(at, text, "Nothing more is included.")
			return
		}
		opened = append(opened, next)
	}
	p.stack = append(p.stack, opened...)
}

// passed says which bound a file passes, "" if none.
func (p *parser) passed(in *input) string {
	switch {
	case in.depth > maxInclude:
		return fmt.Sprintf("Files include each other more than %d deep", maxInclude)
	case p.bytes > maxTotalSize:
		return fmt.Sprintf("The files have more than %d MB in all", maxTotalSize>>20)
	case len(p.stack) > maxFiles:
		return fmt.Sprintf("More than %d files are included at once", maxFiles)
	}
	return ""
}

// recursive says whether path is a file that is being read. Dovecot compares the text of
// the path with every file on the stack (clause C7.6); the file itself, whatever its
// path, is compared with those that led here, so that `!include ./self` ends.
func (p *parser) recursive(in *input, opened []*input, path string) bool {
	for _, stack := range [][]*input{p.stack, opened} {
		for _, s := range stack {
			if s.file.Path == path {
				return true
			}
		}
	}
	st, err := os.Stat(path)
	if err != nil {
		return false
	}
	for up := in; up != nil; up = up.by {
		if up.stat != nil && !up.stat.IsDir() && os.SameFile(st, up.stat) {
			return true
		}
	}
	return false
}

// noMatch says why an include found nothing.
func (p *parser) noMatch(written, pattern string) string {
	if q := strings.Trim(written, `"'`); q != written {
		return "Names of files are written without quotes."
	}
	if written == "" {
		return "A file name or pattern must follow."
	}
	dir := pattern[:strings.LastIndexByte(pattern, '/')+1]
	if dir != "" && !strings.ContainsAny(dir, "*?[{") {
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			return fmt.Sprintf("There is no directory %s. `!include_try` goes on when nothing matches.", dir)
		}
	}
	return fmt.Sprintf("There is no file %s. `!include_try` goes on when nothing matches.", pattern)
}
