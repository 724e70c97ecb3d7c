//go:build interop

package interop_test

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-msgauth/dkim"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/test/harness"
	"github.com/dkimzone/dkimzone/test/mta"
)

const vaultMessage = "From: Jo <jo@%s>\r\nTo: someone@example.com\r\nSubject: read from a vault\r\n" +
	"Date: Sun, 22 Nov 2026 08:00:00 +0000\r\nMessage-ID: <1@%[1]s>\r\n\r\nHello.\r\n"

// TestVault lets an rspamd sign that reads its keys from dkimd as from a Vault,
// and verifies through the customers' CNAMEs.
func TestVault(t *testing.T) {
	const rsa, ed = dkimv1.KeyAlgorithm_KEY_ALGORITHM_RSA_2048, dkimv1.KeyAlgorithm_KEY_ALGORITHM_ED25519
	all := []*sender{
		{brand: "acme", name: "rsa.dk"},
		{brand: "acme", name: "ed.dk", specs: specs(ed, "ed1", "ed2")},
		{brand: "acme", name: "both.dk", specs: append(specs(rsa, "rsa1", "rsa2"), specs(ed, "ed1", "ed2")...)},
	}
	site := newLifeSite(t, []string{"rsa.dk", "ed.dk", "both.dk"})
	l := &life{t: t, lifeSite: site, all: all, post: &post{t: t, site: site, lastUse: make(map[string]time.Time)}}
	l.provision()

	addr := mta.StartRspamd(t, site.resolver, "", mta.RspamdSigner("dkim_signing", vaultSettings(t, site.dkimd[0].http, l.signerToken("rspamd"))))
	begin := time.Now()
	for _, s := range all {
		l.waitSigning(t.Context(), s, "is signed with keys of its own", 5*time.Minute, ownKey)
	}
	t.Logf("all domains sign after %s", time.Since(begin).Round(time.Second))
	l.importSlash()

	for domain, want := range map[string]int{"rsa.dk": 1, "ed.dk": 1, "both.dk": 2, "slash.dk": 1} {
		message := fmt.Sprintf(vaultMessage, domain)
		var found mta.RspamdResult
		harness.Eventually(t, limit, "rspamd signs for "+domain, func() (err error) {
			found, err = mta.AskRspamd(t.Context(), addr, mta.Submitted, message)
			if n := len(found.Signatures); err == nil && n != want {
				err = fmt.Errorf("%d signatures, want %d", n, want)
			}
			return err
		})
		results, err := dkim.VerifyWithOptions(strings.NewReader(found.Add(message)), &dkim.VerifyOptions{
			LookupTXT: func(name string) ([]string, error) {
				if name == "s1._domainkey.slash.dk" { // its customer has no DNS here
					name = "s1-slash-dk._domainkey." + zone
				}
				return site.lookup(t.Context(), name)
			},
		})
		if err != nil || len(results) != want {
			t.Fatalf("%s: %d results: %v", domain, len(results), err)
		}
		for _, r := range results {
			if r.Err != nil || r.Domain != domain {
				t.Errorf("%s: signature of %s: %v", domain, r.Domain, r.Err)
			}
		}
	}
	if r, err := mta.AskRspamd(t.Context(), addr, mta.Submitted, fmt.Sprintf(vaultMessage, "nobody.dk")); err != nil || len(r.Signatures) > 0 {
		t.Errorf("mail of a domain that nobody has: %d signatures, %v", len(r.Signatures), err)
	}
}

// importSlash imports a key of slash.dk whose seed in base64 begins with a slash,
// which rspamd does not read as it is.
func (l *life) importSlash() {
	l.t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	l.must(err)
	seed := key.Seed()
	seed[0] = 0xff
	l.must(l.call(l.t.Context(), func(ctx context.Context, d *dkimd) error {
		_, err := d.admin.ImportKey(ctx, &dkimv1.ImportKeyRequest{
			Parent: "brands/acme/domains/slash.dk", Selector: "s1", PrivateKey: base64.StdEncoding.EncodeToString(seed), InUse: true,
		})
		return err
	}))
}

// vaultSettings are those of docs/signers.md for an rspamd that reads keys as from a
// Vault.
func vaultSettings(t *testing.T, address, token string) string {
	t.Helper()
	return documented(t, "use_vault", "dkimd1.example.net:9080", address, "dkz_…", token)
}

// documented is the block of docs/signers.md that has a word, with the values of
// this test in place of its own, given one after the other.
func documented(t *testing.T, word string, values ...string) string {
	t.Helper()
	doc, err := os.ReadFile("../../docs/signers.md")
	if err != nil {
		t.Fatal(err)
	}
	for i, block := range strings.Split(string(doc), "\n```") {
		if _, text, _ := strings.Cut(block, "\n"); i%2 == 1 && strings.Contains(text, word) {
			for j := 0; j < len(values); j += 2 {
				if !strings.Contains(text, values[j]) {
					t.Fatalf("docs/signers.md has %s without %s:\n%s", word, values[j], text)
				}
			}
			return strings.NewReplacer(values...).Replace(text) + "\n"
		}
	}
	t.Fatalf("docs/signers.md has no block with %s", word)
	return ""
}
