package custody_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"github.com/dkimzone/dkimzone/internal/custody"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/embedetcd"
	"github.com/dkimzone/dkimzone/internal/envelope"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/mint"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/internal/schema/schemapb"
)

const zoneName = "keys.example.net"

// site is an installation on a real etcd.
type site struct {
	etcd  *clientv3.Client
	store *keystore.Store

	mu    sync.Mutex
	plain map[string]*keypair.KeyPair // by resource name, of all that were made
}

func newSite(t *testing.T, brands ...string) *site {
	t.Helper()
	server, err := embedetcd.Start(t.Context(), embedetcd.Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler), UnsafeNoFsync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	s := &site{etcd: server.Client(), store: keystore.New(server.Client(), 10*time.Second), plain: make(map[string]*keypair.KeyPair)}
	if _, err := s.store.CreateZone(t.Context(), keystore.Zone{Name: zoneName, Apex: schema.Apex{
		NameServers: []schema.NameServer{{Name: "ns1." + zoneName, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.53")}}},
		Mailbox:     "hostmaster." + zoneName, NegativeTTL: 300, RecordTTL: 3600, CreateTime: time.Now(),
	}}); err != nil {
		t.Fatal(err)
	}
	for _, b := range brands {
		if _, err := s.store.CreateBrand(t.Context(), keystore.Brand{Name: b, Zone: zoneName, CreateTime: time.Now()}); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func newKey(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kek.key")
	if err := envelope.CreateKeyFile(path); err != nil {
		t.Fatal(err)
	}
	return "file://" + path
}

func sealerOf(t *testing.T, store *keystore.Store, url string, further ...string) *envelope.Sealer {
	t.Helper()
	keeper, err := envelope.OpenKeeper(t.Context(), url, further...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = keeper.Close() })
	return envelope.NewSealer(keeper, store)
}

// Get implements mint.KeySource.
func (s *site) Get(context.Context, keypair.Algorithm) (*keypair.KeyPair, error) {
	return keypair.Generate(keypair.Ed25519)
}

// provision makes a domain with two keys.
func (s *site) provision(ctx context.Context, sealer *envelope.Sealer, brand, domain string) error {
	pairs := make(mint.Pairs)
	d := keystore.Domain{Brand: brand, Name: dnsname.Domain(domain), Zone: zoneName, CreateTime: time.Now()}
	var steps []rotation.Step
	for _, sel := range []dnsname.Selector{"s1", "s2"} {
		d.Selectors = append(d.Selectors, keystore.Selector{Selector: sel, Algorithm: keypair.Ed25519})
		steps = append(steps, rotation.Step{Kind: rotation.Refill, Selector: sel, Algorithm: keypair.Ed25519})
	}
	change, err := mint.New(s, sealer).Change(ctx, d, steps, mint.Options{Now: time.Now(), Actor: "test", TTL: 3600, Pairs: pairs})
	if err != nil {
		return err
	}
	d, err = s.store.Apply(ctx, change)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range d.Keys {
		s.plain[mint.KeyName(brand, domain, k.ID)] = pairs[keystore.Selector{Selector: k.Selector, Algorithm: k.Algorithm}]
	}
	return nil
}

// fill provisions n domains of each brand, and retains one key of each.
func (s *site) fill(t *testing.T, sealer *envelope.Sealer, n int, brands ...string) {
	t.Helper()
	for _, b := range brands {
		for i := range n {
			if err := s.provision(t.Context(), sealer, b, fmt.Sprintf("%s-%d.example", b, i)); err != nil {
				t.Fatal(err)
			}
		}
		s.retain(t, sealer, b, "old.example")
	}
}

func (s *site) retain(t *testing.T, sealer *envelope.Sealer, brand, domain string) {
	t.Helper()
	pair, err := keypair.Generate(keypair.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	id := mint.NewKeyID()
	name := mint.KeyName(brand, domain, id)
	sealed, err := sealer.Seal(t.Context(), brand, name, pair.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	fingerprint := mint.Fingerprint(pair.Public())
	value, err := proto.Marshal(&schemapb.RetainedKey{Sealed: sealed, Selector: "s1", Algorithm: uint32(keypair.Ed25519), Fingerprint: fingerprint[:], EndTimeMicros: 7})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.etcd.Put(t.Context(), schema.RetainedKey(brand, domain, id), string(value)); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.plain[name] = pair
}

// process is a Custody that runs until it is stopped.
type process struct {
	*custody.Custody

	stop func()
}

func (s *site) newCustody(t *testing.T, name string, store *keystore.Store, takeOver time.Duration, url string, further ...string) *custody.Custody {
	t.Helper()
	return custody.New(custody.Options{
		Store: store, Sealer: sealerOf(t, store, url, further...), Name: name, Now: time.Now, Logger: slog.New(slog.DiscardHandler),
		Poll: 5 * time.Millisecond, TakeOver: takeOver, Settle: 20 * time.Millisecond,
	})
}

func (s *site) start(t *testing.T, name string, takeOver time.Duration, url string, further ...string) process {
	t.Helper()
	p := process{Custody: s.newCustody(t, name, s.store, takeOver, url, further...)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = p.Run(ctx)
	}()
	p.stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(p.stop)
	return p
}

// await waits until the rotation fulfils a condition.
func (s *site) await(t *testing.T, what string, condition func(keystore.KeyEncryptionRotation) bool) keystore.KeyEncryptionRotation {
	t.Helper()
	const limit = 2 * time.Minute
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	watch := s.etcd.Watch(t.Context(), schema.KeyEncryptionRotationKey())
	for {
		r, err := s.store.KeyEncryptionRotation(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if condition(r) {
			return r
		}
		select {
		case <-watch:
		case <-deadline.C:
			t.Fatalf("%s: not within %v; rotation is %+v", what, limit, r)
		}
	}
}

func (s *site) awaitOver(t *testing.T) keystore.KeyEncryptionRotation {
	t.Helper()
	return s.await(t, "the rotation is over", func(r keystore.KeyEncryptionRotation) bool { return r.Revision != 0 && r.Phase.Over() })
}

// wantAll checks that a process with one key-encryption key opens every private key
// there is, that each is the one that was made, and under which data key.
func (s *site) wantAll(t *testing.T, url string, number uint64) {
	t.Helper()
	sealer := sealerOf(t, s.store, url)
	if err := sealer.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	var keys []keystore.SealedKey
	for after, more := "", true; more; {
		var page []keystore.SealedKey
		var err error
		if page, more, err = s.store.SealedKeys(t.Context(), after, 3); err != nil {
			t.Fatal(err)
		}
		for _, k := range page {
			keys, after = append(keys, k), k.Cursor()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(keys) != len(s.plain) {
		t.Errorf("%d private keys are stored, %d were made", len(keys), len(s.plain))
	}
	for _, k := range keys {
		name := mint.KeyName(k.Brand, k.Domain, k.KeyID)
		plain, err := sealer.Open(t.Context(), k.Brand, name, k.Sealed)
		if err != nil {
			t.Fatal(err)
		}
		pair, err := keypair.Unmarshal(plain)
		if err != nil {
			t.Fatal(err)
		}
		if want := s.plain[name]; want == nil || pair.Public().Fingerprint() != want.Public().Fingerprint() {
			t.Fatalf("%s holds another key than was made for it", name)
		}
		if n, _ := binary.Uvarint(k.Sealed[1:]); number != 0 && n != number {
			t.Errorf("%s is sealed under data key %d, want %d", name, n, number)
		}
	}
	for after, more := (keystore.DataKeyInfo{}), true; more; {
		var page []keystore.DataKeyInfo
		var err error
		if page, more, err = s.store.DataKeys(t.Context(), after, 2); err != nil {
			t.Fatal(err)
		}
		for _, k := range page {
			after = k
			if err := sealer.Rewrap(t.Context(), k.Brand, k.N); err != nil {
				t.Errorf("data key %d of %s: %v", k.N, k.Brand, err)
			}
		}
	}
}

func TestRotate(t *testing.T) {
	s := newSite(t, "acme", "beta", "zeta")
	old, next := newKey(t), newKey(t)
	s.fill(t, sealerOf(t, s.store, old), 5, "acme", "zeta")
	p := s.start(t, "dkimd1", time.Minute, next, old)
	st, err := p.Status(t.Context())
	if err != nil || st.Wrapping != old || st.Rotation.Revision != 0 || st.Since.IsZero() {
		t.Fatalf("Status before = %+v, %v; want the old key and no rotation", st, err)
	}
	if _, err := p.Rotate(t.Context(), false, old); !errors.Is(err, custody.ErrOtherKey) {
		t.Errorf("Rotate to a key that is not the first: %v, want %v", err, custody.ErrOtherKey)
	}
	if _, err := p.Rotate(t.Context(), false, next); err != nil {
		t.Fatal(err)
	}
	r := s.awaitOver(t)
	if r.Phase != keystore.PhaseDone || r.DataKeysWrapped != 2 || r.Failures != 0 || r.Error != "" || r.Label != next || r.Worker != "dkimd1" {
		t.Errorf("rotation: %+v", r)
	}
	s.wantAll(t, next, 1)
	if err := sealerOf(t, s.store, old).Check(t.Context()); !errors.Is(err, envelope.ErrWrongKey) {
		t.Errorf("Check with the old key alone: %v, want %v", err, envelope.ErrWrongKey)
	}

	// New data keys, with the same key-encryption key.
	if _, err := p.Rotate(t.Context(), true, ""); err != nil {
		t.Fatal(err)
	}
	r = s.awaitOver(t)
	if r.Phase != keystore.PhaseDone || r.DataKeysWrapped != 2 || r.DataKeysMade != 2 || r.PrivateKeysSealed != 22 || r.Failures != 0 {
		t.Errorf("rotation with data keys: %+v", r)
	}
	s.wantAll(t, next, 2)
	if st, err := p.Status(t.Context()); err != nil || st.Wrapping != next || len(st.Keys) != 2 {
		t.Errorf("Status after = %+v, %v", st, err)
	}
}

func TestRotateWhileOneIsRunning(t *testing.T) {
	s := newSite(t, "acme")
	old, next := newKey(t), newKey(t)
	s.fill(t, sealerOf(t, s.store, old), 1, "acme")
	idle := s.newCustody(t, "idle", s.store, time.Minute, next, old) // nothing runs
	begun, err := idle.Rotate(t.Context(), false, "")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := idle.Rotate(t.Context(), false, ""); err != nil || again.Revision != begun.Revision {
		t.Errorf("the same again: %+v, %v; want what is running", again, err)
	}
	if _, err := idle.Rotate(t.Context(), true, ""); !errors.Is(err, custody.ErrRunning) {
		t.Errorf("with data keys: %v, want %v", err, custody.ErrRunning)
	}
	if _, err := s.newCustody(t, "back", s.store, time.Minute, old, next).Rotate(t.Context(), false, ""); !errors.Is(err, custody.ErrRunning) {
		t.Errorf("back to the old key: %v, want %v", err, custody.ErrRunning)
	}
	if _, err := s.newCustody(t, "stranger", s.store, time.Minute, newKey(t)).Rotate(t.Context(), false, ""); err == nil {
		t.Error("a process without the present key began a rotation")
	}
	s.start(t, "dkimd1", time.Minute, next, old)
	s.awaitOver(t)
	if _, err := s.newCustody(t, "stranger", s.store, time.Minute, newKey(t)).Rotate(t.Context(), false, ""); !errors.Is(err, envelope.ErrWrongKey) {
		t.Errorf("Rotate without the present key: %v, want %v", err, envelope.ErrWrongKey)
	}
	s.wantAll(t, next, 1)
}

// mortal is a client whose process ends at a write: before etcd has it, or when
// etcd has it and nobody learns of it.
type mortal struct {
	keystore.Client

	left  atomic.Int64
	after bool
	die   context.CancelFunc
}

func (m *mortal) Txn(ctx context.Context) clientv3.Txn { return &mortalTxn{m.Client.Txn(ctx), m} }

type mortalTxn struct {
	clientv3.Txn

	m *mortal
}

func (t *mortalTxn) If(cs ...clientv3.Cmp) clientv3.Txn   { t.Txn = t.Txn.If(cs...); return t }
func (t *mortalTxn) Then(ops ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Then(ops...); return t }
func (t *mortalTxn) Else(ops ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Else(ops...); return t }

func (t *mortalTxn) Commit() (*clientv3.TxnResponse, error) {
	switch left := t.m.left.Add(-1); {
	case left > 0:
		return t.Txn.Commit()
	case left == 0 && t.m.after:
		if _, err := t.Txn.Commit(); err != nil {
			return nil, err
		}
	}
	t.m.die()
	return nil, context.Canceled
}

// A process that ends at any write leaves a rotation that another one completes.
func TestCrashAtEveryWrite(t *testing.T) {
	s := newSite(t, "acme", "beta")
	keys := []string{newKey(t), newKey(t)}
	s.fill(t, sealerOf(t, s.store, keys[0]), 2, "acme", "beta")
	number := uint64(1)
	for _, after := range []bool{false, true} {
		died := true
		for n := int64(1); died; n++ {
			old, next := keys[0], keys[1]
			ctx, cancel := context.WithCancel(t.Context())
			m := &mortal{Client: s.etcd, after: after, die: cancel}
			m.left.Store(1 << 40)
			victim := s.newCustody(t, "victim", keystore.New(m, 10*time.Second), time.Minute, next, old)
			if _, err := victim.Rotate(ctx, true, ""); err != nil {
				t.Fatal(err)
			}
			m.left.Store(n)
			ended := make(chan struct{})
			go func() { defer close(ended); _ = victim.Run(ctx) }()
			over := func(r keystore.KeyEncryptionRotation) bool { return r.Phase.Over() }
			waiting, stop := context.WithCancel(t.Context())
			go func() {
				defer stop()
				s.await(t, "end or death", func(r keystore.KeyEncryptionRotation) bool { return over(r) || ctx.Err() != nil })
			}()
			select {
			case <-ended:
			case <-waiting.Done():
			}
			died = ctx.Err() != nil
			cancel()
			<-ended

			heir := s.start(t, "heir", 0, next, old)
			r := s.awaitOver(t)
			heir.stop()
			<-waiting.Done()
			number++
			if r.Phase != keystore.PhaseDone || r.Failures != 0 {
				t.Fatalf("death at write %d (written: %t): %+v", n, after, r)
			}
			s.wantAll(t, next, number)
			keys[0], keys[1] = next, old
			for _, b := range []string{"acme", "beta"} { // or each round would have more to do than the last
				if _, err := s.etcd.Delete(t.Context(), schema.DataKeyKey(b, 1), clientv3.WithRange(schema.DataKeyKey(b, uint32(number)))); err != nil {
					t.Fatal(err)
				}
			}
			if n > 200 {
				t.Fatal("the rotation takes more than 200 writes")
			}
			if n == 1 && !died {
				t.Fatal("nothing died, so that the test says nothing")
			}
		}
	}
	t.Logf("%d rotations", number-1)
	if number < 20 {
		t.Errorf("%d rotations: too few writes for a test that says something", number-1)
	}
}

// Two processes work on the same rotations, each taking over all the time, while
// domains are provisioned and deleted.
func TestRotateBesideWork(t *testing.T) {
	s := newSite(t, "acme", "beta", "gamma")
	keys := []string{newKey(t), newKey(t)}
	work := []*envelope.Sealer{sealerOf(t, s.store, keys[0], keys[1]), sealerOf(t, s.store, keys[1], keys[0])}
	s.fill(t, work[0], 3, "acme")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var workers sync.WaitGroup
	var made atomic.Int64
	for i, sealer := range work {
		workers.Go(func() {
			for j := 0; ctx.Err() == nil; j++ {
				brand := []string{"acme", "beta", "gamma"}[j%3]
				domain := fmt.Sprintf("w%d-%d.example", i, j)
				if err := s.provision(t.Context(), sealer, brand, domain); err != nil {
					t.Errorf("provision beside a rotation: %v", err)
					return
				}
				made.Add(1)
				if j%4 != 0 {
					continue
				}
				d, err := s.store.Domain(t.Context(), brand, dnsname.Domain(domain))
				if err == nil {
					_, err = s.store.DeleteDomain(t.Context(), d, time.Now())
				}
				if err != nil {
					t.Errorf("delete beside a rotation: %v", err)
				}
				s.forget(mint.KeyName(brand, domain, ""))
			}
		})
	}
	for round := range 4 {
		next, old := keys[(round+1)%2], keys[round%2]
		a := s.start(t, "dkimd1", 0, next, old)
		b := s.start(t, "dkimd2", 0, next, old)
		if _, err := a.Rotate(t.Context(), round%2 == 1, next); err != nil {
			t.Fatal(err)
		}
		// On a busy machine each may take over before the other has done a step.
		alone := time.AfterFunc(5*time.Second, b.stop)
		r := s.awaitOver(t)
		alone.Stop()
		if r.Phase != keystore.PhaseDone || r.Failures != 0 {
			t.Errorf("round %d: %+v", round, r)
		}
		a.stop()
		b.stop()
	}
	stop()
	workers.Wait()
	if made.Load() < 8 {
		t.Errorf("%d domains were provisioned meanwhile: too few to say something", made.Load())
	}
	s.wantAll(t, keys[0], 0)
}

// forget drops what is known of keys whose names begin so.
func (s *site) forget(prefix string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.plain {
		if strings.HasPrefix(name, prefix) {
			delete(s.plain, name)
		}
	}
}

// A process that has not the new key leaves the rotation to others.
func TestWithoutTheNewKey(t *testing.T) {
	s := newSite(t, "acme")
	old, next := newKey(t), newKey(t)
	bare := s.start(t, "bare", 0, old)
	s.fill(t, sealerOf(t, s.store, old), 1, "acme")
	if _, err := s.newCustody(t, "idle", s.store, time.Minute, next, old).Rotate(t.Context(), true, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := bare.Status(t.Context()); !errors.Is(err, envelope.ErrWrongKey) {
		t.Errorf("Status without the new key: %v, want %v", err, envelope.ErrWrongKey)
	}
	if r, err := s.store.KeyEncryptionRotation(t.Context()); err != nil || r.Worker != "" {
		t.Errorf("rotation is worked on by %q, %v; want nobody", r.Worker, err)
	}
	s.start(t, "dkimd2", time.Minute, next, old)
	if r := s.awaitOver(t); r.Phase != keystore.PhaseDone || r.Worker != "dkimd2" {
		t.Errorf("rotation: %+v", r)
	}
	s.wantAll(t, next, 2)
}

// Keys that cannot be opened are counted and left; the others are done.
func TestKeysThatDoNotOpen(t *testing.T) {
	s := newSite(t, "acme", "lost", "zeta")
	old, next, lost := newKey(t), newKey(t), newKey(t)
	s.fill(t, sealerOf(t, s.store, old), 2, "acme", "lost", "zeta")
	// A data key that was wrapped by a key that is gone.
	other := newSite(t, "lost")
	other.fill(t, sealerOf(t, other.store, lost), 1, "lost")
	wrapped, err := other.store.DataKey(t.Context(), "lost", 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.etcd.Put(t.Context(), schema.DataKeyKey("lost", 1), string(wrapped)); err != nil {
		t.Fatal(err)
	}
	p := s.start(t, "dkimd1", time.Minute, next, old)
	if _, err := p.Rotate(t.Context(), false, ""); err != nil {
		t.Fatal(err)
	}
	r := s.awaitOver(t)
	if r.Phase != keystore.PhaseFailed || r.Failures != 1 || r.DataKeysWrapped != 2 || !strings.Contains(r.Error, "data key 1 of brand lost") {
		t.Errorf("rotation: %+v; want one failure", r)
	}
	s.forget("brands/lost/")
	for _, brand := range []string{"acme", "zeta"} {
		if err := sealerOf(t, s.store, next).Rewrap(t.Context(), brand, 1); err != nil {
			t.Errorf("data key of %s: %v", brand, err)
		}
	}
	if got, err := s.store.DataKey(t.Context(), "lost", 1); err != nil || string(got) != string(wrapped) {
		t.Errorf("the data key that does not open was changed (%v)", err)
	}
}

func TestPrivateKey(t *testing.T) {
	s := newSite(t, "acme")
	kek := newKey(t)
	s.fill(t, sealerOf(t, s.store, kek), 1, "acme")
	c := s.newCustody(t, "dkimd1", s.store, time.Minute, kek)
	d, err := s.store.Domain(t.Context(), "acme", "acme-0.example")
	if err != nil {
		t.Fatal(err)
	}
	id := d.Keys[0].ID
	if pair, err := c.PrivateKey(t.Context(), "acme", d.Name, id); !errors.Is(err, custody.ErrExportOff) || pair != nil {
		t.Errorf("PrivateKey while it is off: %v, %v; want %v", pair, err, custody.ErrExportOff)
	}
	c.KeyExport = true
	pair, err := c.PrivateKey(t.Context(), "acme", d.Name, id)
	if err != nil || mint.Fingerprint(pair.Public()) != d.Keys[0].Fingerprint {
		t.Errorf("PrivateKey = %v, %v; want the key", pair, err)
	}
	if _, err := c.PrivateKey(t.Context(), "acme", d.Name, "missing"); !errors.Is(err, keystore.ErrKeyNotFound) {
		t.Errorf("PrivateKey of none: %v, want %v", err, keystore.ErrKeyNotFound)
	}
}
