package service_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/prober"
	"github.com/dkimzone/dkimzone/internal/rotation"
)

// seconds is a time as reports keep it.
func seconds(at time.Time) *timestamppb.Timestamp { return timestamppb.New(at.Truncate(time.Second)) }

func TestSigner(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	now := start.Truncate(time.Microsecond)
	mx := must(f.signer.RegisterSigner(ctx, &dkimv1.RegisterSignerRequest{}))(t)
	wantEqual(t, "signer", mx, &dkimv1.SignerRegistration{
		Name: "signers/mx", RegisterTime: timestamppb.New(now), LeaseExpireTime: timestamppb.New(now.Add(time.Hour)), LeaseDuration: durationpb.New(time.Hour),
	})
	// Again, with other settings: it has been there since.
	f.setTime(start.Add(time.Minute))
	mx = must(f.signer.RegisterSigner(ctx, &dkimv1.RegisterSignerRequest{Signer: &dkimv1.SignerRegistration{
		Name: "signers/mx", Brand: "brands/acme", Description: "first", LeaseDuration: durationpb.New(10 * time.Minute),
	}}))(t)
	wantEqual(t, "signer, again", mx, &dkimv1.SignerRegistration{
		Name: "signers/mx", Brand: "brands/acme", Description: "first",
		RegisterTime: timestamppb.New(now), LeaseExpireTime: timestamppb.New(now.Add(11 * time.Minute)), LeaseDuration: durationpb.New(10 * time.Minute),
	})
	wantEqual(t, "signer as read", must(f.api.GetSigner(ctx, &dkimv1.GetSignerRequest{Name: "signers/mx"}))(t), mx)
	must(f.signer.RegisterSigner(ctx, &dkimv1.RegisterSignerRequest{Signer: &dkimv1.SignerRegistration{Name: "signers/mx.two"}}))(t)
	page := must(f.api.ListSigners(ctx, &dkimv1.ListSignersRequest{PageSize: 1}))(t)
	wantEqual(t, "first page", page.GetSigners(), []*dkimv1.SignerRegistration{mx})
	page = must(f.api.ListSigners(ctx, &dkimv1.ListSignersRequest{PageToken: page.GetNextPageToken()}))(t)
	wantEqual(t, "second page", names(page.GetSigners()), []string{"mx.two"})

	// A report, which renews the lease.
	d := f.provision(t, spamtrap)
	keys := []string{d.GetSelectors()[0].GetKey(), d.GetSelectors()[1].GetKey()}
	f.setTime(start.Add(2 * time.Minute))
	resp := must(f.signer.ReportUse(ctx, &dkimv1.ReportUseRequest{Domains: []*dkimv1.DomainUse{
		{Domain: spamtrap, Keys: []*dkimv1.KeyUse{{Key: keys[0], LastUseTime: timestamppb.New(start.Add(time.Hour))}, {Key: keys[1]}}}, // its clock is ahead
		{Domain: acme + "no.example"},
	}}))(t)
	wantEqual(t, "answer to a report", resp, &dkimv1.ReportUseResponse{
		LeaseExpireTime: timestamppb.New(now.Add(12 * time.Minute)), UnknownDomains: []string{acme + "no.example"},
		Domains: []*dkimv1.ReportUseResponse_Domain{{Domain: spamtrap}},
	})
	// The standby is proven to a signer that holds it.
	f.setTime(start.Add(3 * time.Minute))
	rotated := f.rotate(t, spamtrap)
	resp = must(f.signer.ReportUse(ctx, &dkimv1.ReportUseRequest{Domains: []*dkimv1.DomainUse{{Domain: spamtrap, Keys: []*dkimv1.KeyUse{{Key: keys[1]}}}}}))(t)
	wantEqual(t, "keys to sign with", resp.GetDomains()[0].GetActiveKeys(), []string{rotated.GetSelectors()[0].GetKey()})

	must(f.api.DeleteSigner(ctx, &dkimv1.DeleteSignerRequest{Name: "signers/mx.two"}))(t)
	type api = dkimv1.KeyManagementClient
	type client = dkimv1.SignerClient
	denied := rejection{codes.PermissionDenied, "PERMISSION_DENIED", ""}
	registered := func(s *dkimv1.SignerRegistration) *dkimv1.RegisterSignerRequest {
		return &dkimv1.RegisterSignerRequest{Signer: s}
	}
	using := func(domain string, keys ...*dkimv1.KeyUse) *dkimv1.ReportUseRequest {
		return &dkimv1.ReportUseRequest{Domains: []*dkimv1.DomainUse{{Domain: domain, Keys: keys}}}
	}
	noSigner := rejection{codes.NotFound, "SIGNER_NOT_FOUND", ""}
	f.refuse(t, []refusal{
		{"get an unknown signer", noSigner, calling(api.GetSigner, &dkimv1.GetSignerRequest{Name: "signers/mx.two"})},
		{"delete an unknown signer", noSigner, calling(api.DeleteSigner, &dkimv1.DeleteSignerRequest{Name: "signers/mx.two"})},
		{"report of an unknown signer", noSigner, asSigner(f, client.ReportUse, &dkimv1.ReportUseRequest{Signer: "signers/mx.two"})},
		{"get a bad signer", badArgument("INVALID_SIGNER", "name"), calling(api.GetSigner, &dkimv1.GetSignerRequest{Name: "signers/A B"})},
		{"get no signer", badArgument("INVALID_NAME", "name"), calling(api.GetSigner, &dkimv1.GetSignerRequest{Name: "brands/acme"})},
		{"register another", denied, asSigner(f, client.RegisterSigner, registered(&dkimv1.SignerRegistration{Name: "signers/other"}))},
		{"register one that begins like it", denied, asSigner(f, client.RegisterSigner, registered(&dkimv1.SignerRegistration{Name: "signers/mx2"}))},
		{"report for another", denied, asSigner(f, client.ReportUse, &dkimv1.ReportUseRequest{Signer: "signers/other"})},
		{"report of a brand that it does not sign for", denied, asSigner(f, client.ReportUse, using("brands/other/domains/a.example"))},
		{"short lease", badArgument("INVALID_LEASE", "signer.lease_duration"), asSigner(f, client.RegisterSigner, registered(&dkimv1.SignerRegistration{LeaseDuration: durationpb.New(time.Second)}))},
		{"long description", badArgument("INVALID_SIGNER", "signer.description"), asSigner(f, client.RegisterSigner, registered(&dkimv1.SignerRegistration{Description: strings.Repeat("ü", 201)}))},
		{"of an unknown brand", rejection{codes.NotFound, "BRAND_NOT_FOUND", ""}, asSigner(f, client.RegisterSigner, registered(&dkimv1.SignerRegistration{Brand: "brands/nobody"}))},
		{"key of another domain", badArgument("INVALID_KEY", "domains[0].keys[0].key"), asSigner(f, client.ReportUse, using(spamtrap, &dkimv1.KeyUse{Key: acme + "a.example/keys/abc"}))},
		{"use before there was mail", badArgument("INVALID_KEY", "domains[0].keys[0].last_use_time"), asSigner(f, client.ReportUse, using(spamtrap, &dkimv1.KeyUse{Key: keys[0], LastUseTime: &timestamppb.Timestamp{Seconds: -5}}))},
		{"many domains", badArgument("BATCH_TOO_LARGE", "domains"), asSigner(f, client.ReportUse, &dkimv1.ReportUseRequest{Domains: make([]*dkimv1.DomainUse, 1001)})},
		{"a domain twice", badArgument("INVALID_DOMAIN", "domains[1].domain"), asSigner(f, client.ReportUse, &dkimv1.ReportUseRequest{Domains: []*dkimv1.DomainUse{{Domain: spamtrap}, {Domain: spamtrap}}})},
	})
	// What a signer may not call at all.
	f.refused(t, denied, func() error {
		_, err := dkimv1.NewKeyManagementClient(f.as(t, "signer", "mx")).GetDomain(ctx, &dkimv1.GetDomainRequest{Name: spamtrap})
		return err
	})
}

