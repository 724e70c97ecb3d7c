package keystoretest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/internal/schema/schemapb"
)

var domainTests = map[string]func(*testing.T, *env){
	"domain: life": func(t *testing.T, e *env) {
		ctx := t.Context()
		e.setup(t, "acme")
		_, err := e.Domain(ctx, "acme", "spamtrap.dk")
		wantErr(t, err, keystore.ErrDomainNotFound)
		empty := e.dump(t)

		c := newDomain("acme", "spamtrap.dk", "selector1", "selector2")
		c.Domain.Selectors = []keystore.Selector{{Selector: "selector1", Algorithm: keypair.Ed25519}, {Selector: "selector2", Algorithm: keypair.Ed25519}}
		c.Domain.Keys[1].State, c.Domain.Keys[1].ActivateTime = rotation.Prepared, time.Time{}
		c.Domain.Keys[1].Testing = true
		made := must(e.Apply(ctx, c))(t)
		want := c.Domain
		want.HostLabel, want.Revision = "spamtrap-dk", e.revision(t)
		wantEqual(t, "domain as made", made, want)
		wantEqual(t, "domain as read", must(e.Domain(ctx, "acme", "spamtrap.dk"))(t), want)
		wantEqual(t, "new keys", added(empty, e.dump(t)), []string{
			schema.FingerprintKey(string(zoneName), made.Keys[0].Fingerprint[:]),
			schema.FingerprintKey(string(zoneName), made.Keys[1].Fingerprint[:]),
			"/dkim/v1/meta/domains/acme/spamtrap.dk",
			"/dkim/v1/meta/due/1772366400/acme/spamtrap.dk",
			"/dkim/v1/meta/labels/keys.example.net/spamtrap-dk",
			"/dkim/v1/priv/keys/acme/spamtrap.dk/" + made.Keys[0].ID,
			"/dkim/v1/priv/keys/acme/spamtrap.dk/" + made.Keys[1].ID,
			"/dkim/v1/pub/keys.example.net/rr/selector1-spamtrap-dk._domainkey",
			"/dkim/v1/pub/keys.example.net/rr/selector2-spamtrap-dk._domainkey",
		}, sortStrings)
		wantEqual(t, "records", must(e.Records(ctx, made))(t), map[dnsname.Selector]schema.PublicRecord{
			"selector1": c.Publish[0].Record, "selector2": c.Publish[1].Record,
		})
		wantEqual(t, "sealed key", must(e.SealedKey(ctx, "acme", "spamtrap.dk", made.Keys[0].ID))(t), c.Publish[0].Sealed)
		_, err = e.SealedKey(ctx, "acme", "spamtrap.dk", "other")
		wantErr(t, err, keystore.ErrKeyNotFound)

		// A second maker, and changes computed from what is no longer there.
		wantErr(t, e.unchanged(t, func() error { _, err := e.Apply(ctx, newDomain("acme", "spamtrap.dk", "s3")); return err }), keystore.ErrConflict)
		changed := must(e.Apply(ctx, addKeys(made, "selector3")))(t)
		if changed.ETag() == made.ETag() || changed.Revision != e.revision(t) {
			t.Errorf("etag %s, revision %d after a change; was %s, %d", changed.ETag(), changed.Revision, made.ETag(), made.Revision)
		}
		wantErr(t, e.unchanged(t, func() error { _, err := e.Apply(ctx, addKeys(made, "selector4")); return err }), keystore.ErrConflict)
		wantErr(t, e.unchanged(t, func() error { _, err := e.Apply(ctx, withdraw(made, "selector1")); return err }), keystore.ErrConflict)
		wantErr(t, e.unchanged(t, func() error { _, err := e.DeleteDomain(ctx, made, now); return err }), keystore.ErrConflict)
		_, err = e.Records(ctx, made)
		wantErr(t, err, keystore.ErrConflict)

		revision := must(e.DeleteDomain(ctx, changed, now))(t)
		if revision != e.revision(t) {
			t.Errorf("deleted at revision %d, store at %d", revision, e.revision(t))
		}
		wantEqual(t, "keys left by the deleted domain", added(empty, e.dump(t)), []string{
			"/dkim/v1/meta/labels/keys.example.net/spamtrap-dk",
		})
		_, err = e.Domain(ctx, "acme", "spamtrap.dk")
		wantErr(t, err, keystore.ErrDomainNotFound)
		_, err = e.DeleteDomain(ctx, changed, now)
		wantErr(t, err, keystore.ErrDomainNotFound)
		wantErr(t, e.unchanged(t, func() error { _, err := e.Apply(ctx, addKeys(changed, "selector5")); return err }), keystore.ErrConflict)
	},

	"domain: records follow changes": func(t *testing.T, e *env) {
		ctx := t.Context()
		e.setup(t, "acme")
		d := e.provision(t, "acme", "spamtrap.dk", "s1", "s2")
		before := must(e.Records(ctx, d))(t)

		// The same key with another TTL: the record changes, nothing else.
		c := keystore.Change{Domain: d, Publish: []keystore.Publication{{Key: d.Keys[0], Record: before["s1"]}}}
		c.Publish[0].Key.TTL, c.Publish[0].Record.TTL = 60, 60
		c.Domain.Keys = []keystore.Key{c.Publish[0].Key, d.Keys[1]}
		size := len(e.dump(t))
		d = must(e.Apply(ctx, c))(t)
		want := map[dnsname.Selector]schema.PublicRecord{"s1": c.Publish[0].Record, "s2": before["s2"]}
		wantEqual(t, "records", must(e.Records(ctx, d))(t), want)
		wantEqual(t, "number of keys", len(e.dump(t)), size)

		gone := d.Keys[0]
		d = must(e.Apply(ctx, withdraw(d, "s1")))(t)
		delete(want, "s1")
		wantEqual(t, "records", must(e.Records(ctx, d))(t), want)
		_, err := e.SealedKey(ctx, "acme", "spamtrap.dk", gone.ID)
		wantErr(t, err, keystore.ErrKeyNotFound)
		wantEqual(t, "number of keys", len(e.dump(t)), size-3)

		d = must(e.Apply(ctx, withdraw(d, "s2")))(t)
		wantEqual(t, "records of a domain without keys", must(e.Records(ctx, d))(t), map[dnsname.Selector]schema.PublicRecord{})

		// A record that is missing is damage, and not an empty answer.
		d = must(e.Apply(ctx, addKeys(d, "s3")))(t)
		must(e.client.Delete(ctx, schema.RecordKey(string(zoneName), "s3-spamtrap-dk._domainkey")))(t)
		_, err = e.Records(ctx, d)
		wantErr(t, err, schema.ErrCorrupt)
	},

	"domain: unknown brand": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		wantErr(t, e.unchanged(t, func() error { _, err := e.Apply(t.Context(), newDomain("other", "spamtrap.dk", "s1")); return err }), keystore.ErrBrandNotFound)
		e.setup(t, "there@other.example")
		wantErr(t, e.unchanged(t, func() error { _, err := e.Apply(t.Context(), newDomain("there", "spamtrap.dk", "s1")); return err }), keystore.ErrConflict)
	},

	"domain: pages": func(t *testing.T, e *env) {
		ctx := t.Context()
		// Brands and domains that are beginnings of one another.
		e.setup(t, "ab", "ab-c", "abc")
		want := map[string]int{"": 10, "ab": 5, "ab-c": 2, "abc": 3}
		for _, name := range []dnsname.Domain{"a.dk", "a.dkx", "a.dk.example", "b.dk", "xn--bcher-kva.example"} {
			e.provision(t, "ab", name, "s1")
		}
		e.provision(t, "ab-c", "c.dk", "s1")
		e.provision(t, "ab-c", "d.dk", "s1")
		for i := range 3 {
			e.provision(t, "abc", dnsname.Domain(fmt.Sprintf("d%d.abc.example", i)), "s1")
		}
		for brand, n := range want {
			all, more, err := e.Domains(ctx, brand, keystore.Cursor{}, 100)
			if err != nil || more || len(all) != n {
				t.Fatalf("brand %q: %d domains, more %t, %v; want all %d", brand, len(all), more, err, n)
			}
			for limit := 1; limit <= n+1; limit++ {
				var got []keystore.Domain
				for more, after := true, (keystore.Cursor{}); more; {
					var page []keystore.Domain
					if page, more, err = e.Domains(ctx, brand, after, limit); err != nil {
						t.Fatal(err)
					}
					if len(page) == 0 || len(page) > limit || more && len(page) != limit {
						t.Fatalf("page of %d domains for limit %d, more %t", len(page), limit, more)
					}
					got = append(got, page...)
					last := page[len(page)-1]
					after = keystore.Cursor{Brand: last.Brand, Domain: last.Name}
				}
				wantEqual(t, fmt.Sprintf("domains of %q by %d", brand, limit), got, all)
			}
		}
		if page, more, err := e.Domains(ctx, "nobody", keystore.Cursor{}, 1); len(page) != 0 || more || err != nil {
			t.Errorf("domains of an unknown brand: %v, %t, %v", page, more, err)
		}
	},

	"domain: one that can be made can be deleted": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		for name, selector := range map[dnsname.Domain]string{"plain.dk": "s%d", "dashed.dk": "a-b-c-%d-e"} {
			d := e.provision(t, "acme", name)
			var refused error
			for i := 0; refused == nil; i++ {
				if i == 200 {
					t.Fatalf("%s has %d keys and takes more", name, i)
				}
				c := addKeys(d, dnsname.Selector(fmt.Sprintf(selector, i)))
				next, err := e.Apply(t.Context(), c)
				if refused = err; err == nil {
					d = next
					continue
				}
				if i < 20 {
					t.Errorf("%s: no more than %d keys: %v", name, i, err)
				}
				wantErr(t, e.unchanged(t, func() error { _, err := e.Apply(t.Context(), c); return err }), keystore.ErrTooManyKeys)
				_, err = e.Admit(t.Context(), d, []dnsname.Selector{c.Publish[0].Key.Selector}, false)
				wantErr(t, err, keystore.ErrTooManyKeys)
			}
			if _, err := e.DeleteDomain(t.Context(), d, now); err != nil {
				t.Errorf("delete %s with %d keys: %v", name, len(d.Keys), err)
			}
		}
		for key := range e.dump(t) {
			if strings.Contains(key, "/rr/") || strings.Contains(key, "/fingerprints/") || strings.Contains(key, "/priv/") {
				t.Errorf("%q is left", key)
			}
		}
	},

	"domain: values that do not decode": func(t *testing.T, e *env) {
		ctx := t.Context()
		e.setup(t, "acme")
		d := e.provision(t, "acme", "spamtrap.dk", "s1")
		damage := func(key string) {
			t.Helper()
			must(e.client.Put(ctx, key, "\x0a\xff"))(t)
		}
		damage(schema.RecordKey(string(zoneName), "s1-spamtrap-dk._domainkey"))
		_, err := e.Records(ctx, d)
		wantErr(t, err, schema.ErrCorrupt)

		damage(schema.LabelKey(string(zoneName), "other-dk"))
		_, err = e.Apply(ctx, newDomain("acme", "other.dk", "s1"))
		wantErr(t, err, schema.ErrCorrupt)

		damage(schema.DomainKey("acme", "spamtrap.dk"))
		_, err = e.Domain(ctx, "acme", "spamtrap.dk")
		wantErr(t, err, schema.ErrCorrupt)
		_, _, err = e.Domains(ctx, "acme", keystore.Cursor{}, 10)
		wantErr(t, err, schema.ErrCorrupt)
		_, err = e.DomainSnapshot(ctx, "acme", func(keystore.Domain) error { return nil })
		wantErr(t, err, schema.ErrCorrupt)

		key := schemapb.Key{Id: "k", Selector: "s", Algorithm: 4, State: 2, Custody: 1, Fingerprint: make([]byte, schema.FingerprintLen)}
		for name, v := range map[string]*schemapb.Domain{
			"algorithm of a selector": {Selectors: []*schemapb.Selector{{Selector: "s", Algorithm: 5}}},
			"no algorithm":            {Keys: []*schemapb.Key{with(&key, func(k *schemapb.Key) { k.Algorithm = 0 })}},
			"algorithm of many bits":  {Keys: []*schemapb.Key{with(&key, func(k *schemapb.Key) { k.Algorithm = 256 + 4 })}},
			"state":                   {Keys: []*schemapb.Key{with(&key, func(k *schemapb.Key) { k.State = 6 })}},
			"state of many bits":      {Keys: []*schemapb.Key{with(&key, func(k *schemapb.Key) { k.State = 256 + 2 })}},
			"custody":                 {Keys: []*schemapb.Key{with(&key, func(k *schemapb.Key) { k.Custody = 0 })}},
			"custody of many bits":    {Keys: []*schemapb.Key{with(&key, func(k *schemapb.Key) { k.Custody = 256 + 1 })}},
			"short fingerprint":       {Keys: []*schemapb.Key{with(&key, func(k *schemapb.Key) { k.Fingerprint = k.Fingerprint[1:] })}},
		} {
			value := must(proto.Marshal(v))(t)
			must(e.client.Put(ctx, schema.DomainKey("acme", "odd.dk"), string(value)))(t)
			if got, err := e.Domain(ctx, "acme", "odd.dk"); !errors.Is(err, schema.ErrCorrupt) || got.Name != "" {
				t.Errorf("%s: got %+v, %v; want %v", name, got, err, schema.ErrCorrupt)
			}
		}
		must(e.client.Put(ctx, schema.DomainPrefix("acme")+"a/b", ""))(t)
		_, _, err = e.Domains(ctx, "", keystore.Cursor{}, 1)
		wantErr(t, err, schema.ErrCorrupt)

		damage(schema.BrandKey("acme"))
		_, err = e.Brand(ctx, "acme")
		wantErr(t, err, schema.ErrCorrupt)
		_, _, err = e.Brands(ctx, "", 10)
		wantErr(t, err, schema.ErrCorrupt)

		damage(schema.ApexKey(string(zoneName)))
		_, err = e.Zone(ctx, zoneName)
		wantErr(t, err, schema.ErrCorrupt)
		_, _, err = e.Zones(ctx, "", 10)
		wantErr(t, err, schema.ErrCorrupt)

		damage(schema.DataKeyPrefix("acme") + "one")
		_, _, err = e.NewestDataKey(ctx, "acme")
		wantErr(t, err, schema.ErrCorrupt)
		_, err = e.AnyDataKeyBrand(ctx)
		wantErr(t, err, schema.ErrCorrupt)
	},

	"calls end with their context": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		d := e.provision(t, "acme", "spamtrap.dk", "s1")
		b, z := must(e.Brand(t.Context(), "acme"))(t), must(e.Zone(t.Context(), zoneName))(t)
		calls := map[string]func(context.Context, *keystore.Store) error{
			"Zone":  func(ctx context.Context, s *keystore.Store) error { _, err := s.Zone(ctx, zoneName); return err },
			"Zones": func(ctx context.Context, s *keystore.Store) error { _, _, err := s.Zones(ctx, "", 10); return err },
			"CreateZone": func(ctx context.Context, s *keystore.Store) error {
				_, err := s.CreateZone(ctx, zone("new.example"))
				return err
			},
			"UpdateZone": func(ctx context.Context, s *keystore.Store) error { _, err := s.UpdateZone(ctx, z); return err },
			"DeleteZone": func(ctx context.Context, s *keystore.Store) error { return s.DeleteZone(ctx, z) },
			"CreateBrand": func(ctx context.Context, s *keystore.Store) error {
				_, err := s.CreateBrand(ctx, keystore.Brand{Name: "new", Zone: zoneName})
				return err
			},
			"UpdateBrand": func(ctx context.Context, s *keystore.Store) error { _, err := s.UpdateBrand(ctx, b); return err },
			"DeleteBrand": func(ctx context.Context, s *keystore.Store) error { return s.DeleteBrand(ctx, b) },
			"Brands":      func(ctx context.Context, s *keystore.Store) error { _, _, err := s.Brands(ctx, "", 10); return err },
			"Apply": func(ctx context.Context, s *keystore.Store) error {
				_, err := s.Apply(ctx, addKeys(d, "s2"))
				return err
			},
			"Apply new": func(ctx context.Context, s *keystore.Store) error {
				_, err := s.Apply(ctx, newDomain("acme", "new.dk", "s1"))
				return err
			},
			"DeleteDomain": func(ctx context.Context, s *keystore.Store) error { _, err := s.DeleteDomain(ctx, d, now); return err },
			"Domains": func(ctx context.Context, s *keystore.Store) error {
				_, _, err := s.Domains(ctx, "", keystore.Cursor{}, 10)
				return err
			},
			"Records": func(ctx context.Context, s *keystore.Store) error { _, err := s.Records(ctx, d); return err },
			"CreateDataKey": func(ctx context.Context, s *keystore.Store) error {
				_, err := s.CreateDataKey(ctx, "acme", 1, []byte("wrapped"), 0)
				return err
			},
			"DomainSnapshot": func(ctx context.Context, s *keystore.Store) error {
				_, err := s.DomainSnapshot(ctx, "", func(keystore.Domain) error { return nil })
				return err
			},
			"WatchDomains": func(ctx context.Context, s *keystore.Store) error {
				return s.WatchDomains(ctx, "", d.Revision, func(keystore.DomainEvent) error { return nil })
			},
		}
		for name, call := range calls {
			cancelled, cancel := context.WithCancel(t.Context())
			cancel()
			if err := e.unchanged(t, func() error { return call(cancelled, e.Store) }); !errors.Is(err, context.Canceled) || errors.Is(err, keystore.ErrUnavailable) {
				t.Errorf("%s, cancelled: %v, want %v", name, err, context.Canceled)
			}
		}
		for name, call := range calls {
			s := keystore.New(silent{e.client}, time.Millisecond)
			if err := e.unchanged(t, func() error { return call(t.Context(), s) }); !errors.Is(err, keystore.ErrUnavailable) {
				t.Errorf("%s, out of time: %v, want %v", name, err, keystore.ErrUnavailable)
			}
		}
	},
}

