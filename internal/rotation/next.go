package rotation

import (
	"time"

	"github.com/dkimzone/dkimzone/internal/keypair"
)

// Next decides what is to be done with a domain: it is the whole of rotation, and always gives the same answer to the
// same question. The caller applies the steps in one transaction, compared on what the decision was made from, so that
// a decision that comes too late or twice changes nothing. Keys in PUBLIC_ONLY custody are never touched.
//
// Steps that can wait (a scheduled or requested switch) are never mixed with others: Voluntary is about all of them.
//
// No step comes earlier than the stored times allow: a clock that goes back delays, and a clock that runs ahead by less
// than Margin does no harm.
func Next(p Policy, d Domain, e Evidence, now time.Time) Decision {
	return (&look{p: &p, d: &d, e: &e, now: now}).next()
}

// group is the selectors of one desired algorithm with the keys that stand in them.
type group struct {
	algorithm keypair.Algorithm
	slots     []slot
	active    *Key
	signers   bool // the keys come from a signer
}

// slot is a selector and the key in it; nil: none, or one that rotation leaves alone.
type slot struct {
	Selector
	key   *Key
	alien bool // a PUBLIC_ONLY key stands there
}

// enter sets the group that the look is about.
func (l *look) enter(a keypair.Algorithm, buf []slot) {
	l.group = group{algorithm: a, slots: buf[:0]}
	for _, sel := range l.d.Selectors {
		if sel.Algorithm != a {
			continue
		}
		s := slot{Selector: sel}
		for i := range l.d.Keys {
			k := &l.d.Keys[i]
			switch {
			case k.Selector != sel.Selector || k.State == Destroyed:
			case k.Custody == PublicOnly:
				s.alien = true
			default:
				s.key = k
				l.signers = l.signers || k.Custody == Signer
				if k.State == Active {
					l.active = k
				}
			}
		}
		l.slots = append(l.slots, s)
	}
}

// algorithms are those of the domain's groups.
func (l *look) algorithms(buf []keypair.Algorithm) []keypair.Algorithm {
next:
	for _, s := range l.d.Selectors {
		for _, a := range buf {
			if a == s.Algorithm {
				continue next
			}
		}
		buf = append(buf, s.Algorithm)
	}
	return buf
}

// plan is what Next collects.
type plan struct {
	Decision
	switches []Step // those that can wait
	wake     time.Time
}

// at makes the next decision come at t at the latest.
func (p *plan) at(t time.Time) {
	if !t.IsZero() && (p.wake.IsZero() || t.Before(p.wake)) {
		p.wake = t
	}
}

func (l *look) next() Decision {
	var (
		p    plan
		algs [4]keypair.Algorithm
		buf  [6]slot
		near bool
	)
	for _, a := range l.algorithms(algs[:0]) {
		l.enter(a, buf[:])
		t := l.turn()
		l.change(&p, t)
		l.housekeeping(&p, t)
		l.report(&p, t)
		near = near || t.near(l.now)
	}
	if len(l.d.Shared) > 0 {
		p.Conditions = append(p.Conditions, l.sharedAliases())
	}
	if len(p.Steps) == 0 {
		p.Steps, p.Voluntary = p.switches, len(p.switches) > 0
	}
	p.CheckAt = l.checkTime(near)
	p.at(p.CheckAt)
	p.Due = p.wake
	switch {
	case len(p.Steps) > 0:
		p.Due = l.now
	case !p.Due.IsZero():
		p.Due = later(p.Due, l.now)
	}
	return p.Decision
}

// turn is who is to sign next in a group, on what occasion, and what stands before it.
type turn struct {
	on      occasion
	standby *Key // nil: there is none
	closed  []block
}

// ready reports whether the standby may take over now.
func (t turn) ready() bool { return t.standby != nil && len(t.closed) == 0 }

// reason is why the standby takes over when nothing is scheduled.
func (t turn) reason() string {
	if t.on == failover {
		return ReasonFailover
	}
	return ReasonFirstKey
}

// opens is when time alone lets the standby take over, if nothing else is missing.
func (t turn) opens() (time.Time, bool) {
	var at time.Time
	for _, b := range t.closed {
		if b.hard() {
			return time.Time{}, false
		}
		at = later(at, b.until)
	}
	return at, t.standby != nil
}

// near reports whether the standby may take over within a day, for all that is known.
func (t turn) near(now time.Time) bool {
	at, ok := t.opens()
	return ok && at.Sub(now) <= day
}

// turn finds the group's occasion and its best standby.
func (l *look) turn() turn {
	switch {
	case l.active != nil && l.trusted(l.active):
		return l.standbyFor(scheduled)
	case l.active != nil || l.signedBefore():
		return l.standbyFor(failover)
	}
	return l.standbyFor(first)
}

// signedBefore reports whether a key of the group signed and is still there to be seen.
func (l *look) signedBefore() bool {
	for _, s := range l.slots {
		if s.key != nil && s.key.State > Active && !s.key.ActivateTime.IsZero() {
			return true
		}
	}
	return false
}

