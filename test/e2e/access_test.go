package e2e_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

// Tokens, secrets of brands and JWTs with a real dkimd: what they let in, that
// they end, and that nothing of them stays behind.
func TestAccess(t *testing.T) {
	t.Parallel()
	s := newStandalone(t)
	issuer := newIssuer(t)
	s.start(t, "--oidc-issuer", issuer.URL, "--oidc-audience", "dkimzone", "--oidc-ca", issuer.ca)
	for _, brand := range []string{"acme", "other"} {
		s.ctl(t, "brand", "create", brand)
	}
	s.ctl(t, "domain", "provision", "other", "theirs.example", "--algorithm", "ed25519")

	secret, shop, auditor := &dkimv1.BrandSecret{}, &dkimv1.Token{}, &dkimv1.Token{}
	s.read(t, secret, "brand", "secret", "create", "acme")
	s.read(t, shop, "token", "create", "--role", "brand", "--brand", "acme")
	s.read(t, auditor, "token", "create", "--role", "auditor")
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("acme:"+secret.GetSecret()))
	jwt := "Bearer " + issuer.sign(t, map[string]any{"sub": "shop@example.net", "dkimzone_role": "brand", "dkimzone_brand": "acme"})

	conn := connect(t, s.grpc, trusting(t, s.admin().CA))
	api := dkimv1.NewKeyManagementClient(conn)
	as := func(authorization string) context.Context {
		return metadata.AppendToOutgoingContext(deadline(t), "authorization", authorization)
	}
	for i, authorization := range []string{basic, "Bearer " + shop.GetSecret(), jwt} {
		name := "brands/acme/domains/" + []string{"basic", "token", "jwt"}[i] + ".example"
		if _, err := api.ProvisionDomain(as(authorization), &dkimv1.ProvisionDomainRequest{
			Name: name, Algorithm: dkimv1.KeyAlgorithm_KEY_ALGORITHM_ED25519,
		}); err != nil {
			t.Errorf("own domain: %v", err)
		}
		_, err := api.ListZones(as(authorization), &dkimv1.ListZonesRequest{})
		checkStatus(t, err, codes.PermissionDenied, "PERMISSION_DENIED")
	}

	// Brand acme about brand other, by every method that there is.
	before := visible(t, s.api(t), s.dns)
	for method, req := range foreignRequests(t) {
		for _, authorization := range []string{basic, jwt} {
			stream, err := conn.NewStream(as(authorization), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
			if err == nil {
				if err = stream.SendMsg(req); err == nil {
					_ = stream.CloseSend()
				}
				err = stream.RecvMsg(dynamicpb.NewMessage((&dkimv1.Brand{}).ProtoReflect().Descriptor()))
			}
			t.Run(path.Base(method), func(t *testing.T) { checkStatus(t, err, codes.PermissionDenied, "PERMISSION_DENIED") })
		}
	}
	for _, r := range foreignRoutes(t) {
		t.Run(r.method+" "+r.path, func(t *testing.T) {
			for _, authorization := range []string{basic, jwt} {
				req, err := http.NewRequestWithContext(deadline(t), r.method, "https://"+s.http+r.path, strings.NewReader(r.body))
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Authorization", authorization)
				if r.body != "" {
					req.Header.Set("Content-Type", "application/json")
				}
				web := http.Client{Transport: &http.Transport{TLSClientConfig: trusting(t, s.admin().CA), DisableKeepAlives: true}}
				resp, err := web.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				if resp.StatusCode != http.StatusForbidden || !strings.Contains(string(body), "PERMISSION_DENIED") {
					t.Errorf("%s: %s", resp.Status, body)
				}
			}
		})
	}
	_, err := api.GetDomain(as("Bearer "+auditor.GetSecret()), &dkimv1.GetDomainRequest{Name: "brands/other/domains/theirs.example"})
	if err != nil {
		t.Errorf("an auditor reads: %v", err)
	}
	_, err = api.DeleteDomain(as("Bearer "+auditor.GetSecret()), &dkimv1.DeleteDomainRequest{Name: "brands/other/domains/theirs.example"})
	checkStatus(t, err, codes.PermissionDenied, "PERMISSION_DENIED")
	if after := visible(t, s.api(t), s.dns); after != before {
		t.Errorf("something has changed:\n%s\nbefore:\n%s", after, before)
	}

	// dkimctl with a token; and after that is gone.
	dir := t.TempDir()
	config := "address: " + s.grpc + "\nca_file: " + s.admin().CA + "\ntoken_file: token\n"
	for name, text := range map[string]string{"token": shop.GetSecret() + "\n", "dkimctl.yaml": config} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	with := client{config: filepath.Join(dir, "dkimctl.yaml")}
	if got := with.ctl(t, "domain", "list", "acme"); !strings.Contains(got, "token.example") {
		t.Errorf("dkimctl with a token lists %q", got)
	}
	s.ctl(t, "token", "revoke", path.Base(shop.GetName()), "--yes")
	checkFailed(t, with.run(t, "domain", "list", "acme"), 1, "[UNAUTHENTICATED]")
	s.ctl(t, "brand", "secret", "revoke", "acme", path.Base(secret.GetName()), "--yes")
	_, err = api.GetBrand(as(basic), &dkimv1.GetBrandRequest{Name: "brands/acme"})
	checkStatus(t, err, codes.Unauthenticated, "UNAUTHENTICATED")

	metrics := page(t, "http://"+s.metrics+"/metrics")
	s.stop(t)
	places := tree(t, s.dataDir)
	places["output"], places["metrics"] = []byte(s.Output()), metrics
	if !strings.Contains(s.Output(), "credentials refused") {
		t.Error("the refusal of a revoked token is not in the log")
	}
	if !containsAny(places, path.Base(auditor.GetName())) {
		t.Error("no file has the id of a token, so that the test says nothing")
	}
	for what, credential := range map[string]string{"secret": secret.GetSecret(), "token": shop.GetSecret(), "auditor's token": auditor.GetSecret(), "JWT": jwt[len(jwt)-40:]} {
		random := credential[len(credential)-32:]
		raw, err := base64.RawURLEncoding.DecodeString(random)
		if err != nil {
			t.Fatal(err)
		}
		for place, data := range places {
			// The files of etcd are large: only the forms in which it is at hand.
			for _, form := range []string{random, string(raw), hex.EncodeToString(raw), basic[len("Basic "):]} {
				if bytes.Contains(data, []byte(form)) {
					t.Errorf("the %s is in %s", what, place)
				}
			}
		}
	}
}

