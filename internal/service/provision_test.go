package service_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/schema"
)

const (
	prepared = dkimv1.KeyState_KEY_STATE_PREPARED
	active   = dkimv1.KeyState_KEY_STATE_ACTIVE
	retiring = dkimv1.KeyState_KEY_STATE_RETIRING
	revoked  = dkimv1.KeyState_KEY_STATE_REVOKED
)

// plain is a domain without what cannot be foretold.
func plain(d *dkimv1.Domain) *dkimv1.Domain {
	d = proto.CloneOf(d)
	d.Revision, d.Etag, d.CreateTime, d.UpdateTime = 0, "", nil, nil
	for _, s := range d.GetSelectors() {
		s.Key = ""
	}
	return d
}

// bare is a domain without what DNS and the policy say of it.
func bare(d *dkimv1.Domain) *dkimv1.Domain {
	d = proto.CloneOf(d)
	d.EffectiveRotationPolicy, d.Conditions, d.NextRotationTime, d.NextCheckTime = nil, nil, nil, nil
	for _, s := range d.GetSelectors() {
		s.CnameCheck, s.RecordCheck = nil, nil
	}
	return d
}

func selector(name string, a dkimv1.KeyAlgorithm, s dkimv1.KeyState, owner, target string) *dkimv1.Selector {
	return &dkimv1.Selector{
		Selector: name, Algorithm: a, KeyState: s, Custody: dkimv1.KeyCustody_KEY_CUSTODY_SERVICE, CnameOwner: owner, CnameTarget: target, OwnerName: target,
	}
}

