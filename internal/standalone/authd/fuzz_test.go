package authd

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"dovetail/internal/process/event"
)

// fuzzServer has every mechanism and kind of field.
func fuzzServer() (*Server, *memory) {
	var log memory
	db := func(driver, args string, master bool) dbSettings {
		return dbSettings{driver: driver, args: args, skip: "never", resultSuccess: "return-ok", resultFailure: "continue",
			resultInternalFail: "continue", master: master, authVerbose: "default"}
	}
	p := &protocol{
		mechanisms:     []string{"PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-1", "SCRAM-SHA-256", "EXTERNAL", "ANONYMOUS"},
		usernameFormat: "%Lu", masterSeparator: "*", anonymous: "anonymous", verbose: true, debug: true, userFromCert: true, showPassword: "no",
		passdbs: []dbSettings{db("static", "password=right custom=%{session} userdb_a=%u", false), db("static", "password=master", true)},
		userdbs: []dbSettings{db("static", "uid=5001 gid=5001 home=/home/%u", false)},
	}
	for i := range p.chars {
		p.chars[i] = i >= ' '
	}
	s, err := New(Settings{protocols: []*protocol{p}, baseDir: "/nonexistent"}, Options{Log: event.New(&log, "", false), PID: 1})
	if err != nil {
		panic(err)
	}
	go func() { // ends with the test binary: failures are not worth waiting for
		for range time.Tick(time.Millisecond) {
			s.failures.flush()
		}
	}()
	return s, &log
}

// talk sends text to a listener of s and reads until the server closes, or has answered
// all of it.
func talk(t *testing.T, s *Server, listener, hello, text string) (got string) {
	t.Helper()
	here, there := net.Pipe()
	ended := make(chan struct{})
	go func() { // ends with the pipe
		defer close(ended)
		s.Serve(context.Background(), there, listener, "/x")
	}()
	read := make(chan string)
	go func() { // ends with the pipe
		b, _ := io.ReadAll(here)
		read <- string(b)
	}()
	_ = here.SetWriteDeadline(time.Now().Add(10 * time.Second))
	_, err := io.WriteString(here, hello+text)
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		t.Errorf("the server neither reads nor closes: %q", text)
	}
	here.Close()
	<-ended
	return <-read
}

func noPanic(t *testing.T, log *memory, what string) {
	t.Helper()
	for _, l := range log.get() {
		if strings.HasPrefix(l, "Panic") {
			t.Fatalf("%q: %s", what, l)
		}
	}
}

// Whatever a login process sends, its connection goes on or ends, and nothing else.
func FuzzLoginLines(f *testing.F) {
	for _, l := range []string{
		"AUTH\t1\tPLAIN\tservice=submission\tresp=AGFsaWNlAHJpZ2h0\nCANCEL\t1\n",
		"AUTH\t1\tLOGIN\tservice=submission\nCONT\t1\tYWxpY2U=\nCONT\t1\tcmlnaHQ=\n",
		"AUTH\t1\tPLAIN\tservice=submission\tforward_fields=a=b\x01tnologin\tlip=::1\trip=x\tlport=99999\tcert_username=a\tsession=\x01n\tresp==\n",
		"AUTH\t1\tPLAIN\tservice=submission\tresp=c2VjcmV0cGFzcw==\nCONT\t1\tAAAA\nAUTH\t1\tPLAIN\tservice=s\n",
		"AUTH\t4294967295\tEXTERNAL\tservice=s\tcert_username=x\tvalid-client-cert\tresp=\n", "CONT\t\nAUTH\t\n\n", "VERSION\t1\t2\n",
	} {
		f.Add(l)
	}
	s, log := fuzzServer()
	f.Fuzz(func(t *testing.T, text string) {
		for _, listener := range []string{"login", "tokenlogin", "auth-client"} {
			talk(t, s, listener, "VERSION\t1\t2\nCPID\t7\n", text)
		}
		talk(t, s, "login", "", text)
		noPanic(t, log, text)
		log.mu.Lock()
		log.lines = nil
		log.mu.Unlock()
	})
}

