package authn_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/dkimzone/dkimzone/internal/authn"
)

// issuer is an OpenID Connect issuer over HTTPS.
type issuer struct {
	*httptest.Server

	ca string // file

	mu     sync.Mutex
	keys   jose.JSONWebKeySet // published
	down   bool
	asked  int // for its keys
	hidden bool
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	i := &issuer{}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		i.mu.Lock()
		defer i.mu.Unlock()
		if i.down || i.hidden {
			http.Error(w, "away", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"issuer": i.URL, "jwks_uri": i.URL + "/keys"})
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.asked++
		if i.down {
			http.Error(w, "away", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(i.keys)
	})
	i.Server = httptest.NewTLSServer(mux)
	t.Cleanup(i.Close)
	i.ca = filepath.Join(t.TempDir(), "issuer.crt")
	if err := os.WriteFile(i.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return i
}

// publish makes the keys the only ones that the issuer publishes.
func (i *issuer) publish(keys ...jose.JSONWebKey) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys.Keys = nil
	for _, k := range keys {
		i.keys.Keys = append(i.keys.Keys, k.Public())
	}
}

func (i *issuer) set(change func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change()
}

func (i *issuer) options(s *store) authn.IssuerOptions {
	return authn.IssuerOptions{URL: i.URL, Audience: "dkimzone", CAFile: i.ca, Now: s.clock}
}

func (i *issuer) authenticator(t *testing.T, s *store) *authn.Authenticator {
	t.Helper()
	verifier, err := authn.NewIssuer(i.options(s))
	if err != nil {
		t.Fatal(err)
	}
	return s.authenticator(verifier)
}

func newKey(t *testing.T, id string, alg jose.SignatureAlgorithm) jose.JSONWebKey {
	t.Helper()
	var private crypto.Signer
	var err error
	switch alg {
	case jose.ES256:
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case jose.EdDSA:
		_, private, err = ed25519.GenerateKey(rand.Reader)
	default:
		private, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		t.Fatal(err)
	}
	return jose.JSONWebKey{Key: private, KeyID: id, Algorithm: string(alg), Use: "sig"}
}

type claims = map[string]any

