package e2e_test

import (
	"encoding/base64"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

// attackMixed names what is another brand's beside what is one's own.
func attackMixed(t *testing.T, g *target, a *attacker) {
	t.Helper()
	key := func(parent string) *dkimv1.PublishKeyRequest {
		return &dkimv1.PublishKeyRequest{Parent: parent, Selector: "mixed", PublicKey: publicText(newEd25519(t))}
	}
	signer := g.attacker(t, "our signer")
	for _, tt := range []struct {
		name, method string
		by           *attacker
		req          proto.Message
	}{
		{"batch of two brands", "KeyManagement/BatchPublishKeys", a, &dkimv1.BatchPublishKeysRequest{
			Parent: "brands/acme", Requests: []*dkimv1.PublishKeyRequest{key(ourDomain), key(theirDomain)},
		}},
		{"batch of another brand", "KeyManagement/BatchPublishKeys", a, &dkimv1.BatchPublishKeysRequest{
			Parent: "brands/acme", Requests: []*dkimv1.PublishKeyRequest{key(theirDomain)},
		}},
		{"own keys in the batch of another brand", "KeyManagement/BatchPublishKeys", a, &dkimv1.BatchPublishKeysRequest{
			Parent: "brands/other", Requests: []*dkimv1.PublishKeyRequest{key(ourDomain)},
		}},
		{"use of keys of two brands", "Signer/ReportUse", signer, &dkimv1.ReportUseRequest{
			Domains: []*dkimv1.DomainUse{{Domain: ourDomain}, {Domain: theirDomain}},
		}},
		{"signer for another brand", "Signer/RegisterSigner", signer, &dkimv1.RegisterSignerRequest{
			Signer: &dkimv1.SignerRegistration{Name: "signers/acme.mx2", Brand: "brands/other"},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g.unchanged(t, func() {
				checkStatus(t, tt.by.call(t, "/dkim.v1."+tt.method, tt.req, &dkimv1.Brand{}), codes.PermissionDenied, "PERMISSION_DENIED")
			})
		})
	}
	t.Run("as another signer", func(t *testing.T) {
		g.unchanged(t, func() {
			for _, name := range []string{"signers/mx1", "signers/other.mx2", "signers/acme.mx2/../mx1"} {
				err := signer.call(t, "/dkim.v1.Signer/RegisterSigner", &dkimv1.RegisterSignerRequest{Signer: &dkimv1.SignerRegistration{Name: name}}, &dkimv1.SignerRegistration{})
				if err == nil {
					t.Errorf("registered as %s", name)
				}
				err = signer.call(t, "/dkim.v1.Signer/ReportUse", &dkimv1.ReportUseRequest{Signer: name, Domains: []*dkimv1.DomainUse{{Domain: ourDomain}}}, &dkimv1.ReportUseResponse{})
				if err == nil {
					t.Errorf("reported as %s", name)
				}
			}
		})
	})
	t.Run("page token of another list", func(t *testing.T) {
		for _, place := range []string{"other/theirs.example", "other/", "acme/", "other", "/", "acme/../other/a", "acme\x00", "\xff"} {
			token := base64.RawURLEncoding.EncodeToString([]byte("1\x00domains\x00acme\x00\x00" + place))
			list := &dkimv1.ListDomainsResponse{}
			err := a.call(t, "/dkim.v1.KeyManagement/ListDomains", &dkimv1.ListDomainsRequest{Parent: "brands/acme", PageToken: token}, list)
			if err != nil {
				checkStatus(t, err, codes.InvalidArgument, "INVALID_PAGE_TOKEN")
			}
			if strings.Contains(prototext.Format(list), "other") {
				t.Errorf("with %q it sees %v", place, list)
			}
		}
	})
	t.Run("filter", func(t *testing.T) {
		for _, filter := range []string{`domain = "theirs.example"`, `domain = "*"`, `domain != "ours.example"`} {
			list := &dkimv1.ListDomainsResponse{}
			_ = a.call(t, "/dkim.v1.KeyManagement/ListDomains", &dkimv1.ListDomainsRequest{Parent: "brands/acme", Filter: filter}, list)
			if strings.Contains(prototext.Format(list), "theirs") {
				t.Errorf("with %q it sees %v", filter, list)
			}
		}
	})
}

// attackNames calls methods with names that might be taken for others, as brand
// acme.
func attackNames(t *testing.T, g *target) {
	t.Helper()
	a := g.attacker(t, "token")
	for _, tt := range []struct {
		name   string
		code   codes.Code
		reason string
	}{
		// Not within the brand.
		{"brands/-/domains/theirs.example", codes.PermissionDenied, "PERMISSION_DENIED"},
		{"brands/acme2/domains/theirs.example", codes.PermissionDenied, "PERMISSION_DENIED"},
		{"brands/ACME/domains/ours.example", codes.PermissionDenied, "PERMISSION_DENIED"},
		{"brands/acme%2F..%2Fother/domains/theirs.example", codes.PermissionDenied, "PERMISSION_DENIED"},
		{"brands/../brands/other/domains/theirs.example", codes.PermissionDenied, "PERMISSION_DENIED"},
		{"brands/other/../acme/domains/ours.example", codes.PermissionDenied, "PERMISSION_DENIED"},
		{"brands//domains/theirs.example", codes.PermissionDenied, "PERMISSION_DENIED"},
		{"/brands/acme/domains/ours.example", codes.PermissionDenied, "PERMISSION_DENIED"},
		{" brands/acme/domains/ours.example", codes.PermissionDenied, "PERMISSION_DENIED"},
		{"brands/аcme/domains/ours.example", codes.PermissionDenied, "PERMISSION_DENIED"}, // Cyrillic a
		{"brands/acme\x00/domains/ours.example", codes.PermissionDenied, "PERMISSION_DENIED"},
		{"BRANDS/acme/domains/ours.example", codes.PermissionDenied, "PERMISSION_DENIED"},
		{"", codes.PermissionDenied, "PERMISSION_DENIED"},
		// Within it, and not a name that there is.
		{"brands/acme/../other/domains/theirs.example", codes.InvalidArgument, "INVALID_NAME"},
		{"brands/acme/domains/../../other/domains/theirs.example", codes.InvalidArgument, "INVALID_NAME"},
		{"brands/acme//domains/ours.example", codes.InvalidArgument, "INVALID_NAME"},
		{"brands/acme/domains/ours.example/", codes.InvalidArgument, "INVALID_NAME"},
		{"brands/acme/domains", codes.InvalidArgument, "INVALID_NAME"},
		{"brands/acme/domains/ours.example.", codes.InvalidArgument, "INVALID_DOMAIN"},
		{"brands/acme/domains/ours.example\x00", codes.InvalidArgument, "INVALID_DOMAIN"},
		{"brands/acme/domains/ours%2eexample", codes.InvalidArgument, "INVALID_DOMAIN"},
		{"brands/acme/domains/ours..example", codes.InvalidArgument, "INVALID_DOMAIN"},
		{"brands/acme/domains/*", codes.InvalidArgument, "INVALID_DOMAIN"},
		{"brands/acme/domains/-", codes.InvalidArgument, "INVALID_DOMAIN"},
		{"brands/acme/domains/ours\u3002\u3002example", codes.InvalidArgument, "INVALID_DOMAIN"},
		{"brands/acme/domains/theirs.example", codes.NotFound, "DOMAIN_NOT_FOUND"},
		{"brands/acme/domains/ｔｈｅｉｒｓ。example", codes.NotFound, "DOMAIN_NOT_FOUND"},        // the same in full width
		{"brands/acme/domains/thеirs.example", codes.NotFound, "DOMAIN_NOT_FOUND"},        // Cyrillic e
		{"brands/acme/domains/xn--thirs-2of.example", codes.NotFound, "DOMAIN_NOT_FOUND"}, // the same in A-labels
	} {
		t.Run(tt.name, func(t *testing.T) {
			g.unchanged(t, func() {
				for _, method := range []string{"GetDomain", "DeleteDomain", "RotateDomain", "CheckDomain"} {
					out := &dkimv1.Domain{}
					err := a.call(t, "/dkim.v1.KeyManagement/"+method, &dkimv1.GetDomainRequest{Name: tt.name}, out)
					checkStatus(t, err, tt.code, tt.reason)
				}
			})
		})
	}
	t.Run("key of another brand in one's own domain", func(t *testing.T) {
		g.unchanged(t, func() {
			name := ourDomain + "/keys/" + lastPart(g.names["brands/*/domains/*/keys/*"])
			for _, method := range []string{"GetKey", "DeleteKey", "RevokeKey"} {
				checkStatus(t, a.call(t, "/dkim.v1.KeyManagement/"+method, &dkimv1.GetKeyRequest{Name: name}, &dkimv1.Key{}), codes.NotFound, "KEY_NOT_FOUND")
			}
		})
	})
	// All that a brand learns of another: that it cannot have its domain.
	t.Run("taking the domain", func(t *testing.T) {
		g.unchanged(t, func() {
			for _, name := range []string{"theirs.example", "THEIRS.example", "ｔｈｅｉｒｓ.example"} {
				err := a.call(t, "/dkim.v1.KeyManagement/ProvisionDomain", &dkimv1.ProvisionDomainRequest{Name: "brands/acme/domains/" + name}, &dkimv1.Domain{})
				checkStatus(t, err, codes.AlreadyExists, "DOMAIN_CLAIMED")
				if strings.Contains(err.Error(), "brands/other") {
					t.Errorf("it is told whose it is: %v", err)
				}
			}
			got := a.do(t, "PUT", cloudapi+"acme/theirs.example", "")
			got.refused(t, http.StatusConflict, "DOMAIN_CLAIMED")
			if strings.Contains(got.body, "brands/other") {
				t.Errorf("it is told whose it is: %v", got)
			}
		})
	})
	t.Run("publishing its key", func(t *testing.T) {
		key, err := g.api.GetKey(deadline(t), &dkimv1.GetKeyRequest{Name: g.names["brands/*/domains/*/keys/*"]})
		if err != nil {
			t.Fatal(err)
		}
		g.unchanged(t, func() {
			req := &dkimv1.PublishKeyRequest{Parent: ourDomain, Selector: "copy", PublicKey: base64.StdEncoding.EncodeToString(key.GetPublicKey())}
			err := a.call(t, "/dkim.v1.KeyManagement/PublishKey", req, &dkimv1.Key{})
			checkStatus(t, err, codes.AlreadyExists, "KEY_PUBLISHED")
			if strings.Contains(err.Error(), "theirs") || strings.Contains(err.Error(), "brands/other") {
				t.Errorf("it is told whose it is: %v", err)
			}
		})
	})
}
