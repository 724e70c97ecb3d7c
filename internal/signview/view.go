// Package signview is what signs now, of all domains, in the memory of one dkimd:
// it answers within microseconds, tells those who watch of each change, and goes
// on while the store is away, for as long as what it knows is known to be right.
//
// It holds what rotation decides on, not what it decided, so an answer is what
// rotation.Resolve says at that moment. A domain with two selectors takes about
// 200 octets, outside the reach of the garbage collector.
package signview

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"maps"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/rotation"
)

// Source is where a View reads; *keystore.Store is one.
type Source interface {
	SigningSnapshot(ctx context.Context, each func(keystore.SigningChange) error) (keystore.SigningPosition, error)
	WatchSigning(ctx context.Context, pos *keystore.SigningPosition, interval time.Duration, now func() time.Time, w keystore.SigningWatcher) error
	Zones(ctx context.Context, after dnsname.Zone, limit int) ([]keystore.Zone, bool, error)
}

var (
	// ErrNotLoaded says that the View was not filled yet.
	ErrNotLoaded = errors.New("what signs is not loaded yet")
	// ErrStale says that the store has been away for so long that what the View
	// knows of a domain may no longer be right.
	ErrStale = errors.New("what signs was not confirmed for too long")
)

const (
	shards = 64
	// maxZones is how many zones there may be.
	maxZones = 1000
)

// Options says how to make a View. All fields but Interval are required.
type Options struct {
	Source Source
	Now    func() time.Time
	Logger *slog.Logger
	// Interval is how often the store is asked whether anything is missing. Default
	// 1 s.
	Interval time.Duration
}

// View is safe for concurrent use. Run fills it and keeps it in step.
type View struct {
	source   Source
	now      func() time.Time
	logger   *slog.Logger
	interval time.Duration

	seed   maphash.Seed
	shards [shards]shard

	mu     sync.RWMutex // of what follows
	sites  []*site      // by number
	number map[string]uint32

	loaded    atomic.Bool
	failed    atomic.Pointer[error] // why the last attempt to load failed; nil while one gets on
	confirmed atomic.Int64          // when what is here was last known to be all, Unix nanoseconds
	domains   atomic.Int64

	write   sync.Mutex // held by who changes anything
	zones   map[dnsname.Zone]zone
	scratch []byte
	seen    byte     // flags of what the present listing has come by; those before have the others
	opening openings // when to look at domains again

	log changeLog
}

// New returns an empty View.
func New(o Options) *View {
	if o.Interval == 0 {
		o.Interval = time.Second
	}
	v := &View{
		source: o.Source, now: o.Now, logger: o.Logger, interval: o.Interval,
		seed: maphash.MakeSeed(), number: make(map[string]uint32), zones: make(map[dnsname.Zone]zone),
		log: newChangeLog(),
	}
	for i := range v.shards {
		v.shards[i].index = make(map[uint64]place)
	}
	return v
}

// Loaded reports whether the View can answer.
func (v *View) Loaded() bool { return v.loaded.Load() }

// Ready returns nil when the View has been loaded once, and until then an error that wraps
// ErrNotLoaded and says how far it is.
func (v *View) Ready() error {
	if v.loaded.Load() {
		return nil
	}
	if err := v.failed.Load(); err != nil {
		return fmt.Errorf("%w: %w", ErrNotLoaded, *err)
	}
	return fmt.Errorf("%w: %d domains so far", ErrNotLoaded, v.domains.Load())
}

// Confirmed is when all that the View holds was last known to be what the store
// holds; zero before it was loaded.
func (v *View) Confirmed() time.Time {
	at := v.confirmed.Load()
	if at == 0 {
		return time.Time{}
	}
	return time.Unix(0, at)
}

// Stats is what a View holds.
type Stats struct {
	Domains int64 // 0 until it is loaded
	Octets  int64 // of their records
}

// Stats counts.
func (v *View) Stats() Stats {
	var s Stats
	if v.loaded.Load() {
		s.Domains = v.domains.Load()
	}
	for i := range v.shards {
		sh := &v.shards[i]
		sh.mu.RLock()
		s.Octets += int64(sh.slab.octets())
		sh.mu.RUnlock()
	}
	return s
}

// Answer is what to sign mail of a domain with.
type Answer struct {
	// Brand is that of the domain.
	Brand string
	// Known says that the brand has the domain.
	Known bool
	rotation.Resolution
	// Hold is how long from now on the keys may be used if nobody answers.
	// ValidUntil is never later.
	Hold time.Duration
}

// Resolve says what to sign mail of a domain with now. brand "" is the one that has
// the domain. It returns ErrNotLoaded, ErrStale, keystore.ErrBrandNotFound, and
// keystore.ErrDomainNotFound when brand is "" and none has it.
func (v *View) Resolve(brand string, domain dnsname.Domain) (Answer, error) {
	if !v.loaded.Load() {
		return Answer{}, ErrNotLoaded
	}
	s, own, err := v.lookup(brand, domain)
	if err != nil {
		return Answer{}, err
	}
	now := v.now()
	a := s.resolve(own, now)
	left := a.hold - now.Sub(v.Confirmed())
	if left <= 0 {
		return Answer{}, fmt.Errorf("%w: since %s", ErrStale, v.Confirmed().UTC().Format(time.RFC3339))
	}
	if until := now.Add(left); until.Before(a.ValidUntil) {
		a.ValidUntil = until
	}
	return Answer{Brand: s.name, Known: own != nil, Resolution: a.Resolution, Hold: left}, nil
}

