package mailbox

import (
	"bufio"
	"io"
	"net"
	"os"
	"strings"
	"testing"
)

// RepairConf is the configuration that RepairTokens needs.
const RepairConf = `
service auth {
  unix_listener token-login/tokenlogin {
    mode = 0
  }
  unix_listener token-login/x-tokenlogin {
    mode = 0666
  }
}
`

// RepairTokens makes imap-urlauth-login of Dovecot 2.3 work, which aborts on every login:
// it serves the socket for tokens below base_dir, and passes everything on to Dovecot's own
// but for the flag that the mechanism should have.
func RepairTokens(t testing.TB, base string) {
	path, to := base+"/token-login/tokenlogin", base+"/token-login/x-tokenlogin"
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	go func() { // ends with l
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("unix", to)
			if err != nil {
				client.Close()
				continue
			}
			go func() { // ends with the client
				_, _ = io.Copy(server, client)
				server.Close()
			}()
			go func() { // ends with the server
				defer client.Close()
				for lines := bufio.NewReader(server); ; {
					line, err := lines.ReadString('\n')
					if err != nil {
						return
					}
					_, _ = io.WriteString(client, strings.Replace(line, "MECH\tDOVECOT-TOKEN\n", "MECH\tDOVECOT-TOKEN\tprivate\n", 1))
				}
			}()
		}
	}()
	t.Cleanup(func() { l.Close() })
}
