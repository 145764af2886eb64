// Package stats tells Dovecot's stats service what happens, so that metrics, doveadm stats
// and event exporters see the submission service (clause P8.1). It knows which events
// there are, with their categories and fields, and sends those that somebody wants. When
// they happen is the business of the roles.
//
//	C: VERSION stats-client 4 0
//	C: CATEGORY smtp-server                       any number
//	S: VERSION stats-server 4 0
//	S: FILTER (event="smtp_server_command_*")     and again, whenever metrics change
//	C: BEGIN 7 0 <level> <created> <source> cservice:submission csmtp-server Sremote_ip 192.0.2.7
//	C: EVENT 0 7 <level> <created> <source> <now> nsmtp_server_command_finished Istatus_code 250
//	C: UPDATE 7 0 <created> <source> ...          the fields of 7 have changed
//	C: END 7
//
// Fields are separated by TAB and escaped as in package tabline; times are seconds TAB
// microseconds, a source is s<name> TAB <line>. BEGIN makes something that events happen
// in, here called a Scope: they have its fields and categories, too. What lies between
// created and now is the field "duration".
//
// Log lines, which are events without a name, are not sent: a metric with category=error
// stays at 0 with Dovecot's own programs, too.
//
// Nothing is formatted when the filter wants nothing, and a nil Client, or a Scope without
// one, does nothing.
package stats

import (
	"math/bits"
	"strings"

	"dovetail/internal/process/event"
)

// A Name is an event.
type Name uint8

// The events, as Dovecot 2.3.19 sends them, with their fields beside those of the scope.
const (
	// In a scope of kind SMTPServer.
	ClientConnected           Name = iota // client_connection_connected: remote_ip remote_port
	ClientDisconnected                    // client_connection_disconnected: reason
	ServerCommandStarted                  // smtp_server_command_started: see Event.Command
	ServerCommandFinished                 // smtp_server_command_finished: status_code enhanced_code error, see Event.Command
	ServerTransactionStarted              // smtp_server_transaction_started: those of ServerTransaction
	ServerRcptFinished                    // smtp_server_transaction_rcpt_finished: status_code enhanced_code error rcpt_to rcpt_param_*
	ServerTransactionFinished             // smtp_server_transaction_finished: status_code enhanced_code error is_reset, see Event.Recipients

	// In a scope of kind SMTPClient.
	RelayConnected            // server_connection_connected: protocol host dest_ip dest_port
	RelayDisconnected         // server_connection_disconnected: reason
	ClientCommandStarted      // smtp_client_command_started: cmd_name
	ClientCommandSent         // smtp_client_command_sent: cmd_name
	ClientCommandFinished     // smtp_client_command_finished: status_code error cmd_name
	ClientTransactionStarted  // smtp_client_transaction_started: those of ClientTransaction
	ClientRcptFinished        // smtp_client_transaction_rcpt_finished: status_code error rcpt_to
	ClientTransactionFinished // smtp_client_transaction_finished: status_code error is_reset, see Event.Recipients

	// In a scope of kind AuthClient.
	AuthConnected         // server_connection_connected: socket_path remote_pid remote_uid
	AuthDisconnected      // server_connection_disconnected: reason socket_path remote_pid remote_uid bytes_in bytes_out
	AuthRequestStarted    // auth_client_request_started: id mechanism service transport session local_ip ... tls_cipher ...
	AuthRequestChallenged // auth_client_request_challenged: the same
	AuthRequestContinued  // auth_client_request_continued: the same
	AuthRequestFinished   // auth_client_request_finished: error, the same, user
	MasterLoginStarted    // auth_master_client_login_started: id local_ip local_port remote_ip remote_port
	MasterLoginFinished   // auth_master_client_login_finished: user or error, the same

	// In a scope of kind Login.
	ProxyStarted     // proxy_session_started: source_ip dest_ip dest_port dest_host master_user
	ProxyEstablished // proxy_session_established: the same, source_port
	ProxyFinished    // proxy_session_finished: disconnect_reason disconnect_side idle_secs bytes_in bytes_out error, the same

	// In a scope of kind MailUser.
	UserSessionFinished // mail_user_session_finished: utime stime rss vsz ... user session

	numNames
)

