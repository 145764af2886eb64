// Package proxy logs a client in at the server where its mailbox is, and then passes octets
// (clause S9). Which server that is, the auth service says (Parse); what the client hears
// and what is logged is package login's, in the words of a Failure.
//
//	M: 220 ...                                   must be 220
//	R: EHLO HOST                                 XCLIENT, STARTTLS, AUTH, ENHANCEDSTATUSCODES are read
//	R: STARTTLS ; TLS ; EHLO HOST                only with the field starttls
//	R: XCLIENT HELO= PROTO= [LOGIN=] TTL= PORT= ADDR= SESSION= [FORWARD=]
//	R: EHLO <the client's>                       written with XCLIENT, if the backend is of Dovecot's kind
//	R: AUTH PLAIN <base64>                       unless proxy_noauth
//	M: 235 ...                                   the client hears it; from here on octets are passed
//
// The whole login at a backend has one deadline. A line of a backend has at most 4096
// octets, a reply at most 100 lines; more, or what is no reply, ends the attempt.
package proxy
