package keystoretest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// Client is an etcd that the suite, besides letting a Store work on it, reads,
// damages and compacts. *clientv3.Client and *Fake are ones.
type Client interface {
	clientv3.KV
	Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan
	RequestProgress(ctx context.Context) error
}

// Run checks that a Store on a Client behind the gate, as dkimd has it, keeps its promises. open returns a Client
// that holds nothing; it may be the same one each time, emptied.
func Run(t *testing.T, open func(t *testing.T) Client) {
	t.Helper()
	for _, group := range []map[string]func(*testing.T, *env){
		zoneTests, brandTests, domainTests, claimTests, raceTests, batchTests, watchTests,
		dueTests, historyTests, ownTests, signerTests, disclosureTests, accessTests, quotaTests, signingTests, lagTests,
	} {
		for _, name := range slices.Sorted(maps.Keys(group)) {
			t.Run(name, func(t *testing.T) {
				client := open(t)
				group[name](t, &env{Store: keystore.New(keystore.Gated(client), storeTimeout), client: client})
			})
		}
	}
}

const (
	// storeTimeout is long: a test that waits for it has failed.
	storeTimeout = 30 * time.Second

	zoneName = dnsname.Zone("keys.example.net")
)

// now is when everything happens, as precise as the store keeps it.
var now = time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC)

// env is a Store with the Client it works on.
type env struct {
	*keystore.Store

	client Client
}

// must is for calls that a test does not expect to fail.
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

func wantClaim(t testing.TB, err error, want keystore.ClaimReason) {
	t.Helper()
	var claim *keystore.ClaimError
	if !errors.As(err, &claim) || claim.Reason != want {
		t.Fatalf("got error %v, want a ClaimError of reason %d", err, want)
	}
}

func wantEqual[T any](t testing.TB, what string, got, want T, opts ...cmp.Option) {
	t.Helper()
	if diff := cmp.Diff(want, got, opts...); diff != "" {
		t.Fatalf("%s (-want +got):\n%s", what, diff)
	}
}

var allowUnexported = cmp.AllowUnexported(keystore.Zone{})

// entry is a key's value and when it was written.
type entry struct {
	Value       string
	ModRevision int64
}

// dump is all that the store holds.
func (e *env) dump(t testing.TB) map[string]entry {
	t.Helper()
	resp, err := e.client.Get(context.Background(), schema.Root, clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]entry, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		all[string(kv.Key)] = entry{string(kv.Value), kv.ModRevision}
	}
	return all
}

// unchanged runs call and fails the test if it wrote anything at all.
func (e *env) unchanged(t testing.TB, call func() error) error {
	t.Helper()
	before, revision := e.dump(t), e.revision(t)
	err := call()
	wantEqual(t, "store after a refused change", e.dump(t), before)
	if after := e.revision(t); after != revision {
		t.Fatalf("revision went from %d to %d with a refused change", revision, after)
	}
	return err
}

func (e *env) revision(t testing.TB) int64 {
	t.Helper()
	return must(e.Revision(context.Background()))(t)
}

func zone(name dnsname.Zone) keystore.Zone {
	return keystore.Zone{Name: name, Apex: schema.Apex{
		NameServers: []schema.NameServer{{Name: "ns1.example.org"}}, Mailbox: "hostmaster." + string(name),
		ApexTTL: 86400, Refresh: 3600, Retry: 600, Expire: 1209600, NegativeTTL: 300, RecordTTL: 3600, CreateTime: now,
	}}
}

// setup makes zones and brands: "acme" in zoneName is given as "acme", in
// another zone as "acme@other.example".
func (e *env) setup(t testing.TB, brands ...string) {
	t.Helper()
	for _, b := range brands {
		name, z := b, zoneName
		for i := range b {
			if b[i] == '@' {
				name, z = b[:i], dnsname.Zone(b[i+1:])
			}
		}
		if _, err := e.CreateZone(context.Background(), zone(z)); err != nil && !errors.Is(err, keystore.ErrZoneExists) {
			t.Fatal(err)
		}
		must(e.CreateBrand(context.Background(), keystore.Brand{Name: name, Zone: z, CreateTime: now}))(t)
	}
}

