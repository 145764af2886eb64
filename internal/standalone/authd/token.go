package authd

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"errors"
	"io"
	"io/fs"
	"os"
	"syscall"
)

const (
	tokenSecretName = "auth-token-secret.dat" // below base_dir
	tokenSecretSize = 32
)

// A tokenSecret makes the tokens with which one process of a user's session logs in to
// another. It is kept in a file, so that tokens outlive the auth process.
type tokenSecret [tokenSecretSize]byte

// load reads the secret, or makes one and writes it. It needs the right to do so, which
// the process has before it drops root. Without the file all works until the next start.
func (t *tokenSecret) load(path string, s *Server) {
	err := t.read(path)
	if err == nil {
		return
	}
	if !errors.Is(err, fs.ErrNotExist) {
		s.log.Error("%s", err)
		_ = os.Remove(path) // what cannot be trusted is replaced
	}
	_, _ = rand.Read(t[:]) // never fails
	if err := t.write(path); err != nil {
		s.log.Error("Failed to write auth token secret file; returned tokens will be invalid once auth restarts: %s", err)
	}
}

func (t *tokenSecret) read(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || info.Mode() != 0o600 || int(st.Uid) != os.Geteuid() || st.Nlink != 1 {
		return dovecots("Compromised token secret file: %s", path)
	}
	if info.Size() != tokenSecretSize {
		return dovecots("Corrupted token secret file: %s", path)
	}
	_, err = io.ReadFull(f, t[:])
	return err
}

func (t *tokenSecret) write(path string) error {
	temp := path + ".tmp"
	_ = os.Remove(temp)
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(t[:])
	if err2 := f.Close(); err == nil {
		err = err2
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		_ = os.Remove(temp)
	}
	return err
}

// token is bound to the service, the process, the user and the session.
func (t *tokenSecret) token(service, pid, user, session string) string {
	m := hmac.New(sha1.New, []byte(user))
	for _, s := range []string{pid, session, service} {
		m.Write([]byte(s))
	}
	m.Write(t[:])
	return hexDigits(m.Sum(nil))
}
