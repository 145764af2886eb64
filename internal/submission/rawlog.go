package submission

import (
	"dovetail/internal/process/event"
	"dovetail/internal/rawlog"
)

// openRawlog opens the files of a dialogue in dir, a setting; nil: none are wanted.
func openRawlog(u *user, dir string, log *event.Log) *rawlog.Log {
	dir, err := u.expandPath(dir)
	if err != nil {
		log.Error("rawlog: %v", err)
		return nil
	}
	l, err := rawlog.Open(dir)
	if err != nil {
		log.Error("%v", err)
	}
	return l
}
