package signview

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/rotation"
)

// ErrBehind says that a Cursor is from another View, or so old that what changed
// since is no longer known.
var ErrBehind = errors.New("the changes since then are no longer known")

// maxChanges is how many changes are remembered for those who watch.
const maxChanges = 1 << 16

// change names what changed; without a name it is the brand.
type change struct {
	brand uint32
	name  string
}

// changeLog remembers the names of what changed last, so that nobody who watches
// has a queue of his own: who is slow reads later, and who is too slow begins anew.
type changeLog struct {
	epoch uint64 // tells Views apart

	mu    *sync.Mutex
	ring  []change
	next  uint64        // number of the next change
	woken chan struct{} // closed and replaced at each change
}

// Cursor is a place in the changes of a View.
type Cursor struct{ Epoch, Next uint64 }

// DomainEntry is what to sign mail of a domain with.
type DomainEntry struct {
	Brand   string
	Name    dnsname.Domain
	Deleted bool // it is not there; nothing else is set
	// Keys sign. Default says that the brand's default keys do, Fallback that they
	// do because the domain's own cannot.
	Keys              []rotation.SigningKey
	Default, Fallback bool
	Reason            string
	// Hold is how long this may be used after it was known to be right.
	Hold time.Duration
	// Standby are keys that may come to sign. They must not yet.
	Standby []rotation.SigningKey

	changeAt time.Time
}

// BrandEntry is what a brand's domains have in common.
type BrandEntry struct {
	Name    string
	Deleted bool
	// Keys are the default keys. DefaultOnly says that all mail of the brand is
	// signed with them, whatever its domain.
	Keys        []rotation.SigningKey
	DefaultOnly bool
	// Hold is that of the default keys. Refresh is how long to go by any answer
	// before asking again.
	Hold, Refresh time.Duration
	// Standby are keys of the brand that may come to sign.
	Standby []rotation.SigningKey

	changeAt time.Time
}

// Entry is a change: one of its fields is set.
type Entry struct {
	Domain *DomainEntry
	Brand  *BrandEntry
}

// entryOf is what to sign a stored domain with. It is not ok for what is no
// customer's domain.
func (v *View) entryOf(r record, now time.Time) (e DomainEntry, ok bool) {
	p, err := decode(r)
	s := v.site(r.brand())
	if err != nil || p == nil || p.Domain.Kind != rotation.Customer || !s.present {
		return DomainEntry{}, false
	}
	s.view(p, dnsname.Domain(r.name()))
	a := s.resolve(p, now)
	e = DomainEntry{
		Brand: s.name, Name: p.Domain.Name, Reason: a.Reason, Hold: a.hold, Standby: p.standby(), changeAt: a.ChangeAt,
		Keys: a.Keys, Fallback: a.Fallback, Default: s.brand.Mode == rotation.ModeBrandDefault,
	}
	if len(e.Keys) == 0 && !e.Default { // the default keys may come
		e.Fallback = true
	}
	if e.Default = e.Default || e.Fallback; e.Default {
		policy := s.policy.With(p.policy)
		e.Keys, e.Hold = nil, policy.Hold()
	}
	return e, true
}

// Snapshot calls each with every brand and every customer's domain, of one brand or
// of all when brand is empty, and returns from where on to watch. What changes
// meanwhile may be told both here and there. It returns ErrNotLoaded, and the error
// of each.
func (v *View) Snapshot(ctx context.Context, brand string, each func(Entry) error) (Cursor, error) {
	if !v.loaded.Load() {
		return Cursor{}, ErrNotLoaded
	}
	c := v.log.end()
	now := v.now()
	only, one := uint32(0), brand != ""
	if one {
		n, ok := v.numberOf(brand)
		if !ok {
			return c, nil
		}
		only = n
	}
	v.mu.RLock()
	count := len(v.sites)
	v.mu.RUnlock()
	for n := range count {
		if one && uint32(n) != only {
			continue
		}
		if e := v.site(uint32(n)).entry(now); !e.Deleted {
			if err := each(Entry{Brand: &e}); err != nil {
				return c, err
			}
		}
	}
	var b []byte
	for i := range v.shards {
		var ends []int
		b, ends = v.shards[i].copies(b[:0], func(r record) bool { return len(r.domain()) > 0 && (!one || r.brand() == only) })
		begin := 0
		for _, end := range ends {
			e, ok := v.entryOf(b[begin:end], now)
			begin = end
			if !ok {
				continue
			}
			if err := each(Entry{Domain: &e}); err != nil {
				return c, err
			}
		}
		if err := ctx.Err(); err != nil {
			return c, err
		}
	}
	return c, nil
}

// Changes waits until something changed after c, of one brand or of all when brand
// is empty, and returns what changed as it is now, at most limit entries, and from
// where to go on. When woken is ready it returns without waiting any longer. It
// returns ErrBehind, and the error of ctx.
func (v *View) Changes(ctx context.Context, c Cursor, brand string, limit int, woken <-chan time.Time) ([]Entry, Cursor, error) {
	var entries []Entry
	for {
		changed, next, wait, err := v.log.since(c, limit)
		if err != nil {
			return nil, c, err
		}
		c = next
		now := v.now()
		told := make(map[change]bool, len(changed))
		for _, ch := range changed {
			s := v.site(ch.brand)
			if told[ch] || brand != "" && s.name != brand {
				continue
			}
			told[ch] = true
			entries = append(entries, v.present(s, ch, now))
		}
		if len(entries) > 0 {
			return entries, c, nil
		}
		if len(changed) > 0 {
			continue
		}
		select {
		case <-wait:
		case <-woken:
			return nil, c, nil
		case <-ctx.Done():
			return nil, c, ctx.Err()
		}
	}
}

// present is what changed as it is now.
func (v *View) present(s *site, ch change, now time.Time) Entry {
	if ch.name == "" {
		e := s.entry(now)
		return Entry{Brand: &e}
	}
	hash := v.hash(ch.name)
	sh := v.shardOf(hash)
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	if at, _ := sh.find(hash, ch.brand, ch.name); at != 0 {
		if e, ok := v.entryOf(sh.record(at), now); ok {
			return Entry{Domain: &e}
		}
	}
	return Entry{Domain: &DomainEntry{Brand: s.name, Name: dnsname.Domain(ch.name), Deleted: true}}
}
