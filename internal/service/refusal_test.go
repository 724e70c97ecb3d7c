package service_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/keypair"
)

// refusal is a call that must be refused.
type refusal struct {
	name string
	want rejection
	call func(context.Context, dkimv1.KeyManagementClient) error
}

// calling is a call of a method, as in dkimv1.KeyManagementClient.GetZone.
func calling[Req, Resp, Opt any](method func(dkimv1.KeyManagementClient, context.Context, Req, ...Opt) (Resp, error), req Req) func(context.Context, dkimv1.KeyManagementClient) error {
	return func(ctx context.Context, api dkimv1.KeyManagementClient) error {
		_, err := method(api, ctx, req)
		return err
	}
}

func badArgument(reason, field string) rejection {
	return rejection{codes.InvalidArgument, reason, field}
}

func (f *fixture) refuse(t *testing.T, all []refusal) {
	t.Helper()
	seen := make(map[string]bool)
	for _, r := range all {
		if seen[r.name] {
			t.Fatalf("two tests are named %s", r.name)
		}
		seen[r.name] = true
		t.Run(r.name, func(t *testing.T) {
			f.refused(t, r.want, func() error { return r.call(t.Context(), f.api) })
		})
	}
}

const (
	acme     = "brands/acme/domains/"
	spamtrap = acme + "spamtrap.dk" // is there, with the keys of selector1, selector2 and theirs
	nobody   = "brands/nobody"
)

var (
	provisionDomain = dkimv1.KeyManagementClient.ProvisionDomain
	publishKey      = dkimv1.KeyManagementClient.PublishKey
)

func specs(selectors ...string) []*dkimv1.SelectorSpec {
	var all []*dkimv1.SelectorSpec
	for _, s := range selectors {
		all = append(all, &dkimv1.SelectorSpec{Selector: s})
	}
	return all
}

