package skip

import (
	"testing"

	"dovetail/internal/testkit/need"
)

func TestGood(t *testing.T) { t.Log("hidden") }
func TestOne(t *testing.T)  { need.Missing(t, "the moon") }
func TestSome(t *testing.T) { t.Run("sub", func(t *testing.T) { need.Missing(t, "the moon") }) }
