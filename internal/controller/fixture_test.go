package controller_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dkimzone/dkimzone/internal/controller"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/keystore/keystoretest"
	"github.com/dkimzone/dkimzone/internal/mint"
	"github.com/dkimzone/dkimzone/internal/prober"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
)

const (
	zoneName = "keys.example.net"
	// poll is long, so that a year of virtual time passes soon.
	poll     = 30 * time.Minute
	testRate = 1000
)

// world is an installation without servers: a store in memory, and a DNS that
// serves what is in it.
type world struct {
	fake  *keystoretest.Fake
	store *keystore.Store
	mint  *mint.Mint
	dns   *fakeDNS
	keys  *fakeKeys
	terms *fakeElections
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{fake: keystoretest.NewFake(), dns: &fakeDNS{aliases: make(map[string]prober.Class)}, keys: &fakeKeys{}}
	w.store = keystore.New(w.fake, time.Minute)
	w.dns.store = w.store
	w.mint = mint.New(w.keys, plainSealer{})
	w.terms = &fakeElections{fake: w.fake, free: make(chan struct{}, 1), hold: make(chan struct{}, 1)}
	w.terms.free <- struct{}{}
	w.terms.hold <- struct{}{}
	_, err := w.store.CreateZone(t.Context(), keystore.Zone{Name: zoneName, Apex: schema.Apex{
		NameServers: []schema.NameServer{{Name: "ns1." + zoneName, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.53")}}},
		Mailbox:     "hostmaster." + zoneName, NegativeTTL: 300, RecordTTL: 3600, CreateTime: time.Now(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.store.CreateBrand(t.Context(), keystore.Brand{Name: "acme", Zone: zoneName, CreateTime: time.Now()}); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) setPolicy(t *testing.T, o rotation.Override) {
	t.Helper()
	b, err := w.store.Brand(t.Context(), "acme")
	if err != nil {
		t.Fatal(err)
	}
	b.Policy = o
	if _, err := w.store.UpdateBrand(t.Context(), b); err != nil {
		t.Fatal(err)
	}
}

// provision makes a domain of two Ed25519 selectors, as the API does.
func (w *world) provision(t *testing.T, name dnsname.Domain) keystore.Domain {
	t.Helper()
	d := keystore.Domain{Brand: "acme", Name: name, Zone: zoneName, CreateTime: time.Now()}
	var fill []rotation.Step
	for _, sel := range []dnsname.Selector{"selector1", "selector2"} {
		d.Selectors = append(d.Selectors, keystore.Selector{Selector: sel, Algorithm: keypair.Ed25519})
		fill = append(fill, rotation.Step{Kind: rotation.Refill, Selector: sel, Algorithm: keypair.Ed25519, Reason: rotation.ReasonEmptySelector})
	}
	change, err := w.mint.Change(t.Context(), d, fill, mint.Options{Now: time.Now(), Actor: "test", TTL: 3600})
	if err != nil {
		t.Fatal(err)
	}
	d, err = w.store.Apply(t.Context(), change)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// start runs a controller until the returned function is called.
func (w *world) start(t *testing.T) (stop func()) {
	t.Helper()
	return w.startWith(t, plainSealer{}, slog.New(slog.DiscardHandler))
}

func (w *world) startWith(t *testing.T, opener controller.Opener, logger *slog.Logger) (stop func()) {
	t.Helper()
	c := controller.New(controller.Options{
		Store: w.store, Mint: w.mint, Opener: opener, Prober: w.dns, Elector: w.terms,
		Now: time.Now, Logger: logger, Workers: 4, Rate: testRate, Poll: poll,
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	}
}

func (w *world) domain(t *testing.T, name dnsname.Domain) keystore.Domain {
	t.Helper()
	d, err := w.store.Domain(t.Context(), "acme", name)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (w *world) status(t *testing.T, name dnsname.Domain) keystore.Status {
	t.Helper()
	st, err := w.store.Status(t.Context(), "acme", name)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// states are those of a domain's keys in order of selector, "selector1 ACTIVE".
func states(d keystore.Domain) string {
	var s []string
	for _, sel := range d.Selectors {
		if k := d.KeyIn(sel.Selector); k != nil {
			s = append(s, fmt.Sprintf("%s %s", sel.Selector, k.State))
		}
	}
	return strings.Join(s, ", ")
}

// fakeDNS serves what is in the store, and the aliases that customers have.
type fakeDNS struct {
	store *keystore.Store

	mu      sync.Mutex
	aliases map[string]prober.Class // by owner; OK unless it is here
	asked   int
	hook    func() // at each question
}

func (f *fakeDNS) set(owner string, c prober.Class) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.aliases[owner] = c
}

func (f *fakeDNS) ask() {
	f.mu.Lock()
	f.asked++
	hook := f.hook
	f.mu.Unlock()
	if hook != nil {
		hook()
	}
}

func (f *fakeDNS) Alias(_ context.Context, q prober.AliasQuestion) prober.AliasReport {
	f.ask()
	f.mu.Lock()
	defer f.mu.Unlock()
	c, ok := f.aliases[q.Owner]
	if !ok {
		c = prober.OK
	}
	r := prober.AliasReport{Class: c, Finding: c.Finding()}
	if r.Finding != rotation.Proven {
		r.Reason = string(c)
	}
	return r
}

func (f *fakeDNS) Served(_ context.Context, zone string, servers []prober.NameServer, owner, want string) prober.ServedReport {
	f.ask()
	r := prober.ServedReport{Finding: rotation.Proven}
	if zone != zoneName || len(servers) != 1 || !strings.HasSuffix(owner, "._domainkey."+zoneName) || !strings.HasPrefix(want, "v=DKIM1; k=ed25519; p=") {
		r.Finding, r.Reason = rotation.Contradicted, "WRONG_QUESTION"
	}
	return r
}

// fakeKeys makes Ed25519 keys, and fails while it is told to.
type fakeKeys struct {
	mu   sync.Mutex
	fail error
}

func (f *fakeKeys) set(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = err
}

func (f *fakeKeys) Get(_ context.Context, a keypair.Algorithm) (*keypair.KeyPair, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return nil, f.fail
	}
	return keypair.Generate(a)
}

// plainSealer writes before what it seals for whom.
type plainSealer struct{}

func (plainSealer) Seal(_ context.Context, brand, name string, plaintext []byte) ([]byte, error) {
	return append([]byte(brand+" "+name+"\n"), plaintext...), nil
}

func (plainSealer) Open(_ context.Context, brand, name string, sealed []byte) ([]byte, error) {
	plaintext, ok := bytes.CutPrefix(sealed, []byte(brand+" "+name+"\n"))
	if !ok {
		return nil, errors.New("sealed for another")
	}
	return bytes.Clone(plaintext), nil
}

// fakeElections lets one campaign at a time win.
type fakeElections struct {
	fake *keystoretest.Fake
	free chan struct{} // holds something while nobody leads
	hold chan struct{} // empty while nobody may win

	mu   sync.Mutex
	last *fakeTerm
	n    int
}

type fakeTerm struct {
	fence *keystore.Fence
	done  chan struct{}
	end   func()
}

func (e *fakeElections) Campaign(ctx context.Context) (controller.Term, error) {
	for _, c := range []chan struct{}{e.free, e.hold} {
		select {
		case v := <-c:
			if c == e.hold {
				e.hold <- v
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.n++
	key := fmt.Sprintf("/dkim/v1/meta/leader/%d", e.n)
	resp, err := e.fake.Put(ctx, key, "")
	if err != nil {
		e.free <- struct{}{}
		return nil, err
	}
	t := &fakeTerm{fence: &keystore.Fence{Key: key, CreateRevision: resp.Header.Revision}, done: make(chan struct{})}
	t.end = sync.OnceFunc(func() {
		// Whoever wins next does so after this key is gone.
		_, _ = e.fake.Delete(context.WithoutCancel(ctx), key)
		e.free <- struct{}{}
	})
	e.last = t
	return t, nil
}

func (t *fakeTerm) Fence() *keystore.Fence { return t.fence }
func (t *fakeTerm) Done() <-chan struct{}  { return t.done }
func (t *fakeTerm) Resign() error          { t.end(); return nil }