func TestRefusedDomains(t *testing.T) {
	f := newFixture(t)
	f.provision(t, spamtrap)
	var all []refusal
	for name, domain := range map[string]string{
		"empty":                   "",
		"longer than 253":         strings.Repeat("a.", 124) + "example",
		"label longer than 63":    strings.Repeat("a", 64) + ".example",
		"too long for DKIM":       strings.Repeat("a.", 113) + "example",
		"underscore":              "a_b.example",
		"trailing dot":            "spamtrap.dk.",
		"IPv4 address":            "192.0.2.1",
		"IPv6 address":            "2001:db8::1",
		"IPv6 address, bracketed": "[2001:db8::1]",
		"wildcard":                "*.example.com",
		"public suffix":           "co.uk",
		"top-level domain":        "dk",
		"space":                   "spam trap.dk",
		"blank":                   " ",
		"NUL":                     "spamtrap\x00.dk",
		"percent":                 "spam%2Ftrap.dk",
		"empty label":             "spamtrap..dk",
		"leading dash":            "-spamtrap.dk",
		"bad IDNA":                "xn--a.example",
	} {
		all = append(all, refusal{name, badArgument("INVALID_DOMAIN", "name"), calling(provisionDomain, &dkimv1.ProvisionDomainRequest{Name: acme + domain})})
		if name == "too long for DKIM" {
			continue // with a shorter selector it is not
		}
		existing := badArgument("INVALID_DOMAIN", "name")
		if name == "public suffix" { // it may have become one after it was stored
			existing = rejection{codes.NotFound, "DOMAIN_NOT_FOUND", ""}
		}
		all = append(all,
			refusal{name + ", published", badArgument("INVALID_DOMAIN", "parent"), calling(publishKey, &dkimv1.PublishKeyRequest{Parent: acme + domain, Selector: "s", PublicKey: newPublic(t)})},
			refusal{name + ", read", existing, calling(dkimv1.KeyManagementClient.GetDomain, &dkimv1.GetDomainRequest{Name: acme + domain})},
			refusal{name + ", deleted", existing, calling(dkimv1.KeyManagementClient.DeleteDomain, &dkimv1.DeleteDomainRequest{Name: acme + domain})})
	}
	for name, resource := range map[string]string{
		"no name": "", "no domain": "brands/acme", "only a domain": "spamtrap.dk", "a key": spamtrap + "/keys/x",
		"other collections": "brand/acme/domain/spamtrap.dk", "slash first": "/" + spamtrap, "slash": acme + "spam/trap.dk",
	} {
		all = append(all,
			refusal{name, badArgument("INVALID_NAME", "name"), calling(provisionDomain, &dkimv1.ProvisionDomainRequest{Name: resource})},
			refusal{name + ", published", badArgument("INVALID_NAME", "parent"), calling(publishKey, &dkimv1.PublishKeyRequest{Parent: resource, Selector: "s", PublicKey: newPublic(t)})},
			refusal{name + ", rotated", badArgument("INVALID_NAME", "name"), calling(dkimv1.KeyManagementClient.RotateDomain, &dkimv1.RotateDomainRequest{Name: resource})})
	}
	for name, brand := range map[string]string{"upper case": "Acme", "underscore": "a_b", "dash first": "-a", "dash last": "a-", "digit first": "1a", "too long": strings.Repeat("a", 41), "all brands": "-"} {
		all = append(all, refusal{"brand: " + name, badArgument("INVALID_BRAND", "name"), calling(provisionDomain, &dkimv1.ProvisionDomainRequest{Name: "brands/" + brand + "/domains/spamtrap.dk"})})
	}
	unknown := rejection{codes.NotFound, "BRAND_NOT_FOUND", ""}
	claimed := rejection{codes.AlreadyExists, "DOMAIN_CLAIMED", ""}
	all = append(all,
		refusal{"unknown brand", unknown, calling(provisionDomain, &dkimv1.ProvisionDomainRequest{Name: nobody + "/domains/spamtrap.dk"})},
		refusal{"unknown brand, published", unknown, calling(publishKey, &dkimv1.PublishKeyRequest{Parent: nobody + "/domains/spamtrap.dk", Selector: "s", PublicKey: newPublic(t)})},
		refusal{"of another brand", claimed, calling(provisionDomain, &dkimv1.ProvisionDomainRequest{Name: "brands/other/domains/spamtrap.dk"})},
		refusal{"of another brand, published", claimed, calling(publishKey, &dkimv1.PublishKeyRequest{Parent: "brands/other/domains/spamtrap.dk", Selector: "s", PublicKey: newPublic(t)})})
	f.refuse(t, all)
	t.Run("of another brand, which is not named", func(t *testing.T) {
		said := f.refused(t, claimed, func() error {
			_, err := f.api.ProvisionDomain(t.Context(), &dkimv1.ProvisionDomainRequest{Name: "brands/other/domains/spamtrap.dk"})
			return err
		})
		if strings.Contains(said, "acme") {
			t.Errorf("the brand is named: %s", said)
		}
	})

	f.provision(t, acme+"gone.example")
	must(f.api.DeleteDomain(t.Context(), &dkimv1.DeleteDomainRequest{Name: acme + "gone.example"}))(t)
	f.provision(t, "brands/other/domains/a-b.com")
	// The hashed form of a.b.com, as a domain.
	f.provision(t, "brands/other/domains/a.b-com-fcxgssuj")
	f.refuse(t, []refusal{
		{"had by another brand", rejection{codes.FailedPrecondition, "DOMAIN_RESERVED", ""}, calling(provisionDomain, &dkimv1.ProvisionDomainRequest{Name: "brands/other/domains/gone.example"})},
		{"had by another brand, published", rejection{codes.FailedPrecondition, "DOMAIN_RESERVED", ""}, calling(publishKey, &dkimv1.PublishKeyRequest{Parent: "brands/other/domains/gone.example", Selector: "s", PublicKey: newPublic(t)})},
		{"no label left", rejection{codes.FailedPrecondition, "HOST_LABEL_TAKEN", ""}, calling(provisionDomain, &dkimv1.ProvisionDomainRequest{Name: acme + "a.b.com"})},
		{"no label left, published", rejection{codes.FailedPrecondition, "HOST_LABEL_TAKEN", ""}, calling(publishKey, &dkimv1.PublishKeyRequest{Parent: acme + "a.b.com", Selector: "s", PublicKey: newPublic(t)})},
	})
	wantEqual(t, "data keys, of those who have domains", len(f.under("/dkim/v1/priv/deks/")), 2)
}

