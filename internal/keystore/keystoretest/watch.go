package keystoretest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// errEnough ends a watch from inside.
var errEnough = errors.New("enough")

func (e *env) snapshot(t testing.TB, brand string) (map[string]keystore.Domain, int64) {
	t.Helper()
	all := make(map[string]keystore.Domain)
	revision, err := e.DomainSnapshot(context.Background(), brand, func(d keystore.Domain) error {
		all[d.Brand+"/"+string(d.Name)] = d
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all, revision
}

// collect watches until n events have come.
func (e *env) collect(t testing.TB, brand string, revision int64, n int) []keystore.DomainEvent {
	t.Helper()
	var events []keystore.DomainEvent
	err := e.WatchDomains(context.Background(), brand, revision, func(ev keystore.DomainEvent) error {
		if events = append(events, ev); len(events) == n {
			return errEnough
		}
		return nil
	})
	wantErr(t, err, errEnough)
	return events
}

func (e *env) compact(t testing.TB) (at int64) {
	t.Helper()
	at = e.revision(t)
	must(e.client.Compact(context.Background(), at))(t)
	return at
}

var watchTests = map[string]func(*testing.T, *env){
	"watch: every change once, in order": func(t *testing.T, e *env) {
		e.setup(t, "acme", "other")
		e.provision(t, "acme", "before.dk", "s1")
		state, from := e.snapshot(t, "")
		if len(state) != 1 {
			t.Fatalf("snapshot %v, want one domain", state)
		}

		// Two writers and a watch, all at the same time.
		const each = 15
		writer := func(brand string) func() error {
			return func() error {
				for i := range each {
					name := dnsname.Domain(fmt.Sprintf("d%d.%s.example", i%4, brand))
					d, err := e.Domain(t.Context(), brand, name)
					switch {
					case errors.Is(err, keystore.ErrDomainNotFound):
						_, err = e.Apply(t.Context(), newDomain(brand, name, "s1"))
					case err == nil && i%3 == 0:
						_, err = e.DeleteDomain(t.Context(), d, now)
					case err == nil:
						_, err = e.Apply(t.Context(), addKeys(d, dnsname.Selector(fmt.Sprintf("s%d", i+2))))
					}
					if err != nil {
						return err
					}
				}
				return nil
			}
		}
		var events []keystore.DomainEvent
		errs := together(writer("acme"), writer("other"), func() error {
			events = e.collect(t, "", from, 2*each)
			return nil
		})
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
		last := from
		for _, ev := range events {
			if ev.Domain.Revision <= last {
				t.Fatalf("event of revision %d after one of %d", ev.Domain.Revision, last)
			}
			last = ev.Domain.Revision
			key := ev.Domain.Brand + "/" + string(ev.Domain.Name)
			if !ev.Deleted {
				state[key] = ev.Domain
				continue
			}
			if _, ok := state[key]; !ok {
				t.Fatalf("%s is deleted and was not there", key)
			}
			wantEqual(t, "deleted domain", ev.Domain, keystore.Domain{Brand: ev.Domain.Brand, Name: ev.Domain.Name, Revision: last})
			delete(state, key)
		}
		end, revision := e.snapshot(t, "")
		wantEqual(t, "domains by the watch", state, end)
		if last != revision {
			t.Errorf("last event is of revision %d, the store stands at %d", last, revision)
		}
		// From the middle it goes on as before.
		wantEqual(t, "events again", e.collect(t, "", events[9].Domain.Revision, len(events)-10), events[10:])
	},

	"watch: of one brand": func(t *testing.T, e *env) {
		e.setup(t, "acme", "acm", "acmee")
		all, from := e.snapshot(t, "acme")
		if len(all) != 0 {
			t.Fatalf("snapshot of an empty brand: %v", all)
		}
		for _, brand := range []string{"acm", "acmee", "acme"} {
			e.provision(t, brand, dnsname.Domain(brand+".dk"), "s1")
		}
		if got := e.collect(t, "acme", from, 1); got[0].Domain.Name != "acme.dk" {
			t.Errorf("event of %s, want acme.dk", got[0].Domain.Name)
		}
		all, _ = e.snapshot(t, "acme")
		if _, ok := all["acme/acme.dk"]; !ok || len(all) != 1 {
			t.Errorf("snapshot of acme: %v", all)
		}
	},

	"watch: from a revision that is not known": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		d := e.provision(t, "acme", "spamtrap.dk", "s1")
		from := e.revision(t)
		d = must(e.Apply(t.Context(), addKeys(d, "s2")))(t)
		d = must(e.Apply(t.Context(), addKeys(d, "s3")))(t)
		at := e.compact(t)
		nothing := func(keystore.DomainEvent) error { return errEnough }
		wantErr(t, e.WatchDomains(t.Context(), "", from, nothing), keystore.ErrCompacted)
		wantErr(t, e.WatchDomains(t.Context(), "", at-2, nothing), keystore.ErrCompacted)
		wantErr(t, e.WatchDomains(t.Context(), "", at+1, nothing), keystore.ErrCompacted) // not come to yet

		// From where it was compacted the watch loses nothing.
		must(e.Apply(t.Context(), addKeys(d, "s4")))(t)
		if got := e.collect(t, "", at, 1); len(got[0].Domain.Keys) != 4 {
			t.Errorf("first event after the compaction is of %d keys, want 4", len(got[0].Domain.Keys))
		}
		if got := e.collect(t, "", at-1, 2); len(got[0].Domain.Keys) != 3 || len(got[1].Domain.Keys) != 4 {
			t.Errorf("events are of %d and %d keys, want 3 and 4", len(got[0].Domain.Keys), len(got[1].Domain.Keys))
		}
	},

	"watch: compacted while it lags": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		from := e.revision(t)
		d := e.provision(t, "acme", "spamtrap.dk", "s1")
		s := keystore.New(&lagging{Client: e.client, act: func() {
			d = must(e.Apply(t.Context(), addKeys(d, "s2")))(t)
			e.compact(t)
		}}, storeTimeout)
		err := s.WatchDomains(t.Context(), "", from, func(keystore.DomainEvent) error { return errEnough })
		wantErr(t, err, keystore.ErrCompacted)
	},

	"watch: ends": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		from := e.revision(t)
		e.provision(t, "acme", "spamtrap.dk", "s1")
		ctx, cancel := context.WithCancel(t.Context())
		events := 0
		err := e.WatchDomains(ctx, "", from, func(keystore.DomainEvent) error {
			events++
			cancel()
			return nil
		})
		wantErr(t, err, context.Canceled)
		if events != 1 {
			t.Errorf("%d events, want 1", events)
		}
		err = e.WatchDomains(t.Context(), "", from, func(keystore.DomainEvent) error { return errEnough })
		wantErr(t, err, errEnough)

		must(e.client.Put(t.Context(), schema.DomainKey("acme", "broken.dk"), "\xff"))(t)
		err = e.WatchDomains(t.Context(), "", from+1, func(keystore.DomainEvent) error { return nil })
		wantErr(t, err, schema.ErrCorrupt)
	},

	"snapshot: as of one revision, in pages": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		d := e.provision(t, "acme", "spamtrap.dk", "s1")
		value := e.dump(t)[schema.DomainKey("acme", "spamtrap.dk")].Value
		const n = 2100
		var ops []clientv3.Op
		for i := range n {
			ops = append(ops, clientv3.OpPut(schema.DomainKey("acme", fmt.Sprintf("d%04d.example", i)), value))
			if len(ops) == 100 {
				must(e.client.Txn(t.Context()).Then(ops...).Commit())(t)
				ops = nil
			}
		}
		begin := e.revision(t)
		seen := 0
		revision, err := e.DomainSnapshot(t.Context(), "", func(got keystore.Domain) error {
			if seen++; seen == 1 {
				// While it reads the first page, the last domain goes.
				must(e.DeleteDomain(t.Context(), d, now))(t)
			}
			return nil
		})
		if err != nil || revision != begin || seen != n+1 {
			t.Errorf("snapshot of %d domains at revision %d, %v; want %d at %d", seen, revision, err, n+1, begin)
		}

		_, err = e.DomainSnapshot(t.Context(), "", func(keystore.Domain) error { return errEnough })
		wantErr(t, err, errEnough)

		seen = 0
		_, err = e.DomainSnapshot(t.Context(), "", func(keystore.Domain) error {
			if seen++; seen == 1 {
				must(e.client.Put(t.Context(), schema.Root+"other", ""))(t)
				e.compact(t)
			}
			return nil
		})
		wantErr(t, err, keystore.ErrCompacted)
	},

	"snapshot: a zone as of one revision, in pages": func(t *testing.T, e *env) {
		e.setup(t, "acme", "far@other.example")
		wantErr(t, e.ZoneSnapshot(t.Context(), "none.example", nil, nil), keystore.ErrZoneNotFound)

		d := e.provision(t, "acme", "zzz.dk", "s1", "s2")
		value := e.dump(t)[schema.RecordKey(string(zoneName), "s1-zzz-dk._domainkey")].Value
		const n = 2100
		var ops []clientv3.Op
		for i := range n {
			ops = append(ops, clientv3.OpPut(schema.RecordKey(string(zoneName), fmt.Sprintf("s1-d%04d._domainkey", i)), value))
			if len(ops) == 100 {
				must(e.client.Txn(t.Context()).Then(ops...).Commit())(t)
				ops = nil
			}
		}
		want := must(e.Zone(t.Context(), zoneName))(t)
		// Neither a change elsewhere nor one of its own shows.
		must(e.client.Put(t.Context(), schema.RecordKey("other.example", "s1-x._domainkey"), value))(t)
		at := e.revision(t)
		var names []string
		err := e.ZoneSnapshot(t.Context(), zoneName, func(z keystore.Zone, revision int64) error {
			wantEqual(t, "zone", z, want, allowUnexported)
			wantEqual(t, "revision", revision, at)
			e.delete(t, d)
			return nil
		}, func(relative string, r schema.PublicRecord) error {
			if len(r.PublicKey) == 0 || r.TTL != 3600 {
				t.Errorf("record %v of %s", r, relative)
			}
			names = append(names, relative)
			return nil
		})
		if err != nil || len(names) != n+2 || !slices.IsSorted(names) || names[n+1] != "s2-zzz-dk._domainkey" {
			t.Fatalf("%d records up to %v, %v", len(names), names[max(0, len(names)-1):], err)
		}

		nothing := func(keystore.Zone, int64) error { return nil }
		wantErr(t, e.ZoneSnapshot(t.Context(), zoneName, func(keystore.Zone, int64) error { return errEnough }, nil), errEnough)
		wantErr(t, e.ZoneSnapshot(t.Context(), zoneName, nothing, func(string, schema.PublicRecord) error { return errEnough }), errEnough)
		seen := 0
		wantErr(t, e.ZoneSnapshot(t.Context(), zoneName, nothing, func(string, schema.PublicRecord) error {
			if seen++; seen == 1 {
				must(e.client.Put(t.Context(), schema.Root+"other", ""))(t)
				e.compact(t)
			}
			return nil
		}), keystore.ErrCompacted)
		must(e.client.Put(t.Context(), schema.RecordKey(string(zoneName), "s1-zz._domainkey"), "\xff"))(t)
		wantErr(t, e.ZoneSnapshot(t.Context(), zoneName, nothing, func(string, schema.PublicRecord) error { return nil }), schema.ErrCorrupt)
	},
}

// lagging acts after a watch was asked for and before it begins.
type lagging struct {
	Client

	act func()
}

func (c *lagging) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	c.act()
	return c.Client.Watch(ctx, key, opts...)
}
