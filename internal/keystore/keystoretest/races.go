package keystoretest

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// rounds is how often a race is run when its outcome is left to chance.
const rounds = 20

// winners returns who of some writers had no error, and fails the test if
// another error than one of the allowed ones is there.
func winners(t testing.TB, errs []error, allowed ...error) []int {
	t.Helper()
	var won []int
	for i, err := range errs {
		if err == nil {
			won = append(won, i)
		} else if !slices.ContainsFunc(allowed, func(want error) bool { return errors.Is(err, want) }) {
			t.Fatalf("writer %d: %v, want nil or one of %v", i, err, allowed)
		}
	}
	return won
}

var raceTests = map[string]func(*testing.T, *env){
	"race: of the writers of a domain one wins": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		for round := range rounds {
			name := dnsname.Domain(fmt.Sprintf("d%d.example", round))
			// First as a new domain, then as one that is there.
			for _, base := range []func() keystore.Change{
				func() keystore.Change { return newDomain("acme", name, "s1", "s2") },
				func() keystore.Change { return addKeys(must(e.Domain(t.Context(), "acme", name))(t), "s3", "s4") },
			} {
				before := e.dump(t)
				changes := make([]keystore.Change, 4)
				results := make([]keystore.Domain, len(changes))
				calls := make([]func() error, len(changes))
				for i := range changes {
					changes[i] = base()
					calls[i] = func() (err error) {
						results[i], err = e.Apply(t.Context(), changes[i])
						return err
					}
				}
				won := winners(t, together(calls...), keystore.ErrConflict)
				if len(won) != 1 {
					t.Fatalf("writers %v won, want one", won)
				}
				d := must(e.Domain(t.Context(), "acme", name))(t)
				wantEqual(t, "domain as the winner knows it", results[won[0]], d)
				records := must(e.Records(t.Context(), d))(t)
				for _, p := range changes[won[0]].Publish {
					wantEqual(t, "record of the winner", records[p.Key.Selector], p.Record)
				}
				// Two keys each with record, fingerprint and private half; a
				// new domain also itself, its label and its due entry.
				want := 6
				if round, ok := before[schema.DomainKey("acme", string(name))]; !ok {
					want = 9 + int(round.ModRevision)
				}
				if n := len(added(before, e.dump(t))); n != want {
					t.Fatalf("%d keys were added, want the winner's %d", n, want)
				}
			}
		}
	},

	"race: of the claimers of a label one gets it, the others the hashed form": func(t *testing.T, e *env) {
		e.setup(t, "b0", "b1", "b2", "b3")
		for round := range rounds {
			names := []string{"a%d-b-c.com", "a%d.b-c.com", "a%d-b.c.com", "a%d.b.c.com"}
			results := make([]keystore.Domain, len(names))
			calls := make([]func() error, len(names))
			for i := range names {
				calls[i] = func() (err error) {
					name := dnsname.Domain(fmt.Sprintf(names[i], round))
					results[i], err = e.Apply(t.Context(), newDomain(fmt.Sprintf("b%d", i), name, dnsname.Selector(fmt.Sprintf("s%d", i))))
					return err
				}
			}
			if won := winners(t, together(calls...)); len(won) != len(names) {
				t.Fatalf("writers %v succeeded, want all", won)
			}
			plain := 0
			for _, d := range results {
				switch d.HostLabel {
				case dnsname.HostLabel(fmt.Sprintf("a%d-b-c-com", round)):
					plain++
				case hashed(d.Name):
				default:
					t.Fatalf("%s has label %s", d.Name, d.HostLabel)
				}
			}
			if plain != 1 {
				t.Fatalf("%d domains have the plain label, want one", plain)
			}
		}
	},

	"race: a label is claimed between look and change": func(t *testing.T, e *env) {
		e.setup(t, "acme", "other")
		s := e.before(2, func() { e.provision(t, "other", "a-b.com", "s2") })
		d := must(s.Apply(t.Context(), newDomain("acme", "a.b.com", "s1")))(t)
		wantEqual(t, "label", d.HostLabel, hashed("a.b.com"))
	},

	"race: a domain is taken by another brand between look and change": func(t *testing.T, e *env) {
		e.setup(t, "acme", "other")
		s := e.before(2, func() { e.provision(t, "other", "spamtrap.dk", "s2") })
		_, err := s.Apply(t.Context(), newDomain("acme", "spamtrap.dk", "s1"))
		wantClaim(t, err, keystore.ClaimedByOtherBrand)
		for round := range rounds {
			name := dnsname.Domain(fmt.Sprintf("d%d.example", round))
			errs := together(
				func() error { _, err := e.Apply(t.Context(), newDomain("acme", name, "s1")); return err },
				func() error { _, err := e.Apply(t.Context(), newDomain("other", name, "s2")); return err })
			if (errs[0] == nil) == (errs[1] == nil) {
				t.Fatalf("acme: %v, other: %v; want one to succeed", errs[0], errs[1])
			}
			wantClaim(t, errors.Join(errs...), keystore.ClaimedByOtherBrand)
		}
	},

	"race: a shadow label is claimed between look and change": func(t *testing.T, e *env) {
		e.setup(t, "acme", "other")
		s := e.before(3, func() { e.provision(t, "other", "x.y.com", "other") }) // look, shadows, change
		_, err := s.Apply(t.Context(), newDomain("acme", "y.com", "sel-x"))
		wantClaim(t, err, keystore.SelectorTaken)

		d := e.provision(t, "acme", "z.com", "sel")
		s = e.before(2, func() { e.provision(t, "other", "x.z.com", "other") })
		before := d.Revision
		_, err = s.Apply(t.Context(), addKeys(d, "sel-x"))
		wantClaim(t, err, keystore.SelectorTaken)
		wantEqual(t, "revision of the domain", must(e.Domain(t.Context(), "acme", "z.com"))(t).Revision, before)
	},

	"race: a public key is published elsewhere between look and change": func(t *testing.T, e *env) {
		e.setup(t, "acme", "other")
		c := newDomain("acme", "spamtrap.dk", "s1")
		s := e.before(2, func() {
			same := newDomain("other", "other.dk", "s1")
			same.Publish[0].Key.Fingerprint = c.Publish[0].Key.Fingerprint
			same.Domain.Keys[0].Fingerprint = c.Publish[0].Key.Fingerprint
			must(e.Apply(t.Context(), same))(t)
		})
		_, err := s.Apply(t.Context(), c)
		wantClaim(t, err, keystore.PublicKeyUsedElsewhere)
		_, err = e.Domain(t.Context(), "acme", "spamtrap.dk")
		wantErr(t, err, keystore.ErrDomainNotFound)
	},

	"race: a brand is deleted while it gets a domain": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		remove := func(name string) error {
			b, err := e.Brand(t.Context(), name)
			if err != nil {
				return err
			}
			return e.DeleteBrand(t.Context(), b)
		}
		s := e.before(2, func() {
			if err := remove("acme"); err != nil {
				t.Error(err)
			}
		})
		_, err := s.Apply(t.Context(), newDomain("acme", "spamtrap.dk", "s1"))
		wantErr(t, err, keystore.ErrBrandNotFound)

		e.setup(t, "acme")
		b := must(e.Brand(t.Context(), "acme"))(t)
		s = e.before(2, func() { e.provision(t, "acme", "spamtrap.dk", "s1") })
		wantErr(t, s.DeleteBrand(t.Context(), b), keystore.ErrBrandNotEmpty)
		e.delete(t, must(e.Domain(t.Context(), "acme", "spamtrap.dk"))(t))
		if err := remove("acme"); err != nil {
			t.Fatal(err)
		}

		for round := range rounds {
			e.setup(t, "acme")
			name := dnsname.Domain(fmt.Sprintf("d%d.example", round))
			errs := together(
				func() error { return remove("acme") },
				func() error { _, err := e.Apply(t.Context(), newDomain("acme", name, "s1")); return err })
			if errs[0] == nil {
				wantErr(t, errs[1], keystore.ErrBrandNotFound)
				_, err := e.Domain(t.Context(), "acme", name)
				wantErr(t, err, keystore.ErrDomainNotFound)
				continue
			}
			wantErr(t, errs[0], keystore.ErrBrandNotEmpty)
			if errs[1] != nil {
				t.Fatalf("brand: %v, domain: %v; want one to succeed", errs[0], errs[1])
			}
			e.delete(t, must(e.Domain(t.Context(), "acme", name))(t))
			if err := remove("acme"); err != nil {
				t.Fatal(err)
			}
		}
	},

	"race: a brand is made anew in another zone": func(t *testing.T, e *env) {
		e.setup(t, "acme", "there@other.example")
		c := newDomain("acme", "spamtrap.dk", "s1")
		move := func(from, to dnsname.Zone) func() {
			return func() {
				b := must(e.Brand(t.Context(), "acme"))(t)
				wantEqual(t, "zone of the brand", b.Zone, from)
				if err := e.DeleteBrand(t.Context(), b); err != nil {
					t.Error(err)
				}
				must(e.CreateBrand(t.Context(), keystore.Brand{Name: "acme", Zone: to}))(t)
			}
		}
		// Before the look, and between look and change.
		for n := int64(1); n <= 2; n++ {
			_, err := e.before(n, move(zoneName, "other.example")).Apply(t.Context(), c)
			wantErr(t, err, keystore.ErrConflict)
			_, err = e.Domain(t.Context(), "acme", "spamtrap.dk")
			wantErr(t, err, keystore.ErrDomainNotFound)
			move("other.example", zoneName)()
		}
		// A brand that only changed its name goes on having domains.
		s := e.before(2, func() {
			b := must(e.Brand(t.Context(), "acme"))(t)
			b.DisplayName = "Acme Inc."
			must(e.UpdateBrand(t.Context(), b))(t)
		})
		must(s.Apply(t.Context(), c))(t)
	},

	"race: a zone is deleted while it gets a brand": func(t *testing.T, e *env) {
		z := must(e.CreateZone(t.Context(), zone(zoneName)))(t)
		s := e.before(1, func() { e.setup(t, "acme") })
		wantErr(t, s.DeleteZone(t.Context(), z), keystore.ErrConflict)
		wantErr(t, e.DeleteZone(t.Context(), z), keystore.ErrZoneInUse)

		s = e.before(1, func() {
			if err := errors.Join(e.DeleteBrand(t.Context(), must(e.Brand(t.Context(), "acme"))(t)), e.DeleteZone(t.Context(), z)); err != nil {
				t.Error(err)
			}
		})
		_, err := s.CreateBrand(t.Context(), keystore.Brand{Name: "other", Zone: zoneName})
		wantErr(t, err, keystore.ErrZoneNotFound)

		for round := range rounds {
			name := dnsname.Zone(fmt.Sprintf("z%d.example", round))
			z := must(e.CreateZone(t.Context(), zone(name)))(t)
			errs := together(
				func() error { return e.DeleteZone(t.Context(), z) },
				func() error {
					_, err := e.CreateBrand(t.Context(), keystore.Brand{Name: fmt.Sprintf("b%d", round), Zone: name})
					return err
				})
			if errs[0] == nil {
				wantErr(t, errs[1], keystore.ErrZoneNotFound)
				continue
			}
			winners(t, errs[:1], keystore.ErrConflict, keystore.ErrZoneInUse)
			if errs[1] != nil {
				t.Fatalf("zone: %v, brand: %v; want one to succeed", errs[0], errs[1])
			}
		}
	},

	"race: of the writers of a brand, and of a zone, one wins": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		for round := range rounds {
			b, z := must(e.Brand(t.Context(), "acme"))(t), must(e.Zone(t.Context(), zoneName))(t)
			var brands, zones []func() error
			for i := range 4 {
				brands = append(brands, func() error {
					b := b
					b.DisplayName = fmt.Sprint(round, i)
					_, err := e.UpdateBrand(t.Context(), b)
					return err
				})
				zones = append(zones, func() error {
					z := z
					z.RecordTTL = uint32(1000 + 4*round + i)
					_, err := e.UpdateZone(t.Context(), z)
					return err
				})
			}
			won := winners(t, together(brands...), keystore.ErrConflict)
			if len(won) != 1 || must(e.Brand(t.Context(), "acme"))(t).DisplayName != fmt.Sprint(round, won[0]) {
				t.Fatalf("writers %v of the brand won, want one, and its value to stand", won)
			}
			won = winners(t, together(zones...), keystore.ErrConflict)
			if len(won) != 1 || must(e.Zone(t.Context(), zoneName))(t).RecordTTL != uint32(1000+4*round+won[0]) {
				t.Fatalf("writers %v of the zone won, want one, and its value to stand", won)
			}
		}
	},
}
