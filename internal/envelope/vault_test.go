package envelope_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/dkimzone/dkimzone/internal/envelope"
)

// transit speaks the part of Vault's wire protocol that encryption by the
// transit engine needs, with the errors that a Vault 1.14 has for a token that may
// update transit/encrypt/… and transit/decrypt/…: versioned keys,
// ciphertexts "vault:v<version>:<base64>", tokens.
type transit struct {
	*httptest.Server

	mu     sync.Mutex
	token  string
	keys   map[string][]cipher.AEAD // by engine/key, its versions
	least  int                      // version that decrypts
	denied string                   // operation that the token may not do
	sealed bool
}

// startTransit starts a Vault with a transit engine at each mount and lets this
// process's environment point to it.
func startTransit(t *testing.T, token string) *transit {
	t.Helper()
	v := &transit{token: token, keys: make(map[string][]cipher.AEAD)}
	v.Server = httptest.NewServer(v)
	t.Cleanup(v.Close)
	t.Setenv("VAULT_ADDR", v.URL)
	t.Setenv("VAULT_TOKEN", token)
	t.Setenv("VAULT_MAX_RETRIES", "0")
	return v
}

// rotate gives a key, new or not, another version.
func (v *transit) rotate(t *testing.T, name string) {
	t.Helper()
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		t.Fatal(err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.keys[name] = append(v.keys[name], aead)
}

func (v *transit) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	defer v.mu.Unlock()
	status, data, message := v.serve(r)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if message != "" {
		_ = json.NewEncoder(w).Encode(map[string]any{"errors": []string{message}})
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{
		"request_id": "f3a1", "lease_id": "", "renewable": false, "lease_duration": 0, "data": data, "wrap_info": nil, "warnings": nil, "auth": nil,
	})
}

func (v *transit) serve(r *http.Request) (status int, data map[string]any, message string) {
	if v.sealed {
		return http.StatusServiceUnavailable, nil, "Vault is sealed"
	}
	if r.Header.Get("X-Vault-Token") != v.token {
		return http.StatusForbidden, nil, "permission denied"
	}
	mount, rest, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v1/"), "/")
	operation, name, ok2 := strings.Cut(rest, "/")
	if operation == v.denied || operation == "encrypt" && v.mounted(mount) && len(v.keys[mount+"/"+name]) == 0 { // that would create it
		return http.StatusForbidden, nil, "1 error occurred:\n\t* permission denied\n\n"
	}
	if !ok || !ok2 || !v.mounted(mount) {
		return http.StatusNotFound, nil, fmt.Sprintf("no handler for route %q. route entry not found.", r.URL.Path[len("/v1/"):])
	}
	if r.Method != http.MethodPut && r.Method != http.MethodPost {
		return http.StatusMethodNotAllowed, nil, "1 error occurred:\n\t* unsupported operation\n\n"
	}
	var body struct{ Plaintext, Ciphertext string }
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		return http.StatusBadRequest, nil, "error parsing JSON"
	}
	versions := v.keys[mount+"/"+name]
	if len(versions) == 0 {
		return http.StatusBadRequest, nil, "encryption key not found"
	}
	switch operation {
	case "encrypt":
		plaintext, err := base64.StdEncoding.DecodeString(body.Plaintext)
		if err != nil {
			return http.StatusBadRequest, nil, "failed to base64-decode plaintext"
		}
		n := len(versions)
		text := base64.StdEncoding.EncodeToString(versions[n-1].Seal(nil, nil, plaintext, nil))
		return http.StatusOK, map[string]any{"ciphertext": fmt.Sprintf("vault:v%d:%s", n, text), "key_version": n}, ""
	case "decrypt":
		rest, ok := strings.CutPrefix(body.Ciphertext, "vault:v")
		if !ok {
			return http.StatusBadRequest, nil, "invalid ciphertext: no prefix"
		}
		number, text, ok := strings.Cut(rest, ":")
		n, err := strconv.Atoi(number)
		if !ok || err != nil || n < 1 {
			return http.StatusBadRequest, nil, "invalid ciphertext: wrong number of fields"
		}
		if n > len(versions) {
			return http.StatusBadRequest, nil, "invalid ciphertext: version is too new"
		}
		if n < v.least {
			return http.StatusBadRequest, nil, "ciphertext or signature version is disallowed by policy (too old)"
		}
		sealed, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return http.StatusBadRequest, nil, "invalid ciphertext: could not decode base64"
		}
		plaintext, err := versions[n-1].Open(nil, nil, sealed, nil)
		if err != nil {
			return http.StatusBadRequest, nil, "cipher: message authentication failed"
		}
		return http.StatusOK, map[string]any{"plaintext": base64.StdEncoding.EncodeToString(plaintext)}, ""
	}
	return http.StatusNotFound, nil, "1 error occurred:\n\t* unsupported path\n\n"
}