// names are the words for the events, the kind of their scope, and the severity with which
// Dovecot sends them.
var names = [numNames]struct {
	word  string
	kind  Kind
	level event.Level
}{
	ClientConnected:           {"client_connection_connected", SMTPServer, event.Debug},
	ClientDisconnected:        {"client_connection_disconnected", SMTPServer, event.Debug},
	ServerCommandStarted:      {"smtp_server_command_started", SMTPServer, event.Debug},
	ServerCommandFinished:     {"smtp_server_command_finished", SMTPServer, event.Debug},
	ServerTransactionStarted:  {"smtp_server_transaction_started", SMTPServer, event.Debug},
	ServerRcptFinished:        {"smtp_server_transaction_rcpt_finished", SMTPServer, event.Debug},
	ServerTransactionFinished: {"smtp_server_transaction_finished", SMTPServer, event.Debug},
	RelayConnected:            {"server_connection_connected", SMTPClient, event.Debug},
	RelayDisconnected:         {"server_connection_disconnected", SMTPClient, event.Debug},
	ClientCommandStarted:      {"smtp_client_command_started", SMTPClient, event.Debug},
	ClientCommandSent:         {"smtp_client_command_sent", SMTPClient, event.Debug},
	ClientCommandFinished:     {"smtp_client_command_finished", SMTPClient, event.Debug},
	ClientTransactionStarted:  {"smtp_client_transaction_started", SMTPClient, event.Debug},
	ClientRcptFinished:        {"smtp_client_transaction_rcpt_finished", SMTPClient, event.Debug},
	ClientTransactionFinished: {"smtp_client_transaction_finished", SMTPClient, event.Debug},
	AuthConnected:             {"server_connection_connected", AuthClient, event.Debug},
	AuthDisconnected:          {"server_connection_disconnected", AuthClient, event.Debug},
	AuthRequestStarted:        {"auth_client_request_started", AuthClient, event.Debug},
	AuthRequestChallenged:     {"auth_client_request_challenged", AuthClient, event.Debug},
	AuthRequestContinued:      {"auth_client_request_continued", AuthClient, event.Debug},
	AuthRequestFinished:       {"auth_client_request_finished", AuthClient, event.Debug},
	MasterLoginStarted:        {"auth_master_client_login_started", AuthClient, event.Debug},
	MasterLoginFinished:       {"auth_master_client_login_finished", AuthClient, event.Debug},
	ProxyStarted:              {"proxy_session_started", Login, event.Debug},
	ProxyEstablished:          {"proxy_session_established", Login, event.Info},
	ProxyFinished:             {"proxy_session_finished", Login, event.Info},
	UserSessionFinished:       {"mail_user_session_finished", MailUser, event.Debug},
}

// String returns the event's word.
func (n Name) String() string { return names[n].word }

// A Kind is what a Scope stands for.
type Kind uint8

// The kinds, with the fields that they have in Dovecot.
const (
	SMTPServer        Kind = iota // a client's connection: protocol remote_ip remote_port connection_id session bytes_in bytes_out
	ServerTransaction             // in SMTPServer: transaction_id session mail_from mail_from_raw mail_param_* data_size
	SMTPClient                    // a relay's connection: protocol host dest_ip dest_port bytes_in bytes_out
	ClientTransaction             // in SMTPClient: mail_from mail_from_raw mail_param_* data_sent
	AuthClient                    // a connection to the auth service, or to auth-master: none
	Login                         // a client of the login process: local_ip local_port remote_ip remote_port service user
	MailUser                      // a user: none

	numKinds
)

// kinds are the category of each kind, beside the service's and those of the scope around
// it, and what the source is called. Dovecot has a file of its own there.
var kinds = [numKinds]struct{ category, source string }{
	SMTPServer:        {"smtp-server", "smtp-server-connection"},
	ServerTransaction: {"", "smtp-server-transaction"},
	SMTPClient:        {"smtp-client", "smtp-client-connection"},
	ClientTransaction: {"", "smtp-client-transaction"},
	AuthClient:        {"auth-client", "auth-client"},
	Login:             {"submission", "login"},
	MailUser:          {"storage", "mail-user"},
}

// mask returns a bit for each event that f may want of a service.
func mask(f filter, service string) (events uint64) {
	subject := subject{categories: []string{"service:" + service, ""}}
	for n, e := range names {
		subject.name, subject.level, subject.categories[1] = e.word, e.level, kinds[e.kind].category
		if f.match(subject) != no {
			events |= 1 << n
		}
	}
	return events
}

// The words of a mask, for tests and debug lines.
func maskString(events uint64) string {
	var words []string
	for ; events != 0; events &= events - 1 {
		words = append(words, Name(bits.TrailingZeros64(events)).String())
	}
	return strings.Join(words, " ")
}
