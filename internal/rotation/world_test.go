package rotation_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/rotation"
)

// world is a domain, the DNS around it and those who sign for it, in which everything fails that can. It knows what was
// true when, and judges by that alone; rotation sees only what was checked and reported, if it was not lost.
type world struct {
	rng  *rand.Rand
	gate string // switched off
	now  time.Time

	p rotation.Policy
	d rotation.Domain
	e rotation.Evidence

	facts    map[string]*fact // "served <key>", "alias <selector>"
	lagging  bool             // one of our name servers gets no changes
	late     []late           // results of checks on their way
	looked   time.Time        // when a check last was; the clocks of all who check agree that far
	signers  []*signer
	signed   map[string]time.Time // when each key last signed in truth
	checked  map[string]time.Time // when each fact was last proven, and that was stored
	revoked  map[dnsname.Selector]rotation.Key
	made     int
	broken   []string // properties that did not hold
	switches int
}

// fact is something that is true or not, and when it was not.
type fact struct {
	ok     bool
	bad    []interval
	proven time.Time     // of the first look whose proof was stored, in truth
	ttl    time.Duration // how long resolvers keep what they see when it is not so
}

// interval is a time in which a fact did not hold. A zero end: it lasts.
type interval struct {
	start, end time.Time
	seen       bool // a check saw it, and that was stored
	forgiven   bool // what was stored is lost
}

type late struct {
	fact    string
	finding rotation.Finding
	at      time.Time // as stored
	seen    time.Time // in truth
}

// signer is a mail server. An anonymous one never reports, and asks whenever its answer is no longer valid.
type signer struct {
	rotation.SignerView
	anonymous bool
	cut       bool // it cannot reach the service: it reports nothing and goes on with what it was told
	told      rotation.Resolution
	toldTime  time.Time
	used      map[string]time.Time
	holds     map[string]bool
}

// skew is how far the controller's clock may be off.
const skew = 20 * time.Second

func newWorld(rng *rand.Rand, gate string) *world {
	w := &world{
		rng: rng, gate: gate, now: now,
		facts: map[string]*fact{}, signed: map[string]time.Time{}, checked: map[string]time.Time{}, revoked: map[dnsname.Selector]rotation.Key{},
		e: rotation.Evidence{Aliases: map[dnsname.Selector]rotation.Observation{}, Served: map[string]rotation.Observation{}},
	}
	w.d = rotation.Domain{Name: dnsname.Domain(fmt.Sprintf("d%d.example", rng.Uint32())), CreateTime: now, NegativeTTL: uint32(5 + rng.IntN(3596))}
	if w.one(8) {
		w.d.Kind = rotation.BrandDefault
	}
	w.p = rotation.Policy{
		Interval: w.upTo(time.Hour, 90*day), Drain: w.upTo(time.Minute, 14*day), Gap: w.upTo(time.Second, 14*day), Lead: w.upTo(0, 2*day),
		CheckInterval: w.upTo(time.Minute, day), JitterPercent: rng.IntN(51),
	}
	for i := range 1 + rng.IntN(4) {
		w.d.Selectors = append(w.d.Selectors, rotation.Selector{Selector: dnsname.Selector(fmt.Sprintf("r%d", i+1)), Algorithm: keypair.RSA2048})
	}
	for i := range 2 * rng.IntN(2) {
		w.d.Selectors = append(w.d.Selectors, rotation.Selector{Selector: dnsname.Selector(fmt.Sprintf("e%d", i+1)), Algorithm: keypair.Ed25519})
	}
	for _, s := range w.d.Selectors {
		f := w.fact("alias " + string(s.Selector))
		f.ttl = w.upTo(time.Second, max(w.p.Lead, time.Minute)) // of the customer's zone: rotation waits for Lead
		w.set(f, w.one(2))
		w.make(rotation.Step{Selector: s.Selector, Algorithm: s.Algorithm}, rotation.Key{TTL: uint32(60 + rng.IntN(86341))})
	}
	if w.one(4) {
		w.d.Keys = append(w.d.Keys, rotation.Key{ID: "alien", Selector: "x", Algorithm: keypair.RSA2048, State: rotation.State(1 + rng.IntN(4)), Custody: rotation.PublicOnly})
	}
	for range rng.IntN(3) {
		w.register()
	}
	w.signers = append(w.signers, &signer{anonymous: true, used: map[string]time.Time{}})
	return w
}

