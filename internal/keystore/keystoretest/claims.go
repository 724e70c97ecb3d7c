package keystoretest

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/internal/schema/schemapb"
)

// hashed is the second form of a domain's host label.
func hashed(d dnsname.Domain) dnsname.HostLabel {
	candidates := dnsname.HostLabelCandidates(d)
	return candidates[len(candidates)-1]
}

// refuses checks that a change is refused for a reason and changes nothing, and
// that the refusal could be known before.
func (e *env) refuses(t testing.TB, c keystore.Change, reason keystore.ClaimReason) {
	t.Helper()
	wantClaim(t, e.unchanged(t, func() error { _, err := e.Apply(t.Context(), c); return err }), reason)
	if reason != keystore.PublicKeyUsedElsewhere {
		wantClaim(t, e.admit(t, c), reason)
	}
}

// admit asks whether the keys of a change may be made.
func (e *env) admit(t testing.TB, c keystore.Change) error {
	t.Helper()
	var selectors []dnsname.Selector
	for _, p := range c.Publish {
		if p.New {
			selectors = append(selectors, p.Key.Selector)
		}
	}
	_, err := e.Admit(t.Context(), c.Domain, selectors, c.TakeOver)
	return err
}

// claimed returns the labels that are claimed, by state: "live" or "tombstone".
func (e *env) claimed(t testing.TB) map[string]string {
	t.Helper()
	state := make(map[string]string)
	for key, entry := range e.dump(t) {
		label, ok := strings.CutPrefix(key, schema.LabelPrefix(string(zoneName)))
		if !ok {
			continue
		}
		var claim schemapb.LabelClaim
		if err := proto.Unmarshal([]byte(entry.Value), &claim); err != nil {
			t.Fatal(err)
		}
		state[label] = "live"
		if claim.GetDeleteTimeMicros() != 0 {
			state[label] = "tombstone"
		}
	}
	return state
}

