package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	gomilter "github.com/emersion/go-milter"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/signer"
	"github.com/dkimzone/dkimzone/test/harness"
)

// newSigning is a standalone in which the default key of brand acme signs.
func newSigning(t *testing.T) *standalone {
	t.Helper()
	s := newStandalone(t)
	s.start(t, "--allow-key-fetch", "mx1")
	s.ctl(t, "brand", "create", "acme")
	api := s.api(t)
	own := &dkimv1.CheckDomainRequest{Name: "brands/acme/domains/acme." + zone}
	for _, later := range []time.Duration{0, 26 * time.Hour} {
		if later > 0 {
			s.Clock(t).Set(t, later, 0)
		}
		if _, err := api.CheckDomain(t.Context(), own); err != nil {
			t.Fatal(err)
		}
	}
	tlsConfig := tlsConfig(t, s.signerCert(t, "mx1"))
	harness.Eventually(t, time.Minute, "the default key signs", func() error {
		c, err := signer.New(signer.Options{Addresses: []string{s.grpc}, TLS: tlsConfig, Brand: "acme"}) // another remembers for seconds
		if err != nil {
			return err
		}
		defer c.Close()
		_, _, err = signed(c)
		return err
	})
	return s
}

// certFlags are for a program that shows a certificate.
func certFlags(c harness.Cert) []string {
	return []string{"--tls-ca", c.CA, "--tls-cert", c.Cert, "--tls-key", c.Key}
}

// startMilter starts dkimd milter for brand acme.
func (s *standalone) startMilter(t *testing.T, listen, metrics string, flags ...string) *harness.Process {
	t.Helper()
	p := harness.Start(t, "dkimd milter", harness.Dkimd, nil, append([]string{
		"milter", "--listen", listen, "--metrics-listen", metrics, "--dkimd", s.grpc, "--brand", "acme",
	}, flags...)...)
	harness.Eventually(t, startLimit, "the milter listens", func() error {
		if err := p.Running(); err != nil {
			return err
		}
		if !strings.Contains(p.Output(), "milter ready") {
			return fmt.Errorf("it wrote %s", p.Output())
		}
		return nil
	})
	return p
}

// filtered is the message as a mail server gets it back.
func filtered(network, address string) (string, error) {
	mta := gomilter.NewClientWithOptions(network, address, gomilter.ClientOptions{
		ActionMask: gomilter.OptAddHeader, ReadTimeout: time.Minute, WriteTimeout: time.Minute,
	})
	defer mta.Close()
	s, err := mta.Session()
	if err != nil {
		return "", err
	}
	defer s.Close()
	if _, err := s.Conn("localhost", gomilter.FamilyInet, 25000, "127.0.0.1"); err != nil {
		return "", err
	}
	if _, err := s.Mail("joe@spamtrap.dk", nil); err != nil {
		return "", err
	}
	header, body, _ := strings.Cut(mail, "\r\n\r\n")
	for line := range strings.SplitSeq(header, "\r\n") {
		name, value, _ := strings.Cut(line, ": ")
		if _, err := s.HeaderField(name, value); err != nil {
			return "", err
		}
	}
	if _, err := s.HeaderEnd(); err != nil {
		return "", err
	}
	changes, a, err := s.BodyReadFrom(bytes.NewReader([]byte(body)))
	if err != nil {
		return "", err
	}
	text := mail
	for _, c := range changes {
		text = c.HeaderName + ": " + strings.ReplaceAll(c.HeaderValue, "\n", "\r\n") + "\r\n" + text
	}
	if a.Code != gomilter.ActAccept || text == mail {
		return "", fmt.Errorf("reply %c, %d changes", a.Code, len(changes))
	}
	return text, nil
}

