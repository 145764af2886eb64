package server

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"dovetail/internal/smtp"
)

// notes is a Watcher that keeps what it heard.
type notes struct{ heard []string }

func (n *notes) Started(cmd *Command) {
	n.heard = append(n.heard, fmt.Sprintf("%s as %q began %v", cmd.Name, cmd.Verb, !cmd.Began.IsZero()))
}

func (n *notes) Finished(cmd *Command, r smtp.Reply) {
	n.heard = append(n.heard, fmt.Sprintf("%s %d", cmd.Name, r.Code))
}

// Every command is heard of twice: when it was read, and with its last reply.
func TestWatcher(t *testing.T) {
	n := &notes{}
	o := options
	o.Watcher = n
	dialog(t, o, "NOOP\r\nnoOp x\r\n\x00\r\nFOO\r\nQUIT\r\n")
	want := []string{
		`NOOP as "NOOP" began true`, "NOOP 250", `NOOP as "noOp" began true`, "NOOP 250",
		" 500", `FOO as "FOO" began true`, "FOO 500", `QUIT as "QUIT" began true`, "QUIT 221",
	}
	if !slices.Equal(n.heard, want) {
		t.Errorf("%q", n.heard)
	}
}

// The command too many has no reply of its own.
func TestWatcherOfBadCommands(t *testing.T) {
	n := &notes{}
	o := options
	o.Watcher = n
	dialog(t, o, strings.Repeat("FOO\r\n", maxBad+2))
	last := n.heard[len(n.heard)-3:]
	if want := []string{"FOO 500", `FOO as "FOO" began true`, "FOO 0"}; !slices.Equal(last, want) {
		t.Errorf("%q", n.heard)
	}
}

// Commands without a reply end with the session, once.
func TestWatcherAtTheEnd(t *testing.T) {
	for name, end := range map[string]func(*Conn){
		"terminated": func(c *Conn) { c.Terminate(c.Reply421("4.3.2", "Shutting down")) },
		"closed":     func(c *Conn) {},
		"dropped":    (*Conn).Drop,
	} {
		t.Run(name, func(t *testing.T) {
			server, client := pair(t)
			n := &notes{}
			o := options
			o.Watcher = n
			c := New(server, o)
			client.Write([]byte("NOOP\r\nAUTH\r\nNOOP\r\n"))
			for i := range 3 {
				cmd, err := c.Next()
				if err != nil {
					t.Fatal(err)
				}
				if i == 2 { // its reply waits for the others'
					cmd.Reply(smtp.NewReply(250, "2.0.0", "OK"))
				}
			}
			n.heard = n.heard[:0]
			end(c)
			c.Close()
			if want := []string{"NOOP 0", "AUTH 0", "NOOP 0"}; !slices.Equal(n.heard, want) {
				t.Errorf("%q", n.heard)
			}
		})
	}
}