// sign signs good claims with changes; nil takes one out.
func (i *issuer) sign(t *testing.T, key jose.JSONWebKey, s *store, changes claims) string {
	t.Helper()
	at := s.clock().Unix()
	c := claims{"iss": i.URL, "aud": "dkimzone", "sub": "alice", "iat": at, "exp": at + 600, "dkimzone_role": "admin"}
	for name, value := range changes {
		if c[name] = value; value == nil {
			delete(c, name)
		}
	}
	payload, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(key.Algorithm), Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestJWT(t *testing.T) {
	i, s := newIssuer(t), newStore(t)
	key, other := newKey(t, "k1", jose.RS256), newKey(t, "k1", jose.RS256)
	ec, ed := newKey(t, "k2", jose.ES256), newKey(t, "k3", jose.EdDSA)
	i.publish(key, ec, ed)
	a := i.authenticator(t, s)
	at := s.clock().Unix()
	good := func(key jose.JSONWebKey, changes claims) string { return i.sign(t, key, s, changes) }
	segments := strings.Split(good(key, nil), ".")
	encode := func(v any) string {
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(raw)
	}
	// The public key as the secret of a MAC, in the forms in which it is known.
	hmac := func(secret []byte) string {
		return good(jose.JSONWebKey{Key: secret, KeyID: "k1", Algorithm: string(jose.HS256)}, nil)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public().Key)
	if err != nil {
		t.Fatal(err)
	}
	alice := authn.Identity{Role: authn.Admin, Name: "alice"}
	tests := []struct {
		name  string
		token string
		want  authn.Identity // zero: refused
	}{
		{"RS256", good(key, nil), alice},
		{"ES256", good(ec, nil), alice},
		{"EdDSA", good(ed, nil), alice},
		{"several audiences", good(key, claims{"aud": []string{"other", "dkimzone"}}), alice},
		{"brand", good(key, claims{"dkimzone_role": "brand", "dkimzone_brand": "acme"}), authn.Identity{Role: authn.Brand, Name: "alice", Brand: "acme"}},
		{"auditor of a brand", good(key, claims{"dkimzone_role": []string{"auditor", "staff"}, "dkimzone_brand": []string{"acme"}}), authn.Identity{Role: authn.Auditor, Name: "alice", Brand: "acme"}},
		{"clock behind", good(key, claims{"nbf": at + 30, "iat": at + 30}), alice},
		{"clock ahead", good(key, claims{"exp": at - 30}), alice},

		{name: "expired", token: good(key, claims{"exp": at - 90})},
		{name: "without an end", token: good(key, claims{"exp": nil})},
		{name: "not yet valid", token: good(key, claims{"nbf": at + 90})},
		{name: "another issuer", token: good(key, claims{"iss": "https://issuer.example"})},
		{name: "issuer with a slash", token: good(key, claims{"iss": i.URL + "/"})},
		{name: "no issuer", token: good(key, claims{"iss": nil})},
		{name: "another audience", token: good(key, claims{"aud": "dkimzone2"})},
		{name: "no audience", token: good(key, claims{"aud": nil})},
		{name: "no subject", token: good(key, claims{"sub": nil})},
		{name: "subject with a slash", token: good(key, claims{"sub": "a/b"})},
		{name: "no role", token: good(key, claims{"dkimzone_role": nil})},
		{name: "unknown role", token: good(key, claims{"dkimzone_role": "root"})},
		{name: "two roles", token: good(key, claims{"dkimzone_role": []string{"auditor", "admin"}})},
		{name: "role that is no text", token: good(key, claims{"dkimzone_role": claims{"admin": true}})},
		{name: "brand without a brand", token: good(key, claims{"dkimzone_role": "brand"})},
		{name: "brand that is empty", token: good(key, claims{"dkimzone_role": "auditor", "dkimzone_brand": ""})},
		{name: "brand that is no text", token: good(key, claims{"dkimzone_role": "auditor", "dkimzone_brand": 7})},
		{name: "two brands", token: good(key, claims{"dkimzone_role": "auditor", "dkimzone_brand": []string{"acme", "other"}})},
		{name: "admin of a brand", token: good(key, claims{"dkimzone_brand": "acme"})},
		{name: "signed by another key", token: good(other, nil)},
		{name: "alg none", token: encode(claims{"alg": "none"}) + "." + segments[1] + "."},
		{name: "alg none with a signature", token: encode(claims{"alg": "none", "kid": "k1"}) + "." + segments[1] + "." + segments[2]},
		{name: "public key as a secret", token: hmac(public)},
		{name: "public key as a secret, PEM", token: hmac(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}))},
		{name: "key in the header", token: func() string {
			jwk, err := json.Marshal(other.Public())
			if err != nil {
				t.Fatal(err)
			}
			signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: other.Key}, (&jose.SignerOptions{}).WithHeader("jwk", json.RawMessage(jwk)))
			if err != nil {
				t.Fatal(err)
			}
			payload, err := base64.RawURLEncoding.DecodeString(segments[1])
			if err != nil {
				t.Fatal(err)
			}
			jws, err := signer.Sign(payload)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := jws.CompactSerialize()
			if err != nil {
				t.Fatal(err)
			}
			return raw
		}()},
		{name: "changed claims", token: segments[0] + "." + encode(claims{"iss": i.URL, "aud": "dkimzone", "sub": "eve", "exp": at + 600, "dkimzone_role": "admin"}) + "." + segments[2]},
		{name: "no signature", token: segments[0] + "." + segments[1] + "."},
		{name: "nothing", token: ".."},
		{name: "no JSON", token: "e30.e30.e30"},
	}
	for n, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			addr := "2001:db8:" + string(rune('a'+n%6)) + ":" + string(rune('0'+n/6)) + "::1"
			caller, err := a.Authenticate(from(t, addr, "Bearer "+tt.token))
			if tt.want != (authn.Identity{}) {
				if err != nil || caller.Identity != tt.want || caller.Method != authn.JWT || caller.ExportKeys {
					t.Errorf("got %+v, %v; want %v", caller, err, tt.want)
				}
				return
			}
			if code := status.Code(err); code != codes.Unauthenticated || caller != (authn.Caller{}) {
				t.Errorf("got %+v, %v; want %v", caller, err, codes.Unauthenticated)
			}
		})
	}
	for _, part := range segments[1:] {
		if strings.Contains(s.log.String(), part) {
			t.Error("a token is in the log")
		}
	}
}

