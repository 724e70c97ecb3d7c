package simulation_test

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/rotation"
)

// site is a domain, with what is true of it in the DNS.
type site struct {
	rotation.View
	brand  *brand
	nature nature

	records map[dnsname.Selector][]record
	aliases map[dnsname.Selector][]alias
	cache   time.Duration // how long resolvers keep the customer's answers, the wrong ones and the denials

	// before is what signers were told before the last change; some still go by it.
	before  rotation.Resolution
	changed time.Time
	checkAt time.Time // when rotation wants to see evidence again
	blocked map[string]time.Duration
	made    int
}

// record is what a name of ours shows from a time on.
type record struct {
	from    time.Time
	key     string // empty: there is no such name
	revoked bool
	cache   time.Duration
}

// alias is how a customer's CNAME stands from a time on.
type alias struct {
	from time.Time
	ok   bool
	seen time.Time // when a check first saw it so, if it is not ok
}

// nature is what a customer does.
type nature uint8

const (
	steady nature = iota // adds the CNAMEs some day, and leaves them alone
	never                // never adds any
	half                 // adds one of them
	sloppy               // adds wrong ones first
	fickle               // removes them and puts them back
	leaver               // removes them for good
	ours                 // is no customer: the brand's own
)

// natures are how many of a hundred customers are what.
var natures = [...]struct {
	nature nature
	share  int
}{{steady, 65}, {never, 8}, {half, 5}, {sloppy, 7}, {fickle, 10}, {leaver, 5}}

// lag is how long our name servers may differ after a change.
const lag = 20 * time.Second

func (s *shard) newSite(b *brand, name string, born time.Time) *site {
	t := &site{brand: b, blocked: map[string]time.Duration{}}
	t.Domain = rotation.Domain{Name: dnsname.Domain(name), Brand: b.name, CreateTime: born, NegativeTTL: 300}
	t.Evidence = rotation.Evidence{Aliases: map[dnsname.Selector]rotation.Observation{}, Served: map[string]rotation.Observation{}}
	t.records, t.aliases = map[dnsname.Selector][]record{}, map[dnsname.Selector][]alias{}
	roll := s.rng.IntN(100)
	for _, n := range natures {
		if roll -= n.share; roll < 0 {
			t.nature = n.nature
			break
		}
	}
	t.cache = pick(s.rng, 5*time.Minute, time.Hour, 4*time.Hour, 24*time.Hour)
	return t
}

func pick[T any](rng *rand.Rand, from ...T) T { return from[rng.IntN(len(from))] }

// selectors gives the site n selectors of an algorithm, and keys in them.
func (s *shard) selectors(t *site, n int, prefix string, a keypair.Algorithm, now time.Time) {
	ttl := pick(s.rng, uint32(300), 3600, 3600, 14400)
	for i := range n {
		sel := rotation.Selector{Selector: dnsname.Selector(fmt.Sprintf("%s%d", prefix, i+1)), Algorithm: a}
		t.Domain.Selectors = append(t.Domain.Selectors, sel)
		t.records[sel.Selector] = []record{{from: now.Add(-10 * day), cache: 300 * time.Second}}
		s.publish(t, sel, ttl, now)
	}
}

// publish makes a key in a selector.
func (s *shard) publish(t *site, sel rotation.Selector, ttl uint32, now time.Time) {
	t.made++
	k := rotation.Key{
		ID: fmt.Sprintf("%s/%d", sel.Selector, t.made), Selector: sel.Selector, Algorithm: sel.Algorithm,
		State: rotation.Prepared, Custody: rotation.Service, TTL: ttl, PrepareTime: now,
	}
	t.Domain.Keys = append(t.Domain.Keys, k)
	t.show(k, false, now)
}

// show changes what the name of a key shows.
func (t *site) show(k rotation.Key, revoked bool, now time.Time) {
	list := t.records[k.Selector]
	if len(list) > 8 { // older than any message
		list = append(list[:0], list[len(list)-8:]...)
	}
	t.records[k.Selector] = append(list, record{now, k.ID, revoked, time.Duration(k.TTL) * time.Second})
}

