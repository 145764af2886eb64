package urlauth

import (
	"context"
	"encoding/json"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"dovetail/internal/testkit/instance"
	"dovetail/internal/testkit/mailbox"
	"dovetail/internal/testkit/wiretest"
)

// To record testdata anew, as root: go test -run Real ./internal/dovecot/urlauth -record
var recording = flag.Bool("record", false, "write what a private real Dovecot says to testdata")

const golden = "testdata/imap-urlauth.golden"

// A told is what the file begins with: what was fetched, and what came of it.
type told struct {
	Fetches []fetch
	Results []result
}

// What Dovecot said is understood, and we say what we said to it.
func TestGolden(t *testing.T) {
	text, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	var want told
	head, _, _ := strings.Cut(string(text), "\n")
	if err := json.Unmarshal([]byte(head), &want); err != nil || len(want.Fetches) < 6 {
		t.Fatal(len(want.Fetches), err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c := newConn(wiretest.Replay(t, golden), Timeout)
	reply, err := c.readLine()
	if c, err = c.begun(reply, err); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sameResults(t, job{Fetches: want.Fetches}.urlauth(ctx, c), want.Results)
}

func sameResults(t *testing.T, got, want []result) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d results, want %d", len(got), len(want))
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("fetch %d: %+v, want %+v", i, got[i], want[i])
		}
	}
}

// TestRealURLAuth is the same with the real service, and records it.
func TestRealURLAuth(t *testing.T) {
	d := instance.Start(t, liveConf)
	alice := mailbox.Account{Addr: d.Addr("imap"), User: "alice", Password: "pass"}
	bob := alice
	bob.User = "bob"
	m := mails()
	alice.Append(t, "INBOX", m["plain"], m["parts"])
	bob.Append(t, "INBOX", m["plain"])
	const own, other, auth = "imap://alice@imap.example.test/INBOX/;UID=", "imap://bob@imap.example.test/INBOX/;UID=", ";URLAUTH=submit+alice"
	good := alice.Mint(t, own+"1"+auth)
	wrong := good[:len(good)-2] + "00"
	if wrong == good {
		wrong = good[:len(good)-2] + "11"
	}
	j := job{Way: "tape", User: "alice", Fetches: []fetch{
		{Target: "alice", URL: good},
		{Target: "alice", URL: alice.Mint(t, own+"2/;SECTION=2/;PARTIAL=1000.50"+auth)},
		{Target: "alice", URL: alice.Mint(t, own+"2/;SECTION=3"+auth)},
		{Target: "bob", URL: bob.Mint(t, other+"1"+auth)},
		{Target: "alice", URL: alice.Mint(t, own+"1;URLAUTH=submit+bob")},
		{Target: "nobody/here", URL: good},
		{Target: "alice", URL: wrong},
		{Target: "alice", URL: good},
	}}
	got := j.do(t, d)
	if len(got) != len(j.Fetches)+1 {
		t.Fatalf("%+v", got)
	}
	tape := got[len(j.Fetches)].Err
	got = got[:len(j.Fetches)]
	plain := result{Size: uint64(len(m["plain"])), Sum: sum(m["plain"])}
	for i, want := range map[int]result{0: plain, 2: {Sum: sum(nil)}, 3: plain, 7: plain} {
		if got[i] != want {
			t.Errorf("fetch %d: %+v, want %+v", i, got[i], want)
		}
	}
	for i, want := range map[int]string{4: "No 'submit+bob' access allowed for user alice", 5: ErrNoUser.Error(), 6: "URL refused"} {
		if !strings.HasSuffix(got[i].Err, want) {
			t.Errorf("fetch %d: %+v, want %s", i, got[i], want)
		}
	}
	if *recording && !t.Failed() {
		head, err := json.Marshal(told{j.Fetches, got})
		if err != nil {
			t.Fatal(err)
		}
		for path, text := range map[string]string{golden: string(head) + "\n" + tape, "testdata/version": d.Version + "\n"} {
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}
