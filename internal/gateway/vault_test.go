package gateway_test

import (
	"context"
	ed "crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/gateway"
	"github.com/dkimzone/dkimzone/internal/keypair"
)

// fakeSigner is a service that knows the token "good" and the domain
// spamtrap.dk, with a key of each kind that signs and one that has just ceased to.
type fakeSigner struct {
	dkimv1.UnimplementedSignerServer
	dkimv1.UnimplementedCallersServer

	keys map[string]*keypair.KeyPair // by name
	err  error                       // of ResolveSigningKeys
	cold bool                        // it has not listed what signs yet
	late atomic.Bool                 // ResolveSigningKeys once names only the key that has just ceased to sign
}

const vaultKeys = "brands/acme/domains/spamtrap.dk/keys/"

func newFakeSigner(t *testing.T) *fakeSigner {
	t.Helper()
	f := &fakeSigner{keys: make(map[string]*keypair.KeyPair)}
	for name, a := range map[string]keypair.Algorithm{"r": keypair.RSA2048, "e": keypair.Ed25519} {
		key, err := keypair.Generate(a)
		if err != nil {
			t.Fatal(err)
		}
		f.keys[vaultKeys+name] = key
	}
	return f
}

func authorized(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if got := md.Get("authorization"); !slices.Equal(got, []string{"Bearer good"}) {
		return status.Error(codes.Unauthenticated, "the credentials are not valid")
	}
	return nil
}

func (f *fakeSigner) GetCaller(ctx context.Context, _ *dkimv1.GetCallerRequest) (*dkimv1.Caller, error) {
	return &dkimv1.Caller{Role: dkimv1.Role_ROLE_SIGNER, Subject: "signer/mx1"}, authorized(ctx)
}

func (f *fakeSigner) ResolveSigningKeys(ctx context.Context, req *dkimv1.ResolveSigningKeysRequest) (*dkimv1.ResolveSigningKeysResponse, error) {
	if err := authorized(ctx); err != nil {
		return nil, err
	}
	switch {
	case f.err != nil:
		return nil, f.err
	case req.GetName() != "brands/-/domains/spamtrap.dk":
		return nil, status.Error(codes.NotFound, "nobody has the domain")
	}
	key := func(selector, name string) *dkimv1.SigningKey {
		return &dkimv1.SigningKey{Domain: "spamtrap.dk", Selector: selector, Key: vaultKeys + name}
	}
	if f.late.CompareAndSwap(true, false) {
		return &dkimv1.ResolveSigningKeysResponse{Keys: []*dkimv1.SigningKey{key("gone", "g")}, HoldDuration: durationpb.New(time.Hour)}, nil
	}
	return &dkimv1.ResolveSigningKeysResponse{
		Keys: []*dkimv1.SigningKey{key("selector1", "r"), key("e.selector", "e"), key("gone", "g")}, HoldDuration: durationpb.New(time.Hour),
	}, nil
}

func (f *fakeSigner) FetchPrivateKeys(_ context.Context, req *dkimv1.FetchPrivateKeysRequest) (*dkimv1.FetchPrivateKeysResponse, error) {
	if !req.GetTransient() {
		return nil, status.Error(codes.FailedPrecondition, "not registered")
	}
	resp := &dkimv1.FetchPrivateKeysResponse{}
	for _, name := range req.GetKeys() {
		res := &dkimv1.FetchPrivateKeysResponse_Result{Signing: true}
		key, ok := f.keys[name]
		if !ok {
			res = &dkimv1.FetchPrivateKeysResponse_Result{Error: status.New(codes.FailedPrecondition, "it has ceased to sign").Proto()}
		} else if der, err := key.PKCS8(); err == nil {
			res.PrivateKey = der
		}
		resp.Results = append(resp.Results, res)
	}
	return resp, nil
}

func (f *fakeSigner) WatchSigningKeys(_ *dkimv1.WatchSigningKeysRequest, stream grpc.ServerStreamingServer[dkimv1.WatchSigningKeysResponse]) error {
	if err := authorized(stream.Context()); err != nil {
		return err
	}
	some := []*dkimv1.SigningKey{{Selector: "s"}}
	for _, domains := range [][]*dkimv1.SigningDomain{
		{{Name: "brands/b/domains/two.example", Keys: some}, {Name: "brands/b/domains/none.example"}},
		{{Name: "brands/a/domains/one.example", Keys: some}},
	} {
		if err := stream.Send(&dkimv1.WatchSigningKeysResponse{Domains: domains}); err != nil {
			return err
		}
	}
	if err := stream.Send(&dkimv1.WatchSigningKeysResponse{Synced: true}); err != nil {
		return err
	}
	<-stream.Context().Done() // a watch does not end by itself
	return stream.Context().Err()
}