func TestProvisionDomain(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	d := must(f.api.ProvisionDomain(ctx, &dkimv1.ProvisionDomainRequest{Name: "brands/acme/domains/Spamtrap.DK"}))(t)
	wantEqual(t, "domain", plain(d), &dkimv1.Domain{
		Name: "brands/acme/domains/spamtrap.dk", UnicodeDomain: "spamtrap.dk", Zone: "zones/keys.example.net", HostLabel: "spamtrap-dk",
		Kind: dkimv1.DomainKind_DOMAIN_KIND_CUSTOMER,
		Selectors: []*dkimv1.Selector{
			selector("selector1", rsa2048, prepared, "selector1._domainkey.spamtrap.dk", "selector1-spamtrap-dk._domainkey.keys.example.net"),
			selector("selector2", rsa2048, prepared, "selector2._domainkey.spamtrap.dk", "selector2-spamtrap-dk._domainkey.keys.example.net"),
		},
	})
	at := timestamppb.New(start.Truncate(time.Microsecond))
	wantEqual(t, "create_time", d.GetCreateTime(), at)
	wantEqual(t, "update_time", d.GetUpdateTime(), at)
	if d.GetRevision() == 0 || d.GetEtag() == "" {
		t.Errorf("revision %d, etag %q", d.GetRevision(), d.GetEtag())
	}
	wantEqual(t, "domain as read", bare(must(f.api.GetDomain(ctx, &dkimv1.GetDomainRequest{Name: d.GetName()}))(t)), d)

	// The keys are those that were made, and what is served is what is said.
	for i, s := range d.GetSelectors() {
		k := must(f.api.GetKey(ctx, &dkimv1.GetKeyRequest{Name: s.GetKey()}))(t)
		public := f.keys.made[i].Public()
		if k.GetSelector() != s.GetSelector() { // made at the same time, in any order
			t.Fatalf("key %s is of selector %s", s.GetKey(), k.GetSelector())
		}
		if !bytes.Equal(k.GetPublicKey(), public.Octets) {
			public = f.keys.made[1-i].Public()
		}
		sum := public.Fingerprint()
		want := &dkimv1.Key{
			Name: s.GetKey(), Selector: s.GetSelector(), Algorithm: rsa2048, State: s.GetKeyState(), Custody: s.GetCustody(),
			PublicKey: public.Octets, Fingerprint: hex.EncodeToString(sum[:16]), OwnerName: s.GetCnameTarget(), TtlSeconds: 3600,
			Record: k.GetRecord(), PrepareTime: at, Revision: d.GetRevision(),
		}
		wantEqual(t, "key", k, want)
		if parsed, err := keypair.ParsePublicKey([]byte(k.GetRecord())); err != nil || !bytes.Equal(parsed.Octets, public.Octets) {
			t.Errorf("record %q does not hold the key: %v", k.GetRecord(), err)
		}
		relative := strings.TrimSuffix(s.GetCnameTarget(), ".keys.example.net")
		stored, err := schema.UnmarshalPublicRecord([]byte(f.fake.Dump()[schema.RecordKey("keys.example.net", relative)]))
		if err != nil || stored.Record().String() != k.GetRecord() || stored.TTL != 3600 {
			t.Errorf("stored record %+v, %v; want %q", stored, err, k.GetRecord())
		}
	}
	f.checkPrivate(t)

	// Again, in other words and later: nothing is done.
	f.setTime(start.Add(time.Hour))
	for name, req := range map[string]*dkimv1.ProvisionDomainRequest{
		"the same":            {Name: "brands/acme/domains/spamtrap.dk"},
		"the default spelled": {Name: "brands/acme/domains/spamtrap.dk", Algorithm: rsa2048, Selectors: []*dkimv1.SelectorSpec{{Selector: "selector1"}, {Selector: "SELECTOR2", Algorithm: rsa2048}}},
		"one of the two":      {Name: "brands/acme/domains/spamtrap.dk", Selectors: []*dkimv1.SelectorSpec{{Selector: "selector2"}}},
		"another TTL":         {Name: "brands/acme/domains/spamtrap.dk", TtlSeconds: 60, Testing: true},
	} {
		err := f.unchanged(t, func() error {
			again, err := f.api.ProvisionDomain(ctx, req)
			if err == nil {
				wantEqual(t, name, again, d)
			}
			return err
		})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	wantEqual(t, "keys made", len(f.keys.made), 2)
}

func TestProvisionDomainWithOptions(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	d := must(f.api.ProvisionDomain(ctx, &dkimv1.ProvisionDomainRequest{
		Name: "brands/acme/domains/bücher.example", Algorithm: ed25519, Testing: true, TtlSeconds: 60,
		Selectors: []*dkimv1.SelectorSpec{{Selector: "a"}, {Selector: "B.C-d"}, {Selector: "r1", Algorithm: rsa3072}, {Selector: "r2", Algorithm: rsa3072}},
	}))(t)
	wantEqual(t, "domain", plain(d), &dkimv1.Domain{
		Name: "brands/acme/domains/xn--bcher-kva.example", UnicodeDomain: "bücher.example", Zone: "zones/keys.example.net", HostLabel: "xn--bcher-kva-example",
		Kind: dkimv1.DomainKind_DOMAIN_KIND_CUSTOMER,
		Selectors: []*dkimv1.Selector{
			selector("a", ed25519, prepared, "a._domainkey.xn--bcher-kva.example", "a-xn--bcher-kva-example._domainkey.keys.example.net"),
			selector("b.c-d", ed25519, prepared, "b.c-d._domainkey.xn--bcher-kva.example", "b.c-d-xn--bcher-kva-example._domainkey.keys.example.net"),
			selector("r1", rsa3072, prepared, "r1._domainkey.xn--bcher-kva.example", "r1-xn--bcher-kva-example._domainkey.keys.example.net"),
			selector("r2", rsa3072, prepared, "r2._domainkey.xn--bcher-kva.example", "r2-xn--bcher-kva-example._domainkey.keys.example.net"),
		},
	})
	k := must(f.api.GetKey(ctx, &dkimv1.GetKeyRequest{Name: d.GetSelectors()[0].GetKey()}))(t)
	if !k.GetTesting() || k.GetTtlSeconds() != 60 || len(k.GetPublicKey()) != 32 || !strings.HasPrefix(k.GetRecord(), "v=DKIM1; k=ed25519; t=y; p=") {
		t.Errorf("key %v: want one of Ed25519, in test, of TTL 60", k)
	}

	// Two more of another algorithm; those that are there stay as they are.
	more := must(f.api.ProvisionDomain(ctx, &dkimv1.ProvisionDomainRequest{
		Name: d.GetName(), Algorithm: rsa4096, Selectors: []*dkimv1.SelectorSpec{{Selector: "x1"}, {Selector: "x2"}},
	}))(t)
	wantEqual(t, "selectors that were there", more.GetSelectors()[:4], d.GetSelectors())
	wantEqual(t, "selectors", len(more.GetSelectors()), 6)
	if s := more.GetSelectors()[4]; s.GetAlgorithm() != rsa4096 || s.GetKeyState() != prepared {
		t.Errorf("new selector %v, want a prepared one of RSA-4096", s)
	}
	if more.GetEtag() == d.GetEtag() || more.GetRevision() <= d.GetRevision() {
		t.Errorf("etag %q and revision %d after a change", more.GetEtag(), more.GetRevision())
	}
	f.checkPrivate(t)
}

func TestProvisionDomainLabels(t *testing.T) {
	f := newFixture(t)
	tests := []struct{ name, target string }{
		{"brands/acme/domains/a-b.com", "selector1-a-b-com._domainkey.keys.example.net"},
		{"brands/other/domains/a.b.com", "selector1-a-b-com-fcxgssuj._domainkey.keys.example.net"},
		{"brands/acme/domains/a-domain-of-sixty-characters-as-the-issue-has-it-123.example", "selector1-a-domain-of-sixty-characters-as-t3wtd67v._domainkey.keys.example.net"},
		{"brands/acme/domains/" + strings.Repeat("a.", 112) + "examples", "selector1-a-a-a-a-a-a-a-a-a-a-a-a-a-a-a-a-6nijaczi._domainkey.keys.example.net"},
	}
	seen := make(map[string]string)
	for _, tt := range tests {
		d := f.provision(t, tt.name)
		wantEqual(t, "target of "+tt.name, d.GetSelectors()[0].GetCnameTarget(), tt.target)
		for _, s := range d.GetSelectors() {
			if other, ok := seen[s.GetCnameTarget()]; ok {
				t.Errorf("%s and %s share %s", tt.name, other, s.GetCnameTarget())
			}
			seen[s.GetCnameTarget()] = tt.name
			label, _, _ := strings.Cut(s.GetCnameTarget(), ".")
			if len(label) > 63 {
				t.Errorf("label %s of %d octets", label, len(label))
			}
		}
	}
}

// Many clients ask for one domain at the same time: it is made once, and all are
// told the same.
func TestProvisionDomainConcurrently(t *testing.T) {
	f := newFixture(t)
	const clients = 16
	for round := range 5 {
		answers := make(chan *dkimv1.Domain, clients)
		for range clients {
			go func() {
				d, err := f.api.ProvisionDomain(t.Context(), &dkimv1.ProvisionDomainRequest{
					Name: fmt.Sprintf("brands/acme/domains/d%d.example", round), Algorithm: ed25519,
				})
				if err != nil {
					t.Error(err)
				}
				answers <- d
			}()
		}
		first := <-answers
		for range clients - 1 {
			wantEqual(t, "answer", <-answers, first)
		}
		records := f.under(schema.RecordPrefix("keys.example.net"))
		wantEqual(t, "records", len(records), 2*(round+1))
	}
	wantEqual(t, "private keys", len(f.under("/dkim/v1/priv/keys/")), 10)
	f.checkPrivate(t)
}

// Clients that want different things of one domain all get what they want.
func TestProvisionDomainConcurrentlyWithDifferentSelectors(t *testing.T) {
	f := newFixture(t)
	errs := make(chan error)
	for i := range 5 {
		go func() {
			_, err := f.api.ProvisionDomain(t.Context(), &dkimv1.ProvisionDomainRequest{
				Name: "brands/acme/domains/spamtrap.dk", Algorithm: ed25519,
				Selectors: []*dkimv1.SelectorSpec{{Selector: fmt.Sprintf("a%d", i)}, {Selector: fmt.Sprintf("b%d", i)}},
			})
			errs <- err
		}()
	}
	for range 5 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	d := must(f.api.GetDomain(t.Context(), &dkimv1.GetDomainRequest{Name: "brands/acme/domains/spamtrap.dk"}))(t)
	wantEqual(t, "number of selectors", len(d.GetSelectors()), 10)
}

func TestProvisionDomainWithoutKeys(t *testing.T) {
	f := newFixture(t)
	req := &dkimv1.ProvisionDomainRequest{Name: "brands/acme/domains/spamtrap.dk"}

	calls := f.keys.block()
	err := f.unchanged(t, func() error {
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-calls
			<-calls
			cancel()
		}()
		_, err := f.api.ProvisionDomain(ctx, req)
		return err
	})
	wantEqual(t, "code of a caller who left", status.Code(err), codes.Canceled)

	const enough = time.Second // to get as far as the key
	err = f.unchanged(t, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), enough)
		defer cancel()
		_, err := f.api.ProvisionDomain(ctx, req)
		return err
	})
	wantEqual(t, "code of a caller whose time is up", status.Code(err), codes.DeadlineExceeded)

	// What the caller hears of it when the service's own time is up first.
	method := "ProvisionDomain"
	f.method.Store(&method)
	f.refused(t, rejection{codes.DeadlineExceeded, "KEY_GENERATION_SLOW", ""}, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), enough)
		defer cancel()
		_, err := f.service.ProvisionDomain(ctx, req)
		return err
	})
	f.keys.blocked.Store(nil)
	must(f.api.ProvisionDomain(t.Context(), req))(t)
	wantEqual(t, "log", f.log.String(), "") // a caller who leaves is no failure
}

