package e2e_test

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-msgauth/dkim"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/test/harness"
)

// startAgent starts dkimd agent.
func (s *standalone) startAgent(t *testing.T, cert harness.Cert, flags ...string) *harness.Process {
	t.Helper()
	return harness.Start(t, "dkimd agent", harness.Dkimd, nil, append([]string{
		"agent", "--metrics-listen", "", "--dkimd", s.grpc, "--tls-ca", cert.CA, "--tls-cert", cert.Cert, "--tls-key", cert.Key,
	}, flags...)...)
}

// tableKey is a line of OpenDKIM's KeyTable.
type tableKey struct{ domain, selector, file string }

// openDKIMKeys are the keys that OpenDKIM would sign mail of a domain with.
func openDKIMKeys(dir, domain string) ([]tableKey, error) {
	signing, err := os.ReadFile(filepath.Join(dir, "SigningTable"))
	if err != nil {
		return nil, err
	}
	keys, err := os.ReadFile(filepath.Join(dir, "KeyTable"))
	if err != nil {
		return nil, err
	}
	table := make(map[string]tableKey)
	for line := range strings.Lines(string(keys)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		part := strings.Split(value, ":")
		if len(part) != 3 {
			return nil, fmt.Errorf("line %q", line)
		}
		table[name] = tableKey{part[0], part[1], part[2]}
	}
	var found []tableKey
	for line := range strings.Lines(string(signing)) {
		pattern, name, _ := strings.Cut(strings.TrimSpace(line), " ")
		k, ok := table[name]
		if !ok {
			return nil, fmt.Errorf("no key %q", name)
		}
		if pattern == "*@"+domain {
			found = append(found, k)
		}
	}
	return found, nil
}

// signFromFile signs as who reads the tables.
func signFromFile(k tableKey) (string, error) {
	data, err := os.ReadFile(k.file)
	if err != nil {
		return "", err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return "", fmt.Errorf("%s is no PEM", k.file)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return "", err
	}
	private, _ := key.(crypto.Signer)
	var out bytes.Buffer
	err = dkim.Sign(&out, strings.NewReader(mail), &dkim.SignOptions{
		Domain: k.domain, Selector: k.selector, Signer: private, HeaderKeys: []string{"From", "Subject"},
	})
	return out.String(), err
}

// agentSigns waits until mail of spamtrap.dk signed by the tables verifies, and by
// another key than that of the file other.
func (s *standalone) agentSigns(t *testing.T, p *harness.Process, dir, other string) tableKey {
	t.Helper()
	var found tableKey
	harness.Eventually(t, time.Minute, "mail is signed by the agent's files", func() error {
		if err := p.Running(); err != nil {
			return err
		}
		keys, err := openDKIMKeys(dir, "spamtrap.dk")
		if err != nil {
			return err
		}
		if len(keys) != 1 || keys[0].file == other {
			return fmt.Errorf("keys %v", keys)
		}
		found = keys[0]
		return nil
	})
	text, err := signFromFile(found)
	if err != nil {
		t.Fatal(err)
	}
	if v := verifyMail(t, s.dns, text); v.Err != nil || v.Domain != "acme."+zone {
		t.Errorf("%+v", v)
	}
	return found
}

// rotate rotates the keys that sign as soon as the agent says that it holds the next.
func (s *standalone) rotate(t *testing.T) {
	t.Helper()
	api := s.api(t)
	harness.Eventually(t, time.Minute, "the agent holds the next key", func() error {
		_, err := api.RotateDomain(t.Context(), &dkimv1.RotateDomainRequest{Name: "brands/acme/domains/acme." + zone})
		return err
	})
}

// rotateUntil has the key after first sign, and waits for it in the files.
func (s *standalone) rotateUntil(t *testing.T, p *harness.Process, dir string, first tableKey) tableKey {
	t.Helper()
	s.rotate(t)
	begin := time.Now()
	second := s.agentSigns(t, p, dir, first.file)
	t.Logf("the files followed after %s", time.Since(begin).Round(time.Millisecond))
	return second
}

