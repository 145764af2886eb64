// Package server is the engine of a dialogue with an SMTP client: it reads commands, keeps
// their replies in order, and bounds both. Which commands there are, and what they mean, is
// for its two users, packages login and submission.
//
//	C: MAIL FROM:<a@b>              one Command each, as Next returns them
//	C: RCPT TO:<c@d>
//	S: 250 2.1.0 Ok                 answered in any order and by any goroutine; what is
//	S: 250 2.1.5 Ok                 ready leaves in the order of the commands, in one write
//
// One goroutine owns the reading side: it calls Next, Input, Discard, Line. Any goroutine
// may answer commands, flush, terminate. A line that is no command (clause S1.11), that is
// too long (S1.12), and too many bad commands in a row (S1.9) are answered here.
//
// While a Conn waits for input it holds no buffer, if the connection is a TCP or Unix
// socket.
package server