func TestRefusedProvisioning(t *testing.T) {
	f := newFixture(t)
	f.provision(t, spamtrap)
	f.publish(t, spamtrap, "theirs")
	f.provision(t, acme+"x.y.com", "sel", "sel2")
	var all []refusal
	add := func(name string, want rejection, req *dkimv1.ProvisionDomainRequest) {
		if req.GetName() == "" {
			req.Name = acme + "new.example"
		}
		all = append(all, refusal{name, want, calling(provisionDomain, req)})
	}
	for _, ttl := range []int32{-1, 1, 59, 86401, 1 << 30} {
		add(fmt.Sprint("TTL ", ttl), badArgument("INVALID_TTL", "ttl_seconds"), &dkimv1.ProvisionDomainRequest{TtlSeconds: ttl})
	}
	for _, a := range []dkimv1.KeyAlgorithm{-1, 5, 99} {
		add(fmt.Sprint("algorithm ", a), badArgument("INVALID_ALGORITHM", "algorithm"), &dkimv1.ProvisionDomainRequest{Algorithm: a})
		add(fmt.Sprint("algorithm of a selector ", a), badArgument("INVALID_ALGORITHM", "selectors[1].algorithm"), &dkimv1.ProvisionDomainRequest{
			Selectors: []*dkimv1.SelectorSpec{{Selector: "a"}, {Selector: "b", Algorithm: a}},
		})
	}
	for name, sel := range map[string]string{
		"empty": "", "underscore": "a_b", "trailing dot": "a.", "blank": " ", "empty label": "a..b", "dash last": "a-", "Unicode": "ä",
		"label too long": strings.Repeat("a", 64), "too long": strings.Repeat("a.", 120) + "a", "too long for the domain": strings.Repeat("a.", 115) + "a",
		"five dashes": "a-b-c-d-e-f",
	} {
		add("selector: "+name, badArgument("INVALID_SELECTOR", "selectors[1].selector"), &dkimv1.ProvisionDomainRequest{Selectors: specs("good", sel)})
	}
	thirteen := specs("a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m")
	add("13 selectors", badArgument("INVALID_SELECTOR", "selectors"), &dkimv1.ProvisionDomainRequest{Selectors: thirteen})
	add("11 selectors more", badArgument("INVALID_SELECTOR", "selectors"), &dkimv1.ProvisionDomainRequest{Name: spamtrap, Selectors: thirteen[:11], Algorithm: ed25519})
	add("a selector twice", badArgument("INVALID_SELECTOR", "selectors[2].selector"), &dkimv1.ProvisionDomainRequest{Selectors: specs("a", "b", "A")})
	add("one selector", badArgument("INVALID_SELECTOR", "selectors"), &dkimv1.ProvisionDomainRequest{Selectors: specs("a")})
	add("one selector of an algorithm", badArgument("INVALID_SELECTOR", "selectors"), &dkimv1.ProvisionDomainRequest{
		Selectors: []*dkimv1.SelectorSpec{{Selector: "a"}, {Selector: "b"}, {Selector: "c", Algorithm: ed25519}},
	})
	add("one selector more, of another algorithm", badArgument("INVALID_SELECTOR", "selectors"), &dkimv1.ProvisionDomainRequest{
		Name: spamtrap, Algorithm: rsa2048, Selectors: specs("a"),
	})
	precondition := func(reason string) rejection { return rejection{codes.FailedPrecondition, reason, ""} }
	add("another algorithm", precondition("ALGORITHM_DIFFERS"), &dkimv1.ProvisionDomainRequest{Name: spamtrap, Algorithm: rsa2048})
	add("another algorithm for one", precondition("ALGORITHM_DIFFERS"), &dkimv1.ProvisionDomainRequest{
		Name: spamtrap, Selectors: []*dkimv1.SelectorSpec{{Selector: "selector2", Algorithm: rsa4096}},
	})
	add("selector of a published key", precondition("SELECTOR_IN_USE"), &dkimv1.ProvisionDomainRequest{Name: spamtrap, Selectors: specs("theirs", "new")})
	add("selector and label too long", precondition("SELECTOR_TOO_LONG"), &dkimv1.ProvisionDomainRequest{Selectors: specs("a", strings.Repeat("a", 63))})
	add("selector too long for the label", precondition("SELECTOR_TOO_LONG"), &dkimv1.ProvisionDomainRequest{Name: spamtrap, Algorithm: ed25519, Selectors: specs(strings.Repeat("a", 52))})
	add("selector that can be read as another domain's", precondition("SELECTOR_CONFLICT"), &dkimv1.ProvisionDomainRequest{Name: acme + "y.com", Selectors: specs("sel-x", "s")})
	f.refuse(t, all)
	wantEqual(t, "keys made", len(f.keys.made), 4) // none for what was refused
}

func TestTooManyKeys(t *testing.T) {
	f := newFixture(t)
	var err error
	refused := func(call func(selector string) error) {
		for i := 0; err == nil && i < 100; i++ {
			selector := fmt.Sprintf("a-b-c-d%d-e", i)
			if err = call(selector); err == nil {
				continue
			}
			f.refused(t, rejection{codes.FailedPrecondition, "TOO_MANY_KEYS", ""}, func() error { return call(selector) })
		}
		if err == nil {
			t.Fatal("there is no end of keys")
		}
		err = nil
	}
	refused(func(selector string) error {
		_, err := f.api.PublishKey(t.Context(), &dkimv1.PublishKeyRequest{Parent: spamtrap, Selector: selector, PublicKey: newPublic(t)})
		return err
	})
	made := len(f.keys.made)
	refused(func(selector string) error {
		_, err := f.api.ProvisionDomain(t.Context(), &dkimv1.ProvisionDomainRequest{Name: spamtrap, Algorithm: ed25519, Selectors: specs("m"+selector, "n"+selector)})
		return err
	})
	wantEqual(t, "keys made", len(f.keys.made), made)
	must(f.api.DeleteDomain(t.Context(), &dkimv1.DeleteDomainRequest{Name: spamtrap}))(t)
}

