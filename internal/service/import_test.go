package service_test

import (
	"context"
	"encoding/base64"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/admission"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/prober"
)

// privateText is a private key as people have it in files.
func privateText(t testing.TB, k *keypair.KeyPair) string {
	t.Helper()
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(k.PKCS8())(t)}))
}

func newPrivate(t testing.TB) string {
	t.Helper()
	return privateText(t, must(keypair.Generate(keypair.Ed25519))(t))
}

func TestImportKey(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	pair := must(rsaKey(keypair.RSA2048, 2))(t) // the domain gets the first ones
	f.keys.mu.Lock()
	f.keys.made = append(f.keys.made, pair) // for checkPrivate
	f.keys.mu.Unlock()
	req := &dkimv1.ImportKeyRequest{Parent: "brands/acme/domains/Spamtrap.dk", Selector: "Mail2019", PrivateKey: privateText(t, pair), TtlSeconds: 600, InUse: true}

	// Asked only: the answer is what would be, and nothing changes.
	dry := proto.CloneOf(req)
	dry.ValidateOnly = true
	var planned *dkimv1.Key
	if err := f.unchanged(t, func() (err error) { planned, err = f.api.ImportKey(ctx, dry); return err }); err != nil {
		t.Fatal(err)
	}
	if planned.GetName() != "" || planned.GetState() != active || planned.GetAlgorithm() != rsa2048 || planned.GetTtlSeconds() != 600 {
		t.Errorf("planned: %v", planned)
	}

	k := must(f.api.ImportKey(ctx, req))(t)
	at := timestamppb.New(start.Truncate(time.Microsecond))
	want := &dkimv1.Key{
		Name: k.GetName(), Selector: "mail2019", Algorithm: rsa2048, State: active, Custody: dkimv1.KeyCustody_KEY_CUSTODY_SERVICE,
		PublicKey: pair.Public().Octets, Fingerprint: planned.GetFingerprint(), OwnerName: "mail2019-spamtrap-dk._domainkey.keys.example.net",
		Record:     "v=DKIM1; k=rsa; p=" + base64.StdEncoding.EncodeToString(pair.Public().Octets),
		TtlSeconds: 600, PrepareTime: at, ActivateTime: at, Revision: k.GetRevision(), Imported: true,
	}
	wantEqual(t, "imported key", k, want)
	wantEqual(t, "key as read", must(f.api.GetKey(ctx, &dkimv1.GetKeyRequest{Name: k.GetName()}))(t), want)
	wantEqual(t, "private keys", len(f.under("/dkim/v1/priv/keys/acme/spamtrap.dk/")), 1)
	f.checkPrivate(t)

	// The same again, in another form: nothing is done.
	again := proto.CloneOf(req)
	again.PrivateKey = strings.ReplaceAll(strings.ReplaceAll(strings.ReplaceAll(req.GetPrivateKey(), "-----BEGIN PRIVATE KEY-----", ""), "-----END PRIVATE KEY-----", ""), "\n", "")
	if err := f.unchanged(t, func() error { _, err := f.api.ImportKey(ctx, again); return err }); err != nil {
		t.Error(err)
	}
	// It signs, and is what signers get.
	resolved := must(f.signer.ResolveSigningKeys(ctx, &dkimv1.ResolveSigningKeysRequest{Name: "brands/acme/domains/spamtrap.dk"}))(t)
	if keys := resolved.GetKeys(); len(keys) != 1 || keys[0].GetSelector() != "mail2019" || keys[0].GetDomain() != "spamtrap.dk" || keys[0].GetKey() != k.GetName() {
		t.Errorf("signers are told: %v", resolved)
	}
	// Selectors for the next keys go beside it, and one of them takes over.
	d := must(f.api.ProvisionDomain(ctx, &dkimv1.ProvisionDomainRequest{Name: "brands/acme/domains/spamtrap.dk", Selectors: []*dkimv1.SelectorSpec{
		{Selector: "selector1", Algorithm: rsa2048}, {Selector: "selector2", Algorithm: rsa2048},
	}}))(t)
	f.rotate(t, d.GetName())
	if got := must(f.api.GetKey(ctx, &dkimv1.GetKeyRequest{Name: k.GetName()}))(t); got.GetState() != retiring {
		t.Errorf("the imported key is %v after a rotation, want RETIRING", got.GetState())
	}
	history := must(f.api.ListDomainEvents(ctx, &dkimv1.ListDomainEventsRequest{Parent: d.GetName()}))(t).GetEvents()
	found := false
	for _, e := range history {
		found = found || e.GetAction() == "IMPORT" && e.GetKey() == k.GetName() && e.GetToState() == active && e.GetActor() == "admin/alice"
	}
	if !found {
		t.Errorf("the history does not tell of the import: %v", history)
	}
}

