package service_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/admission"
)

// fakeGate admits every domain, unless it is told otherwise.
type fakeGate struct {
	mu    sync.Mutex
	err   func(admission.Request) error
	asked []string // operation, brand, domain and caller
}

func (g *fakeGate) Admit(_ context.Context, r admission.Request) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked = append(g.asked, fmt.Sprintf("%s %s/%s by %s", r.Operation, r.Brand, r.Domain, r.Caller.Identity))
	if g.err == nil {
		return nil
	}
	return g.err(r)
}

func (g *fakeGate) set(err func(admission.Request) error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.err = err
}

// wantAsked checks what was asked since the last time, in order.
func (g *fakeGate) wantAsked(t testing.TB, want ...string) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	wantEqual(t, "asked", g.asked, want)
	g.asked = nil
}

func TestGateIsAskedBeforeKeys(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	f.provision(t, spamtrap)
	f.gate.wantAsked(t, "provision acme/spamtrap.dk by admin/alice")
	f.provision(t, spamtrap) // nothing to do
	f.gate.wantAsked(t)
	f.provision(t, spamtrap, "more1", "more2")
	f.gate.wantAsked(t, "provision acme/spamtrap.dk by admin/alice")
	req := &dkimv1.PublishKeyRequest{Parent: acme + "BÜCHER.example", Selector: "s", PublicKey: newPublic(t)}
	must(f.api.PublishKey(ctx, req))(t)
	f.gate.wantAsked(t, "publish acme/xn--bcher-kva.example by admin/alice")
	req.TtlSeconds = 600
	must(f.api.PublishKey(ctx, req))(t)
	must(f.api.BatchPublishKeys(ctx, &dkimv1.BatchPublishKeysRequest{Parent: "brands/acme", Requests: []*dkimv1.PublishKeyRequest{req}}))(t)
	f.rotate(t, spamtrap)
	must(f.api.DeleteDomain(ctx, &dkimv1.DeleteDomainRequest{Name: spamtrap}))(t)
	f.gate.wantAsked(t)

	// Nobody is asked about what would be refused anyway.
	f.setQuota(t, "brands/acme", 1)
	for _, refused := range []func() error{
		func() error {
			_, err := f.api.ProvisionDomain(ctx, &dkimv1.ProvisionDomainRequest{Name: spamtrap})
			return err
		},
		func() error {
			_, err := f.api.ProvisionDomain(ctx, &dkimv1.ProvisionDomainRequest{Name: "brands/other/domains/bücher.example"})
			return err
		},
		func() error {
			_, err := f.api.ProvisionDomain(ctx, &dkimv1.ProvisionDomainRequest{Name: "brands/other/domains/spamtrap.dk"})
			return err
		},
	} {
		if err := refused(); err == nil {
			t.Fatal("succeeded")
		}
	}
	f.gate.wantAsked(t)
}

func TestGateRefuses(t *testing.T) {
	f := newFixture(t)
	f.provision(t, spamtrap)
	there := must(f.api.GetDomain(t.Context(), &dkimv1.GetDomainRequest{Name: spamtrap}))(t)
	fresh := acme + "fresh.example"
	calls := func(want rejection) []refusal {
		return []refusal{
			{"provision", want, calling(provisionDomain, &dkimv1.ProvisionDomainRequest{Name: fresh, Algorithm: ed25519})},
			{"another selector", want, calling(provisionDomain, &dkimv1.ProvisionDomainRequest{Name: spamtrap, Algorithm: ed25519, Selectors: []*dkimv1.SelectorSpec{{Selector: "more1"}, {Selector: "more2"}}})},
			{"publish", want, calling(publishKey, &dkimv1.PublishKeyRequest{Parent: fresh, Selector: "s", PublicKey: newPublic(t)})},
			{"publish for one that is there", want, calling(publishKey, &dkimv1.PublishKeyRequest{Parent: spamtrap, Selector: "s", PublicKey: newPublic(t)})},
		}
	}
	f.gate.set(func(r admission.Request) error {
		return &admission.DeniedError{Brand: r.Brand, Domain: r.Domain, Reason: "no such mail domain"}
	})
	denied := calls(rejection{codes.PermissionDenied, "ADMISSION_DENIED", ""})
	f.refuse(t, denied)
	if err := denied[0].call(t.Context(), f.api); !strings.Contains(status.Convert(err).Message(), "fresh.example is not admitted to brand acme: no such mail domain") {
		t.Errorf("the reason is not told: %v", err)
	}
	f.gate.set(func(admission.Request) error { return fmt.Errorf("%w: inner host 10.0.0.1", admission.ErrUnavailable) })
	unavailable := calls(rejection{codes.Unavailable, "ADMISSION_UNAVAILABLE", ""})
	f.refuse(t, unavailable)
	err := unavailable[0].call(t.Context(), f.api)
	if !slices.ContainsFunc(status.Convert(err).Details(), func(d any) bool { r, ok := d.(*errdetails.RetryInfo); return ok && r.GetRetryDelay().AsDuration() > 0 }) {
		t.Errorf("%v does not say when to try again", err)
	}
	if strings.Contains(err.Error(), "10.0.0.1") {
		t.Errorf("it says too much: %v", err)
	}
	// What has its keys is not hindered.
	f.provision(t, spamtrap)
	f.rotate(t, there.GetName())
}

