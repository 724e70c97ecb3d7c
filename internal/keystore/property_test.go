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
	revoked map[string]bool              // ids of keys
	events  map[string]int               // by brand/domain, how many ever happened
	brand   map[dnsname.Domain]string    // the last one of a name
	moved   map[dnsname.Domain]bool      // names that went from one brand to another
	fence   *keystore.Fence              // of the present leader
	terms   int
	now     time.Time
}

// Several brands provision, publish, withdraw, refill, revoke, take over and
// delete domains whose host labels and dashed selectors collide in every way,
// one by one and in batches, while a controller looks at them, loses its lead and finds it was slow.
// Whatever the order: an owner name is only ever one domain's, or of the brand
// that took it over, labels do not move, every record belongs to one key of one
// live domain, nothing private is public, no domain is without a due entry, and
// nothing is left of deleted ones but tombstones and history.
func TestNamesAreNeverShared(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		t.Repeat(map[string]func(*rapid.T){
			"provision": w.provision,
			"publish":   w.publish,
			"batch":     w.batch,
			"withdraw":  w.withdraw,
			"refill":    w.refill,
			"revoke":    w.revoke,
			"look":      w.look,
			"depose":    w.depose,
			"report":    w.report,
			"delete":    w.delete,
			"":          w.check,
		})
	})
}

var (
	brands    = []string{"acme", "other", "third"}
	quotas    = map[string]int64{"third": 2}
	names     = []dnsname.Domain{"y.com", "x.y.com", "x-y.com", "b.x-y.com", "b-x.y.com", "b.x.y.com", "b-x-y.com"}
	selectors = []dnsname.Selector{"s", "s-x", "s-b", "s-b-x", "b-x", "x", "b", "d.s-x", "d.s"}
)

func newWorld(t *rapid.T) *world {
	w := &world{
		fake: keystoretest.NewFake(), domains: make(map[string]keystore.Domain), owner: make(map[string]string),
		label: make(map[string]dnsname.HostLabel), revoked: make(map[string]bool), events: make(map[string]int),
		brand: make(map[dnsname.Domain]string), moved: make(map[dnsname.Domain]bool), now: time.Unix(1_800_000_000, 0).UTC(),
	}
	w.store = keystore.New(w.fake, time.Minute)
	apex := schema.Apex{NameServers: []schema.NameServer{{Name: "ns1.example.org"}}}
	if _, err := w.store.CreateZone(context.Background(), keystore.Zone{Name: zone, Apex: apex}); err != nil {
		t.Fatal(err)
	}
	for _, b := range brands {
		if _, err := w.store.CreateBrand(context.Background(), keystore.Brand{Name: b, Zone: zone, MaxDomains: quotas[b]}); err != nil {
			t.Fatal(err)
		}
	}
	for b := range quotas { // begins to count
		if _, err := w.store.CustomerDomains(context.Background(), b); err != nil {
			t.Fatal(err)
		}
	}
	w.elect(t)
	return w
}

