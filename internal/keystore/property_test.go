package keystore_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/keystore/keystoretest"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/internal/schema/schemapb"
)

const zone = dnsname.Zone("keys.example.net")

// secret marks the private half of every key, so that it can be looked for.
var secret = []byte("BEGIN SECRET")

// world is a store and what it should hold.
type world struct {
	fake    *keystoretest.Fake
	store   *keystore.Store
	domains map[string]keystore.Domain   // by brand/domain, the live ones
	owner   map[string]string            // brand/domain that ever had an owner name
	label   map[string]dnsname.HostLabel // last label of a brand/domain
	octets  [][]byte                     // of all public keys made
	now     time.Time
}

// Several brands provision, publish, withdraw and delete domains whose host
// labels and dashed selectors collide in every way. Whatever the order:
// an owner name is only ever one domain's, labels do not move, every record
// belongs to one key of one live domain, and nothing private is public.
func TestNamesAreNeverShared(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		t.Repeat(map[string]func(*rapid.T){
			"provision": w.provision,
			"publish":   w.publish,
			"withdraw":  w.withdraw,
			"delete":    w.delete,
			"":          w.check,
		})
	})
}

var (
	brands    = []string{"acme", "other", "third"}
	names     = []dnsname.Domain{"y.com", "x.y.com", "x-y.com", "b.x-y.com", "b-x.y.com", "b.x.y.com", "b-x-y.com"}
	selectors = []dnsname.Selector{"s", "s-x", "s-b", "s-b-x", "b-x", "x", "b", "d.s-x", "d.s"}
)

