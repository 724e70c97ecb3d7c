package keystoretest

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/schema"
)

var zoneTests = map[string]func(*testing.T, *env){
	"zone: life": func(t *testing.T, e *env) {
		ctx := t.Context()
		_, err := e.Zone(ctx, zoneName)
		wantErr(t, err, keystore.ErrZoneNotFound)

		made := must(e.CreateZone(ctx, zone(zoneName)))(t)
		wantEqual(t, "zone as made", made.Apex, zone(zoneName).Apex)
		wantEqual(t, "revision as made", made.Revision, e.revision(t))
		wantErr(t, e.unchanged(t, func() error { _, err := e.CreateZone(ctx, zone(zoneName)); return err }), keystore.ErrZoneExists)

		read := must(e.Zone(ctx, zoneName))(t)
		wantEqual(t, "zone as read", read, made, allowUnexported)

		change := read
		change.RecordTTL = 600
		changed := must(e.UpdateZone(ctx, change))(t)
		if changed.RecordTTL != 600 || changed.ETag() == made.ETag() || changed.Revision <= made.Revision {
			t.Fatalf("zone after its change: %+v, etag %s; before: %+v, etag %s", changed, changed.ETag(), made, made.ETag())
		}
		wantErr(t, e.unchanged(t, func() error { _, err := e.UpdateZone(ctx, read); return err }), keystore.ErrConflict)
		wantErr(t, e.unchanged(t, func() error { return e.DeleteZone(ctx, read) }), keystore.ErrConflict)

		if err := e.DeleteZone(ctx, changed); err != nil {
			t.Fatal(err)
		}
		wantEqual(t, "store after the only zone was deleted", e.dump(t), map[string]entry{})
		_, err = e.UpdateZone(ctx, changed)
		wantErr(t, err, keystore.ErrZoneNotFound)
		wantErr(t, e.DeleteZone(ctx, changed), keystore.ErrZoneNotFound)
	},

	"zone: a record changes the revision and not the etag": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		before := must(e.Zone(t.Context(), zoneName))(t)
		value := e.dump(t)[schema.ApexKey(string(zoneName))].Value

		d := e.provision(t, "acme", "spamtrap.dk", "selector1", "selector2")
		last := before.Revision
		touched := func(what string, revision int64) {
			t.Helper()
			z := must(e.Zone(t.Context(), zoneName))(t)
			if z.Revision <= last || z.Revision != revision || z.ETag() != before.ETag() {
				t.Fatalf("%s: zone at revision %d, etag %s; want revision %d above %d, etag %s", what, z.Revision, z.ETag(), revision, last, before.ETag())
			}
			last = z.Revision
			wantEqual(t, "the apex's value", e.dump(t)[schema.ApexKey(string(zoneName))].Value, value)
		}
		touched("provisioning", d.Revision)
		d = must(e.Apply(t.Context(), addKeys(d, "selector3")))(t)
		touched("publishing", d.Revision)
		d = must(e.Apply(t.Context(), withdraw(d, "selector1")))(t)
		touched("withdrawing", d.Revision)
		d = must(e.Apply(t.Context(), keystore.Change{Domain: d}))(t)
		touched("a change of state only", d.Revision)
		touched("deleting", must(e.DeleteDomain(t.Context(), d, now))(t))

		// What was read before all that still serves for an update.
		before.RecordTTL = 60
		must(e.UpdateZone(t.Context(), before))(t)
	},

	"zone: update is not lost among records": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		calls := []func() error{func() error {
			z, err := e.Zone(t.Context(), zoneName)
			if err != nil {
				return err
			}
			z.RecordTTL = 777
			_, err = e.UpdateZone(t.Context(), z)
			return err
		}}
		for i := range 10 {
			calls = append(calls, func() error {
				_, err := e.Apply(t.Context(), newDomain("acme", dnsname.Domain(fmt.Sprintf("d%d.example", i)), "s1"))
				return err
			})
		}
		for i, err := range together(calls...) {
			if err != nil {
				t.Errorf("writer %d: %v; writers of records and of settings do not get in each other's way", i, err)
			}
		}
		if z := must(e.Zone(t.Context(), zoneName))(t); z.RecordTTL != 777 {
			t.Errorf("RecordTTL is %d, want the updated 777", z.RecordTTL)
		}
	},

	"zone: in use": func(t *testing.T, e *env) {
		e.setup(t, "acme", "other@other.example")
		z := must(e.Zone(t.Context(), zoneName))(t)
		wantErr(t, e.unchanged(t, func() error { return e.DeleteZone(t.Context(), z) }), keystore.ErrZoneInUse)

		d := e.provision(t, "acme", "spamtrap.dk", "s1")
		e.delete(t, d)
		b := must(e.Brand(t.Context(), "acme"))(t)
		if err := e.DeleteBrand(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		if err := e.DeleteZone(t.Context(), z); err != nil {
			t.Fatal(err)
		}
		for key := range e.dump(t) {
			if strings.Contains(key, string(zoneName)) {
				t.Errorf("%q is left of the zone", key)
			}
		}
	},

	"zone: pages": func(t *testing.T, e *env) {
		// Names that are beginnings of one another, and one with records.
		e.setup(t, "acme")
		e.provision(t, "acme", "spamtrap.dk", "s1", "s2")
		for _, name := range []dnsname.Zone{"example.net", "keys.example.net.example", "keys.example", "zz.example", "keys.example.ne"} {
			must(e.CreateZone(t.Context(), zone(name)))(t)
		}
		all, more, err := e.Zones(t.Context(), "", 100)
		if err != nil || more || len(all) != 6 {
			t.Fatalf("%d zones, more %t, %v; want all 6", len(all), more, err)
		}
		for limit := 1; limit <= 7; limit++ {
			var got []keystore.Zone
			after := dnsname.Zone("")
			for more := true; more; {
				var page []keystore.Zone
				if page, more, err = e.Zones(t.Context(), after, limit); err != nil {
					t.Fatal(err)
				}
				if len(page) == 0 || len(page) > limit || more && len(page) != limit {
					t.Fatalf("page of %d zones for limit %d, more %t", len(page), limit, more)
				}
				got = append(got, page...)
				after = page[len(page)-1].Name
			}
			wantEqual(t, fmt.Sprintf("zones by %d", limit), got, all, allowUnexported)
		}
	},
}

