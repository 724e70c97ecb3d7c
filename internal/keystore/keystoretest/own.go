package keystoretest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// publicationName is a customer's domain, one for each number.
func publicationName(i int) dnsname.Domain {
	return dnsname.Domain(fmt.Sprintf("customer%d.example", i))
}

// refill is the change that puts a new key in the place of one.
func refill(d keystore.Domain, sel dnsname.Selector) keystore.Change {
	c := keystore.Change{Domain: d}
	p := publication(sel)
	old := *d.KeyIn(sel)
	p.Replaces = &old
	c.Publish = []keystore.Publication{p}
	c.Domain.Keys = slices.DeleteFunc(slices.Clone(d.Keys), func(k keystore.Key) bool { return k.ID == old.ID })
	c.Domain.Keys = append(c.Domain.Keys, p.Key)
	return c
}

// own makes a brand's own domain.
func (e *env) own(t testing.TB, brand string, kind rotation.Kind, selectors ...dnsname.Selector) keystore.Domain {
	t.Helper()
	name := dnsname.Domain(brand + "." + string(zoneName))
	if kind == rotation.BrandShared {
		name = "shared." + name
	}
	c := newDomain(brand, name, selectors...)
	c.Domain.Kind = kind
	if err := e.admit(t, c); err != nil {
		t.Errorf("Admit of %s: %v", name, err)
	}
	return must(e.Apply(context.Background(), c))(t)
}

// aPolicy sets everything.
var aPolicy = rotation.Override{
	Interval: new(30 * 24 * time.Hour), Drain: new(time.Hour), Gap: new(1500 * time.Millisecond), Lead: new(time.Duration(0)), CheckInterval: new(time.Minute),
	JitterPercent: new(0), Paused: new(false), MaxPerHour: new(1000), Freezes: []rotation.Freeze{{Start: now, End: now.Add(time.Hour)}},
}

