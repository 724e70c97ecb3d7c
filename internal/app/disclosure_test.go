package app

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/keystore/keystoretest"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// disclosing is a store with a brand that discloses its keys, and one key
// disclosed of each name.
func disclosing(t *testing.T, names ...dnsname.Domain) (*keystoretest.Fake, *keystore.Store, map[dnsname.Domain]*keypair.KeyPair) {
	t.Helper()
	ctx := t.Context()
	fake := keystoretest.NewFake()
	store := keystore.New(fake, time.Minute)
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	_, err := store.CreateZone(ctx, keystore.Zone{Name: "keys.example.net", Apex: schema.Apex{
		NameServers: []schema.NameServer{{Name: "ns1.keys.example.net", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.53")}}},
		Mailbox:     "hostmaster.keys.example.net", NegativeTTL: 300, RecordTTL: 3600, CreateTime: now,
	}})
	if err != nil {
		t.Fatal(err)
	}
	b, err := store.CreateBrand(ctx, keystore.Brand{
		Name: "acme", Zone: "keys.example.net", CreateTime: now, Disclosure: keystore.Disclosure{Enabled: true, Lag: 30 * 24 * time.Hour},
	})
	if err != nil {
		t.Fatal(err)
	}
	pairs := make(map[dnsname.Domain]*keypair.KeyPair)
	for _, name := range names {
		pairs[name] = disclose(t, store, b, name, now)
	}
	return fake, store, pairs
}

// disclose gives a domain a key that signed for a month, puts another in its
// place, and discloses it.
func disclose(t *testing.T, store *keystore.Store, b keystore.Brand, name dnsname.Domain, now time.Time) *keypair.KeyPair {
	t.Helper()
	ctx := t.Context()
	var pairs [2]*keypair.KeyPair
	var keys [2]keystore.Key
	var records [2]schema.PublicRecord
	for i, id := range []string{"old", "new"} {
		pair, err := keypair.Generate(keypair.Ed25519)
		if err != nil {
			t.Fatal(err)
		}
		sum := pair.Public().Fingerprint()
		pairs[i] = pair
		keys[i] = keystore.Key{
			Key: rotation.Key{
				ID: id, Selector: "s1", Algorithm: keypair.Ed25519, State: rotation.Prepared, Custody: rotation.Service, PrepareTime: now, TTL: 3600,
			},
			Fingerprint: [schema.FingerprintLen]byte(sum[:schema.FingerprintLen]),
		}
		records[i] = schema.PublicRecord{KeyType: keypair.Ed25519.KeyType(), PublicKey: pair.Public().Octets, TTL: 3600, UpdateTime: now}
	}
	d := keystore.Domain{
		Brand: b.Name, Name: name, Zone: b.Zone, CreateTime: now, UpdateTime: now, Kind: kindOf(b, name),
		Selectors: []keystore.Selector{{Selector: "s1", Algorithm: keypair.Ed25519}}, Keys: []keystore.Key{keys[0]},
	}
	d, err := store.Apply(ctx, keystore.Change{Domain: d, Publish: []keystore.Publication{{Key: keys[0], Record: records[0], New: true, Sealed: []byte("sealed")}}})
	if err != nil {
		t.Fatal(err)
	}
	old := d.Keys[0]
	old.State, old.ActivateTime, old.RetireTime = rotation.Revoked, now, now.AddDate(0, 1, 0)
	d.Keys, d.UpdateTime = []keystore.Key{keys[1]}, now.AddDate(0, 2, 0)
	_, err = store.Apply(ctx, keystore.Change{Domain: d, Publish: []keystore.Publication{{
		Key: keys[1], Record: records[1], New: true, Sealed: []byte("sealed"), Replaces: &old, Retain: true,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	retained, _, err := store.RetainedKeys(ctx, b.Name, keystore.Retained{}, 10)
	if err != nil || len(retained) != 1 {
		t.Fatal(len(retained), err)
	}
	private, err := pairs[0].PKCS8()
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Disclose(ctx, b, retained[0], private, now.AddDate(0, 3, 0), nil); err != nil {
		t.Fatal(err)
	}
	return pairs[0]
}

func kindOf(b keystore.Brand, name dnsname.Domain) rotation.Kind {
	switch name {
	case keystore.DefaultDomainName(b):
		return rotation.BrandDefault
	case keystore.SharedDomainName(b):
		return rotation.BrandShared
	}
	return rotation.Customer
}

func TestDisclosedKeys(t *testing.T) {
	names := []dnsname.Domain{"spamtrap.dk", "xn--bcher-kva.example", "acme.keys.example.net", "shared.acme.keys.example.net"}
	fake, store, pairs := disclosing(t, names...)
	server := newDisclosureServer(store, slog.New(slog.DiscardHandler))
	ask := func(method, path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		server.Handler.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path, nil))
		return w
	}

	for path, name := range map[string]dnsname.Domain{
		"/disclosed/spamtrap.dk/s1": "spamtrap.dk", "/disclosed/SpamTrap.DK/S1": "spamtrap.dk", "/disclosed/b%C3%BCcher.example/s1": "xn--bcher-kva.example",
		"/disclosed/acme.keys.example.net/s1": "acme.keys.example.net", "/disclosed/shared.acme.keys.example.net/s1": "shared.acme.keys.example.net",
	} {
		resp := ask(http.MethodGet, path)
		if resp.Code != http.StatusOK || resp.Header().Get("Cache-Control") != "public, max-age=3600" || resp.Header().Get("Content-Type") != "text/plain; charset=utf-8" {
			t.Errorf("GET %s: %d, %v\n%s", path, resp.Code, resp.Header(), resp.Body)
			continue
		}
		head, _, _ := strings.Cut(resp.Body.String(), "-----BEGIN")
		want := "Key: old\nDomain: " + string(name) + "\nSelector: s1\nAlgorithm: ed25519\nSigned-From: 2026-03-01T12:00:00Z\nSigned-Until: 2026-04-01T12:00:00Z\n" +
			"Destroyed: 2026-05-01T12:00:00Z\nDisclosed: 2026-06-01T12:00:00Z\n"
		if diff := cmp.Diff(want, head); diff != "" {
			t.Errorf("GET %s (-want +got):\n%s", path, diff)
		}
		private, rest := pem.Decode(resp.Body.Bytes())
		public, rest := pem.Decode(rest)
		if private == nil || public == nil || private.Type != "PRIVATE KEY" || public.Type != "PUBLIC KEY" || len(rest) > 0 {
			t.Fatalf("GET %s:\n%s", path, resp.Body)
		}
		key, err := x509.ParsePKCS8PrivateKey(private.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		half, err := x509.ParsePKIXPublicKey(public.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		own := pairs[name].Signer().Public().(interface{ Equal(crypto.PublicKey) bool })
		if !own.Equal(half) || !own.Equal(key.(crypto.Signer).Public()) {
			t.Errorf("GET %s gives another key", path)
		}
		if w := ask(http.MethodHead, path); w.Code != http.StatusOK {
			t.Errorf("HEAD %s: %d", path, w.Code)
		}
	}

	for path, want := range map[string]int{
		"/":                                 http.StatusNotFound,
		"/disclosed/":                       http.StatusNotFound,
		"/disclosed/spamtrap.dk":            http.StatusNotFound,
		"/disclosed/spamtrap.dk/":           http.StatusNotFound,
		"/disclosed/spamtrap.dk/s2":         http.StatusNotFound,
		"/disclosed/spamtrap.dk/s1/x":       http.StatusNotFound,
		"/disclosed/other.example/s1":       http.StatusNotFound,
		"/disclosed/b.example.net/s1":       http.StatusNotFound,
		"/disclosed/a%2Fb.example/s1":       http.StatusNotFound,
		"/disclosed/spamtrap.dk/%00s1":      http.StatusNotFound,
		"/disclosed/no.keys.example.net/s1": http.StatusNotFound,
		"/disclosed/spamtrap.dk%2Fold/s1":   http.StatusNotFound,
		"/metrics":                          http.StatusNotFound,
	} {
		if w := ask(http.MethodGet, path); w.Code != want || strings.Contains(w.Body.String(), "PRIVATE") {
			t.Errorf("GET %s: %d, want %d\n%s", path, w.Code, want, w.Body)
		}
	}
	if w := ask(http.MethodPost, "/disclosed/spamtrap.dk/s1"); w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", w.Code)
	}
	if w := ask(http.MethodGet, "/disclosed/spamtrap.dk/s2"); w.Header().Get("Cache-Control") != "public, max-age=300" {
		t.Errorf("%v of what is not there", w.Header())
	}
	fake.SetError(keystore.ErrUnavailable)
	if w := ask(http.MethodGet, "/disclosed/spamtrap.dk/s1"); w.Code != http.StatusServiceUnavailable || w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("without etcd: %d, %v", w.Code, w.Header())
	}
}

// Disclosed keys have a listener only when one is asked for, and no other
// listener has them.
func TestDisclosureListener(t *testing.T) {
	l := Listen{GRPC: "127.0.0.1:0", HTTP: "127.0.0.1:0", Metrics: "127.0.0.1:0"}
	bound, err := l.bind()
	if err != nil {
		t.Fatal(err)
	}
	defer bound.close()
	if bound.disclosure != nil {
		t.Errorf("bound %s without being asked to", bound.disclosure.Addr())
	}
	l.Disclosure = bound.metrics.Addr().String()
	if _, err := l.bind(); err == nil || !strings.Contains(err.Error(), "--disclosure-listen") {
		t.Errorf("error %v of an address in use", err)
	}

	_, store, _ := disclosing(t, "spamtrap.dk")
	server := newDisclosureServer(store, slog.New(slog.DiscardHandler))
	ln, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // loopback
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(ln) }()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+ln.Addr().String()+"/disclosed/spamtrap.dk/s1", nil)
	if err != nil {
		t.Fatal(err)
	}
	for header, want := range map[string]int{"": http.StatusOK, strings.Repeat("x", 16<<10): http.StatusRequestHeaderFieldsTooLarge} {
		req.Header.Set("X-Long", header)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Error(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("status %d with a header of %d octets, want %d", resp.StatusCode, len(header), want)
		}
	}
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
}
