package service

import "testing"

// Another listener may have had a client since the shortage that is waited out.
func TestPauseAfterSuccess(t *testing.T) {
	p := &Process{ended: make(chan struct{})}
	close(p.ended)
	if p.pause() {
		t.Error("the process has ended")
	}
}
