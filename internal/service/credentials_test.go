package service_test

import (
	"context"
	"encoding/base64"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

func TestTokens(t *testing.T) {
	f := newFixture(t)
	f.setTime(time.Now())
	created := must(f.access.CreateToken(t.Context(), &dkimv1.CreateTokenRequest{Token: &dkimv1.Token{
		Role: dkimv1.Role_ROLE_BRAND, Brand: "brands/acme", Subject: "shop", Description: "the shop's system",
	}}))(t)
	if !strings.HasPrefix(created.GetSecret(), "dkz_") || !strings.Contains(created.GetSecret(), strings.TrimPrefix(created.GetName(), "tokens/")) {
		t.Errorf("token %q of %s", created.GetSecret(), created.GetName())
	}
	wantEqual(t, "life", created.GetExpireTime().AsTime().Sub(created.GetCreateTime().AsTime()), 90*24*time.Hour)
	wantEqual(t, "creator", created.GetCreator(), "admin/alice")

	must(f.access.CreateToken(t.Context(), &dkimv1.CreateTokenRequest{Token: &dkimv1.Token{
		Role: dkimv1.Role_ROLE_ADMIN, ExportKeys: true, Ttl: durationpb.New(time.Hour),
	}}))(t)
	listed := must(f.access.ListTokens(t.Context(), &dkimv1.ListTokensRequest{}))(t)
	wantEqual(t, "number of tokens", len(listed.GetTokens()), 2)
	first := must(f.access.ListTokens(t.Context(), &dkimv1.ListTokensRequest{PageSize: 1}))(t)
	second := must(f.access.ListTokens(t.Context(), &dkimv1.ListTokensRequest{PageSize: 1, PageToken: first.GetNextPageToken()}))(t)
	wantEqual(t, "pages", slices.Concat(first.GetTokens(), second.GetTokens()), listed.GetTokens())
	wantEqual(t, "token after the last", second.GetNextPageToken(), "")
	for _, m := range listed.GetTokens() {
		if m.GetSecret() != "" {
			t.Error("a list shows a token")
		}
	}

	// It is good for what it says, until it is revoked.
	anonymous := dkimv1.NewKeyManagementClient(f.anonymous(t))
	ctx := bearer(t, created.GetSecret())
	d := must(anonymous.ProvisionDomain(ctx, &dkimv1.ProvisionDomainRequest{Name: spamtrap, Algorithm: ed25519}))(t)
	events := must(f.api.ListDomainEvents(t.Context(), &dkimv1.ListDomainEventsRequest{Parent: d.GetName()}))(t)
	wantEqual(t, "actor", events.GetEvents()[0].GetActor(), "brand/acme/shop")
	f.refused(t, rejection{codes.PermissionDenied, "PERMISSION_DENIED", ""}, func() error {
		_, err := anonymous.GetDomain(ctx, &dkimv1.GetDomainRequest{Name: "brands/other/domains/spamtrap.dk"})
		return err
	})
	must(f.access.RevokeToken(t.Context(), &dkimv1.RevokeTokenRequest{Name: created.GetName()}))(t)
	f.refused(t, rejection{codes.Unauthenticated, "UNAUTHENTICATED", ""}, func() error {
		_, err := anonymous.GetDomain(ctx, &dkimv1.GetDomainRequest{Name: d.GetName()})
		return err
	})
	f.refused(t, rejection{codes.NotFound, "TOKEN_NOT_FOUND", ""}, func() error {
		_, err := f.access.RevokeToken(t.Context(), &dkimv1.RevokeTokenRequest{Name: created.GetName()})
		return err
	})
	f.checkPrivate(t)
	for key, value := range f.fake.Dump() {
		if strings.Contains(key+value, created.GetSecret()[17:]) {
			t.Errorf("%s holds a token in the clear", key)
		}
	}
	if strings.Contains(f.log.String(), created.GetSecret()[17:]) {
		t.Error("the log holds a token")
	}
}

func TestTokenRefused(t *testing.T) {
	f := newFixture(t)
	admin, brand := dkimv1.Role_ROLE_ADMIN, dkimv1.Role_ROLE_BRAND
	for name, tt := range map[string]struct {
		token  *dkimv1.Token
		code   codes.Code
		reason string
		field  string
	}{
		"nothing":             {nil, codes.InvalidArgument, "INVALID_TOKEN", "token.role"},
		"unknown role":        {&dkimv1.Token{Role: 77}, codes.InvalidArgument, "INVALID_TOKEN", "token.role"},
		"brand without one":   {&dkimv1.Token{Role: brand}, codes.InvalidArgument, "INVALID_TOKEN", "token"},
		"admin of a brand":    {&dkimv1.Token{Role: admin, Brand: "brands/acme"}, codes.InvalidArgument, "INVALID_TOKEN", "token"},
		"brand that exports":  {&dkimv1.Token{Role: brand, Brand: "brands/acme", ExportKeys: true}, codes.InvalidArgument, "INVALID_TOKEN", "token"},
		"brand that is not":   {&dkimv1.Token{Role: brand, Brand: "brands/nobody"}, codes.NotFound, "BRAND_NOT_FOUND", ""},
		"all brands":          {&dkimv1.Token{Role: brand, Brand: "brands/-"}, codes.InvalidArgument, "INVALID_BRAND", "token.brand"},
		"brand without a way": {&dkimv1.Token{Role: brand, Brand: "acme"}, codes.InvalidArgument, "INVALID_NAME", "token.brand"},
		"subject":             {&dkimv1.Token{Role: admin, Subject: "A B"}, codes.InvalidArgument, "INVALID_TOKEN", "token.subject"},
		"description":         {&dkimv1.Token{Role: admin, Description: strings.Repeat("ä", 201)}, codes.InvalidArgument, "INVALID_TOKEN", "token.description"},
		"no time":             {&dkimv1.Token{Role: admin, Ttl: &durationpb.Duration{}}, codes.InvalidArgument, "INVALID_TOKEN", "token.ttl"},
		"past":                {&dkimv1.Token{Role: admin, Ttl: durationpb.New(-time.Hour)}, codes.InvalidArgument, "INVALID_TOKEN", "token.ttl"},
		"for ever":            {&dkimv1.Token{Role: admin, Ttl: durationpb.New(732 * 24 * time.Hour)}, codes.InvalidArgument, "INVALID_TOKEN", "token.ttl"},
	} {
		t.Run(name, func(t *testing.T) {
			f.refused(t, rejection{tt.code, tt.reason, tt.field}, func() error {
				_, err := f.access.CreateToken(t.Context(), &dkimv1.CreateTokenRequest{Token: tt.token})
				return err
			})
		})
	}
	for _, name := range []string{"tokens/", "tokens/a/b", "brands/acme", "tokens/../brands/acme", "tokens/A"} {
		f.refused(t, rejection{codes.InvalidArgument, "INVALID_NAME", "name"}, func() error {
			_, err := f.access.RevokeToken(t.Context(), &dkimv1.RevokeTokenRequest{Name: name})
			return err
		})
	}
}

func TestBrandSecrets(t *testing.T) {
	f := newFixture(t)
	f.setTime(time.Now())
	create := &dkimv1.CreateBrandSecretRequest{Parent: "brands/acme"}
	first := must(f.access.CreateBrandSecret(t.Context(), create))(t)
	second := must(f.access.CreateBrandSecret(t.Context(), &dkimv1.CreateBrandSecretRequest{
		Parent: "brands/acme", BrandSecret: &dkimv1.BrandSecret{Description: "next", Ttl: durationpb.New(time.Hour)},
	}))(t)
	f.refused(t, rejection{codes.FailedPrecondition, "TOO_MANY_SECRETS", ""}, func() error {
		_, err := f.access.CreateBrandSecret(t.Context(), create)
		return err
	})
	listed := must(f.access.ListBrandSecrets(t.Context(), &dkimv1.ListBrandSecretsRequest{Parent: "brands/acme"}))(t)
	wantEqual(t, "number of secrets", len(listed.GetBrandSecrets()), 2)
	for _, m := range listed.GetBrandSecrets() {
		if m.GetSecret() != "" {
			t.Error("a list shows a secret")
		}
	}
	anonymous := dkimv1.NewKeyManagementClient(f.anonymous(t))
	for _, s := range []*dkimv1.BrandSecret{first, second} {
		got := must(anonymous.GetBrand(basic(t, "acme", s.GetSecret()), &dkimv1.GetBrandRequest{Name: "brands/acme"}))(t)
		wantEqual(t, "brand", got.GetName(), "brands/acme")
	}
	must(f.access.RevokeBrandSecret(t.Context(), &dkimv1.RevokeBrandSecretRequest{Name: first.GetName()}))(t)
	f.refused(t, rejection{codes.Unauthenticated, "UNAUTHENTICATED", ""}, func() error {
		_, err := anonymous.GetBrand(basic(t, "acme", first.GetSecret()), &dkimv1.GetBrandRequest{Name: "brands/acme"})
		return err
	})
	f.refused(t, rejection{codes.NotFound, "SECRET_NOT_FOUND", ""}, func() error {
		_, err := f.access.RevokeBrandSecret(t.Context(), &dkimv1.RevokeBrandSecretRequest{Name: first.GetName()})
		return err
	})
	for name, tt := range map[string]struct {
		want rejection
		call func() error
	}{
		"no such brand": {rejection{codes.NotFound, "BRAND_NOT_FOUND", ""}, func() error {
			_, err := f.access.CreateBrandSecret(t.Context(), &dkimv1.CreateBrandSecretRequest{Parent: "brands/nobody"})
			return err
		}},
		"list of no such brand": {rejection{codes.NotFound, "BRAND_NOT_FOUND", ""}, func() error {
			_, err := f.access.ListBrandSecrets(t.Context(), &dkimv1.ListBrandSecretsRequest{Parent: "brands/nobody"})
			return err
		}},
		"bad brand": {rejection{codes.InvalidArgument, "INVALID_BRAND", "parent"}, func() error {
			_, err := f.access.CreateBrandSecret(t.Context(), &dkimv1.CreateBrandSecretRequest{Parent: "brands/-"})
			return err
		}},
		"bad time": {rejection{codes.InvalidArgument, "INVALID_SECRET", "brand_secret.ttl"}, func() error {
			_, err := f.access.CreateBrandSecret(t.Context(), &dkimv1.CreateBrandSecretRequest{
				Parent: "brands/other", BrandSecret: &dkimv1.BrandSecret{Ttl: durationpb.New(time.Second)},
			})
			return err
		}},
		"bad name": {rejection{codes.InvalidArgument, "INVALID_NAME", "name"}, func() error {
			_, err := f.access.RevokeBrandSecret(t.Context(), &dkimv1.RevokeBrandSecretRequest{Name: "brands/acme/secrets/../../x"})
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) { f.refused(t, tt.want, tt.call) })
	}
}

// What a brand may see of others is nothing.
func TestBrandsAreHidden(t *testing.T) {
	f := newFixture(t)
	theirs := f.provision(t, "brands/other/domains/theirs.example")
	f.provision(t, acme+"mine.example")
	shop := dkimv1.NewKeyManagementClient(f.as(t, "brand", "shop", "acme"))
	brands := must(shop.ListBrands(t.Context(), &dkimv1.ListBrandsRequest{}))(t)
	wantEqual(t, "brands", names(brands.GetBrands()), []string{"acme"})
	wantEqual(t, "next page", brands.GetNextPageToken(), "")
	domains := must(shop.ListDomains(t.Context(), &dkimv1.ListDomainsRequest{Parent: "brands/acme"}))(t)
	wantEqual(t, "domains", names(domains.GetDomains()), []string{"mine.example"})

	// What is there and what is not are refused alike.
	messages := make(map[string]bool)
	for _, name := range []string{theirs.GetName(), "brands/other/domains/nothing.example", "brands/nobody/domains/nothing.example", "brands/-/domains/theirs.example"} {
		for _, call := range []func() error{
			func() error { _, err := shop.GetDomain(t.Context(), &dkimv1.GetDomainRequest{Name: name}); return err },
			func() error {
				_, err := shop.DeleteDomain(t.Context(), &dkimv1.DeleteDomainRequest{Name: name})
				return err
			},
			func() error {
				_, err := shop.RotateDomain(t.Context(), &dkimv1.RotateDomainRequest{Name: name})
				return err
			},
			func() error {
				_, err := shop.ListKeys(t.Context(), &dkimv1.ListKeysRequest{Parent: name})
				return err
			},
		} {
			messages[strings.ReplaceAll(f.refused(t, rejection{codes.PermissionDenied, "PERMISSION_DENIED", ""}, call), "parent", "name")] = true
		}
	}
	wantEqual(t, "number of different refusals", len(messages), 1)
	f.refused(t, rejection{codes.PermissionDenied, "PERMISSION_DENIED", ""}, func() error {
		stream, err := shop.WatchDomains(t.Context(), &dkimv1.WatchDomainsRequest{Parent: "brands/-"})
		if err == nil {
			_, err = stream.Recv()
		}
		return err
	})

	// A signer of the brand finds no domain of another, as if there were none.
	mx := dkimv1.NewSignerClient(f.as(t, "signer", "mx1", "acme"))
	resolve := func(name string) string {
		return f.refused(t, rejection{codes.NotFound, "DOMAIN_NOT_FOUND", ""}, func() error {
			_, err := mx.ResolveSigningKeys(t.Context(), &dkimv1.ResolveSigningKeysRequest{Name: name})
			return err
		})
	}
	there, not := resolve("brands/-/domains/theirs.example"), resolve("brands/-/domains/nobody.example")
	wantEqual(t, "refusal", strings.ReplaceAll(there, "theirs", "nobody"), not)
	f.refused(t, rejection{codes.PermissionDenied, "PERMISSION_DENIED", ""}, func() error {
		_, err := mx.ResolveSigningKeys(t.Context(), &dkimv1.ResolveSigningKeysRequest{Name: theirs.GetName()})
		return err
	})
	must(mx.ResolveSigningKeys(t.Context(), &dkimv1.ResolveSigningKeysRequest{Name: "brands/-/domains/mine.example"}))(t)

	// It does not take the place of the provider's own, that somehow has its id.
	own := dkimv1.NewSignerClient(f.as(t, "signer", "acme"))
	must(own.RegisterSigner(t.Context(), &dkimv1.RegisterSignerRequest{Signer: &dkimv1.SignerRegistration{Name: "signers/acme.mx1"}}))(t)
	for _, call := range []func() error{
		func() error { _, err := mx.RegisterSigner(t.Context(), &dkimv1.RegisterSignerRequest{}); return err },
		func() error { _, err := mx.ReportUse(t.Context(), &dkimv1.ReportUseRequest{}); return err },
	} {
		f.refused(t, rejection{codes.PermissionDenied, "PERMISSION_DENIED", ""}, call)
	}
	must(f.api.DeleteSigner(t.Context(), &dkimv1.DeleteSignerRequest{Name: "signers/acme.mx1"}))(t)

	// It registers for its brand, under a name that is not another brand's.
	registered := must(mx.RegisterSigner(t.Context(), &dkimv1.RegisterSignerRequest{}))(t)
	wantEqual(t, "name", registered.GetName(), "signers/acme.mx1")
	wantEqual(t, "brand", registered.GetBrand(), "brands/acme")
	for _, req := range []*dkimv1.RegisterSignerRequest{
		{Signer: &dkimv1.SignerRegistration{Brand: "brands/other"}},
		{Signer: &dkimv1.SignerRegistration{Name: "signers/other.mx1"}},
		{Signer: &dkimv1.SignerRegistration{Name: "signers/mx1"}},
	} {
		f.refused(t, rejection{codes.PermissionDenied, "PERMISSION_DENIED", ""}, func() error { _, err := mx.RegisterSigner(t.Context(), req); return err })
	}
	f.refused(t, rejection{codes.PermissionDenied, "PERMISSION_DENIED", ""}, func() error {
		_, err := mx.ReportUse(t.Context(), &dkimv1.ReportUseRequest{Domains: []*dkimv1.DomainUse{{Domain: acme + "mine.example"}, {Domain: theirs.GetName()}}})
		return err
	})
}

func bearer(t *testing.T, token string) context.Context {
	t.Helper()
	return metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token)
}

func basic(t *testing.T, brand, secret string) context.Context {
	t.Helper()
	return metadata.AppendToOutgoingContext(t.Context(), "authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(brand+":"+secret)))
}