func TestGateOfBatch(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	req := &dkimv1.BatchPublishKeysRequest{Parent: "brands/acme"}
	for i := range 100 {
		for _, sel := range []string{"s1", "s2"} {
			req.Requests = append(req.Requests, &dkimv1.PublishKeyRequest{Parent: fmt.Sprintf("%sd%d.example", acme, i), Selector: sel, PublicKey: newPublic(t)})
		}
	}
	f.gate.set(func(r admission.Request) error {
		if strings.Contains(r.Domain, "5") {
			return &admission.DeniedError{Brand: r.Brand, Domain: r.Domain}
		}
		return nil
	})
	resp := must(f.api.BatchPublishKeys(ctx, req))(t)
	for i, res := range resp.GetResults() {
		want := ""
		if strings.Contains(req.GetRequests()[i].GetParent(), "5") {
			want = "PermissionDenied ADMISSION_DENIED"
		}
		wantEqual(t, req.GetRequests()[i].GetParent(), reasonOf(t, res), want)
	}
	wantEqual(t, "questions", len(f.gate.asked), 100)

	f.gate.asked = nil
	f.gate.set(func(r admission.Request) error {
		if r.Domain == "d15.example" {
			return admission.ErrUnavailable
		}
		return nil
	})
	type api = dkimv1.KeyManagementClient
	f.refuse(t, []refusal{{"batch", rejection{codes.Unavailable, "ADMISSION_UNAVAILABLE", ""}, calling(api.BatchPublishKeys, req)}})
	f.gate.set(nil)
	for _, res := range must(f.api.BatchPublishKeys(ctx, req))(t).GetResults() {
		wantEqual(t, "when all are admitted", reasonOf(t, res), "")
	}
}

func TestGateIsAskedAboutTakeOver(t *testing.T) {
	const name = "brands/other/domains/spamtrap.dk"
	tests := map[string]refusal{
		"provision": {call: calling(provisionDomain, &dkimv1.ProvisionDomainRequest{Name: name, Algorithm: ed25519})},
		"publish":   {call: calling(publishKey, &dkimv1.PublishKeyRequest{Parent: name, Selector: "s", PublicKey: newPublic(t)})},
	}
	for what, tt := range tests {
		t.Run(what, func(t *testing.T) {
			f := newFixture(t)
			f.provision(t, spamtrap)
			must(f.api.DeleteDomain(t.Context(), &dkimv1.DeleteDomainRequest{Name: spamtrap}))(t)
			err := tt.call(t.Context(), f.api)
			for _, d := range status.Convert(err).Details() {
				if info, ok := d.(*errdetails.ErrorInfo); ok {
					f.dns.showChallenge("spamtrap.dk", info.GetMetadata()["challenge_value"])
				}
			}
			f.gate.asked = nil
			f.gate.set(func(r admission.Request) error {
				if r.Operation != admission.TakeOver {
					return nil
				}
				return &admission.DeniedError{Brand: r.Brand, Domain: r.Domain}
			})
			f.refuse(t, []refusal{{what, rejection{codes.PermissionDenied, "ADMISSION_DENIED", ""}, tt.call}})
			if !slices.Contains(f.gate.asked, "take_over other/spamtrap.dk by admin/alice") {
				t.Errorf("asked %q", f.gate.asked)
			}
			f.gate.set(nil)
			if err := tt.call(t.Context(), f.api); err != nil {
				t.Error(err)
			}
		})
	}
}
