package signview

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC)

const zoneName = "keys.example.net"

// source is a store in memory, whose changes a watch gets as they are made.
type source struct {
	mu      sync.Mutex
	brands  map[string]keystore.Brand
	domains map[string]keystore.Domain
	status  map[string]keystore.Status
	zones   []keystore.Zone
	down    error      // what calls return
	broken  chan error // ends a watch
	watcher keystore.SigningWatcher
	watched chan struct{} // a watch has begun
	lists   int
	// generate makes more of what is listed, if not nil.
	generate func(each func(keystore.SigningChange) error) error
}

func newSource() *source {
	return &source{
		brands: make(map[string]keystore.Brand), domains: make(map[string]keystore.Domain), status: make(map[string]keystore.Status),
		zones:  []keystore.Zone{{Name: zoneName, Apex: schema.Apex{NegativeTTL: 300}}},
		broken: make(chan error), watched: make(chan struct{}, 100),
	}
}

func (s *source) SigningSnapshot(_ context.Context, each func(keystore.SigningChange) error) (keystore.SigningPosition, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lists++
	if s.down != nil {
		return keystore.SigningPosition{}, s.down
	}
	for _, b := range s.brands {
		if err := each(keystore.SigningChange{Brand: &b}); err != nil {
			return keystore.SigningPosition{}, err
		}
	}
	for _, d := range s.domains {
		if err := each(keystore.SigningChange{Domain: &d}); err != nil {
			return keystore.SigningPosition{}, err
		}
	}
	for _, st := range s.status {
		if err := each(keystore.SigningChange{Status: &st}); err != nil {
			return keystore.SigningPosition{}, err
		}
	}
	if s.generate != nil {
		return keystore.SigningPosition{}, s.generate(each)
	}
	return keystore.SigningPosition{}, nil
}

func (s *source) WatchSigning(ctx context.Context, _ *keystore.SigningPosition, _ time.Duration, _ func() time.Time, w keystore.SigningWatcher) error {
	s.mu.Lock()
	if s.down != nil {
		defer s.mu.Unlock()
		return s.down
	}
	s.watcher = w
	s.mu.Unlock()
	s.watched <- struct{}{}
	defer func() {
		s.mu.Lock()
		s.watcher = nil
		s.mu.Unlock()
	}()
	select {
	case err := <-s.broken:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *source) Zones(context.Context, dnsname.Zone, int) ([]keystore.Zone, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.zones, false, s.down
}

// tell hands a change to whoever watches.
func (s *source) tell(c keystore.SigningChange) {
	if s.watcher != nil {
		_ = s.watcher.Changed(c)
	}
}

func (s *source) putBrand(b keystore.Brand) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.brands[b.Name] = b
	s.tell(keystore.SigningChange{Brand: &b})
}

func (s *source) deleteBrand(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.brands, name)
	s.tell(keystore.SigningChange{Brand: &keystore.Brand{Name: name}, Deleted: true})
}

func (s *source) put(d keystore.Domain) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.domains[d.Brand+"/"+string(d.Name)] = d
	s.tell(keystore.SigningChange{Domain: &d})
}

func (s *source) putStatus(st keystore.Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status[st.Brand+"/"+string(st.Domain)] = st
	s.tell(keystore.SigningChange{Status: &st})
}

func (s *source) delete(brand string, name dnsname.Domain) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := brand + "/" + string(name)
	delete(s.domains, key)
	delete(s.status, key)
	s.tell(keystore.SigningChange{Domain: &keystore.Domain{Brand: brand, Name: name}, Deleted: true})
	s.tell(keystore.SigningChange{Status: &keystore.Status{Brand: brand, Domain: name}, Deleted: true})
}

// confirm says that all there is was told.
func (s *source) confirm(at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watcher != nil {
		s.watcher.Confirmed(at)
	}
}

// brand is one with the keys that its mode takes, the first of which signs.
func (s *source) brand(name string, mode rotation.Mode) keystore.Brand {
	b := keystore.Brand{Name: name, Zone: zoneName, Mode: mode, CreateTime: start.Add(-time.Hour)}
	s.putBrand(b)
	own := []struct {
		kind rotation.Kind
		name dnsname.Domain
		sel  string
	}{{rotation.BrandDefault, keystore.DefaultDomainName(b), "default"}}
	if mode == rotation.ModeBrandShared {
		own = append(own, struct {
			kind rotation.Kind
			name dnsname.Domain
			sel  string
		}{rotation.BrandShared, keystore.SharedDomainName(b), "mail"})
	}
	for _, o := range own {
		d, st := domain(name, o.name, o.kind, o.sel)
		s.put(d)
		s.putStatus(st)
	}
	return b
}

// domain is one with two keys, the first of which signs.
func domain(brand string, name dnsname.Domain, kind rotation.Kind, sel string) (keystore.Domain, keystore.Status) {
	d := keystore.Domain{Brand: brand, Name: name, Zone: zoneName, Kind: kind, CreateTime: start.Add(-100 * 24 * time.Hour)}
	st := keystore.Status{Brand: brand, Domain: name, Served: make(map[string]rotation.Observation)}
	if kind == rotation.Customer {
		st.Aliases = make(map[dnsname.Selector]rotation.Observation)
	}
	seen := rotation.Observation{Finding: rotation.Proven, Since: start.Add(-99 * 24 * time.Hour).Truncate(time.Second), CheckTime: start.Truncate(time.Second)}
	for i := range 2 {
		s := dnsname.Selector(fmt.Sprintf("%s%d", sel, i+1))
		k := keystore.Key{Key: rotation.Key{
			ID: keyID(string(name), i), Selector: s, Algorithm: keypair.RSA2048, State: rotation.Prepared, Custody: rotation.Service,
			TTL: 3600, PrepareTime: d.CreateTime,
		}}
		if i == 0 {
			k.State, k.ActivateTime = rotation.Active, start.Add(-90*24*time.Hour)
		}
		d.Selectors = append(d.Selectors, rotation.Selector{Selector: s, Algorithm: keypair.RSA2048})
		d.Keys = append(d.Keys, k)
		st.Served[k.ID] = seen
		if kind == rotation.Customer {
			st.Aliases[s] = seen
		}
	}
	return d, st
}

func keyID(name string, i int) string {
	id := fmt.Sprintf("%s%d", name, i)
	var packed [16]byte
	for j := range packed {
		packed[j] = base32[(int(id[j%len(id)])+j*7+i)%32]
	}
	return string(packed[:])
}

// fixture is a View of a source, with a clock of its own.
type fixture struct {
	*source

	view *View
	mu   sync.Mutex
	at   time.Time
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{source: newSource(), at: start}
	f.view = New(Options{Source: f.source, Now: f.now, Logger: slog.New(slog.DiscardHandler), Interval: time.Hour})
	return f
}

func (f *fixture) now() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.at
}

func (f *fixture) setTime(at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at = at
}

// run runs the view until the end of the test, and returns when it watches.
func (f *fixture) run(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.view.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
	<-f.watched
}

// customer stores a domain that signs with its own key.
func (f *fixture) customer(brand string, name dnsname.Domain) (keystore.Domain, keystore.Status) {
	d, st := domain(brand, name, rotation.Customer, "selector")
	f.put(d)
	f.putStatus(st)
	return d, st
}
