package nobuild

import "testing"

func TestBad(t *testing.T) { nothing() }