var ownTests = map[string]func(*testing.T, *env){
	"own: names by kind": func(t *testing.T, e *env) {
		ctx := t.Context()
		e.setup(t, "acme", "b-c")
		before := e.dump(t)
		def := e.own(t, "acme", rotation.BrandDefault, "default1", "default2-x")
		shared := e.own(t, "acme", rotation.BrandShared, "mail1", "mail2")
		var records, labels []string
		for _, key := range added(before, e.dump(t)) {
			if _, relative, _, ok := schema.ParsePubKey(key); ok {
				records = append(records, relative)
			}
			if label, ok := strings.CutPrefix(key, schema.LabelPrefix(string(zoneName))); ok {
				labels = append(labels, label)
			}
		}
		wantEqual(t, "records", records, []string{"default1._domainkey.acme", "default2-x._domainkey.acme", "mail1-acme._domainkey", "mail2-acme._domainkey"}, sortStrings)
		wantEqual(t, "labels", labels, []string{"acme"})
		wantEqual(t, "owner name of a default key", must(def.OwnerName("default1"))(t), "default1._domainkey.acme.keys.example.net")
		wantEqual(t, "owner name of a shared key", must(shared.OwnerName("mail1"))(t), "mail1-acme._domainkey.keys.example.net")
		wantEqual(t, "default keys", len(must(e.Records(ctx, def))(t)), 2)
		wantEqual(t, "kind", must(e.Domain(ctx, "acme", def.Name))(t).Kind, rotation.BrandDefault)

		// A label that a customer's domain has is not the brand's.
		e.provision(t, "acme", "b.c", "s1")
		other := e.own(t, "b-c", rotation.BrandShared, "mail1")
		wantEqual(t, "label", other.HostLabel, "shared-b-c-keys-example-net")

		// They live on as others do.
		def = must(e.Apply(ctx, refill(def, "default1")))(t)
		def = must(e.Apply(ctx, withdraw(def, "default2-x")))(t)
		long := addKeys(def, dnsname.Selector(strings.Repeat("s.", 112)+"s"))
		e.refuses(t, long, keystore.SelectorDoesNotFit)
		e.delete(t, def)
		e.delete(t, shared)
		wantEqual(t, "labels", e.claimed(t), map[string]string{"acme": "tombstone", "b-c": "live", "shared-b-c-keys-example-net": "live"})
		wantEqual(t, "label again", e.own(t, "acme", rotation.BrandShared, "mail1").HostLabel, "acme")
		e.own(t, "acme", rotation.BrandDefault, "default1")
	},

	"own: they go with their brand": func(t *testing.T, e *env) {
		ctx := t.Context()
		e.setup(t, "acme", "acm", "acme-2")
		e.provision(t, "acm", "acm.dk", "s1")
		e.provision(t, "acme-2", "acme-2.dk", "s1")
		before := e.dump(t)
		def, shared := e.own(t, "acme", rotation.BrandDefault, "default1", "default2", "default3"), e.own(t, "acme", rotation.BrandShared, "mail1", "mail2")
		must(e.SaveStatus(ctx, aStatus(def, later(60)), nil))(t)
		must(e.PutReports(ctx, []keystore.Report{{Signer: "mta1", Brand: "acme", Domain: def.Name, Time: now}}))(t)
		b := must(e.Brand(ctx, "acme"))(t)
		wantErr(t, e.unchanged(t, func() error { return e.DeleteBrand(ctx, b) }), keystore.ErrBrandNotEmpty)
		wantErr(t, e.unchanged(t, func() error { return e.DeleteBrand(ctx, b, shared) }), keystore.ErrBrandNotEmpty)

		customers := e.provision(t, "acme", "spamtrap.dk", "s1")
		wantErr(t, e.unchanged(t, func() error { return e.DeleteBrand(ctx, b, def, shared) }), keystore.ErrBrandNotEmpty)
		e.delete(t, customers)
		// Between look and change, in front of, between and behind the others.
		for _, name := range []dnsname.Domain{"a.dk", "m.dk", "z.dk"} {
			s := e.before(2, func() { e.provision(t, "acme", name, "s1") })
			if err := s.DeleteBrand(ctx, b, def, shared); !errors.Is(err, keystore.ErrBrandNotEmpty) && !errors.Is(err, keystore.ErrConflict) {
				t.Errorf("with %s meanwhile: %v", name, err)
			}
			e.delete(t, must(e.Domain(ctx, "acme", name))(t))
		}
		stale := def
		def = must(e.Apply(ctx, refill(def, "default1")))(t)
		wantErr(t, e.unchanged(t, func() error { return e.DeleteBrand(ctx, b, stale, shared) }), keystore.ErrConflict)
		if err := e.DeleteBrand(ctx, b, shared, def); err != nil {
			t.Fatal(err)
		}
		for _, key := range added(before, e.dump(t)) {
			if !strings.HasPrefix(key, schema.LabelPrefix(string(zoneName))) {
				t.Errorf("%q is left", key)
			}
		}
		_, err := e.Brand(ctx, "acme")
		wantErr(t, err, keystore.ErrBrandNotFound)
		wantErr(t, e.DeleteBrand(ctx, b), keystore.ErrBrandNotFound)
	},

	"own: settings are kept": func(t *testing.T, e *env) {
		ctx := t.Context()
		e.setup(t, "acme")
		b := must(e.Brand(ctx, "acme"))(t)
		b.Mode, b.Policy, b.Disclosure = rotation.ModeBrandShared, aPolicy, keystore.Disclosure{Enabled: true, Lag: time.Hour}
		updated := must(e.UpdateBrand(ctx, b))(t)
		b.Revision = updated.Revision
		wantEqual(t, "brand", updated, b)
		wantEqual(t, "brand as read", must(e.Brand(ctx, "acme"))(t), b)

		z := must(e.Zone(ctx, zoneName))(t)
		etag := z.ETag()
		z.Policy = aPolicy
		z = must(e.UpdateZone(ctx, z))(t)
		wantEqual(t, "zone's policy", z.Policy, aPolicy)
		wantEqual(t, "zone as read", must(e.Zone(ctx, zoneName))(t), z, allowUnexported)
		if z.ETag() == etag {
			t.Error("the etag stands")
		}
		z.Policy = rotation.Override{}
		wantEqual(t, "etag without a policy", must(e.UpdateZone(ctx, z))(t).ETag(), etag)

		c := newDomain("acme", "spamtrap.dk", "s1")
		c.Domain.Policy, c.Domain.RotateRequested = aPolicy, now
		c.Domain.Keys[0].Compromised = true
		d := must(e.Apply(ctx, c))(t)
		want := c.Domain
		want.HostLabel, want.Revision = d.HostLabel, d.Revision
		wantEqual(t, "domain", d, want)
		wantEqual(t, "domain as read", must(e.Domain(ctx, "acme", "spamtrap.dk"))(t), want)
	},

	"refill: one key takes the place of another": func(t *testing.T, e *env) {
		ctx := t.Context()
		e.setup(t, "acme")
		d := e.provision(t, "acme", "spamtrap.dk", "s1", "s2")
		size := len(e.dump(t))
		old := *d.KeyIn("s1")
		c := refill(d, "s1")
		made := must(e.Apply(ctx, c))(t)
		wantEqual(t, "records", must(e.Records(ctx, made))(t)["s1"], c.Publish[0].Record)
		wantEqual(t, "number of keys", len(e.dump(t)), size)
		_, err := e.SealedKey(ctx, "acme", "spamtrap.dk", old.ID)
		wantErr(t, err, keystore.ErrKeyNotFound)
		wantEqual(t, "private half", must(e.SealedKey(ctx, "acme", "spamtrap.dk", c.Publish[0].Key.ID))(t), c.Publish[0].Sealed)

		// The old public key is free, the new one is claimed.
		same := addKeys(made, "s3")
		same.Publish[0].Key.Fingerprint = c.Publish[0].Key.Fingerprint
		e.refuses(t, same, keystore.PublicKeyUsedElsewhere)
		same.Publish[0].Key.Fingerprint = old.Fingerprint
		same.Domain.Keys[len(same.Domain.Keys)-1].Fingerprint = old.Fingerprint
		made = must(e.Apply(ctx, same))(t)

		// Not by a key that stands elsewhere, nor by itself, nor in another selector.
		c = refill(made, "s1")
		c.Publish[0].Key.Fingerprint = made.KeyIn("s2").Fingerprint
		e.refuses(t, c, keystore.PublicKeyUsedElsewhere)
		c.Publish[0].Key.Fingerprint = made.KeyIn("s1").Fingerprint
		e.refuses(t, c, keystore.PublicKeyUsedElsewhere)
		c = refill(made, "s1")
		c.Publish[0].Replaces = made.KeyIn("s2")
		if err := e.unchanged(t, func() error { _, err := e.Apply(ctx, c); return err }); err == nil {
			t.Error("a key took the place of one in another selector")
		}
		wantErr(t, e.unchanged(t, func() error { _, err := e.Apply(ctx, refill(d, "s2")); return err }), keystore.ErrConflict)
		for _, r := range e.ApplyBatch(ctx, []keystore.Change{refill(made, "s2")}) {
			if r.Err != nil {
				t.Error(r.Err)
			}
		}
	},

	"refill: a change of more than a transaction holds": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		var selectors []dnsname.Selector
		for i := range 50 {
			selectors = append(selectors, dnsname.Selector(fmt.Sprintf("s%d", i)))
		}
		wantErr(t, e.unchanged(t, func() error {
			_, err := e.Apply(t.Context(), newDomain("acme", "spamtrap.dk", selectors...))
			return err
		}), keystore.ErrTooManyKeys)
	},

	"takeover: the names of a domain that another brand gave up": func(t *testing.T, e *env) {
		ctx := t.Context()
		e.setup(t, "acme", "other", "third")
		const name = "a-domain-of-a-length-that-leaves-little-room.example"
		long := dnsname.Selector("a-selector-of-22-chars")
		// Two tombstones of acme: the hashed form, which the domain had last, and the plain one.
		e.put(t, schema.LabelKey(string(zoneName), strings.ReplaceAll(name, ".", "-")), "\x0a\x04acme\x12\x34"+name+"\x18\x01")
		d := e.provision(t, "acme", name, long)
		if brand, ok, err := e.OwnerOf(ctx, zoneName, name); brand != "acme" || !ok || err != nil {
			t.Errorf("owner %q, %t, %v", brand, ok, err)
		}
		take := newDomain("other", name, "s1")
		take.TakeOver = true
		e.refuses(t, take, keystore.ClaimedByOtherBrand)
		e.delete(t, d)
		if brand, ok, err := e.OwnerOf(ctx, zoneName, name); ok || err != nil {
			t.Errorf("owner %q, %t, %v of a deleted domain", brand, ok, err)
		}
		plain := take
		plain.TakeOver = false
		e.refuses(t, plain, keystore.ReservedForBrand)
		var claim *keystore.ClaimError
		_, err := e.Apply(ctx, plain)
		if !errors.As(err, &claim) || !claim.DeleteTime.Equal(now) {
			t.Errorf("refused with %+v, want the time of the deletion", claim)
		}
		if err := e.admit(t, take); err != nil {
			t.Errorf("Admit: %v", err)
		}
		got := must(e.Apply(ctx, take))(t)
		wantEqual(t, "label", got.HostLabel, d.HostLabel)
		if brand, ok, err := e.OwnerOf(ctx, zoneName, name); brand != "other" || !ok || err != nil {
			t.Errorf("owner %q, %t, %v", brand, ok, err)
		}
		// Now it is theirs as if it had never been another's.
		e.refuses(t, newDomain("acme", name, "s1"), keystore.ClaimedByOtherBrand)
		e.delete(t, got)
		e.refuses(t, newDomain("acme", name, "s1"), keystore.ReservedForBrand)
		e.refuses(t, newDomain("third", name, "s1"), keystore.ReservedForBrand)
		e.provision(t, "other", name, "s1")
		// In a batch too, where such a change goes by itself.
		e.delete(t, must(e.Domain(ctx, "other", name))(t))
		take = newDomain("third", name, "s1")
		take.TakeOver = true
		for _, r := range e.ApplyBatch(ctx, []keystore.Change{take, newDomain("third", "spamtrap.dk", "s1")}) {
			if r.Err != nil {
				t.Error(r.Err)
			}
		}
		if brand, ok, err := e.OwnerOf(ctx, "other.example", name); ok || err != nil {
			t.Errorf("owner %q, %t, %v in another zone", brand, ok, err)
		}
	},
}

