package service

import (
	"flag"
	"fmt"
	"testing"
)

// The command lines that admins have for the real programs (clause P1.1.4).
func TestOptions(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "D=false S=false t=60 args=[] o=[]"},
		{[]string{"-D", "login"}, "D=true S=false t=60 args=[login] o=[]"},
		{[]string{"-DS", "login", "-t"}, "D=true S=true t=60 args=[login -t] o=[]"},
		{[]string{"-t", "9", "post-login"}, "D=false S=false t=9 args=[post-login] o=[]"},
		{[]string{"-t9", "post-login"}, "D=false S=false t=9 args=[post-login] o=[]"},
		{[]string{"-Dt9", "-S", "x", ""}, "D=true S=true t=9 args=[x ] o=[]"},
		{[]string{"-o", "a=b", "-oc=d", "-k", "--", "-t"}, "D=false S=false t=60 args=[-t] o=[a=b c=d]"},
		{[]string{"-"}, "D=false S=false t=60 args=[-] o=[]"},
		{[]string{"-t"}, "command line: flag needs an argument: -t"},
		{[]string{"-z"}, "command line: flag provided but not defined: -z"},
		{[]string{"-Dz"}, "command line: flag provided but not defined: -z"},
		{[]string{"-t", "soon"}, `command line: invalid value "soon" for flag -t: parse error`},
	} {
		var s bool
		var timeout uint
		p := &Process{program: Program{Flags: func(fs *flag.FlagSet) {
			fs.BoolVar(&s, "S", false, "")
			fs.UintVar(&timeout, "t", 60, "")
		}}}
		got := ""
		if err := p.options(c.args); err != nil {
			got = err.Error()
		} else {
			got = fmt.Sprintf("D=%v S=%v t=%d args=%v o=%v", p.Options.CoreDumps, s, timeout, p.Args, p.Options.Override)
		}
		if got != c.want {
			t.Errorf("%q:\n got %s\nwant %s", c.args, got, c.want)
		}
	}
}