// TestImportPrepared imports keys that do not sign yet, beside one that does.
func TestImportPrepared(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	parent := "brands/acme/domains/spamtrap.dk"
	k := must(f.api.ImportKey(ctx, &dkimv1.ImportKeyRequest{Parent: parent, Selector: "a", PrivateKey: newPrivate(t)}))(t)
	if k.GetState() != prepared || k.GetActivateTime() != nil || k.GetTtlSeconds() != 3600 {
		t.Errorf("key is %v, want PREPARED", k)
	}
	must(f.api.ImportKey(ctx, &dkimv1.ImportKeyRequest{Parent: parent, Selector: "b", PrivateKey: newPrivate(t), InUse: true}))(t)
	f.refused(t, rejection{codes.FailedPrecondition, "KEY_ACTIVE", ""}, func() error {
		_, err := f.api.ImportKey(ctx, &dkimv1.ImportKeyRequest{Parent: parent, Selector: "c", PrivateKey: newPrivate(t), InUse: true})
		return err
	})
	f.rotate(t, parent)
	for _, s := range must(f.api.GetDomain(ctx, &dkimv1.GetDomainRequest{Name: parent}))(t).GetSelectors() {
		if want := map[string]dkimv1.KeyState{"a": active, "b": retiring}[s.GetSelector()]; s.GetKeyState() != want {
			t.Errorf("selector %s is %v after a rotation, want %v", s.GetSelector(), s.GetKeyState(), want)
		}
	}
	// Another algorithm is another group.
	must(f.api.ImportKey(ctx, &dkimv1.ImportKeyRequest{Parent: parent, Selector: "r", PrivateKey: privateText(t, must(rsaKey(keypair.RSA2048, 0))(t)), InUse: true}))(t)
}

// TestImportPublished gives the private half to a key whose public half was published before.
func TestImportPublished(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	pair := must(keypair.Generate(keypair.Ed25519))(t)
	parent := "brands/acme/domains/spamtrap.dk"
	published := must(f.api.PublishKey(ctx, &dkimv1.PublishKeyRequest{
		Parent: parent, Selector: "theirs", PublicKey: base64.StdEncoding.EncodeToString(pair.Public().Octets), TtlSeconds: 120,
	}))(t)
	k := must(f.api.ImportKey(ctx, &dkimv1.ImportKeyRequest{Parent: parent, Selector: "theirs", PrivateKey: privateText(t, pair)}))(t)
	want := proto.CloneOf(published)
	want.Custody, want.Imported, want.Revision = dkimv1.KeyCustody_KEY_CUSTODY_SERVICE, true, k.GetRevision()
	wantEqual(t, "key with its private half", k, want)
	wantEqual(t, "private keys", len(f.under("/dkim/v1/priv/keys/acme/spamtrap.dk/")), 1)
	wantEqual(t, "selectors", len(must(f.api.GetDomain(ctx, &dkimv1.GetDomainRequest{Name: parent}))(t).GetSelectors()), 1)
}

