package tlsconf

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"dovetail/internal/testkit/tlsfiles"
)

func TestCleanName(t *testing.T) {
	for in, want := range map[string]string{
		"MX.Example.ORG": "mx.example.org", "xn--a_b-9.x": "xn--a_b-9.x", "": "", "a b": "", "a\tb": "", "a\x00": "", "ä.example": "", "a\n": "", "@": "", "[::1]": "",
		strings.Repeat("a", 253): strings.Repeat("a", 253), strings.Repeat("a", 254): "",
	} {
		if got := CleanName(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// Each name is asked for once, a name without settings too; errors are asked for again.
func TestNamesRemember(t *testing.T) {
	asked := map[string]int{}
	n := NewNames(10, func(_ context.Context, name string) (int, error) {
		asked[name]++
		switch name {
		case "bad":
			return 0, errors.New("no answer")
		case "mx":
			return 7, nil
		}
		return 0, nil
	})
	for range 3 {
		for name, want := range map[string]int{"mx": 7, "MX": 7, "other": 0, "": 0, "a b": 0} {
			if v, err := n.Get(context.Background(), name); v != want || err != nil {
				t.Errorf("%q: %d, %v", name, v, err)
			}
		}
		if _, err := n.Get(context.Background(), "bad"); err == nil {
			t.Error("no error")
		}
	}
	if asked["mx"] != 1 || asked["other"] != 1 || asked[""] != 1 || asked["bad"] != 3 {
		t.Errorf("asked %v", asked)
	}
}

// However many names strangers send, no more than the bound are held, and one that is in
// use is not pushed out.
func TestNamesAreBounded(t *testing.T) {
	asked := 0
	n := NewNames(100, func(_ context.Context, name string) (bool, error) {
		if name == "mx" {
			asked++
		}
		return false, nil
	})
	for i := range 10000 {
		_, _ = n.Get(context.Background(), fmt.Sprint("stranger", i))
		if i%40 == 0 {
			_, _ = n.Get(context.Background(), "mx")
		}
		if held := len(n.young) + len(n.old); held > 100 {
			t.Fatalf("%d names held", held)
		}
	}
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
}

// Those who come while a name is being asked for wait for the same answer; one who gives
// up does not spoil it for the others.
func TestNamesTogether(t *testing.T) {
	entered, leave := make(chan struct{}, 1), make(chan struct{})
	var asked atomic.Int32
	n := NewNames(10, func(ctx context.Context, _ string) (string, error) {
		asked.Add(1)
		entered <- struct{}{}
		select {
		case <-leave:
			return "yes", nil
		case <-ctx.Done():
			return "", ctx.Err()
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	first := make(chan error, 1)
	go func() { // ends with the cancel below
		_, err := n.Get(ctx, "mx")
		first <- err
	}()
	<-entered
	if _, err := n.Get(canceled(), "mx"); !errors.Is(err, context.Canceled) {
		t.Errorf("waiting beyond one's time: %v", err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { // ends with the answer
			if v, err := n.Get(context.Background(), "mx"); v != "yes" || err != nil {
				t.Errorf("%q, %v", v, err)
			}
		})
	}
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("first: %v", err)
	}
	<-entered
	close(leave)
	wg.Wait()
	if asked.Load() != 2 {
		t.Errorf("asked %d times", asked.Load())
	}
}

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// A lookup that panics leaves nobody waiting.
func TestNamesPanic(t *testing.T) {
	n := NewNames(10, func(context.Context, string) (int, error) { panic("bug") })
	for range 2 {
		func() {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			_, _ = n.Get(context.Background(), "mx")
		}()
	}
}

// Connections get the certificate of the name they ask for, and tickets work with all.
func TestByName(t *testing.T) {
	of := func(cn string) *tls.Config {
		return server(t, defaults(tlsfiles.SelfSigned(t, tlsfiles.Request{CN: cn})))
	}
	special := of("special")
	n := NewNames(10, func(_ context.Context, name string) (*tls.Config, error) {
		switch name {
		case "special.example":
			return special, nil
		case "broken.example":
			return nil, errors.New("config service is away")
		}
		return nil, nil
	})
	base := of("base")
	choose := func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		return n.Get(hello.Context(), hello.ServerName)
	}
	for _, c := range []struct{ name, cn string }{
		{"special.example", "special"}, {"SPECIAL.example", "special"}, {"other.example", "base"}, {"", "base"}, {"broken.example", ""},
	} {
		cn := ""
		client := &tls.Config{InsecureSkipVerify: true, ServerName: c.name, ClientSessionCache: tls.NewLRUClientSessionCache(1)}
		client.VerifyConnection = func(state tls.ConnectionState) error {
			cn = state.PeerCertificates[0].Subject.CommonName
			return nil
		}
		for _, resumed := range []bool{false, true} {
			var err error
			o := handshake(t, ByName(base, choose), dial(client, &err)) // a copy for each
			if cn != c.cn || (err == nil) != (c.cn != "") || err == nil && o.state.DidResume != resumed {
				t.Errorf("%s: %q, resumed %v, %v, %v", c.name, cn, o.state.DidResume, err, o.err)
			}
		}
	}
}
