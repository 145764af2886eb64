package config

import (
	"path/filepath"
	"testing"

	"dovetail/internal/dovecot/config"
	"dovetail/internal/testkit/leak"
)

func TestAnswers(t *testing.T) {
	leak.Check(t)
	s := Start(t, filepath.Join(t.TempDir(), "config"), map[string]string{"hostname": "a.test", "login_greeting": "two\nlines"})
	c, err := config.Dial(s.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	a, err := c.Request(config.Request{Modules: []string{"submission-login"}, Service: "submission"})
	if err != nil || a.Values["hostname"] != "a.test" || a.Values["login_greeting"] != "two\nlines" {
		t.Fatalf("%+v %v", a, err)
	}
	s.Answer(func(r config.Request) config.Answer {
		return config.Answer{Values: map[string]string{"hostname": r.LocalName}, ServiceUsesLocal: true, UsedLocal: true}
	})
	a, err = c.Request(config.Request{Service: "submission", LocalName: "b.test"})
	if err != nil || a.Values["hostname"] != "b.test" || !a.UsedLocal {
		t.Fatalf("%+v %v", a, err)
	}
	if r := s.Requests(); len(r) != 2 || r[0].Modules[0] != "submission-login" {
		t.Errorf("%+v", r)
	}
	s.Stop()
	if _, err := c.Request(config.Request{}); err == nil {
		t.Error("a stopped service answers")
	}
}
