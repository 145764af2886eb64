package authd

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"dovetail/internal/standalone/authd/password"
)

// A passResult is what a passdb said.
type passResult uint8

const (
	passInternalFailure passResult = iota
	passSchemeNotAvailable
	passUserUnknown
	passUserDisabled
	passExpired
	passNext // a field says: go on without authentication
	passMismatch
	passOK
)

func (p passResult) String() string {
	return [...]string{
		"internal_failure", "scheme_not_available", "user_unknown", "user_disabled", "pass_expired",
		"next", "password_mismatch", "ok",
	}[p]
}

// A rule is what follows from a result: result_success and its like.
type rule uint8

const (
	ruleReturn rule = iota
	ruleReturnOK
	ruleReturnFail
	ruleContinue
	ruleContinueOK
	ruleContinueFail
)

func parseRule(s string) (rule, error) {
	for i, w := range [...]string{"return", "return-ok", "return-fail", "continue", "continue-ok", "continue-fail"} {
		if w == s {
			return rule(i), nil
		}
	}
	return 0, fmt.Errorf("%q is not a result rule", s)
}

// skip rules of passdbs (authenticated, unauthenticated) and userdbs (found, notfound).
type skipRule uint8

const (
	skipNever skipRule = iota
	skipDone
	skipUndone
)

// A database is a passdb or userdb block.
type database struct {
	set                                              dbSettings
	logName                                          string // name, or driver
	id                                               int
	next                                             *database
	skip                                             skipRule
	resultSuccess, resultFailure, resultInternalFail rule
	defaults, overrides                              template
	mechanisms                                       []string // nil: all; empty: none
	usernames                                        []string
	passDriver                                       passDriver
	userDriver                                       userDriver
}

// A passDriver knows passwords. It sets fields of the request.
type passDriver interface {
	// find returns the stored password, without {SCHEME}, and its scheme. If ok is false
	// there is none. The result is passOK, or why there is nothing.
	find(r *request) (stored, scheme string, ok bool, result passResult)
}

// dbID is the number of the database where the chain stands.
func (r *request) dbID() int {
	db := r.passdb
	if r.inUserdb {
		db = r.userdb
	}
	if db == nil {
		return 0
	}
	return db.id
}

// beginLookup makes the log speak of db.
func (r *request) beginLookup(db *database) {
	verbose := r.auth.set.verbose
	switch {
	case strings.HasPrefix(db.set.authVerbose, "y"):
		verbose = true
	case strings.HasPrefix(db.set.authVerbose, "n"):
		verbose = false
	}
	r.dbs = append(r.dbs, dbLog{verbose})
	if r.inUserdb {
		r.dbDebug("Performing userdb lookup")
	} else {
		r.dbDebug("Performing passdb lookup")
	}
}

func (r *request) endLookup() {
	if r.inUserdb {
		r.dbDebug("Finished userdb lookup")
	} else {
		r.dbDebug("Finished passdb lookup")
	}
	r.dbs = r.dbs[:len(r.dbs)-1]
}

// skipPassdb says whether db does not concern the request.
func (r *request) skipPassdb(db *database) bool {
	if db.mechanisms != nil {
		name := "none"
		if r.mech != nil {
			name = r.mech.Name
		}
		in := false
		for _, m := range db.mechanisms {
			in = in || strings.EqualFold(m, name)
		}
		if !in {
			r.mechDebug("skipping passdb: mechanism filtered")
			return true
		}
	}
	if len(db.usernames) > 0 && !usernameAccepted(db.usernames, r.user) {
		r.mechDebug("skipping passdb: username filtered")
		return true
	}
	switch db.skip {
	case skipDone:
		return r.skipPassword
	case skipUndone:
		return !r.skipPassword
	}
	return false
}

// usernameAccepted applies username_filter: patterns, of which those with ! exclude. If
// there is one that includes, one must match.
func usernameAccepted(patterns []string, user string) bool {
	included, any := false, false
	for _, p := range patterns {
		p, exclude := strings.CutPrefix(p, "!")
		any = any || !exclude
		if wildcardMatch(user, p) {
			if exclude {
				return false
			}
			included = true
		}
	}
	return included || !any
}

// wildcardMatch: * is any text, ? any octet. It needs no more than len(s)*len(pattern) steps.
func wildcardMatch(s, pattern string) bool {
	star, mark, i, j := -1, 0, 0, 0
	for i < len(s) {
		switch {
		case j < len(pattern) && pattern[j] == '*':
			star, mark = j, i
			j++
		case j < len(pattern) && (pattern[j] == '?' || pattern[j] == s[i]):
			i++
			j++
		case star >= 0:
			mark++
			i, j = mark, star+1
		default:
			return false
		}
	}
	for j < len(pattern) && pattern[j] == '*' {
		j++
	}
	return j == len(pattern)
}

