package e2e_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/signer"
	"github.com/dkimzone/dkimzone/test/harness"
)

// Mail of who may not sign waits or goes out as it is, but is never signed. A clock
// that is hours wrong, and a signer that never says that it holds a key, break no
// message.
func TestWrongSigners(t *testing.T) {
	t.Parallel()
	s := newSigning(t)
	s.ctl(t, "brand", "create", "other")
	t.Run("credentials", s.wrongCredentials)
	t.Run("clocks", s.wrongClocks)
	t.Run("silence", s.silentSigner)
}

// wrongCredentials are tried with the Go client and with a milter.
func (s *standalone) wrongCredentials(t *testing.T) {
	ca := filepath.Join(s.dataDir, "pki", "ca.crt")
	token := func(args ...string) string {
		made := &dkimv1.Token{}
		s.read(t, made, append([]string{"token", "create"}, args...)...)
		return made.GetSecret()
	}
	for _, tt := range []struct {
		name, token, brand string
		want               error
	}{
		{"of nobody", token("--role", "signer", "--subject", "x")[:20] + "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "acme", signer.ErrRefused},
		{"of an auditor", token("--role", "auditor"), "acme", signer.ErrRefused},
		{"of another brand", token("--role", "signer", "--subject", "theirs", "--brand", "other"), "acme", signer.ErrRefused},
		{"of another brand, without saying which", token("--role", "signer", "--subject", "theirs", "--brand", "other"), "", signer.ErrUnknownDomain},
	} {
		c, err := signer.New(signer.Options{Addresses: []string{s.grpc}, TLS: trusting(t, ca), Token: tt.token, Brand: tt.brand, Timeout: callLimit})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Keys(t.Context(), "acme."+zone); !errors.Is(err, tt.want) {
			t.Errorf("a token %s: %v, want %v", tt.name, err, tt.want)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		file, listen := filepath.Join(t.TempDir(), "token"), harness.Addr(t)
		if err := os.WriteFile(file, []byte(tt.token), 0o600); err != nil {
			t.Fatal(err)
		}
		p := s.startMilter(t, listen, "", "--tls-ca", ca, "--token-file", file, "--brand", tt.brand)
		text, err := filtered("tcp", listen)
		switch {
		case strings.Contains(text, "DKIM-Signature"):
			t.Errorf("a token %s: the milter signs:\n%s", tt.name, text)
		case tt.want == signer.ErrRefused && (err == nil || !strings.Contains(err.Error(), "reply y")): //nolint:errorlint // of the table
			t.Errorf("a token %s: the milter answers %v, want 451", tt.name, err)
		}
		stop(t, p)
	}
}

// wrongClocks lets a milter in either mode run with a clock that is 26 hours late,
// as newSigning put dkimd's ahead, and then 26 hours ahead.
func (s *standalone) wrongClocks(t *testing.T) {
	for _, mode := range []string{"remote", "local"} {
		listen := harness.Addr(t)
		p := s.startMilter(t, listen, "", append(certFlags(s.signerCert(t, "mx1")), "--mode", mode)...)
		for _, ahead := range []time.Duration{0, 52 * time.Hour} {
			p.Clock(t).Set(t, ahead, 0)
			harness.Eventually(t, time.Minute, "the milter signs", func() error {
				text, err := filtered("tcp", listen)
				if err != nil {
					return fmt.Errorf("%w: %s", err, p.Output())
				}
				if v := verifyMail(t, s.dns, text); v.Err != nil {
					t.Errorf("%s, clock ahead by %s: %v", mode, ahead, v.Err)
				}
				_, tag, _ := strings.Cut(text, " t=")
				number, _, _ := strings.Cut(tag, ";")
				if at, err := strconv.ParseInt(number, 10, 64); err != nil || time.Until(time.Unix(at, 0).Add(-ahead)).Abs() > time.Hour {
					t.Errorf("t=%s, want the milter's time", number)
				}
				if strings.Contains(text, " x=") {
					t.Errorf("a signature that ends:\n%s", text)
				}
				return nil
			})
		}
		stop(t, p)
	}
}

// silentSigner registers a signer that never reports. A rotation waits for it while
// its lease runs, and mail is signed with the old key as long.
func (s *standalone) silentSigner(t *testing.T) {
	own := "brands/acme/domains/acme." + zone
	api := s.api(t)
	silent := dkimv1.NewSignerClient(connect(t, s.grpc, tlsConfig(t, s.signerCert(t, "mute"))))
	if _, err := silent.RegisterSigner(t.Context(), &dkimv1.RegisterSignerRequest{
		Signer: &dkimv1.SignerRegistration{Brand: "brands/acme", LeaseDuration: durationpb.New(24 * time.Hour)},
	}); err != nil {
		t.Fatal(err)
	}
	letter := func() (text string, key string) {
		t.Helper()
		c, err := signer.New(signer.Options{Addresses: []string{s.grpc}, TLS: tlsConfig(t, s.signerCert(t, "mx2")), Brand: "acme"})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		text, keys, err := signed(c)
		if err != nil {
			t.Fatal(err)
		}
		if v := verifyMail(t, s.dns, text); v.Err != nil {
			t.Error(v.Err)
		}
		return text, keys[0].Name
	}
	before, old := letter()
	if _, err := api.RotateDomain(t.Context(), &dkimv1.RotateDomainRequest{Name: own, WhenReady: true}); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, time.Minute, "the rotation waits for the signer", func() error {
		if _, err := api.CheckDomain(t.Context(), &dkimv1.CheckDomainRequest{Name: own}); err != nil {
			return err
		}
		d, err := api.GetDomain(t.Context(), &dkimv1.GetDomainRequest{Name: own})
		if err == nil && !slices.ContainsFunc(d.GetConditions(), func(c *dkimv1.Condition) bool {
			return c.GetReason() == "SIGNER_LACKS_KEY" && strings.Contains(c.GetMessage(), "mute")
		}) {
			err = fmt.Errorf("conditions %v", d.GetConditions())
		}
		return err
	})
	if _, key := letter(); key != old {
		t.Errorf("signed with %s, though a signer does not hold it", key)
	}

	s.Clock(t).Set(t, 51*time.Hour, 0) // its lease is over
	harness.Eventually(t, time.Minute, "another key signs", func() error {
		if _, err := api.CheckDomain(t.Context(), &dkimv1.CheckDomainRequest{Name: own}); err != nil {
			return err
		}
		if _, key := letter(); key == old {
			return errors.New("the old one does")
		}
		return nil
	})
	if v := verifyMail(t, s.dns, before); v.Err != nil {
		t.Errorf("mail signed before the switch: %v", v.Err)
	}
}