// one is true once in n times.
func (w *world) one(n int) bool { return w.rng.IntN(n) == 0 }

// upTo is a time between least and most, short ones as likely as long ones.
func (w *world) upTo(least, most time.Duration) time.Duration {
	d := most >> w.rng.IntN(12)
	return max(least, d/2+time.Duration(w.rng.Int64N(int64(d/2)+1)))
}

func (w *world) breaks(property, format string, args ...any) {
	if len(w.broken) < 10 {
		w.broken = append(w.broken, fmt.Sprintf(property+": "+format, args...))
	}
}

func (w *world) fact(name string) *fact {
	f := w.facts[name]
	if f == nil {
		f = &fact{bad: []interval{{start: w.now.Add(-1000 * day)}}}
		w.facts[name] = f
	}
	return f
}

func (w *world) set(f *fact, ok bool) {
	if ok == f.ok {
		return
	}
	if f.ok = ok; ok {
		f.bad[len(f.bad)-1].end = w.now
		return
	}
	// What cannot matter any more is forgotten.
	f.bad = append(slices.DeleteFunc(f.bad, func(i interval) bool { return w.now.Sub(i.end) > 30*day }), interval{start: w.now})
}

// make publishes a new key.
func (w *world) make(s rotation.Step, before rotation.Key) {
	w.made++
	k := rotation.Key{
		ID: fmt.Sprintf("%s-%d", s.Selector, w.made), Selector: s.Selector, Algorithm: s.Algorithm, State: rotation.Prepared,
		Custody: rotation.Service, TTL: before.TTL, PrepareTime: w.clock(),
	}
	w.d.Keys = append(w.d.Keys, k)
	f := w.fact("served " + k.ID)
	f.ttl = time.Duration(w.d.NegativeTTL) * time.Second
	if before.ID != "" {
		f.ttl = max(f.ttl, time.Duration(k.TTL)*time.Second)
	}
	w.set(f, !w.lagging)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// clock is the controller's.
func (w *world) clock() time.Time {
	return w.now.Add(time.Duration(w.rng.Int64N(int64(2*skew))) - skew)
}

func (w *world) register() {
	s := &signer{used: map[string]time.Time{}, holds: map[string]bool{}}
	s.ID, s.Holds = fmt.Sprintf("mx%d", w.rng.Uint32()), map[string]time.Time{}
	s.LeaseExpiry = w.now.Add(w.upTo(time.Minute, 2*day))
	w.signers = append(w.signers, s)
}

// step lets one thing happen.
func (w *world) step() {
	w.now = w.now.Add(1) // no two things happen at the same time
	switch w.rng.IntN(20) {
	case 0, 1, 2, 3:
		w.now = w.now.Add(w.upTo(0, 3*time.Hour))
	case 4:
		w.now = w.now.Add(w.upTo(0, 20*day))
	case 5, 6, 7:
		w.controller()
	case 8, 9:
		w.check()
	case 10:
		w.deliver()
	case 11:
		w.customer()
	case 12:
		w.nameServer()
	case 13, 14, 15:
		w.send()
	case 16, 17:
		w.signer()
	case 18:
		w.operator()
	case 19:
		// As a controller that is on time: to the next decision, with what it asks for.
		next := w.next(w.now)
		if !next.Due.IsZero() && next.Due.After(w.now) {
			w.now = next.Due
		}
		if !next.CheckAt.After(w.now) {
			w.check()
		}
		w.controller()
	}
}

func (w *world) next(at time.Time) rotation.Decision {
	w.e.Signers = w.e.Signers[:0]
	for _, s := range w.signers {
		if !s.anonymous {
			w.e.Signers = append(w.e.Signers, s.SignerView)
		}
	}
	return rotation.NextWithout(w.gate, w.p, w.d, w.e, at)
}

// controller decides and applies, or fails in between.
func (w *world) controller() {
	clock := w.clock()
	d := w.next(clock)
	if d.Due.Before(clock) && !d.Due.IsZero() {
		w.breaks("decision", "due %v before it is made", clock.Sub(d.Due))
	}
	if len(d.Steps) == 0 || w.one(5) {
		return
	}
	w.judge(d, clock)
	w.apply(d.Steps, clock)
}

// apply returns the keys after the steps; a Refill takes its key away, and the caller adds the new one. It refuses steps
// that were applied already.
func apply(keys []rotation.Key, steps []rotation.Step, now time.Time) ([]rotation.Key, error) {
	after := slices.Clone(keys)
	for _, s := range steps {
		i := slices.IndexFunc(after, func(k rotation.Key) bool { return k.ID == s.KeyID })
		switch {
		case s.KeyID == "" && slices.ContainsFunc(after, func(k rotation.Key) bool { return k.Selector == s.Selector && k.State != rotation.Destroyed }):
			return nil, fmt.Errorf("selector %s has a key", s.Selector)
		case s.KeyID == "":
			continue
		case i < 0:
			return nil, &rotation.UnknownKeyError{KeyID: s.KeyID}
		}
		if err := after[i].Take(s, now); err != nil {
			return nil, err
		}
		if s.Kind == rotation.Refill {
			after = slices.Delete(after, i, i+1)
		}
	}
	return after, nil
}

func (w *world) apply(steps []rotation.Step, clock time.Time) {
	before := slices.Clone(w.d.Keys)
	keys, err := apply(w.d.Keys, steps, clock)
	if err != nil {
		w.breaks("legal", "%v", err)
		return
	}
	w.d.Keys = keys
	for _, s := range steps {
		i := slices.IndexFunc(before, func(k rotation.Key) bool { return k.ID == s.KeyID })
		switch s.Kind {
		case rotation.Refill:
			var old rotation.Key
			if i >= 0 {
				old = before[i]
			} else {
				old.TTL = 3600
			}
			delete(w.e.Served, s.KeyID)
			delete(w.facts, "served "+s.KeyID)
			w.make(s, old)
		case rotation.Revoke:
			if last, ok := w.signed[s.KeyID]; ok && s.Reason != rotation.ReasonCompromised && w.now.Sub(last) < w.p.Drain-2*skew {
				w.breaks("drain", "%s is revoked %v after its last signature", s.KeyID, w.now.Sub(last))
			}
			k := before[i]
			k.RevokeTime = w.now
			w.revoked[s.Selector] = k
		case rotation.Activate:
			w.switches++
		}
	}
	if _, err := apply(w.d.Keys, steps, clock); err == nil {
		w.breaks("once", "%s is accepted twice", show(steps))
	}
	active, live := map[keypair.Algorithm]int{}, map[dnsname.Selector]int{}
	for _, k := range w.d.Keys {
		if k.Custody == rotation.PublicOnly {
			if j := slices.IndexFunc(before, func(b rotation.Key) bool { return b.ID == k.ID }); before[j] != k {
				w.breaks("alien", "%+v became %+v", before[j], k)
			}
			continue
		}
		if live[k.Selector]++; live[k.Selector] > 1 {
			w.breaks("one key", "two keys in %s", k.Selector)
		}
		if k.State == rotation.Active {
			for _, s := range w.d.Selectors {
				if s.Selector == k.Selector {
					active[s.Algorithm]++
				}
			}
		}
	}
	for a, n := range active {
		if n > 1 {
			w.breaks("one ACTIVE", "%d of %s", n, a)
		}
	}
}

// judge looks at a decision in the light of what is true.
func (w *world) judge(d rotation.Decision, clock time.Time) {
	frozen := w.p.Paused
	for _, f := range w.p.Freezes {
		frozen = frozen || !clock.Before(f.Start) && clock.Before(f.End)
	}
	for _, s := range d.Steps {
		if frozen && s.Reason != rotation.ReasonFailover {
			w.breaks("freeze", "%s %s in a freeze", s.Kind, s.Reason)
		}
		var k rotation.Key
		for _, other := range w.d.Keys {
			if other.ID == s.KeyID {
				k = other
			}
		}
		switch s.Kind {
		case rotation.Refill:
			if old, ok := w.revoked[s.Selector]; ok && w.now.Sub(old.RevokeTime) < max(w.p.Gap, time.Duration(old.TTL)*time.Second)-2*skew {
				w.breaks("gap", "%s is refilled %v after it was revoked", s.Selector, w.now.Sub(old.RevokeTime))
			}
		case rotation.Retire:
			least := w.p.Interval * time.Duration(100-w.p.JitterPercent) / 100
			if s.Reason == rotation.ReasonScheduled && clock.Sub(k.ActivateTime) < least-2*skew {
				w.breaks("interval", "%s retires after %v of %v", s.KeyID, clock.Sub(k.ActivateTime), w.p.Interval)
			}
			if s.Reason == rotation.ReasonRequested && k.ActivateTime.Sub(w.d.RotateRequested) > 2*skew {
				w.breaks("interval", "%s retires for a request that was answered", s.KeyID)
			}
			if (s.Reason != rotation.ReasonFailover) != d.Voluntary {
				w.breaks("voluntary", "%s: %t", s.Reason, d.Voluntary)
			}
		case rotation.Activate:
			w.judgeActivation(k, clock)
		}
	}
}

func (w *world) judgeActivation(k rotation.Key, clock time.Time) {
	for _, s := range w.signers {
		if !s.anonymous && clock.Before(s.LeaseExpiry) && !s.holds[k.ID] {
			w.breaks("signers", "%s becomes ACTIVE, and %s does not hold it", k.ID, s.ID)
		}
	}
	for _, name := range w.factsOf(k) {
		if w.now.Sub(w.checked[name]) > min(time.Hour, w.p.CheckInterval)+2*skew {
			w.breaks("fresh", "%s becomes ACTIVE, and %s was proven %v ago", k.ID, name, w.now.Sub(w.checked[name]))
		}
	}
}

// factsOf are what a receiver needs to verify what k signs.
func (w *world) factsOf(k rotation.Key) []string {
	names := []string{"served " + k.ID}
	if w.d.Kind == rotation.Customer {
		names = append(names, "alias "+string(k.Selector))
	}
	return names
}

// check asks for all that rotation wants to know. Some results are lost, late or doubled.
func (w *world) check() {
	for _, k := range w.d.Keys {
		if k.State <= rotation.Active && k.Custody != rotation.PublicOnly {
			w.ask("served " + k.ID)
		}
	}
	for _, s := range w.d.Selectors {
		w.ask("alias " + string(s.Selector))
	}
}

func (w *world) ask(name string) {
	w.looked = later(w.looked.Add(1), w.clock())
	result := late{name, rotation.Proven, w.looked, w.now}
	switch {
	case w.one(10):
		result.finding = rotation.Unreachable
	case !w.facts[name].ok:
		result.finding = rotation.Contradicted
	}
	switch w.rng.IntN(12) {
	case 0:
		return
	case 1:
		w.late = append(w.late, result)
	case 2:
		w.late = append(w.late, result)
		w.store(result)
	default:
		w.store(result)
	}
}

// deliver lets a late result come.
func (w *world) deliver() {
	if len(w.late) > 0 {
		i := w.rng.IntN(len(w.late))
		w.store(w.late[i])
		w.late = slices.Delete(w.late, i, i+1)
	}
}

func (w *world) store(r late) {
	f := w.facts[r.fact]
	if f == nil {
		return // of a key that is gone
	}
	seen := func(o rotation.Observation) rotation.Observation {
		after := o.Observe(r.finding, "DENIED", r.at)
		if r.finding == rotation.Proven && after.CheckTime.Equal(r.at) {
			if f.proven.IsZero() || r.seen.Before(f.proven) {
				f.proven = r.seen
			}
			w.checked[r.fact] = r.at
		}
		return after
	}
	if kind, name, _ := strings.Cut(r.fact, " "); kind == "alias" {
		w.e.Aliases[dnsname.Selector(name)] = seen(w.e.Aliases[dnsname.Selector(name)])
	} else {
		w.e.Served[name] = seen(w.e.Served[name])
	}
	if r.finding == rotation.Contradicted {
		for i := range f.bad {
			if b := &f.bad[i]; !r.seen.Before(b.start) && (b.end.IsZero() || r.seen.Before(b.end)) {
				b.seen, b.forgiven = true, false
			}
		}
	}
}

func (w *world) customer() {
	s := w.d.Selectors[w.rng.IntN(len(w.d.Selectors))]
	w.set(w.fact("alias "+string(s.Selector)), !w.one(6))
}

// nameServer lets one of ours stop to follow, lose a key, or come back.
func (w *world) nameServer() {
	w.lagging = w.one(4)
	for _, k := range w.d.Keys {
		if k.State < rotation.Revoked && k.Custody != rotation.PublicOnly {
			if f := w.fact("served " + k.ID); !w.lagging {
				w.set(f, true)
			} else if w.one(20) {
				w.set(f, false)
			}
		}
	}
}

// send lets everybody who signs sign a message.
func (w *world) send() {
	for _, s := range w.signers {
		if !s.anonymous && !w.now.Before(s.LeaseExpiry) {
			continue // it knows that it does not count any more
		}
		if !s.cut && !w.now.Before(s.told.ValidUntil) {
			w.tell(s)
		}
		if s.anonymous && !w.now.Before(s.told.ValidUntil) {
			continue
		}
		for _, key := range s.told.Keys {
			w.sign(s, key)
		}
	}
}

func (w *world) tell(s *signer) {
	own := &rotation.View{Domain: w.d, Evidence: w.e}
	s.told, s.toldTime = rotation.ResolveWithout(w.gate, rotation.ModePerDomain, w.p, own, nil, nil, w.now), w.now
	for _, key := range s.told.Keys {
		i := slices.IndexFunc(w.d.Keys, func(k rotation.Key) bool { return k.ID == key.KeyID })
		if k := w.d.Keys[i]; k.State != rotation.Active || k.Custody == rotation.PublicOnly {
			w.breaks("told", "to sign with %+v", k)
		} else {
			w.verifiable(k)
		}
	}
}

// verifiable is judged when a signer is told to sign: each receiver can verify, whatever its resolver holds, but for what
// nobody could know.
func (w *world) verifiable(k rotation.Key) {
	for _, name := range w.factsOf(k) {
		f := w.facts[name]
		for _, b := range f.bad {
			if b.forgiven || !b.seen && !f.proven.IsZero() && b.start.After(f.proven) {
				continue // nobody could know
			}
			if property, _, _ := strings.Cut(name, " "); b.end.IsZero() {
				w.breaks(property, "%s signs and %s is not so since %v", k.ID, name, w.now.Sub(b.start))
			} else if left := b.end.Add(f.ttl).Sub(w.now); left > 0 {
				w.breaks("caches", "%s signs and %s may be remembered not to be so for another %v", k.ID, name, left)
			}
		}
	}
}

func (w *world) sign(s *signer, key rotation.SigningKey) {
	for _, k := range w.d.Keys {
		if k.ID != key.KeyID || k.Compromised {
			continue
		}
		if k.State > rotation.Retiring {
			w.breaks("drain", "%s signs and is %v", k.ID, k.State)
		}
		w.signed[k.ID], s.used[k.ID] = w.now, w.now
	}
}

// signer lets one of them report, renew its lease, be cut off, vanish, or another come.
func (w *world) signer() {
	s := w.signers[w.rng.IntN(len(w.signers))]
	switch what := w.rng.IntN(24); {
	case what == 0 && len(w.signers) < 4:
		w.register()
	case what == 1:
		s.cut = !s.cut
	case what < 6 && !s.anonymous && w.now.Before(s.LeaseExpiry):
		s.LeaseExpiry = w.now.Add(w.upTo(time.Minute, 3*day))
	case what == 6 && !s.anonymous:
		w.now = w.now.Add(w.upTo(0, 5*day)) // and may be gone
	case s.anonymous || s.cut:
		return
	default:
		for _, k := range w.d.Keys {
			if k.State < rotation.Revoked && !w.one(4) {
				s.holds[k.ID] = true
			}
		}
		report := func(at time.Time) {
			holds := maps.Clone(s.Holds)
			for id := range s.holds {
				holds[id] = s.used[id]
			}
			s.Holds, s.ReportTime = holds, at
		}
		report(w.clock())
		s.LeaseExpiry = w.now.Add(w.upTo(time.Minute, 3*day))
		w.tell(s) // the answer
	}
}

// operator revokes, pauses, freezes and asks for rotations.
func (w *world) operator() {
	clock := w.clock()
	switch w.rng.IntN(12) {
	case 0:
		k := w.d.Keys[w.rng.IntN(len(w.d.Keys))]
		if k.Custody == rotation.PublicOnly || !w.one(4) {
			return
		}
		w.next(clock) // for the signers
		steps, err := rotation.RevokeCompromised(w.p, w.d, w.e, k.ID, clock)
		if err != nil {
			w.breaks("legal", "%v", err)
		} else if len(steps) > 0 {
			w.apply(steps, clock)
		}
	case 1:
		w.p.Paused = w.one(3)
	case 2:
		start := w.now.Add(w.upTo(0, 20*day))
		w.p.Freezes = []rotation.Freeze{{Start: start, End: start.Add(w.upTo(1, 9*day))}}
	case 3, 4:
		w.d.RotateRequested = clock
	case 5:
		w.next(clock)
		steps, err := rotation.Request(w.p, w.d, w.e, clock)
		if err == nil && w.gate == "" {
			w.d.RotateRequested = clock
			for i, s := range steps {
				w.judge(rotation.Decision{Steps: steps[i : i+1], Voluntary: s.Reason == rotation.ReasonRequested}, clock)
			}
			w.d.RotateRequested = time.Time{}
			w.apply(steps, clock)
		}
	case 6:
		w.restore()
	case 7:
		// Another algorithm for a group.
		from, to := keypair.RSA2048, keypair.RSA3072
		if w.d.Selectors[0].Algorithm == to {
			from, to = to, from
		}
		for i := range w.d.Selectors {
			if w.d.Selectors[i].Algorithm == from {
				w.d.Selectors[i].Algorithm = to
			}
		}
	}
}

// restore loses all evidence. Keys that were ACTIVE go on signing until they are looked at, so what was known against
// them is forgiven.
func (w *world) restore() {
	clear(w.e.Served)
	clear(w.e.Aliases)
	w.late = nil
	for _, k := range w.d.Keys {
		if k.State != rotation.Active || k.Custody == rotation.PublicOnly {
			continue
		}
		for _, name := range w.factsOf(k) {
			for i := range w.facts[name].bad {
				w.facts[name].bad[i].forgiven = true
			}
		}
	}
}
