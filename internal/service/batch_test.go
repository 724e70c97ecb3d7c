package service_test

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/rotation"
)

// reasonOf is what a result says went wrong.
func reasonOf(t testing.TB, res *dkimv1.BatchPublishKeysResponse_Result) string {
	t.Helper()
	if res.GetError() == nil {
		return ""
	}
	for _, d := range status.FromProto(res.GetError()).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == "dkimzone" {
			return codes.Code(res.GetError().GetCode()).String() + " " + info.GetReason()
		}
	}
	t.Errorf("%v has no ErrorInfo", res)
	return "?"
}

// Each request of a batch ends as PublishKey does, whatever the others are.
func TestBatchPublishKeys(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	f.provision(t, spamtrap, "ours1", "ours2")
	f.provision(t, "brands/other/domains/taken.example")
	there := newPublic(t)
	must(f.api.PublishKey(ctx, &dkimv1.PublishKeyRequest{Parent: spamtrap, Selector: "there", PublicKey: there}))(t)
	repeated, contested := newPublic(t), newPublic(t)
	rows := []struct {
		domain, selector, key string
		ttl                   int32
		want                  string
	}{
		{acme + "new.example", "s1", newPublic(t), 0, ""},
		{acme + "new.example", "S2", newPublic(t), 300, ""},
		{spamtrap, "more", newPublic(t), 0, ""},
		{spamtrap, "there", there, 0, ""},
		{spamtrap, "there", there, 600, ""},
		{spamtrap, "there", newPublic(t), 0, "FailedPrecondition SELECTOR_IN_USE"},
		{spamtrap, "ours1", newPublic(t), 0, "FailedPrecondition SELECTOR_IN_USE"},
		{acme + "half.example", "good", contested, 0, ""},
		{acme + "half.example", "bad", there, 0, "AlreadyExists KEY_PUBLISHED"},
		{acme + "taken.example", "s1", newPublic(t), 0, "AlreadyExists DOMAIN_CLAIMED"},
		{acme + "a_b.example", "s1", newPublic(t), 0, "InvalidArgument INVALID_DOMAIN"},
		{acme + "c.example", "s_1", newPublic(t), 0, "InvalidArgument INVALID_SELECTOR"},
		{acme + "c.example", "s1", "nonsense!", 0, "InvalidArgument INVALID_PUBLIC_KEY"},
		{acme + "c.example", "s1", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----", 0, "InvalidArgument PRIVATE_KEY_GIVEN"},
		{acme + "c.example", "s1", newPublic(t), 5, "InvalidArgument INVALID_TTL"},
		{"brands/other/domains/d.example", "s1", newPublic(t), 0, "InvalidArgument INVALID_NAME"},
		{acme + "twice.example", "s1", repeated, 0, ""},
		{acme + "twin.example", "s1", repeated, 0, "AlreadyExists KEY_PUBLISHED"},
		{acme + "later.example", "s1", contested, 0, "AlreadyExists KEY_PUBLISHED"}, // though the first one does not go with others
		{acme + "long.example", strings.Repeat("s", 63), newPublic(t), 0, "FailedPrecondition SELECTOR_TOO_LONG"},
		{acme + "a-b.example", "s1", newPublic(t), 0, ""},
		{acme + "a.b.example", "s1", newPublic(t), 0, ""},
	}
	req := &dkimv1.BatchPublishKeysRequest{Parent: "brands/acme"}
	for _, row := range rows {
		req.Requests = append(req.Requests, &dkimv1.PublishKeyRequest{Parent: row.domain, Selector: row.selector, PublicKey: row.key, TtlSeconds: row.ttl})
	}
	for i := range 20 { // more than are published together
		rows = append(rows, rows[0])
		req.Requests = append(req.Requests, &dkimv1.PublishKeyRequest{Parent: acme + "many.example", Selector: fmt.Sprintf("s%d", i), PublicKey: newPublic(t)})
	}
	for _, again := range []bool{false, true} { // nothing changes the second time
		resp := must(f.api.BatchPublishKeys(ctx, req))(t)
		if len(resp.GetResults()) != len(rows) {
			t.Fatalf("%d results for %d requests", len(resp.GetResults()), len(rows))
		}
		for i, res := range resp.GetResults() {
			r := req.GetRequests()[i]
			if got := reasonOf(t, res); got != rows[i].want {
				t.Errorf("request %d (again: %t), selector %s of %s: %q, want %q", i, again, r.GetSelector(), r.GetParent(), got, rows[i].want)
				continue
			}
			if rows[i].want != "" {
				if res.GetKey() != "" || res.GetOwnerName() != "" {
					t.Errorf("refused, and yet %v", res)
				}
				continue
			}
			k := must(f.api.GetKey(ctx, &dkimv1.GetKeyRequest{Name: res.GetKey()}))(t)
			wantEqual(t, "owner name", res.GetOwnerName(), k.GetOwnerName())
			wantEqual(t, "selector", k.GetSelector(), strings.ToLower(r.GetSelector()))
			wantEqual(t, "key", base64.StdEncoding.EncodeToString(k.GetPublicKey()), r.GetPublicKey())
		}
	}
	wantEqual(t, "TTL that the second request gave", f.ttl(t, spamtrap, "there"), 600)
	wantEqual(t, "domains", names(must(f.api.ListDomains(ctx, &dkimv1.ListDomainsRequest{Parent: "brands/acme"}))(t).GetDomains()),
		[]string{"a-b.example", "a.b.example", "half.example", "many.example", "new.example", "spamtrap.dk", "twice.example"})
	wantEqual(t, "log", f.log.String(), "")
}

func (f *fixture) ttl(t testing.TB, domain, selector string) int32 {
	t.Helper()
	keys := must(f.api.ListKeys(t.Context(), &dkimv1.ListKeysRequest{Parent: domain}))(t).GetKeys()
	i := slices.IndexFunc(keys, func(k *dkimv1.Key) bool { return k.GetSelector() == selector })
	return keys[i].GetTtlSeconds()
}

// The controller need not look at once at what a batch has published: nothing can
// happen to it. A domain with keys of the service's own is looked at.
func TestBatchPublishKeysIsLookedAtLater(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	f.provision(t, spamtrap)
	due := func(at time.Time) map[dnsname.Domain]bool {
		domains := make(map[dnsname.Domain]bool)
		for _, e := range must(f.store.DueBefore(ctx, at, 1000))(t) {
			domains[e.Domain] = true
		}
		return domains
	}
	must(f.api.BatchPublishKeys(ctx, &dkimv1.BatchPublishKeysRequest{Parent: "brands/acme", Requests: []*dkimv1.PublishKeyRequest{
		{Parent: acme + "new.example", Selector: "s1", PublicKey: newPublic(t)},
		{Parent: spamtrap, Selector: "more", PublicKey: newPublic(t)},
	}}))(t)
	now := (*f.now.Load())()
	if d := due(now); d["new.example"] || !d["spamtrap.dk"] {
		t.Errorf("due at once: %v", d)
	}
	if d := due(now.Add(rotation.DefaultPolicy().CheckInterval)); !d["new.example"] {
		t.Errorf("due within the usual time: %v", d)
	}
}

func TestBatchPublishKeysRefusesAll(t *testing.T) {
	f := newFixture(t)
	call := func(parent string, n int) func() error {
		return func() error {
			req := &dkimv1.BatchPublishKeysRequest{Parent: parent}
			for range n {
				req.Requests = append(req.Requests, &dkimv1.PublishKeyRequest{})
			}
			_, err := f.api.BatchPublishKeys(t.Context(), req)
			return err
		}
	}
	f.refused(t, rejection{codes.NotFound, "BRAND_NOT_FOUND", ""}, call("brands/nobody", 1))
	f.refused(t, rejection{codes.InvalidArgument, "INVALID_BRAND", "parent"}, call("brands/-", 1))
	f.refused(t, rejection{codes.InvalidArgument, "INVALID_NAME", "parent"}, call("acme", 1))
	f.refused(t, rejection{codes.InvalidArgument, "BATCH_TOO_LARGE", "requests"}, call("brands/acme", 1001))
	if err := f.unchanged(t, call("brands/acme", 1000)); err != nil {
		t.Error(err)
	}
	if err := f.unchanged(t, call("brands/acme", 0)); err != nil {
		t.Error(err)
	}
}
