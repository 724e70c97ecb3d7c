package e2e_test

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc/codes"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/authn"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/pki"
	"github.com/dkimzone/dkimzone/test/harness"
)

// attackCredentials shows credentials that are not good, or none, over gRPC and to
// each face of HTTPS.
func attackCredentials(t *testing.T, g *target) {
	t.Helper()
	admin := pairOf(t, g.in.admin.Cert, g.in.admin.Key)
	for _, tt := range []struct {
		name          string
		cert          *tls.Certificate
		authorization []string
	}{
		{name: "none"},
		{name: "certificate without a role", cert: g.client(t, pki.Identity{Role: "etcd", Name: "dkimd"}, time.Now())},
		{name: "wrong with a good certificate", cert: admin, authorization: []string{"Bearer dkz_" + strings.Repeat("a", 12) + "_" + strings.Repeat("A", 32)}},
		{name: "empty with a good certificate", cert: admin, authorization: []string{""}},
		{name: "two, one good", authorization: []string{g.good["token"], "Bearer x"}},
		{name: "two, the other good", authorization: []string{"Bearer x", g.good["token"]}},
		{name: "the same twice", authorization: []string{g.good["token"], g.good["token"]}},
		{name: "two with a good certificate", cert: admin, authorization: []string{g.good["token"], g.good["secret"]}},
	} {
		t.Run(tt.name, func(t *testing.T) { g.checkNobody(t, g.stranger(t, tt.cert, tt.authorization...), faces...) })
	}
	// Of these few calls each: after some wrong ones the rest is not looked at.
	i := 0
	for name, authorization := range g.wrong(t) {
		i++
		t.Run(name, func(t *testing.T) { g.checkNobody(t, g.stranger(t, nil, authorization), faces[i%len(faces)]) })
	}
	for name, authorization := range g.forged(t) { // the issuer is asked about each
		t.Run(name, func(t *testing.T) { g.checkNobody(t, g.stranger(t, nil, authorization)) })
	}
	t.Run("handshake", func(t *testing.T) { attackHandshake(t, g) })
	t.Run("revoked", func(t *testing.T) { attackRevoked(t, g) })
}

// faces are requests to all faces of HTTPS.
var faces = [][3]string{
	{"GET", "/v1/" + ourDomain}, {"POST", "/v1/" + ourDomain + ":provision", "{}"}, {"GET", "/v1/brands/acme/domains:watch"},
	{"GET", cloudapi + "acme"}, {"PUT", cloudapi + "acme/new.example"}, {"DELETE", cloudapi + "acme/ours.example"},
	{"GET", "/v1/domains/ours.example/dns_records"}, {"GET", "/v1/domains/ours.example/dns_records?brand=acme"}, {"GET", "/v1/caller"},
}

// checkNobody looks whether a is refused as somebody whom nobody knows.
func (g *target) checkNobody(t *testing.T, a *attacker, requests ...[3]string) {
	t.Helper()
	g.unchanged(t, func() {
		err := a.call(t, "/dkim.v1.KeyManagement/DeleteDomain", &dkimv1.DeleteDomainRequest{Name: ourDomain}, &dkimv1.Domain{})
		checkStatus(t, err, codes.Unauthenticated, "UNAUTHENTICATED")
		for _, r := range requests {
			got := a.do(t, r[0], r[1], r[2])
			got.refused(t, http.StatusUnauthorized, "UNAUTHENTICATED")
			if strings.Contains(got.body, "ours.example") {
				t.Errorf("the answer knows the domain: %v", got)
			}
		}
	})
}

const cloudapi = "/cloudapi/v2/mail/dkim/"

