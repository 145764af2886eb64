package settings

import (
	"errors"
	"math"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Type says how a setting's text is read (clause C11).
type Type uint8

const (
	Str      Type = iota // any text
	StrVars              // text with %variables, which are left as they are
	Bool                 // yes or no
	Uint                 // 0 to 4294967295
	Octal                // file mode; octal only if it begins with 0
	Size                 // octets, with a unit B, k, M, G, T
	Time                 // whole seconds, with a unit
	MSecs                // milliseconds, with a unit
	Port                 // 0 to 65535
	Enum                 // one of the words of Setting.Enum
	File                 // the name of a file (2.4 only)
	BoolList             // words that can be added and taken away (2.4 only)
	StrList              // keys with values (2.4 only)
	LastType = StrList
)

var typeNames = [...]string{
	Str: "str", StrVars: "str%", Bool: "bool", Uint: "uint", Octal: "octal", Size: "size", Time: "time",
	MSecs: "msecs", Port: "port", Enum: "enum", File: "file", BoolList: "boollist", StrList: "strlist",
}

func (t Type) String() string {
	if int(t) >= len(typeNames) {
		return strconv.Itoa(int(t))
	}
	return typeNames[t]
}

// Right says what a value of this type looks like, as the end of a sentence.
func (t Type) Right() string {
	switch t {
	case Bool:
		return "yes or no"
	case Uint:
		return "a whole number from 0 to 4294967295"
	case Octal:
		return "a file mode such as 0660, with a leading 0"
	case Size:
		return "a whole number, alone or with B, k, M, G or T, such as 40M"
	case Time:
		return "a whole number with its unit, such as 30s, 5 mins, 2h, 1 day"
	case MSecs:
		return "a whole number with its unit, such as 250ms, 30s, 5 mins"
	case Port:
		return "a port number from 0 to 65535"
	case Enum:
		return "one of its words"
	}
	return "text"
}

// fault is an error whose text is Dovecot's.
func fault(parts ...string) error { return errors.New(strings.Join(parts, "")) }

// Normalise converts v to the form in which doveconf prints it. enum are the words of an
// Enum. An error's text is Dovecot's, without the name of the setting.
func (t Type) Normalise(v string, enum []string) (string, error) {
	switch t {
	case Bool:
		b, err := ParseBool(v)
		return FormatBool(b), err
	case Uint:
		n, err := ParseUint(v)
		return strconv.FormatUint(uint64(n), 10), err
	case Octal:
		n, err := ParseOctal(v)
		return "0" + strconv.FormatUint(uint64(n), 8), err
	case Size:
		n, err := ParseSize(v)
		return FormatSize(n), err
	case Time:
		ms, err := parseInterval(v, 1000)
		return FormatTime(ms), err
	case MSecs:
		ms, err := parseInterval(v, 1)
		return FormatTime(ms), err
	case Port:
		n, err := ParsePort(v)
		return strconv.Itoa(int(n)), err
	case Enum:
		if !slices.Contains(enum, v) {
			return v, fault("Invalid value: ", v)
		}
	}
	return v, nil
}

// ParseBool is clause C11.1.
func ParseBool(v string) (bool, error) {
	switch {
	case strings.EqualFold(v, "yes"), v == "y", v == "Y", v == "1":
		return true, nil
	case strings.EqualFold(v, "no"):
		return false, nil
	}
	return false, fault("Invalid boolean value: ", v, " (use yes or no)")
}

// FormatBool is yes or no.
func FormatBool(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// digits returns the number at the start of s and what follows it. full: there are
// digits, and the number fits.
func digits(s string) (n uint64, rest string, full bool) {
	i := 0
	for i < len(s) && s[i] >= '0' && s[i] <= '9' {
		i++
	}
	n, err := strconv.ParseUint(s[:i], 10, 64)
	return n, s[i:], err == nil
}

// ParseUint is clause C11.2.
func ParseUint(v string) (uint32, error) {
	num, negative := strings.CutPrefix(v, "-")
	n, rest, fits := digits(num)
	switch {
	case rest != "" || num == "":
		return 0, fault("Invalid number ", v, ": Not a valid number")
	case negative:
		return 0, fault("Invalid number ", v, ": Number too small")
	case !fits || n > math.MaxUint32:
		return 0, fault("Invalid number ", v, ": Number too large")
	}
	return uint32(n), nil
}

// ParseOctal is clause C11.3. More than 32 bits are cut off, as Dovecot does.
func ParseOctal(v string) (uint32, error) {
	if !strings.HasPrefix(v, "0") {
		return ParseUint(v)
	}
	n, err := strconv.ParseUint(v, 8, 64)
	if err != nil {
		return 0, fault("Invalid number: ", v)
	}
	return uint32(n), nil
}

// ParseSize is clause C11.4. The result is in octets.
func ParseSize(v string) (uint64, error) {
	n, unit, ok := digits(v)
	if !ok {
		return 0, fault("Invalid size: ", v)
	}
	unit = strings.ToUpper(strings.TrimLeft(unit, " "))
	shift := 0
	if unit != "" && unit != "B" {
		shift = 10 * strings.IndexByte("BKMGT", unit[0])
		if rest := unit[1:]; shift <= 0 || rest != "" && rest != "B" && rest != "I" && rest != "IB" {
			return 0, fault("Invalid size: ", v)
		}
	}
	if bits.Len64(n)+shift > 64 {
		return 0, fault("Size is too large: ", v)
	}
	return n << shift, nil
}

// FormatSize prints n octets as doveconf does.
func FormatSize(n uint64) string {
	if n == 0 {
		return "0"
	}
	unit := 0
	for ; n%1024 == 0 && unit < 4; unit++ {
		n /= 1024
	}
	return strconv.FormatUint(n, 10) + " " + "BkMGT"[unit:unit+1]
}

// units of time in the order in which Dovecot tries them; ms is their length.
var units = [...]struct {
	word string
	ms   uint64
}{
	{"secs", 1000}, {"seconds", 1000}, {"mins", 60_000}, {"minutes", 60_000},
	{"msecs", 1}, {"mseconds", 1}, {"millisecs", 1}, {"milliseconds", 1},
	{"hours", 3_600_000}, {"days", 86_400_000}, {"weeks", 604_800_000},
}

// parseInterval is clauses C11.5 and C11.6, in milliseconds. The result is a multiple of
// step, and at most 2^32-1 times that.
func parseInterval(v string, step uint64) (uint64, error) {
	n, unit, ok := digits(v)
	if !ok {
		return 0, fault("Invalid time interval: ", v)
	}
	unit = strings.ToLower(strings.TrimLeft(unit, " "))
	if unit == "" {
		if n != 0 {
			return 0, fault("Time interval '", v, "' is missing units (add e.g. 's' for seconds)")
		}
		return 0, nil
	}
	var length uint64
	for _, u := range units {
		if strings.HasPrefix(u.word, unit) {
			length = u.ms
			break
		}
	}
	if length == 0 {
		return 0, fault("Invalid time interval: ", v)
	}
	hi, ms := bits.Mul64(n, length)
	if hi == 0 && ms%step != 0 {
		return 0, fault("Milliseconds not supported for this setting: ", v)
	}
	if hi != 0 || ms/step > math.MaxUint32 {
		return 0, fault("Time interval is too large: ", v)
	}
	return ms, nil
}

// ParseTime is clause C11.5.
func ParseTime(v string) (time.Duration, error) {
	ms, err := parseInterval(v, 1000)
	return time.Duration(ms) * time.Millisecond, err
}

// ParseMSecs is clause C11.6.
func ParseMSecs(v string) (time.Duration, error) {
	ms, err := parseInterval(v, 1)
	return time.Duration(ms) * time.Millisecond, err
}

// FormatTime prints milliseconds as doveconf does (clause C11.7).
func FormatTime(ms uint64) string {
	if ms == 0 {
		return "0"
	}
	n, word := ms/1000, "secs"
	switch {
	case ms%1000 != 0:
		n, word = ms, "ms"
	case n%604_800 == 0:
		n, word = n/604_800, "weeks"
	case n%86_400 == 0:
		n, word = n/86_400, "days"
	case n%3600 == 0:
		n, word = n/3600, "hours"
	case n%60 == 0:
		n, word = n/60, "mins"
	}
	return strconv.FormatUint(n, 10) + " " + word
}

// ParsePort is clause C11.8.
func ParsePort(v string) (uint16, error) {
	n, rest, ok := digits(v)
	if !ok || rest != "" || n > math.MaxUint16 {
		return 0, fault("Invalid port number ", v)
	}
	return uint16(n), nil
}