func TestImportRefused(t *testing.T) {
	f := newFixture(t)
	d := f.provision(t, spamtrap)
	f.publish(t, spamtrap, "theirs")
	ed := must(keypair.Generate(keypair.Ed25519))(t)
	must(f.api.ImportKey(t.Context(), &dkimv1.ImportKeyRequest{Parent: "brands/other/domains/secret.example", Selector: "s", PrivateKey: privateText(t, ed)}))(t)
	req := func(change func(*dkimv1.ImportKeyRequest)) func(context.Context, dkimv1.KeyManagementClient) error {
		r := &dkimv1.ImportKeyRequest{Parent: d.GetName(), Selector: "new", PrivateKey: newPrivate(t)}
		change(r)
		return calling(dkimv1.KeyManagementClient.ImportKey, r)
	}
	key := func(text string) func(context.Context, dkimv1.KeyManagementClient) error {
		return req(func(r *dkimv1.ImportKeyRequest) { r.PrivateKey = text })
	}
	f.refuse(t, []refusal{
		{"parent", badArgument("INVALID_NAME", "parent"), req(func(r *dkimv1.ImportKeyRequest) { r.Parent = "acme" })},
		{"domain", badArgument("INVALID_DOMAIN", "parent"), req(func(r *dkimv1.ImportKeyRequest) { r.Parent = acme + "com" })},
		{"domain of the zone", badArgument("INVALID_DOMAIN", "parent"), req(func(r *dkimv1.ImportKeyRequest) { r.Parent = acme + "a.keys.example.net" })},
		{"brand", rejection{codes.NotFound, "BRAND_NOT_FOUND", ""}, req(func(r *dkimv1.ImportKeyRequest) { r.Parent = nobody + "/domains/spamtrap.dk" })},
		{"selector", badArgument("INVALID_SELECTOR", "selector"), req(func(r *dkimv1.ImportKeyRequest) { r.Selector = "a_b" })},
		{"TTL", badArgument("INVALID_TTL", "ttl_seconds"), req(func(r *dkimv1.ImportKeyRequest) { r.TtlSeconds = 1 })},
		{"no key", badArgument("INVALID_PRIVATE_KEY", "private_key"), key("")},
		{"nonsense", badArgument("INVALID_PRIVATE_KEY", "private_key"), key("nonsense")},
		{"public key", badArgument("PUBLIC_KEY_GIVEN", "private_key"), key("v=DKIM1; k=ed25519; p=" + newPublic(t))},
		{"key of an RFC", badArgument("WELL_KNOWN_KEY", "private_key"), key("nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=")},
		{"managed selector", rejection{codes.FailedPrecondition, "SELECTOR_IN_USE", ""}, req(func(r *dkimv1.ImportKeyRequest) { r.Selector = "selector1" })},
		{"selector of another key", rejection{codes.FailedPrecondition, "SELECTOR_IN_USE", ""}, req(func(r *dkimv1.ImportKeyRequest) { r.Selector = "theirs" })},
		{"domain of another brand", rejection{codes.AlreadyExists, "DOMAIN_CLAIMED", ""}, req(func(r *dkimv1.ImportKeyRequest) { r.Parent = acme + "secret.example" })},
		{"key of another name", rejection{codes.AlreadyExists, "KEY_PUBLISHED", ""}, key(privateText(t, ed))},
		{"key of another name, asked only", rejection{codes.AlreadyExists, "KEY_PUBLISHED", ""}, req(func(r *dkimv1.ImportKeyRequest) { r.PrivateKey, r.ValidateOnly = privateText(t, ed), true })},
	})
	said := f.refused(t, rejection{codes.AlreadyExists, "KEY_PUBLISHED", ""}, func() error { return key(privateText(t, ed))(t.Context(), f.api) })
	if strings.Contains(said, "secret") || strings.Contains(said, "other/") {
		t.Errorf("the refusal tells who has the key: %s", said)
	}
}

// TestImportedBesideTXT takes a key over whose public half stands in a TXT record of the customer, which becomes a CNAME
// later: it signs all the time.
func TestImportedBesideTXT(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	parent, owner := "brands/acme/domains/spamtrap.dk", "mail._domainkey.spamtrap.dk"
	must(f.api.ImportKey(ctx, &dkimv1.ImportKeyRequest{Parent: parent, Selector: "mail", PrivateKey: newPrivate(t), InUse: true}))(t)
	signs := func(when string, want bool) {
		t.Helper()
		resolved := must(f.signer.ResolveSigningKeys(ctx, &dkimv1.ResolveSigningKeysRequest{Name: parent}))(t)
		if got := len(resolved.GetKeys()) == 1 && resolved.GetKeys()[0].GetSelector() == "mail"; got != want {
			t.Errorf("%s the key signs: %t, want %t: %v", when, got, want, resolved)
		}
	}
	look := func(c prober.Class) {
		f.dns.mu.Lock()
		f.dns.aliases = map[string]prober.AliasReport{owner: {Class: c, Finding: c.Finding(), Reason: string(c)}}
		f.dns.mu.Unlock()
		must(f.api.CheckDomain(ctx, &dkimv1.CheckDomainRequest{Name: parent}))(t)
	}
	signs("before any look", true)
	look(prober.FlattenedTXT)
	signs("beside the TXT record", true)
	f.setTime(start.Add(24 * time.Hour))
	look(prober.Unreachable)
	signs("when nobody answers", true)
	look(prober.OK)
	signs("as soon as there is a CNAME", true)
	look(prober.StaleTXT)
	signs("beside another key", false)
}

func TestImportAsksTheGate(t *testing.T) {
	f := newFixture(t)
	var asked []admission.Request
	f.gate.set(func(r admission.Request) error {
		asked = append(asked, r)
		return &admission.DeniedError{Brand: r.Brand, Domain: r.Domain, Reason: "no such mail domain"}
	})
	req := &dkimv1.ImportKeyRequest{Parent: spamtrap, Selector: "s", PrivateKey: newPrivate(t)}
	f.refused(t, rejection{codes.PermissionDenied, "ADMISSION_DENIED", ""}, func() error { _, err := f.api.ImportKey(t.Context(), req); return err })
	if len(asked) != 1 || asked[0].Operation != admission.Import || asked[0].Brand != "acme" || asked[0].Domain != "spamtrap.dk" {
		t.Errorf("asked %v", asked)
	}
}
