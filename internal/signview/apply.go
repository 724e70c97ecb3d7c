package signview

import (
	"container/heap"
	"context"
	"encoding/binary"
	"hash/maphash"
	"log/slog"
	"reflect"
	"time"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/rotation"
)

// What is in this file is called with v.write held.

// apply stores a change and returns the number of its brand.
func (v *View) apply(ctx context.Context, c keystore.SigningChange) uint32 {
	if c.Damaged != nil {
		v.logger.LogAttrs(ctx, slog.LevelError, "a stored value is damaged and counts as missing", slog.Any("error", c.Damaged))
	}
	switch {
	case c.Brand != nil:
		n := v.numbered(c.Brand.Name)
		s := *v.sites[n]
		if s.stored = c.Brand; c.Deleted {
			s.stored = nil
		}
		v.place(n, &s)
		return n
	case c.Domain != nil:
		n := v.numbered(c.Domain.Brand)
		var part []byte
		if !c.Deleted {
			var err error
			if part, err = encodeDomain(nil, c.Domain); err != nil {
				v.logger.LogAttrs(ctx, slog.LevelError, "a stored value is damaged and counts as missing", slog.Any("error", err))
			}
		}
		v.change(ctx, n, string(c.Domain.Name), func(r *parts) { r.domain, r.seen = part, domainSeen })
		return n
	default:
		n := v.numbered(c.Status.Brand)
		var part []byte
		if !c.Deleted {
			part = encodeStatus(nil, c.Status)
		}
		v.change(ctx, n, string(c.Status.Domain), func(r *parts) { r.status, r.seen = part, statusSeen })
		return n
	}
}

// numbered is the number of a brand, a new one if need be. It is never given to
// another.
func (v *View) numbered(brand string) uint32 {
	v.mu.Lock()
	defer v.mu.Unlock()
	n, ok := v.number[brand]
	if !ok {
		n = uint32(len(v.sites)) //nolint:gosec // as many as brands
		v.number[brand] = n
		v.sites = append(v.sites, &site{name: brand})
	}
	return n
}

func (v *View) place(n uint32, s *site) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.sites[n] = s
}

// parts are those of a record.
type parts struct {
	domain, status []byte
	seen           byte // which of them this is about
	digest         uint64
}

// change stores what edit makes of a record, which need not be there.
func (v *View) change(ctx context.Context, n uint32, name string, edit func(*parts)) {
	hash := v.hash(name)
	sh := v.shardOf(hash)
	var p parts
	flags := byte(0)
	at, _ := sh.find(hash, n, name)
	had := false
	if at != 0 {
		r := sh.record(at)
		p.domain, p.status, p.digest, flags = r.domain(), r.status(), r.digest(), r.flags()
		had = len(p.domain) > 0
	}
	edit(&p)
	flags = flags&^p.seen | v.seen&p.seen
	v.scratch = append(v.scratch[:0], make([]byte, headerLen)...)
	binary.LittleEndian.PutUint32(v.scratch[8:], n)
	v.scratch[12], v.scratch[13] = byte(len(name)), flags //nolint:gosec // a domain has at most 253 octets
	record(v.scratch).setDigest(p.digest)
	v.scratch = append(append(append(v.scratch, name...), p.domain...), p.status...)
	if !sh.set(hash, v.scratch, len(p.domain), len(p.status)) {
		v.logger.LogAttrs(ctx, slog.LevelError, "a domain has more keys than fit and is left as it was", slog.String("domain", name))
		return
	}
	switch has := len(p.domain) > 0; {
	case has && !had:
		v.domains.Add(1)
	case had && !has:
		v.domains.Add(-1)
	}
}

// sweep removes what the last listing did not have.
func (v *View) sweep(ctx context.Context, brands map[string]bool) {
	type lost struct {
		brand uint32
		name  string
		gone  byte
	}
	var all []lost
	for i := range v.shards {
		b, ends := v.shards[i].copies(nil, func(r record) bool { return missing(r, v.seen) != 0 })
		each(b, ends, func(r record) { all = append(all, lost{r.brand(), string(r.name()), missing(r, v.seen)}) })
	}
	for _, l := range all {
		v.change(ctx, l.brand, l.name, func(p *parts) {
			if l.gone&domainSeen != 0 {
				p.domain = nil
			}
			if l.gone&statusSeen != 0 {
				p.status = nil
			}
		})
		if l.gone&domainSeen != 0 {
			v.log.add(change{l.brand, l.name})
		}
	}
	for n, s := range v.sites {
		if s.stored != nil && !brands[s.name] {
			next := *s
			next.stored = nil
			v.place(uint32(n), &next)
		}
	}
}

// missing says which parts of a record the listing did not bring.
func missing(r record, seen byte) byte {
	gone := (r.flags() ^ seen) & (domainSeen | statusSeen)
	if len(r.domain()) == 0 {
		gone &^= domainSeen
	}
	if len(r.status()) == 0 {
		gone &^= statusSeen
	}
	return gone
}

func each(b []byte, ends []int, do func(record)) {
	begin := 0
	for _, end := range ends {
		do(b[begin:end])
		begin = end
	}
}

