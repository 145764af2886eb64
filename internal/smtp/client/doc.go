// Package client is the engine of one connection to a relay: it connects, introduces us,
// sends commands that another package has made, keeps their replies in order, and carries
// message data. What a failure means for a client of ours is package relay's business.
//
//	M: 220 relay.test                       Dial returns when all of this is done
//	R: EHLO host.test                       HELO after 500 and 502
//	R: STARTTLS, TLS, EHLO host.test        with Config.StartTLS
//	R: XCLIENT ..., EHLO host.test          with a user and Config.Xclient
//	R: AUTH PLAIN ..., EHLO host.test       with a user
//	R: MAIL FROM:<a@b>                      Send: buffered until Flush; many may wait for
//	R: RCPT TO:<c@d>                        their replies, if the relay has PIPELINING
//	M: 250 2.1.0 Ok                         ... which one reader dispatches
//	R: DATA, or BDAT 131072                 Data, Write, EndData; Chunk
//
// One goroutine, the owner, sends; another one reads, from Start to the end of the
// connection, and calls the functions that wait for replies. A connection ends once: by
// Close, or by a failure, of which Hooks.Failed hears.
//
// While nothing is read and nothing to be written a plaintext connection holds no buffer.
package client
