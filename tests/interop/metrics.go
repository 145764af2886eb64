package interop

import "strings"

// metrics count every event that Dovecot's two programs send, by what it says.
func metrics() (lines []string) {
	for _, m := range []struct{ event, groupBy, fields string }{
		{"client_connection_connected", "", ""},
		{"client_connection_disconnected", "reason", ""},
		{"smtp_server_command_started", "cmd_name", ""},
		{"smtp_server_command_finished", "cmd_name status_code enhanced_code error", ""},
		{"smtp_server_transaction_started", "mail_from", ""},
		{"smtp_server_transaction_rcpt_finished", "status_code rcpt_to error", ""},
		{"smtp_server_transaction_finished", "status_code enhanced_code error is_reset", "recipients recipients_denied recipients_aborted recipients_failed recipients_succeeded data_size"},
		{"server_connection_connected", "dest_ip socket_path", ""},
		{"server_connection_disconnected", "dest_ip socket_path reason", ""},
		{"smtp_client_command_started", "cmd_name", ""},
		{"smtp_client_command_sent", "cmd_name", ""},
		{"smtp_client_command_finished", "cmd_name status_code error", ""},
		{"smtp_client_transaction_started", "mail_from", ""},
		{"smtp_client_transaction_rcpt_finished", "status_code rcpt_to error", ""},
		{"smtp_client_transaction_finished", "status_code error is_reset", "recipients recipients_denied recipients_aborted recipients_failed recipients_succeeded data_sent"},
		{"auth_client_request_started", "mechanism transport", ""},
		{"auth_client_request_challenged", "mechanism", ""},
		{"auth_client_request_continued", "mechanism", ""},
		{"auth_client_request_finished", "mechanism user error", ""},
		{"auth_master_client_login_started", "", ""},
		{"auth_master_client_login_finished", "user error", ""},
		{"proxy_session_started", "dest_ip", ""},
		{"proxy_session_established", "dest_ip", ""},
		{"proxy_session_finished", "disconnect_side error", ""},
		{"mail_user_session_finished", "user", ""},
	} {
		for _, service := range []string{"submission-login", "submission"} {
			lines = append(lines,
				"metric "+m.event+"__"+strings.ReplaceAll(service, "-", "_")+" {",
				"  filter = event="+m.event+" AND category=service:"+service,
				"  group_by = "+m.groupBy,
				"  fields = "+m.fields,
				"}")
		}
	}
	return lines
}
