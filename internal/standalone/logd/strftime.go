package logd

import (
	"strconv"
	"strings"
	"time"
)

// usecs in a log_timestamp stands for six digits; no strftime has it.
const usecs = "%{usecs}"

// appendTime adds t in the strftime format, as the C locale has it. A conversion that C
// does not have is added as it is.
func appendTime(b []byte, format string, t time.Time) []byte {
	for {
		i := strings.IndexByte(format, '%')
		if i < 0 {
			return append(b, format...)
		}
		b = append(b, format[:i]...)
		format = format[i:]
		if strings.HasPrefix(format, usecs) {
			b = number(b, t.Nanosecond()/1000, 6, '0')
			format = format[len(usecs):]
			continue
		}
		n := 2 // octets of the conversion
		if len(format) > 2 && (format[1] == 'E' || format[1] == 'O') {
			n = 3 // an alternative that the C locale does not have
		}
		if len(format) < n {
			return append(b, format...)
		}
		b = conversion(b, format[:n], t)
		format = format[n:]
	}
}

// number adds n with at least width digits.
func number(b []byte, n, width int, with byte) []byte {
	s := strconv.Itoa(n)
	for range width - len(s) {
		b = append(b, with)
	}
	return append(b, s...)
}

// conversion adds one conversion of strftime(3).
func conversion(b []byte, conv string, t time.Time) []byte {
	isoYear, isoWeek := t.ISOWeek()
	hour12 := (t.Hour()+11)%12 + 1
	week := func(first time.Weekday) int { return (t.YearDay() + 6 - int(t.Weekday()-first+7)%7) / 7 }
	switch conv[len(conv)-1] {
	case 'a':
		return t.AppendFormat(b, "Mon")
	case 'A':
		return t.AppendFormat(b, "Monday")
	case 'b', 'h':
		return t.AppendFormat(b, "Jan")
	case 'B':
		return t.AppendFormat(b, "January")
	case 'c':
		return appendTime(b, "%a %b %e %H:%M:%S %Y", t)
	case 'C':
		return number(b, t.Year()/100, 2, '0')
	case 'd':
		return number(b, t.Day(), 2, '0')
	case 'D', 'x':
		return appendTime(b, "%m/%d/%y", t)
	case 'e':
		return number(b, t.Day(), 2, ' ')
	case 'F':
		return appendTime(b, "%Y-%m-%d", t)
	case 'g':
		return number(b, isoYear%100, 2, '0')
	case 'G':
		return number(b, isoYear, 1, '0')
	case 'H':
		return number(b, t.Hour(), 2, '0')
	case 'I':
		return number(b, hour12, 2, '0')
	case 'j':
		return number(b, t.YearDay(), 3, '0')
	case 'k':
		return number(b, t.Hour(), 2, ' ')
	case 'l':
		return number(b, hour12, 2, ' ')
	case 'm':
		return number(b, int(t.Month()), 2, '0')
	case 'M':
		return number(b, t.Minute(), 2, '0')
	case 'n':
		return append(b, '\n')
	case 'p':
		return t.AppendFormat(b, "PM")
	case 'P':
		return t.AppendFormat(b, "pm")
	case 'r':
		return appendTime(b, "%I:%M:%S %p", t)
	case 'R':
		return appendTime(b, "%H:%M", t)
	case 's':
		return strconv.AppendInt(b, t.Unix(), 10)
	case 'S':
		return number(b, t.Second(), 2, '0')
	case 't':
		return append(b, '\t')
	case 'T', 'X':
		return appendTime(b, "%H:%M:%S", t)
	case 'u':
		return number(b, (int(t.Weekday())+6)%7+1, 1, '0')
	case 'U':
		return number(b, week(time.Sunday), 2, '0')
	case 'V':
		return number(b, isoWeek, 2, '0')
	case 'w':
		return number(b, int(t.Weekday()), 1, '0')
	case 'W':
		return number(b, week(time.Monday), 2, '0')
	case 'y':
		return number(b, t.Year()%100, 2, '0')
	case 'Y':
		return number(b, t.Year(), 1, '0')
	case 'z':
		return t.AppendFormat(b, "-0700")
	case 'Z':
		return t.AppendFormat(b, "MST")
	case '%':
		return append(b, '%')
	}
	return append(b, conv...)
}
