package gateway_test

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/emptypb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

// basic shows the secret of a brand.
func basic(brand, secret string) func(*http.Request) {
	return func(r *http.Request) { r.SetBasicAuth(brand, secret) }
}

// bearer shows a token.
func bearer(token string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }
}

// brandSecret makes a secret of a brand, over REST.
func (f *fixture) brandSecret(t testing.TB, brand string) string {
	t.Helper()
	s := &dkimv1.BrandSecret{}
	f.ok(t, "POST", "/v1/brands/"+brand+"/secrets", "{}", s)
	return s.GetSecret()
}

// token makes a token, over REST.
func (f *fixture) token(t testing.TB, body string) *dkimv1.Token {
	t.Helper()
	m := &dkimv1.Token{}
	f.ok(t, "POST", "/v1/tokens", body, m)
	return m
}

func TestBrandSecret(t *testing.T) {
	f := newFixture(t)
	stranger := f.as(t, "", "")
	secret := f.brandSecret(t, "acme")
	as := basic("acme", secret)

	f.doAs(t, stranger, "GET", cloud+"acme", "", as).refused(t, http.StatusNotFound, "NO_ENTRIES")
	a := f.doAs(t, stranger, "PUT", cloud+"acme/spamtrap.dk", `{"algorithm":"ed25519"}`, as)
	if a.code != http.StatusOK || a.header.Get("X-Request-Id") == "" {
		t.Fatalf("PUT: %d %v %s", a.code, a.header, a.body)
	}
	for _, path := range []string{cloud + "acme", cloud + "acme/spamtrap.dk", cloud + "acme/spamtrap.dk/selector1", "/v1/brands/acme/domains/spamtrap.dk"} {
		if a := f.doAs(t, stranger, "GET", path, "", as); a.code != http.StatusOK {
			t.Errorf("GET %s: %d %s", path, a.code, a.body)
		}
	}
	caller := f.doAs(t, stranger, "GET", "/v1/caller", "", as).document(t)
	if caller["role"] != "ROLE_BRAND" || caller["brand"] != "brands/acme" || caller["method"] != "secret" {
		t.Errorf("caller %v", caller)
	}
	// The certificate of an administrator makes up for nothing.
	f.do(t, "GET", cloud+"acme", "", basic("acme", "dks_wrong")).refused(t, http.StatusUnauthorized, "UNAUTHENTICATED")
	f.do(t, "GET", cloud+"other", "", as).refused(t, http.StatusForbidden, "PERMISSION_DENIED")
	if strings.Contains(f.log.String(), secret) {
		t.Error("the secret is in the log")
	}
}

// The record face takes the brand from the caller.
func TestBrandOfTheCaller(t *testing.T) {
	f := newFixture(t)
	stranger := f.as(t, "", "")
	records := "/v1/domains/spamtrap.dk/dns_records"
	as := bearer(f.token(t, `{"role":"ROLE_BRAND","brand":"brands/acme","subject":"shop"}`).GetSecret())
	body := fmt.Sprintf(`{"type":"TXT","name":"mail._domainkey","value":"v=DKIM1; k=ed25519; p=%s","ttl":3600}`, publicKey(t))

	a := f.doAs(t, stranger, "POST", records, body, as)
	if a.code != http.StatusCreated {
		t.Fatalf("%d %s", a.code, a.body)
	}
	id, _ := a.document(t)["id"].(string)
	if list, _ := f.doAs(t, stranger, "GET", records, "", as).document(t)["dns_records"].([]any); len(list) != 1 {
		t.Errorf("%d records", len(list))
	}
	for _, path := range []string{records + "?brand=other", records + "/" + id + "?brand=other"} {
		f.doAs(t, stranger, "GET", path, "", as).refused(t, http.StatusForbidden, "PERMISSION_DENIED")
	}
	f.unchanged(t, func() {
		f.doAs(t, stranger, "DELETE", records+"/"+id+"?brand=other", "", as).refused(t, http.StatusForbidden, "PERMISSION_DENIED")
		other := strings.Replace(body, "{", `{"brand":"other",`, 1)
		f.doAs(t, stranger, "POST", records, other, as).refused(t, http.StatusForbidden, "PERMISSION_DENIED")
		f.doAs(t, stranger, "POST", records, body).refused(t, http.StatusUnauthorized, "UNAUTHENTICATED")
		f.doAs(t, stranger, "GET", records, "").refused(t, http.StatusUnauthorized, "UNAUTHENTICATED")
	})
	if a := f.doAs(t, stranger, "DELETE", records+"/"+id, "", as); a.code != http.StatusNoContent {
		t.Errorf("DELETE: %d %s", a.code, a.body)
	}
}