var disclosureTests = map[string]func(*testing.T, *env){
	"disclosure: life": func(t *testing.T, e *env) {
		ctx := t.Context()
		e.setup(t, "acme", "other")
		d := e.provision(t, "acme", "spamtrap.dk", "s1", "s2", "s3")
		old := *d.KeyIn("s1")
		sealed := must(e.SealedKey(ctx, "acme", "spamtrap.dk", old.ID))(t)
		c := refill(d, "s1")
		c.Publish[0].Retain = true
		// It signed for an hour, until it was revoked.
		c.Publish[0].Replaces.ActivateTime, c.Publish[0].Replaces.RevokeTime = now.Add(-2*time.Hour), now.Add(-time.Hour)
		d = must(e.Apply(ctx, c))(t)
		wantErr(t, func() error { _, err := e.SealedKey(ctx, "acme", "spamtrap.dk", old.ID); return err }(), keystore.ErrKeyNotFound)
		want := keystore.Retained{
			Brand: "acme", Domain: "spamtrap.dk", KeyID: old.ID, Selector: "s1", Algorithm: keypair.Ed25519, Fingerprint: old.Fingerprint,
			ActivateTime: now.Add(-2 * time.Hour), EndTime: now.Add(-time.Hour), DestroyTime: now, Sealed: sealed, Revision: d.Revision,
		}
		retained, more, err := e.RetainedKeys(ctx, "acme", keystore.Retained{}, 10)
		if more || err != nil {
			t.Fatal(more, err)
		}
		wantEqual(t, "retained", retained, []keystore.Retained{want})
		r := retained[0]

		// The interlocks: the brand wants it, now as when it was read, and the lag.
		lag := 24 * time.Hour
		b := must(e.Brand(ctx, "acme"))(t)
		disclose := func(b keystore.Brand, at time.Time, fence *keystore.Fence) func() error {
			return func() error { return e.Disclose(ctx, b, r, []byte("pkcs8"), at, fence) }
		}
		wantErr(t, e.unchanged(t, disclose(b, now.Add(lag), nil)), keystore.ErrNotDisclosable)
		stale := b
		stale.Disclosure = keystore.Disclosure{Enabled: true, Lag: lag}
		b = must(e.UpdateBrand(ctx, stale))(t)
		wantErr(t, e.unchanged(t, disclose(stale, now.Add(lag), nil)), keystore.ErrConflict)
		wantErr(t, e.unchanged(t, disclose(b, now.Add(lag-1), nil)), keystore.ErrNotDisclosable)
		others := must(e.Brand(ctx, "other"))(t)
		others.Disclosure = b.Disclosure
		wantErr(t, e.unchanged(t, disclose(others, now.Add(lag), nil)), keystore.ErrNotDisclosable)
		wantErr(t, e.unchanged(t, disclose(b, now.Add(lag), &keystore.Fence{Key: "none", CreateRevision: 1})), keystore.ErrFenced)
		// Its public half stands nowhere.
		again := addKeys(d, "s4")
		again.Publish[0].Key.Fingerprint = old.Fingerprint
		again.Domain.Keys[len(again.Domain.Keys)-1].Fingerprint = old.Fingerprint
		published := must(e.Apply(ctx, again))(t)
		wantErr(t, e.unchanged(t, disclose(b, now.Add(lag), nil)), keystore.ErrNotDisclosable)
		d = must(e.Apply(ctx, withdraw(published, "s4")))(t)

		if err := disclose(b, now.Add(lag), e.lead(t))(); err != nil {
			t.Fatal(err)
		}
		wantEqual(t, "disclosed", must(e.Disclosed(ctx, "acme", "spamtrap.dk"))(t), []keystore.Disclosed{{
			KeyID: old.ID, Selector: "s1", Algorithm: keypair.Ed25519, PrivateKey: []byte("pkcs8"),
			ActivateTime: now.Add(-2 * time.Hour), EndTime: now.Add(-time.Hour), DestroyTime: now, DiscloseTime: now.Add(lag),
		}})
		wantErr(t, e.unchanged(t, disclose(b, now.Add(lag), nil)), keystore.ErrKeyNotFound)
		again.Domain.Revision, again.Domain.Keys = d.Revision, append(slices.Clip(d.Keys), again.Publish[0].Key)
		e.refuses(t, again, keystore.PublicKeyUsedElsewhere)

		// What is retained goes with the brand's will, and with the domain.
		for _, sel := range []dnsname.Selector{"s1", "s2", "s3"} {
			c = refill(d, sel)
			c.Publish[0].Retain = true
			d = must(e.Apply(ctx, c))(t)
		}
		var ids []string
		for more, after := true, (keystore.Retained{}); more; {
			var page []keystore.Retained
			if page, more, err = e.RetainedKeys(ctx, "", after, 2); err != nil {
				t.Fatal(err)
			}
			for _, r := range page {
				ids = append(ids, r.KeyID)
			}
			after = page[len(page)-1]
		}
		if len(ids) != 3 || !slices.IsSorted(ids) {
			t.Errorf("retained keys %v, want three in order", ids)
		}
		// A brand that changes in another way, or another brand, keeps them.
		b = must(e.Brand(ctx, "acme"))(t)
		b.DisplayName = "Acme"
		b = must(e.UpdateBrand(ctx, b))(t)
		must(e.UpdateBrand(ctx, must(e.Brand(ctx, "other"))(t)))(t)
		if retained, _, err = e.RetainedKeys(ctx, "", keystore.Retained{}, 10); len(retained) != 3 || err != nil {
			t.Errorf("%d retained keys, %v", len(retained), err)
		}
		off := b
		off.Disclosure.Enabled = false
		must(e.UpdateBrand(ctx, off))(t)
		if retained, _, err = e.RetainedKeys(ctx, "", keystore.Retained{}, 10); len(retained) != 0 || err != nil {
			t.Errorf("%d retained keys, %v", len(retained), err)
		}
		c = refill(d, "s1")
		c.Publish[0].Retain = true
		d = must(e.Apply(ctx, c))(t)
		if err := e.DropRetained(ctx, "acme"); err != nil {
			t.Fatal(err)
		}
		if retained, _, err = e.RetainedKeys(ctx, "", keystore.Retained{}, 10); len(retained) != 0 || err != nil {
			t.Errorf("%d retained keys, %v", len(retained), err)
		}
		c = refill(d, "s2")
		c.Publish[0].Retain = true
		d = must(e.Apply(ctx, c))(t)
		e.delete(t, d)
		for key := range e.dump(t) {
			if strings.Contains(key, "/priv/retained/") || strings.Contains(key, "/disclosed/") {
				t.Errorf("%q is left", key)
			}
		}
	},

	"disclosure: only of a private half that is here": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		c := newDomain("acme", "spamtrap.dk", "s1")
		c.Publish[0].Sealed = nil
		d := must(e.Apply(t.Context(), c))(t)
		c = refill(d, "s1")
		c.Publish[0].Retain = true
		must(e.Apply(t.Context(), c))(t)
		retained, _, err := e.RetainedKeys(t.Context(), "", keystore.Retained{}, 10)
		if len(retained) != 0 || err != nil {
			t.Errorf("retained %+v, %v", retained, err)
		}
		// Without being asked to, nothing is retained.
		d = must(e.Domain(t.Context(), "acme", "spamtrap.dk"))(t)
		must(e.Apply(t.Context(), refill(d, "s1")))(t)
		if retained, _, err = e.RetainedKeys(t.Context(), "", keystore.Retained{}, 10); len(retained) != 0 || err != nil {
			t.Errorf("retained %+v, %v", retained, err)
		}
	},

	"disclosure: values that do not decode": func(t *testing.T, e *env) {
		for _, key := range []string{schema.RetainedKey("acme", "spamtrap.dk", "k"), schema.RetainedPrefix("acme") + "odd"} {
			for _, value := range []string{"\x0a\xff", ""} {
				e.put(t, key, value)
				if got, _, err := e.RetainedKeys(t.Context(), "acme", keystore.Retained{}, 10); !errors.Is(err, schema.ErrCorrupt) || !cmp.Equal(got, []keystore.Retained(nil)) {
					t.Errorf("%q at %s: %+v, %v", value, key, got, err)
				}
			}
			must(e.client.Delete(t.Context(), key))(t)
		}
		for _, value := range []string{"\x0a\xff", ""} {
			e.put(t, schema.DisclosedKey("acme", "spamtrap.dk", "k"), value)
			_, err := e.Disclosed(t.Context(), "acme", "spamtrap.dk")
			wantErr(t, err, schema.ErrCorrupt)
		}
	},

	"revoked record": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		d := e.provision(t, "acme", "spamtrap.dk", "s1", "s2")
		c := keystore.Change{Domain: d, Publish: []keystore.Publication{{
			Key: d.Keys[0], Record: schema.PublicRecord{KeyType: dkimrecord.Ed25519, TTL: 3600, UpdateTime: now},
		}}}
		d = must(e.Apply(t.Context(), c))(t)
		d = must(e.Apply(t.Context(), refill(d, "s1")))(t)
		wantEqual(t, "revoked after the refill", must(e.Records(t.Context(), d))(t)["s1"].Revoked(), false)
	},
}