// rebuild makes a brand's site anew from what is stored, and returns it and the one
// before.
func (v *View) rebuild(n uint32) (before, after *site) {
	before = v.sites[n]
	s := *before
	if s.present = s.stored != nil; s.present {
		s.brand = *s.stored
	}
	s.zone = v.zones[s.brand.Zone]
	s.policy = rotation.DefaultPolicy().With(s.zone.policy).With(s.brand.Policy)
	s.byDefault, s.shared, s.selectors = nil, nil, nil
	if s.present {
		s.byDefault = v.own(n, &s, keystore.DefaultDomainName(s.brand))
		if s.brand.Mode == rotation.ModeBrandShared {
			if s.shared = v.own(n, &s, keystore.SharedDomainName(s.brand)); s.shared != nil {
				for _, sel := range s.shared.Domain.Selectors {
					s.selectors = append(s.selectors, sel.Selector)
				}
			}
		}
	}
	v.place(n, &s)
	return before, &s
}

// own is one of a brand's own domains, or nil.
func (v *View) own(n uint32, s *site, name dnsname.Domain) *picture {
	hash := v.hash(string(name))
	p, err := v.read(v.shardOf(hash), hash, n, name)
	if err != nil || p == nil {
		return nil // as rotation sees it there are no keys
	}
	return s.view(p, name)
}

// renew rebuilds a brand's site and tells of what changes by that.
func (v *View) renew(n uint32) {
	before, after := v.rebuild(n)
	now := v.now()
	was, is := before.entry(now), after.entry(now)
	if !reflect.DeepEqual(was, is) {
		v.log.add(change{brand: n})
	}
	v.opening.add(opening{at: is.changeAt, brand: n})
	if !before.sameForDomains(after, now) {
		v.judgeDomains(n, true)
	}
}

// renewOrJudge looks at what a change of a domain changes.
func (v *View) renewOrJudge(n uint32, name dnsname.Domain) {
	s := v.sites[n]
	if s.present && (name == keystore.DefaultDomainName(s.brand) || name == keystore.SharedDomainName(s.brand)) {
		v.renew(n)
		return
	}
	v.judge(n, string(name), true)
}

// judge finds out what a domain is to be signed with, and tells of it if it is
// something else than before.
func (v *View) judge(n uint32, name string, tell bool) {
	hash := v.hash(name)
	sh := v.shardOf(hash)
	at, _ := sh.find(hash, n, name)
	digest := uint64(0)
	if at != 0 {
		r := sh.record(at)
		e, ok := v.entryOf(r, v.now())
		if ok {
			digest = v.digest(e)
			v.opening.add(opening{at: e.changeAt, brand: n, name: name})
		}
		if r.digest() == digest {
			return
		}
		sh.mu.Lock()
		r.setDigest(digest)
		sh.mu.Unlock()
	}
	if tell {
		v.log.add(change{n, name})
	}
}

// judgeDomains judges all domains of a brand.
func (v *View) judgeDomains(n uint32, tell bool) {
	for i := range v.shards {
		b, ends := v.shards[i].copies(nil, func(r record) bool { return r.brand() == n })
		each(b, ends, func(r record) { v.judge(n, string(r.name()), tell) })
	}
}

// digest tells entries apart.
func (v *View) digest(e DomainEntry) uint64 {
	var h maphash.Hash
	h.SetSeed(v.seed)
	maphash.WriteComparable(&h, [...]any{e.Default, e.Fallback, e.Reason, e.Hold, len(e.Keys)})
	for _, k := range e.Keys {
		maphash.WriteComparable(&h, k)
	}
	for _, k := range e.Standby {
		maphash.WriteComparable(&h, k)
	}
	return max(h.Sum64(), 1)
}

// open looks at the domains and brands whose time has come.
func (v *View) open() {
	v.write.Lock()
	defer v.write.Unlock()
	now := v.now()
	for len(v.opening) > 0 && !v.opening[0].at.After(now) {
		o, ok := heap.Pop(&v.opening).(opening)
		if !ok {
			return
		}
		if o.name == "" {
			v.renew(o.brand)
			v.log.add(change{brand: o.brand})
			v.judgeDomains(o.brand, true)
			continue
		}
		v.judge(o.brand, o.name, true)
	}
}

// opening is when to look at a domain, or at a brand, again.
type opening struct {
	at    time.Time
	brand uint32
	name  string
}

// openings is a heap, the next one first.
type openings []opening

func (o openings) Len() int           { return len(o) }
func (o openings) Less(i, j int) bool { return o[i].at.Before(o[j].at) }
func (o openings) Swap(i, j int)      { o[i], o[j] = o[j], o[i] }

// Push implements heap.Interface.
func (o *openings) Push(x any) {
	if next, ok := x.(opening); ok {
		*o = append(*o, next)
	}
}

// Pop implements heap.Interface.
func (o *openings) Pop() any {
	last := (*o)[len(*o)-1]
	(*o)[len(*o)-1] = opening{}
	*o = (*o)[:len(*o)-1]
	return last
}

// add notes an opening; one without a time is none.
func (o *openings) add(next opening) {
	if !next.at.IsZero() {
		heap.Push(o, next)
	}
}
