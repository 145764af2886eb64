package doveconf

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Passwords of the files are in nothing that is said about them: neither for people nor
// for programs. What is converted keeps them.
func TestSecretsStayInTheFiles(t *testing.T) {
	dir := write(t, map[string]string{"main.conf": `protocols = submission
ssl = no
submission_relay_password = hunter1%1Zx#y
imapc_password = hunter2 # old
plugin {
  foo_password = hunter3
}
passdb {
  driver = static
  args = password=hun%1Zter4 user=x
  default_fields = password=hunter5%1Z
}
passdb {
  driver = pam
  args = password=hunter6
}
passdb {
  driver = sql
  args = host=x password=hunter7
}
auth_policy_request_attributes = secret=hunter8%1Z
submission_relay_pasword = hunter9
`})
	file := filepath.Join(dir, "main.conf")
	for _, args := range [][]string{{"check", file}, {"check", "--json", file}, {"check", "--standalone", file}} {
		out, errs, status := call(args...)
		if strings.Contains(out+errs, "hunter") || strings.Contains(out+errs, "hun%") || !strings.Contains(out, "****") || status != 2 {
			t.Errorf("%v: status %d\n%s%s", args, status, out, errs)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	right := strings.TrimSuffix(string(text), "submission_relay_pasword = hunter9\n")
	if err := os.WriteFile(file, []byte(right), 0o600); err != nil {
		t.Fatal(err)
	}
	out, errs, status := call("convert", "--to", "2.4", file)
	if strings.Contains(errs, "hunter") || strings.Contains(errs, "hun%") || strings.Count(errs, "not converted: ") != 7 || status != 1 {
		t.Errorf("status %d\n%s", status, errs)
	}
	for _, want := range []string{"hunter1%1Zx", "imapc_password = hunter2\n", "hunter3", "hun%1Zter4", "hunter5", "hunter6", "hunter7", "hunter8"} {
		if !strings.Contains(strings.ReplaceAll(out, " # old", ""), want) {
			t.Errorf("%s is missing in\n%s", want, out)
		}
	}
}