func TestRefusedKeys(t *testing.T) {
	f := newFixture(t)
	d := f.provision(t, spamtrap)
	theirs := f.publish(t, spamtrap, "theirs")
	f.provision(t, acme+"x.y.com", "sel", "sel2")
	fresh := newPublic(t)
	small := must(rsa.GenerateKey(rand.Reader, 1024))(t)
	smallPublic := must(x509.MarshalPKIXPublicKey(&small.PublicKey))(t)
	text := func(octets []byte) string { return base64.StdEncoding.EncodeToString(octets) }

	var all []refusal
	add := func(name string, want rejection, selector, public string) {
		all = append(all, refusal{name, want, calling(publishKey, &dkimv1.PublishKeyRequest{Parent: spamtrap, Selector: selector, PublicKey: public})})
	}
	bad := func(reason string) rejection { return badArgument(reason, "public_key") }
	add("nothing", bad("INVALID_PUBLIC_KEY"), "s", "")
	add("nonsense", bad("INVALID_PUBLIC_KEY"), "s", "nonsense!")
	add("a bad record", bad("INVALID_PUBLIC_KEY"), "s", "v=DKIM2; p="+fresh)
	add("a revoked record", bad("INVALID_PUBLIC_KEY"), "s", "v=DKIM1; p=")
	add("half a key", bad("INVALID_PUBLIC_KEY"), "s", text(smallPublic[:80]))
	add("RSA-1024", bad("KEY_SIZE_REFUSED"), "s", text(smallPublic))
	add("RSA-1024 in PEM", bad("KEY_SIZE_REFUSED"), "s", string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: smallPublic})))
	add("no selector", badArgument("INVALID_SELECTOR", "selector"), "", fresh)
	add("selector with an underscore", badArgument("INVALID_SELECTOR", "selector"), "a_b", fresh)
	add("selector of five dashes", badArgument("INVALID_SELECTOR", "selector"), "a-b-c-d-e-f", fresh)
	add("selector too long for the domain", badArgument("INVALID_SELECTOR", "selector"), strings.Repeat("a.", 115)+"a", fresh)
	precondition := func(reason string) rejection { return rejection{codes.FailedPrecondition, reason, ""} }
	add("managed selector", precondition("SELECTOR_IN_USE"), "selector1", fresh)
	add("selector of another key", precondition("SELECTOR_IN_USE"), "theirs", fresh)
	add("selector too long for the label", precondition("SELECTOR_TOO_LONG"), strings.Repeat("a", 52), fresh)
	add("key of another selector", rejection{codes.AlreadyExists, "KEY_PUBLISHED", ""}, "s", text(theirs.GetPublicKey()))
	add("key of the service", rejection{codes.AlreadyExists, "KEY_PUBLISHED", ""}, "s", text(f.keys.made[0].Public().Octets))
	all = append(all,
		refusal{"key of another brand", rejection{codes.AlreadyExists, "KEY_PUBLISHED", ""}, calling(publishKey, &dkimv1.PublishKeyRequest{
			Parent: "brands/other/domains/other.example", Selector: "s", PublicKey: text(theirs.GetPublicKey()),
		})},
		refusal{"selector that can be read as another domain's", precondition("SELECTOR_CONFLICT"), calling(publishKey, &dkimv1.PublishKeyRequest{
			Parent: acme + "y.com", Selector: "sel-x", PublicKey: fresh,
		})})
	for _, ttl := range []int32{-1, 59, 86401} {
		for _, sel := range []string{"s", "theirs"} {
			all = append(all, refusal{fmt.Sprintf("TTL %d of %s", ttl, sel), badArgument("INVALID_TTL", "ttl_seconds"), calling(publishKey, &dkimv1.PublishKeyRequest{
				Parent: spamtrap, Selector: sel, PublicKey: text(theirs.GetPublicKey()), TtlSeconds: ttl,
			})})
		}
	}

	getKey, deleteKey := dkimv1.KeyManagementClient.GetKey, dkimv1.KeyManagementClient.DeleteKey
	for name, key := range map[string]string{"no name": "", "a domain": spamtrap, "odd id": spamtrap + "/keys/A_B", "long id": spamtrap + "/keys/" + strings.Repeat("a", 41)} {
		all = append(all,
			refusal{"get: " + name, badArgument("INVALID_NAME", "name"), calling(getKey, &dkimv1.GetKeyRequest{Name: key})},
			refusal{"delete: " + name, badArgument("INVALID_NAME", "name"), calling(deleteKey, &dkimv1.DeleteKeyRequest{Name: key})})
	}
	unknown := rejection{codes.NotFound, "KEY_NOT_FOUND", ""}
	noDomain := rejection{codes.NotFound, "DOMAIN_NOT_FOUND", ""}
	all = append(all,
		refusal{"get: unknown", unknown, calling(getKey, &dkimv1.GetKeyRequest{Name: spamtrap + "/keys/x"})},
		refusal{"delete: unknown", unknown, calling(deleteKey, &dkimv1.DeleteKeyRequest{Name: spamtrap + "/keys/x"})},
		refusal{"get: of another domain", unknown, calling(getKey, &dkimv1.GetKeyRequest{Name: strings.Replace(theirs.GetName(), "spamtrap.dk", "x.y.com", 1)})},
		refusal{"get: no domain", noDomain, calling(getKey, &dkimv1.GetKeyRequest{Name: acme + "no.example/keys/x"})},
		refusal{"delete: no domain", noDomain, calling(deleteKey, &dkimv1.DeleteKeyRequest{Name: acme + "no.example/keys/x"})},
		refusal{"list: no domain", noDomain, calling(dkimv1.KeyManagementClient.ListKeys, &dkimv1.ListKeysRequest{Parent: acme + "no.example"})},
		refusal{"delete: the service's own", precondition("KEY_MANAGED"), calling(deleteKey, &dkimv1.DeleteKeyRequest{Name: d.GetSelectors()[0].GetKey()})},
		refusal{"delete: stale etag", rejection{codes.Aborted, "ETAG_MISMATCH", ""}, calling(deleteKey, &dkimv1.DeleteKeyRequest{Name: theirs.GetName(), Etag: d.GetEtag()})})
	f.refuse(t, all)
}

