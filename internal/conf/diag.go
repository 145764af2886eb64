package conf

import (
	"fmt"

	"github.com/hashicorp/hcl/v2"
)

// A Report is the Extra of every Diagnostic of this package: how Dovecot's own doveconf
// says it.
type Report struct {
	// Text is the line without "doveconf: Fatal: "; empty if Dovecot says nothing: the
	// error came after its first one would have stopped it, or is a check of ours.
	Text string
	// Level is "Fatal", "Error" or "Warning".
	Level string
	// AtEnd: Dovecot finds it after reading everything (clause C15.3): the dump comes first.
	AtEnd bool
	// Only: it has no meaning outside doveconf's output; Write leaves it out.
	Only bool
}

// Text returns the line with which Dovecot's doveconf would report d, without its level,
// and whether it would.
func Text(d *hcl.Diagnostic) (string, bool) {
	r, ok := d.Extra.(*Report)
	if !ok {
		return d.Summary, false
	}
	return r.Text, r.Text != ""
}

// problems collects what is wrong.
type problems struct {
	diags  hcl.Diagnostics
	errors int
	full   bool // maxErrors reached; nothing more is noted
}

func (p *problems) add(d *hcl.Diagnostic) {
	if p.full {
		return
	}
	p.diags = append(p.diags, d)
	if d.Severity == hcl.DiagError {
		p.errors++
	}
	if len(p.diags) >= maxErrors {
		p.full = true
		p.diags = append(p.diags, &hcl.Diagnostic{
			Severity: hcl.DiagError, Summary: "Too many errors",
			Detail: fmt.Sprintf("The first %d are shown.", maxErrors), Extra: &Report{Level: "Fatal"},
		})
	}
}

// subject is where a message points; nil if nowhere.
func subject(r Range) *hcl.Range {
	if r.Filename == "" {
		return nil
	}
	return r.Ptr()
}

// onLine is an error of one line (clause C15.2). line and file are those Dovecot names.
func (p *problems) onLine(r Range, file string, line int, text, detail string) {
	p.add(&hcl.Diagnostic{
		Severity: hcl.DiagError, Summary: text, Detail: detail, Subject: subject(r),
		Extra: &Report{Level: "Fatal", Text: fmt.Sprintf("Error in configuration file %s line %d: %s", file, line, text)},
	})
}

// warn is a warning; full is Dovecot's whole text, text the part that Write shows.
func (p *problems) warn(r Range, full, text, detail string) {
	p.add(&hcl.Diagnostic{
		Severity: hcl.DiagWarning, Summary: text, Detail: detail, Subject: subject(r),
		Extra: &Report{Level: "Warning", Text: full},
	})
}

// atEnd is an error that Dovecot finds after reading everything (clause C15.3). Which of
// them it says stands in Config.Checked.
func (p *problems) atEnd(r Range, text, detail string) *Report {
	rep := &Report{Level: "Fatal", AtEnd: true}
	p.add(&hcl.Diagnostic{Severity: hcl.DiagError, Summary: text, Detail: detail, Subject: subject(r), Extra: rep})
	return rep
}

// checkWarn is a warning of a check.
func (p *problems) checkWarn(r Range, text, detail string) {
	p.add(&hcl.Diagnostic{Severity: hcl.DiagWarning, Summary: text, Detail: detail, Subject: subject(r), Extra: &Report{Level: "Warning", AtEnd: true}})
}
