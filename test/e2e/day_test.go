package e2e_test

import (
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/test/harness"
)

// day is what a day brings to an installation, through each of its faces, and what
// of it is secret.
type day struct {
	*target
	secrets wanted
}

func newDay(g *target) *day { return &day{g, make(wanted)} }

// must makes a request that succeeds.
func (d *day) must(t *testing.T, a *attacker, method, path, body string) answer {
	t.Helper()
	got := a.do(t, method, path, body)
	if got.status/100 != 2 {
		t.Fatalf("%s %s: %v", method, path, got)
	}
	return got
}

// morning makes domains, keys and credentials.
func (d *day) morning(t *testing.T) {
	t.Helper()
	secret, token, jwt, admin := d.attacker(t, "secret"), d.attacker(t, "token"), d.attacker(t, "JWT"), d.attacker(t, "admin")

	// The provisioning interface.
	d.must(t, secret, "PUT", cloudapi+"acme/cloud.example", "")
	d.must(t, secret, "PUT", cloudapi+"acme/cloud2.example", `{"algorithm":"ed25519","selectors":["a","b"],"test_mode":true}`)
	d.must(t, secret, "GET", cloudapi+"acme", "")
	d.must(t, secret, "GET", cloudapi+"acme/cloud.example/selector1", "")
	secret.do(t, "POST", cloudapi+"acme/cloud.example/rotate", "").refused(t, http.StatusBadRequest, "STANDBY_NOT_PROVEN")
	d.must(t, secret, "POST", cloudapi+"acme/cloud.example/rotate", `{"when_ready":true}`)
	openKeys(t, d.root, d.in.kek, d.secrets) // before some go
	d.must(t, secret, "DELETE", cloudapi+"acme/cloud2.example", "")

	// The API's resources, and DNS records that were made elsewhere.
	d.must(t, token, "POST", "/v1/brands/acme/domains/rest.example:provision", `{"algorithm":"KEY_ALGORITHM_ED25519"}`)
	d.must(t, jwt, "POST", "/v1/brands/acme/domains/jwt.example:provision", `{"algorithm":"KEY_ALGORITHM_ED25519"}`)
	d.must(t, jwt, "GET", "/v1/brands/acme/domains", "")
	d.must(t, token, "POST", "/v1/domains/records.example/dns_records", fmt.Sprintf(
		`{"type":"TXT","name":"mail._domainkey","value":"v=DKIM1; k=ed25519; p=%s"}`, publicText(newEd25519(t))))
	d.must(t, token, "GET", "/v1/domains/records.example/dns_records", "")

	// Private keys that were made elsewhere, in each form; and one that is refused.
	rsa, seed := newRSA(t, 2048), newEd25519(t)
	pkcs8 := func(key crypto.PrivateKey) []byte {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	for i, own := range []struct {
		key  crypto.PrivateKey
		text string
	}{
		{rsa, pemText("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsa))},
		{seed, base64.StdEncoding.EncodeToString(seed.Seed())},
	} {
		d.secrets.addKey(t, fmt.Sprintf("imported key %d", i), own.key)
		d.importKey(t, token, fmt.Sprintf("own%d", i), own.text)
	}
	third := newEd25519(t)
	d.secrets.addKey(t, "key imported by gRPC", third)
	if _, err := d.api.ImportKey(deadline(t), &dkimv1.ImportKeyRequest{
		Parent: "brands/acme/domains/own2.example", Selector: "own2", PrivateKey: pemText("PRIVATE KEY", pkcs8(third)), InUse: true,
	}); err != nil {
		t.Fatal(err)
	}
	short, other := newRSA(t, 1024), newEd25519(t)
	d.secrets.addKey(t, "short key", short)
	d.secrets.addKey(t, "key in the wrong place", other)
	for path, field := range map[string]string{
		"/v1/brands/acme/domains/own.example/keys:import":  "privateKey",
		"/v1/brands/acme/domains/own.example/keys:publish": "publicKey",
		"/v1/brands/acme/domains/own.example:check":        "name",
	} {
		for _, text := range []string{pemText("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(short)), base64.StdEncoding.EncodeToString(pkcs8(other))[:60]} {
			body := fmt.Sprintf(`{"selector":"refused",%q:%q}`, field, text)
			if got := token.do(t, "POST", path, body); got.status != http.StatusBadRequest {
				t.Errorf("%s: %v", path, got)
			}
		}
	}

	// Credentials, over HTTPS.
	made := &dkimv1.Token{}
	if err := protojson.Unmarshal([]byte(d.must(t, admin, "POST", "/v1/tokens", `{"role":"ROLE_AUDITOR"}`).body), made); err != nil {
		t.Fatal(err)
	}
	d.shown["Bearer "+made.GetSecret()] = true
	again := &dkimv1.BrandSecret{}
	if err := protojson.Unmarshal([]byte(d.must(t, admin, "POST", "/v1/brands/other/secrets", `{}`).body), again); err != nil {
		t.Fatal(err)
	}
	d.shown[basicAuth("other", again.GetSecret())] = true
	d.must(t, d.stranger(t, nil, "Bearer "+made.GetSecret()), "GET", "/v1/brands", "")
	d.must(t, admin, "DELETE", "/v1/"+made.GetName(), "")
	openKeys(t, d.root, d.in.kek, d.secrets)
}

func (d *day) importKey(t *testing.T, a *attacker, selector, text string) {
	t.Helper()
	body, err := protojson.Marshal(&dkimv1.ImportKeyRequest{Selector: selector, PrivateKey: text, InUse: true})
	if err != nil {
		t.Fatal(err)
	}
	d.must(t, a, "POST", "/v1/brands/acme/domains/own.example/keys:import", string(body))
}

// evening rotates the key-encryption key and the data keys, and reads a private
// key out.
func (d *day) evening(t *testing.T) {
	t.Helper()
	stop(t, d.Process)
	first := d.Output()
	d.args = append(d.args, "--kek-url", d.kek2, "--kek-url-previous", d.in.kek, "--allow-key-export", "--allow-key-fetch", "mx1")
	d.launch(t)
	d.waitReady(t)
	d.ctl(t, "kek", "rotate")
	openKeys(t, d.root, d.kek2, d.secrets)
	d.ctl(t, "kek", "rotate", "--data-keys", "--background")
	harness.Eventually(t, startLimit, "private keys sealed anew", func() error {
		status := &dkimv1.KeyEncryption{}
		d.read(t, status, "kek", "status")
		if r := status.GetRotation(); r.GetState() < dkimv1.KeyEncryptionRotation_STATE_SETTLING || r.GetFailures() > 0 {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	keys := openKeys(t, d.root, d.kek2, d.secrets)
	d.earlier = first

	trusted := d.newToken(t, &dkimv1.Token{Role: dkimv1.Role_ROLE_ADMIN, ExportKeys: true})
	exporter := d.stranger(t, nil, "Bearer "+trusted.GetSecret())
	for name := range keys {
		d.attacker(t, "admin").do(t, "POST", "/v1/"+name+":exportPrivateKey", "{}").refused(t, http.StatusForbidden, "PERMISSION_DENIED")
		if got := d.must(t, exporter, "POST", "/v1/"+name+":exportPrivateKey", "{}"); !strings.Contains(got.body, "PRIVATE KEY") {
			t.Errorf("exported %.40s…", got.body)
		}
	}
}

// mail has dkimd sign, and reads private keys to sign with, through each face that
// signers have.
func (d *day) mail(t *testing.T) {
	t.Helper()
	signer := d.attacker(t, "signer")
	d.must(t, signer, "POST", "/v1/signers:register", "{}")
	resolved := &dkimv1.ResolveSigningKeysResponse{}
	harness.Eventually(t, startLimit, "a key that signs", func() error {
		got := signer.do(t, "GET", "/v1/brands/acme/domains/own.example:resolveSigningKeys", "")
		if err := protojson.Unmarshal([]byte(got.body), resolved); err != nil || len(resolved.GetKeys()) == 0 {
			return fmt.Errorf("%v: %w", got, err)
		}
		return nil
	})
	var names []string
	digests := &dkimv1.SignRequest{}
	for _, k := range resolved.GetKeys() {
		names = append(names, k.GetKey())
		digests.Digests = append(digests.Digests, &dkimv1.SignRequest_Digest{Key: k.GetKey(), Digest: make([]byte, 32)})
	}
	body := func(m proto.Message) string {
		text, err := protojson.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	signed := &dkimv1.SignResponse{}
	if err := protojson.Unmarshal([]byte(d.must(t, signer, "POST", "/v1/signers:sign", body(digests)).body), signed); err != nil {
		t.Fatal(err)
	}
	fetched := &dkimv1.FetchPrivateKeysResponse{}
	if err := protojson.Unmarshal([]byte(d.must(t, signer, "POST", "/v1/signers:fetchPrivateKeys", body(&dkimv1.FetchPrivateKeysRequest{Keys: names})).body), fetched); err != nil {
		t.Fatal(err)
	}
	for i, name := range names {
		if len(signed.GetResults()[i].GetSignature()) == 0 || len(fetched.GetResults()[i].GetPrivateKey()) == 0 {
			t.Errorf("%s: signed %v, fetched %v", name, signed.GetResults()[i].GetError(), fetched.GetResults()[i].GetError())
		}
	}
	token := func(r *http.Request) {
		_, credential, _ := strings.Cut(d.good["signer"], " ")
		r.Header.Del("Authorization")
		r.Header.Set("X-Vault-Token", credential)
	}
	for _, path := range []string{"/vault/v1/dkim/own.example", "/vault/v1/dkim/data/own.example"} {
		if got := signer.do(t, "GET", path, "", token); !strings.Contains(got.body, "PRIVATE KEY") {
			t.Errorf("%s: status %d without a private key", path, got.status)
		}
	}
}

// backup writes a backup, which has everything in it, and returns what the file
// holds.
func (d *day) backup(t *testing.T) []byte {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "dkim.backup")
	d.ctl(t, "backup", file, "--recipient", id.Recipient().String())
	return []byte(readFile(t, file))
}

// checkSecrets looks for all that was secret in the course of the day.
func (d *day) checkSecrets(t *testing.T) {
	t.Helper()
	for _, authorization := range d.good {
		_, credential, _ := strings.Cut(authorization, " ")
		d.secrets.addText("credential "+credential[:10], credential)
		if strings.HasPrefix(authorization, "Basic ") {
			credential = password(t, authorization)
			d.secrets.addText("secret "+credential[:16], credential)
		}
		if strings.HasPrefix(credential, "dk") {
			raw, err := base64.RawURLEncoding.DecodeString(credential[len(credential)-randomLen:])
			if err != nil {
				t.Fatal(err)
			}
			d.secrets.addOctets("octets of "+credential[:16], raw)
		}
	}
	for authorization := range d.shown {
		if scheme, credential, ok := strings.Cut(authorization, " "); ok && scheme != "" {
			authorization = credential
		}
		d.secrets.add(fmt.Sprintf("%.16s… as it was shown", authorization), []byte(authorization))
	}
	places := d.in.places(t, d.root)
	places["earlier output of dkimd"] = []byte(d.earlier)
	places["audit log"] = []byte(readFile(t, d.audit))
	places["backup"] = d.backup(t)
	d.secrets.checkAbsent(t, places)
	for place, has := range map[string]string{
		"audit log": "ExportPrivateKey", "earlier output of dkimd": "credentials refused",
	} {
		if !strings.Contains(string(places[place]), has) {
			t.Errorf("%s has no %q, so that the test says nothing about it", place, has)
		}
	}
	if !containsAny(places, lastPart(d.names["tokens/*"])) {
		t.Error("no place has the id of a token, so that the test says nothing")
	}
}