// wrong are authorization headers that are not good, by what is wrong with them.
func (g *target) wrong(t *testing.T) map[string]string {
	t.Helper()
	token, theirs := strings.TrimPrefix(g.good["token"], "Bearer "), strings.TrimPrefix(g.good["auditor"], "Bearer ")
	secret := password(t, g.good["secret"])
	all := map[string]string{
		"unknown scheme":             "Digest " + token,
		"no scheme":                  token,
		"no credential":              "Bearer",
		"token, last character":      "Bearer " + flip(token),
		"token, cut":                 "Bearer " + token[:len(token)-1],
		"token, longer":              "Bearer " + token + "A",
		"token, id of another":       "Bearer " + theirs[:17] + token[17:],
		"token, id in capitals":      "Bearer dkz_" + strings.ToUpper(token[4:16]) + token[16:],
		"token, unknown":             "Bearer dkz_abcdefghijkl" + token[16:],
		"token, only the id":         "Bearer " + token[:17] + strings.Repeat("A", 32),
		"token, its hash":            "Bearer " + token[:17] + base64.RawURLEncoding.EncodeToString(hash(token))[:32],
		"token, twice":               "Bearer " + token + " " + token,
		"token, with a comma":        "Bearer " + token + ", Bearer " + token,
		"token as a password":        basicAuth("acme", token),
		"token as a user":            basicAuth(token, ""),
		"secret as a token":          "Bearer " + secret,
		"secret, last character":     basicAuth("acme", flip(secret)),
		"secret, cut":                basicAuth("acme", secret[:len(secret)-1]),
		"secret of another brand":    basicAuth("other", secret),
		"secret of no brand":         basicAuth("nobody", secret),
		"secret, brand in capitals":  basicAuth("ACME", secret),
		"secret, user with a path":   basicAuth("brands/acme", secret),
		"secret, user admin":         basicAuth("admin", secret),
		"secret, no user":            basicAuth("", secret),
		"secret, empty":              basicAuth("acme", ""),
		"secret, of all brands":      basicAuth("-", secret),
		"secret, more colons":        basicAuth("acme", "x:"+secret),
		"secret, with a line end":    basicAuth("acme", secret+"\n"),
		"secret, with a NUL":         basicAuth("acme", secret+"\x00"),
		"secret, no base64":          "Basic acme:" + secret,
		"secret, base64 for URLs":    "Basic " + base64.URLEncoding.EncodeToString([]byte("acme:~~~???"+secret)),
		"JWT, no signature":          "Bearer " + jwt(`{"alg":"none"}`, claims(g, nil), nil),
		"JWT, no signature, letters": "Bearer " + jwt(`{"alg":"nOnE"}`, claims(g, nil), nil),
		"JWT, no algorithm":          "Bearer " + jwt(`{}`, claims(g, nil), nil),
	}
	genuine := strings.Split(strings.TrimPrefix(g.good["JWT"], "Bearer "), ".")
	all["JWT, other header over the signature"] = "Bearer " + segment(`{"alg":"none","kid":"k"}`) + "." + genuine[1] + "." + genuine[2]
	all["JWT, five parts"] = g.good["JWT"] + ".a.b"
	head := segment(`{"alg":"HS256","kid":"k"}`) + "." + segment(claims(g, nil))
	mac := hmac.New(sha256.New, g.issuer.public)
	mac.Write([]byte(head))
	all["JWT, public key as a secret"] = "Bearer " + head + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
	// Signed by the issuer, but not for this.
	hour := time.Now().Add(time.Hour).Unix()
	for name, change := range map[string]map[string]any{
		"JWT, of another issuer":        {"iss": "https://login.example.org"},
		"JWT, issuer with a slash":      {"iss": g.issuer.URL + "/"},
		"JWT, for others":               {"aud": "another"},
		"JWT, for nobody":               {"aud": nil},
		"JWT, expired":                  {"exp": time.Now().Add(-time.Hour).Unix()},
		"JWT, without an end":           {"exp": nil},
		"JWT, not valid yet":            {"nbf": hour},
		"JWT, no role":                  {"dkimzone_role": nil},
		"JWT, unknown role":             {"dkimzone_role": "root"},
		"JWT, two roles":                {"dkimzone_role": []string{"brand", "admin"}},
		"JWT, role of another kind":     {"dkimzone_role": 1},
		"JWT, admin of a brand":         {"dkimzone_role": "admin"},
		"JWT, role brand without one":   {"dkimzone_brand": nil},
		"JWT, two brands":               {"dkimzone_brand": []string{"acme", "other"}},
		"JWT, empty brand":              {"dkimzone_brand": ""},
		"JWT, all brands":               {"dkimzone_brand": "-"},
		"JWT, brand with more behind":   {"dkimzone_brand": "acme/domains/ours.example"},
		"JWT, no subject":               {"sub": ""},
		"JWT, subject with a line end":  {"sub": "a\nlevel=INFO msg=forged"},
		"JWT, subject that has a path":  {"sub": "../admin"},
		"JWT, subject of another brand": {"sub": "brands/other"},
	} {
		all[name] = "Bearer " + jwt(`{"alg":"EdDSA","kid":"k"}`, claims(g, change), g.issuer.private)
	}
	maps.Copy(all, g.expired(t))
	return all
}