var claimTests = map[string]func(*testing.T, *env){
	"label: domains that look alike": func(t *testing.T, e *env) {
		e.setup(t, "acme", "other")
		first := e.provision(t, "acme", "a-b.com", "s1")
		second := e.provision(t, "other", "a.b.com", "s1")
		wantEqual(t, "label of the first", first.HostLabel, "a-b-com")
		wantEqual(t, "label of the second", second.HostLabel, hashed("a.b.com"))

		// Deleted and made again, in the other order, each has its own again.
		e.delete(t, first)
		e.delete(t, second)
		wantEqual(t, "label of the second, again", e.provision(t, "other", "a.b.com", "s1").HostLabel, second.HostLabel)
		wantEqual(t, "label of the first, again", e.provision(t, "acme", "a-b.com", "s1").HostLabel, first.HostLabel)
	},

	"label: tombstone": func(t *testing.T, e *env) {
		e.setup(t, "acme", "other")
		d := e.provision(t, "acme", "a-b.com", "s1")
		e.delete(t, d)
		wantEqual(t, "labels", e.claimed(t), map[string]string{"a-b-com": "tombstone"})
		e.refuses(t, newDomain("other", "a-b.com", "s1"), keystore.ReservedForBrand)
		wantEqual(t, "label of another domain", e.provision(t, "other", "a.b.com", "s1").HostLabel, hashed("a.b.com"))
		wantEqual(t, "label of the same domain", e.provision(t, "acme", "a-b.com", "s1").HostLabel, "a-b-com")
		wantEqual(t, "labels", e.claimed(t), map[string]string{"a-b-com": "live", string(hashed("a.b.com")): "live"})
		e.refuses(t, newDomain("other", "a-b.com", "s1"), keystore.ClaimedByOtherBrand)
	},

	"label: a domain made again keeps the label it had": func(t *testing.T, e *env) {
		e.setup(t, "acme", "other")
		const name = "a-domain-of-a-length-that-leaves-little-room.example"
		long := dnsname.Selector("a-selector-of-22-chars")
		d := e.provision(t, "acme", name, long)
		wantEqual(t, "label", d.HostLabel, hashed(name))
		e.delete(t, d)
		// The plain form would do for this selector; CNAMEs know the other.
		d = e.provision(t, "acme", name, "s")
		wantEqual(t, "label of the domain made again", d.HostLabel, hashed(name))
		e.delete(t, d)
		e.refuses(t, newDomain("other", name, "s"), keystore.ReservedForBrand)
	},

	"label: selectors that do not fit": func(t *testing.T, e *env) {
		e.setup(t, "acme", "far@"+strings.Repeat("a.", 80)+"example")
		long := dnsname.Selector(strings.Repeat("s", 23))
		d := e.provision(t, "acme", "spamtrap.dk", long)
		wantEqual(t, "label", d.HostLabel, "spamtrap-dk")
		e.refuses(t, addKeys(d, dnsname.Selector(strings.Repeat("s", 52))), keystore.SelectorDoesNotFit)
		e.refuses(t, newDomain("acme", "other.dk", dnsname.Selector(strings.Repeat("s", 63))), keystore.SelectorDoesNotFit)

		// Dots make a selector long without making a label long: the whole
		// name has its limit too.
		dotted := dnsname.Selector(strings.Repeat("s.", 40) + "s")
		c := newDomain("far", "far.dk", dotted)
		c.Domain.Zone = dnsname.Zone(strings.Repeat("a.", 80) + "example")
		e.refuses(t, c, keystore.SelectorDoesNotFit)
		c = newDomain("far", "far.dk", "s1")
		c.Domain.Zone = dnsname.Zone(strings.Repeat("a.", 80) + "example")
		e.refuses(t, addKeys(must(e.Apply(t.Context(), c))(t), dotted), keystore.SelectorDoesNotFit)
	},

	"label: all taken": func(t *testing.T, e *env) {
		e.setup(t, "acme", "other")
		e.provision(t, "other", "a-b.com", "s1")
		// Somebody holds the hashed form too: as a name of his own.
		e.provision(t, "other", dnsname.Domain(strings.Replace(string(hashed("a.b.com")), "-", ".", 1)), "s1")
		e.refuses(t, newDomain("acme", "a.b.com", "s1"), keystore.LabelsTaken)
	},

	"label: a domain is in one brand, whichever label it has": func(t *testing.T, e *env) {
		e.setup(t, "acme", "other", "third")
		e.provision(t, "acme", "a-b.com", "s1")
		e.refuses(t, newDomain("other", "a-b.com", "s1"), keystore.ClaimedByOtherBrand)
		d := e.provision(t, "other", "a.b.com", "s1") // hashed
		e.refuses(t, newDomain("acme", "a.b.com", "s1"), keystore.ClaimedByOtherBrand)
		e.refuses(t, newDomain("third", "a.b.com", "s1"), keystore.ClaimedByOtherBrand)
		e.delete(t, d)
		e.refuses(t, newDomain("acme", "a.b.com", "s1"), keystore.ReservedForBrand)
	},

	"label: a zone of its own is a world of its own": func(t *testing.T, e *env) {
		e.setup(t, "acme", "other@other.example")
		e.provision(t, "acme", "spamtrap.dk", "s1")
		c := newDomain("other", "spamtrap.dk", "s1")
		c.Domain.Zone = "other.example"
		wantEqual(t, "label", must(e.Apply(t.Context(), c))(t).HostLabel, "spamtrap-dk")
	},

	"shadow: a selector with a dash takes the label it can be read with": func(t *testing.T, e *env) {
		e.setup(t, "acme", "other")
		d := e.provision(t, "acme", "y.com", "sel-x", "sel") // sel-x-y-com
		wantEqual(t, "labels", e.claimed(t), map[string]string{"y-com": "live", "x-y-com": "live"})
		x := e.provision(t, "other", "x.y.com", "sel")
		wantEqual(t, "label of x.y.com", x.HostLabel, hashed("x.y.com"))

		// Withdrawn, the label stays reserved: a CNAME may still point there.
		d = must(e.Apply(t.Context(), withdraw(d, "sel-x")))(t)
		wantEqual(t, "claim of the withdrawn selector", e.claimed(t)["x-y-com"], "tombstone")
		wantEqual(t, "label of x-y.com", e.provision(t, "other", "x-y.com", "sel").HostLabel, hashed("x-y.com"))
		d = must(e.Apply(t.Context(), addKeys(d, "sel2-x", "sel3-x")))(t)
		wantEqual(t, "claim taken back", e.claimed(t)["x-y-com"], "live")
		d = must(e.Apply(t.Context(), withdraw(d, "sel2-x")))(t)
		wantEqual(t, "claim that another selector needs", e.claimed(t)["x-y-com"], "live")

		d = must(e.Apply(t.Context(), addKeys(d, "a-b-c")))(t)
		d = must(e.Apply(t.Context(), withdraw(d, "a-b-c")))(t)
		e.delete(t, d)
		got := e.claimed(t)
		for _, label := range []string{"y-com", "x-y-com", "b-c-y-com", "c-y-com"} {
			wantEqual(t, "claim of "+label+" after the domain was deleted", got[label], "tombstone")
		}
	},

	"shadow: a label that is taken refuses the selector": func(t *testing.T, e *env) {
		e.setup(t, "acme", "other")
		x := e.provision(t, "other", "x.y.com", "sel")
		wantEqual(t, "label of x.y.com", x.HostLabel, "x-y-com")
		e.refuses(t, newDomain("acme", "y.com", "sel-x"), keystore.SelectorTaken)
		d := e.provision(t, "acme", "y.com", "sel")
		e.refuses(t, addKeys(d, "sel-x"), keystore.SelectorTaken)
		e.refuses(t, addKeys(d, "other-x"), keystore.SelectorTaken)
		// Also while it is only reserved.
		e.delete(t, x)
		e.refuses(t, addKeys(d, "sel-x"), keystore.SelectorTaken)
		must(e.Apply(t.Context(), addKeys(d, "sel-z")))(t)
	},

	"fingerprint: one public key, one name": func(t *testing.T, e *env) {
		e.setup(t, "acme", "other")
		d := e.provision(t, "acme", "spamtrap.dk", "s1")
		// same is the change that publishes d's key once more.
		same := func(c keystore.Change) keystore.Change {
			c.Publish[0].Key.Fingerprint = d.Keys[0].Fingerprint
			c.Domain.Keys[len(c.Domain.Keys)-1].Fingerprint = d.Keys[0].Fingerprint
			return c
		}
		e.refuses(t, same(addKeys(d, "s2")), keystore.PublicKeyUsedElsewhere)
		e.refuses(t, same(newDomain("acme", "other.dk", "s1")), keystore.PublicKeyUsedElsewhere)
		e.refuses(t, same(newDomain("other", "other.dk", "s1")), keystore.PublicKeyUsedElsewhere)

		withdrawn := must(e.Apply(t.Context(), withdraw(d, "s1")))(t)
		again := must(e.Apply(t.Context(), same(addKeys(withdrawn, "s2"))))(t)
		e.delete(t, again)
		must(e.Apply(t.Context(), same(newDomain("other", "other.dk", "s1"))))(t)
		e.refuses(t, same(newDomain("acme", "spamtrap.dk", "s1")), keystore.PublicKeyUsedElsewhere)
	},

	"fingerprint: a revoked key keeps its own": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		d := e.provision(t, "acme", "spamtrap.dk", "s1")
		// Its record has no public key any more, which all revoked ones share.
		c := keystore.Change{Domain: d, Publish: []keystore.Publication{{
			Key: d.Keys[0], Record: schema.PublicRecord{KeyType: dkimrecord.Ed25519, TTL: 3600, UpdateTime: now},
		}}}
		d = must(e.Apply(t.Context(), c))(t)
		wantEqual(t, "revoked", must(e.Records(t.Context(), d))(t)["s1"].Revoked(), true)
		again := addKeys(d, "s2")
		again.Publish[0].Key.Fingerprint = d.Keys[0].Fingerprint
		e.refuses(t, again, keystore.PublicKeyUsedElsewhere)
	},
}
