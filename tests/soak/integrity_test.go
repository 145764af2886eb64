package soak

import (
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"dovetail/internal/testkit/dovetail"
	"dovetail/internal/testkit/relay"
	"dovetail/internal/testkit/system"
)

func TestMain(m *testing.M) { os.Exit(dovetail.Main(m, 4)) }

// spite makes scripts for the first n connections of a relay; each of them does one thing
// amiss, at some place.
func spite(r *rand.Rand, n int) (scripts []relay.Script) {
	steps := []relay.Step{relay.MAIL, relay.RCPT, relay.DATA, relay.Body, relay.Dot, relay.BDAT, relay.RSET, relay.Banner, relay.EHLO}
	for range n {
		does := []relay.Behaviour{
			relay.Reply("450 4.2.0 later"), relay.Reply("450 4.2.0 later"), relay.Reply("554 5.7.1 no"), relay.Reply("554-5.7.1 no", "554 5.7.1 never"),
			relay.Reply("421 4.3.2 bye"), relay.Close("421 4.3.2 bye"), relay.Close(), relay.Close(), relay.Reset(), relay.Reset(),
			relay.After(20*time.Millisecond, relay.Reply("451 4.3.0 slowly")), relay.After(time.Duration(r.IntN(300))*time.Millisecond, relay.Close()),
			relay.Raw("garbage\r\n"), relay.HalfLine("25"), relay.Silence(), relay.Stall(),
		}
		step, how := steps[r.IntN(len(steps))], does[r.IntN(len(does))]
		var list []relay.Behaviour
		switch step {
		case relay.Banner, relay.EHLO: // once
			if r.IntN(3) > 0 { // a session that does not begin is no great test
				step, how = relay.Dot, relay.Close()
			}
		case relay.Body:
			how = relay.ReadThen(r.Int64N(30<<10), how).Drained()
		default:
			good := "250 2.0.0 Ok"
			if step == relay.DATA {
				good = "354 go"
			}
			for range r.IntN(6) {
				list = append(list, relay.Reply(good))
			}
		}
		if step == relay.BDAT { // a refused chunk is followed by refusals (RFC 3030 section 2)
			how = how.Always()
		}
		scripts = append(scripts, relay.Script{step: append(list, how)})
	}
	return append(scripts, relay.Script{})
}

// Clients that send all kinds of messages, and leave at any place, and relays that fail at
// any place. Each round has new relays, at the ports of the old.
func TestIntegrity(t *testing.T) {
	t.Parallel()
	rounds, large := 2, 4<<20
	if long {
		rounds, large = 20, 60<<20
	}
	const writers, letters = 20, 25 // in each round
	ports := map[string]system.Port{"chunks": system.Hold(t), "data": system.Hold(t)}
	var users []dovetail.User
	for name, port := range ports {
		users = append(users, dovetail.User{Name: name, Fields: []string{dovetail.Relay(port.Number)}})
	}
	steady := relay.Start(t, relay.Options{})
	users = append(users, dovetail.User{Name: "steady", Fields: []string{dovetail.Relay(steady.Port)}})
	sv := dovetail.Start(t, dovetail.Setup{Shared: true, Users: users, Config: "submission_max_mail_size = 100 M\nsubmission_relay_command_timeout = 2 s\nsubmission_relay_connect_timeout = 2 s\n"})
	idle := sv.Idle(t, "steady")
	s := &server{clear: sv.Addr, tls: sv.TLSAddr, trust: sv.TLSConfig()}
	sent, delivered := 0, 0
	for round := range rounds {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(uint64(round), 7))
			var relays []*relay.Relay
			for name, caps := range map[string][]string{"chunks": {"PIPELINING", "SIZE", "8BITMIME", "ENHANCEDSTATUSCODES", "CHUNKING"}, "data": {"PIPELINING", "8BITMIME", "ENHANCEDSTATUSCODES"}} {
				relays = append(relays, relay.Start(t, relay.Options{Listener: ports[name].Listen(t), Caps: caps, Scripts: spite(rnd, 60), Timeout: dovetail.Patience}))
			}
			o := &office{}
			var ends sync.WaitGroup
			for n := range writers {
				w := &writer{o: o, s: s, rnd: rand.New(rand.NewPCG(uint64(round), uint64(n))), name: fmt.Sprintf("r%d-w%d", round, n), most: large, lose: 4}
				ends.Go(func() { w.sessions(t, letters, []string{"chunks", "data"}) }) // ends with its letters
			}
			ends.Wait()
			sv.Settled(t, idle) // nothing more goes to a relay
			for _, r := range relays {
				r.Stop()
			}
			n, ok := o.check(t, relays...)
			sent, delivered = sent+n, delivered+ok
		})
	}
	if sent < rounds*writers*letters || delivered < sent/2 || delivered == sent {
		t.Errorf("%d of %d delivered: no good test", delivered, sent)
	}
	t.Logf("%d messages, %d answered with 250", sent, delivered)
	sv.Settled(t, idle)
	sv.NoSessions(t, "submission")
	sv.NoSessions(t, "submission-login")
}
