package e2e_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-msgauth/dkim"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/signer"
	"github.com/dkimzone/dkimzone/test/harness"
)

// signerCert is the certificate of a signer.
func (s *standalone) signerCert(t *testing.T, name string) harness.Cert {
	t.Helper()
	pki := filepath.Join(s.dataDir, "pki")
	if r := harness.Run(t, t.TempDir(), harness.Dkimd, nil, "pki", "--dir", pki, "client", name, "signer"); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	return harness.Cert{CA: filepath.Join(pki, "ca.crt"), Cert: filepath.Join(pki, name+".crt"), Key: filepath.Join(pki, name+".key")}
}

// metric is the value of a metric without labels.
func (s *standalone) metric(t *testing.T, name string) float64 {
	t.Helper()
	_, body, err := get(t, "http://"+s.metrics+"/metrics")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut("\n"+body, "\n"+name+" ")
	line, _, _ := strings.Cut(rest, "\n")
	v, err := strconv.ParseFloat(line, 64)
	if !found || err != nil {
		t.Fatalf("metric %s: %q, %v", name, line, err)
	}
	return v
}

const mail = "From: Joe <joe@spamtrap.dk>\r\nTo: Jane <jane@example.com>\r\nSubject: Is dinner ready?\r\nDate: Fri, 11 Jul 2003 21:00:37 -0700\r\n" +
	"Message-ID: <20030712040037.46341.5F8J@football.example.com>\r\n\r\nHi.\r\n\r\nWe lost the game. Are you hungry yet?\r\n\r\nJoe.\r\n"

// signed is the message with the signatures that it is to have.
func signed(c *signer.Client) (message string, keys []*signer.Key, err error) {
	err = c.Sign(context.Background(), "spamtrap.dk", func(a signer.Answer) error {
		message, keys = mail, a.Keys
		for _, k := range a.Keys {
			var out bytes.Buffer
			err := dkim.Sign(&out, strings.NewReader(message), &dkim.SignOptions{
				Domain: k.Domain, Selector: k.Selector, Signer: k,
				HeaderCanonicalization: dkim.CanonicalizationRelaxed, BodyCanonicalization: dkim.CanonicalizationRelaxed,
				HeaderKeys: []string{"From", "To", "Subject", "Date", "Message-ID"},
			})
			if err != nil {
				return err
			}
			message = out.String()
		}
		if len(a.Keys) == 0 {
			return fmt.Errorf("no key signs: %s", a.Reason)
		}
		return nil
	})
	return message, keys, err
}

// verifyMail verifies a message's only signature through DNS.
func verifyMail(t testing.TB, dns, message string) *dkim.Verification {
	t.Helper()
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, dns)
	}}
	v, err := dkim.VerifyWithOptions(strings.NewReader(message), &dkim.VerifyOptions{
		LookupTXT: func(name string) ([]string, error) { return resolver.LookupTXT(context.Background(), name+".") },
	})
	if err != nil || len(v) != 1 {
		t.Fatalf("%d signatures: %v", len(v), err)
	}
	return v[0]
}

// Mail is signed through the Go client, by dkimd and with a key that dkimd hands
// out, and go-msgauth verifies it with what the name server serves.
func TestSigning(t *testing.T) {
	t.Parallel()
	s := newStandalone(t)
	s.start(t, "--allow-key-fetch", "mx1", "--allow-key-fetch", "mx1.local")
	s.ctl(t, "brand", "create", "acme")
	tlsConfig := tlsConfig(t, s.signerCert(t, "mx1"))
	clients := make(map[string]*signer.Client)
	for name, o := range map[string]signer.Options{
		"remote": {}, "watching": {Watch: true},
		"local": {Watch: true, Local: true, Register: &signer.Registration{Lease: time.Minute}, ReportInterval: time.Second},
	} {
		o.Addresses, o.TLS, o.Brand = []string{harness.Addr(t), s.grpc}, tlsConfig, "acme" // nobody answers at the first
		c, err := signer.New(o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
		ctx, cancel := context.WithTimeout(t.Context(), startLimit)
		defer cancel()
		if err := c.Ready(ctx); err != nil {
			t.Fatal(err)
		}
		clients[name] = c
		if _, _, err := signed(c); err == nil {
			t.Errorf("%s: it signs before anything is proven", name)
		}
	}

	// The brand's default key signs when DNS has shown it for long enough.
	api := s.api(t)
	own := "brands/acme/domains/acme." + zone
	check := func() error {
		_, err := api.CheckDomain(t.Context(), &dkimv1.CheckDomainRequest{Name: own})
		return err
	}
	if err := check(); err != nil {
		t.Fatal(err)
	}
	s.Clock(t).Set(t, 26*time.Hour, 0)
	if err := check(); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, startLimit, "what dkimd knows of what signs is confirmed again", func() error {
		age := s.metric(t, "dkimd_signing_view_age_seconds")
		if age > time.Hour.Seconds() {
			return fmt.Errorf("it is %g s old", age)
		}
		return nil
	})
	var first *signer.Key
	for name, c := range clients {
		harness.Eventually(t, time.Minute, name+" signs", func() error {
			if name == "remote" { // its answer is good for minutes: a new client asks anew
				other, err := signer.New(signer.Options{Addresses: []string{s.grpc}, TLS: tlsConfig, Brand: "acme"})
				if err != nil {
					return err
				}
				defer other.Close()
				_, _, err = signed(other)
				return err
			}
			message, keys, err := signed(c)
			if err != nil {
				return err
			}
			if v := verifyMail(t, s.dns, message); v.Err != nil || v.Domain != "acme."+zone {
				t.Errorf("%s: %+v", name, v)
			}
			first = keys[0]
			return nil
		})
	}

	// A key that is revoked signs nothing any more, and the next one does.
	if _, err := api.RevokeKey(t.Context(), &dkimv1.RevokeKeyRequest{Name: first.Name, Compromised: true}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"watching", "local"} {
		harness.Eventually(t, time.Minute, name+" signs with another key", func() error {
			message, keys, err := signed(clients[name])
			if err != nil || keys[0].Name == first.Name {
				return fmt.Errorf("it goes on with %s: %w", first.Name, err)
			}
			if v := verifyMail(t, s.dns, message); v.Err != nil {
				t.Errorf("%s: %v", name, v.Err)
			}
			return nil
		})
	}
	use, err := api.GetSigner(t.Context(), &dkimv1.GetSignerRequest{Name: "signers/mx1"})
	if err != nil || use.GetBrand() != "brands/acme" {
		t.Errorf("registered: %v, %v", use, err)
	}
}
