package fail

import "testing"

func TestGood(t *testing.T) { t.Log("hidden") }
func TestBad(t *testing.T)  { t.Error("this is bad") }