// A domain that became a public suffix after it was stored can still be read and
// deleted.
func TestDomainThatBecameAPublicSuffix(t *testing.T) {
	f := newFixture(t)
	d := must(f.store.Apply(t.Context(), keystore.Change{Domain: keystore.Domain{
		Brand: "acme", Name: "co.uk", Zone: "keys.example.net", CreateTime: start, UpdateTime: start,
	}}))(t)
	name := "brands/acme/domains/co.uk"
	got := must(f.api.GetDomain(t.Context(), &dkimv1.GetDomainRequest{Name: name}))(t)
	wantEqual(t, "host label", got.GetHostLabel(), string(d.HostLabel))
	must(f.api.DeleteDomain(t.Context(), &dkimv1.DeleteDomainRequest{Name: name}))(t)
}

func TestDeleteDomain(t *testing.T) {
	f := newFixture(t)
	before := f.under("/dkim/")
	d := f.provision(t, "brands/acme/domains/spamtrap.dk")
	f.setTime(start.Add(time.Hour))
	got := must(f.api.DeleteDomain(t.Context(), &dkimv1.DeleteDomainRequest{Name: d.GetName(), Etag: d.GetEtag()}))(t)
	want := proto.CloneOf(d)
	want.Etag, want.Revision, want.DeleteTime = "", must(f.store.Revision(t.Context()))(t), timestamppb.New(start.Add(time.Hour))
	wantEqual(t, "deleted domain", got, want)
	left := f.under("/dkim/")
	wantEqual(t, "number of keys left", len(left), len(before)+4) // the tombstone, the history, the brand's data key and which key wraps it
	wantEqual(t, "private keys left", f.under("/dkim/v1/priv/keys/"), nil)
	wantEqual(t, "records left", f.under("/dkim/v1/pub/"), []string{"keys.example.net/apex"})
	list := must(f.api.ListDomains(t.Context(), &dkimv1.ListDomainsRequest{Parent: "brands/-"}))(t)
	wantEqual(t, "domains left", len(list.GetDomains()), 0)

	// Back again, the CNAMEs are right and the keys are new.
	again := f.provision(t, d.GetName())
	for i, s := range again.GetSelectors() {
		wantEqual(t, "target", s.GetCnameTarget(), d.GetSelectors()[i].GetCnameTarget())
		if s.GetKey() == d.GetSelectors()[i].GetKey() {
			t.Errorf("key %s has come back", s.GetKey())
		}
	}
}
