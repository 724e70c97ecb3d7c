package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	clog "github.com/coredns/coredns/plugin/pkg/log"
	"github.com/miekg/dns"
)

// The example starts as it is, but for its files and ports, and with every line
// that is commented out.
func TestCorefileExample(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", "Corefile.example"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	writeCertificate(t, dir)
	text := strings.NewReplacer(
		"/etc/coredns", dir, "/var/lib/coredns", dir, "localhost:8181", "localhost:0", "localhost:8080", "localhost:0", "localhost:9153", "localhost:0",
	).Replace(string(b))
	everything := strings.NewReplacer(
		"# bind 192.0.2.1 2001:db8::1", "bind 127.0.0.1", "# reconcile", "reconcile", "# max_deletion", "max_deletion", "# fallthrough", "fallthrough",
	).Replace(text)
	if strings.Count(everything, "#") != strings.Count(text, "#")-4 {
		t.Fatal("not every option that is commented out was found")
	}

	clog.Discard()
	dnsserver.Quiet = true
	dnsserver.Port = "0"
	if err := dnsserver.SetDirectives(directives); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"as it is": text, "with everything": everything} {
		t.Run(name, func(t *testing.T) {
			i, err := caddy.Start(caddy.CaddyfileInput{Filepath: "Corefile.example", Contents: []byte(text), ServerTypeName: "dns"})
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = i.Stop()
				for _, err := range i.ShutdownCallbacks() {
					t.Error(err)
				}
			}()
			// There is no such etcd: the node answers, but denies nothing.
			m := new(dns.Msg)
			m.SetQuestion("selector1-spamtrap-dk._domainkey.keys.example.net.", dns.TypeTXT)
			c := dns.Client{Timeout: 10 * time.Second}
			reply, _, err := c.ExchangeContext(t.Context(), m, i.Servers()[0].LocalAddr().String())
			if err != nil || reply.Rcode != dns.RcodeServerFailure {
				t.Errorf("reply %v, %v; want SERVFAIL", reply, err)
			}
		})
	}
}

// writeCertificate writes a client certificate that is its own authority.
func writeCertificate(t *testing.T, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	cert, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"node.crt": {Type: "CERTIFICATE", Bytes: cert}, "ca.crt": {Type: "CERTIFICATE", Bytes: cert}, "node.key": {Type: "PRIVATE KEY", Bytes: der},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
