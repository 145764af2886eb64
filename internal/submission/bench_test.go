package submission

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"dovetail/internal/testkit/relay"
)

// BenchmarkMessage is a kept session: one message of 4 KiB after the other, its commands
// pipelined.
func BenchmarkMessage(b *testing.B) {
	w := newWorld(b, nil)
	for name, caps := range map[string][]string{"BDAT": nil, "DATA": {"PIPELINING"}} {
		b.Run(name, func(b *testing.B) {
			r := relay.Start(b, relay.Options{Caps: caps, Discard: true})
			c := w.in(b).open(r)
			body := strings.Repeat(strings.Repeat("x", 70)+"\r\n", 56) + ".\r\n"
			for b.Loop() {
				c.Write("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n")
				for range 3 {
					if _, err := c.TryLine(); err != nil {
						b.Fatal(err)
					}
				}
				c.Write(body)
				c.TryLine()
			}
			c.Close()
		})
	}
}

// BenchmarkLarge is messages of 8 MiB.
func BenchmarkLarge(b *testing.B) {
	w := newWorld(b, map[string]string{"submission_max_mail_size": "0"})
	line := strings.Repeat("x", 70) + "\r\n"
	body := bytes.Repeat([]byte(line), (8<<20)/len(line))
	for name, caps := range map[string][]string{"BDAT": nil, "DATA": {"PIPELINING"}} {
		b.Run(name, func(b *testing.B) {
			r := relay.Start(b, relay.Options{Caps: caps, Discard: true})
			c := w.in(b).open(r)
			b.SetBytes(int64(len(body)))
			for b.Loop() {
				c.Write("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n" + fmt.Sprintf("BDAT %d LAST\r\n", len(body)))
				c.Conn.Write(body)
				for range 3 {
					if _, err := c.TryLine(); err != nil {
						b.Fatal(err)
					}
				}
			}
			c.Close()
		})
	}
}