func TestResolveSigningKeys(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	resolve := func(name string) *dkimv1.ResolveSigningKeysResponse {
		t.Helper()
		resp := must(f.signer.ResolveSigningKeys(ctx, &dkimv1.ResolveSigningKeysRequest{Name: name}))(t)
		if resp.GetMessage() == "" || resp.GetExpireTime() == nil {
			t.Errorf("answer %v", resp)
		}
		return resp
	}
	d := f.provision(t, spamtrap)
	fresh := resolve(spamtrap)
	if len(fresh.GetKeys()) != 0 || fresh.GetFallback() {
		t.Errorf("%v before anything is proven", fresh)
	}
	f.rotate(t, spamtrap)
	own := resolve("brands/-/domains/SPAMTRAP.dk")
	wantEqual(t, "reason", own.GetReason(), rotation.ReasonOwnKey)
	wantEqual(t, "keys", own.GetKeys(), []*dkimv1.SigningKey{{Domain: "spamtrap.dk", Selector: "selector1", Algorithm: ed25519, Key: d.GetSelectors()[0].GetKey()}})

	// A domain that is not ready is signed with the brand's default key once that
	// is.
	b := must(f.api.UpdateBrand(ctx, &dkimv1.UpdateBrandRequest{Brand: &dkimv1.Brand{Name: "brands/acme", DisplayName: "Acme"}}))(t)
	f.rotate(t, b.GetDefaultDomain())
	f.provision(t, acme+"new.example")
	fallback := resolve(acme + "new.example")
	if !fallback.GetFallback() || len(fallback.GetKeys()) != 1 || fallback.GetKeys()[0].GetDomain() != "acme.keys.example.net" || fallback.GetKeys()[0].GetSelector() != "default1" {
		t.Errorf("%v, want the default key", fallback)
	}
	if !strings.HasPrefix(fallback.GetKeys()[0].GetKey(), b.GetDefaultDomain()+"/keys/") {
		t.Errorf("key %s is not of %s", fallback.GetKeys()[0].GetKey(), b.GetDefaultDomain())
	}

	type client = dkimv1.SignerClient
	f.refuse(t, []refusal{
		{"nobody's domain", rejection{codes.NotFound, "DOMAIN_NOT_FOUND", ""}, asSigner(f, client.ResolveSigningKeys, &dkimv1.ResolveSigningKeysRequest{Name: "brands/-/domains/no.example"})},
		{"unknown brand", rejection{codes.NotFound, "BRAND_NOT_FOUND", ""}, asSigner(f, client.ResolveSigningKeys, &dkimv1.ResolveSigningKeysRequest{Name: "brands/nobody/domains/no.example"})},
		{"no domain", badArgument("INVALID_NAME", "name"), asSigner(f, client.ResolveSigningKeys, &dkimv1.ResolveSigningKeysRequest{Name: "brands/acme"})},
	})
}