func (v *transit) mounted(mount string) bool {
	for name := range v.keys {
		if strings.HasPrefix(name, mount+"/") {
			return true
		}
	}
	return false
}

func TestVault(t *testing.T) {
	v := startTransit(t, "s.token")
	v.rotate(t, "transit/dkim")
	v.rotate(t, "transit/other")
	v.rotate(t, "dkim-transit/dkim")
	store := &memoryStore{}
	s := envelope.NewSealer(openKeeper(t, "hashivault://dkim"), store)
	sealed := seal(t, s, "acme", "keys/1", "private key")
	if wrapped := string(store.wrapped["acme"][1]); !strings.HasPrefix(wrapped, "vault:v1:") {
		t.Errorf("data key is stored as %q, want a ciphertext of Vault", wrapped)
	}
	again := func(url string) error {
		t.Helper()
		got, err := envelope.NewSealer(openKeeper(t, url), store).Open(t.Context(), "acme", "keys/1", sealed)
		if err == nil && string(got) != "private key" {
			t.Errorf("Open = %q", got)
		}
		return err
	}
	if err := again("hashivault://dkim"); err != nil {
		t.Errorf("Open: %v", err)
	}
	// A new version of the key opens what the old one wrapped; Rewrap uses it.
	v.rotate(t, "transit/dkim")
	if err := s.Rewrap(t.Context(), "acme", 1); err != nil {
		t.Fatal(err)
	}
	if wrapped := string(store.wrapped["acme"][1]); !strings.HasPrefix(wrapped, "vault:v2:") {
		t.Errorf("after Rewrap the data key is %q, want one of the key's second version", wrapped)
	}
	if err := again("hashivault://dkim"); err != nil {
		t.Errorf("Open after Rewrap: %v", err)
	}
	// The same name in another engine is another key, also beside the first.
	for _, url := range []string{"hashivault://other", "hashivault://dkim?engine=dkim-transit"} {
		if err := again(url); !errors.Is(err, envelope.ErrWrongKey) {
			t.Errorf("Open with %s: %v, want %v", url, err, envelope.ErrWrongKey)
		}
	}
	both := envelope.NewSealer(openKeeper(t, "hashivault://dkim?engine=dkim-transit", "hashivault://dkim"), store)
	checkOpens(t, both, "acme", "keys/1", sealed, "private key")
	// A value of another keeper.
	file := &memoryStore{}
	seal(t, envelope.NewSealer(newKeeper(t), file), "acme", "keys/1", "x")
	if err := envelope.NewSealer(openKeeper(t, "hashivault://dkim"), file).Check(t.Context()); !errors.Is(err, envelope.ErrWrongKey) {
		t.Errorf("Check of keys that a file wrapped: %v, want %v", err, envelope.ErrWrongKey)
	}
}