// dkimd agent keeps OpenDKIM's tables in step: while keys rotate, domains come and
// go, and dkimd is away.
func TestAgent(t *testing.T) {
	t.Parallel()
	s := newSigning(t)
	s.ctl(t, "domain", "provision", "acme", "spamtrap.dk")
	cert := s.signerCert(t, "mx1")
	home := t.TempDir()
	dir, reloads := filepath.Join(home, "opendkim"), filepath.Join(home, "reloads")
	flags := []string{"--format", "opendkim", "--dir", dir, "--reload-command", "echo >>" + reloads}
	metrics := harness.Addr(t)
	p := s.startAgent(t, cert, append(flags, "--metrics-listen", metrics)...)
	first := s.agentSigns(t, p, dir, "")
	harness.Eventually(t, time.Minute, "the agent is ready", func() error {
		if status, body, _ := get(t, "http://"+metrics+"/readyz"); status != 200 || body != "files: ok\n" {
			return fmt.Errorf("/readyz says %d %s", status, body)
		}
		return nil
	})
	if _, body, _ := get(t, "http://"+metrics+"/metrics"); !strings.Contains(body, "\ndkimd_agent_domains 1\n") || !strings.Contains(body, "\ndkimd_agent_reload_failures_total 0\n") {
		t.Errorf("/metrics says\n%s", body)
	}
	for file, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, "KeyTable"): 0o600, first.file: 0o600, dir + ".cache": 0o700, dir + ".cache.key": 0o600} {
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want mode %v", file, info.Mode(), err, want)
		}
	}

	// The domain rotates when the agent has said that it holds the next key, and
	// not before; the key before stays for the messages that are under way.
	api := s.api(t)
	own := "brands/acme/domains/acme." + zone
	second := s.rotateUntil(t, p, dir, first)
	if _, err := os.Stat(first.file); err != nil {
		t.Errorf("the file of the key before is gone at once: %v", err)
	}
	harness.Eventually(t, time.Minute, "the signer is reloaded and the cache has all", func() error {
		lines, err := os.ReadFile(reloads)
		if err != nil || len(lines) < 2 {
			return fmt.Errorf("%d reloads: %w", len(lines), err)
		}
		return inStep(t, metrics, filepath.Join(dir, "SigningTable"))
	})

	// dkimd goes, and nothing changes; the agent starts anew without it, from its
	// cache, and restores what is missing.
	s.Kill()
	stop(t, p)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	p = s.startAgent(t, cert, flags...)
	if again := openEventually(t, p, dir); again != second {
		t.Errorf("restored %v, want %v", again, second)
	}
	if _, err := signFromFile(second); err != nil {
		t.Error(err)
	}

	// A cache that cannot be read is no reason to fail, or to take anything away.
	stop(t, p)
	damage(t, filepath.Join(dir+".cache", "state"))
	p = s.startAgent(t, cert, flags...)
	harness.Eventually(t, time.Minute, "the agent gives the cache up", func() error {
		if err := p.Running(); err != nil {
			return err
		}
		if !strings.Contains(p.Output(), "the files stay as they are") {
			return errors.New("it does not say so")
		}
		return nil
	})
	if again := openEventually(t, p, dir); again != second {
		t.Errorf("there is %v, want %v", again, second)
	}

	// dkimd is back: it knows who has had the key. A domain comes and one goes.
	s.start(t, "--allow-key-fetch", "mx1")
	s.ctl(t, "domain", "provision", "acme", "other.dk")
	s.ctl(t, "domain", "delete", "acme", "spamtrap.dk", "--yes")
	var active string
	harness.Eventually(t, time.Minute, "there are keys", func() error {
		keys, err := api.ListKeys(t.Context(), &dkimv1.ListKeysRequest{Parent: own})
		for _, k := range keys.GetKeys() {
			if k.GetState() == dkimv1.KeyState_KEY_STATE_ACTIVE {
				active = k.GetName()
			}
		}
		return err
	})
	harness.Eventually(t, time.Minute, "the tables follow", func() error {
		gone, err := openDKIMKeys(dir, "spamtrap.dk")
		if err != nil {
			return err
		}
		there, err := openDKIMKeys(dir, "other.dk")
		if err != nil {
			return err
		}
		if len(gone) != 0 || len(there) != 1 {
			return fmt.Errorf("%v, %v; %s", gone, there, p.Output())
		}
		return nil
	})
	revoked, err := api.RevokeKey(t.Context(), &dkimv1.RevokeKeyRequest{Name: active, Compromised: true})
	if err != nil {
		t.Fatal(err)
	}
	if h := revoked.GetHolders(); len(h) != 1 || h[0].GetSigner() != "signers/mx1" || !h[0].GetHolding() {
		t.Errorf("holders of the key that signed: %v", h)
	}
	harness.Eventually(t, time.Minute, "no key signs", func() error {
		keys, err := openDKIMKeys(dir, "other.dk")
		if err == nil && len(keys) > 0 {
			err = fmt.Errorf("keys %v", keys)
		}
		return err
	})
	stop(t, p)
}