// standbyFor chooses the PREPARED key that comes next: one that may at once before one that may later before one for
// which something is missing, then one of the right algorithm, then the one that has waited longest.
func (l *look) standbyFor(on occasion) turn {
	best, spare := turn{on: on}, 0
	for _, s := range l.slots {
		k := s.key
		if k == nil || k.State != Prepared || on&(scheduled|requested) != 0 && k.Algorithm != l.algorithm {
			continue
		}
		t := turn{on: on, standby: k, closed: l.blocks(on, k, l.closed[spare][:0])}
		if best.standby == nil || l.better(t, best) {
			best, spare = t, 1-spare
		}
	}
	return best
}

func (l *look) better(a, b turn) bool {
	if a.rank() != b.rank() {
		return a.rank() < b.rank()
	}
	if right := a.standby.Algorithm == l.algorithm; right != (b.standby.Algorithm == l.algorithm) {
		return right
	}
	return a.standby.PrepareTime.Before(b.standby.PrepareTime)
}

func (t turn) rank() int {
	if t.ready() {
		return 0
	}
	if _, ok := t.opens(); ok {
		return 1
	}
	return 2
}

// change lets the standby take over.
func (l *look) change(p *plan, t turn) {
	if !t.ready() {
		for _, b := range t.closed {
			p.at(b.until)
			if b.gate == gateSigners {
				p.at(l.now.Add(min(signerRetry, l.p.CheckInterval)))
			}
		}
		return
	}
	if t.on == scheduled {
		_, reason := l.dueTime()
		p.switches = append(p.switches, l.over(t.standby, reason)...)
		return
	}
	p.Steps = append(p.Steps, l.over(t.standby, t.reason())...)
}

// signerRetry is how soon to look again whether a signer has fetched the key.
const signerRetry = 5 * time.Minute

// over are the steps from the key that signs, if there is one, to the standby.
func (l *look) over(standby *Key, reason string) []Step {
	var steps []Step
	if l.active != nil {
		steps = append(steps, step(Retire, l.active, reason))
	}
	return append(steps, step(Activate, standby, reason))
}

func step(kind StepKind, k *Key, reason string) Step {
	return Step{Kind: kind, KeyID: k.ID, Selector: k.Selector, Algorithm: k.Algorithm, Reason: reason}
}

// housekeeping ends keys that are no longer needed and refills their selectors.
func (l *look) housekeeping(p *plan, t turn) {
	var buf [numGates]block
	for _, s := range l.slots {
		on, st := l.chore(s)
		if on == 0 {
			continue
		}
		k := s.key
		if k == nil {
			k = &Key{Selector: s.Selector.Selector}
		}
		closed := l.blocks(on, k, buf[:0])
		if len(closed) == 0 {
			p.Steps = append(p.Steps, st)
		}
		for _, b := range closed {
			p.at(b.until)
		}
	}
	l.withdraw(p, t)
}

// chore is what a slot waits for by itself; zero: nothing.
func (l *look) chore(s slot) (occasion, Step) {
	switch {
	case s.key == nil && (s.alien || l.signers):
	case s.key == nil:
		return toFill, Step{Kind: Refill, Selector: s.Selector.Selector, Algorithm: s.Algorithm, Reason: ReasonEmptySelector}
	case s.key.State == Retiring:
		return toRevoke, step(Revoke, s.key, ReasonDrained)
	case s.key.State == Revoked && s.key.Custody != Signer:
		st := step(Refill, s.key, ReasonGapOver)
		st.Algorithm = s.Algorithm
		return toRefill, st
	}
	return 0, Step{}
}

// withdraw revokes prepared keys of an algorithm that the group no longer wants, so that their selectors can be refilled.
// Where there are three selectors one of them stays as the standby until another one can be.
func (l *look) withdraw(p *plan, t turn) {
	if l.active != nil && t.on != scheduled || t.on == failover {
		return // not now: it may have to take over
	}
	k := l.unwanted(t)
	if k == nil || !l.spare(k) {
		return
	}
	var buf [numGates]block
	closed := l.blocks(toWithdraw, k, buf[:0])
	if len(closed) == 0 {
		p.Steps = append(p.Steps, step(Revoke, k, ReasonAlgorithmChanged))
	}
	for _, b := range closed {
		p.at(b.until)
	}
}

// unwanted is the prepared key of another algorithm that is missed least, of those that do not take over just now.
func (l *look) unwanted(t turn) *Key {
	var least *Key
	for _, s := range l.slots {
		k := s.key
		if k == nil || k.State != Prepared || k.Algorithm == l.algorithm || t.ready() && k == t.standby {
			continue
		}
		if least == nil || !l.trusted(k) || l.trusted(least) {
			least = k
		}
	}
	return least
}

// spare reports whether the group can do without a standby: there is another, or none is on its way.
func (l *look) spare(k *Key) bool {
	coming := false
	for _, s := range l.slots {
		switch {
		case s.key == k:
		case s.key == nil:
			coming = coming || !s.alien && !l.signers
		case s.key.State == Retiring, s.key.State == Revoked && s.key.Custody != Signer:
			coming = true
		case s.key.State == Prepared && l.trusted(s.key):
			if s.key.Algorithm != l.algorithm || l.active != nil && l.active.Algorithm == l.algorithm {
				return true
			}
			coming = true // it takes over first, and then the key before it rests
		case s.key.State == Prepared:
			coming = coming || s.key.Algorithm == l.algorithm && !l.waitsForCustomer(s.key)
		}
	}
	return !coming
}
