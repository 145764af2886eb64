// Package privs gives rights up: to the user, groups and chroot that the master asks for
// (the RESTRICT_* variables), or to one mail user. Every change reaches all threads of the
// process, and is checked afterwards: a process that could take root back must not go on.
// Who to become is decided elsewhere (clause P1.4).
package privs
