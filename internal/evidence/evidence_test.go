package evidence_test

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/evidence"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/prober"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// dns answers as it is told and keeps what it was asked.
type dns struct {
	alias  prober.Class
	served rotation.Finding

	mu    sync.Mutex
	asked []any
}

func (d *dns) Alias(_ context.Context, q prober.AliasQuestion) prober.AliasReport {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked = append(d.asked, q)
	return prober.AliasReport{Class: d.alias, Finding: d.alias.Finding(), Reason: string(d.alias)}
}

type servedQuestion struct {
	zone, owner, want string
	servers           []prober.NameServer
}

func (d *dns) Served(_ context.Context, zone string, servers []prober.NameServer, owner, want string) prober.ServedReport {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked = append(d.asked, servedQuestion{zone, owner, want, servers})
	return prober.ServedReport{Finding: d.served}
}

func subject() evidence.Subject {
	key := func(id string, sel dnsname.Selector, s rotation.State, c rotation.Custody) keystore.Key {
		return keystore.Key{Key: rotation.Key{ID: id, Selector: sel, Algorithm: keypair.Ed25519, State: s, Custody: c}}
	}
	return evidence.Subject{
		Domain: keystore.Domain{
			Brand: "acme", Name: "spamtrap.dk", Zone: "keys.example.net", HostLabel: "spamtrap-dk",
			Selectors: []keystore.Selector{{Selector: "s1", Algorithm: keypair.Ed25519}, {Selector: "s2", Algorithm: keypair.Ed25519}},
			Keys: []keystore.Key{
				key("one", "s1", rotation.Active, rotation.Service), key("two", "s2", rotation.Revoked, rotation.Service),
				key("other", "mailer", rotation.Active, rotation.PublicOnly),
			},
		},
		Zone: keystore.Zone{Name: "keys.example.net", Apex: schema.Apex{NameServers: []schema.NameServer{
			{Name: "ns1.keys.example.net", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}},
		}}},
		Records: map[dnsname.Selector]schema.PublicRecord{"s1": {KeyType: dkimrecord.Ed25519, PublicKey: make([]byte, 32)}, "s2": {KeyType: dkimrecord.Ed25519}},
	}
}

const record = "v=DKIM1; k=ed25519; p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="

func TestGather(t *testing.T) {
	shared := &keystore.Domain{
		Brand: "acme", Kind: rotation.BrandShared, Name: "shared.acme.keys.example.net", Zone: "keys.example.net", HostLabel: "acme",
		Selectors: []keystore.Selector{{Selector: "mail1", Algorithm: keypair.RSA2048}},
	}
	servedAsked := servedQuestion{
		"keys.example.net", "s1-spamtrap-dk._domainkey.keys.example.net", record,
		[]prober.NameServer{{Host: "ns1.keys.example.net", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}},
	}
	tests := []struct {
		name    string
		change  func(*evidence.Subject)
		asked   []any
		aliases []dnsname.Selector
	}{
		{"a customer's", func(*evidence.Subject) {}, []any{
			prober.AliasQuestion{Owner: "s1._domainkey.spamtrap.dk", Target: "s1-spamtrap-dk._domainkey.keys.example.net", Zone: "keys.example.net", Record: record},
			prober.AliasQuestion{Owner: "s2._domainkey.spamtrap.dk", Target: "s2-spamtrap-dk._domainkey.keys.example.net", Zone: "keys.example.net", Record: "v=DKIM1; k=ed25519; p="},
			servedAsked,
		}, []dnsname.Selector{"s1", "s2"}},
		{"a customer's of a brand with shared keys", func(s *evidence.Subject) { s.Shared = shared }, []any{
			prober.AliasQuestion{Owner: "mail1._domainkey.spamtrap.dk", Target: "mail1-acme._domainkey.keys.example.net", Zone: "keys.example.net"},
			servedAsked,
		}, []dnsname.Selector{"mail1"}},
		{"the brand's own", func(s *evidence.Subject) { s.Domain.Kind = rotation.BrandShared }, []any{servedAsked}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := subject()
			tt.change(&s)
			d := &dns{alias: prober.Missing, served: rotation.Proven}
			before := keystore.Status{
				Brand: "acme", Domain: "spamtrap.dk", Revision: 7,
				Served: map[string]rotation.Observation{"one": {Finding: rotation.Proven, Since: now.Add(-time.Hour)}, "gone": {Finding: rotation.Proven}},
			}
			after, report, err := evidence.Gather(t.Context(), d, s, before, now)
			if err != nil {
				t.Fatal(err)
			}
			unordered := cmpopts.SortSlices(func(a, b any) bool { return owner(a) < owner(b) })
			if diff := cmp.Diff(tt.asked, d.asked, unordered, cmp.AllowUnexported(servedQuestion{}), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("asked (-want +got):\n%s", diff)
			}
			want := before
			want.Aliases = make(map[dnsname.Selector]rotation.Observation)
			for _, sel := range tt.aliases {
				want.Aliases[sel] = rotation.Observation{}.Observe(rotation.Contradicted, "MISSING", now)
			}
			want.Served = map[string]rotation.Observation{"one": {Finding: rotation.Proven, Since: now.Add(-time.Hour), CheckTime: now}}
			if diff := cmp.Diff(want, after, cmpopts.IgnoreUnexported(keystore.Status{})); diff != "" {
				t.Errorf("status (-want +got):\n%s", diff)
			}
			if len(report.Aliases) != len(tt.aliases) || len(report.Served) != 1 || report.Served[0].KeyID != "one" {
				t.Errorf("report %+v", report)
			}
		})
	}
}

func owner(question any) string {
	switch q := question.(type) {
	case prober.AliasQuestion:
		return q.Owner
	case servedQuestion:
		return q.owner
	}
	return ""
}

// An end before the answers are there leaves the status alone: no answer is no
// finding.
func TestGatherEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	before := keystore.Status{Brand: "acme", Domain: "spamtrap.dk", Served: map[string]rotation.Observation{"one": {Finding: rotation.Proven}}}
	after, _, err := evidence.Gather(ctx, &dns{alias: prober.Unreachable}, subject(), before, now)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if diff := cmp.Diff(before, after, cmpopts.IgnoreUnexported(keystore.Status{})); diff != "" {
		t.Errorf("status has changed:\n%s", diff)
	}
}

func TestGatherWithoutRecord(t *testing.T) {
	s := subject()
	delete(s.Records, "s1")
	if _, _, err := evidence.Gather(t.Context(), &dns{}, s, keystore.Status{}, now); !errors.Is(err, schema.ErrCorrupt) {
		t.Errorf("error %v, want ErrCorrupt", err)
	}
}

func TestOf(t *testing.T) {
	signers := []keystore.Signer{{ID: "a", LeaseExpiry: now}, {ID: "b", LeaseExpiry: now.Add(time.Hour)}}
	reports := []keystore.Report{{Signer: "b", Time: now, Holds: map[string]time.Time{"one": now}}, {Signer: "unregistered", Time: now}}
	want := []rotation.SignerView{
		{ID: "a", LeaseExpiry: now},
		{ID: "b", LeaseExpiry: now.Add(time.Hour), ReportTime: now, Holds: map[string]time.Time{"one": now}},
	}
	if diff := cmp.Diff(want, evidence.Of(keystore.Status{}, signers, reports).Signers); diff != "" {
		t.Errorf("signers (-want +got):\n%s", diff)
	}
}