var keyNumber atomic.Int64

// publication is a new key in a selector, unlike any other. It is no real key:
// the store does not look into keys.
func publication(sel dnsname.Selector) keystore.Publication {
	n := keyNumber.Add(1)
	octets := sha256.Sum256(fmt.Append(nil, "public half ", n))
	return keystore.Publication{
		Key: keystore.Key{
			Key: rotation.Key{
				ID: fmt.Sprintf("key%d", n), Selector: sel, Algorithm: keypair.Ed25519,
				State: rotation.Active, Custody: rotation.Service, PrepareTime: now, ActivateTime: now, TTL: 3600,
			},
			Fingerprint: fingerprint(octets[:]),
		},
		Record: schema.PublicRecord{KeyType: dkimrecord.Ed25519, PublicKey: octets[:], TTL: 3600, UpdateTime: now},
		Sealed: fmt.Append(nil, "private half ", n),
		New:    true,
	}
}

func fingerprint(octets []byte) [schema.FingerprintLen]byte {
	sum := sha256.Sum256(octets)
	return [schema.FingerprintLen]byte(sum[:])
}

// newDomain is the change that makes a domain of zoneName with a key in each
// selector.
func newDomain(brand string, name dnsname.Domain, selectors ...dnsname.Selector) keystore.Change {
	d := keystore.Domain{Brand: brand, Name: name, Zone: zoneName, CreateTime: now, UpdateTime: now}
	return addKeys(d, selectors...)
}

// addKeys is the change that gives a domain a key in each of further selectors.
func addKeys(d keystore.Domain, selectors ...dnsname.Selector) keystore.Change {
	c := keystore.Change{Domain: d}
	for _, sel := range selectors {
		p := publication(sel)
		c.Domain.Keys = append(slices.Clip(c.Domain.Keys), p.Key)
		c.Publish = append(c.Publish, p)
	}
	return c
}

// withdraw is the change that takes the key out of a selector.
func withdraw(d keystore.Domain, sel dnsname.Selector) keystore.Change {
	c := keystore.Change{Domain: d}
	c.Domain.Keys = nil
	for _, k := range d.Keys {
		if k.Selector == sel {
			c.Withdraw = append(c.Withdraw, k)
			continue
		}
		c.Domain.Keys = append(c.Domain.Keys, k)
	}
	return c
}

func (e *env) provision(t testing.TB, brand string, name dnsname.Domain, selectors ...dnsname.Selector) keystore.Domain {
	t.Helper()
	c := newDomain(brand, name, selectors...)
	if err := e.admit(t, c); err != nil {
		t.Errorf("Admit of %s: %v", name, err)
	}
	return must(e.Apply(context.Background(), c))(t)
}

func (e *env) delete(t testing.TB, d keystore.Domain) {
	t.Helper()
	must(e.DeleteDomain(context.Background(), d, now))(t)
}

// together runs calls at the same time and returns their errors in order.
func together(calls ...func() error) []error {
	errs := make([]error, len(calls))
	begin := make(chan struct{})
	var wg sync.WaitGroup
	for i, call := range calls {
		wg.Go(func() {
			<-begin
			errs[i] = call()
		})
	}
	close(begin)
	wg.Wait()
	return errs
}

// before returns a Store that runs act just before its n-th transaction, 1 the
// first: what it does then happens between a look and the change that was
// computed from it. Reads of several keys are transactions too.
func (e *env) before(n int64, act func()) *keystore.Store {
	return keystore.New(&interrupted{Client: e.client, left: n, act: act}, storeTimeout)
}

type interrupted struct {
	Client

	left int64
	act  func()
}

func (c *interrupted) Txn(ctx context.Context) clientv3.Txn {
	if atomic.AddInt64(&c.left, -1) == 0 {
		c.act()
	}
	return c.Client.Txn(ctx)
}