// point changes the customer's CNAME.
func (t *site) point(sel dnsname.Selector, ok bool, now time.Time) {
	list := t.aliases[sel]
	if len(list) > 0 && list[len(list)-1].ok == ok {
		return
	}
	t.aliases[sel] = append(list, alias{from: now, ok: ok})
}

// aliased are the selectors whose CNAMEs the customer was asked to add.
func (t *site) aliased() []dnsname.Selector {
	if len(t.Domain.Shared) > 0 {
		return t.Domain.Shared
	}
	var all []dnsname.Selector
	for _, s := range t.Domain.Selectors {
		all = append(all, s.Selector)
	}
	return all
}

// tamper is the customer's hand in the zone; it returns when it comes next, zero: never again.
func (s *shard) tamper(t *site, now time.Time) time.Time {
	all := t.aliased()
	set := func(ok bool) {
		for _, sel := range all {
			if t.nature != fickle || s.rng.IntN(3) > 0 {
				t.point(sel, ok, now)
			}
		}
	}
	added := len(t.aliases[all[0]]) > 1 || len(t.aliases[all[len(all)-1]]) > 1
	switch t.nature {
	case steady:
		set(true)
	case half:
		t.point(all[s.rng.IntN(len(all))], true, now)
	case sloppy:
		if !added && s.rng.IntN(3) > 0 {
			return now.Add(s.between(time.Hour, 60*day)) // as wrong as ever
		}
		set(true)
	case fickle:
		last := t.aliases[all[0]]
		set(!last[len(last)-1].ok)
		return now.Add(s.between(10*time.Minute, 120*day))
	case leaver:
		if !added {
			set(true)
			return now.Add(s.between(30*day, 600*day))
		}
		set(false)
	}
	return time.Time{}
}

// between is a time from the range, short ones as likely as long ones.
func (s *shard) between(least, most time.Duration) time.Duration {
	d := most >> s.rng.IntN(10)
	return max(least, d/2+time.Duration(s.rng.Int64N(int64(d/2)+1)))
}

// gather looks at the DNS as the controller's prober does.
func (s *shard) gather(t *site, now time.Time) {
	s.looks++
	changed, before := false, rotation.Resolution{}
	see := func(o rotation.Observation, f rotation.Finding, reason string) rotation.Observation {
		if f == rotation.Contradicted && !o.Since.IsZero() && !changed {
			changed, before = true, s.resolve(t, now)
		}
		return o.Observe(f, reason, now)
	}
	for _, k := range t.Domain.Keys {
		if k.State > rotation.Active {
			continue
		}
		list := t.records[k.Selector]
		f := rotation.Proven
		if last := list[len(list)-1]; last.key != k.ID || now.Before(last.from.Add(lag)) {
			f = rotation.Contradicted
		}
		t.Evidence.Served[k.ID] = see(t.Evidence.Served[k.ID], f, "NXDOMAIN")
	}
	if t.nature != ours {
		s.gatherAliases(t, see, now)
	}
	if changed {
		s.note(t, before, now)
	}
}

func (s *shard) gatherAliases(t *site, see func(rotation.Observation, rotation.Finding, string) rotation.Observation, now time.Time) {
	down := s.rng.IntN(100) == 0 // the customer's servers
	alias := func(sel dnsname.Selector) {
		list := t.aliases[sel]
		f, last := rotation.Contradicted, &list[len(list)-1]
		switch {
		case down:
			f = rotation.Unreachable
		case last.ok:
			f = rotation.Proven
		case last.seen.IsZero():
			last.seen = now
		}
		t.Evidence.Aliases[sel] = see(t.Evidence.Aliases[sel], f, "MISSING")
	}
	for _, sel := range t.Domain.Selectors {
		alias(sel.Selector)
	}
	for _, sel := range t.Domain.Shared {
		alias(sel)
	}
}