// A private key given by mistake is refused, and no piece of it comes back or
// stays.
func TestPrivateKeyGiven(t *testing.T) {
	f := newFixture(t)
	pair := must(keypair.Generate(keypair.Ed25519))(t)
	rsaPair := must(rsaKey(keypair.RSA2048, 3))(t)
	der, rsaDER := must(pair.PKCS8())(t), must(rsaPair.PKCS8())(t)
	encode := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	for name, given := range map[string]struct {
		text string
		der  []byte
	}{
		"PKCS #8, Ed25519":     {encode("PRIVATE KEY", der), der},
		"PKCS #8, RSA":         {encode("PRIVATE KEY", rsaDER), rsaDER},
		"PKCS #1":              {encode("RSA PRIVATE KEY", rsaDER), rsaDER},
		"encrypted":            {encode("ENCRYPTED PRIVATE KEY", rsaDER), rsaDER},
		"OpenSSH":              {encode("OPENSSH PRIVATE KEY", rsaDER), rsaDER},
		"bare base64":          {base64.StdEncoding.EncodeToString(rsaDER), rsaDER},
		"labelled as public":   {encode("PUBLIC KEY", rsaDER), rsaDER},
		"in a record":          {"v=DKIM1; k=rsa; p=" + base64.StdEncoding.EncodeToString(rsaDER), rsaDER},
		"after the public one": {encode("PUBLIC KEY", rsaPair.Public().Octets) + encode("PRIVATE KEY", rsaDER), rsaDER},
	} {
		t.Run(name, func(t *testing.T) {
			said := f.refused(t, badArgument("PRIVATE_KEY_GIVEN", "public_key"), func() error {
				_, err := f.api.PublishKey(t.Context(), &dkimv1.PublishKeyRequest{Parent: spamtrap, Selector: "s", PublicKey: given.text})
				return err
			})
			said += f.log.String()
			encoded := base64.StdEncoding.EncodeToString(given.der)
			for i := 0; i+12 <= len(encoded); i += 4 {
				if strings.Contains(said, encoded[i:i+12]) {
					t.Fatalf("%q of the key is in the error or the log: %s", encoded[i:i+12], said)
				}
			}
			for i := 0; i+8 <= len(given.der); i++ {
				if bytes.Contains([]byte(said), given.der[i:i+8]) {
					t.Fatalf("octets of the key are in the error or the log: %s", said)
				}
			}
		})
	}
}

