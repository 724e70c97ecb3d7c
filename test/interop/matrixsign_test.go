//go:build interop

package interop_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-msgauth/dkim"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/signer"
	"github.com/dkimzone/dkimzone/test/harness"
	"github.com/dkimzone/dkimzone/test/mta"
)

// startSigners starts all of them.
func startSigners(t *testing.T, m *matrix) []signingProgram {
	t.Helper()
	cert := m.etcd.PKI.Client(t, "mx1", "signer")
	return []signingProgram{
		{"Go client", goSigner(t, m, cert)},
		{"rspamd, Vault", vaultSigner(t, m)},
		{"Postfix, milter", postfixSigner(t, m, cert)},
		{"OpenDKIM, agent", openDKIMSigner(t, m)},
		{"Exim, agent", eximSigner(t, m)},
		{"rspamd, agent", rspamdFileSigner(t, m)},
	}
}

// goSigner signs with go-msgauth, and dkimd makes the signatures.
func goSigner(t *testing.T, m *matrix, cert harness.Cert) func(context.Context, string, string) (string, error) {
	t.Helper()
	o := signer.Options{TLS: clientTLS(t, cert)}
	for _, d := range m.dkimd {
		o.Addresses = append(o.Addresses, d.grpc)
	}
	client, err := signer.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	return func(ctx context.Context, domain, message string) (signed string, err error) {
		err = client.Sign(ctx, domain, func(a signer.Answer) error {
			signed = message
			for _, k := range a.Keys {
				var out bytes.Buffer
				if err := dkim.Sign(&out, strings.NewReader(signed), &dkim.SignOptions{
					Domain: k.Domain, Selector: k.Selector, Signer: k,
					HeaderCanonicalization: dkim.CanonicalizationRelaxed, BodyCanonicalization: dkim.CanonicalizationRelaxed,
					HeaderKeys: []string{"From", "To", "Subject", "Date", "Message-ID"},
				}); err != nil {
					return err
				}
				signed = out.String()
			}
			return nil
		})
		return signed, err
	}
}

// vaultSigner is an rspamd that reads its keys as from a Vault.
func vaultSigner(t *testing.T, m *matrix) func(context.Context, string, string) (string, error) {
	t.Helper()
	return rspamdSigner(mta.StartRspamd(t, m.resolver, "", mta.RspamdSigner("dkim_signing", vaultSettings(t, m.dkimd[0].http, m.signerToken("rspamd")))))
}

// rspamdSigner adds the signatures that an rspamd wants messages to have.
func rspamdSigner(addr string) func(context.Context, string, string) (string, error) {
	return func(ctx context.Context, _, message string) (string, error) {
		r, err := mta.AskRspamd(ctx, addr, mta.Submitted, message)
		return r.Add(message), err
	}
}

// signerToken is a token of role signer.
func (l *life) signerToken(subject string) (token string) {
	l.t.Helper()
	l.must(l.call(l.t.Context(), func(ctx context.Context, d *dkimd) error {
		resp, err := d.access.CreateToken(ctx, &dkimv1.CreateTokenRequest{Token: &dkimv1.Token{Role: dkimv1.Role_ROLE_SIGNER, Subject: subject}})
		token = resp.GetSecret()
		return err
	}))
	return token
}

// postfixSigner is a Postfix with dkimd milter.
func postfixSigner(t *testing.T, m *matrix, cert harness.Cert) func(context.Context, string, string) (string, error) {
	t.Helper()
	listen := harness.Addr(t)
	args := []string{"milter", "--listen", listen, "--tls-ca", cert.CA, "--tls-cert", cert.Cert, "--tls-key", cert.Key}
	for _, d := range m.dkimd {
		args = append(args, "--dkimd", d.grpc)
	}
	p := harness.Start(t, "dkimd milter", harness.Dkimd, nil, args...)
	harness.Eventually(t, limit, "the milter listens", func() error {
		if !strings.Contains(p.Output(), "milter ready") {
			return fmt.Errorf("it wrote %s", p.Output())
		}
		return p.Running()
	})
	relay, mails := mta.Sink(t)
	addr := mta.StartPostfix(t, relay, documented(t, "smtpd_milters", "127.0.0.1:8891", listen))
	return through(addr, mails)
}

// through sends a message to a mail server, and is what that sends on.
func through(addr string, mails <-chan string) func(context.Context, string, string) (string, error) {
	return func(ctx context.Context, _, message string) (string, error) {
		c, err := mta.Dial(addr)
		if err != nil {
			return "", err
		}
		defer c.Close()
		code, reply, err := c.Send(message)
		if err == nil && code != 250 {
			err = fmt.Errorf("reply %d %s", code, reply)
		}
		if err != nil {
			return "", err
		}
		timer := time.NewTimer(limit)
		defer timer.Stop()
		select {
		case text := <-mails:
			return text, nil
		case <-timer.C:
			return "", fmt.Errorf("the mail does not come within %v", limit)
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}