// So with what a worker sends.
func FuzzMasterLines(f *testing.F) {
	for _, l := range []string{
		"USER\t1\talice\tservice=submission\nPASS\t2\tbob\tservice=x\nLIST\t3\nCACHE-FLUSH\t4\n",
		"REQUEST\t1\t2\t3\t00112233445566778899aabbccddeeff\tsession_pid=1\trequest_auth_token\n", "USER\t1\ta*b\tservice=s\trip=::1\n", "USER\n\n",
	} {
		f.Add(l)
	}
	s, log := fuzzServer()
	f.Fuzz(func(t *testing.T, text string) {
		for _, listener := range []string{"auth-master", "auth-userdb"} {
			talk(t, s, listener, "VERSION\t1\t1\n", text)
		}
		noPanic(t, log, text)
		log.mu.Lock()
		log.lines = nil
		log.mu.Unlock()
	})
}

// Whatever a stranger answers a mechanism with, it ends, and only who knows a password gets
// in.
func FuzzSASL(f *testing.F) {
	f.Add(uint8(0), []byte("\x00alice\x00right"), []byte{}, []byte{})
	f.Add(uint8(0), []byte("alice\x00root\x00master"), []byte{}, []byte{})
	f.Add(uint8(1), []byte("alice"), []byte("right"), []byte{})
	f.Add(uint8(2), []byte{}, []byte("alice 00112233445566778899aabbccddeeff"), []byte{})
	f.Add(uint8(3), []byte("n,,n=alice,r=fyko+d2lbbFgONRv9qkxdawL"), []byte("c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts="), []byte{})
	f.Add(uint8(4), []byte("y,a=x=2Cy,m=1,n=al=3Dice,r=,ext=1"), []byte("c=eSws"), []byte{})
	f.Add(uint8(5), []byte("alice"), []byte{}, []byte{})
	f.Add(uint8(6), []byte("me@example.org"), []byte{}, []byte{})
	s, log := fuzzServer()
	names := s.mechanisms
	f.Fuzz(func(t *testing.T, which uint8, first, second, third []byte) {
		if len(first)+len(second)+len(third) > 4000 {
			return
		}
		m := names[int(which)%len(names)]
		here, there := net.Pipe()
		ended := make(chan struct{})
		go func() { // ends with the pipe
			defer close(ended)
			s.Serve(context.Background(), there, "login", "/x")
		}()
		defer func() { here.Close(); <-ended }()
		_ = here.SetDeadline(time.Now().Add(10 * time.Second))
		br := bufio.NewReader(here)
		for {
			l, err := br.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if l == "DONE\n" {
				break
			}
		}
		enc := base64.StdEncoding.EncodeToString
		line := fmt.Sprintf("VERSION\t1\t2\nCPID\t7\nAUTH\t1\t%s\tservice=submission\tcert_username=carol\tresp=%s\n", m.Name, enc(first))
		if _, err := io.WriteString(here, line); err != nil {
			t.Fatal(err)
		}
		answers := [][]byte{second, third, nil, nil}
		for {
			l, err := br.ReadString('\n')
			if err != nil {
				t.Fatalf("%s %q: %v", m.Name, first, err)
			}
			if strings.HasPrefix(l, "CONT\t") && len(answers) > 0 {
				if _, err := io.WriteString(here, "CONT\t1\t"+enc(answers[0])+"\n"); err != nil {
					t.Fatal(err)
				}
				answers = answers[1:]
				continue
			}
			all := string(first) + string(second) + string(third)
			knows := strings.Contains(all, "right") || strings.Contains(all, "master")
			if strings.HasPrefix(l, "OK\t") && !knows && m.Name != "ANONYMOUS" {
				t.Fatalf("%s %q %q %q: %s", m.Name, first, second, third, l)
			}
			break
		}
		noPanic(t, log, string(first))
		log.mu.Lock()
		log.lines = nil
		log.mu.Unlock()
	})
}
