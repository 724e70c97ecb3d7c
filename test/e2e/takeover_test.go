package e2e_test

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

// oldKey is a key of the installation that is taken over.
type oldKey struct {
	domain, selector string
	signer           crypto.Signer
	state            dkimv1.KeyState
}

// record is what its customer has in DNS, as opendkim-genkey writes it.
func (k oldKey) record(t *testing.T) string {
	t.Helper()
	if public, ok := k.signer.Public().(ed25519.PublicKey); ok {
		return "v=DKIM1; h=sha256; k=ed25519; p=" + base64.StdEncoding.EncodeToString(public)
	}
	der, err := x509.MarshalPKIXPublicKey(k.signer.Public())
	if err != nil {
		t.Fatal(err)
	}
	return "v=DKIM1; h=sha256; k=rsa; p=" + base64.StdEncoding.EncodeToString(der)
}

// opendkim writes an installation of OpenDKIM as they are on Debian: keys in
// /etc/dkimkeys, each with its record beside it, tables in /etc/opendkim.
func opendkim(t *testing.T, root string) []oldKey {
	t.Helper()
	const active, prepared = dkimv1.KeyState_KEY_STATE_ACTIVE, dkimv1.KeyState_KEY_STATE_PREPARED
	keys := []oldKey{
		{"spamtrap.dk", "mail", newRSA(t, 2048), active},
		{"spamtrap.dk", "mail2015", newRSA(t, 2048), prepared},
		{"example.org", "202401", newRSA(t, 2048), active},
		{"news.example.org", "two.labels", newEd25519(t), active},
		{"xn--bcher-kva.example", "default", newEd25519(t), active},
	}
	write := func(path, text string) {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var keyTable, signingTable strings.Builder
	add := func(name, domain, selector, file string) {
		fmt.Fprintf(&keyTable, "%s %s:%s:%s\n", name, domain, selector, file)
	}
	for i, k := range keys {
		dir := "/etc/dkimkeys/" + k.domain + "/"
		form := pemText("PRIVATE KEY", pkcs8(t, k.signer))
		if key, ok := k.signer.(*rsa.PrivateKey); ok && i%2 == 0 {
			form = pemText("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key))
		}
		write(dir+k.selector+".private", form)
		write(dir+k.selector+".txt", fmt.Sprintf("%s._domainkey\tIN\tTXT\t( %q )\n", k.selector, k.record(t)))
		name := k.selector + "._domainkey." + k.domain
		add(name, k.domain, k.selector, dir+k.selector+".private")
		if k.state == active {
			fmt.Fprintf(&signingTable, "*@%s %s\n", k.domain, name)
		}
	}
	write("/etc/dkimkeys/short.private", pemText("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(newRSA(t, 1024))))
	add("short", "short.example", "mail", "/etc/dkimkeys/short.private")
	add("same", "same.example", "mail", "/etc/dkimkeys/spamtrap.dk/mail.private")
	signingTable.WriteString("*@short.example short\n*@same.example same\n")
	write("/etc/opendkim/KeyTable", "# name domain:selector:key\n"+keyTable.String())
	write("/etc/opendkim/SigningTable", signingTable.String())
	write("/etc/opendkim.conf", "Syslog yes\nMode sv\nKeyTable /etc/opendkim/KeyTable # all of them\nSigningTable refile:/etc/opendkim/SigningTable\n")
	return keys
}

func pkcs8(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// An installation of OpenDKIM is taken over. The name server serves the keys that
// customers have in their TXT records, and what the old signer signs verifies by
// them once the TXT records have become CNAMEs.
func TestTakeover(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	keys := opendkim(t, root)
	s := newStandalone(t)
	s.start(t)
	s.ctl(t, "brand", "create", "acme")
	journal := filepath.Join(root, "journal")
	args := []string{"import", "opendkim", "--brand", "acme", "--root", root, "--journal", journal}

	dry := s.run(t, append(args, "--dry-run")...)
	const sums = "5 keys of 6 domains would be taken over (4 ACTIVE, 1 PREPARED); refused: 1 BAD_KEY_SIZE, 1 SAME_KEY\n"
	if dry.Code != 1 || !strings.HasSuffix(dry.Stdout, sums) {
		t.Errorf("the dry run ends with %d:\n%s%s", dry.Code, dry.Stdout, dry.Stderr)
	}
	if out := s.ctl(t, "domain", "list", "acme"); strings.Contains(out, "spamtrap") {
		t.Errorf("the dry run made domains:\n%s", out)
	}

	r := s.run(t, append(args, "--wait")...)
	if r.Code != 1 || !strings.HasPrefix(r.Stdout, "5 keys of 6 domains are taken over (4 ACTIVE, 1 PREPARED)") {
		t.Fatalf("ended with %d:\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	for _, want := range []string{"short.example: refused: RSA key has 1024 bits", "same.example: refused: it is the key of selector mail of spamtrap.dk"} {
		if !strings.Contains(r.Stderr, want) {
			t.Errorf("it does not say %q:\n%s", want, r.Stderr)
		}
	}
	for _, k := range keys {
		got := s.key(t, "acme", k.domain, k.selector)
		if got.GetState() != k.state || got.GetCustody() != dkimv1.KeyCustody_KEY_CUSTODY_SERVICE || !got.GetImported() {
			t.Errorf("%s of %s is %v", k.selector, k.domain, got)
		}
		waitTXT(t, s.dns, got.GetOwnerName(), got.GetRecord())
		checkServed(t, s.dns, got)
		served := strings.Join(mustTXT(t, "udp", s.dns, got.GetOwnerName()), "")
		if _, p, _ := strings.Cut(k.record(t), " p="); !strings.HasSuffix(served, "; p="+p) {
			t.Errorf("%s of %s: served is\n%s\nthe customer has\n%s", k.selector, k.domain, served, k.record(t))
		}
		if err := verify(t, s.dns, s.domain(t, "acme", k.domain), k.selector, k.signer); err != nil {
			t.Errorf("what the old signer signs for %s with %s: %v", k.domain, k.selector, err)
		}
	}
	kept, err := os.ReadFile(journal)
	if err != nil || strings.Count(string(kept), "\n") != 1+len(keys) {
		t.Errorf("the journal is %q, %v", kept, err)
	}

	// What could not be done is mended: nothing else is done again, and the journal goes.
	for _, table := range []string{"etc/opendkim/KeyTable", "etc/opendkim/SigningTable"} {
		table = filepath.Join(root, table)
		text, err := os.ReadFile(table)
		if err != nil {
			t.Fatal(err)
		}
		mended := strings.NewReplacer("short short", "# short", "same same", "# same", "*@short", "# *@short", "*@same", "# *@same").Replace(string(text))
		if err := os.WriteFile(table, []byte(mended), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out := s.ctl(t, args...)
	if !strings.HasPrefix(out, "5 keys of 4 domains are taken over, 5 of them in an earlier run") {
		t.Errorf("again: %s", out)
	}
	if _, err := os.Stat(journal); !os.IsNotExist(err) {
		t.Errorf("the journal is still there: %v", err)
	}
}