// foreignRequests has, for each method of the API that takes a name, a request
// about brand other.
func foreignRequests(t *testing.T) map[string]*dynamicpb.Message {
	t.Helper()
	requests := make(map[string]*dynamicpb.Message)
	protoregistry.GlobalFiles.RangeFilesByPackage("dkim.v1", func(fd protoreflect.FileDescriptor) bool {
		for i := range fd.Services().Len() {
			service := fd.Services().Get(i)
			for j := range service.Methods().Len() {
				m := service.Methods().Get(j)
				req := dynamicpb.NewMessage(m.Input())
				for _, field := range []string{`{"name":"brands/other/domains/theirs.example"}`, `{"parent":"brands/other"}`, `{"domain":{"name":"brands/other/domains/theirs.example"}}`, `{"brand":{"name":"brands/other"}}`} {
					one := dynamicpb.NewMessage(m.Input())
					if protojson.Unmarshal([]byte(field), one) == nil {
						req = one
					}
				}
				if !namesNobody(m) {
					requests["/"+string(service.FullName())+"/"+string(m.Name())] = req
				}
			}
		}
		return true
	})
	if len(requests) < 30 {
		t.Fatalf("found %d methods only", len(requests))
	}
	return requests
}

// namesNobody reports whether a method is about the caller himself, or answers
// with what is his: he may call it.
func namesNobody(m protoreflect.MethodDescriptor) bool {
	return m.Name() == "ListBrands" || m.Name() == "GetCaller"
}

