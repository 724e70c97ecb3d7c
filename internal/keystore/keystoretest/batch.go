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

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// counted is a Client that counts transactions and may fail some, before or
// after they happen.
type counted struct {
	Client

	txns atomic.Int64
	fail func(n int64) (before, after error)
}

func (c *counted) Txn(ctx context.Context) clientv3.Txn {
	t := &countedTxn{Txn: c.Client.Txn(ctx)}
	n := c.txns.Add(1)
	if c.fail != nil {
		t.before, t.after = c.fail(n)
	}
	return t
}

type countedTxn struct {
	clientv3.Txn

	before, after error
}

func (t *countedTxn) If(cs ...clientv3.Cmp) clientv3.Txn   { t.Txn = t.Txn.If(cs...); return t }
func (t *countedTxn) Then(ops ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Then(ops...); return t }
func (t *countedTxn) Else(ops ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Else(ops...); return t }

func (t *countedTxn) Commit() (*clientv3.TxnResponse, error) {
	if t.before != nil {
		return nil, t.before
	}
	resp, err := t.Txn.Commit()
	return resp, errors.Join(err, t.after)
}

// batchOf is changes that make n domains, named after format, with a key in each selector.
func batchOf(brand, format string, n int, selectors ...dnsname.Selector) []keystore.Change {
	changes := make([]keystore.Change, n)
	for i := range changes {
		changes[i] = newDomain(brand, dnsname.Domain(fmt.Sprintf(format, i)), selectors...)
	}
	return changes
}

// wantWhole checks that each change is either whole in the store, if its result
// has no error, or not at all, and that nothing else is there.
func (e *env) wantWhole(t testing.TB, changes []keystore.Change, results []keystore.Result) {
	t.Helper()
	wantEqual(t, "number of results", len(results), len(changes))
	there, _ := e.snapshot(t, "")
	for i, c := range changes {
		if results[i].Err == nil {
			wantEqual(t, "stored domain", results[i].Domain, there[c.Domain.Brand+"/"+string(c.Domain.Name)])
		}
	}
	e.wantConsistent(t)
}

