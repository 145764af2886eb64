// Package login is the role of submission-login: it serves one client from the connection
// to the moment when a worker, or a backend, takes over.
//
//	accept, access sockets, PROXY header, TLS     who is it, may it come at all
//	220, EHLO, STARTTLS, XCLIENT, NOOP, QUIT ...  everything else is 530, until
//	AUTH ... OK                                   the auth service's word (package authclient)
//	user+IP limit, hand-over to a worker          which sends the 235 (package handoff)
//	TLS: octets forwarded between client and worker until one of them ends
//
// It never looks at mail and knows no user but the one who logs in.
//
// A session has one goroutine, which reads and answers commands. While it waits for the
// auth service another one watches whether the client leaves; behind TLS two forward. All
// of them end with the session's context: by the login timeout, by a shutdown, or with Serve.
package login
