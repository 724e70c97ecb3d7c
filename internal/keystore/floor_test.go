package keystore_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/keystore/keystoretest"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// Whatever is done, and however far the members lag behind that answer reads
// alone: calls that read so do, answer and refuse exactly what those do of whose
// reads each asks a majority.
func TestLaggingMembersChangeNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sure := keystoretest.NewFake()
		lagging := &keystoretest.Lagging{Client: keystoretest.NewFake()}
		lagging.Behind = func() int64 { return rapid.Int64Range(0, 20).Draw(t, "behind") }
		// For what others do meanwhile, at members that do not lag.
		stores := []*keystore.Store{keystore.New(sure, time.Minute), keystore.New(lagging, time.Minute)}
		both := func(what string, act func(s *keystore.Store) (any, error)) {
			var answers [2]string
			for i, s := range stores {
				v, err := act(s)
				// Of several selectors that are refused any one is told.
				if claim, ok := errors.AsType[*keystore.ClaimError](err); ok {
					err = fmt.Errorf("claim: %d", claim.Reason)
				}
				answers[i] = fmt.Sprintf("%+v, %v", v, err)
			}
			if diff := cmp.Diff(answers[0], answers[1]); diff != "" {
				t.Fatalf("%s (-sure +lagging):\n%s", what, diff)
			}
		}
		background := context.Background()
		apex := schema.Apex{NameServers: []schema.NameServer{{Name: "ns1.example.org"}}}
		both("zone", func(s *keystore.Store) (any, error) {
			return s.CreateZone(background, keystore.Zone{Name: zone, Apex: apex})
		})
		keys := 0
		provision := func(t *rapid.T) {
			brand, name := rapid.SampledFrom(brands).Draw(t, "brand"), rapid.SampledFrom(names).Draw(t, "name")
			sels := rapid.SliceOfNDistinct(rapid.SampledFrom(selectors), 1, 2, rapid.ID[dnsname.Selector]).Draw(t, "selectors")
			takeOver := rapid.Bool().Draw(t, "take over")
			rival := rapid.SampledFrom([]string{"", "", brands[0], brands[1]}).Draw(t, "rival")
			keys++
			both("provision", func(s *keystore.Store) (any, error) {
				// Between what is looked at and the change: what a rival does before
				// that a call may see or not.
				return provision(keystore.WithFloor(background), s, brand, name, sels, takeOver, keys, func() {
					if rival != "" {
						_, _ = s.Apply(background, newDomain(rival, name, sels[:1], -keys))
					}
				})
			})
		}
		t.Repeat(map[string]func(*rapid.T){
			"provision": provision,
			"brand": func(t *rapid.T) {
				b := keystore.Brand{Name: rapid.SampledFrom(brands).Draw(t, "brand"), Zone: zone, MaxDomains: rapid.Int64Range(0, 2).Draw(t, "quota")}
				both("brand", func(s *keystore.Store) (any, error) {
					old, err := s.Brand(background, b.Name)
					if errors.Is(err, keystore.ErrBrandNotFound) {
						return s.CreateBrand(background, b)
					}
					old.MaxDomains = b.MaxDomains
					return s.UpdateBrand(background, old)
				})
			},
			"delete": func(t *rapid.T) {
				brand, name := rapid.SampledFrom(brands).Draw(t, "brand"), rapid.SampledFrom(names).Draw(t, "name")
				both("delete", func(s *keystore.Store) (any, error) {
					d, err := s.Domain(background, brand, name)
					if err != nil {
						return nil, err
					}
					return s.DeleteDomain(background, d, time.Unix(1_800_000_000+int64(keys), 0))
				})
			},
			"delete brand": func(t *rapid.T) {
				name := rapid.SampledFrom(brands).Draw(t, "brand")
				both("delete brand", func(s *keystore.Store) (any, error) {
					b, err := s.Brand(background, name)
					if err != nil {
						return nil, err
					}
					return nil, s.DeleteBrand(background, b)
				})
			},
			"": func(t *rapid.T) {
				if !maps.Equal(sure.Dump(), lagging.Client.(*keystoretest.Fake).Dump()) {
					t.Fatal("the stores differ")
				}
			},
		})
	})
}

// newDomain is the change that makes a domain with the n-th keys.
func newDomain(brand string, name dnsname.Domain, sels []dnsname.Selector, n int) keystore.Change {
	d := keystore.Domain{Brand: brand, Name: name, Zone: zone, UpdateTime: time.Unix(1_800_000_000, 0)}
	c := keystore.Change{Domain: d}
	for i, sel := range sels {
		k := keystore.Key{
			Key:         rotation.Key{ID: fmt.Sprintf("k%d-%d", n, i), Selector: sel, Algorithm: 4, State: rotation.Active, Custody: rotation.Service},
			Fingerprint: [schema.FingerprintLen]byte([]byte(fmt.Sprintf("%0*d", schema.FingerprintLen, 1000*n+i))),
		}
		c.Domain.Keys = append(c.Domain.Keys, k)
		c.Publish = append(c.Publish, keystore.Publication{Key: k, New: true, Sealed: []byte("sealed")})
	}
	return c
}

// provision makes a domain as a call does; meanwhile is called before each try of
// the change.
func provision(ctx context.Context, s *keystore.Store, brand string, name dnsname.Domain, sels []dnsname.Selector, takeOver bool, n int, meanwhile func()) (d keystore.Domain, err error) {
	for range 4 {
		var b keystore.Brand
		if b, err = s.Brand(ctx, brand); err != nil {
			return keystore.Domain{}, err
		}
		if _, err = s.Zone(ctx, b.Zone); err != nil {
			return keystore.Domain{}, err
		}
		if d, err = s.Domain(ctx, brand, name); !errors.Is(err, keystore.ErrDomainNotFound) {
			return d, err
		}
		c := newDomain(brand, name, slices.Clone(sels), n)
		c.TakeOver = takeOver
		c.Look, err = s.Admit(ctx, c.Domain, sels, takeOver)
		if err == nil {
			meanwhile()
			d, err = s.Apply(ctx, c)
		}
		if !errors.Is(err, keystore.ErrConflict) {
			return d, err
		}
	}
	return keystore.Domain{}, keystore.ErrConflict
}