// forged are JWTs with a signature that is not of the issuer's key.
func (g *target) forged(t *testing.T) map[string]string {
	t.Helper()
	genuine := strings.Split(strings.TrimPrefix(g.good["JWT"], "Bearer "), ".")
	all := map[string]string{
		"JWT, signature cut off":               "Bearer " + genuine[0] + "." + genuine[1] + ".",
		"JWT, other claims with the signature": "Bearer " + genuine[0] + "." + segment(claims(g, map[string]any{"dkimzone_role": "admin", "dkimzone_brand": nil})) + "." + genuine[2],
	}
	own := newEd25519(t)
	brought, err := json.Marshal(jose.JSONWebKey{Key: own.Public(), KeyID: "k", Algorithm: "EdDSA"})
	if err != nil {
		t.Fatal(err)
	}
	for name, header := range map[string]string{
		"JWT, other key":             `{"alg":"EdDSA","kid":"k"}`,
		"JWT, unknown key":           `{"alg":"EdDSA","kid":"../../../dev/null"}`,
		"JWT, key in the header":     `{"alg":"EdDSA","kid":"k","jwk":` + string(brought) + `}`,
		"JWT, key of an URL":         `{"alg":"EdDSA","kid":"k","jku":"https://127.0.0.1:9/keys"}`,
		"JWT, unknown critical part": `{"alg":"EdDSA","kid":"k","crit":["exp"]}`,
	} {
		all[name] = "Bearer " + jwt(header, claims(g, nil), own)
	}
	return all
}

// expired are credentials that were good once, or would be if what they are of
// were there.
func (g *target) expired(t *testing.T) map[string]string {
	t.Helper()
	id, token, sum := authn.NewToken()
	past := time.Now().Add(-time.Hour)
	if err := g.store.CreateToken(deadline(t), keystore.Token{
		ID: id, Hash: sum, Role: "admin", Name: "late", CreateTime: past.Add(-time.Hour), ExpireTime: past,
	}); err != nil {
		t.Fatal(err)
	}
	secret, stored := authn.NewBrandSecret("acme")
	stored.CreateTime, stored.ExpireTime = past.Add(-time.Hour), past
	if err := g.store.CreateBrandSecret(deadline(t), stored); err != nil {
		t.Fatal(err)
	}
	// Of a brand that was deleted, and made again.
	create := func() {
		if _, err := g.api.CreateBrand(deadline(t), &dkimv1.CreateBrandRequest{BrandId: "again"}); err != nil {
			t.Fatal(err)
		}
	}
	create()
	kept, gone := g.newToken(t, &dkimv1.Token{Role: dkimv1.Role_ROLE_BRAND, Brand: "brands/again"}), g.newSecret(t, "again")
	if _, err := g.api.DeleteBrand(deadline(t), &dkimv1.DeleteBrandRequest{Name: "brands/again"}); err != nil {
		t.Fatal(err)
	}
	create()
	return map[string]string{
		"token, expired": "Bearer " + token, "secret, expired": basicAuth("acme", secret),
		"token of a deleted brand": "Bearer " + kept.GetSecret(), "secret of a deleted brand": basicAuth("again", gone.GetSecret()),
	}
}

// attackHandshake shows certificates that do not get as far as a call.
func attackHandshake(t *testing.T, g *target) {
	t.Helper()
	foreign := harness.NewPKI(t).Client(t, "alice", "admin")
	serverOnly := g.in.etcd.PKI.Server(t, "stranger", harness.Host())
	for name, cert := range map[string]*tls.Certificate{
		"of another CA": pairOf(t, foreign.Cert, foreign.Key),
		"of a server":   pairOf(t, serverOnly.Cert, serverOnly.Key),
		"expired":       g.client(t, pki.Identity{Role: "admin", Name: "late"}, time.Now().AddDate(-3, 0, 0)),
		"not valid yet": g.client(t, pki.Identity{Role: "admin", Name: "early"}, time.Now().AddDate(3, 0, 0)),
	} {
		t.Run(name, func(t *testing.T) {
			g.unchanged(t, func() {
				// Good credentials do not make it better.
				for _, authorization := range [][]string{nil, {g.good["admin"]}} {
					a := g.stranger(t, cert, authorization...)
					err := a.call(t, "/dkim.v1.KeyManagement/DeleteDomain", &dkimv1.DeleteDomainRequest{Name: ourDomain}, &dkimv1.Domain{})
					checkStatus(t, err, codes.Unavailable, "")
					if got := a.do(t, "DELETE", cloudapi+"acme/ours.example", ""); got.status != 0 {
						t.Errorf("answered %v", got)
					}
				}
			})
		})
	}
	t.Run("older TLS", func(t *testing.T) {
		config := trusting(t, g.in.admin.CA)
		config.MinVersion, config.MaxVersion = tls.VersionTLS10, tls.VersionTLS12
		for _, addr := range []string{g.grpc, g.http} {
			if conn, err := tls.Dial("tcp", addr, config); err == nil {
				conn.Close()
				t.Errorf("%s speaks TLS %x", addr, conn.ConnectionState().Version)
			}
		}
	})
}