// serveVault listens for HTTPS with f behind it.
func serveVault(t *testing.T, f *fakeSigner) *httptest.Server {
	t.Helper()
	handler, err := gateway.New(gateway.Options{
		Register: func(r grpc.ServiceRegistrar) {
			dkimv1.RegisterSignerServer(r, f)
			dkimv1.RegisterCallersServer(r, f)
		},
		Signing: func() error {
			if f.cold {
				return errors.New("not loaded yet")
			}
			return nil
		},
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewTLSServer(handler)
	t.Cleanup(server.Close)
	return server
}

// ask makes a request with a token, if one is given, and returns the status and
// the document.
func ask(t *testing.T, server *httptest.Server, method, path string, tokens ...string) (int, map[string]any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, server.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, token := range tokens {
		req.Header.Add("X-Vault-Token", token)
	}
	resp, err := server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := json.Unmarshal(body, &doc); err != nil {
		t.Fatalf("%s %s: %d %s", method, path, resp.StatusCode, body)
	}
	return resp.StatusCode, doc
}

// at follows names into nested objects.
func at(doc any, names ...string) any {
	for _, name := range names {
		m, _ := doc.(map[string]any)
		doc = m[name]
	}
	return doc
}

func TestVaultDomain(t *testing.T) {
	f := newFakeSigner(t)
	server := serveVault(t, f)
	for path, data := range map[string][]string{
		"/vault/v1/dkim/spamtrap.dk":             {"data"},
		"/vault/v1/secret/dkim/spamtrap.dk":      {"data"},
		"/vault/v1/dkim/data/spamtrap.dk":        {"data", "data"},
		"/vault/v1/secret/data/dkim/spamtrap.dk": {"data", "data"},
		"/vault/v1/secret/data//spamtrap.dk":     {"data", "data"},
	} {
		code, doc := ask(t, server, "GET", path, "good")
		selectors, _ := at(doc, append(data, "selectors")...).([]any)
		if code != http.StatusOK || len(selectors) != 2 {
			t.Fatalf("%s: %d %v", path, code, doc)
		}
		now := time.Now().Unix()
		for i, want := range []struct{ selector, alg, key string }{{"selector1", "rsa", "r"}, {"e.selector", "ed25519", "e"}} {
			s := selectors[i]
			start, _ := at(s, "valid_start").(float64)
			end, _ := at(s, "valid_end").(float64)
			if at(s, "selector") != want.selector || at(s, "domain") != "spamtrap.dk" || at(s, "alg") != want.alg || int64(start) >= now || int64(end) <= now || int64(end) > now+3600 {
				t.Errorf("%s: %v", path, s)
			}
			text, _ := at(s, "key").(string)
			checkVaultKey(t, text, f.keys[vaultKeys+want.key])
			if at(s, "pubkey") != base64.StdEncoding.EncodeToString(f.keys[vaultKeys+want.key].Public().Octets) {
				t.Errorf("%s: public key %v", path, at(s, "pubkey"))
			}
		}
	}
}

// checkVaultKey reads a key as signers do: PEM, or the base64 of a seed.
func checkVaultKey(t *testing.T, text string, want *keypair.KeyPair) {
	t.Helper()
	var public any
	if block, _ := pem.Decode([]byte(text)); block != nil {
		private, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		switch k := private.(type) {
		case *rsa.PrivateKey:
			public = k.Public()
		case ed.PrivateKey:
			public = k.Public()
		}
	} else if seed, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(text, " ")); err == nil && len(seed) == ed.SeedSize {
		public = ed.NewKeyFromSeed(seed).Public()
	}
	if !cmp.Equal(public, any(want.Signer().Public())) {
		t.Error("the key is another one, or in no form that signers read")
	}
}

// A rotation between the two calls that a request takes leaves no mail unsigned.
func TestVaultRotationMeanwhile(t *testing.T) {
	f := newFakeSigner(t)
	server := serveVault(t, f)
	f.late.Store(true)
	code, doc := ask(t, server, http.MethodGet, "/vault/v1/dkim/spamtrap.dk", "good")
	selectors, _ := at(doc, "data", "selectors").([]any)
	if code != http.StatusOK || len(selectors) != 2 {
		t.Errorf("%d %v, want 2 selectors", code, doc)
	}
}

func TestVaultKey(t *testing.T) {
	f := newFakeSigner(t)
	server := serveVault(t, f)
	for path, key := range map[string]string{
		"/vault/v1/secret/data/dkim/spamtrap.dk/selector1":  "r",
		"/vault/v1/secret/data/dkim//spamtrap.dk/selector1": "r",
		"/vault/v1/secret/data/dkim/spamtrap.dk/e.selector": "e",
	} {
		code, doc := ask(t, server, "GET", path, "good")
		text, _ := at(doc, "data", "data", "key").(string)
		if code != http.StatusOK || text == "" {
			t.Fatalf("%s: %d %v", path, code, doc)
		}
		checkVaultKey(t, text, f.keys[vaultKeys+key])
		for _, name := range []string{"request_id", "lease_id", "lease_duration", "renewable"} { // some clients refuse a reply without them
			if _, ok := doc[name]; !ok {
				t.Errorf("%s: no %s", path, name)
			}
		}
		for _, name := range []string{"created_time", "deletion_time", "custom_metadata", "destroyed", "version"} {
			if m, _ := at(doc, "data", "metadata").(map[string]any); !slices.Contains(slices.Collect(maps.Keys(m)), name) {
				t.Errorf("%s: no %s in metadata", path, name)
			}
		}
	}
}

// Before dkimd has listed what signs a balancer is told to ask another one.
func TestVaultHealth(t *testing.T) {
	f := newFakeSigner(t)
	server := serveVault(t, f)
	for _, cold := range []bool{true, false} {
		f.cold = cold
		code, doc := ask(t, server, "GET", "/vault/v1/sys/health")
		if want := map[bool]int{true: http.StatusServiceUnavailable, false: http.StatusOK}[cold]; code != want || doc["sealed"] != cold {
			t.Errorf("not loaded %t: %d %v, want %d", cold, code, doc, want)
		}
	}
}

func TestVaultAnswers(t *testing.T) {
	tests := []struct {
		name, method, path string
		tokens             []string
		err                error
		code               int
		want               string // of the document in JSON
	}{
		{name: "health needs no token", path: "sys/health", code: 200, want: `"sealed":false`},
		{name: "a domain that nobody has", path: "dkim/other.example", tokens: []string{"good"}, code: 200, want: `"data":{"selectors":[]}`},
		{name: "the same in version 2", path: "dkim/data/other.example", tokens: []string{"good"}, code: 200, want: `"data":{"selectors":[]}`},
		{name: "a key of a domain that nobody has", path: "secret/data/dkim/other.example/s", tokens: []string{"good"}, code: 404, want: `{"errors":[]}`},
		{name: "a selector that does not sign", path: "secret/data/dkim/spamtrap.dk/s", tokens: []string{"good"}, code: 404, want: `{"errors":[]}`},
		{name: "one that has just ceased to", path: "secret/data/dkim/spamtrap.dk/gone", tokens: []string{"good"}, code: 404, want: `{"errors":[]}`},
		{name: "no token", path: "dkim/spamtrap.dk", code: 403, want: `"errors":["the credentials are not valid"]`},
		{name: "a wrong token", path: "dkim/spamtrap.dk", tokens: []string{"bad"}, code: 403, want: `"errors":["`},
		{name: "two tokens", path: "dkim/spamtrap.dk", tokens: []string{"good", "bad"}, code: 403, want: "give one token"},
		{name: "not allowed", path: "dkim/spamtrap.dk", tokens: []string{"good"}, err: status.Error(codes.PermissionDenied, "no"), code: 403, want: `{"errors":["no"]}`},
		{name: "store away", path: "dkim/spamtrap.dk", tokens: []string{"good"}, err: status.Error(codes.Unavailable, "away"), code: 503, want: `{"errors":["away"]}`},
		{name: "list", path: "dkim?list=true", tokens: []string{"good"}, code: 200, want: `"keys":["one.example","two.example"]`},
		{name: "list by method", method: "LIST", path: "secret/metadata/dkim", tokens: []string{"good"}, code: 200, want: `"keys":["one.example","two.example"]`},
		{name: "list without a token", path: "dkim?list=true", code: 403, want: `"errors":["the credentials`},
		{name: "lookup-self", path: "auth/token/lookup-self", tokens: []string{"good"}, code: 200, want: `"policies":["signer"]`},
		{name: "mount", path: "sys/internal/ui/mounts/dkim", tokens: []string{"good"}, code: 200, want: `"type":"kv"`},
		{name: "another path of sys", path: "sys/seal", tokens: []string{"good"}, code: 404, want: `{"errors":[]}`},
		{name: "writing", method: "PUT", path: "dkim/spamtrap.dk", tokens: []string{"good"}, code: 405, want: "for reading only"},
		{name: "deleting", method: "DELETE", path: "dkim/spamtrap.dk", tokens: []string{"good"}, code: 405, want: "for reading only"},
		{name: "too many segments", path: "dkim/spamtrap.dk/s/t", tokens: []string{"good"}, code: 404, want: `{"errors":[]}`},
		{name: "dots", path: "dkim/%2e%2e/spamtrap.dk", tokens: []string{"good"}, code: 400, want: `{"errors":["path: `},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFakeSigner(t)
			f.err = tt.err
			method := tt.method
			if method == "" {
				method = "GET"
			}
			code, doc := ask(t, serveVault(t, f), method, "/vault/v1/"+tt.path, tt.tokens...)
			text, err := json.Marshal(doc)
			if err != nil {
				t.Fatal(err)
			}
			if code != tt.code || !strings.Contains(string(text), tt.want) {
				t.Errorf("%d %s, want %d %s", code, text, tt.code, tt.want)
			}
		})
	}
}
