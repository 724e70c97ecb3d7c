//go:build interop

package e2e_test

import (
	"crypto/ed25519"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/emersion/go-msgauth/dkim"
	vaultapi "github.com/hashicorp/vault/api"

	"github.com/dkimzone/dkimzone/signer"
	"github.com/dkimzone/dkimzone/test/harness"
)

// vault is a Vault with a transit engine.
type vault struct {
	*harness.Process // of the last start
	*vaultapi.Client // with the operator's token
	addr, data       string
	cert             harness.Cert
	unsealKey        string
}

// newVault starts a Vault, makes it ready for dkimd as docs/custody.md says, and lets dkimd's
// environment point to it.
func newVault(t *testing.T) *vault {
	t.Helper()
	v := &vault{addr: harness.Addr(t), data: t.TempDir()}
	host, _, err := net.SplitHostPort(v.addr)
	if err != nil {
		t.Fatal(err)
	}
	v.cert = harness.NewPKI(t).Server(t, "vault", host)
	config := vaultapi.DefaultConfig()
	config.Address = "https://" + v.addr
	config.HttpClient.Transport.(*http.Transport).TLSClientConfig = trusting(t, v.cert.CA)
	if v.Client, err = vaultapi.NewClient(config); err != nil {
		t.Fatal(err)
	}
	t.Setenv("VAULT_ADDR", config.Address)
	t.Setenv("VAULT_CACERT", v.cert.CA)
	t.Setenv("VAULT_TOKEN", "")

	v.launch(t)
	first, err := v.Sys().Init(&vaultapi.InitRequest{SecretShares: 1, SecretThreshold: 1})
	if err != nil {
		t.Fatal(err)
	}
	v.unsealKey = first.Keys[0]
	v.SetToken(first.RootToken)
	v.unseal(t)
	if err := v.Sys().Mount("transit", &vaultapi.MountInput{Type: "transit"}); err != nil {
		t.Fatal(err)
	}
	v.write(t, "transit/keys/dkim", nil)
	v.policy(t, "dkim", vaultPolicy(t))
	return v
}

// vaultPolicy is that of docs/custody.md.
func vaultPolicy(t *testing.T) string {
	t.Helper()
	_, text, found := strings.Cut(readFile(t, "../../docs/custody.md"), "```hcl\n")
	text, _, ended := strings.Cut(text, "```")
	if !found || !ended {
		t.Fatal("docs/custody.md has no policy")
	}
	return text
}