// SigningKey returns the key of that id if it signs now, for its own domain or for
// others. owner is the domain that has it. The errors are those of Resolve, and
// keystore.ErrKeyNotFound when there is no such key, or *NotSigningError.
func (v *View) SigningKey(brand string, owner dnsname.Domain, id string) (rotation.SigningKey, error) {
	return v.key(brand, owner, id, false)
}

// HeldKey is SigningKey for who is to hold a key: it also returns one that may come
// to sign.
func (v *View) HeldKey(brand string, owner dnsname.Domain, id string) (rotation.SigningKey, error) {
	return v.key(brand, owner, id, true)
}

// NotSigningError says that a key must not sign.
type NotSigningError struct {
	State rotation.State
	// Untrusted says that it is ACTIVE, but that receivers may not find it.
	Untrusted bool
}

func (e *NotSigningError) Error() string {
	if e.Untrusted {
		return "the key is not known to be served"
	}
	return "the key is " + e.State.String()
}

func (v *View) key(brand string, owner dnsname.Domain, id string, standby bool) (rotation.SigningKey, error) {
	if !v.loaded.Load() {
		return rotation.SigningKey{}, ErrNotLoaded
	}
	s, own, err := v.lookup(brand, owner)
	if err != nil {
		return rotation.SigningKey{}, err
	}
	if own == nil {
		return rotation.SigningKey{}, fmt.Errorf("%w: %s", keystore.ErrDomainNotFound, owner)
	}
	now := v.now()
	policy := s.policy.With(own.policy)
	if now.Sub(v.Confirmed()) >= policy.Hold() {
		return rotation.SigningKey{}, fmt.Errorf("%w: since %s", ErrStale, v.Confirmed().UTC().Format(time.RFC3339))
	}
	keys := s.keysOf(own, now)
	if standby {
		keys = append(keys, own.standby()...)
	}
	for _, k := range keys {
		if k.KeyID == id {
			return k, nil
		}
	}
	for _, k := range own.Domain.Keys {
		if k.ID == id {
			return rotation.SigningKey{}, &NotSigningError{State: k.State, Untrusted: k.State == rotation.Active}
		}
	}
	return rotation.SigningKey{}, fmt.Errorf("%w: %s of %s", keystore.ErrKeyNotFound, id, owner)
}

// lookup finds a domain; own is nil if the brand does not have it.
func (v *View) lookup(brand string, domain dnsname.Domain) (s *site, own *picture, err error) {
	hash := v.hash(string(domain))
	sh := v.shardOf(hash)
	if brand == "" {
		n, ok := v.owner(sh, hash, string(domain))
		if !ok {
			return nil, nil, fmt.Errorf("%w: %s", keystore.ErrDomainNotFound, domain)
		}
		brand = v.site(n).name
	}
	n, ok := v.numberOf(brand)
	if ok {
		s = v.site(n)
	}
	if !ok || !s.present {
		return nil, nil, fmt.Errorf("%w: %s", keystore.ErrBrandNotFound, brand)
	}
	own, err = v.read(sh, hash, n, domain)
	if err != nil || own == nil {
		return s, nil, err
	}
	return s, s.view(own, domain), nil
}

// owner is the brand of a domain; if several have it, in different zones, that of
// the first zone.
func (v *View) owner(sh *shard, hash uint64, domain string) (uint32, bool) {
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	best, found := uint32(0), false
	for at := sh.index[hash]; at != 0; at = sh.record(at).next() {
		r := sh.record(at)
		if len(r.domain()) == 0 || string(r.name()) != domain {
			continue
		}
		if n := r.brand(); !found || v.site(n).brand.Zone < v.site(best).brand.Zone {
			best, found = n, true
		}
	}
	return best, found
}

// read decodes a domain; nil if it is not there.
func (v *View) read(sh *shard, hash uint64, brand uint32, domain dnsname.Domain) (*picture, error) {
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	at, _ := sh.find(hash, brand, string(domain))
	if at == 0 {
		return nil, nil
	}
	return decode(sh.record(at))
}

func decode(r record) (*picture, error) {
	if len(r.domain()) == 0 {
		return nil, nil
	}
	p := &picture{}
	d := reader{b: r.domain()}
	d.domain(p)
	if len(r.status()) > 0 {
		st := reader{b: r.status(), err: d.err}
		st.status(p)
		d.err = st.err
	}
	if d.err != nil {
		return nil, fmt.Errorf("%w: %s", d.err, r.name())
	}
	return p, nil
}

