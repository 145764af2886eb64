package conf

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/hashicorp/hcl/v2"
)

// Write shows diagnostics to a person, each as
//
//	error: conf.d/20-submission.conf line 14: Invalid size: 40Q
//	  14 | submission_max_mail_size = 40Q
//	     |                            ^^^
//	  `submission_max_mail_size` is a size: a whole number, alone or with B, k, M, G or T, such as 40M.
//
// and a last line that counts them. The line and its marks are left out where nothing can
// be pointed at. c gives the files' content and may be nil. Colour is used only if w is a
// terminal and NO_COLOR is not set.
func Write(w io.Writer, c *Config, diags hcl.Diagnostics) error {
	return write(w, c, diags, terminal(w))
}

func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return false
	}
	return isTerminal(int(f.Fd()))
}

func write(w io.Writer, c *Config, diags hcl.Diagnostics, colour bool) error {
	paint := func(code, s string) string {
		if !colour {
			return s
		}
		return "\x1b[" + code + "m" + s + "\x1b[0m"
	}
	var b bytes.Buffer
	errors, warnings := 0, 0
	for _, d := range diags {
		if r, ok := d.Extra.(*Report); ok && r.Only {
			continue
		}
		word := paint("1;31", "error")
		if d.Severity == hcl.DiagWarning {
			word = paint("1;33", "warning")
			warnings++
		} else {
			errors++
		}
		b.WriteString(word + ": ")
		if s := d.Subject; s != nil {
			fmt.Fprintf(&b, "%s line %d: ", printable(s.Filename), s.Start.Line)
		}
		b.WriteString(paint("1", printable(d.Summary)) + "\n")
		if d.Subject != nil {
			excerpt(&b, c, d.Subject)
		}
		if d.Detail != "" {
			b.WriteString("  " + printable(d.Detail) + "\n")
		}
	}
	if errors+warnings > 0 {
		fmt.Fprintf(&b, "%s, %s\n", count(errors, "error"), count(warnings, "warning"))
	}
	_, err := w.Write(b.Bytes())
	return err
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// maxExcerpt is how much of a line is shown, in letters.
const maxExcerpt = 160

// excerpt shows the first line of r, veiled, with marks under it.
func excerpt(b *bytes.Buffer, c *Config, r *hcl.Range) {
	if c == nil {
		return
	}
	line, before, marks := Excerpt(c.Files, r)
	if line == "" {
		return
	}
	if len([]rune(line)) > maxExcerpt {
		line = string([]rune(line)[:maxExcerpt]) + "..."
	}
	if before > maxExcerpt {
		marks = 0
	}
	num := fmt.Sprintf("%4d", r.Start.Line)
	fmt.Fprintf(b, "%s | %s\n", num, printable(strings.ReplaceAll(line, "\t", " ")))
	if marks > 0 {
		fmt.Fprintf(b, "%*s | %s%s\n", len(num), "", strings.Repeat(" ", before), strings.Repeat("^", min(marks, maxExcerpt-before+3)))
	}
}

// printable replaces what could steer a terminal. Files may hold anything.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == '\u202e' || r == '\ufeff' {
			return '?'
		}
		return r
	}, s)
}
