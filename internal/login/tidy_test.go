package login

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Memory is given back soon after many logins, and not too often while there are more.
func TestTidy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var done atomic.Int32
		ti := tidier{free: func() { done.Add(1) }}
		is := func(want int32) {
			t.Helper()
			synctest.Wait()
			if done := done.Load(); done != want {
				t.Errorf("done %d times, want %d", done, want)
			}
		}
		for range tidyAfter - 1 {
			ti.login()
		}
		time.Sleep(time.Minute)
		is(0)
		ti.login()
		is(0)
		time.Sleep(tidyQuiet + time.Millisecond)
		is(1)
		time.Sleep(time.Minute)
		is(1)
		for range 600 { // a minute, ten a second
			ti.login()
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
		if done := done.Load(); done < 4 || done > 6 {
			t.Errorf("done %d times", done)
		}
	})
}
