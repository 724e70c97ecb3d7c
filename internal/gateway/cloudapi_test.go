package gateway_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

// The procedure of a provider's system, from nothing to nothing.
func TestCloudAPI(t *testing.T) {
	f := newFixture(t)
	spamtrap := cloud + "acme/spamtrap.dk"

	a := f.do(t, "GET", cloud+"acme", "")
	a.refused(t, http.StatusNotFound, "NO_ENTRIES")
	if st, _ := a.status(t); st.Message() != "No DKIM entries found" {
		t.Errorf("message %q", st.Message())
	}
	a = f.do(t, "GET", spamtrap, "")
	a.refused(t, http.StatusNotFound, "DOMAIN_NOT_FOUND")
	if st, _ := a.status(t); st.Message() != "Domain not found" {
		t.Errorf("message %q", st.Message())
	}

	a = f.do(t, "PUT", spamtrap, `{"algorithm":"ed25519","test_mode":true}`)
	if a.code != http.StatusOK {
		t.Fatalf("PUT: %d %s", a.code, a.body)
	}
	first := a.document(t)
	revision := first["revision"]
	delete(first, "revision")
	selectors, _ := first["selectors"].([]any)
	for _, s := range selectors {
		delete(s.(map[string]any), "key")
	}
	wantEqual(t, "PUT", first, map[string]any{
		"brand": "acme", "domain": "spamtrap.dk",
		"selectors": []any{cloudSelector("selector1"), cloudSelector("selector2")},
	})
	again := f.do(t, "PUT", spamtrap, "").document(t)
	wantEqual(t, "revision of the second PUT", again["revision"], revision)

	list := f.do(t, "GET", cloud+"acme", "")
	var entries []map[string]any
	if err := json.Unmarshal(list.body, &entries); err != nil || len(entries) != 1 || entries[0]["domain"] != "spamtrap.dk" {
		t.Errorf("list: %v %s", err, list.body)
	}
	f.do(t, "GET", cloud+"other", "").refused(t, http.StatusNotFound, "NO_ENTRIES")

	s := f.do(t, "GET", spamtrap+"/selector1", "").document(t)
	record := s["record"].(map[string]any)
	value, _ := record["value"].(string)
	if record["name"] != "selector1-spamtrap-dk._domainkey.keys.example.net" || !strings.HasPrefix(value, "v=DKIM1; k=ed25519; t=y; p=") || record["seen"] != false {
		t.Errorf("record %v", record)
	}
	if s["private_key_exists"] != true || s["state"] != "prepared" {
		t.Errorf("selector %v", s)
	}
	wantEqual(t, "CNAME", s["cname"], cloudSelector("selector1")["cname"])
	f.do(t, "GET", spamtrap+"/selector3", "").refused(t, http.StatusNotFound, "SELECTOR_NOT_FOUND")
	f.do(t, "GET", cloud+"acme/other.example/selector1", "").refused(t, http.StatusNotFound, "DOMAIN_NOT_FOUND")

	f.do(t, "POST", spamtrap+"/rotate", "").refused(t, http.StatusBadRequest, "STANDBY_NOT_PROVEN")
	f.prove(t, "brands/acme/domains/spamtrap.dk")
	s = f.do(t, "GET", spamtrap+"/selector1", "").document(t)
	if cname := s["cname"].(map[string]any); cname["seen"] != true || cname["check_time"] != f.clock().Format(time.RFC3339) {
		t.Errorf("CNAME %v", cname)
	}
	a = f.do(t, "POST", spamtrap+"/rotate", "")
	if a.code != http.StatusOK || !strings.Contains(string(a.body), `"state":"active"`) {
		t.Fatalf("rotate: %d %s", a.code, a.body)
	}
	a = f.do(t, "POST", spamtrap+"/rotate", `{"when_ready":true}`)
	if a.code != http.StatusOK {
		t.Errorf("rotate when ready: %d %s", a.code, a.body)
	}

	a = f.do(t, "DELETE", spamtrap, "", func(r *http.Request) { r.Header.Set("If-Match", `"another"`) })
	a.refused(t, http.StatusConflict, "ETAG_MISMATCH")
	a = f.do(t, "DELETE", spamtrap, "")
	doc := a.document(t)
	if dangling, _ := doc["dangling_cnames"].([]any); a.code != http.StatusOK || doc["domain"] != "spamtrap.dk" || len(dangling) != 2 {
		t.Errorf("DELETE: %d %s", a.code, a.body)
	}
	f.do(t, "DELETE", spamtrap, "").refused(t, http.StatusNotFound, "DOMAIN_NOT_FOUND")
	f.do(t, "GET", spamtrap, "").refused(t, http.StatusNotFound, "DOMAIN_NOT_FOUND")
	f.do(t, "GET", cloud+"acme", "").refused(t, http.StatusNotFound, "NO_ENTRIES")
}

// cloudSelector is a selector of spamtrap.dk that was just provisioned.
func cloudSelector(name string) map[string]any {
	return map[string]any{
		"selector": name, "algorithm": "ed25519", "state": "prepared", "private_key_exists": true,
		"cname": map[string]any{
			"name": name + "._domainkey.spamtrap.dk", "target": name + "-spamtrap-dk._domainkey.keys.example.net", "seen": false,
		},
	}
}