func TestRefusedZonesAndBrands(t *testing.T) {
	f := newFixture(t)
	zone := must(f.api.GetZone(t.Context(), &dkimv1.GetZoneRequest{Name: "zones/keys.example.net"}))(t)
	d := f.provision(t, spamtrap)
	type api = dkimv1.KeyManagementClient
	var all []refusal
	add := func(name string, want rejection, call func(context.Context, dkimv1.KeyManagementClient) error) {
		all = append(all, refusal{name, want, call})
	}
	for name, id := range map[string]string{"empty": "", "single label": "example", "underscore": "a_b.example", "trailing dot": "a.example.", "too long": strings.Repeat("a.", 90) + "example", "address": "192.0.2.1"} {
		add("zone id: "+name, badArgument("INVALID_ZONE", "zone_id"), calling(api.CreateZone, &dkimv1.CreateZoneRequest{ZoneId: id, Zone: &dkimv1.Zone{NameServers: outside}}))
	}
	servers := func(hosts ...string) []*dkimv1.NameServer {
		var all []*dkimv1.NameServer
		for _, h := range hosts {
			host, addresses, _ := strings.Cut(h, " ")
			all = append(all, &dkimv1.NameServer{Host: host, Addresses: strings.Fields(addresses)})
		}
		return all
	}
	fourteen := servers("a.example", "b.example", "c.example", "d.example", "e.example", "f.example", "g.example", "h.example", "i.example", "j.example", "k.example", "l.example", "m.example", "n.example")
	for _, z := range []struct {
		name, field string
		zone        *dkimv1.Zone
	}{
		{"no zone", "name_servers", nil},
		{"no name servers", "name_servers", &dkimv1.Zone{}},
		{"14 name servers", "name_servers", &dkimv1.Zone{NameServers: fourteen}},
		{"name server with a bad name", "name_servers[1].host", &dkimv1.Zone{NameServers: servers("ns.example.org", "a_b.example")}},
		{"name server twice", "name_servers[1].host", &dkimv1.Zone{NameServers: servers("ns.example.org", "NS.example.org")}},
		{"name server without glue", "name_servers[0].addresses", &dkimv1.Zone{NameServers: servers("ns1.new.example")}},
		{"name server with foreign glue", "name_servers[0].addresses", &dkimv1.Zone{NameServers: servers("ns.example.org 192.0.2.1")}},
		{"name server beside the zone with glue", "name_servers[0].addresses", &dkimv1.Zone{NameServers: servers("ns.anew.example 192.0.2.1")}},
		{"zone as its own name server", "name_servers[0].host", &dkimv1.Zone{NameServers: servers("new.example 192.0.2.1")}},
		{"bad address", "name_servers[0].addresses[1]", &dkimv1.Zone{NameServers: servers("ns.new.example 192.0.2.1 192.0.2.256")}},
		{"unspecified address", "name_servers[0].addresses[0]", &dkimv1.Zone{NameServers: servers("ns.new.example ::")}},
		{"multicast address", "name_servers[0].addresses[0]", &dkimv1.Zone{NameServers: servers("ns.new.example 224.0.0.1")}},
		{"address of a link", "name_servers[0].addresses[0]", &dkimv1.Zone{NameServers: servers("ns.new.example fe80::1%eth0")}},
		{"9 addresses", "name_servers[0].addresses", &dkimv1.Zone{NameServers: servers("ns.new.example 192.0.2.1 192.0.2.2 192.0.2.3 192.0.2.4 192.0.2.5 192.0.2.6 192.0.2.7 192.0.2.8 192.0.2.9")}},
		{"mailbox that is no address", "mailbox", &dkimv1.Zone{NameServers: outside, Mailbox: "a@b@c"}},
		{"mailbox with a name", "mailbox", &dkimv1.Zone{NameServers: outside, Mailbox: "Alice <alice@example.org>"}},
		{"mailbox with a dot before the @", "mailbox", &dkimv1.Zone{NameServers: outside, Mailbox: "alice.b@example.org"}},
		{"mailbox that is no name", "mailbox", &dkimv1.Zone{NameServers: outside, Mailbox: "alice"}},
		{"record TTL below", "record_ttl_seconds", &dkimv1.Zone{NameServers: outside, RecordTtlSeconds: 59}},
		{"record TTL above", "record_ttl_seconds", &dkimv1.Zone{NameServers: outside, RecordTtlSeconds: 86401}},
		{"record TTL negative", "record_ttl_seconds", &dkimv1.Zone{NameServers: outside, RecordTtlSeconds: -3600}},
		{"negative TTL below", "negative_ttl_seconds", &dkimv1.Zone{NameServers: outside, NegativeTtlSeconds: 4}},
		{"negative TTL above", "negative_ttl_seconds", &dkimv1.Zone{NameServers: outside, NegativeTtlSeconds: 3601}},
		{"apex TTL below", "apex_ttl_seconds", &dkimv1.Zone{NameServers: outside, ApexTtlSeconds: 59}},
		{"apex TTL above", "apex_ttl_seconds", &dkimv1.Zone{NameServers: outside, ApexTtlSeconds: 604801}},
		{"refresh below", "refresh_seconds", &dkimv1.Zone{NameServers: outside, RefreshSeconds: 59}},
		{"retry above", "retry_seconds", &dkimv1.Zone{NameServers: outside, RetrySeconds: 604801}},
		{"expire below", "expire_seconds", &dkimv1.Zone{NameServers: outside, ExpireSeconds: 3599}},
	} {
		want := badArgument("INVALID_ZONE", "zone."+z.field)
		add(z.name, want, calling(api.CreateZone, &dkimv1.CreateZoneRequest{ZoneId: "new.example", Zone: z.zone}))
		if z.zone == nil || strings.Contains(z.name, "glue") || strings.Contains(z.name, "its own") || strings.Contains(z.name, "address") {
			continue // names of another zone
		}
		update := &dkimv1.UpdateZoneRequest{Zone: &dkimv1.Zone{}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"*"}}}
		update.Zone.Name, update.Zone.NameServers = zone.GetName(), z.zone.GetNameServers()
		update.Zone.Mailbox = z.zone.GetMailbox()
		update.Zone.RecordTtlSeconds, update.Zone.NegativeTtlSeconds, update.Zone.ApexTtlSeconds = z.zone.GetRecordTtlSeconds(), z.zone.GetNegativeTtlSeconds(), z.zone.GetApexTtlSeconds()
		update.Zone.RefreshSeconds, update.Zone.RetrySeconds, update.Zone.ExpireSeconds = z.zone.GetRefreshSeconds(), z.zone.GetRetrySeconds(), z.zone.GetExpireSeconds()
		add("update: "+z.name, want, calling(api.UpdateZone, update))
	}
	mask := func(paths ...string) *fieldmaskpb.FieldMask { return &fieldmaskpb.FieldMask{Paths: paths} }
	stale, noZone := rejection{codes.Aborted, "ETAG_MISMATCH", ""}, rejection{codes.NotFound, "ZONE_NOT_FOUND", ""}
	noBrand := rejection{codes.NotFound, "BRAND_NOT_FOUND", ""}
	zoneNamed := func(name string) *dkimv1.Zone { return &dkimv1.Zone{Name: name} }
	add("create a zone again", rejection{codes.AlreadyExists, "ZONE_EXISTS", ""}, calling(api.CreateZone, &dkimv1.CreateZoneRequest{ZoneId: "Keys.Example.Net", Zone: &dkimv1.Zone{NameServers: outside}}))
	add("get an unknown zone", noZone, calling(api.GetZone, &dkimv1.GetZoneRequest{Name: "zones/no.example"}))
	add("update an unknown zone", noZone, calling(api.UpdateZone, &dkimv1.UpdateZoneRequest{Zone: zoneNamed("zones/no.example")}))
	add("delete an unknown zone", noZone, calling(api.DeleteZone, &dkimv1.DeleteZoneRequest{Name: "zones/no.example"}))
	add("accept for an unknown zone", noZone, calling(api.AcceptZoneDeletions, &dkimv1.AcceptZoneDeletionsRequest{Name: "zones/no.example"}))
	add("get a zone without a name", badArgument("INVALID_NAME", "name"), calling(api.GetZone, &dkimv1.GetZoneRequest{}))
	add("get a bad zone", badArgument("INVALID_ZONE", "name"), calling(api.GetZone, &dkimv1.GetZoneRequest{Name: "zones/a_b.example"}))
	add("update no zone", badArgument("INVALID_NAME", "name"), calling(api.UpdateZone, &dkimv1.UpdateZoneRequest{}))
	add("update a zone by an unknown field", badArgument("INVALID_FIELD_MASK", "update_mask"), calling(api.UpdateZone, &dkimv1.UpdateZoneRequest{Zone: zoneNamed(zone.GetName()), UpdateMask: mask("record_ttl_seconds", "revision")}))
	add("update a zone with a stale etag", stale, calling(api.UpdateZone, &dkimv1.UpdateZoneRequest{Zone: &dkimv1.Zone{Name: zone.GetName(), Etag: "stale", RecordTtlSeconds: 60}}))
	add("delete a zone with a stale etag", stale, calling(api.DeleteZone, &dkimv1.DeleteZoneRequest{Name: zone.GetName(), Etag: "stale"}))
	add("delete a zone in use", rejection{codes.FailedPrecondition, "ZONE_IN_USE", ""}, calling(api.DeleteZone, &dkimv1.DeleteZoneRequest{Name: zone.GetName()}))

	for name, id := range map[string]string{"empty": "", "all": "-", "upper case": "New", "dot": "a.b", "too long": strings.Repeat("a", 41)} {
		add("brand id: "+name, badArgument("INVALID_BRAND", "brand_id"), calling(api.CreateBrand, &dkimv1.CreateBrandRequest{BrandId: id}))
	}
	long := strings.Repeat("ü", 201)
	add("long display name", badArgument("INVALID_BRAND", "brand.display_name"), calling(api.CreateBrand, &dkimv1.CreateBrandRequest{BrandId: "new", Brand: &dkimv1.Brand{DisplayName: long}}))
	add("update: long display name", badArgument("INVALID_BRAND", "brand.display_name"), calling(api.UpdateBrand, &dkimv1.UpdateBrandRequest{Brand: &dkimv1.Brand{Name: "brands/acme", DisplayName: long}}))
	add("brand in an unknown zone", rejection{codes.FailedPrecondition, "ZONE_NOT_FOUND", ""}, calling(api.CreateBrand, &dkimv1.CreateBrandRequest{BrandId: "new", Brand: &dkimv1.Brand{Zone: "zones/no.example"}}))
	add("brand in a bad zone", badArgument("INVALID_NAME", "brand.zone"), calling(api.CreateBrand, &dkimv1.CreateBrandRequest{BrandId: "new", Brand: &dkimv1.Brand{Zone: "keys.example.net"}}))
	add("create a brand again", rejection{codes.AlreadyExists, "BRAND_EXISTS", ""}, calling(api.CreateBrand, &dkimv1.CreateBrandRequest{BrandId: "acme"}))
	add("get an unknown brand", noBrand, calling(api.GetBrand, &dkimv1.GetBrandRequest{Name: nobody}))
	add("update an unknown brand", noBrand, calling(api.UpdateBrand, &dkimv1.UpdateBrandRequest{Brand: &dkimv1.Brand{Name: nobody}}))
	add("delete an unknown brand", noBrand, calling(api.DeleteBrand, &dkimv1.DeleteBrandRequest{Name: nobody}))
	add("get a bad brand", badArgument("INVALID_BRAND", "name"), calling(api.GetBrand, &dkimv1.GetBrandRequest{Name: "brands/-"}))
	add("update a brand by an unknown field", badArgument("INVALID_FIELD_MASK", "update_mask"), calling(api.UpdateBrand, &dkimv1.UpdateBrandRequest{Brand: &dkimv1.Brand{Name: "brands/acme"}, UpdateMask: mask("name")}))
	add("move a brand", badArgument("IMMUTABLE_FIELD", "brand.zone"), calling(api.UpdateBrand, &dkimv1.UpdateBrandRequest{Brand: &dkimv1.Brand{Name: "brands/acme", Zone: "zones/other.example"}}))
	add("update a brand with a stale etag", stale, calling(api.UpdateBrand, &dkimv1.UpdateBrandRequest{Brand: &dkimv1.Brand{Name: "brands/acme", Etag: "1"}}))
	add("delete a brand with a stale etag", stale, calling(api.DeleteBrand, &dkimv1.DeleteBrandRequest{Name: "brands/other", Etag: "1"}))
	add("delete a brand with domains", rejection{codes.FailedPrecondition, "BRAND_NOT_EMPTY", ""}, calling(api.DeleteBrand, &dkimv1.DeleteBrandRequest{Name: "brands/acme"}))

	noDomain := rejection{codes.NotFound, "DOMAIN_NOT_FOUND", ""}
	add("get an unknown domain", noDomain, calling(api.GetDomain, &dkimv1.GetDomainRequest{Name: acme + "no.example"}))
	add("get a domain of another brand", noDomain, calling(api.GetDomain, &dkimv1.GetDomainRequest{Name: "brands/other/domains/spamtrap.dk"}))
	add("delete an unknown domain", noDomain, calling(api.DeleteDomain, &dkimv1.DeleteDomainRequest{Name: acme + "no.example"}))
	add("rotate an unknown domain", noDomain, calling(api.RotateDomain, &dkimv1.RotateDomainRequest{Name: acme + "no.example"}))
	add("delete a domain with a stale etag", stale, calling(api.DeleteDomain, &dkimv1.DeleteDomainRequest{Name: spamtrap, Etag: d.GetEtag() + "1"}))
	add("rotate a domain with a stale etag", stale, calling(api.RotateDomain, &dkimv1.RotateDomainRequest{Name: spamtrap, Etag: d.GetEtag() + "1"}))
	f.refuse(t, all)

	f.publish(t, acme+"theirs.example", "s")
	must(f.api.CreateZone(t.Context(), &dkimv1.CreateZoneRequest{ZoneId: "second.example", Zone: &dkimv1.Zone{NameServers: outside}}))(t)
	f.refuse(t, []refusal{
		{"rotate a domain without keys of its own", rejection{codes.FailedPrecondition, "NO_STANDBY_KEY", ""}, calling(api.RotateDomain, &dkimv1.RotateDomainRequest{Name: acme + "theirs.example"})},
		{"brand in one of several zones", rejection{codes.FailedPrecondition, "ZONE_UNSPECIFIED", ""}, calling(api.CreateBrand, &dkimv1.CreateBrandRequest{BrandId: "new"})},
	})
}