// dkimd milter signs with keys in dkimd and with private keys that it is handed out,
// with a certificate and with a token, at a port and at a Unix socket.
func TestMilter(t *testing.T) {
	t.Parallel()
	s := newSigning(t)
	cert := certFlags(s.signerCert(t, "mx1"))
	var made dkimv1.Token
	s.read(t, &made, "token", "create", "--role", "signer", "--subject", "mx1")
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(made.GetSecret()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	token := []string{"--tls-ca", s.admin().CA, "--token-file", file}
	for _, tt := range []struct {
		name  string
		flags []string
	}{
		{"remote", cert},
		{"local", append([]string{"--mode", "local"}, cert...)},
		{"remote, token", token},
		{"local, token", append([]string{"--mode", "local"}, token...)},
	} {
		network, address, listen := "tcp", harness.Addr(t), ""
		if listen = address; strings.HasPrefix(tt.name, "local") {
			network, address = "unix", filepath.Join(t.TempDir(), "milter.sock")
			listen = "unix:" + address
		}
		metrics := harness.Addr(t)
		p := s.startMilter(t, listen, metrics, tt.flags...)
		harness.Eventually(t, time.Minute, tt.name+" signs", func() error {
			text, err := filtered(network, address)
			if err != nil {
				return fmt.Errorf("%w: %s", err, p.Output())
			}
			v := verifyMail(t, s.dns, text)
			if v.Err != nil || v.Domain != "acme."+zone {
				t.Errorf("%s: %+v in\n%s", tt.name, v, text)
			}
			return nil
		})
		if status, body, _ := get(t, "http://"+metrics+"/readyz"); status != 200 || body != "signing: ok\n" {
			t.Errorf("%s: /readyz says %d %q", tt.name, status, body)
		}
		_, body, _ := get(t, "http://"+metrics+"/metrics")
		if !strings.Contains(body, "\n"+`dkimd_milter_messages_total{outcome="signed",reason=""} 1`+"\n") ||
			strings.Contains(body, "\ndkimd_milter_keys_age_seconds ") != (network == "unix") || strings.Contains(body, made.GetSecret()) {
			t.Errorf("%s: /metrics says\n%s", tt.name, body)
		}
		if strings.Contains(p.Output(), made.GetSecret()) {
			t.Errorf("%s: the token is in the log", tt.name)
		}
		stop(t, p)
	}

	// Long after its start dkimd still knows that nothing is missing.
	age := regexp.MustCompile(`(?m)^dkimd_signing_view_age_seconds ([0-4]\.|[0-9.]+e-)`)
	harness.Eventually(t, time.Minute, "the view of what signs is confirmed", func() error {
		_, body, err := get(t, "http://"+s.metrics+"/metrics")
		if err == nil && !age.MatchString(body) {
			err = errors.New(regexp.MustCompile(`(?m)^dkimd_signing_view_age_seconds .*`).FindString(body))
		}
		return err
	})

	// Without dkimd it says that it cannot sign, and lives.
	metrics := harness.Addr(t)
	p := s.startMilter(t, harness.Addr(t), metrics, token...)
	s.ctl(t, "token", "revoke", path.Base(made.GetName()), "--yes")
	harness.Eventually(t, time.Minute, "it is refused", func() error {
		status, body, _ := get(t, "http://"+metrics+"/readyz")
		if status != 503 || !strings.Contains(body, "signing: signer: refused") {
			return fmt.Errorf("/readyz says %d %q", status, body)
		}
		return nil
	})
	if status, _, _ := get(t, "http://"+metrics+"/healthz"); status != 200 {
		t.Errorf("/healthz says %d", status)
	}
	stop(t, p)
}

// dkimd milter says what is wrong with its flags.
func TestMilterFlags(t *testing.T) {
	t.Parallel()
	for want, flags := range map[string]string{
		"--dkimd (or DKIMD_DKIMD) is needed":      "",
		"--tls-ca (or DKIMD_TLS_CA) is needed":    "--dkimd localhost:9443",
		"--tls-cert and --tls-key go together":    "--dkimd localhost:9443 --tls-ca ca --tls-cert c",
		"or --token-file is needed":               "--dkimd localhost:9443 --tls-ca ca",
		`"mars" is neither an address nor a CIDR`: "--internal-host mars",
	} {
		r := harness.Run(t, t.TempDir(), harness.Dkimd, nil, append([]string{"milter"}, strings.Fields(flags)...)...)
		if r.Code != 1 || !strings.Contains(r.Stderr, want) {
			t.Errorf("%q: code %d, %s", flags, r.Code, r.Stderr)
		}
	}
}