// with is k with a change.
func with(k *schemapb.Key, change func(*schemapb.Key)) *schemapb.Key {
	changed := proto.CloneOf(k)
	change(changed)
	return changed
}

// sortStrings makes the order of strings irrelevant.
var sortStrings = cmp.Transformer("set", func(s []string) map[string]int {
	set := make(map[string]int)
	for _, v := range s {
		set[v]++
	}
	return set
})

// added returns the keys that are in after and not in before.
func added(before, after map[string]entry) []string {
	var keys []string
	for key := range after {
		if _, ok := before[key]; !ok {
			keys = append(keys, key)
		}
	}
	return keys
}

// silent never answers.
type silent struct{ Client }

func (silent) Get(ctx context.Context, _ string, _ ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (silent) GetStream(ctx context.Context, _ string, _ ...clientv3.OpOption) (clientv3.GetStreamChan, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (silent) Txn(ctx context.Context) clientv3.Txn { return silentTxn{ctx} }

type silentTxn struct{ ctx context.Context }

func (t silentTxn) If(...clientv3.Cmp) clientv3.Txn  { return t }
func (t silentTxn) Then(...clientv3.Op) clientv3.Txn { return t }
func (t silentTxn) Else(...clientv3.Op) clientv3.Txn { return t }

func (t silentTxn) Commit() (*clientv3.TxnResponse, error) {
	<-t.ctx.Done()
	return nil, t.ctx.Err()
}