// elect makes another process the leader.
func (w *world) elect(t *rapid.T) {
	if w.fence != nil {
		if _, err := w.fake.Delete(context.Background(), w.fence.Key); err != nil {
			t.Fatal(err)
		}
	}
	w.terms++
	w.fence = &keystore.Fence{Key: fmt.Sprintf("%s/%d", schema.LeaderPrefix(), w.terms)}
	resp, err := w.fake.Put(context.Background(), w.fence.Key, "")
	if err != nil {
		t.Fatal(err)
	}
	w.fence.CreateRevision = resp.Header.Revision
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
	c.Actor = "rapid"
	for range rapid.IntRange(0, 5).Draw(t, "events") {
		c.Events = append(c.Events, keystore.Event{Action: fmt.Sprint("E", w.events[id(c.Domain.Brand, c.Domain.Name)]+len(c.Events))})
	}
	if rapid.Bool().Draw(t, "by the leader") {
		c.Fence = w.fence
	}
	if rapid.Bool().Draw(t, "with status") {
		st, err := w.store.Status(context.Background(), c.Domain.Brand, c.Domain.Name)
		if err != nil {
			t.Fatal(err)
		}
		c.Status, c.Due, c.Handled = &st, w.soon(t), w.entries(t, c.Domain.Brand, c.Domain.Name)
	}
	before := w.fake.Dump()
	d, err := w.store.Apply(context.Background(), c)
	var claim *keystore.ClaimError
	var quota *keystore.QuotaError
	switch {
	case err == nil:
		w.domains[id(d.Brand, d.Name)] = d
		w.events[id(d.Brand, d.Name)] += len(c.Events)
		if was, ok := w.brand[d.Name]; ok && was != d.Brand {
			w.moved[d.Name] = true
		}
		w.brand[d.Name] = d.Brand
	case !errors.As(err, &claim) && !errors.As(err, &quota):
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
	c := keystore.Change{Domain: d, TakeOver: rapid.IntRange(0, 3).Draw(t, "take over") == 0}
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

// batch makes and changes several domains of a brand together. Now and then two
// of them want the same key; the first has it.
func (w *world) batch(t *rapid.T) {
	brand := rapid.SampledFrom(brands).Draw(t, "brand")
	w.now = w.now.Add(time.Second)
	var changes []keystore.Change
	for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom(names), 1, len(names), rapid.ID[dnsname.Domain]).Draw(t, "names") {
		d, live := w.domains[id(brand, name)]
		if !live {
			d = keystore.Domain{Brand: brand, Name: name, Zone: zone}
		}
		sels := rapid.SliceOfNDistinct(rapid.SampledFrom(selectors), 0, 3, rapid.ID[dnsname.Selector]).Draw(t, "selectors")
		sels = slices.DeleteFunc(sels, func(sel dnsname.Selector) bool { return d.KeyIn(sel) != nil })
		if live && len(sels) == 0 {
			continue
		}
		c := keystore.Change{Domain: d}
		w.addKeys(t, &c, sels)
		c.Domain.UpdateTime = w.now
		changes = append(changes, c)
	}
	before := w.fake.Dump()
	results := w.store.ApplyBatch(context.Background(), changes)
	if len(results) != len(changes) {
		t.Fatalf("%d results of %d changes", len(results), len(changes))
	}
	had := make(map[[schema.FingerprintLen]byte]bool) // keys that a change before has
	done := 0
	for i, res := range results {
		c := changes[i]
		var claim *keystore.ClaimError
		var quota *keystore.QuotaError
		switch {
		case errors.As(res.Err, &quota):
		case res.Err == nil:
			w.domains[id(brand, c.Domain.Name)] = res.Domain
			done++
		case !errors.As(res.Err, &claim):
			t.Fatal(res.Err)
		case claim.Reason == keystore.PublicKeyUsedElsewhere && !usedBefore(before, c, had):
			t.Fatalf("%s: %v, but only a change after it has that key", c.Domain.Name, res.Err)
		}
		for _, p := range c.Publish {
			had[p.Key.Fingerprint] = had[p.Key.Fingerprint] || res.Err == nil
		}
	}
	if done == 0 && !maps.Equal(before, w.fake.Dump()) {
		t.Fatal("all are refused, and yet the store changed")
	}
}

// usedBefore reports whether a key of c was in the store before, or is in had.
func usedBefore(before map[string]string, c keystore.Change, had map[[schema.FingerprintLen]byte]bool) bool {
	return slices.ContainsFunc(c.Publish, func(p keystore.Publication) bool {
		_, used := before[schema.FingerprintKey(string(zone), p.Key.Fingerprint[:])]
		return used || had[p.Key.Fingerprint]
	})
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

// anyKey draws a key of a live domain.
func (w *world) anyKey(t *rapid.T) (keystore.Domain, int) {
	d := w.anyDomain(t)
	if len(d.Keys) == 0 {
		t.Skip("no key")
	}
	return d, rapid.IntRange(0, len(d.Keys)-1).Draw(t, "key")
}

func (w *world) refill(t *rapid.T) {
	d, i := w.anyKey(t)
	old := d.Keys[i]
	c := keystore.Change{Domain: d}
	c.Domain.Keys = slices.Delete(slices.Clone(d.Keys), i, i+1)
	w.addKeys(t, &c, []dnsname.Selector{old.Selector})
	c.Publish[0].Replaces = &old
	c.Publish[0].Retain = rapid.Bool().Draw(t, "retain")
	w.apply(t, c)
}

func (w *world) revoke(t *rapid.T) {
	d, i := w.anyKey(t)
	c := keystore.Change{Domain: d, Publish: []keystore.Publication{{Key: d.Keys[i], Record: schema.PublicRecord{KeyType: dkimrecord.Ed25519}}}}
	w.apply(t, c)
	if w.domains[id(d.Brand, d.Name)].Revision != d.Revision {
		w.revoked[d.Keys[i].ID] = true
	}
}

// soon is a time at which a domain may be due.
func (w *world) soon(t *rapid.T) time.Time {
	return w.now.Add(time.Duration(rapid.IntRange(-5, 20).Draw(t, "due")) * time.Second)
}

// entries are the due entries of a domain.
func (w *world) entries(t *rapid.T, brand string, name dnsname.Domain) []keystore.DueEntry {
	all, err := w.store.DueBefore(context.Background(), w.now.Add(time.Hour), 10_000)
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(all, func(e keystore.DueEntry) bool { return e.Brand != brand || e.Domain != name })
}

// look is what the controller does: it takes what is due, saves the status of
// domains that are there and drops the entries of others. Now and then a domain
// changes between its read and its write.
func (w *world) look(t *rapid.T) {
	ctx := context.Background()
	due, err := w.store.DueBefore(ctx, w.now, rapid.IntRange(1, 5).Draw(t, "limit"))
	if err != nil {
		t.Fatal(err)
	}
	if rapid.IntRange(0, 3).Draw(t, "sweep") == 0 {
		if err := w.store.DropDue(ctx, w.fence, due...); err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range due {
		d, live := w.domains[id(e.Brand, e.Domain)]
		if !live {
			if err := w.store.DropDue(ctx, w.fence, e); err != nil {
				t.Fatal(err)
			}
			continue
		}
		st, err := w.store.Status(ctx, e.Brand, e.Domain)
		if err != nil {
			t.Fatal(err)
		}
		st.Due = w.soon(t)
		raced := rapid.IntRange(0, 3).Draw(t, "race") == 0
		if raced {
			w.apply(t, keystore.Change{Domain: d})
		}
		_, err = w.store.SaveStatus(ctx, st, w.fence, e)
		if err != nil && !errors.Is(err, keystore.ErrConflict) {
			t.Fatal(err)
		}
	}
}

// depose makes another process the leader: nothing that the last one still writes
// happens.
func (w *world) depose(t *rapid.T) {
	old := w.fence
	w.elect(t)
	d := w.anyDomain(t)
	before := w.fake.Dump()
	c := keystore.Change{Domain: d, Fence: old}
	if rapid.Bool().Draw(t, "keys") {
		w.addKeys(t, &c, []dnsname.Selector{"unused"})
		w.octets = w.octets[:len(w.octets)-1]
	}
	_, applyErr := w.store.Apply(context.Background(), c)
	st := keystore.Status{Brand: d.Brand, Domain: d.Name, Due: w.now}
	_, saveErr := w.store.SaveStatus(context.Background(), st, old)
	for _, err := range []error{applyErr, saveErr} {
		if !errors.Is(err, keystore.ErrFenced) {
			t.Fatalf("a deposed leader's write: %v", err)
		}
	}
	if !maps.Equal(before, w.fake.Dump()) {
		t.Fatal("a deposed leader changed the store")
	}
}

func (w *world) report(t *rapid.T) {
	var reports []keystore.Report
	for _, n := range names {
		reports = append(reports, keystore.Report{Signer: "mta", Brand: rapid.SampledFrom(brands).Draw(t, "brand"), Domain: n, Time: w.now})
	}
	unknown, err := w.store.PutReports(context.Background(), reports)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range reports {
		if _, live := w.domains[id(r.Brand, r.Domain)]; live == slices.Contains(unknown, r.Domain) {
			t.Fatalf("report on %s: live %t, unknown %t", id(r.Brand, r.Domain), live, !live)
		}
	}
}

func (w *world) delete(t *rapid.T) {
	d := w.anyDomain(t)
	w.now = w.now.Add(time.Second)
	if _, err := w.store.DeleteDomain(context.Background(), d, w.now, keystore.Event{Action: fmt.Sprint("E", w.events[id(d.Brand, d.Name)])}); err != nil {
		t.Fatal(err)
	}
	w.events[id(d.Brand, d.Name)]++
	delete(w.domains, id(d.Brand, d.Name))
}

// checkQuotas checks that brands with a quota keep to it and are counted right.
func (w *world) checkQuotas(t *rapid.T) {
	for b, limit := range quotas {
		var n int64
		for _, d := range w.domains {
			if d.Brand == b {
				n++
			}
		}
		got, err := w.store.CustomerDomains(context.Background(), b)
		if err != nil || got != n || n > limit {
			t.Fatalf("brand %s has %d domains, and is counted %d of %d: %v", b, n, got, limit, err)
		}
	}
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
			// A takeover moves a name to another brand's domain of the same name.
			if first, taken := w.owner[owner]; taken && first != who && !strings.HasSuffix(first, "/"+string(d.Name)) {
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
		w.checkDue(t, dump, d)
	}
	w.checkLeft(t, dump)
	w.checkHistory(t)
	w.checkQuotas(t)
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
		case strings.HasPrefix(key, schema.RetainedPrefix("")):
			brand, name, _, ok := schema.ParseRetainedKey(key)
			if _, live := w.domains[id(brand, dnsname.Domain(name))]; !ok || !live {
				t.Fatalf("%s is retained for no live domain", key)
			}
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

// checkDue looks whether d is due some time, and its status is among the reasons.
func (w *world) checkDue(t *rapid.T, dump map[string]string, d keystore.Domain) {
	due := false
	for key := range dump {
		_, brand, name, ok := schema.ParseDueKey(key)
		due = due || ok && brand == d.Brand && name == string(d.Name)
	}
	if !due {
		t.Fatalf("%s is never due", id(d.Brand, d.Name))
	}
	st, err := w.store.Status(context.Background(), d.Brand, d.Name)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := dump[schema.DueKey(st.Due, d.Brand, string(d.Name))]; st.Revision != 0 && !ok {
		t.Fatalf("the due entry of the status of %s is gone", id(d.Brand, d.Name))
	}
}

// checkLeft looks for what deleted domains should not have left.
func (w *world) checkLeft(t *rapid.T, dump map[string]string) {
	live := make(map[string]bool)
	for _, d := range w.domains {
		live[schema.StatusKey(d.Brand, string(d.Name))] = true
		live[schema.ReportKey(d.Brand, string(d.Name), "mta")] = true
	}
	for key := range dump {
		if (strings.HasPrefix(key, schema.AllStatusPrefix()) || strings.HasPrefix(key, schema.Root+"meta/reports/")) && !live[key] {
			t.Fatalf("%s is left", key)
		}
	}
}

// checkHistory looks whether the newest events are there, in order.
func (w *world) checkHistory(t *rapid.T) {
	for who, n := range w.events {
		brand, name, _ := strings.Cut(who, "/")
		got, err := w.store.History(context.Background(), brand, dnsname.Domain(name))
		if err != nil {
			t.Fatal(err)
		}
		moved := w.moved[dnsname.Domain(name)] // its blocks may have been overwritten out of turn
		// Deletions make short blocks.
		if len(got) < min(n, 4) && (!moved || len(got) == 0) {
			t.Fatalf("%d events of %s are kept of %d", len(got), who, n)
		}
		for i, e := range got {
			want := n - 1 - i
			if i > 0 && moved {
				last := n
				_, _ = fmt.Sscanf(got[i-1].Action, "E%d", &last)
				_, _ = fmt.Sscanf(e.Action, "E%d", &want)
				want = min(want, last-1)
			}
			if e.Action != fmt.Sprint("E", want) {
				t.Fatalf("event %d of %s is %s, want E%d", i, who, e.Action, want)
			}
		}
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
