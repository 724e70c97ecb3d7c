package harness

import (
	"bufio"
	"path/filepath"
	"strings"
	"testing"
)

// PKI is a certificate authority and what it issued, made by dkimd pki.
type PKI struct{ dir string }

// Cert is the PEM files of a certificate, its private key and its authority.
type Cert struct{ CA, Cert, Key string }

// NewPKI makes an authority.
func NewPKI(tb testing.TB) *PKI {
	tb.Helper()
	return &PKI{dir: filepath.Join(tb.TempDir(), "pki")}
}

// Server issues the certificate of a dkimd.
func (p *PKI) Server(tb testing.TB, name string, hosts ...string) Cert {
	tb.Helper()
	return p.issue(tb, append([]string{"server", name}, hosts...)...)
}

// Peer issues the certificate of an etcd member.
func (p *PKI) Peer(tb testing.TB, name string, hosts ...string) Cert {
	tb.Helper()
	return p.issue(tb, append([]string{"peer", name}, hosts...)...)
}

// Client issues the certificate of a client with a role: admin, or etcd for a
// user of etcd.
func (p *PKI) Client(tb testing.TB, name, role string) Cert {
	tb.Helper()
	return p.issue(tb, "client", name, role)
}

// KEK makes a key-encryption key and returns its URL.
func (p *PKI) KEK(tb testing.TB) string {
	tb.Helper()
	file := filepath.Join(tb.TempDir(), "kek.key")
	p.run(tb, "kek", file)
	return "file://" + file
}

func (p *PKI) issue(tb testing.TB, args ...string) Cert {
	tb.Helper()
	var c Cert
	out := p.run(tb, args...)
	for lines := bufio.NewScanner(strings.NewReader(out)); lines.Scan(); {
		switch fields := strings.Fields(lines.Text()); {
		case len(fields) != 2:
		case fields[0] == "ca":
			c.CA = fields[1]
		case fields[0] == "cert":
			c.Cert = fields[1]
		case fields[0] == "key":
			c.Key = fields[1]
		}
	}
	if c.CA == "" || c.Cert == "" || c.Key == "" {
		tb.Fatalf("dkimd pki %s does not say where the files are:\n%s", strings.Join(args, " "), out)
	}
	return c
}

func (p *PKI) run(tb testing.TB, args ...string) string {
	tb.Helper()
	r := Run(tb, filepath.Dir(p.dir), Dkimd, nil, append([]string{"pki", "--dir", p.dir}, args...)...)
	if r.Code != 0 {
		tb.Fatalf("dkimd pki %s: exit code %d\n%s", strings.Join(args, " "), r.Code, r.Stderr)
	}
	return r.Stdout
}
