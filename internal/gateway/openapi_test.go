package gateway_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi2"
	"github.com/getkin/kin-openapi/openapi2conv"
	"github.com/getkin/kin-openapi/openapi3"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// description is what /openapi.json says, checked.
func description(t *testing.T, f *fixture) *openapi3.T {
	t.Helper()
	a := f.do(t, "GET", "/openapi.json", "")
	if a.code != http.StatusOK || a.header.Get("Content-Type") != "application/json" {
		t.Fatalf("%d %v", a.code, a.header)
	}
	var v2 openapi2.T
	if err := json.Unmarshal(a.body, &v2); err != nil {
		t.Fatal(err)
	}
	if v2.Swagger != "2.0" || v2.Info.Title != "dkimzone" {
		t.Errorf("OpenAPI %s of %s", v2.Swagger, v2.Info.Title)
	}
	doc, err := openapi2conv.ToV3(&v2)
	if err != nil {
		t.Fatal(err)
	}
	if err := openapi3.NewLoader().ResolveRefsIn(doc, nil); err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return doc
}

// The description is valid and has all methods of the API, and what is answered is
// of the form that it says.
func TestDescription(t *testing.T) {
	f := newFixture(t)
	doc := description(t, f)
	operations, ids := 0, make(map[string]bool)
	for path, item := range doc.Paths.Map() {
		for verb, op := range item.Operations() {
			if ids[op.OperationID] || op.OperationID == "" || op.Summary == "" && op.Description == "" {
				t.Errorf("%s %s: operation id %q, summary %q", verb, path, op.OperationID, op.Summary)
			}
			ids[op.OperationID] = true
			operations++
		}
	}
	methods := 0
	protoregistry.GlobalFiles.RangeFilesByPackage("dkim.v1", func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			s := file.Services().Get(i)
			for j := range s.Methods().Len() {
				methods++
				if id := fmt.Sprintf("%s_%s", s.Name(), s.Methods().Get(j).Name()); !ids[id] {
					t.Errorf("%s is not described", id)
				}
			}
		}
		return true
	})
	const faces = 10
	if operations != methods+faces {
		t.Errorf("%d operations, want %d of the API and %d others", operations, methods, faces)
	}

	provision(t, f, "acme", "spamtrap.dk")
	f.prove(t, "brands/acme/domains/spamtrap.dk")
	record := fmt.Sprintf(`{"type":"TXT","name":"mail._domainkey","value":"v=DKIM1; k=ed25519; p=%s"}`, publicKey(t))
	id := ""
	for _, tt := range []struct{ verb, template, path, body string }{
		{"GET", "/v1/zones", "/v1/zones", ""},
		{"GET", "/v1/zones/{zone}", "/v1/zones/keys.example.net", ""},
		{"GET", "/v1/brands/{brand}/domains", "/v1/brands/acme/domains", ""},
		{"GET", "/v1/brands/{brand}/domains/{domain}", "/v1/brands/acme/domains/spamtrap.dk", ""},
		{"GET", "/v1/brands/{brand}/domains/{domain}/keys", "/v1/brands/acme/domains/spamtrap.dk/keys", ""},
		{"GET", "/v1/brands/{brand}/domains/{domain}/events", "/v1/brands/acme/domains/spamtrap.dk/events", ""},
		{"POST", "/v1/brands/{brand}/domains/{domain}:check", "/v1/brands/acme/domains/spamtrap.dk:check", ""},
		{"GET", cloud + "{brand}", cloud + "other", ""},
		{"GET", cloud + "{brand}", cloud + "acme", ""},
		{"PUT", cloud + "{brand}/{domain}", cloud + "acme/b%C3%BCcher.example", `{"algorithm":"ed25519"}`},
		{"GET", cloud + "{brand}/{domain}", cloud + "acme/spamtrap.dk", ""},
		{"GET", cloud + "{brand}/{domain}", cloud + "acme/none.example", ""},
		{"GET", cloud + "{brand}/{domain}/{selector}", cloud + "acme/spamtrap.dk/selector1", ""},
		{"POST", cloud + "{brand}/{domain}/rotate", cloud + "acme/spamtrap.dk/rotate", ""},
		{"POST", "/v1/domains/{domain}/dns_records", "/v1/domains/spamtrap.dk/dns_records?brand=acme", record},
		{"GET", "/v1/domains/{domain}/dns_records", "/v1/domains/spamtrap.dk/dns_records?brand=acme", ""},
		{"GET", "/v1/domains/{domain}/dns_records/{record}", "/v1/domains/spamtrap.dk/dns_records/ID?brand=acme", ""},
		{"DELETE", "/v1/domains/{domain}/dns_records/{record}", "/v1/domains/spamtrap.dk/dns_records/ID?brand=acme", ""},
		{"DELETE", cloud + "{brand}/{domain}", cloud + "acme/spamtrap.dk", ""},
	} {
		t.Run(tt.verb+" "+tt.path, func(t *testing.T) {
			a := f.do(t, tt.verb, strings.Replace(tt.path, "ID", id, 1), tt.body)
			item := doc.Paths.Value(tt.template)
			if item == nil || item.GetOperation(tt.verb) == nil {
				t.Fatalf("%s is not described", tt.template)
			}
			responses := item.GetOperation(tt.verb).Responses
			response := responses.Status(a.code)
			if response == nil {
				if response = responses.Default(); response == nil || a.code < 400 {
					t.Fatalf("answer %d is not described: %s", a.code, a.body)
				}
			}
			media := response.Value.Content.Get("application/json")
			if media == nil {
				if len(a.body) > 0 {
					t.Errorf("%d has a body: %s", a.code, a.body)
				}
				return
			}
			var v any
			if err := json.Unmarshal(a.body, &v); err != nil {
				t.Fatalf("%v: %s", err, a.body)
			}
			if err := media.Schema.Value.VisitJSON(v); err != nil {
				t.Errorf("%v\n%s", err, a.body)
			}
			if object, ok := v.(map[string]any); ok && tt.verb == "POST" && object["id"] != nil {
				id, _ = object["id"].(string)
			}
		})
	}
}
