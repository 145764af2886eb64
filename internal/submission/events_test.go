package submission

import (
	"bufio"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dovetail/internal/testkit/relay"
)

// A MAIL that the relay refuses is a transaction to the stats service, which ends when the
// next one begins: a client that repeats MAIL for hours does not fill the memory.
func TestEventsOfRefusedMails(t *testing.T) {
	finished := make(chan string, 100)
	w := newWorldWith(t, nil, func(w *world) {
		w.listen("stats-writer", func(c net.Conn) {
			io.WriteString(c, "VERSION\tstats-server\t4\t0\nFILTER\tevent=smtp_client_transaction_finished\n")
			for lines := bufio.NewScanner(c); lines.Scan(); {
				if strings.Contains(lines.Text(), "smtp_client_transaction_finished") {
					finished <- lines.Text()
				}
			}
		})
		w.svc.Env.StatsWriter = filepath.Join(w.svc.Dir, "stats-writer")
	})
	r := relay.Start(t, relay.Options{Script: relay.Script{relay.MAIL: {relay.Reply("550 5.7.1 no").Always()}}})
	c := w.open(r)
	await := func() {
		t.Helper()
		select {
		case <-finished:
		case <-time.After(10 * time.Second):
			t.Fatal("it does not end")
		}
	}
	c.Do("MAIL FROM:<a@b>", "550")
	for range 3 {
		c.Do("MAIL FROM:<a@b>", "550")
		await()
	}
	c.Do("RSET", "250")
	await()
	c.Do("QUIT", "221")
	w.awaitEnd("sess")
	if n := len(finished); n > 0 {
		t.Errorf("%d transactions ended twice", n)
	}
}
