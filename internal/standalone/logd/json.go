package logd

import (
	"strconv"
	"strings"
	"time"

	"dovetail/internal/dovecot/log"
)

// appendJSON adds r as one JSON object, without LF. The strings of a Record are sanitised:
// they are UTF-8 without control characters, and only quotes need care.
func appendJSON(b []byte, service string, r log.Record, t time.Time) []byte {
	b = append(b, `{"time":"`...)
	b = t.AppendFormat(b, "2006-01-02T15:04:05.000000Z07:00")
	b = append(b, `","level":"`...)
	b = append(b, strings.ToLower(r.Level.String())...)
	b = appendPair(b, `","service":"`, service)
	b = append(b, `","pid":`...)
	b = strconv.AppendInt(b, int64(r.PID), 10)
	b = appendPair(b, `,"prefix":"`, r.Prefix)
	b = appendPair(b, `","text":"`, r.Text)
	return append(b, `"}`...)
}

func appendPair(b []byte, key, value string) []byte {
	b = append(b, key...)
	for i := range len(value) {
		if c := value[i]; c == '"' || c == '\\' {
			b = append(b, '\\')
		}
		b = append(b, value[i])
	}
	return b
}
