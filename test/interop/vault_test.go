//go:build interop

package interop_test

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-msgauth/dkim"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/test/harness"
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

	addr := startRspamd(t, "dkim_signing", vaultSettings(t, site.dkimd[0].http, l.signerToken("rspamd")), site.resolver)
	begin := time.Now()
	for _, s := range all {
		l.waitSigning(t.Context(), s, "is signed with keys of its own", 5*time.Minute, ownKey)
	}
	t.Logf("all domains sign after %s", time.Since(begin).Round(time.Second))
	l.importSlash()

	for domain, want := range map[string]int{"rsa.dk": 1, "ed.dk": 1, "both.dk": 2, "slash.dk": 1} {
		message := fmt.Sprintf(vaultMessage, domain)
		var signatures []string
		harness.Eventually(t, limit, "rspamd signs for "+domain, func() (err error) {
			signatures, err = rspamdSign(t.Context(), addr, message)
			if err == nil && len(signatures) != want {
				err = fmt.Errorf("%d signatures, want %d", len(signatures), want)
			}
			return err
		})
		signed := message
		for _, s := range signatures {
			signed = "DKIM-Signature: " + s + "\r\n" + signed
		}
		results, err := dkim.VerifyWithOptions(strings.NewReader(signed), &dkim.VerifyOptions{
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
	if signatures, err := rspamdSign(t.Context(), addr, fmt.Sprintf(vaultMessage, "nobody.dk")); err != nil || len(signatures) > 0 {
		t.Errorf("mail of a domain that nobody has: %d signatures, %v", len(signatures), err)
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

// startRspamd starts an rspamd with settings of a module that signs, dkim_signing or
// arc, and returns the address of its normal worker.
func startRspamd(t *testing.T, module, settings, resolver string) string {
	t.Helper()
	dir, addr := t.TempDir(), harness.Addr(t)
	host, port, err := net.SplitHostPort(resolver)
	if err != nil {
		t.Fatal(err)
	}
	start(t, "/usr/bin/rspamd", "-f", "--insecure", "--var=DBDIR="+dir, "--var=RUNDIR="+dir, "--var=LOGDIR="+dir,
		"-c", write(t, filepath.Join(dir, "rspamd.conf"), fmt.Sprintf(`options {
    filters = "dkim";
    pidfile = "%[1]s/rspamd.pid";
    dns { nameserver = ["%[2]s:%[3]s:1"]; }
}
logging { type = "console"; level = "info"; }
worker "normal" { bind_socket = "%[4]s"; count = 1; task_timeout = 1min; }
modules { path = "/usr/share/rspamd/plugins/%[5]s.lua"; }
%[5]s {
%[6]s}
`, dir, host, port, addr, module, settings)))
	harness.Eventually(t, limit, "rspamd answers", func() error {
		_, err := rspamdSign(t.Context(), addr, fmt.Sprintf(vaultMessage, "nobody.dk"))
		return err
	})
	return addr
}

// rspamdSign hands a message of an authenticated sender to rspamd, and returns the
// signatures that it wants to be added.
func rspamdSign(ctx context.Context, addr, message string) ([]string, error) {
	doc, err := rspamdCheck(ctx, addr, message)
	if err != nil || doc.Signature == nil {
		return nil, err
	}
	var one string
	if json.Unmarshal(doc.Signature, &one) == nil {
		return []string{one}, nil
	}
	var all []string
	return all, json.Unmarshal(doc.Signature, &all)
}

// rspamdResult is what rspamd says of a message.
type rspamdResult struct {
	Signature json.RawMessage `json:"dkim-signature"` // one, or several
	Milter    struct {
		AddHeaders map[string]struct {
			Value string `json:"value"`
		} `json:"add_headers"`
	} `json:"milter"`
}

func rspamdCheck(ctx context.Context, addr, message string) (doc rspamdResult, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit) // a big message takes long
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/checkv2", strings.NewReader(message))
	if err != nil {
		return doc, err
	}
	req.Header.Set("User", "jo")
	req.Header.Set("IP", "192.0.2.1")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return doc, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return doc, err
	}
	if resp.StatusCode != http.StatusOK {
		return doc, errors.New(resp.Status)
	}
	return doc, json.Unmarshal(body, &doc)
}