func TestVaultFailures(t *testing.T) {
	v := startTransit(t, "s.token")
	v.rotate(t, "transit/dkim")
	store := &memoryStore{}
	s := envelope.NewSealer(openKeeper(t, "hashivault://dkim"), store)
	sealed := seal(t, s, "acme", "keys/1", "private key")
	check := func(what, url string, want error, text string) {
		t.Helper()
		err := envelope.NewSealer(openKeeper(t, url), store).Check(t.Context())
		if !errors.Is(err, want) || errors.Is(err, envelope.ErrWrongKey) {
			t.Errorf("%s: %v, want %v", what, err, want)
		} else if !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "s.token") {
			t.Errorf("%s: %v, want an error with %q", what, err, text)
		}
	}
	check("no such key", "hashivault://missing", envelope.ErrKeeperRefuses, "400 encryption key not found; make it: vault write -f transit/keys/missing")
	check("no such engine", "hashivault://dkim?engine=missing", envelope.ErrKeeperRefuses, "no handler for route")
	v.least = 2
	check("version too old", "hashivault://dkim", envelope.ErrKeeperRefuses, "too old); lower the key's min_decryption_version")
	v.least = 0
	v.sealed = true
	check("sealed", "hashivault://dkim", envelope.ErrKeeperUnavailable, "Vault answers transit/decrypt/dkim with 503 Vault is sealed")
	// What is in memory goes on.
	checkOpens(t, s, "acme", "keys/1", sealed, "private key")
	v.sealed = false

	// A token in a file is read again when it has changed.
	file := filepath.Join(t.TempDir(), "token")
	write := func(token string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("s.old")
	t.Setenv("VAULT_TOKEN", "")
	byFile := envelope.NewSealer(openKeeper(t, "hashivault://dkim?token_file="+file), store)
	if err := byFile.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "permission denied") || strings.Contains(err.Error(), "s.old") {
		t.Errorf("Check with an expired token: %v, want permission denied", err)
	}
	write("s.token")
	if err := byFile.Check(t.Context()); err != nil {
		t.Errorf("Check with the renewed token: %v", err)
	}
	v.Close()
	t.Setenv("VAULT_TOKEN", "s.token")
	check("gone", "hashivault://dkim", envelope.ErrKeeperUnavailable, "refused")

	// Something else answers there.
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"data":{"x":1}}`) }))
	defer other.Close()
	t.Setenv("VAULT_ADDR", other.URL)
	check("no Vault", "hashivault://dkim", envelope.ErrKeeperUnavailable, "not that of a transit engine")
}

// A process that cannot use its key says so before anything is wrapped by it.
func TestVaultNew(t *testing.T) {
	v := startTransit(t, "s.token")
	v.rotate(t, "transit/dkim")
	for _, tt := range []struct{ name, url, denied, want string }{
		{"no key", "hashivault://missing", "", "Vault answers transit/encrypt/missing with 403 permission denied; the token has expired or is wrong, or its policy does not allow update of that path, or there is no such key"},
		{"may not wrap", "hashivault://dkim", "encrypt", "transit/encrypt/dkim with 403"},
		{"may not open", "hashivault://dkim", "decrypt", "transit/decrypt/dkim with 403 permission denied; the token has expired or is wrong, or its policy does not allow update of that path"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v.denied = tt.denied
			s := envelope.NewSealer(openKeeper(t, tt.url), &memoryStore{})
			if err := s.Check(t.Context()); !errors.Is(err, envelope.ErrKeeperRefuses) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Check: %v, want %v with %q", err, envelope.ErrKeeperRefuses, tt.want)
			}
			if tt.denied == "" {
				return
			}
			// Nor does it take the place of another.
			store := &memoryStore{}
			file := newKey(t)
			seal(t, envelope.NewSealer(openKeeper(t, file), store), "acme", "keys/1", "x")
			if _, _, _, err := envelope.NewSealer(openKeeper(t, tt.url, file), store).Propose(t.Context()); !errors.Is(err, envelope.ErrKeeperRefuses) {
				t.Errorf("Propose: %v, want %v", err, envelope.ErrKeeperRefuses)
			}
			v.denied = ""
			if err := s.Check(t.Context()); err != nil {
				t.Errorf("Check after that was mended: %v", err)
			}
		})
	}
}

func TestServiceURLs(t *testing.T) {
	for _, name := range []string{"AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "VAULT_TOKEN"} {
		t.Setenv(name, "")
	}
	t.Setenv("HOME", t.TempDir()) // no token, no profile of whoever runs the test
	t.Setenv("VAULT_ADDR", "https://vault.example.net:8200")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	credentials := filepath.Join(t.TempDir(), "gcp.json")
	writeServiceAccount(t, credentials)
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", credentials)
	const (
		id    = "1234abcd-12ab-34cd-56ef-1234567890ab"
		arn   = "arn:aws:kms:eu-west-1:111122223333:key/" + id
		gcp   = "projects/p1/locations/europe-west1/keyRings/mail/cryptoKeys/dkim"
		azure = "acme.vault.azure.net/keys/dkim/0123456789abcdef0123456789abcdef"
	)
	for url, label := range map[string]string{
		"awskms://" + id + "?region=eu-west-1":                   "awskms://" + id,
		"awskms://alias/dkim?region=eu-west-1":                   "awskms://alias/dkim",
		"awskms:///" + arn + "?region=eu-west-1":                 "awskms:///" + arn,
		"awskms://alias/dkim?region=eu-west-1&context_app=dkim":  "awskms://alias/dkim",
		"gcpkms://" + gcp:                                        "gcpkms://" + gcp,
		"azurekeyvault://" + azure:                               "azurekeyvault://" + azure,
		"azurekeyvault://" + azure + "?algorithm=RSA-OAEP-256":   "azurekeyvault://" + azure,
		"hashivault://dkim?token_file=/run/vault/token":          "hashivault://dkim",
		"hashivault://dkim?engine=kms/dkim&token_file=/run/t":    "hashivault://dkim?engine=kms/dkim",
		"hashivault://dkim?engine=transit&token_file=/run/token": "hashivault://dkim",
	} {
		keeper, err := envelope.OpenKeeper(t.Context(), url)
		if err != nil {
			t.Errorf("OpenKeeper(%s): %v", url, err)
			continue
		}
		if got := keeper.Labels(); len(got) != 1 || got[0] != label {
			t.Errorf("OpenKeeper(%s): labels %q, want %q", url, got, label)
		}
		if err := keeper.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, tt := range []struct{ url, want string }{
		{"awskms://alias/dkim", "no region"},
		{"awskms://?region=eu-west-1", "no key id, alias/NAME or ARN"},
		{"awskms://dkim?region=eu-west-1", "no key id, alias/NAME or ARN"},
		{"awskms://alias/dkim?region=eu-west-1&regoin=x", `"regoin"`},
		{"gcpkms://projects/p1/locations/l/keyRings/r", "is no key; use gcpkms://projects/"},
		{"gcpkms://" + gcp + "/cryptoKeyVersions/1", "is no key; use gcpkms://projects/"},
		{"gcpkms://" + gcp + "?region=x", `"region" is not known`},
		{"azurekeyvault://acme.vault.azure.net/keys/dkim", "is no version of a key"},
		{"azurekeyvault://acme.example.net/keys/dkim/0123456789abcdef0123456789abcdef", "is no version of a key"},
		{"azurekeyvault://" + azure + "?version=1", `"version"`},
		{"hashivault://", "names no key"},
		{"hashivault://transit/keys/dkim?token_file=/t", "names no key"},
		{"hashivault://dkim", "no token"},
		{"hashivault://dkim?token_file=token", "absolute path"},
		{"hashivault://dkim?engine=../sys&token_file=/t", "mount path"},
		{"hashivault://dkim?token_file=/a&token_file=/b", "more than once"},
		{"hashivault://dkim?address=https://x", `"address" is not known`},
		{"hashivault:dkim", "// after the colon"},
		{"hashivault://dkim?token_file=/t#x", "no fragment"},
	} {
		if _, err := envelope.OpenKeeper(t.Context(), tt.url); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("OpenKeeper(%s): %v, want an error with %q", tt.url, err, tt.want)
		}
	}
	for address, want := range map[string]string{
		"":                                  "VAULT_ADDR is not set",
		"http://vault.example.net":          "must be https",
		"http://127.0.0.1.example.net:8200": "must be https",
		"vault.example.net:8200":            "VAULT_ADDR",
	} {
		t.Setenv("VAULT_ADDR", address)
		if _, err := envelope.OpenKeeper(t.Context(), "hashivault://dkim?token_file=/t"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("OpenKeeper with VAULT_ADDR %q: %v, want an error with %q", address, err, want)
		}
	}
	file := newKey(t)
	if _, err := envelope.OpenKeeper(t.Context(), file, file); err == nil || !strings.Contains(err.Error(), "given twice") {
		t.Errorf("OpenKeeper of the same key twice: %v", err)
	}
}

// writeServiceAccount writes credentials that are well-formed and worth nothing.
func writeServiceAccount(t *testing.T, file string) {
	t.Helper()
	var out bytes.Buffer
	err := json.NewEncoder(&out).Encode(map[string]string{
		"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r",
	})
	if err == nil {
		err = os.WriteFile(file, out.Bytes(), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}
