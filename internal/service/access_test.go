package service_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/pki"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// admin is another certificate of an administrator.
func (f *fixture) admin(t *testing.T) (certFile, keyFile string) {
	t.Helper()
	cert, key, err := f.ca.EnsureClient("admin2", pki.Identity{Role: "admin", Name: "bob"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func TestCallers(t *testing.T) {
	f := newFixture(t)
	foreign, err := pki.EnsureCA(t.TempDir(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	good := &dkimv1.ProvisionDomainRequest{Name: spamtrap, Algorithm: ed25519}

	// Known to nobody: the connection is not even made.
	cert, key, err := foreign.EnsureClient("mallory", pki.Identity{Role: "admin", Name: "mallory"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	err = f.unchanged(t, func() error {
		_, err := dkimv1.NewKeyManagementClient(f.connect(t, cert, key)).ProvisionDomain(t.Context(), good)
		return err
	})
	wantEqual(t, "code for a foreign certificate", status.Code(err), codes.Unavailable)

	// Known, and nobody here.
	roleless, rolelessKey, err := f.ca.EnsurePeer("peer", []string{"localhost"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	unknown, unknownKey, err := f.ca.EnsureClient("unknown", pki.Identity{Role: "operator", Name: "mta1"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for name, files := range map[string][2]string{"without a role": {roleless, rolelessKey}, "of an unknown role": {unknown, unknownKey}} {
		t.Run(name, func(t *testing.T) {
			conn := f.connect(t, files[0], files[1])
			api := dkimv1.NewKeyManagementClient(conn)
			unauthenticated := rejection{codes.Unauthenticated, "UNAUTHENTICATED", ""}
			f.refused(t, unauthenticated, func() error { _, err := api.ProvisionDomain(t.Context(), good); return err })
			f.refused(t, unauthenticated, func() error { _, err := api.ListZones(t.Context(), &dkimv1.ListZonesRequest{}); return err })
			f.refused(t, unauthenticated, func() error {
				stream, err := api.WatchDomains(t.Context(), &dkimv1.WatchDomainsRequest{Parent: "brands/-"})
				if err != nil {
					return err
				}
				_, err = stream.Recv()
				return err
			})
			_, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
			wantEqual(t, "code for a look at the health", status.Code(err), codes.Unauthenticated)
		})
	}
}

// Services that are not ours answer as their clients expect.
func TestHealth(t *testing.T) {
	f := newFixture(t)
	resp := must(f.health.Check(t.Context(), &healthpb.HealthCheckRequest{}))(t)
	wantEqual(t, "health", resp.GetStatus(), healthpb.HealthCheckResponse_SERVING)
	_, err := f.health.Check(t.Context(), &healthpb.HealthCheckRequest{Service: "unknown"})
	wantEqual(t, "code for an unknown service", status.Code(err), codes.NotFound)
	wantEqual(t, "log", f.log.String(), "")
}

// fromMemory are the methods that do not ask the store first.
var fromMemory = []string{"WatchSigningKeys", "Sign", "FetchPrivateKeys"}

// everyMethod calls each method with a good request. Those that change something
// come with what they need to succeed.
func (f *fixture) everyMethod(t *testing.T) []refusal {
	t.Helper()
	d := f.provision(t, spamtrap)
	k := f.publish(t, spamtrap, "theirs")
	type api = dkimv1.KeyManagementClient
	all := []refusal{
		{name: "CreateZone", call: calling(api.CreateZone, &dkimv1.CreateZoneRequest{ZoneId: "new.example", Zone: &dkimv1.Zone{NameServers: outside}})},
		{name: "GetZone", call: calling(api.GetZone, &dkimv1.GetZoneRequest{Name: "zones/keys.example.net"})},
		{name: "ListZones", call: calling(api.ListZones, &dkimv1.ListZonesRequest{})},
		{name: "UpdateZone", call: calling(api.UpdateZone, &dkimv1.UpdateZoneRequest{Zone: &dkimv1.Zone{Name: "zones/keys.example.net", RecordTtlSeconds: 60}})},
		{name: "DeleteZone", call: calling(api.DeleteZone, &dkimv1.DeleteZoneRequest{Name: "zones/keys.example.net"})},
		{name: "AcceptZoneDeletions", call: calling(api.AcceptZoneDeletions, &dkimv1.AcceptZoneDeletionsRequest{Name: "zones/keys.example.net"})},
		{name: "ExportZone", call: func(ctx context.Context, api dkimv1.KeyManagementClient) error {
			_, _, err := export(ctx, api, "zones/keys.example.net")
			return err
		}},
		{name: "CreateBrand", call: calling(api.CreateBrand, &dkimv1.CreateBrandRequest{BrandId: "new"})},
		{name: "GetBrand", call: calling(api.GetBrand, &dkimv1.GetBrandRequest{Name: "brands/acme"})},
		{name: "ListBrands", call: calling(api.ListBrands, &dkimv1.ListBrandsRequest{})},
		{name: "UpdateBrand", call: calling(api.UpdateBrand, &dkimv1.UpdateBrandRequest{Brand: &dkimv1.Brand{Name: "brands/acme", DisplayName: "Acme"}})},
		{name: "DeleteBrand", call: calling(api.DeleteBrand, &dkimv1.DeleteBrandRequest{Name: "brands/other"})},
		{name: "ProvisionDomain", call: calling(api.ProvisionDomain, &dkimv1.ProvisionDomainRequest{Name: acme + "new.example", Algorithm: ed25519})},
		{name: "GetDomain", call: calling(api.GetDomain, &dkimv1.GetDomainRequest{Name: d.GetName()})},
		{name: "ListDomains", call: calling(api.ListDomains, &dkimv1.ListDomainsRequest{Parent: "brands/acme"})},
		{name: "DeleteDomain", call: calling(api.DeleteDomain, &dkimv1.DeleteDomainRequest{Name: d.GetName()})},
		{name: "RotateDomain", call: calling(api.RotateDomain, &dkimv1.RotateDomainRequest{Name: d.GetName()})},
		{name: "WatchDomains", call: func(ctx context.Context, api dkimv1.KeyManagementClient) error {
			stream, err := api.WatchDomains(ctx, &dkimv1.WatchDomainsRequest{Parent: "brands/acme"})
			if err != nil {
				return err
			}
			_, err = stream.Recv()
			return err
		}},
		{name: "ListKeys", call: calling(api.ListKeys, &dkimv1.ListKeysRequest{Parent: d.GetName()})},
		{name: "GetKey", call: calling(api.GetKey, &dkimv1.GetKeyRequest{Name: k.GetName()})},
		{name: "PublishKey", call: calling(publishKey, &dkimv1.PublishKeyRequest{Parent: d.GetName(), Selector: "new", PublicKey: newPublic(t)})},
		{name: "BatchPublishKeys", call: calling(api.BatchPublishKeys, &dkimv1.BatchPublishKeysRequest{Parent: "brands/acme", Requests: []*dkimv1.PublishKeyRequest{
			{Parent: d.GetName(), Selector: "batched", PublicKey: newPublic(t)},
		}})},
		{name: "ImportKey", call: calling(api.ImportKey, &dkimv1.ImportKeyRequest{Parent: d.GetName(), Selector: "imported", PrivateKey: newPrivate(t)})},
		{name: "DeleteKey", call: calling(api.DeleteKey, &dkimv1.DeleteKeyRequest{Name: k.GetName()})},
		{name: "UpdateDomain", call: calling(api.UpdateDomain, &dkimv1.UpdateDomainRequest{
			Domain: &dkimv1.Domain{Name: d.GetName(), RotationPolicy: &dkimv1.RotationPolicy{Paused: new(true)}},
		})},
		{name: "CheckDomain", call: calling(api.CheckDomain, &dkimv1.CheckDomainRequest{Name: d.GetName()})},
		{name: "PlanRotation", call: func(ctx context.Context, api dkimv1.KeyManagementClient) error {
			stream, err := api.PlanRotation(ctx, &dkimv1.PlanRotationRequest{Parent: "brands/acme"})
			if err != nil {
				return err
			}
			_, err = stream.Recv()
			return err
		}},
		{name: "ListDomainEvents", call: calling(api.ListDomainEvents, &dkimv1.ListDomainEventsRequest{Parent: d.GetName()})},
		{name: "RevokeKey", call: calling(api.RevokeKey, &dkimv1.RevokeKeyRequest{Name: k.GetName(), Compromised: true})},
		{name: "GetSigner", call: calling(api.GetSigner, &dkimv1.GetSignerRequest{Name: "signers/mx"})},
		{name: "ListSigners", call: calling(api.ListSigners, &dkimv1.ListSignersRequest{})},
		{name: "DeleteSigner", call: calling(api.DeleteSigner, &dkimv1.DeleteSignerRequest{Name: "signers/mx"})},
		{name: "RegisterSigner", call: asSigner(f, dkimv1.SignerClient.RegisterSigner, &dkimv1.RegisterSignerRequest{})},
		{name: "ReportUse", call: asSigner(f, dkimv1.SignerClient.ReportUse, &dkimv1.ReportUseRequest{Domains: []*dkimv1.DomainUse{{Domain: d.GetName()}}})},
		{name: "ResolveSigningKeys", call: asSigner(f, dkimv1.SignerClient.ResolveSigningKeys, &dkimv1.ResolveSigningKeysRequest{Name: d.GetName()})},
	}
	token := must(f.access.CreateToken(t.Context(), &dkimv1.CreateTokenRequest{Token: &dkimv1.Token{Role: dkimv1.Role_ROLE_AUDITOR}}))(t)
	secret := must(f.access.CreateBrandSecret(t.Context(), &dkimv1.CreateBrandSecretRequest{Parent: "brands/acme"}))(t)
	type access = dkimv1.AccessControlClient
	all = append(all,
		refusal{name: "CreateToken", call: withAccess(f, access.CreateToken, &dkimv1.CreateTokenRequest{Token: &dkimv1.Token{Role: dkimv1.Role_ROLE_ADMIN}})},
		refusal{name: "ListTokens", call: withAccess(f, access.ListTokens, &dkimv1.ListTokensRequest{})},
		refusal{name: "RevokeToken", call: withAccess(f, access.RevokeToken, &dkimv1.RevokeTokenRequest{Name: token.GetName()})},
		refusal{name: "CreateBrandSecret", call: withAccess(f, access.CreateBrandSecret, &dkimv1.CreateBrandSecretRequest{Parent: "brands/acme"})},
		refusal{name: "ListBrandSecrets", call: withAccess(f, access.ListBrandSecrets, &dkimv1.ListBrandSecretsRequest{Parent: "brands/acme"})},
		refusal{name: "RevokeBrandSecret", call: withAccess(f, access.RevokeBrandSecret, &dkimv1.RevokeBrandSecretRequest{Name: secret.GetName()})},
	)
	if n, want := len(all), len(documented(t))-len(fromMemory); n != want {
		t.Fatalf("%d methods, the API has %d and %d that do not ask the store", n, want, len(fromMemory))
	}
	return all
}

func TestStoreUnavailable(t *testing.T) {
	f := newFixture(t)
	for _, m := range f.everyMethod(t) {
		t.Run(m.name, func(t *testing.T) {
			said := f.refused(t, rejection{codes.Unavailable, "STORE_UNAVAILABLE", ""}, func() error {
				f.fake.SetError(status.Error(codes.Unavailable, "dial 10.0.0.1: connection refused"))
				defer f.fake.SetError(nil)
				return m.call(t.Context(), f.api)
			})
			if !strings.Contains(said, "retry_delay") {
				t.Errorf("no RetryInfo in %s", said)
			}
			if strings.Contains(said, "10.0.0.1") {
				t.Errorf("the caller is told what is inside: %s", said)
			}
			if want := "/" + m.name; !strings.Contains(f.log.String(), want) || !strings.Contains(f.log.String(), "10.0.0.1") {
				t.Errorf("the log does not say what is wrong: %s", f.log)
			}
		})
	}
}

func TestInternalErrorsStayInside(t *testing.T) {
	f := newFixture(t)
	for _, m := range f.everyMethod(t) {
		t.Run(m.name, func(t *testing.T) {
			said := f.refused(t, rejection{codes.Internal, "INTERNAL", ""}, func() error {
				f.fake.SetError(errors.New("secret of " + m.name))
				defer f.fake.SetError(nil)
				return m.call(t.Context(), f.api)
			})
			if strings.Contains(said, "secret") {
				t.Errorf("the caller is told what is inside: %s", said)
			}
			if !strings.Contains(f.log.String(), "secret of "+m.name) {
				t.Errorf("the log does not say what is wrong: %s", f.log)
			}
		})
	}
	// What another part says in the form of a gRPC error is inside, too.
	t.Run("status", func(t *testing.T) {
		f.keys.err = status.Error(codes.PermissionDenied, "secret of the pool")
		said := f.refused(t, rejection{codes.Internal, "INTERNAL", ""}, func() error {
			_, err := f.api.ProvisionDomain(t.Context(), &dkimv1.ProvisionDomainRequest{Name: acme + "new.example"})
			return err
		})
		f.keys.err = nil
		if strings.Contains(said, "secret") {
			t.Errorf("the caller is told what is inside: %s", said)
		}
	})
	t.Run("damaged value", func(t *testing.T) {
		must(f.fake.Put(t.Context(), schema.DomainKey("acme", "broken.example"), "\xff"))(t)
		for _, call := range []func() error{
			func() error {
				_, err := f.api.GetDomain(t.Context(), &dkimv1.GetDomainRequest{Name: acme + "broken.example"})
				return err
			},
			func() error {
				_, err := f.api.ListDomains(t.Context(), &dkimv1.ListDomainsRequest{Parent: "brands/-"})
				return err
			},
			func() error { _, err := f.watch(t, t.Context(), "brands/-", "").Recv(); return err },
		} {
			f.refused(t, rejection{codes.Internal, "INTERNAL", ""}, call)
		}
	})
	t.Run("panic", func(t *testing.T) {
		clock := func() time.Time { panic("secret of the clock") }
		f.now.Store(&clock)
		said := f.refused(t, rejection{codes.Internal, "INTERNAL", ""}, func() error {
			_, err := f.api.ProvisionDomain(t.Context(), &dkimv1.ProvisionDomainRequest{Name: acme + "new.example"})
			return err
		})
		f.setTime(start)
		if strings.Contains(said, "secret") || !strings.Contains(f.log.String(), "secret of the clock") {
			t.Errorf("the caller is told %s, the log says %s", said, f.log)
		}
	})
}

// Those who are always too late are told so, after a while.
func TestConflict(t *testing.T) {
	f := newFixture(t)
	d := f.provision(t, spamtrap)
	theirs := f.publish(t, spamtrap, "theirs")
	changes := 0
	again := func(key string) {
		changes++
		if _, err := f.fake.Put(context.Background(), key, f.fake.Dump()[key]); err != nil {
			t.Error(err)
		}
	}
	act := func() {
		again(schema.DomainKey("acme", "spamtrap.dk"))
		again(schema.BrandKey("other"))
		// A zone's etag is of its settings.
		z, err := f.fake.Get(context.Background(), schema.ApexKey("keys.example.net"))
		if err != nil {
			t.Error(err)
			return
		}
		apex := must(schema.UnmarshalApex(z.Kvs[0].Value))(t)
		apex.RecordTTL++
		if _, err := f.fake.Put(context.Background(), string(z.Kvs[0].Key), string(must(apex.Marshal())(t))); err != nil {
			t.Error(err)
		}
	}
	f.rival.Store(&act)
	type api = dkimv1.KeyManagementClient
	for name, call := range map[string]func(context.Context, dkimv1.KeyManagementClient) error{
		"ProvisionDomain": calling(provisionDomain, &dkimv1.ProvisionDomainRequest{Name: spamtrap, Selectors: specs("a", "b"), Algorithm: ed25519}),
		"RotateDomain":    calling(api.RotateDomain, &dkimv1.RotateDomainRequest{Name: spamtrap, WhenReady: true}),
		"CheckDomain":     calling(api.CheckDomain, &dkimv1.CheckDomainRequest{Name: spamtrap}),
		"RevokeKey":       calling(api.RevokeKey, &dkimv1.RevokeKeyRequest{Name: theirs.GetName(), Compromised: true}),
		"UpdateDomain": calling(api.UpdateDomain, &dkimv1.UpdateDomainRequest{
			Domain: &dkimv1.Domain{Name: spamtrap, RotationPolicy: &dkimv1.RotationPolicy{Paused: new(true)}},
		}),
		"PublishKey":   calling(publishKey, &dkimv1.PublishKeyRequest{Parent: spamtrap, Selector: "new", PublicKey: newPublic(t)}),
		"DeleteKey":    calling(api.DeleteKey, &dkimv1.DeleteKeyRequest{Name: theirs.GetName()}),
		"DeleteDomain": calling(api.DeleteDomain, &dkimv1.DeleteDomainRequest{Name: spamtrap}),
		"GetKey":       calling(api.GetKey, &dkimv1.GetKeyRequest{Name: theirs.GetName()}),
		"UpdateZone":   calling(api.UpdateZone, &dkimv1.UpdateZoneRequest{Zone: &dkimv1.Zone{Name: "zones/keys.example.net", RetrySeconds: 60}}),
		"UpdateBrand":  calling(api.UpdateBrand, &dkimv1.UpdateBrandRequest{Brand: &dkimv1.Brand{Name: "brands/other", DisplayName: "x"}}),
		"DeleteBrand":  calling(api.DeleteBrand, &dkimv1.DeleteBrandRequest{Name: "brands/other"}),
	} {
		t.Run(name, func(t *testing.T) {
			before := changes
			err := call(t.Context(), f.api)
			info, _ := status.Convert(err).Details()[0].(*errdetails.ErrorInfo)
			if status.Code(err) != codes.Aborted || info.GetReason() != "CONFLICT" {
				t.Errorf("got %v, want %v CONFLICT", err, codes.Aborted)
			}
			if changes == before {
				t.Error("nobody was in the way")
			}
		})
	}
	f.rival.Store(nil)
	after := must(f.api.GetDomain(t.Context(), &dkimv1.GetDomainRequest{Name: spamtrap}))(t)
	wantEqual(t, "selectors", after.GetSelectors()[:2], d.GetSelectors())
	wantEqual(t, "number of selectors", len(after.GetSelectors()), 3)
}

// One rejection to the letter.
func TestErrorDetails(t *testing.T) {
	f := newFixture(t)
	_, err := f.api.ProvisionDomain(t.Context(), &dkimv1.ProvisionDomainRequest{Name: acme + "a_b.example"})
	st := status.Convert(err)
	wantEqual(t, "message", st.Message(), `name: domain "a_b.example" is not valid: it has an underscore; give the name of the domain itself, not of a record below it`)
	wantEqual(t, "number of details", len(st.Details()), 2)
	wantEqual(t, "ErrorInfo", st.Details()[0].(*errdetails.ErrorInfo), &errdetails.ErrorInfo{
		Reason: "INVALID_DOMAIN", Domain: "dkimzone", Metadata: map[string]string{"detail": "UNDERSCORE"},
	})
}