func newWorld(t *rapid.T) *world {
	w := &world{
		fake: keystoretest.NewFake(), domains: make(map[string]keystore.Domain), owner: make(map[string]string),
		label: make(map[string]dnsname.HostLabel), now: time.Unix(1_800_000_000, 0).UTC(),
	}
	w.store = keystore.New(w.fake, time.Minute)
	apex := schema.Apex{NameServers: []schema.NameServer{{Name: "ns1.example.org"}}}
	if _, err := w.store.CreateZone(context.Background(), keystore.Zone{Name: zone, Apex: apex}); err != nil {
		t.Fatal(err)
	}
	for _, b := range brands {
		if _, err := w.store.CreateBrand(context.Background(), keystore.Brand{Name: b, Zone: zone}); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func id(brand string, name dnsname.Domain) string { return brand + "/" + string(name) }

// anyDomain draws a live domain, and skips the step if there is none.
func (w *world) anyDomain(t *rapid.T) keystore.Domain {
	if len(w.domains) == 0 {
		t.Skip("no domain")
	}
	return w.domains[rapid.SampledFrom(slices.Sorted(maps.Keys(w.domains))).Draw(t, "domain")]
}

// addKeys adds a key in each selector to a change. Now and then a single one is a
// key that stands elsewhere already.
func (w *world) addKeys(t *rapid.T, c *keystore.Change, sels []dnsname.Selector) {
	c.Domain.Keys = slices.Clone(c.Domain.Keys)
	for _, sel := range sels {
		octets := sha256.Sum256(fmt.Append(nil, len(w.octets)))
		if len(sels) == 1 && len(w.octets) > 0 && rapid.IntRange(0, 9).Draw(t, "old key") == 0 {
			octets = [32]byte(rapid.SampledFrom(w.octets).Draw(t, "octets"))
		}
		w.octets = append(w.octets, octets[:])
		sum := sha256.Sum256(octets[:])
		k := keystore.Key{
			Key: rotation.Key{
				ID: fmt.Sprintf("k%d", len(w.octets)), Selector: sel, Algorithm: keypair.Ed25519,
				State: rotation.Active, Custody: rotation.Service,
			},
			Fingerprint: [schema.FingerprintLen]byte(sum[:]),
		}
		c.Domain.Keys = append(c.Domain.Keys, k)
		c.Publish = append(c.Publish, keystore.Publication{
			Key: k, Record: schema.PublicRecord{KeyType: dkimrecord.Ed25519, PublicKey: octets[:]},
			Sealed: append(slices.Clone(secret), octets[:]...), New: true,
		})
	}
}

func (w *world) apply(t *rapid.T, c keystore.Change) {
	w.now = w.now.Add(time.Second)
	c.Domain.UpdateTime = w.now
	before := w.fake.Dump()
	d, err := w.store.Apply(context.Background(), c)
	var claim *keystore.ClaimError
	switch {
	case err == nil:
		w.domains[id(d.Brand, d.Name)] = d
	case !errors.As(err, &claim):
		t.Fatal(err)
	case !maps.Equal(before, w.fake.Dump()):
		t.Fatalf("refused with %v, and yet the store changed", err)
	}
}

func (w *world) provision(t *rapid.T) {
	d := keystore.Domain{
		Brand: rapid.SampledFrom(brands).Draw(t, "brand"), Name: rapid.SampledFrom(names).Draw(t, "name"),
		Zone: zone,
	}
	if _, ok := w.domains[id(d.Brand, d.Name)]; ok {
		t.Skip("is there")
	}
	c := keystore.Change{Domain: d}
	w.addKeys(t, &c, rapid.SliceOfNDistinct(rapid.SampledFrom(selectors), 0, 3, rapid.ID[dnsname.Selector]).Draw(t, "selectors"))
	w.apply(t, c)
}

func (w *world) publish(t *rapid.T) {
	d := w.anyDomain(t)
	sel := rapid.SampledFrom(selectors).Draw(t, "selector")
	if d.KeyIn(sel) != nil {
		t.Skip("in use")
	}
	c := keystore.Change{Domain: d}
	w.addKeys(t, &c, []dnsname.Selector{sel})
	w.apply(t, c)
}

func (w *world) withdraw(t *rapid.T) {
	d := w.anyDomain(t)
	if len(d.Keys) == 0 {
		t.Skip("no key")
	}
	i := rapid.IntRange(0, len(d.Keys)-1).Draw(t, "key")
	c := keystore.Change{Domain: d, Withdraw: []keystore.Key{d.Keys[i]}}
	c.Domain.Keys = slices.Delete(slices.Clone(d.Keys), i, i+1)
	w.apply(t, c)
}

func (w *world) delete(t *rapid.T) {
	d := w.anyDomain(t)
	w.now = w.now.Add(time.Second)
	if _, err := w.store.DeleteDomain(context.Background(), d, w.now); err != nil {
		t.Fatal(err)
	}
	delete(w.domains, id(d.Brand, d.Name))
}

// check looks at all that the store holds.
func (w *world) check(t *rapid.T) {
	dump := w.fake.Dump()
	records := make(map[string]string) // owner name -> brand/domain, of the live keys
	fingerprints, sealed := 0, 0
	byName := make(map[dnsname.Domain]string)
	for who, d := range w.domains {
		if other, taken := byName[d.Name]; taken {
			t.Fatalf("%s is live as %s too", who, other)
		}
		byName[d.Name] = who
		if was, ok := w.label[who]; ok && was != d.HostLabel {
			t.Fatalf("%s went from label %s to %s", who, was, d.HostLabel)
		}
		w.label[who] = d.HostLabel
		for _, k := range d.Keys {
			owner, err := dnsname.RelativeOwnerName(k.Selector, d.HostLabel)
			if err != nil {
				t.Fatal(err)
			}
			if first, taken := w.owner[owner]; taken && first != who {
				t.Fatalf("owner name %s of %s has been one of %s", owner, who, first)
			}
			if _, twice := records[owner]; twice {
				t.Fatalf("two keys of %s have the owner name %s", who, owner)
			}
			w.owner[owner], records[owner] = who, who
			want := string(k.Selector) + "." + string(d.Name)
			if got := dump[schema.FingerprintKey(string(zone), k.Fingerprint[:])]; got != want {
				t.Fatalf("fingerprint of key %s of %s stands for %q, want %q", k.ID, who, got, want)
			}
			if _, ok := dump[schema.SealedKeyKey(d.Brand, string(d.Name), k.ID)]; !ok {
				t.Fatalf("the private half of key %s of %s is gone", k.ID, who)
			}
		}
		w.checkClaims(t, dump, d)
	}
	for key, value := range dump {
		switch {
		case strings.HasPrefix(key, schema.PubPrefix):
			if bytes.Contains([]byte(value), secret) {
				t.Fatalf("%s holds private octets", key)
			}
			_, owner, apex, ok := schema.ParsePubKey(key)
			if !ok {
				t.Fatalf("%s is no key of a public value", key)
			}
			if _, live := records[owner]; !apex && !live {
				t.Fatalf("record %s belongs to no live key", owner)
			}
			delete(records, owner)
		case strings.HasPrefix(key, schema.FingerprintPrefix(string(zone))):
			fingerprints++
		case strings.HasPrefix(key, schema.Root+"priv/"):
			sealed++
		}
	}
	if len(records) != 0 {
		t.Fatalf("no record for %v", records)
	}
	live := 0
	for _, d := range w.domains {
		live += len(d.Keys)
	}
	if fingerprints != live || sealed != live {
		t.Fatalf("%d fingerprints and %d private halves for %d keys", fingerprints, sealed, live)
	}
}

// checkClaims looks whether d holds all labels that its owner names can be read
// with, and no claim is live without a domain.
func (w *world) checkClaims(t *rapid.T, dump map[string]string, d keystore.Domain) {
	for key, value := range dump {
		if !strings.HasPrefix(key, schema.LabelPrefix(string(zone))) {
			continue
		}
		var claim schemapb.LabelClaim
		if err := proto.Unmarshal([]byte(value), &claim); err != nil {
			t.Fatal(err)
		}
		_, live := w.domains[id(claim.GetBrand(), dnsname.Domain(claim.GetDomain()))]
		if claim.GetDeleteTimeMicros() == 0 && !live {
			t.Fatalf("%s is a live claim of %s/%s, which is not there", key, claim.GetBrand(), claim.GetDomain())
		}
	}
	needed := []dnsname.HostLabel{d.HostLabel}
	for _, k := range d.Keys {
		needed = append(needed, dnsname.ShadowLabels(k.Selector, d.HostLabel)...)
	}
	for _, l := range needed {
		var claim schemapb.LabelClaim
		if err := proto.Unmarshal([]byte(dump[schema.LabelKey(string(zone), string(l))]), &claim); err != nil {
			t.Fatal(err)
		}
		if claim.GetBrand() != d.Brand || claim.GetDomain() != string(d.Name) || claim.GetDeleteTimeMicros() != 0 {
			t.Fatalf("label %s, which %s needs, is claimed by %v", l, id(d.Brand, d.Name), &claim)
		}
	}
}