func (v *View) hash(name string) uint64    { return maphash.String(v.seed, name) }
func (v *View) shardOf(hash uint64) *shard { return &v.shards[hash>>58] }
func (v *View) site(n uint32) *site        { v.mu.RLock(); defer v.mu.RUnlock(); return v.sites[n] }
func (v *View) numberOf(brand string) (uint32, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	n, ok := v.number[brand]
	return n, ok
}

// Run fills the View and keeps it in step until ctx ends, and returns ctx's error.
func (v *View) Run(ctx context.Context) error {
	const minWait, maxWait = 100 * time.Millisecond, 5 * time.Second
	ticked := make(chan struct{})
	go func() {
		defer close(ticked)
		v.tick(ctx)
	}()
	defer func() { <-ticked }()
	wait := minWait
	var pos keystore.SigningPosition
	listed := false
	for ctx.Err() == nil {
		var err error
		if !listed {
			if pos, err = v.load(ctx); err != nil {
				v.failed.Store(&err)
			}
			listed = err == nil
		}
		if listed {
			began := v.Confirmed()
			err = v.source.WatchSigning(ctx, &pos, v.interval, v.now, watcher{v})
			if v.Confirmed().After(began) {
				wait = minWait
			}
			if errors.Is(err, keystore.ErrCompacted) {
				listed = false
			}
		}
		if ctx.Err() != nil {
			break
		}
		v.logger.LogAttrs(ctx, slog.LevelWarn, "view of what signs interrupted", slog.Any("error", err), slog.Bool("list_again", !listed))
		select {
		case <-ctx.Done():
		case <-time.After(wait/2 + rand.N(wait)):
		}
		wait = min(2*wait, maxWait)
	}
	return ctx.Err()
}

// load lists everything. What was there before and is no more goes at the end.
func (v *View) load(ctx context.Context) (keystore.SigningPosition, error) {
	began := v.now()
	if err := v.readZones(ctx); err != nil {
		return keystore.SigningPosition{}, err
	}
	v.failed.Store(nil)
	v.write.Lock()
	v.seen ^= domainSeen | statusSeen
	v.write.Unlock()
	brands := make(map[string]bool)
	pos, err := v.source.SigningSnapshot(ctx, func(c keystore.SigningChange) error {
		v.write.Lock()
		defer v.write.Unlock()
		if c.Brand != nil {
			brands[c.Brand.Name] = !c.Deleted
		}
		v.apply(ctx, c)
		return nil
	})
	if err != nil {
		return pos, err
	}
	v.write.Lock()
	defer v.write.Unlock()
	v.sweep(ctx, brands)
	first := !v.loaded.Load()
	for n := range v.sites {
		if first {
			v.rebuild(uint32(n))
		} else {
			v.renew(uint32(n))
		}
	}
	v.confirmed.Store(began.UnixNano())
	v.loaded.Store(true)
	for n := range v.sites {
		v.judgeDomains(uint32(n), !first)
	}
	v.logger.LogAttrs(ctx, slog.LevelInfo, "what signs is loaded",
		slog.Int64("domains", v.domains.Load()), slog.Int64("octets", v.Stats().Octets), slog.Duration("took", v.now().Sub(began)))
	return pos, nil
}

// watcher takes the changes of a watch into a View.
type watcher struct{ *View }

// Changed implements keystore.SigningWatcher.
func (w watcher) Changed(c keystore.SigningChange) error {
	w.write.Lock()
	defer w.write.Unlock()
	n := w.apply(context.Background(), c) //nolint:contextcheck // for the log only
	switch {
	case c.Brand != nil:
		w.renew(n)
	case c.Domain != nil:
		w.renewOrJudge(n, c.Domain.Name)
	case c.Status != nil:
		w.renewOrJudge(n, c.Status.Domain)
	}
	return nil
}

// Confirmed implements keystore.SigningWatcher.
func (w watcher) Confirmed(at time.Time) { w.confirmed.Store(at.UnixNano()) }

// readZones reads what counts of all zones.
func (v *View) readZones(ctx context.Context) error {
	list, _, err := v.source.Zones(ctx, "", maxZones)
	if err != nil {
		return err
	}
	zones := make(map[dnsname.Zone]zone, len(list))
	for _, z := range list {
		zones[z.Name] = zoneOf(z)
	}
	v.write.Lock()
	defer v.write.Unlock()
	before := v.zones
	v.zones = zones
	if !v.loaded.Load() || maps.EqualFunc(before, zones, sameZone) {
		return nil
	}
	for n, s := range v.sites {
		if s.present && !sameZone(before[s.brand.Zone], zones[s.brand.Zone]) {
			v.renew(uint32(n))
		}
	}
	return nil
}

// tick does what has its time: it looks at zones, and at domains whose keys may
// sign from now on.
func (v *View) tick(ctx context.Context) {
	ticker := time.NewTicker(v.interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		_ = v.readZones(ctx) // the next one will
		v.open()
	}
}

// HasBrand reports whether a brand is there.
func (v *View) HasBrand(brand string) bool {
	n, ok := v.numberOf(brand)
	return ok && v.site(n).present
}