// launch starts it. It is sealed then.
func (v *vault) launch(t *testing.T) {
	t.Helper()
	v.Process = harness.Start(t, "vault", harness.Vault, nil, "-listen", v.addr, "-data", v.data, "-cert", v.cert.Cert, "-key", v.cert.Key)
	harness.Eventually(t, startLimit, "Vault answers", func() error {
		if err := v.Running(); err != nil {
			t.Fatal(err)
		}
		conn, err := tls.Dial("tcp", v.addr, trusting(t, v.cert.CA))
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

func (v *vault) unseal(t *testing.T) {
	t.Helper()
	status, err := v.Sys().Unseal(v.unsealKey)
	if err != nil || status.Sealed {
		t.Fatalf("unsealed: %+v, %v", status, err)
	}
	harness.Eventually(t, startLimit, "Vault is active", func() error {
		_, err := v.Sys().ListMounts()
		return err
	})
}

func (v *vault) write(t *testing.T, path string, data map[string]any) {
	t.Helper()
	if _, err := v.Logical().WriteWithContext(deadline(t), path, data); err != nil {
		t.Fatal(err)
	}
}

func (v *vault) policy(t *testing.T, name, rules string) {
	t.Helper()
	if err := v.Sys().PutPolicyWithContext(deadline(t), name, rules); err != nil {
		t.Fatal(err)
	}
}

// token makes a token with a policy only.
func (v *vault) token(t *testing.T, policy string) string {
	t.Helper()
	made, err := v.Auth().Token().CreateOrphan(&vaultapi.TokenCreateRequest{Policies: []string{policy}, NoDefaultPolicy: true, TTL: "1h"})
	if err != nil {
		t.Fatal(err)
	}
	return made.Auth.ClientToken
}

// The key-encryption key is kept by a real Vault: what its operator may do to it, and what
// dkimd makes of that.
func TestVaultTransit(t *testing.T) {
	v := newVault(t)
	v.policy(t, "wrap-only", `path "transit/encrypt/dkim" { capabilities = ["update"] }`)
	tokenFile := filepath.Join(t.TempDir(), "token")
	have := func(token string) {
		t.Helper()
		if err := os.WriteFile(tokenFile, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	url := func(key, more string) string { return "hashivault://" + key + "?token_file=" + tokenFile + more }
	s := newStandalone(t)

	// A new installation says before its first key that it could not keep it.
	refused := func(kek string, want ...string) {
		t.Helper()
		line := s.fails(t, "--kek-url", kek)
		checkLine(t, line, append(want, "key-encryption key", "hashivault://")...)
		if strings.Contains(line, "hvs.") {
			t.Errorf("it shows the token: %s", line)
		}
	}
	good := v.token(t, "dkim")
	have("hvs.wrong")
	refused(url("dkim", ""), "403", "permission denied", "transit/encrypt/dkim", "token has expired or is wrong")
	have(v.token(t, "wrap-only"))
	refused(url("dkim", ""), "403", "permission denied", "transit/decrypt/dkim", "policy does not allow update")
	have(good)
	refused(url("dkin", ""), "403", "transit/encrypt/dkin", "no such key")
	refused(url("dkim", "&engine=kms"), "403", "kms/encrypt/dkim", "policy")

	kek := url("dkim", "")
	s.start(t, "--kek-url", kek)
	s.ctl(t, "brand", "create", "acme")
	seed := make([]byte, ed25519.SeedSize)
	seed[0] = 1
	seedFile := filepath.Join(t.TempDir(), "seed")
	if err := os.WriteFile(seedFile, []byte(base64.StdEncoding.EncodeToString(seed)), 0o600); err != nil {
		t.Fatal(err)
	}
	s.ctl(t, "key", "import", "acme", "spamtrap.dk", "s1", "--private-key-file", seedFile, "--in-use", "--wait")
	mx := signer.Options{Addresses: []string{s.grpc}, TLS: tlsConfig(t, s.signerCert(t, "mx1")), Brand: "acme"}
	signs := func() {
		t.Helper()
		harness.Eventually(t, startLimit, "mail is signed", func() error {
			c, err := signer.New(mx)
			if err != nil {
				return err
			}
			defer c.Close()
			message, _, err := signed(c)
			if err != nil {
				return err
			}
			results, err := dkim.VerifyWithOptions(strings.NewReader(message), &dkim.VerifyOptions{LookupTXT: func(string) ([]string, error) {
				return []string{strings.Join(mustTXT(t, "udp", s.dns, "s1-spamtrap-dk._domainkey."+zone), "")}, nil
			}})
			if err != nil || len(results) != 1 || results[0].Err != nil {
				t.Errorf("%v, %v in\n%s", results, err, message)
			}
			return nil
		})
	}
	domains := 0
	goesOn := func() { // with what is open
		t.Helper()
		domains++
		s.ctl(t, "domain", "provision", "acme", fmt.Sprintf("d%d.example", domains), "--algorithm", "ed25519", "--wait")
		signs()
	}
	brands := 1
	newBrand := func() harness.Result { // needs the keeper for its data key
		t.Helper()
		brands++
		return s.run(t, "brand", "create", fmt.Sprintf("brand%d", brands))
	}
	keeps := func() {
		t.Helper()
		if r := newBrand(); r.Code != 0 {
			t.Errorf("new brand: %s", r.Stderr)
		}
		goesOn()
	}
	unavailable := func() {
		t.Helper()
		if r := newBrand(); r.Code == 0 || !strings.Contains(r.Stderr, "KEEPER_UNAVAILABLE") {
			t.Errorf("new brand: exit code %d, %s, want KEEPER_UNAVAILABLE", r.Code, r.Stderr)
		}
		goesOn()
	}
	restart := func(flags ...string) {
		t.Helper()
		s.stop(t)
		s.start(t, flags...)
		goesOn()
	}
	if out := s.ctl(t, "kek", "status"); !strings.Contains(out, "hashivault://dkim") || strings.Contains(out, tokenFile) {
		t.Errorf("kek status printed %q", out)
	}
	keeps()
	restart("--kek-url", kek)

	// The token is revoked, and then there is another in the file.
	if err := v.Auth().Token().RevokeTree(good); err != nil {
		t.Fatal(err)
	}
	unavailable()
	if !strings.Contains(s.Output(), "token has expired or is wrong") {
		t.Error("its log does not say what to do about the token")
	}
	good = v.token(t, "dkim")
	have(good)
	keeps()

	// No token in its place, sealed, and then gone. Who starts meanwhile waits.
	waits := func(want string) {
		t.Helper()
		s.stop(t)
		s.Process = harness.Start(t, "dkimd", harness.Dkimd, nil, append(s.flags(), "--kek-url", kek)...)
		harness.Eventually(t, startLimit, "it says what it waits for", func() error {
			status, body, err := get(t, "http://"+s.metrics+"/readyz")
			if err == nil && (status != http.StatusServiceUnavailable || !strings.Contains(body, want)) {
				err = fmt.Errorf("status %d: %s", status, body)
			}
			return err
		})
	}
	if err := os.Remove(tokenFile); err != nil {
		t.Fatal(err)
	}
	unavailable()
	waits(tokenFile)
	have(good)
	s.waitReady(t)
	keeps()
	if err := v.Sys().Seal(); err != nil {
		t.Fatal(err)
	}
	unavailable()
	waits("Vault is sealed")
	v.unseal(t)
	s.waitReady(t)
	keeps()
	v.Kill()
	unavailable()
	waits("connection refused")
	v.launch(t)
	waits("Vault is sealed")
	v.unseal(t)
	s.waitReady(t)
	keeps()

	checkTransitVersions(t, v, s, kek, func() { restart("--kek-url", kek) })
	keeps()

	// To a file, with which all goes on without Vault, and back.
	file := harness.NewPKI(t).KEK(t)
	restart("--kek-url", file, "--kek-url-previous", kek)
	checkLine(t, s.ctl(t, "kek", "rotate", "--to", file), "done: ")
	v.Kill()
	restart("--kek-url", file)
	keeps()
	v.launch(t)
	v.unseal(t)
	have(v.token(t, "wrap-only"))
	restart("--kek-url", kek, "--kek-url-previous", file)
	if r := s.run(t, "kek", "rotate"); r.Code == 0 || !strings.Contains(r.Stderr, "KEEPER_UNAVAILABLE") {
		t.Errorf("kek rotate to a key that may only wrap: exit code %d, %s", r.Code, r.Stderr)
	}
	have(good)
	checkLine(t, s.ctl(t, "kek", "rotate", "--to", "hashivault://dkim"), "done: ")
	restart("--kek-url", kek)
	keeps()
}

// checkTransitVersions gives the key in Vault new versions and forbids old ones.
func checkTransitVersions(t *testing.T, v *vault, s *standalone, kek string, restart func()) {
	t.Helper()
	least := func(version int) {
		t.Helper()
		v.write(t, "transit/keys/dkim/config", map[string]any{"min_decryption_version": version})
	}
	v.write(t, "transit/keys/dkim/rotate", nil)
	checkLine(t, s.ctl(t, "kek", "rotate"), "done: ")
	least(2)
	restart()
	// Raised before all is wrapped anew.
	v.write(t, "transit/keys/dkim/rotate", nil)
	least(3)
	s.stop(t)
	checkLine(t, s.fails(t, "--kek-url", kek), "too old", "lower the key's min_decryption_version", "dkimctl kek rotate")
	least(2)
	s.start(t, "--kek-url", kek)
	checkLine(t, s.ctl(t, "kek", "rotate"), "done: ")
	least(3)
	restart()
}