func TestBrandModes(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	b := must(f.api.CreateBrand(ctx, &dkimv1.CreateBrandRequest{BrandId: "new", Brand: &dkimv1.Brand{SigningMode: dkimv1.SigningMode_SIGNING_MODE_BRAND_DEFAULT}}))(t)
	wantEqual(t, "own domains", []string{b.GetDefaultDomain(), b.GetSharedDomain()}, []string{"brands/new/domains/new.keys.example.net", ""})
	byDefault := f.get(t, b.GetDefaultDomain())
	wantEqual(t, "kind", byDefault.GetKind(), dkimv1.DomainKind_DOMAIN_KIND_BRAND_DEFAULT)
	var owners []string
	for _, s := range byDefault.GetSelectors() {
		owners = append(owners, s.GetOwnerName()+s.GetCnameOwner())
	}
	wantEqual(t, "names of the default keys", owners, []string{"default1._domainkey.new.keys.example.net", "default2._domainkey.new.keys.example.net", "default3._domainkey.new.keys.example.net"})

	const customer = "brands/new/domains/customer.example"
	wantEqual(t, "selectors of a domain that is signed with the default key", len(f.provision(t, customer).GetSelectors()), 0)
	f.rotate(t, b.GetDefaultDomain())
	resp := must(f.signer.ResolveSigningKeys(ctx, &dkimv1.ResolveSigningKeysRequest{Name: customer}))(t)
	wantEqual(t, "reason", resp.GetReason(), rotation.ReasonDefaultKey)

	// Shared keys.
	b = must(f.api.UpdateBrand(ctx, &dkimv1.UpdateBrandRequest{Brand: &dkimv1.Brand{Name: b.GetName(), SigningMode: dkimv1.SigningMode_SIGNING_MODE_BRAND_SHARED}}))(t)
	wantEqual(t, "own domains", []string{b.GetDefaultDomain(), b.GetSharedDomain()}, []string{"brands/new/domains/new.keys.example.net", "brands/new/domains/shared.new.keys.example.net"})
	d := f.provision(t, "brands/new/domains/second.example")
	var cnames []string
	for _, s := range d.GetSelectors() {
		cnames = append(cnames, s.GetCnameOwner()+" "+s.GetCnameTarget())
		if !strings.HasPrefix(s.GetKey(), b.GetSharedDomain()) {
			t.Errorf("key %s", s.GetKey())
		}
	}
	wantEqual(t, "CNAMEs", cnames, []string{
		"mail1._domainkey.second.example mail1-new._domainkey.keys.example.net", "mail2._domainkey.second.example mail2-new._domainkey.keys.example.net",
	})
	f.rotate(t, b.GetSharedDomain())
	f.prove(t, d.GetName())
	resp = must(f.signer.ResolveSigningKeys(ctx, &dkimv1.ResolveSigningKeysRequest{Name: d.GetName()}))(t)
	if len(resp.GetKeys()) != 1 || resp.GetKeys()[0].GetDomain() != "second.example" || resp.GetKeys()[0].GetSelector() != "mail1" || resp.GetReason() != rotation.ReasonSharedKey {
		t.Errorf("%v, want the shared key", resp)
	}

	type api = dkimv1.KeyManagementClient
	f.refuse(t, []refusal{
		{"delete default keys", rejection{codes.FailedPrecondition, "KEY_DOMAIN", ""}, calling(api.DeleteDomain, &dkimv1.DeleteDomainRequest{Name: b.GetDefaultDomain()})},
		{"delete shared keys", rejection{codes.FailedPrecondition, "KEY_DOMAIN", ""}, calling(api.DeleteDomain, &dkimv1.DeleteDomainRequest{Name: b.GetSharedDomain()})},
		{"a domain in the zone", badArgument("INVALID_DOMAIN", "name"), calling(provisionDomain, &dkimv1.ProvisionDomainRequest{Name: "brands/other/domains/new.keys.example.net"})},
		{"a key in the zone", badArgument("INVALID_DOMAIN", "parent"), calling(publishKey, &dkimv1.PublishKeyRequest{Parent: "brands/other/domains/new.keys.example.net", Selector: "s", PublicKey: newPublic(t)})},
		{"unknown mode", badArgument("INVALID_BRAND", "brand.signing_mode"), calling(api.UpdateBrand, &dkimv1.UpdateBrandRequest{Brand: &dkimv1.Brand{Name: b.GetName(), SigningMode: 9}})},
		{"a brand with customers", rejection{codes.FailedPrecondition, "BRAND_NOT_EMPTY", ""}, calling(api.DeleteBrand, &dkimv1.DeleteBrandRequest{Name: b.GetName()})},
	})
	for _, name := range []string{customer, d.GetName()} {
		must(f.api.DeleteDomain(ctx, &dkimv1.DeleteDomainRequest{Name: name}))(t)
	}
	must(f.api.DeleteBrand(ctx, &dkimv1.DeleteBrandRequest{Name: b.GetName()}))(t)
	wantEqual(t, "records left", f.under("/dkim/v1/pub/"), []string{"keys.example.net/apex"})
}

