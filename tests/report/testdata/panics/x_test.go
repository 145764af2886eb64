package panics

import "testing"

func TestGood(t *testing.T) { t.Log("hidden") }
func TestBad(t *testing.T) {
	t.Log("so far")
	panic("at the wrong moment")
}
