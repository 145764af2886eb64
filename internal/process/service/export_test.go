package service

import "time"

// ShortenForTest makes every delay of the runtime d.
func ShortenForTest(d time.Duration) {
	shutdownDelay, endDelay, closeDelay, statusInterval = d, d, d, d
}