func TestRevokeKey(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	f.provision(t, spamtrap, "a", "b")
	must(f.signer.RegisterSigner(ctx, &dkimv1.RegisterSignerRequest{}))(t)
	d := f.rotate(t, spamtrap)
	a, b := d.GetSelectors()[0].GetKey(), d.GetSelectors()[1].GetKey()
	now := (*f.now.Load())()
	must(f.signer.RegisterSigner(ctx, &dkimv1.RegisterSignerRequest{}))(t)
	must(f.signer.ReportUse(ctx, &dkimv1.ReportUseRequest{Domains: []*dkimv1.DomainUse{{Domain: spamtrap, Keys: []*dkimv1.KeyUse{{Key: a, LastUseTime: seconds(now)}}}}}))(t)
	revoking := func(key string, compromised bool) func(context.Context, dkimv1.KeyManagementClient) error {
		return calling(dkimv1.KeyManagementClient.RevokeKey, &dkimv1.RevokeKeyRequest{Name: key, Compromised: compromised})
	}
	f.refuse(t, []refusal{
		{"a key that signs", rejection{codes.FailedPrecondition, "KEY_IN_USE", ""}, revoking(a, false)},
		{"an unknown key", rejection{codes.NotFound, "KEY_NOT_FOUND", ""}, revoking(spamtrap+"/keys/no", true)},
		{"of an unknown domain", rejection{codes.NotFound, "DOMAIN_NOT_FOUND", ""}, revoking(acme+"no.example/keys/no", true)},
		{"for a long reason", badArgument("INVALID_REASON", "reason"), calling(dkimv1.KeyManagementClient.RevokeKey, &dkimv1.RevokeKeyRequest{Name: a, Reason: strings.Repeat("x", 201)})},
		{"with a stale etag", rejection{codes.Aborted, "ETAG_MISMATCH", ""}, calling(dkimv1.KeyManagementClient.RevokeKey, &dkimv1.RevokeKeyRequest{Name: a, Compromised: true, Etag: "1"})},
	})
	resp := must(f.api.RevokeKey(ctx, &dkimv1.RevokeKeyRequest{Name: a, Compromised: true, Reason: "found in a backup"}))(t)
	wantEqual(t, "states", statesOf(resp.GetDomain()), map[string]dkimv1.KeyState{"a": revoked, "b": active})
	wantEqual(t, "promoted key", resp.GetPromotedKey(), b)
	wantEqual(t, "holders", resp.GetHolders(), []*dkimv1.KeyHolder{{
		Signer: "signers/mx", HoldTime: seconds(now), LastUseTime: seconds(now), ReportTime: seconds(now), Holding: true,
	}})
	k := must(f.api.GetKey(ctx, &dkimv1.GetKeyRequest{Name: a}))(t)
	if !k.GetCompromised() || !strings.HasSuffix(k.GetRecord(), "p=") {
		t.Errorf("revoked key %v", k)
	}
	events := must(f.api.ListDomainEvents(ctx, &dkimv1.ListDomainEventsRequest{Parent: spamtrap, PageSize: 2}))(t).GetEvents()
	if events[1].GetKey() != a || events[1].GetReason() != rotation.ReasonCompromised || events[1].GetDetail() != "found in a backup" || events[1].GetActor() != "admin/alice" {
		t.Errorf("history %v", events)
	}
	f.refuse(t, []refusal{{"again", rejection{codes.FailedPrecondition, "KEY_REVOKED", ""}, revoking(a, true)}})

	// A standby may be revoked for no reason; a key made elsewhere, for the same.
	other := f.provision(t, acme+"other.example", "a", "b")
	resp = must(f.api.RevokeKey(ctx, &dkimv1.RevokeKeyRequest{Name: other.GetSelectors()[1].GetKey()}))(t)
	wantEqual(t, "states", statesOf(resp.GetDomain()), map[string]dkimv1.KeyState{"a": prepared, "b": revoked})
	theirs := f.publish(t, acme+"other.example", "theirs")
	resp = must(f.api.RevokeKey(ctx, &dkimv1.RevokeKeyRequest{Name: theirs.GetName(), Compromised: true}))(t)
	wantEqual(t, "state of a key made elsewhere", statesOf(resp.GetDomain())["theirs"], revoked)
	must(f.api.DeleteKey(ctx, &dkimv1.DeleteKeyRequest{Name: theirs.GetName()}))(t)
}

