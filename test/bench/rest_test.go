package bench_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

// BenchmarkREST makes each call over gRPC and over REST in turn, one after the
// other on a connection each, to dkimd standalone in this process: for what the
// way over HTTP and JSON adds.
func BenchmarkREST(b *testing.B) {
	s := start(b)
	n := 0
	name := func() string { n++; return fmt.Sprintf("rest%d.example", n) }
	b.Run("provision", func(b *testing.B) {
		s.compare(b, func() error {
			_, err := s.client.ProvisionDomain(b.Context(), &dkimv1.ProvisionDomainRequest{
				Name: "brands/acme/domains/" + name(), Algorithm: dkimv1.KeyAlgorithm_KEY_ALGORITHM_ED25519,
			})
			return err
		}, func() error {
			return s.request(b, http.MethodPost, "/v1/brands/acme/domains/"+name()+":provision", `{"algorithm":"KEY_ALGORITHM_ED25519"}`)
		}, func() error {
			return s.request(b, http.MethodPut, "/cloudapi/v2/mail/dkim/acme/"+name(), `{"algorithm":"ed25519"}`)
		})
	})
	b.Run("get", func(b *testing.B) {
		domain := name()
		if err := s.request(b, http.MethodPut, "/cloudapi/v2/mail/dkim/acme/"+domain, `{"algorithm":"ed25519"}`); err != nil {
			b.Fatal(err)
		}
		s.compare(b, func() error {
			_, err := s.client.GetDomain(b.Context(), &dkimv1.GetDomainRequest{Name: "brands/acme/domains/" + domain})
			return err
		}, func() error {
			return s.request(b, http.MethodGet, "/v1/brands/acme/domains/"+domain, "")
		}, func() error {
			return s.request(b, http.MethodGet, "/cloudapi/v2/mail/dkim/acme/"+domain, "")
		})
	})
}

// compare makes the three calls in turn and reports how long each takes.
func (s *standalone) compare(b *testing.B, grpc, rest, cloud func() error) {
	b.Helper()
	var sums [3]time.Duration
	calls := 0
	for b.Loop() {
		calls++
		for i, call := range []func() error{grpc, rest, cloud} {
			start := time.Now()
			if err := call(); err != nil {
				b.Fatal(err)
			}
			sums[i] += time.Since(start)
		}
	}
	mean := func(i int) float64 { return float64(sums[i].Microseconds()) / float64(calls) }
	b.ReportMetric(0, "ns/op") // of all three
	b.ReportMetric(mean(0), "grpc-µs")
	b.ReportMetric(mean(1), "rest-µs")
	b.ReportMetric(mean(2), "cloudapi-µs")
	b.ReportMetric(mean(1)/mean(0), "rest/grpc")
}

// request makes an HTTPS request and reads its answer, which must be 200.
func (s *standalone) request(b *testing.B, method, path, body string) error {
	b.Helper()
	req, err := http.NewRequestWithContext(b.Context(), method, "https://"+s.address+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := s.rest.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, answer)
	}
	return err
}
