package gateway_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

// BenchmarkCalls makes the same calls over gRPC and over REST, one after the other
// on one connection, on a store in memory: what differs is the way there.
func BenchmarkCalls(b *testing.B) {
	f := newFixture(b)
	ctx := b.Context()
	send := func(b *testing.B, method, path, body string) {
		req, err := http.NewRequestWithContext(ctx, method, "https://"+f.addr+path, strings.NewReader(body))
		if err != nil {
			b.Fatal(err)
		}
		if body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		resp, err := f.rest.Do(req)
		if err != nil {
			b.Fatal(err)
		}
		defer resp.Body.Close()
		if answer, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
			b.Fatalf("%d %s %v", resp.StatusCode, answer, err)
		}
	}
	n := 0
	next := func() string { n++; return fmt.Sprintf("d%07d.example", n) }
	b.Run("provision/grpc", func(b *testing.B) {
		for b.Loop() {
			req := &dkimv1.ProvisionDomainRequest{Name: "brands/acme/domains/" + next(), Algorithm: ed25519}
			if _, err := f.api.ProvisionDomain(ctx, req); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("provision/rest", func(b *testing.B) {
		for b.Loop() {
			send(b, http.MethodPost, "/v1/brands/acme/domains/"+next()+":provision", `{"algorithm":"KEY_ALGORITHM_ED25519"}`)
		}
	})
	b.Run("provision/cloudapi", func(b *testing.B) {
		for b.Loop() {
			send(b, http.MethodPut, cloud+"acme/"+next(), `{"algorithm":"ed25519"}`)
		}
	})
	domain := next()
	provision(b, f, "acme", domain)
	b.Run("get/grpc", func(b *testing.B) {
		for b.Loop() {
			if _, err := f.api.GetDomain(ctx, &dkimv1.GetDomainRequest{Name: "brands/acme/domains/" + domain}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("get/rest", func(b *testing.B) {
		for b.Loop() {
			send(b, http.MethodGet, "/v1/brands/acme/domains/"+domain, "")
		}
	})
	b.Run("get/cloudapi", func(b *testing.B) {
		for b.Loop() {
			send(b, http.MethodGet, cloud+"acme/"+domain, "")
		}
	})
}
