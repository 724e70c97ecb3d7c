package keystoretest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/internal/schema/schemapb"
)

// quota sets how many domains a brand may have.
func (e *env) quota(t testing.TB, brand string, limit int64) {
	t.Helper()
	b := must(e.Brand(context.Background(), brand))(t)
	b.MaxDomains = limit
	got := must(e.UpdateBrand(context.Background(), b))(t)
	if got.MaxDomains != limit || must(e.Brand(context.Background(), brand))(t).MaxDomains != limit {
		t.Fatalf("the quota is %d, want %d", got.MaxDomains, limit)
	}
}

// wantFull checks that acme takes no further domain, by Admit and by Apply.
func (e *env) wantFull(t testing.TB, limit, count int64) {
	t.Helper()
	const brand = "acme"
	wantEqual(t, "number of domains", must(e.CustomerDomains(context.Background(), brand))(t), count)
	c := newDomain(brand, publicationName(int(keyNumber.Add(1))), "s1")
	for what, err := range map[string]error{
		"Admit": e.unchanged(t, func() error { return e.admit(t, c) }),
		"Apply": e.unchanged(t, func() error { _, err := e.Apply(context.Background(), c); return err }),
	} {
		var quota *keystore.QuotaError
		if !errors.As(err, &quota) {
			t.Fatalf("%s: got error %v, want a QuotaError", what, err)
		}
		wantEqual(t, what, *quota, keystore.QuotaError{Brand: brand, Limit: limit, Count: count})
		if text := quota.Error(); !strings.Contains(text, fmt.Sprint(count)) || !strings.Contains(text, fmt.Sprint(limit)) {
			t.Errorf("%s: error %q", what, text)
		}
	}
}

// customers counts a brand's domains one by one.
func (e *env) customers(t testing.TB, brand string) (n int64) {
	t.Helper()
	domains, more, err := e.Domains(context.Background(), brand, keystore.Cursor{}, 10_000)
	if err != nil || more {
		t.Fatal(more, err)
	}
	for _, d := range domains {
		if d.Kind == rotation.Customer {
			n++
		}
	}
	return n
}

// tallies are the keys that count.
func (e *env) tallies(t testing.TB, brand string) []string {
	t.Helper()
	keys := slices.Sorted(maps.Keys(e.dump(t)))
	return slices.DeleteFunc(keys, func(key string) bool { return !strings.HasPrefix(key, schema.TallyPrefix(brand)) })
}

