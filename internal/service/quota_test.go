package service_test

import (
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

func (f *fixture) setQuota(t testing.TB, brand string, limit int64) *dkimv1.Brand {
	t.Helper()
	return must(f.api.UpdateBrand(t.Context(), &dkimv1.UpdateBrandRequest{
		Brand: &dkimv1.Brand{Name: brand, MaxDomains: limit}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"max_domains"}},
	}))(t)
}

func TestQuota(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	f.provision(t, spamtrap)
	b := f.setQuota(t, "brands/acme", 2)
	wantEqual(t, "quota", b.GetMaxDomains(), 2)
	wantEqual(t, "number of domains", b.GetDomainCount(), 1)
	f.provision(t, acme+"second.example")
	wantEqual(t, "number of domains", must(f.api.GetBrand(ctx, &dkimv1.GetBrandRequest{Name: "brands/acme"}))(t).GetDomainCount(), 2)

	full := rejection{codes.ResourceExhausted, "QUOTA_EXCEEDED", ""}
	third := acme + "third.example"
	provisioning := calling(provisionDomain, &dkimv1.ProvisionDomainRequest{Name: third, Algorithm: ed25519})
	f.refuse(t, []refusal{
		{"provision", full, provisioning},
		{"publish", full, calling(publishKey, &dkimv1.PublishKeyRequest{Parent: third, Selector: "s", PublicKey: newPublic(t)})},
	})
	for _, d := range status.Convert(provisioning(ctx, f.api)).Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			wantEqual(t, "metadata", d.GetMetadata(), map[string]string{"brand": "acme", "limit": "2", "count": "2"})
		case *errdetails.QuotaFailure:
			wantEqual(t, "subject", d.GetViolations()[0].GetSubject(), "brands/acme")
		case *errdetails.RetryInfo:
			t.Errorf("%v: waiting does not help", d)
		}
	}
	batch := must(f.api.BatchPublishKeys(ctx, &dkimv1.BatchPublishKeysRequest{Parent: "brands/acme", Requests: []*dkimv1.PublishKeyRequest{
		{Parent: third, Selector: "s", PublicKey: newPublic(t)}, {Parent: spamtrap, Selector: "s", PublicKey: newPublic(t)},
	}}))(t)
	wantEqual(t, "third domain in a batch", reasonOf(t, batch.GetResults()[0]), "ResourceExhausted QUOTA_EXCEEDED")
	wantEqual(t, "first domain in a batch", reasonOf(t, batch.GetResults()[1]), "")

	// What is there goes on; other brands too.
	f.provision(t, spamtrap)
	f.provision(t, acme+"second.example", "more1", "more2")
	f.provision(t, "brands/other/domains/another.example")
	must(f.api.DeleteDomain(ctx, &dkimv1.DeleteDomainRequest{Name: spamtrap}))(t)
	f.provision(t, spamtrap)
	f.setQuota(t, "brands/acme", 1)
	f.refuse(t, []refusal{{"lowered", full, provisioning}})
	b = f.setQuota(t, "brands/acme", 0)
	wantEqual(t, "number of domains without a quota", b.GetDomainCount(), 0)
	f.provision(t, acme+"fourth.example")

	type api = dkimv1.KeyManagementClient
	for _, n := range []int64{-1, 1_000_000_001} {
		f.refuse(t, []refusal{
			{"create", badArgument("INVALID_BRAND", "brand.max_domains"), calling(api.CreateBrand, &dkimv1.CreateBrandRequest{BrandId: "third", Brand: &dkimv1.Brand{MaxDomains: n}})},
			{"update", badArgument("INVALID_BRAND", "brand.max_domains"), calling(api.UpdateBrand, &dkimv1.UpdateBrandRequest{
				Brand: &dkimv1.Brand{Name: "brands/acme", MaxDomains: n}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"max_domains"}},
			})},
		})
	}
}
