package pki_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dkimzone/dkimzone/internal/pki"
)

var now = time.Now().Truncate(time.Second)

const day = 24 * time.Hour

func ensureCA(t *testing.T, dir string, at time.Time) *pki.CA {
	t.Helper()
	ca, err := pki.EnsureCA(dir, at)
	if err != nil {
		t.Fatalf("EnsureCA: %v", err)
	}
	return ca
}

func parse(t *testing.T, certFile string) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(read(t, certFile))
	if block == nil {
		t.Fatalf("%s holds no PEM", certFile)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func write(t *testing.T, file, data string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(file, []byte(data), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, mode); err != nil {
		t.Fatal(err)
	}
}

func checkMode(t *testing.T, path string, want os.FileMode) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != want {
		t.Errorf("mode of %s is %04o, want %04o", filepath.Base(path), got, want)
	}
}

func TestEnsureCA(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data", "pki")
	ca := ensureCA(t, dir, now)
	cert := parse(t, ca.CertFile())
	if !cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		t.Errorf("certificate is no CA: IsCA %v, key usage %b", cert.IsCA, cert.KeyUsage)
	}
	if public, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || public.Curve != elliptic.P256() {
		t.Errorf("public key is %T, want ECDSA P-256", cert.PublicKey)
	}
	if left := cert.NotAfter.Sub(now); left != 10*365*day {
		t.Errorf("certificate lives for %v, want ten years", left)
	}
	checkMode(t, dir, 0o700)
	checkMode(t, filepath.Join(dir, "ca.key"), 0o600)
	checkMode(t, filepath.Join(dir, "ca.crt"), 0o644)

	before := [][]byte{read(t, filepath.Join(dir, "ca.crt")), read(t, filepath.Join(dir, "ca.key"))}
	ensureCA(t, dir, now.Add(3*365*day))
	after := [][]byte{read(t, filepath.Join(dir, "ca.crt")), read(t, filepath.Join(dir, "ca.key"))}
	if !slices.EqualFunc(before, after, slices.Equal) {
		t.Error("a second EnsureCA changed the files")
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 2 {
		t.Errorf("directory holds %v, want ca.crt and ca.key only", entries)
	}
}

func TestRenewedCAKeepsItsKey(t *testing.T) {
	dir := t.TempDir()
	ca := ensureCA(t, dir, now)
	old := parse(t, ca.CertFile())
	oldLeafFile, _, err := ca.EnsureServer("old", []string{"a.example"}, now)
	if err != nil {
		t.Fatal(err)
	}
	oldLeaf := parse(t, oldLeafFile)

	later := now.Add(8 * 365 * day)
	ca = ensureCA(t, dir, later)
	renewed := parse(t, ca.CertFile())
	if !renewed.NotAfter.After(old.NotAfter) {
		t.Fatalf("CA expires %v, as before, want it renewed at %v", renewed.NotAfter, later)
	}
	newLeafFile, _, err := ca.EnsureServer("new", []string{"a.example"}, later)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		root *x509.Certificate
		leaf *x509.Certificate
		at   time.Time
	}{
		{"old leaf with the new CA", renewed, oldLeaf, now.Add(100 * day)},
		{"new leaf with the old CA", old, parse(t, newLeafFile), later},
		{"new leaf with the new CA", renewed, parse(t, newLeafFile), later},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			roots := x509.NewCertPool()
			roots.AddCert(tt.root)
			// The renewed CA certificate itself begins later than the old leaf.
			at := tt.at
			if at.Before(tt.root.NotBefore) {
				if tt.leaf.CheckSignatureFrom(tt.root) != nil {
					t.Error("signature does not verify")
				}
				return
			}
			if _, err := tt.leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: at, DNSName: "a.example"}); err != nil {
				t.Errorf("Verify: %v", err)
			}
		})
	}
}

func TestEnsureCAMendsAnInterruptedStart(t *testing.T) {
	dir := t.TempDir()
	ca := ensureCA(t, dir, now)
	key := read(t, filepath.Join(dir, "ca.key"))
	if err := os.Remove(ca.CertFile()); err != nil {
		t.Fatal(err)
	}
	ensureCA(t, dir, now)
	if !slices.Equal(key, read(t, filepath.Join(dir, "ca.key"))) {
		t.Error("the key was replaced")
	}
}