// inStep reports an error until the agent has done all that follows a table.
func inStep(t *testing.T, metrics, table string) error {
	t.Helper()
	_, body, err := get(t, "http://"+metrics+"/metrics")
	if err != nil {
		return err
	}
	_, rest, _ := strings.Cut(body, "\ndkimd_agent_sync_timestamp_seconds ")
	line, _, _ := strings.Cut(rest, "\n")
	seconds, err := strconv.ParseFloat(line, 64)
	if err != nil {
		return err
	}
	info, err := os.Stat(table)
	if err == nil && seconds < float64(info.ModTime().UnixMicro())/1e6 {
		err = fmt.Errorf("in step at %f, the table is of %s", seconds, info.ModTime())
	}
	return err
}

func openEventually(t *testing.T, p *harness.Process, dir string) (found tableKey) {
	t.Helper()
	harness.Eventually(t, time.Minute, "tables are there", func() error {
		if err := p.Running(); err != nil {
			return err
		}
		keys, err := openDKIMKeys(dir, "spamtrap.dk")
		if err == nil && len(keys) != 1 {
			err = fmt.Errorf("keys %v", keys)
		}
		if err == nil {
			found = keys[0]
		}
		return err
	})
	return found
}

// damage changes an octet in the middle of a file.
func damage(t *testing.T, file string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// dkimd agent says what is wrong with its flags, and with directories of others.
func TestAgentFlags(t *testing.T) {
	t.Parallel()
	strange := t.TempDir()
	if err := os.WriteFile(filepath.Join(strange, "main.cf"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cert := harness.NewPKI(t).Client(t, "mx1", "signer")
	with := "--dkimd localhost:9443 --tls-ca " + cert.CA + " --tls-cert " + cert.Cert + " --tls-key " + cert.Key
	for want, flags := range map[string]string{
		"--dkimd (or DKIMD_DKIMD) is needed":                         "",
		"--format (or DKIMD_FORMAT) is needed":                       with,
		`not "sendmail"`:                                             with + " --format sendmail",
		"--dir (or DKIMD_DIR) is needed":                             with + " --format exim",
		"--reload-pid-file or --reload-command is needed: opendkim":  with + " --format opendkim --dir d",
		"--template and --format template go together":               with + " --format exim --dir d --template t.tmpl",
		"either --reload-pid-file or --reload-command, not both":     with + " --format opendkim --dir d --reload-pid-file p --reload-command c",
		"--group: group: unknown group nobody-has-this":              with + " --format exim --dir d --group nobody-has-this",
		"main.cf was there before: choose a directory that is empty": with + " --format exim --dir " + strange,
	} {
		r := harness.Run(t, t.TempDir(), harness.Dkimd, nil, append([]string{"agent"}, strings.Fields(flags)...)...)
		if r.Code != 1 || !strings.Contains(r.Stderr, want) {
			t.Errorf("%q: code %d, %s, want %s", flags, r.Code, r.Stderr, want)
		}
	}
	if files, err := os.ReadDir(strange); err != nil || len(files) != 1 {
		t.Errorf("%v, %v", files, err)
	}
}