// Credentials that are not good are all refused in the same words, and change
// nothing.
func TestCredentials(t *testing.T) {
	f := newFixture(t)
	stranger := f.as(t, "", "")
	secret := f.brandSecret(t, "acme")
	good := f.token(t, `{"role":"ROLE_ADMIN"}`)
	revoked := f.token(t, `{"role":"ROLE_ADMIN"}`)
	f.ok(t, "DELETE", "/v1/"+revoked.GetName(), "", &emptypb.Empty{})
	two := func(r *http.Request) {
		r.Header["Authorization"] = []string{"Bearer " + good.GetSecret(), "Bearer dkz_other"}
	}
	forged := good.GetSecret()[:len(good.GetSecret())-4] + "AAAA"
	if a := f.doAs(t, stranger, "GET", "/v1/zones", "", bearer(good.GetSecret())); a.code != http.StatusOK {
		t.Fatalf("%d %s", a.code, a.body)
	}
	for _, tt := range []struct {
		name string
		edit func(*http.Request)
	}{
		{"none", func(*http.Request) {}},
		{"unknown brand", basic("nobody", secret)},
		{"secret of another brand", basic("other", secret)},
		{"wrong secret", basic("acme", secret+"a")},
		{"empty secret", basic("acme", "")},
		{"secret as a token", bearer(secret)},
		{"forged token", bearer(forged)},
		{"revoked token", bearer(revoked.GetSecret())},
		{"unknown scheme", func(r *http.Request) { r.Header.Set("Authorization", "Digest username=acme") }},
		{"nothing after the scheme", func(r *http.Request) { r.Header.Set("Authorization", "Bearer ") }},
		{"unsigned JWT", bearer("eyJhbGciOiJub25lIn0.eyJyb2xlIjoiYWRtaW4ifQ.")},
		{"two headers", two},
		{"token in the query", func(r *http.Request) { r.URL.RawQuery = "access_token=" + good.GetSecret() }},
		{"token in a cookie", func(r *http.Request) { r.AddCookie(&http.Cookie{Name: "authorization", Value: good.GetSecret()}) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f.unchanged(t, func() {
				for _, path := range []string{cloud + "acme/new.example", "/v1/brands/acme/domains/new.example:provision"} {
					method := map[bool]string{true: http.MethodPut, false: http.MethodPost}[strings.HasPrefix(path, cloud)]
					a := f.doAs(t, stranger, method, path, "", tt.edit)
					if tt.name == "token in the query" && a.code == http.StatusBadRequest {
						continue
					}
					a.refused(t, http.StatusUnauthorized, "UNAUTHENTICATED")
					if len(a.header.Values("WWW-Authenticate")) != 2 {
						t.Errorf("header %v", a.header)
					}
				}
			})
		})
	}
	for _, s := range []string{secret, good.GetSecret(), forged, revoked.GetSecret()} {
		if strings.Contains(f.log.String(), s) {
			t.Error("a credential is in the log")
		}
	}
}

// Guessing is slowed down, and told so.
func TestGuessing(t *testing.T) {
	f := newFixture(t)
	stranger := f.as(t, "", "")
	secret := f.brandSecret(t, "acme")
	for n := range 200 {
		a := f.doAs(t, stranger, "GET", cloud+"acme", "", basic("acme", fmt.Sprintf("%s%d", secret[:20], n)))
		if a.code == http.StatusUnauthorized {
			continue
		}
		a.refused(t, http.StatusTooManyRequests, "TOO_MANY_ATTEMPTS")
		if after := a.header.Get("Retry-After"); after == "" || after == "0" {
			t.Errorf("Retry-After %q", after)
		}
		return
	}
	t.Error("200 guesses were answered")
}

