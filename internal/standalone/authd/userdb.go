package authd

// A userResult is what a userdb said.
type userResult uint8

const (
	userInternalFailure userResult = iota
	userUnknown
	userOK
)

// A userDriver knows users. It sets fields of the request's userdb reply.
type userDriver interface{ find(r *request) userResult }

// A lister knows all names.
type lister interface {
	// list calls each with every name, in the file's order. The error is for the log.
	list(r *request, each func(name string) bool) error
}

// lookupUser asks the userdbs one after the other, as their rules say.
func (r *request) lookupUser() userResult {
	for {
		db := r.userdb
		r.inUserdb = true
		ok := true
		if !r.hasUserdb {
			r.beginUserdbReply(true)
		} else if err := db.defaults.apply(r, r.setUserdbField); err != nil {
			r.dbError("Failed to expand default_fields: %s", err)
			ok = false
		}
		r.beginLookup(db)
		result := userInternalFailure
		if ok {
			result = db.userDriver.find(r)
		}
		if result, done := r.userdbDone(db, result); done {
			if r.userdbTempFailed {
				return userInternalFailure
			}
			return result
		}
	}
}

// userdbDone applies the rules of db to its result. done: there is no next one to ask.
func (r *request) userdbDone(db *database, result userResult) (_ userResult, done bool) {
	todo := db.resultFailure
	switch result {
	case userOK:
		todo = db.resultSuccess
	case userInternalFailure:
		todo = db.resultInternalFail
	}
	goOn := false
	switch todo {
	case ruleReturnOK:
		r.userdbSuccess = true
	case ruleReturnFail:
		r.userdbSuccess = false
	case ruleContinue:
		goOn = true
	case ruleContinueOK:
		goOn, r.userdbSuccess = true, true
	case ruleContinueFail:
		goOn, r.userdbSuccess = true, false
	}
	r.endLookup()
	next := db.next
	for next != nil && (next.skip == skipDone && r.userdbSuccess || next.skip == skipUndone && !r.userdbSuccess) {
		next = next.next
	}
	override := func() bool {
		if err := db.overrides.apply(r, r.setUserdbField); err != nil {
			r.logError("%sFailed to expand override_fields: %s", r.dbPrefix(), err)
			return false
		}
		return true
	}
	if goOn && next != nil {
		r.userdbSeenFailure = r.userdbSeenFailure || result == userInternalFailure
		if result == userOK {
			if !override() {
				return userInternalFailure, true
			}
			r.userdbReply.snapshot()
		} else {
			r.userdbReply.rollback()
		}
		r.userdb = next
		return result, false
	}
	switch {
	case r.userdbSuccess:
		if !override() {
			return userInternalFailure, true
		}
		return userOK, true
	case r.userdbSeenFailure || result == userInternalFailure:
		return userInternalFailure, true
	case r.clientPID != 0 && len(r.auth.userdbs) == 1:
		r.logError("%suser not found from userdb", r.dbPrefix())
	case r.clientPID != 0:
		r.mechError("user not found from any userdbs")
	}
	return userUnknown, true
}
