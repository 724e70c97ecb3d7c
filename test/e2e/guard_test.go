package e2e_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

// tokenFor is a context for the calls of the holder of a new token for a brand.
func tokenFor(t *testing.T, s *standalone, brand string) context.Context {
	t.Helper()
	token := &dkimv1.Token{}
	s.read(t, token, "token", "create", "--role", "brand", "--brand", brand)
	return metadata.AppendToOutgoingContext(deadline(t), "authorization", "Bearer "+token.GetSecret())
}

// reasonOf is the reason of a rejection, and whether it says when to try again.
func reasonOf(err error) (reason string, retry bool) {
	for _, d := range status.Convert(err).Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			reason = d.GetReason()
		case *errdetails.RetryInfo:
			retry = d.GetRetryDelay().AsDuration() > 0
		}
	}
	return reason, retry
}

func TestLimits(t *testing.T) {
	t.Parallel()
	s := newStandalone(t)
	s.start(t, "--limit-read", "5", "--limit-provision", "5", "--limit-streams", "2", "--limit-concurrent", "3")
	s.ctl(t, "brand", "create", "acme", "--max-domains", "3")
	s.ctl(t, "brand", "create", "other")
	acme, other := tokenFor(t, s, "acme"), tokenFor(t, s, "other")
	api := dial(t, s.grpc, trusting(t, s.admin().CA))
	get := func(ctx context.Context, brand string) error {
		_, err := api.GetBrand(ctx, &dkimv1.GetBrandRequest{Name: "brands/" + brand})
		return err
	}
	refusedFor := func(err error, want string) bool {
		reason, retry := reasonOf(err)
		return status.Code(err) == codes.ResourceExhausted && reason == want && retry
	}

	// Ten calls at once, and some more while they are made.
	through := 0
	var err error
	for through < 1000 {
		if err = get(acme, "acme"); err != nil {
			break
		}
		through++
	}
	if !refusedFor(err, "RATE_LIMITED") || through < 10 {
		t.Errorf("%d calls, then %v", through, err)
	}
	if err := get(other, "other"); err != nil {
		t.Errorf("another brand: %v", err)
	}
	// REST has the same account, and HTTP's words for it.
	rest := &http.Client{Transport: &http.Transport{TLSClientConfig: trusting(t, s.admin().CA)}}
	md, _ := metadata.FromOutgoingContext(acme)
	for range 1000 {
		req, err := http.NewRequestWithContext(acme, http.MethodGet, "https://"+s.http+"/v1/brands/acme", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", md.Get("authorization")[0])
		resp, err := rest.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body) // so that the connection is used again
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			continue
		}
		if resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") != "1" {
			t.Errorf("status %s, Retry-After %q", resp.Status, resp.Header.Get("Retry-After"))
		}
		break
	}
	admin := s.api(t)
	for range 100 {
		if _, err := admin.GetBrand(deadline(t), &dkimv1.GetBrandRequest{Name: "brands/acme"}); err != nil {
			t.Fatalf("administrator: %v", err)
		}
	}

	// Streams.
	watch := func() (dkimv1.KeyManagement_WatchDomainsClient, error) {
		stream, err := api.WatchDomains(other, &dkimv1.WatchDomainsRequest{Parent: "brands/other"})
		if err != nil {
			return nil, err
		}
		_, err = stream.Recv()
		return stream, err
	}
	for range 2 {
		if _, err := watch(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := watch(); !refusedFor(err, "TOO_MANY_STREAMS") {
		t.Errorf("third stream: %v", err)
	}

	// Calls at a time, of keys that take a while to make. None of them gets
	// beyond the quota.
	var wg sync.WaitGroup
	var done, busy, rate, full, wrong atomic.Int64
	for i := range 24 {
		wg.Go(func() {
			_, err := api.ProvisionDomain(acme, &dkimv1.ProvisionDomainRequest{
				Name: "brands/acme/domains/d" + string(rune('a'+i)) + ".example", Algorithm: dkimv1.KeyAlgorithm_KEY_ALGORITHM_RSA_4096,
			})
			switch reason, _ := reasonOf(err); {
			case err == nil:
				done.Add(1)
			case refusedFor(err, "TOO_MANY_CALLS"):
				busy.Add(1)
			case refusedFor(err, "RATE_LIMITED"):
				rate.Add(1)
			case reason == "QUOTA_EXCEEDED":
				full.Add(1)
			default:
				wrong.Add(1)
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if done.Load() == 0 || done.Load() > 3 || busy.Load() == 0 {
		t.Errorf("%d provisioned, %d too many at a time, %d too fast, %d beyond the quota", done.Load(), busy.Load(), rate.Load(), full.Load())
	}
	metrics := string(page(t, "http://"+s.metrics+"/metrics"))
	for _, pattern := range []string{
		`dkimd_limit_refused_total\{class="read",reason="RATE_LIMITED"\} [1-9]`,
		`dkimd_limit_refused_total\{class="read",reason="TOO_MANY_STREAMS"\} 1\n`,
		`dkimd_limit_refused_total\{class="provision",reason="TOO_MANY_CALLS"\} [1-9]`,
		`dkimd_limit_callers 2\n`,
	} {
		if !regexp.MustCompile("(?m)^" + pattern).MatchString(metrics) {
			t.Errorf("no metric like %s", pattern)
		}
	}
}

func TestAdmission(t *testing.T) {
	t.Parallel()
	const token = "correct-horse-battery"
	var down atomic.Bool
	asked := make(chan string, 100)
	provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q struct {
			Brand, Domain, Operation string
			Caller                   struct{ Role, Name, Method, Address string }
		}
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil || r.Header.Get("Authorization") != "Bearer "+token || down.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		asked <- strings.Join([]string{q.Operation, q.Brand, q.Domain, q.Caller.Role, q.Caller.Method, q.Caller.Address}, " ")
		w.Header().Set("Content-Type", "application/json")
		if strings.HasPrefix(q.Domain, "stranger") {
			_, _ = io.WriteString(w, `{"allowed":false,"reason":"we do not host its mail"}`)
			return
		}
		_, _ = io.WriteString(w, `{"allowed":true}`)
	}))
	t.Cleanup(provider.Close)
	tokenFile := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(tokenFile, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newStandalone(t)
	s.start(t, "--admission-url", provider.URL+"/admit", "--admission-token-file", tokenFile, "--admission-remember", "0", "--admission-timeout", callLimit.String())
	s.ctl(t, "brand", "create", "acme")
	acme := tokenFor(t, s, "acme")
	api := dial(t, s.grpc, trusting(t, s.admin().CA))
	provision := func(domain string) error {
		_, err := api.ProvisionDomain(acme, &dkimv1.ProvisionDomainRequest{Name: "brands/acme/domains/" + domain, Algorithm: dkimv1.KeyAlgorithm_KEY_ALGORITHM_ED25519})
		return err
	}
	if err := provision("customer.example"); err != nil {
		t.Fatal(err)
	}
	if got, want := <-asked, "provision acme customer.example brand token 127.0.0.1"; got != want {
		t.Errorf("asked %q, want %q", got, want)
	}
	err := provision("stranger.example")
	if reason, _ := reasonOf(err); status.Code(err) != codes.PermissionDenied || reason != "ADMISSION_DENIED" || !strings.Contains(err.Error(), "we do not host its mail") {
		t.Errorf("got %v, want ADMISSION_DENIED", err)
	}
	down.Store(true)
	err = provision("later.example")
	if reason, retry := reasonOf(err); status.Code(err) != codes.Unavailable || reason != "ADMISSION_UNAVAILABLE" || !retry {
		t.Errorf("got %v, want ADMISSION_UNAVAILABLE", err)
	}
	if err := provision("customer.example"); err != nil {
		t.Errorf("one that is there: %v", err)
	}
	var there dkimv1.ListDomainsResponse
	s.read(t, &there, "domain", "list", "acme")
	for _, d := range there.GetDomains() {
		if name := d.GetName(); strings.Contains(name, "stranger") || strings.Contains(name, "later") {
			t.Errorf("%s is there", name)
		}
	}
	down.Store(false)
	if err := provision("later.example"); err != nil {
		t.Error(err)
	}

	// dkimctl does what it may and tells of the others.
	lines := filepath.Join(t.TempDir(), "domains")
	if err := os.WriteFile(lines, []byte("one.example\nstranger2.example\ntwo.example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := s.run(t, "domain", "provision", "acme", "--from-file", lines, "--algorithm", "ed25519")
	if r.Code != 1 || !strings.Contains(r.Stderr, "stranger2.example is not admitted to brand acme: we do not host its mail [ADMISSION_DENIED]") ||
		!strings.Contains(r.Stderr, "1 lines of") {
		t.Errorf("exit code %d: %s", r.Code, r.Stderr)
	}
	s.ctl(t, "domain", "get", "acme", "two.example")
	if strings.Contains(s.Output(), token) {
		t.Error("the token is in the log")
	}
	metrics := string(page(t, "http://"+s.metrics+"/metrics"))
	for _, pattern := range []string{
		`dkimd_admission_asks_total\{result="allowed"\} 4\n`, `dkimd_admission_asks_total\{result="denied"\} 2\n`, `dkimd_admission_asks_total\{result="unavailable"\} 1\n`,
	} {
		if !regexp.MustCompile("(?m)^" + pattern).MatchString(metrics) {
			t.Errorf("no metric like %s", pattern)
		}
	}
}
