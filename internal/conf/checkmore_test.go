package conf

import "testing"

// What doveconf 2.3.19 says of these values.
func TestSmallLanguages(t *testing.T) {
	const event, hash = "syntax error, unexpected ", "Invalid mail_attachment_hash setting: "
	for _, x := range []struct {
		name string
		of   func(string) string
		want map[string]string
	}{
		{"event filter", func(v string) string { return eventFilter(v, false) }, map[string]string{
			"": "", "event=a and (category=b or not x>5)": "", "a<=5": "", `"a b"="c\"d"`: "",
			"event>5": "Only fields support inequality comparisons",
			"a=":      event + "$end", "and": event + "AND, expecting $end", "(a=b": event + "$end, expecting AND or OR or ')'",
			"a=b)": event + "')', expecting $end", "a b": event + "TOKEN, expecting '=' or '>' or '<'", `a="x`: event + "$end",
			"a=b c=d": event + "TOKEN, expecting $end", "$=1": event + "$undefined, expecting $end",
			"a=b or": event + "$end, expecting TOKEN or STRING or NOT or '('", "not": event + "$end, expecting TOKEN or STRING or NOT or '('",
		}},
		{"hash", hashFormat, map[string]string{
			"%{sha1}": "", "%{sha1:80}": "", "": "", "%{foo}": hash + "Unknown hash method: foo",
			"%{sha1:3}": hash + "Currently :bits must be divisible by 8: 3", "%{sha1": hash + "Missing '}'", "x%": hash + "No '{' after '%'",
			"%{sha256:8}-%{size}": "mail_attachment_hash setting must not contain '-' characters", "%{md5:200}": hash + "Invalid :bits number: 200",
			"a/b": "mail_attachment_hash setting must not contain '/' characters",
		}},
		{"group_by", groupBy, map[string]string{
			"a": "", "a:discrete": "", "a:linear:1:100:10": "", "a:linear:1:100:0": "",
			"a:exponential:5:1:10": "group_by 'exponential' aggregate function min must be < max (5 must be < 1)",
			"a:exponential:1:5:1":  "group_by 'exponential' aggregate function base must be one of: 2, 10 (base=1)",
			"a:foo":                "unknown aggregation function 'foo' on field 'a'", ":x": "unknown aggregation function 'x' on field ''",
			"a b:linear:x:1:2": "group_by 'linear' aggregate function takes 3 int args",
		}},
		{"uidl", uidlFormat, map[string]string{
			"%v.%u": "", "%08Xu%08Xv": "", "%f": "", "%m%%": "", "x": "pop3_uidl_format setting doesn't contain any %% variables.",
			"%": "pop3_uidl_format setting doesn't contain any %% variables.", "%q": "Unknown pop3_uidl_format variable: %q",
			"%M": "Unknown pop3_uidl_format variable: %", "%{x}": "Unknown pop3_uidl_format variable: %{",
		}},
	} {
		for v, want := range x.want {
			if got := x.of(v); got != want {
				t.Errorf("%s %q: %q, want %q", x.name, v, got, want)
			}
		}
	}
}

// Any text is judged in the end.
func FuzzEventFilter(f *testing.F) {
	for _, s := range []string{"event=a and (category=b or not x>5)", `"a\"b"<=c`, "((", "a=b)", "not not", "$", "\"", "a=and"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		eventFilter(s, false)
		eventFilter(s, true)
		hashFormat(s)
		groupBy(s)
		uidlFormat(s)
		splitList(s)
		percentSyntax(s)
	})
}