func TestCloudAPIRefusals(t *testing.T) {
	f := newFixture(t)
	provision(t, f, "acme", "spamtrap.dk")
	provision(t, f, "other", "other.example")
	for _, tt := range []struct {
		name, method, path, body string
		code                     int
		reason                   string
	}{
		{"list of no brand", "GET", "nobody", "", 404, "BRAND_NOT_FOUND"},
		{"list of a bad brand", "GET", "ACME", "", 400, "INVALID_BRAND"},
		{"list of all brands", "GET", "-", "", 400, "INVALID_BRAND"},
		{"domain of another brand", "GET", "acme/other.example", "", 404, "DOMAIN_NOT_FOUND"},
		{"domain that another brand has", "PUT", "acme/other.example", "", 409, "DOMAIN_CLAIMED"},
		{"no domain", "PUT", "acme/localhost", "", 400, "INVALID_DOMAIN"},
		{"trailing dot", "GET", "acme/spamtrap.dk.", "", 400, "INVALID_DOMAIN"},
		{"other alphabet", "PUT", "acme/sp%D0%B0mtrap_.dk", "", 400, "INVALID_DOMAIN"},
		{"a verb", "PUT", "acme/spamtrap.dk:provision", "", 400, "INVALID_DOMAIN"},
		{"algorithm", "PUT", "acme/new.example", `{"algorithm":"rsa1024"}`, 400, "INVALID_ALGORITHM"},
		{"algorithm of a selector", "PUT", "acme/new.example", `{"selectors":[{"selector":"a","algorithm":"dsa"}]}`, 400, "INVALID_ALGORITHM"},
		{"another algorithm", "PUT", "acme/spamtrap.dk", `{"algorithm":"rsa2048"}`, 400, "ALGORITHM_DIFFERS"},
		{"one selector", "PUT", "acme/new.example", `{"selectors":["only"]}`, 400, "INVALID_SELECTOR"},
		{"bad selector", "PUT", "acme/new.example", `{"selectors":["a_b","c"]}`, 400, "INVALID_SELECTOR"},
		{"selector of another type", "PUT", "acme/new.example", `{"selectors":[5]}`, 400, "INVALID_BODY"},
		{"field of another type", "PUT", "acme/new.example", `{"test_mode":"yes"}`, 400, "INVALID_BODY"},
		{"unknown field", "PUT", "acme/new.example", `{"testing":true}`, 400, "INVALID_BODY"},
		{"field in other letters", "PUT", "acme/new.example", `{"Test_Mode":true}`, 400, "INVALID_BODY"},
		{"unknown field of a selector", "PUT", "acme/new.example", `{"selectors":[{"name":"a"}]}`, 400, "INVALID_BODY"},
		{"query", "PUT", "acme/new.example?test_mode=true", "", 400, "INVALID_QUERY"},
		{"query of a list", "GET", "acme?page=2", "", 400, "INVALID_QUERY"},
		{"method of a list", "POST", "acme", "", 405, "METHOD_NOT_ALLOWED"},
		{"method of a domain", "POST", "acme/spamtrap.dk", "", 405, "METHOD_NOT_ALLOWED"},
		{"method of a selector", "DELETE", "acme/spamtrap.dk/selector1", "", 405, "METHOD_NOT_ALLOWED"},
		{"too deep", "GET", "acme/spamtrap.dk/selector1/record", "", 404, "PATH_NOT_FOUND"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f.unchanged(t, func() {
				f.do(t, tt.method, cloud+tt.path, tt.body).refused(t, tt.code, tt.reason)
			})
		})
	}
}

func TestCloudAPISelectorsOfTwoAlgorithms(t *testing.T) {
	f := newFixture(t)
	a := f.do(t, "PUT", cloud+"acme/two.example", `{"algorithm":"ed25519","selectors":["ed1","ed2",{"selector":"ed3","algorithm":"ed25519"}]}`)
	if a.code != http.StatusOK {
		t.Fatalf("%d %s", a.code, a.body)
	}
	d, err := f.api.GetDomain(t.Context(), &dkimv1.GetDomainRequest{Name: "brands/acme/domains/two.example"})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(d.GetSelectors()); n != 3 {
		t.Errorf("%d selectors", n)
	}
}

// A list is whole however many pages it is read in.
func TestCloudAPILongList(t *testing.T) {
	f := newFixture(t)
	const n = 1203
	req := &dkimv1.BatchPublishKeysRequest{Parent: "brands/acme"}
	flush := func() {
		t.Helper()
		resp, err := f.api.BatchPublishKeys(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range resp.GetResults() {
			if r.GetError() != nil {
				t.Fatal(r.GetError())
			}
		}
		req.Requests = nil
	}
	for i := range n {
		req.Requests = append(req.Requests, &dkimv1.PublishKeyRequest{
			Parent: fmt.Sprintf("brands/acme/domains/d%04d.example", i), Selector: "s", PublicKey: publicKey(t),
		})
		if len(req.Requests) == 500 {
			flush()
		}
	}
	flush()
	var entries []map[string]any
	if err := json.Unmarshal(f.do(t, "GET", cloud+"acme", "").body, &entries); err != nil {
		t.Fatal(err)
	}
	if len(entries) != n || entries[n-1]["domain"] != "d1202.example" {
		t.Errorf("%d entries", len(entries))
	}
}