// A domain changes hands only when its DNS shows that it did.
func TestTakeOver(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	const name = "brands/other/domains/spamtrap.dk"
	provisioning := calling(provisionDomain, &dkimv1.ProvisionDomainRequest{Name: name, Algorithm: ed25519})
	publishing := calling(publishKey, &dkimv1.PublishKeyRequest{Parent: name, Selector: "s", PublicKey: newPublic(t)})
	reservedDomain := rejection{codes.FailedPrecondition, "DOMAIN_RESERVED", ""}
	asked := func() (owner, value string) {
		t.Helper()
		err := provisioning(ctx, f.api)
		for _, d := range status.Convert(err).Details() {
			if info, ok := d.(*errdetails.ErrorInfo); ok {
				owner, value = info.GetMetadata()["challenge_owner"], info.GetMetadata()["challenge_value"]
			}
		}
		return owner, value
	}
	f.provision(t, spamtrap)
	must(f.api.DeleteDomain(ctx, &dkimv1.DeleteDomainRequest{Name: spamtrap}))(t)
	f.refuse(t, []refusal{{"provision", reservedDomain, provisioning}, {"publish", reservedDomain, publishing}})
	batch := must(f.api.BatchPublishKeys(ctx, &dkimv1.BatchPublishKeysRequest{Parent: "brands/other", Requests: []*dkimv1.PublishKeyRequest{{Parent: name, Selector: "s", PublicKey: newPublic(t)}}}))(t)
	wantEqual(t, "code in a batch", codes.Code(batch.GetResults()[0].GetError().GetCode()), codes.FailedPrecondition)
	owner, value := asked()
	wantEqual(t, "owner", owner, "_dkimzone-challenge.spamtrap.dk")
	if again, same := asked(); again != owner || same != value {
		t.Errorf("asked for %s first and then for %s", value, same)
	}
	f.dns.showChallenge("spamtrap.dk", "something else")
	f.refuse(t, []refusal{{"with another record", reservedDomain, provisioning}})
	f.dns.showChallenge("spamtrap.dk", value)
	if err := provisioning(ctx, f.api); err != nil {
		t.Fatal(err)
	}
	if err := publishing(ctx, f.api); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "owner of the domain", must(f.api.ListDomains(ctx, &dkimv1.ListDomainsRequest{Parent: "brands/-"}))(t).GetDomains()[0].GetName(), name)

	// The record of yesterday is no proof for the brand that had it before, nor
	// for the next time.
	f.setTime(start.Add(time.Hour))
	must(f.api.DeleteDomain(ctx, &dkimv1.DeleteDomainRequest{Name: name}))(t)
	f.refuse(t, []refusal{{"by the first brand", reservedDomain, calling(provisionDomain, &dkimv1.ProvisionDomainRequest{Name: spamtrap, Algorithm: ed25519})}})
	must(f.api.ProvisionDomain(ctx, &dkimv1.ProvisionDomainRequest{Name: name, Algorithm: ed25519}))(t)
}

