// Package conf reads Dovecot configuration files: the language of Dovecot 2.3 (clauses C1
// to C8, C10, C14 to C16), from bytes to merged settings with their positions. It does
// not know what a setting means: names, types, defaults and built-in services stand in
// package settings; printing is package doveconf's.
//
//	Load -> Config: every file read, every error of every file, in order
//	          Root, Filters: Scope = what stands outside filters, or in one of them
//	            Block: a section with its settings and sections as written
//	Config.View(Filter) -> View: one client's settings, merged
//
// Where Dovecot stops at the first error, Load notes it and goes on with the next line.
// A Diagnostic's Summary is Dovecot's text, Detail says what would be right; Text gives
// the whole line that Dovecot's doveconf would have printed.
//
// The language of 2.4 (clauses C9 to C13) has the same lines but other blocks: Load24 ->
// Config24, a tree of Nodes; files v24*.go.
package conf
