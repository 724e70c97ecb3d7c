package gateway_test

import (
	"bufio"
	"context"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

// Each method of the API has a rule for HTTP, and the gateway follows it.
func TestEveryMethodHasARoute(t *testing.T) {
	f := newFixture(t)
	variable := regexp.MustCompile(`\{[a-z_.]+=([^}]*)\}`)
	stranger := f.as(t, "", "")
	n := 0
	protoregistry.GlobalFiles.RangeFilesByPackage("dkim.v1", func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				m := methods.Get(j)
				rule, ok := proto.GetExtension(m.Options(), annotations.E_Http).(*annotations.HttpRule)
				verb, path := pattern(rule)
				if !ok || path == "" {
					t.Errorf("%s has no google.api.http rule", m.FullName())
					continue
				}
				n++
				path = variable.ReplaceAllString(path, "$1")
				path = strings.ReplaceAll(path, "*", "x")
				// Without a certificate, so that nothing comes of it: a route that is there
				// wants one. Some services are not part of the fixture.
				a := f.doAs(t, stranger, verb, path, "")
				if _, reason := a.status(t); reason != "UNAUTHENTICATED" && a.code != http.StatusNotImplemented {
					t.Errorf("%s: %s %s is answered %d %s: register its service in newRoutes", m.FullName(), verb, path, a.code, a.body)
				}
			}
		}
		return true
	})
	if n < 30 {
		t.Fatalf("%d methods found", n)
	}
}

func pattern(rule *annotations.HttpRule) (verb, path string) {
	switch {
	case rule.GetGet() != "":
		return http.MethodGet, rule.GetGet()
	case rule.GetPost() != "":
		return http.MethodPost, rule.GetPost()
	case rule.GetPatch() != "":
		return http.MethodPatch, rule.GetPatch()
	case rule.GetDelete() != "":
		return http.MethodDelete, rule.GetDelete()
	}
	return "", ""
}

// The resources are over REST what they are over gRPC.
func TestResources(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()

	zone := &dkimv1.Zone{}
	f.ok(t, "POST", "/v1/zones?zone_id=keys.example.org", `{"nameServers":[{"host":"ns1.example.org"}],"recordTtlSeconds":600}`, zone)
	wantEqual(t, "zone", zone.GetName(), "zones/keys.example.org")
	f.ok(t, "PATCH", "/v1/zones/keys.example.org?updateMask=record_ttl_seconds", `{"recordTtlSeconds":900,"etag":"`+zone.GetEtag()+`"}`, zone)
	same, err := f.api.GetZone(ctx, &dkimv1.GetZoneRequest{Name: zone.GetName()})
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "zone", zone, same)
	a := f.do(t, "PATCH", "/v1/zones/keys.example.org", `{"recordTtlSeconds":901,"etag":"other"}`)
	a.refused(t, http.StatusConflict, "ETAG_MISMATCH")
	a = f.do(t, "DELETE", "/v1/zones/keys.example.org", "", func(r *http.Request) { r.Header.Set("If-Match", `"other"`) })
	a.refused(t, http.StatusConflict, "ETAG_MISMATCH")
	a = f.do(t, "DELETE", "/v1/zones/keys.example.org", "", func(r *http.Request) { r.Header.Set("If-Match", `"`+zone.GetEtag()+`"`) })
	if a.code != http.StatusOK || strings.TrimSpace(string(a.body)) != "{}" {
		t.Errorf("DELETE: %d %s", a.code, a.body)
	}

	d := &dkimv1.Domain{}
	name := "brands/acme/domains/spamtrap.dk"
	f.ok(t, "POST", "/v1/"+name+":provision", `{"algorithm":"KEY_ALGORITHM_ED25519"}`, d)
	f.ok(t, "GET", "/v1/"+name, "", d)
	got, err := f.api.GetDomain(ctx, &dkimv1.GetDomainRequest{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "domain", d, got)
	f.ok(t, "POST", "/v1/brands/acme/domains/b%C3%BCcher.example:provision", `{"algorithm":"KEY_ALGORITHM_ED25519"}`, d)
	wantEqual(t, "domain in U-labels", d.GetName(), "brands/acme/domains/xn--bcher-kva.example")

	page := &dkimv1.ListDomainsResponse{}
	f.ok(t, "GET", "/v1/brands/acme/domains?pageSize=1&filter=algorithm%20%3D%20ED25519", "", page)
	if len(page.GetDomains()) != 1 || page.GetNextPageToken() == "" {
		t.Errorf("page of %d domains, next %q", len(page.GetDomains()), page.GetNextPageToken())
	}
	f.ok(t, "GET", "/v1/brands/acme/domains?pageSize=1&filter=algorithm%20%3D%20ED25519&pageToken="+page.GetNextPageToken(), "", page)
	wantEqual(t, "second page", page.GetDomains()[0].GetName(), d.GetName())

	f.ok(t, "PATCH", "/v1/"+name, `{"domain":{"name":"brands/other/domains/else.example","rotationPolicy":{"paused":true}}}`, d)
	wantEqual(t, "the path names the domain", d.GetName(), name)
	if !d.GetRotationPolicy().GetPaused() {
		t.Errorf("rotation policy %v", d.GetRotationPolicy())
	}
	keys := &dkimv1.ListKeysResponse{}
	f.ok(t, "GET", "/v1/"+name+"/keys", "", keys)
	if len(keys.GetKeys()) != 2 {
		t.Errorf("%d keys", len(keys.GetKeys()))
	}
	a = f.do(t, "GET", "/v1/"+keys.GetKeys()[0].GetName(), "")
	if a.code != http.StatusOK || strings.Contains(string(a.body), "private") {
		t.Errorf("key: %d %s", a.code, a.body)
	}
	f.ok(t, "DELETE", "/v1/"+name, "", d)
	f.do(t, "GET", "/v1/"+name, "").refused(t, http.StatusNotFound, "DOMAIN_NOT_FOUND")
}

