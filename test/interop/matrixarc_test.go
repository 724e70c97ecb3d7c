//go:build interop

package interop_test

import (
	"context"
	"fmt"
	"net"
	"testing"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/test/mta"
)

// arc has an rspamd seal mail with the keys that it reads as from a Vault, and
// verifies the seals. rspamd seals with RSA keys only.
func (m *matrix) arc(t *testing.T, keys map[string][]*dkimv1.SigningKey) {
	t.Helper()
	host, port, err := net.SplitHostPort(m.resolver)
	if err != nil {
		t.Fatal(err)
	}
	addr := mta.StartRspamd(t, m.resolver, "", mta.RspamdSigner("arc", vaultSettings(t, m.dkimd[0].http, m.signerToken("rspamd"))))
	verify := startScript(t, nil, "/usr/bin/python3", "dkimpy.py", host, port, "arc")
	for domain, all := range keys {
		var rsa *dkimv1.SigningKey
		for _, k := range all {
			if k.GetAlgorithm() != dkimv1.KeyAlgorithm_KEY_ALGORITHM_ED25519 {
				rsa = k
			}
		}
		for name, text := range matrixMails(domain) {
			if name == msgBig && domain != bigDomain {
				continue
			}
			sealed, err := arcSealed(t.Context(), addr, text)
			if rsa == nil {
				if err != nil || sealed != "" {
					t.Errorf("%s: %s is sealed without an RSA key, %v", domain, name, err)
				}
				continue
			}
			if err != nil || sealed == "" {
				t.Errorf("%s: %s is not sealed: %v", domain, name, err)
				continue
			}
			chain, err := verify(t.Context(), sealed)
			if err != nil || len(chain) != 1 || !chain[0].Pass || chain[0].Domain != rsa.GetDomain() || chain[0].Selector != rsa.GetSelector() {
				t.Errorf("%s: %s, sealed: %+v, %v", domain, name, chain, err)
			}
			if name == msgPlain {
				if chain, err := verify(t.Context(), tampered(sealed)); err != nil || len(chain) != 1 || chain[0].Pass {
					t.Errorf("%s: %s, sealed and changed: %+v, %v", domain, name, chain, err)
				}
			}
		}
	}
}

// arcSealed is a message with the ARC set that an rspamd wants it to have, or empty
// if it wants none.
func arcSealed(ctx context.Context, addr, message string) (string, error) {
	r, err := mta.AskRspamd(ctx, addr, mta.Submitted, message)
	if err != nil || len(r.Fields) == 0 {
		return "", err
	}
	for _, name := range []string{"ARC-Authentication-Results", "ARC-Message-Signature", "ARC-Seal"} {
		field, ok := r.Fields[name]
		if !ok {
			return "", fmt.Errorf("%s is missing", name)
		}
		message = name + ": " + field + "\r\n" + message
	}
	return message, nil
}