// verifyPlain checks a password that the client gave, in the passdbs from r.passdb on.
func (r *request) verifyPlain(plain string) passResult {
	r.password, r.hasPassword = plain, true
	if strings.ContainsAny(plain, "\x01\t\r\n") {
		// Characters of the protocols: they must not get into them in some other way.
		r.dbInfo("Attempted login with password having illegal chars")
		return passUserUnknown
	}
	result, _ := r.chain(func(db *database) (passResult, []byte) {
		stored, scheme, ok, result := db.passDriver.find(r)
		if result != passOK {
			return result, nil
		}
		if !ok {
			return r.passwordMissing(), nil
		}
		return r.checkPassword(plain, stored, scheme), nil
	})
	return result
}

// lookupCredentials returns the password in a scheme that the mechanism wants; an empty
// scheme takes anything.
func (r *request) lookupCredentials(scheme string) (passResult, []byte) {
	r.wanted, r.hasWanted = scheme, true
	result, cred := r.chain(func(db *database) (passResult, []byte) {
		stored, have, ok, result := db.passDriver.find(r)
		if result == passOK && !ok {
			result = r.passwordMissing()
		}
		return r.credentials(result, stored, have, ok)
	})
	if len(cred) == 0 && r.delayed != nil {
		cred = r.delayed
	}
	if r.auth.set.debugPasswords && result == passOK {
		r.dbDebug("Credentials: %s", hex.EncodeToString(cred))
	}
	if result == passSchemeNotAvailable && r.seenUnknown {
		result = passUserUnknown
	}
	return result, cred
}

// chain asks the passdbs one after the other, as their rules say.
func (r *request) chain(ask func(*database) (passResult, []byte)) (passResult, []byte) {
	if r.loginUser != "" && r.passdb == nil {
		r.mechInfo("Attempted master login with no master passdbs (trying to log in as user: %s)", sanitize(r.loginUser, 128))
		return passUserUnknown, nil
	}
	for {
		db := r.passdb
		for db != nil && r.skipPassdb(db) {
			db = db.next
		}
		r.passdb = db
		if db == nil {
			r.mechError("All password databases were skipped")
			return passInternalFailure, nil
		}
		r.beginLookup(db)
		var cred []byte
		result := passInternalFailure
		if err := db.defaults.apply(r, r.setField); err != nil {
			r.dbError("Failed to expand default_fields: %s", err)
		} else {
			result, cred = ask(db)
			if result == passOK && r.extra.has("noauthenticate") {
				result = passNext
			}
		}
		if err := db.overrides.apply(r, r.setField); err != nil {
			r.dbError("Failed to expand override_fields: %s", err)
			result = passInternalFailure
		}
		result, done := r.passdbDone(db, result)
		if done {
			return result, cred
		}
		if r.skipPassword && r.delayed == nil && len(cred) > 0 {
			r.delayed = cred
		}
	}
}

// passdbDone applies the rules of db to its result. done: there is no next one to ask.
func (r *request) passdbDone(db *database, result passResult) (_ passResult, done bool) {
	r.endLookup()
	if db.set.deny && result != passUserUnknown {
		if result != passInternalFailure {
			r.dbInfo("User found from deny passdb")
			result = passUserDisabled
		}
		return result, true
	}
	if r.failed {
		// Some field said no. The next passdb may still say yes.
		if result == passOK {
			result = passUserUnknown
		}
		r.failed = false
	}
	var todo rule
	switch result {
	case passUserDisabled:
		return result, true
	case passExpired:
		r.setField("reason", "Password expired")
		return result, true
	case passOK:
		todo = db.resultSuccess
	case passInternalFailure:
		todo = db.resultInternalFail
	case passNext:
		r.dbDebug("Not performing authentication (noauthenticate set)")
		todo = ruleContinue
	default:
		todo = db.resultFailure
	}
	goOn := false
	switch todo {
	case ruleReturnOK:
		r.passdbSuccess = true
	case ruleReturnFail:
		r.passdbSuccess = false
	case ruleContinue:
		goOn = true
		if result == passOK {
			r.skipPassword = true
		}
	case ruleContinueOK:
		goOn, r.passdbSuccess, r.skipPassword = true, true, true
	case ruleContinueFail:
		goOn, r.passdbSuccess = true, false
	}
	r.extra.remove("nopassword")
	r.extra.remove("noauthenticate")

	next := db.next
	if r.loginUser != "" && result == passOK {
		r.masterLoginFinish()
		// What follows are the passdbs of the user that is logged in to.
		next = nil
		if len(r.auth.passdbs) > 0 {
			next = r.auth.passdbs[0]
		}
	}
	for next != nil && r.skipPassdb(next) {
		next = next.next
	}
	if result == passOK || result == passNext {
		r.extra.snapshot()
		r.userdbReply.snapshot()
		r.keptPrefect = r.prefetchSet
	} else {
		r.extra.rollback()
		r.userdbReply.rollback()
		r.prefetchSet = r.keptPrefect
	}
	switch {
	case goOn && next != nil:
		r.passdb = next
		r.dbPassword, r.hasDBPassword = "", false
		r.seenUnknown = r.seenUnknown || result == passUserUnknown
		r.seenInternal = r.seenInternal || result == passInternalFailure
		return result, false
	case result == passNext:
		r.logError("%sLast passdb had noauthenticate field, cannot authenticate user", r.dbPrefix())
		result = passInternalFailure
	case r.passdbSuccess:
		result = passOK
	case r.seenInternal:
		result = passInternalFailure
	}
	return result, true
}

