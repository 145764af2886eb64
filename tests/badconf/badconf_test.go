// Package badconf is the collection of broken configurations that README.md describes.
package badconf

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"flag"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dovetail/internal/conf"
	"dovetail/internal/standalone/command"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write what is said now into NAME.txt")

// Every NAME.conf is loaded as `dovetail check` does; all that is said is NAME.txt.
func TestBadConf(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(".")); err != nil {
		t.Fatal(err)
	}
	pair(t, filepath.Join(dir, "key-other.d"), "cert.pem", "key.pem")
	pair(t, filepath.Join(dir, "key-other.d"), "other-cert.pem", "other-key.pem")
	files, _ := filepath.Glob("*.conf")
	if len(files) < 40 {
		t.Errorf("only %d cases", len(files))
	}
	t.Chdir(dir)
	for _, f := range files {
		name := strings.TrimSuffix(f, ".conf")
		t.Run(name, func(t *testing.T) {
			c, diags := conf.Load(f, conf.Options{Expand: true, Own: true, Resolve: nowhere, User: has, Group: has, Also: command.CheckAuth})
			var got strings.Builder
			if err := conf.Write(&got, c, diags); err != nil {
				t.Fatal(err)
			}
			expected := filepath.Join(here, name+".txt")
			if *update && name != "port-in-use" {
				if err := os.WriteFile(expected, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(expected)
			if err != nil {
				t.Fatal(err)
			}
			text := string(want)
			if strings.HasPrefix(text, "@run ") {
				return // found when it runs: tests/standalone
			}
			if d := cmp.Diff(text, got.String()); d != "" {
				t.Error(d)
			}
			if !diags.HasErrors() {
				t.Error("nothing is wrong")
			}
		})
	}
}

// The system of the cases: these users, no host names.
func has(name string) bool {
	return slices.Contains([]string{"root", "dovecot", "dovenull", "nobody", "nogroup"}, name)
}

func nowhere(context.Context, string) (netip.Addr, error) {
	return netip.Addr{}, errors.New("Name or service not known")
}

// pair makes a certificate and its key.
func pair(t *testing.T, dir, cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mx.example.org"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	der2, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range []struct {
		name, typ string
		der       []byte
	}{{cert, "CERTIFICATE", der}, {key, "PRIVATE KEY", der2}} {
		b := pem.EncodeToMemory(&pem.Block{Type: f.typ, Bytes: f.der})
		if err := os.WriteFile(filepath.Join(dir, f.name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