// wantConsistent checks that the domains that are there have all that is theirs,
// and that there is nothing else.
func (e *env) wantConsistent(t testing.TB) {
	t.Helper()
	all, claimed := e.dump(t), e.claimed(t)
	var apex int64
	domains := make(map[string]keystore.Domain)
	if _, err := e.DomainSnapshot(context.Background(), "", func(d keystore.Domain) error {
		if d.Zone == zoneName {
			domains[string(d.Name)] = d
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	records, fingerprints, sealed := 0, 0, 0
	for name, d := range domains {
		apex = max(apex, d.Revision)
		wantEqual(t, "claim of "+name, claimed[string(d.HostLabel)], "live")
		for _, k := range d.Keys {
			owner := must(dnsname.RelativeOwnerName(k.Selector, d.HostLabel))(t)
			if _, ok := all[schema.RecordKey(string(zoneName), owner)]; !ok {
				t.Fatalf("selector %s of %s has no record", k.Selector, name)
			}
			got := all[schema.FingerprintKey(string(zoneName), k.Fingerprint[:])].Value
			wantEqual(t, "name of the fingerprint", got, string(k.Selector)+"."+name)
			records++
		}
	}
	for key := range all {
		switch {
		case strings.HasPrefix(key, schema.RecordPrefix(string(zoneName))):
			records--
		case strings.HasPrefix(key, schema.FingerprintPrefix(string(zoneName))):
			fingerprints++
		case strings.HasPrefix(key, schema.Root+"priv/keys/"):
			sealed++
		}
	}
	if records != 0 || fingerprints != sealed {
		t.Fatalf("%d more keys than records, %d fingerprints, %d private halves", records, fingerprints, sealed)
	}
	if serial := all[schema.ApexKey(string(zoneName))].ModRevision; serial < apex {
		t.Fatalf("the apex stands at %d, a domain at %d", serial, apex)
	}
}

var batchTests = map[string]func(*testing.T, *env){
	"batch: many domains in few transactions": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		changes := batchOf("acme", "d%d.example", 200, "s1", "s2")
		client := &counted{Client: e.client}
		results := keystore.New(client, storeTimeout).ApplyBatch(t.Context(), changes)
		for i, res := range results {
			if res.Err != nil || res.Domain.Name != changes[i].Domain.Name {
				t.Fatalf("result %d: %+v", i, res)
			}
		}
		if n := client.txns.Load(); n > 20 {
			t.Errorf("%d transactions for %d domains", n, len(changes))
		}
		e.wantWhole(t, changes, results)

		// Further keys of domains that are there.
		names := make([]dnsname.Domain, 0, len(changes)+1)
		for _, c := range changes {
			names = append(names, c.Domain.Name)
		}
		there := must(e.DomainsOf(t.Context(), "acme", append(names, "none.example")))(t)
		wantEqual(t, "domain that is not there", there[len(names)], keystore.Domain{})
		for i := range changes {
			wantEqual(t, "domain as read with others", there[i], results[i].Domain)
			changes[i] = addKeys(there[i], "s3")
		}
		client.txns.Store(0)
		results = keystore.New(client, storeTimeout).ApplyBatch(t.Context(), changes)
		if n := client.txns.Load(); n > 10 || results[199].Err != nil {
			t.Errorf("%d transactions for %d keys, %v", n, len(changes), results[199].Err)
		}
		e.wantWhole(t, changes, results)
		if n := len(e.ApplyBatch(t.Context(), nil)); n != 0 {
			t.Errorf("%d results of no change", n)
		}
	},

	"batch: what is refused is refused as by itself and hinders nothing": func(t *testing.T, e *env) {
		e.setup(t, "acme", "other")
		taken := e.provision(t, "other", "taken.example", "s1")
		e.delete(t, e.provision(t, "other", "reserved.example", "s1"))
		e.provision(t, "other", "x.y.com", "sel")
		old := e.provision(t, "acme", "old.example", "s1")
		mine := e.provision(t, "acme", "mine.example", "s1")
		e.delete(t, mine)

		changes := batchOf("acme", "d%d.example", 60, "s1")
		same := newDomain("acme", "same.example", "s1")
		same.Publish[0].Key.Fingerprint, same.Domain.Keys[0].Fingerprint = taken.Keys[0].Fingerprint, taken.Keys[0].Fingerprint
		twice := newDomain("acme", "twice.example", "s1")
		twice.Publish[0].Key.Fingerprint, twice.Domain.Keys[0].Fingerprint = changes[7].Domain.Keys[0].Fingerprint, changes[7].Domain.Keys[0].Fingerprint
		stale := addKeys(old, "s2")
		stale.Domain.Revision--
		elsewhere := newDomain("acme", "elsewhere.example", "s1")
		elsewhere.Domain.Zone = "none.example"
		bad := []keystore.Change{
			newDomain("acme", "taken.example", "s1"), newDomain("acme", "reserved.example", "s1"), newDomain("acme", "y.com", "sel-x"),
			newDomain("acme", "long.example", dnsname.Selector(strings.Repeat("s", 63))), same, twice, stale, elsewhere,
		}
		want := []keystore.ClaimReason{
			keystore.ClaimedByOtherBrand, keystore.ReservedForBrand, keystore.SelectorTaken, keystore.SelectorDoesNotFit,
			keystore.PublicKeyUsedElsewhere, keystore.PublicKeyUsedElsewhere, 0, 0,
		}
		at := make(map[int]int)
		for n, c := range bad { // spread over the batch
			i := 10 + 6*n
			changes = slices.Insert(changes, i, c)
			at[i] = n
		}
		changes = append(changes, newDomain("acme", "mine.example", "s1"), newDomain("acme", "z.com", "sel-x"))
		results := e.ApplyBatch(t.Context(), changes)
		for i, res := range results {
			switch n, isBad := at[i]; {
			case !isBad && res.Err != nil:
				t.Errorf("%s: %v", changes[i].Domain.Name, res.Err)
			case isBad && want[n] == 0:
				wantErr(t, res.Err, keystore.ErrConflict)
			case isBad:
				wantClaim(t, res.Err, want[n])
			}
		}
		e.wantWhole(t, changes, results)
	},

	"batch: of many with one key the first has it": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		there := e.provision(t, "acme", "there.example", "sel")
		changes := batchOf("acme", "d%d.example", 300, "s1")
		same := func(i int, c keystore.Change) {
			k := &c.Domain.Keys[len(c.Domain.Keys)-1]
			k.Fingerprint = changes[i].Publish[0].Key.Fingerprint
			c.Publish[0].Key.Fingerprint = k.Fingerprint
			changes = append(changes, c)
		}
		// Those that share it are far apart, and the first of one pair needs a look.
		changes[40] = addKeys(there, "sel-x")
		for i := 20; i < 100; i++ {
			same(i, newDomain("acme", dnsname.Domain(fmt.Sprintf("e%d.example", i)), "s1"))
		}
		results := e.ApplyBatch(t.Context(), changes)
		for i, res := range results {
			if i >= 300 {
				wantClaim(t, res.Err, keystore.PublicKeyUsedElsewhere)
			} else if res.Err != nil {
				t.Errorf("%s: %v", changes[i].Domain.Name, res.Err)
			}
		}
		e.wantWhole(t, changes, results)
	},

	"batch: domains that look alike": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		changes := []keystore.Change{
			newDomain("acme", "a-b.com", "s1"), newDomain("acme", "a.b.com", "s1"),
			newDomain("acme", "y.com", "sel-x"), newDomain("acme", "x.y.com", "sel"), newDomain("acme", "twin.example", "s1"), newDomain("acme", "twin.example", "s2"),
		}
		results := e.ApplyBatch(t.Context(), changes)
		for _, res := range results[:5] {
			if res.Err != nil {
				t.Fatal(res.Err)
			}
		}
		wantErr(t, results[5].Err, keystore.ErrConflict)
		wantEqual(t, "label of the first", results[0].Domain.HostLabel, "a-b-com")
		wantEqual(t, "label of the second", results[1].Domain.HostLabel, hashed("a.b.com"))
		wantEqual(t, "label of x.y.com", results[3].Domain.HostLabel, hashed("x.y.com"))
		e.wantWhole(t, changes, results)
	},

	"batch: brand or zone not there": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		changes := batchOf("nobody", "d%d.example", 3, "s1")
		err := e.unchanged(t, func() error { return e.ApplyBatch(t.Context(), changes)[2].Err })
		wantErr(t, err, keystore.ErrBrandNotFound)

		// The brand goes between look and change.
		changes = batchOf("acme", "d%d.example", 10, "s1") // one transaction
		results := e.before(1, func() {
			if err := e.DeleteBrand(t.Context(), must(e.Brand(t.Context(), "acme"))(t)); err != nil {
				t.Error(err)
			}
		}).ApplyBatch(t.Context(), changes)
		for _, res := range results {
			wantErr(t, res.Err, keystore.ErrBrandNotFound)
		}
		e.wantConsistent(t)
	},

	"batch: transactions that fail leave whole domains": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		for n := int64(1); n <= 4; n++ {
			changes := batchOf("acme", fmt.Sprintf("r%d-%%d.example", n), 120, "s1", "s2")
			client := &counted{Client: e.client, fail: func(txn int64) (before, after error) {
				switch {
				case txn == n:
					return context.DeadlineExceeded, nil
				case txn == n+1: // done, and nobody is told
					return nil, context.DeadlineExceeded
				}
				return nil, nil
			}}
			results := keystore.New(client, storeTimeout).ApplyBatch(t.Context(), changes)
			for _, res := range results {
				if res.Err != nil {
					wantErr(t, res.Err, keystore.ErrUnavailable)
				}
			}
			e.wantWhole(t, changes, results)
			// Those that did not say so may be there. Again: all are.
			names := make([]dnsname.Domain, len(changes))
			for i, c := range changes {
				names[i] = c.Domain.Name
			}
			there := must(e.DomainsOf(t.Context(), "acme", names))(t)
			changes = slices.DeleteFunc(changes, func(c keystore.Change) bool {
				return slices.ContainsFunc(there, func(d keystore.Domain) bool { return d.Name == c.Domain.Name })
			})
			for _, res := range e.ApplyBatch(t.Context(), changes) {
				if res.Err != nil {
					t.Fatal(res.Err)
				}
			}
			e.wantConsistent(t)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for _, res := range e.ApplyBatch(ctx, batchOf("acme", "c%d.example", 50, "s1")) {
			wantErr(t, res.Err, context.Canceled)
		}
	},

	"batch: batches that want the same": func(t *testing.T, e *env) {
		e.setup(t, "acme", "other")
		for round := range 2 {
			// The same domains in two brands, look-alikes of them, and the same
			// domains twice in one brand.
			a := batchOf("acme", fmt.Sprintf("d%%d-x.r%d.example", round), 30, "s1", "s2")
			b := batchOf("other", fmt.Sprintf("d%%d-x.r%d.example", round), 30, "s1", "s2")
			c := batchOf("other", fmt.Sprintf("d%%d.x.r%d.example", round), 30, "s1-a", "s2")
			d := batchOf("acme", fmt.Sprintf("d%%d-x.r%d.example", round), 30, "s3")
			slices.Reverse(b)
			batches := [][]keystore.Change{a, b, c, d}
			results := make([][]keystore.Result, len(batches))
			var calls []func() error
			for i := range batches {
				calls = append(calls, func() error { results[i] = e.ApplyBatch(t.Context(), batches[i]); return nil })
			}
			together(calls...)
			owner := make(map[dnsname.Domain]string)
			for i, batch := range batches {
				for n, res := range results[i] {
					name := batch[n].Domain.Name
					var claim *keystore.ClaimError
					switch {
					case res.Err == nil && owner[name] != "":
						t.Fatalf("%s is both %s's and %s's", name, owner[name], batch[n].Domain.Brand)
					case res.Err == nil:
						owner[name] = batch[n].Domain.Brand
					case i == 2:
						t.Fatalf("%s: %v", name, res.Err)
					case !errors.Is(res.Err, keystore.ErrConflict) && !errors.As(res.Err, &claim):
						t.Fatal(res.Err)
					}
				}
			}
			if n := len(owner); n != 60 {
				t.Fatalf("%d domains of 60 are somebody's: %v", n, slices.Sorted(maps.Keys(owner)))
			}
			e.wantConsistent(t)
		}
	},
}