var brandTests = map[string]func(*testing.T, *env){
	"brand: life": func(t *testing.T, e *env) {
		ctx := t.Context()
		b := keystore.Brand{Name: "acme", Zone: zoneName, DisplayName: "Acme", CreateTime: now}
		wantErr(t, e.unchanged(t, func() error { _, err := e.CreateBrand(ctx, b); return err }), keystore.ErrZoneNotFound)
		_, err := e.Brand(ctx, "acme")
		wantErr(t, err, keystore.ErrBrandNotFound)

		must(e.CreateZone(ctx, zone(zoneName)))(t)
		made := must(e.CreateBrand(ctx, b))(t)
		b.Revision = e.revision(t)
		wantEqual(t, "brand as made", made, b)
		wantEqual(t, "brand as read", must(e.Brand(ctx, "acme"))(t), made)
		wantErr(t, e.unchanged(t, func() error { _, err := e.CreateBrand(ctx, b); return err }), keystore.ErrBrandExists)

		change := made
		change.DisplayName = "Acme Inc."
		changed := must(e.UpdateBrand(ctx, change))(t)
		wantEqual(t, "changed brand as read", must(e.Brand(ctx, "acme"))(t), changed)
		if changed.ETag() == made.ETag() {
			t.Error("the etag is the same after a change")
		}
		wantErr(t, e.unchanged(t, func() error { _, err := e.UpdateBrand(ctx, made); return err }), keystore.ErrConflict)
		wantErr(t, e.unchanged(t, func() error { return e.DeleteBrand(ctx, made) }), keystore.ErrConflict)

		d := e.provision(t, "acme", "spamtrap.dk", "s1")
		wantErr(t, e.unchanged(t, func() error { return e.DeleteBrand(ctx, changed) }), keystore.ErrBrandNotEmpty)
		e.delete(t, d)
		if err := e.DeleteBrand(ctx, changed); err != nil {
			t.Fatal(err)
		}
		_, err = e.Brand(ctx, "acme")
		wantErr(t, err, keystore.ErrBrandNotFound)
		wantErr(t, e.DeleteBrand(ctx, changed), keystore.ErrBrandNotFound)
		_, err = e.UpdateBrand(ctx, changed)
		wantErr(t, err, keystore.ErrBrandNotFound)
	},

	"brand: pages": func(t *testing.T, e *env) {
		e.setup(t, "a", "a-b", "ab", "b", "c0")
		all, more, err := e.Brands(t.Context(), "", 100)
		if err != nil || more || len(all) != 5 {
			t.Fatalf("%d brands, more %t, %v; want all 5", len(all), more, err)
		}
		if !slices.IsSortedFunc(all, func(a, b keystore.Brand) int { return strings.Compare(a.Name, b.Name) }) {
			t.Errorf("brands are not in order of name: %+v", all)
		}
		for limit := 1; limit <= 6; limit++ {
			var got []keystore.Brand
			after := ""
			for more := true; more; {
				var page []keystore.Brand
				if page, more, err = e.Brands(t.Context(), after, limit); err != nil {
					t.Fatal(err)
				}
				if len(page) == 0 || len(page) > limit || more && len(page) != limit {
					t.Fatalf("page of %d brands for limit %d, more %t", len(page), limit, more)
				}
				got = append(got, page...)
				after = page[len(page)-1].Name
			}
			wantEqual(t, fmt.Sprintf("brands by %d", limit), got, all)
		}
	},

	"brand: data keys": func(t *testing.T, e *env) {
		ctx := t.Context()
		_, err := e.CreateDataKey(ctx, "acme", 7, []byte("wrapped"), 0)
		wantErr(t, err, keystore.ErrBrandNotFound)
		wantEqual(t, "a brand with data keys", must(e.AnyDataKeyBrand(ctx))(t), "")
		e.setup(t, "acme", "acm", "acmee")
		if n, wrapped, err := e.NewestDataKey(ctx, "acme"); n != 0 || wrapped != nil || err != nil {
			t.Fatalf("newest data key of a new brand: %d, %q, %v; want none", n, wrapped, err)
		}
		for _, n := range []uint32{9, 10, 4294967295, 1000000000} { // numbers, not words
			if !must(e.CreateDataKey(ctx, "acme", n, fmt.Append(nil, "wrapped ", n), 0))(t) {
				t.Fatalf("data key %d was not created", n)
			}
		}
		n, wrapped, err := e.NewestDataKey(ctx, "acme")
		if n != 4294967295 || string(wrapped) != "wrapped 4294967295" || err != nil {
			t.Fatalf("newest data key: %d, %q, %v", n, wrapped, err)
		}
		wantEqual(t, "data key 10", string(must(e.DataKey(ctx, "acme", 10))(t)), "wrapped 10")
		_, err = e.DataKey(ctx, "acme", 11)
		wantErr(t, err, keystore.ErrKeyNotFound)
		for _, brand := range []string{"acm", "acmee"} {
			if n, _, err := e.NewestDataKey(ctx, brand); n != 0 || err != nil {
				t.Fatalf("newest data key of %s: %d, %v; want none", brand, n, err)
			}
		}
		wantEqual(t, "a brand with data keys", must(e.AnyDataKeyBrand(ctx))(t), "acme")

		if err := e.DeleteBrand(ctx, must(e.Brand(ctx, "acme"))(t)); err != nil {
			t.Fatal(err)
		}
		wantEqual(t, "data key 10 of the deleted brand", string(must(e.DataKey(ctx, "acme", 10))(t)), "wrapped 10")
	},

	"brand: of concurrent data keys of a number one is stored": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		created := make([]bool, 8)
		calls := make([]func() error, len(created))
		for i := range calls {
			calls[i] = func() (err error) {
				created[i], err = e.CreateDataKey(t.Context(), "acme", 1, fmt.Append(nil, i), 0)
				return err
			}
		}
		for _, err := range together(calls...) {
			if err != nil {
				t.Fatal(err)
			}
		}
		winner := slices.Index(created, true)
		if winner < 0 || slices.Contains(created[winner+1:], true) {
			t.Fatalf("created: %v, want one", created)
		}
		_, wrapped, err := e.NewestDataKey(t.Context(), "acme")
		if err != nil || string(wrapped) != fmt.Sprint(winner) {
			t.Errorf("data key %q, %v; want that of the winner, %d", wrapped, err, winner)
		}
	},
}