func (r *request) passwordMissing() passResult {
	if r.skipPassword {
		return passOK // this passdb only adds fields
	}
	r.dbInfo("No password returned (and no nopassword)")
	return passMismatch
}

// checkPassword compares a password with what the passdb has.
func (r *request) checkPassword(plain, stored, scheme string) passResult {
	switch {
	case r.skipPassword:
		return passOK
	case r.passdb.set.deny:
		return passMismatch
	case r.extra.has("nopassword"):
		r.dbDebug("Allowing any password")
		return passOK
	}
	data, err := password.Decode(scheme, stored)
	if errors.Is(err, password.ErrScheme) {
		r.dbError("Unknown scheme %s", scheme)
		return passMismatch
	}
	if err != nil {
		r.dbError("Password data is not valid for scheme %s: %s", scheme, err)
		return passMismatch
	}
	ok, err := r.srv.pool.Verify(r.ctx, scheme, plain, r.original, data)
	switch {
	case err != nil && r.ctx.Err() != nil:
		return passInternalFailure
	case err != nil:
		show := ""
		if r.auth.set.debugPasswords {
			show = " '" + stored + "'"
		}
		r.dbError("Invalid password%s in passdb: %s", show, err)
	case ok:
		return passOK
	default:
		r.logFailure("Password mismatch")
	}
	if r.auth.set.debugPasswords {
		r.dbDebug("%s(%s) != '%s'", scheme, plain, stored)
	}
	return passMismatch
}

// logFailure is the line for "unknown user" and "Password mismatch", with what
// auth_verbose_passwords asks for.
func (r *request) logFailure(text string) {
	set := r.auth.set
	if set.showPassword == "no" {
		r.dbInfo("%s", text)
		return
	}
	text += " "
	if r.hasPassword {
		switch set.showPassword {
		case "plain":
			text += "(given password: " + r.password[:min(len(r.password), set.showLength)] + ")"
		case "sha1":
			sum := sha1.Sum([]byte(r.password))
			h := hex.EncodeToString(sum[:])
			text += "(SHA1 of given password: " + h[:min(len(h), set.showLength)] + ")"
		}
	}
	if r.inUserdb {
		if r.userdb.next != nil {
			text += " - trying the next userdb"
		}
	} else if r.passdb.next != nil {
		text += " - trying the next passdb"
	}
	r.srv.log.Info("%s%s", r.dbPrefix(), text) // whatever auth_verbose says
}

// credentials converts what a passdb has to the scheme that is wanted.
func (r *request) credentials(result passResult, stored, scheme string, ok bool) (passResult, []byte) {
	switch {
	case result != passOK:
		return result, nil
	case r.extra.has("noauthenticate"):
		return passNext, nil
	case ok:
		cred := r.convert(stored, scheme)
		if cred == nil {
			if r.ctx.Err() != nil {
				return passInternalFailure, nil
			}
			return passSchemeNotAvailable, nil
		}
		return passOK, cred
	case r.wanted == "", r.delayed != nil:
		return passOK, nil
	}
	r.dbInfo("Requested %s scheme, but we have a NULL password", r.wanted)
	return passSchemeNotAvailable, nil
}

// convert returns nil if it cannot, and logs why.
func (r *request) convert(stored, scheme string) []byte {
	data, err := password.Decode(scheme, stored)
	if errors.Is(err, password.ErrScheme) {
		r.dbError("Unknown scheme %s", scheme)
		return nil
	}
	if err != nil {
		r.dbError("Password data is not valid for scheme %s: %s", scheme, err)
		return nil
	}
	if data == nil {
		data = []byte{}
	}
	if r.wanted == "" || password.SameScheme(scheme, r.wanted) {
		return data
	}
	if !password.SameScheme(scheme, "PLAIN") {
		show := ""
		if r.auth.set.debugPasswords {
			show = " (input: " + stored + ")"
		}
		r.dbInfo("Requested %s scheme, but we have only %s%s", r.wanted, scheme, show)
		return nil
	}
	if r.auth.set.debugPasswords {
		r.dbDebug("Generating %s from user '%s', password '%s'", r.wanted, r.original, data)
	}
	cred, err := r.srv.pool.Generate(r.ctx, r.wanted, string(data), r.original)
	if err != nil && r.ctx.Err() == nil {
		r.dbError("Requested unknown scheme %s", r.wanted)
	}
	return cred
}

// delay waits until the time that the field delay_until gave.
func (r *request) delay() {
	if d := time.Until(r.delayUntil); d > 0 {
		wait(r.ctx, d)
	}
}

// wait returns after d, or when ctx is done.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