// attackRevoked uses credentials until they are revoked, and on.
func attackRevoked(t *testing.T, g *target) {
	t.Helper()
	token, secret := g.newToken(t, &dkimv1.Token{Role: dkimv1.Role_ROLE_ADMIN}), g.newSecret(t, "acme")
	for authorization, revoke := range map[string]func() error{
		"Bearer " + token.GetSecret(): func() error {
			_, err := g.access.RevokeToken(deadline(t), &dkimv1.RevokeTokenRequest{Name: token.GetName()})
			return err
		},
		basicAuth("acme", secret.GetSecret()): func() error {
			g.revokeSecret(t, secret.GetName())
			return nil
		},
	} {
		a := g.stranger(t, nil, authorization)
		if got := a.do(t, "GET", "/v1/"+ourDomain, ""); got.status != http.StatusOK {
			t.Errorf("before: %v", got)
		}
		if err := revoke(); err != nil {
			t.Fatal(err)
		}
		g.unchanged(t, func() {
			a.do(t, "DELETE", "/v1/"+ourDomain, "").refused(t, http.StatusUnauthorized, "UNAUTHENTICATED")
			err := a.call(t, "/dkim.v1.KeyManagement/DeleteDomain", &dkimv1.DeleteDomainRequest{Name: ourDomain}, &dkimv1.Domain{})
			checkStatus(t, err, codes.Unauthenticated, "UNAUTHENTICATED")
		})
	}
}

func lastPart(name string) string { return name[strings.LastIndexByte(name, '/')+1:] }

// client issues a client certificate of the installation's CA at some time.
func (g *target) client(t *testing.T, id pki.Identity, at time.Time) *tls.Certificate {
	t.Helper()
	ca, err := pki.EnsureCA(filepath.Dir(g.in.admin.CA), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.EnsureClient(id.Role+"-"+id.Brand+"-"+id.Name, id, at)
	if err != nil {
		t.Fatal(err)
	}
	return pairOf(t, cert, key)
}

func pairOf(t *testing.T, cert, key string) *tls.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return &pair
}

// password is that of an HTTP Basic header.
func password(t *testing.T, authorization string) string {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(authorization, "Basic "))
	if err != nil {
		t.Fatal(err)
	}
	_, p, _ := strings.Cut(string(raw), ":")
	return p
}

// flip changes the last character. All six bits of it count in credentials, whose
// octets fill whole characters.
func flip(s string) string {
	last := byte('A')
	if s[len(s)-1] == last {
		last = 'B'
	}
	return s[:len(s)-1] + string(last)
}

func hash(s string) []byte {
	sum := sha256.Sum256([]byte(s))
	return sum[:]
}

// claims are those of a good JWT of brand acme with some changed, or left out.
func claims(g *target, change map[string]any) string {
	all := map[string]any{
		"iss": g.issuer.URL, "aud": "dkimzone", "exp": time.Now().Add(time.Hour).Unix(),
		"sub": "shop@example.net", "dkimzone_role": "brand", "dkimzone_brand": "acme",
	}
	maps.Copy(all, change)
	maps.DeleteFunc(all, func(_ string, v any) bool { return v == nil })
	text, err := json.Marshal(all)
	if err != nil {
		panic(err)
	}
	return string(text)
}

func segment(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

// jwt is a JWT as it is put together by hand, signed if there is a key.
func jwt(header, payload string, key ed25519.PrivateKey) string {
	text := segment(header) + "." + segment(payload)
	if key == nil {
		return text + "."
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(key, []byte(text)))
}