func TestEnsureCAErrors(t *testing.T) {
	other := t.TempDir()
	ensureCA(t, other, now)
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, "", 0o600)
	tests := []struct {
		name   string
		damage func(t *testing.T, dir string) (use string)
		want   string
	}{
		{"directory is a file", func(*testing.T, string) string { return file }, file},
		{"directory below a file", func(*testing.T, string) string { return filepath.Join(file, "pki") }, file},
		{"key is missing", func(t *testing.T, dir string) string {
			if err := os.Remove(filepath.Join(dir, "ca.key")); err != nil {
				t.Fatal(err)
			}
			return dir
		}, "ca.key is missing"},
		{"key is readable by the group", func(t *testing.T, dir string) string {
			if err := os.Chmod(filepath.Join(dir, "ca.key"), 0o640); err != nil {
				t.Fatal(err)
			}
			return dir
		}, "chmod 600"},
		{"key is not a key", func(t *testing.T, dir string) string {
			write(t, filepath.Join(dir, "ca.key"), "hunter2", 0o600)
			return dir
		}, "holds no ECDSA private key"},
		{"certificate is not a certificate", func(t *testing.T, dir string) string {
			write(t, filepath.Join(dir, "ca.crt"), "nonsense", 0o644)
			return dir
		}, "no PEM certificate"},
		{"certificate of another key", func(t *testing.T, dir string) string {
			write(t, filepath.Join(dir, "ca.crt"), string(read(t, filepath.Join(other, "ca.crt"))), 0o644)
			return dir
		}, "is not the certificate of the key"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			ensureCA(t, dir, now)
			_, err := pki.EnsureCA(tt.damage(t, dir), now)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("EnsureCA: %v, want an error with %q", err, tt.want)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("error %q shows the contents of the key file", err)
			}
		})
	}
}

func TestUnwritableDirectory(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may write everywhere")
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	if _, err := pki.EnsureCA(dir, now); !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), dir) {
		t.Errorf("EnsureCA: %v, want a permission error that names %s", err, dir)
	}
}

// Two processes may start for the first time at once.
func TestEnsureCAConcurrently(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	certs := make([]*x509.Certificate, 8)
	for i := range certs {
		wg.Go(func() {
			ca, err := pki.EnsureCA(dir, now)
			if err != nil {
				t.Errorf("EnsureCA: %v", err)
				return
			}
			certFile, _, err := ca.EnsureClient("client-"+string(rune('a'+i)), pki.Identity{Role: "admin", Name: "x"}, now)
			if err != nil {
				t.Errorf("EnsureClient: %v", err)
				return
			}
			block, _ := pem.Decode(read(t, certFile))
			certs[i], _ = x509.ParseCertificate(block.Bytes)
		})
	}
	wg.Wait()
	root := parse(t, filepath.Join(dir, "ca.crt"))
	for i, cert := range certs {
		if cert == nil {
			t.Errorf("client %d has no certificate", i)
		} else if err := cert.CheckSignatureFrom(root); err != nil {
			t.Errorf("client %d: %v", i, err)
		}
	}
}

func TestLeafContents(t *testing.T) {
	dir := t.TempDir()
	ca := ensureCA(t, dir, now)
	client, clientKey, err := ca.EnsureClient("admin-cert", pki.Identity{Role: "admin", Name: "alice"}, now)
	if err != nil {
		t.Fatal(err)
	}
	checkMode(t, clientKey, 0o600)
	cert := parse(t, client)
	if cert.Subject.CommonName != "alice" || len(cert.URIs) != 1 || cert.URIs[0].String() != "spiffe://dkimzone/role/admin/alice" {
		t.Errorf("client certificate has CN %q and URIs %v", cert.Subject.CommonName, cert.URIs)
	}
	if got := cert.ExtKeyUsage; !slices.Equal(got, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) {
		t.Errorf("client certificate has usages %v", got)
	}
	if life := cert.NotAfter.Sub(cert.NotBefore); life != 398*day {
		t.Errorf("client certificate lives for %v, want 398 days", life)
	}
	if !cert.NotBefore.Before(now) {
		t.Errorf("client certificate begins %v, want it before %v for clocks that are behind", cert.NotBefore, now)
	}

	server, serverKey, err := ca.EnsureServer("server", []string{"dkim.example", "127.0.0.1", "::1"}, now)
	if err != nil {
		t.Fatal(err)
	}
	checkMode(t, serverKey, 0o600)
	cert = parse(t, server)
	if !slices.Equal(cert.DNSNames, []string{"dkim.example"}) || len(cert.IPAddresses) != 2 {
		t.Errorf("server certificate is for %v and %v", cert.DNSNames, cert.IPAddresses)
	}
	if got := cert.ExtKeyUsage; !slices.Equal(got, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}) {
		t.Errorf("server certificate has usages %v", got)
	}

	peer, _, err := ca.EnsurePeer("etcd1", []string{"127.0.0.1"}, now)
	if err != nil {
		t.Fatal(err)
	}
	if got := parse(t, peer).ExtKeyUsage; len(got) != 2 {
		t.Errorf("peer certificate has usages %v, want server and client", got)
	}
}

func TestLeafDoesNotOutliveTheCA(t *testing.T) {
	dir := t.TempDir()
	ca := ensureCA(t, dir, now)
	end := parse(t, ca.CertFile()).NotAfter
	certFile, _, err := ca.EnsureServer("server", []string{"a.example"}, end.Add(-10*day))
	if err != nil {
		t.Fatal(err)
	}
	if got := parse(t, certFile).NotAfter; !got.Equal(end) {
		t.Errorf("certificate ends %v, want %v as the CA", got, end)
	}
}

