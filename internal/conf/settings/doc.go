// Package settings knows what settings mean: their types with Dovecot's errors and printed
// forms (clause C11), and for the programs of this project names, defaults and Go values.
// How configuration files are written is package conf's; every setting of Dovecot, also
// those that no program here reads, stands in package settings/all, which only the
// programs that handle files link.
//
//	Decode[Login](answer.Get)  values as the config service sends them -> a struct
//	Lookup("hostname")         the row of a setting that a program here reads
//	Size.Normalise("40960k")   "40 M", the form in which doveconf prints it
package settings