var quotaTests = map[string]func(*testing.T, *env){
	"quota: holds for new domains only": func(t *testing.T, e *env) {
		e.setup(t, "acme", "other")
		e.quota(t, "acme", 2)
		first := e.provision(t, "acme", "a.example", "s1")
		second := e.provision(t, "acme", "b.example", "s1")
		e.wantFull(t, 2, 2)
		// What is there may change, and other brands are none of its business.
		first = must(e.Apply(t.Context(), addKeys(first, "s2")))(t)
		e.own(t, "acme", rotation.BrandDefault, "s1")
		e.own(t, "acme", rotation.BrandShared, "s1")
		e.provision(t, "other", "c.example", "s1")
		wantEqual(t, "keys that count for a brand without a quota", len(e.tallies(t, "other")), 0)
		// One goes, one comes.
		e.delete(t, second)
		e.provision(t, "acme", "d.example", "s1")
		e.wantFull(t, 2, 2)
		e.delete(t, first)
		e.provision(t, "acme", "a.example", "s1") // the same name counts anew
		e.wantFull(t, 2, 2)
	},

	"quota: counts what is there when it is set": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		e.own(t, "acme", rotation.BrandDefault, "s1")
		e.own(t, "acme", rotation.BrandShared, "s1")
		d := e.provision(t, "acme", "a.example", "s1")
		e.provision(t, "acme", "b.example", "s1")
		wantEqual(t, "number without a quota", must(e.CustomerDomains(t.Context(), "acme"))(t), 0)
		e.quota(t, "acme", 1)
		e.wantFull(t, 1, 2)
		e.delete(t, d)
		e.wantFull(t, 1, 1)
		e.quota(t, "acme", 2)
		e.provision(t, "acme", "c.example", "s1")
		e.wantFull(t, 2, 2)
		// Not counted meanwhile.
		e.quota(t, "acme", 0)
		wantEqual(t, "keys that count without a quota", len(e.tallies(t, "acme")), 0)
		for i := range 5 {
			e.provision(t, "acme", publicationName(i), "s1")
		}
		e.delete(t, must(e.Domain(t.Context(), "acme", "b.example"))(t))
		e.quota(t, "acme", 6)
		e.wantFull(t, 6, 6)
		_, err := e.CustomerDomains(t.Context(), "nobody")
		wantErr(t, err, keystore.ErrBrandNotFound)
	},

	"quota: goes with the brand": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		e.quota(t, "acme", 1)
		e.delete(t, e.provision(t, "acme", "a.example", "s1"))
		if err := e.DeleteBrand(t.Context(), must(e.Brand(t.Context(), "acme"))(t)); err != nil {
			t.Fatal(err)
		}
		wantEqual(t, "keys that count for no brand", len(e.tallies(t, "acme")), 0)
		must(e.CreateBrand(t.Context(), keystore.Brand{Name: "acme", Zone: zoneName, MaxDomains: 1}))(t)
		e.provision(t, "acme", "a.example", "s1")
		e.wantFull(t, 1, 1)
	},

	"quota: a batch fills what is left": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		e.quota(t, "acme", 50)
		there := e.provision(t, "acme", "there.example", "s1")
		changes := append(batchOf("acme", "d%d.example", 100, "s1"), addKeys(there, "s2"))
		done, full := 0, 0
		results := e.ApplyBatch(t.Context(), changes)
		for i, res := range results {
			var quota *keystore.QuotaError
			switch {
			case res.Err == nil:
				done++
				wantEqual(t, "result", res.Domain, must(e.Domain(t.Context(), "acme", changes[i].Domain.Name))(t))
			case errors.As(res.Err, &quota):
				full++
			default:
				t.Fatal(res.Err)
			}
		}
		if done != 50 || full != 51 || results[100].Err != nil {
			t.Fatalf("%d done, %d refused, %v; want 50, 51 and the domain that was there", done, full, results[100].Err)
		}
		e.wantFull(t, 50, 50)
		wantEqual(t, "domains", e.customers(t, "acme"), 50)
	},

	"quota: what a batch makes is counted in its transactions": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		e.quota(t, "acme", 1000)
		must(e.CustomerDomains(t.Context(), "acme"))(t)
		client := &counted{Client: e.client}
		for _, res := range keystore.New(client, storeTimeout).ApplyBatch(t.Context(), batchOf("acme", "d%d.example", 100, "s1")) {
			if res.Err != nil {
				t.Fatal(res.Err)
			}
		}
		// One look at the tally for each transaction.
		if n := client.txns.Load(); n > 14 {
			t.Errorf("%d transactions for 100 domains", n)
		}
		wantEqual(t, "number of domains", must(e.CustomerDomains(t.Context(), "acme"))(t), 100)
	},

	"quota: keys that a restored backup made do not count": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		e.quota(t, "acme", 3)
		e.provision(t, "acme", "a.example", "s1")
		e.provision(t, "acme", "b.example", "s1")
		for key, was := range e.dump(t) {
			if strings.HasPrefix(key, schema.TallyPrefix("acme")) {
				if _, err := e.client.Txn(t.Context()).Then(clientv3.OpDelete(key)).Commit(); err != nil {
					t.Fatal(err)
				}
				if _, err := e.client.Txn(t.Context()).Then(clientv3.OpPut(key, was.Value)).Commit(); err != nil {
					t.Fatal(err)
				}
			}
		}
		e.provision(t, "acme", "c.example", "s1")
		e.wantFull(t, 3, 3)
		// Not even at the same revisions, as may be after a restore.
		for _, key := range []string{schema.TallyMadeKey("acme"), schema.TallyGoneKey("acme")} {
			if _, err := e.client.Txn(t.Context()).Then(clientv3.OpDelete(key)).Commit(); err != nil {
				t.Fatal(err)
			}
		}
		next := e.revision(t) + 1
		value := must(proto.Marshal(&schemapb.Tally{Base: -100, MadeCreateRevision: next, GoneCreateRevision: next}))(t)
		if _, err := e.client.Txn(t.Context()).Then(clientv3.OpPut(schema.TallyMadeKey("acme"), string(value)), clientv3.OpPut(schema.TallyGoneKey("acme"), "")).Commit(); err != nil {
			t.Fatal(err)
		}
		wantEqual(t, "number of domains", must(e.CustomerDomains(t.Context(), "acme"))(t), 3)
		e.wantFull(t, 3, 3)
		// Or only one of them.
		if _, err := e.client.Txn(t.Context()).Then(clientv3.OpDelete(schema.TallyGoneKey("acme"))).Commit(); err != nil {
			t.Fatal(err)
		}
		wantEqual(t, "number of domains", must(e.CustomerDomains(t.Context(), "acme"))(t), 3)
		e.wantFull(t, 3, 3)
	},

	"race: the last place of a quota is taken between look and change": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		e.quota(t, "acme", 2)
		first := e.provision(t, "acme", "a.example", "s1")
		s := e.before(2, func() { e.provision(t, "acme", "b.example", "s1") })
		_, err := s.Apply(t.Context(), newDomain("acme", "c.example", "s1"))
		var quota *keystore.QuotaError
		if !errors.As(err, &quota) || quota.Count != 2 {
			t.Fatalf("got error %v, want a QuotaError", err)
		}
		// A place that becomes free meanwhile is found by those who look again.
		e.delete(t, must(e.Domain(t.Context(), "acme", "b.example"))(t))
		s = e.before(2, func() {
			e.provision(t, "acme", "d.example", "s1")
			e.delete(t, first)
		})
		must(s.Apply(t.Context(), newDomain("acme", "c.example", "s1")))(t)
		e.wantFull(t, 2, 2)
	},

	"race: a quota is set between look and change": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		e.provision(t, "acme", "a.example", "s1")
		s := e.before(2, func() { e.quota(t, "acme", 1) })
		_, err := s.Apply(t.Context(), newDomain("acme", "b.example", "s1"))
		if _, full := errors.AsType[*keystore.QuotaError](err); !full {
			t.Fatalf("got error %v, want a QuotaError", err)
		}
		// A deletion that does not know that domains are counted now.
		e.quota(t, "acme", 0)
		d := must(e.Domain(t.Context(), "acme", "a.example"))(t)
		s = e.before(1, func() {
			e.quota(t, "acme", 1)
			must(e.CustomerDomains(t.Context(), "acme"))(t)
		})
		_, err = s.DeleteDomain(t.Context(), d, now)
		wantErr(t, err, keystore.ErrConflict)
		e.delete(t, d)
		wantEqual(t, "number of domains", must(e.CustomerDomains(t.Context(), "acme"))(t), 0)
	},

	"race: domains go while they are counted": func(t *testing.T, e *env) {
		for n := int64(1); n <= 4; n++ { // before each transaction of the count
			brand := fmt.Sprintf("b%d", n)
			e.setup(t, brand)
			for i := range 3 {
				e.provision(t, brand, publicationName(int(n)*10+i), "s1")
			}
			e.quota(t, brand, 5)
			s := e.before(n, func() { e.delete(t, must(e.Domain(t.Context(), brand, publicationName(int(n)*10)))(t)) })
			if got := must(s.CustomerDomains(t.Context(), brand))(t); got != 2 && n < 4 {
				t.Errorf("before transaction %d: %d domains, want 2", n, got)
			}
			wantEqual(t, "number of domains", must(e.CustomerDomains(t.Context(), brand))(t), e.customers(t, brand))
		}
	},

	"race: nobody passes a quota": func(t *testing.T, e *env) {
		const limit = 60
		e.setup(t, "acme")
		e.quota(t, "acme", limit)
		for i := range 10 {
			e.provision(t, "acme", publicationName(i), "s1")
		}
		// Each writer has a Store of its own, as processes have.
		var number, refused atomic.Int64
		var calls []func() error
		note := func(err error) error {
			if _, full := errors.AsType[*keystore.QuotaError](err); full {
				refused.Add(1)
				return nil
			}
			return err
		}
		for range 8 {
			s := keystore.New(e.client, storeTimeout)
			calls = append(calls, func() error {
				var errs []error
				for range 10 {
					_, err := s.Apply(context.Background(), newDomain("acme", publicationName(int(100+number.Add(1))), "s1"))
					errs = append(errs, note(err))
				}
				return errors.Join(errs...)
			})
		}
		for w := range 3 {
			s := keystore.New(e.client, storeTimeout)
			calls = append(calls, func() error {
				var errs []error
				for _, res := range s.ApplyBatch(context.Background(), batchOf("acme", fmt.Sprintf("d%%d.batch%d.example", w), 20, "s1")) {
					errs = append(errs, note(res.Err))
				}
				return errors.Join(errs...)
			})
		}
		calls = append(calls, func() error {
			var errs []error
			for i := range 10 {
				d, err := e.Domain(context.Background(), "acme", publicationName(i))
				if err == nil {
					_, err = e.DeleteDomain(context.Background(), d, now)
				}
				errs = append(errs, err)
			}
			return errors.Join(errs...)
		})
		for i, err := range together(calls...) {
			if err != nil {
				t.Errorf("writer %d: %v", i, err)
			}
		}
		// 140 wanted to come and 10 went. How many came before those went is
		// left to chance; that the number was never passed shows in history.
		n := e.customers(t, "acme")
		if n > limit || n < limit-10 || refused.Load() != 140-n {
			t.Errorf("%d domains, %d refused", n, refused.Load())
		}
		wantEqual(t, "number of domains", must(e.CustomerDomains(t.Context(), "acme"))(t), n)
		for revision := e.revision(t); ; revision-- {
			resp, err := e.client.Get(t.Context(), schema.DomainPrefix("acme"), clientv3.WithPrefix(), clientv3.WithCountOnly(), clientv3.WithRev(revision))
			if err != nil {
				t.Fatal(err)
			}
			if resp.Count > limit {
				t.Fatalf("%d domains at revision %d", resp.Count, revision)
			}
			if resp.Count <= 10 {
				break
			}
		}
		for i := n; i < limit; i++ {
			e.provision(t, "acme", publicationName(int(100+number.Add(1))), "s1")
		}
		e.wantFull(t, limit, limit)
	},
}
