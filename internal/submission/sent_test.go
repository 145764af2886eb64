package submission

import (
	"bufio"
	"net"
	"strings"
	"testing"
	"time"

	"dovetail/internal/process/event"
	"dovetail/internal/smtp"
	"dovetail/internal/smtp/client"
	"dovetail/internal/smtp/server"
)

// A relay says 421 in the middle of a message. Its connection has ended then, and the owner
// may notice that before the reader has told: the session ends, and the client hears of it.
func TestEndThatIsNotToldYet(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	se := &session{u: &user{hostname: "host.test"}, log: event.New(event.SinkFunc(func(event.Level, string, string) {}), "", false), link: &link{}, c: server.New(near, server.Options{Hostname: "host.test"}), cancel: func() {}}
	se.cond.L = &se.mu
	m := &message{se: se, tx: &transaction{state: mailAccepted}}
	se.tx = m.tx
	line := make(chan string)
	go func() { // ends with the connection
		l, _ := bufio.NewReader(far).ReadString('\n')
		line <- l
	}()
	if m.sent(true, &client.Error{Kind: client.Closing, Reply: smtp.NewReply(421, "4.3.2", "bye"), Waiting: 1}) {
		t.Error("the session goes on")
	}
	near.Close()
	if got := <-line; !strings.HasPrefix(got, "421") {
		t.Errorf("the client hears %q", got)
	}
	if !se.over() {
		t.Error("the session has not ended")
	}
}

// The wait for the relay's answers ends by itself, however short it is.
func TestAwaitFinalsEnds(t *testing.T) {
	se := &session{finals: 1}
	se.cond.L = &se.mu
	for d := range 3000 {
		se.mu.Lock()
		se.awaitFinalsLocked(time.Duration(d) * 10)
		se.mu.Unlock()
	}
}