// A brand reaches nothing of another one, by no route. What it may call without
// naming a brand is listed here.
func TestForeignBrand(t *testing.T) {
	f := newFixture(t)
	stranger := f.as(t, "", "")
	d := provision(t, f, "other", "other.example")
	as := basic("acme", f.brandSecret(t, "acme"))
	own := map[string]bool{"/dkim.v1.KeyManagement/ListBrands": true, "/dkim.v1.Callers/GetCaller": true}
	key := lastOf(d.GetSelectors()[0].GetKey())
	names := strings.NewReplacer("brands/*", "brands/other", "domains/*", "domains/other.example", "keys/*", "keys/"+key, "*", "x")
	variable := regexp.MustCompile(`\{[a-z_.]+=([^}]*)\}`)
	protoregistry.GlobalFiles.RangeFilesByPackage("dkim.v1", func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			s := file.Services().Get(i)
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				rule, _ := proto.GetExtension(m.Options(), annotations.E_Http).(*annotations.HttpRule)
				verb, path := pattern(rule)
				path = names.Replace(variable.ReplaceAllString(path, "$1"))
				method := fmt.Sprintf("/%s/%s", s.FullName(), m.Name())
				t.Run(method, func(t *testing.T) {
					f.unchanged(t, func() {
						a := f.doAs(t, stranger, verb, path, "", as)
						switch {
						case own[method]:
							if a.code != http.StatusOK || strings.Contains(string(a.body), "other") {
								t.Errorf("%d %s", a.code, a.body)
							}
						case a.code == http.StatusNotImplemented: // not in the fixture
						default:
							a.refused(t, http.StatusForbidden, "PERMISSION_DENIED")
						}
					})
				})
			}
		}
		return true
	})
	// Whether a domain is there makes no difference to the answer.
	for _, face := range []struct{ method, path string }{
		{"GET", cloud + "other"}, {"GET", cloud + "other/DOMAIN"}, {"PUT", cloud + "other/DOMAIN"}, {"DELETE", cloud + "other/DOMAIN"},
		{"POST", cloud + "other/DOMAIN/rotate"}, {"GET", cloud + "other/DOMAIN/selector1"}, {"GET", cloud + "nobody/DOMAIN"},
		{"GET", "/v1/domains/DOMAIN/dns_records?brand=other"},
	} {
		t.Run(face.method+" "+face.path, func(t *testing.T) {
			f.unchanged(t, func() {
				there := f.doAs(t, stranger, face.method, strings.Replace(face.path, "DOMAIN", "other.example", 1), "", as)
				there.refused(t, http.StatusForbidden, "PERMISSION_DENIED")
				absent := f.doAs(t, stranger, face.method, strings.Replace(face.path, "DOMAIN", "none.example", 1), "", as)
				wantEqual(t, "answer", string(absent.body), string(there.body))
			})
		})
	}
	// The domain of another brand is not there in one's own.
	f.doAs(t, stranger, "GET", cloud+"acme/other.example", "", as).refused(t, http.StatusNotFound, "DOMAIN_NOT_FOUND")
}

func lastOf(name string) string { return name[strings.LastIndexByte(name, '/')+1:] }

// A request id is a name for the log: the same one again is another request.
func TestRequestID(t *testing.T) {
	f := newFixture(t)
	id := func(v string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set("X-Request-Id", v) }
	}
	a := f.do(t, "PUT", cloud+"acme/a.example", `{"algorithm":"ed25519"}`, id("one"))
	b := f.do(t, "PUT", cloud+"acme/b.example", `{"algorithm":"ed25519"}`, id("one"))
	if a.document(t)["domain"] == b.document(t)["domain"] {
		t.Errorf("the second request is answered as the first: %s", b.body)
	}
	if got := b.header.Get("X-Request-Id"); got != "one" {
		t.Errorf("request id %q", got)
	}
	for _, bad := range []string{strings.Repeat("a", 65), "a b", `a"b`, "a;b"} {
		if got := f.do(t, "GET", "/v1/zones", "", id(bad)).header.Get("X-Request-Id"); got == bad || got == "" {
			t.Errorf("request id %q for %q", got, bad)
		}
	}
	for what, a := range map[string]answer{
		"refusal":           f.do(t, "GET", "/v1/brands/nobody", "", id("two")),
		"refusal of a face": f.do(t, "GET", cloud+"acme/none.example", "", id("two")),
		"stream":            f.do(t, "GET", "/v1/zones/keys.example.net:export", "", id("two")),
	} {
		if got := a.header.Get("X-Request-Id"); got != "two" {
			t.Errorf("request id of a %s: %q", what, got)
		}
	}
}
