package gateway_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/dkimzone/dkimzone/internal/keypair"
)

// publicKey is a new Ed25519 key, as p= has it.
func publicKey(t testing.TB) string {
	t.Helper()
	k, err := keypair.Generate(keypair.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(k.Public().Octets)
}

func TestDNSRecords(t *testing.T) {
	f := newFixture(t)
	records := "/v1/domains/spamtrap.dk/dns_records"
	value := "v=DKIM1; k=ed25519; p=" + publicKey(t)
	body := fmt.Sprintf(`{"type":"TXT","name":"mail._domainkey","value":%q,"ttl":600,"brand":"acme"}`, value)

	a := f.do(t, "POST", records, body)
	if a.code != http.StatusCreated {
		t.Fatalf("POST: %d %s", a.code, a.body)
	}
	doc := a.document(t)
	id, _ := doc["id"].(string)
	wantEqual(t, "POST", doc, map[string]any{
		"id": id, "brand": "acme", "domain": "spamtrap.dk", "type": "TXT", "name": "mail._domainkey", "value": value, "ttl": 600.0,
		"cname": map[string]any{"name": "mail._domainkey.spamtrap.dk", "target": "mail-spamtrap-dk._domainkey.keys.example.net"},
	})
	again := f.do(t, "POST", records+"?brand=acme", strings.ReplaceAll(strings.Replace(body, `,"brand":"acme"`, "", 1), "mail._domainkey", "mail._domainkey.spamtrap.dk"))
	wantEqual(t, "second POST", again.document(t), doc)

	provision(t, f, "acme", "spamtrap.dk") // whose keys are no records of this face
	wantEqual(t, "list", f.do(t, "GET", records+"?brand=acme", "").document(t), map[string]any{"dns_records": []any{doc}})
	wantEqual(t, "get", f.do(t, "GET", records+"/"+id+"?brand=acme", "").document(t), doc)
	f.do(t, "GET", records+"/nosuchkey?brand=acme", "").refused(t, http.StatusNotFound, "KEY_NOT_FOUND")

	a = f.do(t, "DELETE", records+"/"+id+"?brand=acme", "")
	if a.code != http.StatusNoContent || len(a.body) > 0 {
		t.Errorf("DELETE: %d %s", a.code, a.body)
	}
	f.do(t, "DELETE", records+"/"+id+"?brand=acme", "").refused(t, http.StatusNotFound, "KEY_NOT_FOUND")
	wantEqual(t, "list", f.do(t, "GET", records+"?brand=acme", "").document(t), map[string]any{"dns_records": []any{}})

	testing := f.do(t, "POST", records+"?brand=acme", fmt.Sprintf(`{"type":"TXT","name":"t._domainkey","value":"v=DKIM1; k=ed25519; t=y; p=%s"}`, publicKey(t)))
	if v, _ := testing.document(t)["value"].(string); !strings.Contains(v, "t=y") {
		t.Errorf("published %s", testing.body)
	}
}

func TestDNSRecordRefusals(t *testing.T) {
	f := newFixture(t)
	provision(t, f, "acme", "spamtrap.dk")
	provision(t, f, "other", "other.example")
	key := publicKey(t)
	good := func(name, value string) string {
		return fmt.Sprintf(`{"type":"TXT","name":%q,"value":%q,"brand":"acme"}`, name, value)
	}
	secret, err := keypair.Generate(keypair.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := secret.PKCS8()
	if err != nil {
		t.Fatal(err)
	}
	private := base64.StdEncoding.EncodeToString(pkcs8)
	at := "/v1/domains/spamtrap.dk/dns_records"
	for _, tt := range []struct {
		name, method, path, body string
		code                     int
		reason                   string
	}{
		{"another type", "POST", at, strings.Replace(good("a._domainkey", "v=DKIM1; p="+key), "TXT", "CNAME", 1), 400, "INVALID_TYPE"},
		{"no type", "POST", at + "?brand=acme", `{"name":"a._domainkey","value":"v=DKIM1; p=AA=="}`, 400, "INVALID_TYPE"},
		{"no body", "POST", at, "", 400, "INVALID_TYPE"},
		{"another name", "POST", at, good("_dmarc", "v=DKIM1; k=ed25519; p="+key), 400, "INVALID_RECORD_NAME"},
		{"name in another domain", "POST", at, good("a._domainkey.other.example", "v=DKIM1; k=ed25519; p="+key), 400, "INVALID_RECORD_NAME"},
		{"no selector", "POST", at, good("._domainkey", "v=DKIM1; k=ed25519; p="+key), 400, "INVALID_RECORD_NAME"},
		{"bad selector", "POST", at, good("a_b._domainkey", "v=DKIM1; k=ed25519; p="+key), 400, "INVALID_SELECTOR"},
		{"wildcard", "POST", at, good("*._domainkey", "v=DKIM1; k=ed25519; p="+key), 400, "INVALID_SELECTOR"},
		{"SPF", "POST", at, good("a._domainkey", "v=spf1 -all"), 400, "INVALID_RECORD"},
		{"bare key", "POST", at, good("a._domainkey", key), 400, "INVALID_RECORD"},
		{"private key", "POST", at, good("a._domainkey", private), 400, "INVALID_RECORD"},
		{"private key in a record", "POST", at, good("a._domainkey", "v=DKIM1; k=ed25519; p="+private), 400, "PRIVATE_KEY_GIVEN"},
		{"revoked", "POST", at, good("a._domainkey", "v=DKIM1; p="), 400, "INVALID_RECORD"},
		{"tag twice", "POST", at, good("a._domainkey", "v=DKIM1; p="+key+"; p="+key), 400, "INVALID_RECORD"},
		{"tags that are not published", "POST", at, good("a._domainkey", "v=DKIM1; k=ed25519; t=s; p="+key), 400, "INVALID_RECORD"},
		{"hash algorithms", "POST", at, good("a._domainkey", "v=DKIM1; k=ed25519; h=sha256; p="+key), 400, "INVALID_RECORD"},
		{"type of the key", "POST", at, good("a._domainkey", "v=DKIM1; k=rsa; p="+key), 400, "INVALID_PUBLIC_KEY"},
		{"ttl", "POST", at, strings.Replace(good("a._domainkey", "v=DKIM1; k=ed25519; p="+key), "{", `{"ttl":5,`, 1), 400, "INVALID_TTL"},
		{"ttl of another type", "POST", at, strings.Replace(good("a._domainkey", "v=DKIM1; k=ed25519; p="+key), "{", `{"ttl":"600",`, 1), 400, "INVALID_BODY"},
		{"selector of the service", "POST", at, good("selector1._domainkey", "v=DKIM1; k=ed25519; p="+key), 400, "SELECTOR_IN_USE"},
		{"domain of another brand", "POST", "/v1/domains/other.example/dns_records", good("a._domainkey", "v=DKIM1; k=ed25519; p="+key), 409, "DOMAIN_CLAIMED"},
		{"two brands", "POST", at + "?brand=other", good("a._domainkey", "v=DKIM1; k=ed25519; p="+key), 400, "INVALID_BRAND"},
		{"no brand", "GET", at, "", 400, "BRAND_NEEDED"},
		{"brand with a slash", "GET", at + "?brand=acme%2Fdomains%2Fspamtrap.dk", "", 400, "INVALID_NAME"},
		{"key of the service", "DELETE", at + "/KEY?brand=acme", "", 400, "KEY_MANAGED"},
		{"key of the service, get", "GET", at + "/KEY?brand=acme", "", 404, "KEY_NOT_FOUND"},
		{"method", "PUT", at, "", 405, "METHOD_NOT_ALLOWED"},
		{"other collection", "GET", "/v1/domains/spamtrap.dk/records", "", 404, "PATH_NOT_FOUND"},
		{"no collection", "GET", "/v1/domains/spamtrap.dk", "", 404, "PATH_NOT_FOUND"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := tt.path
			if strings.Contains(path, "KEY") {
				s := f.do(t, "GET", cloud+"acme/spamtrap.dk/selector1", "").document(t)
				path = strings.Replace(path, "KEY", s["key"].(string), 1)
			}
			f.unchanged(t, func() {
				a := f.do(t, tt.method, path, tt.body)
				a.refused(t, tt.code, tt.reason)
				if strings.Contains(string(a.body), private[len(private)-20:]) {
					t.Errorf("the answer has the private key: %s", a.body)
				}
			})
		})
	}
}