func TestLeafIsReissuedWhenNeeded(t *testing.T) {
	hosts := []string{"a.example", "10.0.0.1"}
	tests := []struct {
		name    string
		hosts   []string
		after   time.Duration
		change  func(t *testing.T, certFile, keyFile string)
		reissue bool
	}{
		{name: "nothing changed", hosts: hosts},
		{name: "hosts in another order", hosts: []string{"10.0.0.1", "a.example"}},
		{name: "two thirds of its life, almost", hosts: hosts, after: 265 * day},
		{name: "a third of its life is left", hosts: hosts, after: 266 * day, reissue: true},
		{name: "expired", hosts: hosts, after: 500 * day, reissue: true},
		{name: "clock was ahead when it was made", hosts: hosts, after: -2 * time.Hour, reissue: true},
		{name: "a host more", hosts: append([]string{"b.example"}, hosts...), reissue: true},
		{name: "a host less", hosts: hosts[:1], reissue: true},
		{name: "another address", hosts: []string{"a.example", "10.0.0.2"}, reissue: true},
		{name: "key lost", hosts: hosts, reissue: true, change: func(t *testing.T, _, keyFile string) {
			if err := os.Remove(keyFile); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "key readable by others", hosts: hosts, reissue: true, change: func(t *testing.T, _, keyFile string) {
			if err := os.Chmod(keyFile, 0o644); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "certificate cut short", hosts: hosts, reissue: true, change: func(t *testing.T, certFile, _ string) {
			write(t, certFile, string(read(t, certFile)[:100]), 0o644)
		}},
		{name: "key of another certificate", hosts: hosts, reissue: true, change: func(t *testing.T, _, keyFile string) {
			write(t, keyFile, string(read(t, filepath.Join(filepath.Dir(keyFile), "ca.key"))), 0o600)
		}},
		{name: "certificate of another CA", hosts: hosts, reissue: true, change: func(t *testing.T, certFile, keyFile string) {
			foreignCert, foreignKey, err := ensureCA(t, t.TempDir(), now).EnsureServer("server", hosts, now)
			if err != nil {
				t.Fatal(err)
			}
			write(t, certFile, string(read(t, foreignCert)), 0o644)
			write(t, keyFile, string(read(t, foreignKey)), 0o600)
		}},
		{name: "a client certificate in its place", hosts: hosts, reissue: true, change: func(t *testing.T, certFile, keyFile string) {
			clientCert, clientKey, err := ensureCA(t, filepath.Dir(certFile), now).EnsureClient("c", pki.Identity{Role: "admin", Name: "server"}, now)
			if err != nil {
				t.Fatal(err)
			}
			write(t, certFile, string(read(t, clientCert)), 0o644)
			write(t, keyFile, string(read(t, clientKey)), 0o600)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			ca := ensureCA(t, dir, now)
			certFile, keyFile, err := ca.EnsureServer("server", hosts, now)
			if err != nil {
				t.Fatal(err)
			}
			before, keyBefore := parse(t, certFile), read(t, keyFile)
			if tt.change != nil {
				tt.change(t, certFile, keyFile)
			}
			if _, _, err := ca.EnsureServer("server", tt.hosts, now.Add(tt.after)); err != nil {
				t.Fatalf("second EnsureServer: %v", err)
			}
			after := parse(t, certFile)
			if reissued := !after.Equal(before); reissued != tt.reissue {
				t.Errorf("reissued: %v, want %v", reissued, tt.reissue)
			}
			if tt.reissue && slices.Equal(keyBefore, read(t, keyFile)) {
				t.Error("the new certificate has the old key")
			}
			checkMode(t, keyFile, 0o600)
		})
	}
}

func TestLeafArgumentErrors(t *testing.T) {
	ca := ensureCA(t, t.TempDir(), now)
	server := func(name string, hosts ...string) func() (string, string, error) {
		return func() (string, string, error) { return ca.EnsureServer(name, hosts, now) }
	}
	client := func(name, role, holder string) func() (string, string, error) {
		return func() (string, string, error) {
			return ca.EnsureClient(name, pki.Identity{Role: role, Name: holder}, now)
		}
	}
	tests := []struct {
		name string
		call func() (string, string, error)
	}{
		{"no host", server("server")},
		{"empty host", server("server", "")},
		{"host with a port", server("server", "a.example:443")},
		{"host with a space", server("server", "a example")},
		{"wildcard", server("server", "*.example")},
		{"address with a zone", server("server", "fe80::1%eth0")},
		{"peer without a host", func() (string, string, error) { return ca.EnsurePeer("etcd", nil, now) }},
		{"the CA's own name", server("ca", "a.example")},
		{"name with a slash", server("../server", "a.example")},
		{"empty name", server("", "a.example")},
		{"role with a slash", client("c", "admin/x", "alice")},
		{"no role", client("c", "", "alice")},
		{"no holder", client("c", "admin", "")},
		{"holder in upper case", client("c", "admin", "Alice")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if certFile, _, err := tt.call(); err == nil {
				t.Errorf("got %s, want an error", certFile)
			}
		})
	}
}