// route is an HTTP request.
type route struct{ method, path, body string }

// foreignRoutes has, for each method of the API, its HTTP request about brand
// other, and those of the provisioning interface.
func foreignRoutes(t *testing.T) []route {
	t.Helper()
	routes := []route{
		{"GET", "/cloudapi/v2/mail/dkim/other", ""},
		{"GET", "/cloudapi/v2/mail/dkim/other/theirs.example", ""},
		{"GET", "/cloudapi/v2/mail/dkim/other/nothing.example", ""},
		{"PUT", "/cloudapi/v2/mail/dkim/other/theirs.example", ""},
		{"GET", "/cloudapi/v2/mail/dkim/other/theirs.example/selector1", ""},
		{"POST", "/cloudapi/v2/mail/dkim/other/theirs.example/rotate", ""},
		{"DELETE", "/cloudapi/v2/mail/dkim/other/theirs.example", ""},
		{"GET", "/cloudapi/v2/mail/dkim/nobody", ""},
	}
	values := map[string]string{
		"zones": zone, "brands": "other", "domains": "theirs.example", "keys": "abc", "tokens": "abc", "secrets": "abc", "signers": "mx1", "operations": "abc",
	}
	own := len(routes)
	protoregistry.GlobalFiles.RangeFilesByPackage("dkim.v1", func(fd protoreflect.FileDescriptor) bool {
		for i := range fd.Services().Len() {
			for j := range fd.Services().Get(i).Methods().Len() {
				m := fd.Services().Get(i).Methods().Get(j)
				rule, ok := proto.GetExtension(m.Options(), annotations.E_Http).(*annotations.HttpRule)
				if !ok || namesNobody(m) {
					continue
				}
				r := route{}
				for method, template := range map[string]string{
					"GET": rule.GetGet(), "POST": rule.GetPost(), "PUT": rule.GetPut(), "PATCH": rule.GetPatch(), "DELETE": rule.GetDelete(),
				} {
					if template != "" {
						r.method, r.path = method, fill(template, values)
					}
				}
				if rule.GetBody() != "" {
					r.body = "{}"
				}
				if r.path != "" {
					routes = append(routes, r)
				}
			}
		}
		return true
	})
	if len(routes) < own+30 {
		t.Fatalf("found %d routes only", len(routes)-own)
	}
	return routes
}

// fill puts a value in the place of each star of a path template, by the segment
// before it.
func fill(template string, values map[string]string) string {
	segments := strings.Split(variable.ReplaceAllString(template, "$1"), "/")
	for i := 1; i < len(segments); i++ {
		star, verb, _ := strings.Cut(segments[i], ":")
		if star == "*" {
			segments[i] = values[segments[i-1]]
			if verb != "" {
				segments[i] += ":" + verb
			}
		}
	}
	return strings.Join(segments, "/")
}

var variable = regexp.MustCompile(`\{[a-z_.]+=([^}]*)\}`)

// issuer is an OpenID Connect issuer.
type issuer struct {
	*httptest.Server

	ca      string // file
	signer  jose.Signer
	public  ed25519.PublicKey
	private ed25519.PrivateKey
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{ca: filepath.Join(t.TempDir(), "issuer.crt"), public: public, private: private}
	i.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := any(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: public, KeyID: "k", Algorithm: string(jose.EdDSA)}}})
		if r.URL.Path == "/.well-known/openid-configuration" {
			answer = map[string]string{"issuer": i.URL, "jwks_uri": i.URL + "/keys"}
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer)
	}))
	t.Cleanup(i.Close)
	if err := os.WriteFile(i.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	i.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: jose.JSONWebKey{Key: private, KeyID: "k"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func (i *issuer) sign(t *testing.T, claims map[string]any) string {
	t.Helper()
	claims["iss"], claims["aud"], claims["exp"] = i.URL, "dkimzone", time.Now().Add(time.Hour).Unix()
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := i.signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
