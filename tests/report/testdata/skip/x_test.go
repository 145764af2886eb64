package skip

import "testing"

func TestGood(t *testing.T) { t.Log("hidden") }
func TestOne(t *testing.T)  { t.Skip("needs the moon") }
func TestSome(t *testing.T) { t.Run("sub", func(t *testing.T) { t.Skip("needs the moon") }) }