func TestStreams(t *testing.T) {
	f := newFixture(t)
	provision(t, f, "acme", "spamtrap.dk")

	t.Run("export", func(t *testing.T) {
		a := f.do(t, "GET", "/v1/zones/keys.example.net:export", "")
		if a.code != http.StatusOK || a.header.Get("Content-Type") != "application/x-ndjson" {
			t.Fatalf("%d %v %s", a.code, a.header, a.body)
		}
		var file strings.Builder
		for line := range strings.Lines(string(a.body)) {
			file.Write(result(t, line, &dkimv1.ExportZoneResponse{}).GetData())
		}
		if !strings.Contains(file.String(), "selector1-spamtrap-dk._domainkey") {
			t.Errorf("exported %s", file.String())
		}
	})
	t.Run("refused before it begins", func(t *testing.T) {
		f.do(t, "GET", "/v1/zones/none.example.net:export", "").refused(t, http.StatusNotFound, "ZONE_NOT_FOUND")
		f.do(t, "GET", "/v1/brands/acme/domains:watch?resumeToken=made-up", "").refused(t, http.StatusBadRequest, "INVALID_RESUME_TOKEN")
		f.doAs(t, f.as(t, "", ""), "GET", "/v1/zones/keys.example.net:export", "").refused(t, http.StatusUnauthorized, "UNAUTHENTICATED")
		f.doAs(t, f.as(t, "signer", "mx"), "GET", "/v1/zones/keys.example.net:export", "").refused(t, http.StatusForbidden, "PERMISSION_DENIED")
	})
	t.Run("watch", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+f.addr+"/v1/brands/acme/domains:watch", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := f.rest.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		next := func() *dkimv1.WatchDomainsResponse {
			t.Helper()
			if !lines.Scan() {
				t.Fatalf("the stream has ended: %v", lines.Err())
			}
			return result(t, lines.Text(), &dkimv1.WatchDomainsResponse{})
		}
		wantEqual(t, "first", next().GetDomain().GetName(), "brands/acme/domains/spamtrap.dk")
		wantEqual(t, "then", next().GetType(), dkimv1.WatchDomainsResponse_EVENT_TYPE_SYNCED)
		provision(t, f, "acme", "later.example")
		wantEqual(t, "change", next().GetDomain().GetName(), "brands/acme/domains/later.example")
		cancel()
		if lines.Scan() {
			t.Errorf("after the end: %q", lines.Text())
		}
	})
	t.Run("plan", func(t *testing.T) {
		a := f.do(t, "GET", "/v1/brands/acme/domains:planRotation", "")
		lines := strings.Split(strings.TrimSpace(string(a.body)), "\n")
		if sum := result(t, lines[len(lines)-1], &dkimv1.PlanRotationResponse{}).GetSummary(); sum.GetDomains() != 2 {
			t.Errorf("plan %s", a.body)
		}
	})
}

// result is the message on a line of a stream.
func result[M proto.Message](t *testing.T, line string, m M) M {
	t.Helper()
	inner, ok := strings.CutPrefix(strings.TrimSpace(line), `{"result":`)
	if !ok {
		t.Fatalf("line %q", line)
	}
	if err := protojson.Unmarshal([]byte(strings.TrimSuffix(inner, "}")), m); err != nil {
		t.Fatalf("line %q: %v", line, err)
	}
	return m
}

func provision(t testing.TB, f *fixture, brand, domain string) *dkimv1.Domain {
	t.Helper()
	d, err := f.api.ProvisionDomain(context.Background(), &dkimv1.ProvisionDomainRequest{
		Name: "brands/" + brand + "/domains/" + domain, Algorithm: ed25519,
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}
