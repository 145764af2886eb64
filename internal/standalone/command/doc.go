// Package command is the dovetail program: each of its words (run, stop, who, ...), and how
// the configuration becomes what package master runs. The work of the processes that the
// master starts is in the packages of the roles.
//
//	Main(args) -> exit status
//	System.Load(path) -> Setup, or everything that is wrong with the configuration
//
// The words that ask a running master find it by base_dir in the configuration: its pid
// file, its socket (package master, admin.go) and anvil's.
package command