func TestIssuerRotatesKeys(t *testing.T) {
	i, s := newIssuer(t), newStore(t)
	first, second := newKey(t, "k1", jose.ES256), newKey(t, "k2", jose.ES256)
	i.publish(first)
	i.set(func() { i.down = true })
	a := i.authenticator(t, s)
	try := func(key jose.JSONWebKey, subject string) error {
		_, err := a.Authenticate(from(t, "192.0.2.1", "Bearer "+i.sign(t, key, s, claims{"sub": subject, "exp": s.clock().Unix() + 3600})))
		return err
	}
	// It may be away when dkimd starts.
	if err := try(first, "a"); status.Code(err) != codes.Unavailable {
		t.Errorf("issuer away: %v, want %v", err, codes.Unavailable)
	}
	i.set(func() { i.down = false })
	if err := try(first, "b"); err != nil {
		t.Errorf("issuer back: %v", err)
	}
	// A new key counts at once.
	i.publish(first, second)
	if err := try(second, "c"); err != nil {
		t.Errorf("new key: %v", err)
	}
	// It is not asked again for a key that it is known to have, and may be away.
	i.set(func() { i.down = true; i.asked = 0 })
	if err := try(first, "d"); err != nil || i.asked != 0 {
		t.Errorf("known key: %v, asked %d times", err, i.asked)
	}
	// One that was taken out counts no longer, after a while.
	i.set(func() { i.down = false })
	i.publish(second)
	s.pass(11 * time.Minute)
	if err := try(first, "e"); status.Code(err) != codes.Unauthenticated {
		t.Errorf("withdrawn key: %v, want %v", err, codes.Unauthenticated)
	}
	if err := try(second, "f"); err != nil {
		t.Errorf("remaining key: %v", err)
	}
	// With the issuer away the keys are good for longer.
	i.set(func() { i.down = true })
	s.pass(11 * time.Minute)
	if err := try(second, "g"); err != nil {
		t.Errorf("issuer away for a while: %v", err)
	}
}

// Forged tokens do not make dkimd flood the issuer.
func TestIssuerIsSpared(t *testing.T) {
	i, s := newIssuer(t), newStore(t)
	key := newKey(t, "k1", jose.ES256)
	i.publish(key)
	a := i.authenticator(t, s)
	forged := newKey(t, "unknown", jose.ES256)
	for n := range 50 {
		addr := "2001:db8:0:" + string(rune('a'+n%6)) + string(rune('0'+n/6)) + "::1"
		if _, err := a.Authenticate(from(t, addr, "Bearer "+i.sign(t, forged, s, claims{"sub": "a", "jti": n}))); err == nil {
			t.Fatal("a forged token was taken")
		}
	}
	if i.asked > 10 {
		t.Errorf("the issuer was asked %d times for its keys", i.asked)
	}
	if _, err := a.Authenticate(from(t, "192.0.2.1", "Bearer "+i.sign(t, key, s, nil))); err != nil {
		t.Errorf("a good token meanwhile: %v", err)
	}
}

func TestIssuerOptions(t *testing.T) {
	i, s := newIssuer(t), newStore(t)
	key := newKey(t, "k1", jose.ES256)
	i.publish(key)
	i.hidden = true // it has no configuration
	o := i.options(s)
	o.KeySetURL, o.RoleClaim, o.BrandClaim = i.URL+"/keys", "https://dkim.example/role", "realm.brands"
	verifier, err := authn.NewIssuer(o)
	if err != nil {
		t.Fatal(err)
	}
	token := i.sign(t, key, s, claims{"https://dkim.example/role": "signer", "realm": claims{"brands": []string{"acme"}}})
	caller, err := s.authenticator(verifier).Authenticate(from(t, "192.0.2.1", "Bearer "+token))
	if want := (authn.Identity{Role: authn.Signer, Brand: "acme", Name: "alice"}); err != nil || caller.Identity != want {
		t.Errorf("got %v, %v; want %v", caller.Identity, err, want)
	}
	for name, change := range map[string]func(*authn.IssuerOptions){
		"no URL":          func(o *authn.IssuerOptions) { o.URL = "" },
		"plain HTTP":      func(o *authn.IssuerOptions) { o.URL = "http://issuer.example" },
		"no audience":     func(o *authn.IssuerOptions) { o.Audience = "" },
		"CA not there":    func(o *authn.IssuerOptions) { o.CAFile = filepath.Join(t.TempDir(), "missing") },
		"keys over HTTP":  func(o *authn.IssuerOptions) { o.KeySetURL = "http://issuer.example/keys" },
		"URL with a user": func(o *authn.IssuerOptions) { o.URL = "https://a@issuer.example" },
	} {
		o := i.options(s)
		change(&o)
		if _, err := authn.NewIssuer(o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