func TestCheckDomainWithoutAnswers(t *testing.T) {
	f := newFixture(t)
	f.provision(t, spamtrap)
	f.dns.showAlias("selector1._domainkey.spamtrap.dk", prober.AliasReport{Finding: rotation.Unreachable, Reason: "UNREACHABLE"})
	resp := must(f.api.CheckDomain(t.Context(), &dkimv1.CheckDomainRequest{Name: spamtrap}))(t)
	wantEqual(t, "finding", resp.GetRecords()[0].GetCheck().GetFinding(), dkimv1.Check_FINDING_UNREACHABLE)
	type api = dkimv1.KeyManagementClient
	f.refuse(t, []refusal{
		{"unknown domain", rejection{codes.NotFound, "DOMAIN_NOT_FOUND", ""}, calling(api.CheckDomain, &dkimv1.CheckDomainRequest{Name: acme + "no.example"})},
		{"history of an unknown domain", rejection{codes.NotFound, "DOMAIN_NOT_FOUND", ""}, calling(api.ListDomainEvents, &dkimv1.ListDomainEventsRequest{Parent: acme + "no.example"})},
		{"history, bad token", badArgument("INVALID_PAGE_TOKEN", "page_token"), calling(api.ListDomainEvents, &dkimv1.ListDomainEventsRequest{Parent: spamtrap, PageToken: "x"})},
	})
}
