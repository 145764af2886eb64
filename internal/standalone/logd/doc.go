// Package logd is standalone's log process, and the writer of log files that the master
// uses, too: what other processes say (package dovecot/log) goes where log_path,
// info_log_path and debug_log_path say, in Dovecot's form or as JSON.
//
//	Nov 24 12:00:00 submission-login: Info: Login: user=<alice>, ...
//	│               │                 │     └ text, sanitised
//	│               │                 └ the severity, not before Info lines of syslog
//	│               └ prefix of the process, or of its service
//	└ log_timestamp
//
//	{"time":"2026-11-24T12:00:00.000001Z","level":"info","service":"submission-login",
//	 "pid":123,"prefix":"submission-login: ","text":"Login: ..."}     (one line)
//
// Output is where lines end up; Program is the process. How a process's lines travel is
// package dovecot/log's.
package logd
