package rotation

import (
	"slices"
	"strings"
	"time"

	"github.com/dkimzone/dkimzone/internal/dnsname"
)

// Margin is added to what caches may hold, for clocks that differ and servers that lag.
const Margin = 60 * time.Second

// Why something does not happen yet. An alias that is denied has the prober's reason with ALIAS_ before it.
const (
	ReasonNotServed       = "NOT_SERVED"         // not all name servers of the zone serve the key
	ReasonServingUnknown  = "SERVING_UNKNOWN"    // not proven that they do, and not denied either
	ReasonAliasUnknown    = "ALIAS_UNKNOWN"      // the customer's servers gave no proof of the CNAME, nor denied it
	ReasonLead            = "PUBLISHED_RECENTLY" // resolvers may still hold what was there before
	ReasonSignerLacksKey  = "SIGNER_LACKS_KEY"   // a live signer has not said that it holds the key
	ReasonPaused          = "PAUSED"
	ReasonFrozen          = "FROZEN"
	ReasonEvidenceOld     = "EVIDENCE_OLD" // the last proof is too old to act upon
	ReasonNotDue          = "NOT_DUE"
	ReasonSignerSilent    = "SIGNER_SILENT" // a live signer has not reported since the key was retired
	ReasonDraining        = "DRAINING"      // what was signed may still be on its way
	ReasonResting         = "RESTING"       // the selector must show the revoked key for longer
	ReasonNoStandby       = "NO_STANDBY"    // no key of the group can take over, now or later
	ReasonAwaitSignersKey = "AWAITING_SIGNER_KEY"
)

// occasion is what a gate may stand before.
type occasion uint16

const (
	scheduled   occasion = 1 << iota // a switch that can wait
	requested                        // a switch by hand, now or not at all
	first                            // the first key of a group that never signed
	failover                         // a switch because the key that signs is no longer proven
	emergency                        // a switch because it was revoked
	toRevoke                         // the end of a key that signed
	toWithdraw                       // the end of a key that never did
	toRefill                         // a new key in a selector that shows a revoked one
	toFill                           // a new key in an empty selector
	toSign                           // a signer asks for a key
	activations = scheduled | requested | first | failover | emergency
	voluntary   = scheduled | requested | first | toRevoke | toWithdraw | toRefill | toFill
)

// gateID names a gate.
type gateID uint8

const (
	gateServed gateID = iota + 1
	gateAlias
	gateLead
	gateSigners
	gatePaused
	gateFrozen
	gateFresh
	gateDue
	gateSilent
	gateDrain
	gateGap
	numGates
)

// gate stands before a step until its condition holds.
type gate struct {
	id    gateID
	on    occasion // it stands before these
	check func(*look, *Key) block
}

// gates are all that has to hold. Their order is that in which reasons are given.
var gates = [...]gate{
	{gateServed, activations | toSign, served},
	{gateAlias, activations | toSign, aliased},
	{gateLead, activations | toSign, seenByAll},
	{gateSigners, scheduled | requested | first | failover, heldBySigners},
	{gatePaused, voluntary, notPaused},
	{gateFrozen, voluntary, notFrozen},
	{gateFresh, scheduled | requested | first | failover, fresh},
	{gateDue, scheduled, due},
	{gateSilent, toRevoke, reported},
	{gateDrain, toRevoke, drained},
	{gateGap, toRefill, gapOver},
}

// block is why a gate is closed. The zero value: it is open.
type block struct {
	gate   gateID
	reason string
	// until is when the gate opens by itself; zero: time alone does not open it.
	until    time.Time
	selector dnsname.Selector
	detail   string
}

func (b block) open() bool { return b.reason == "" }

// hard reports whether something else than time or a look at the DNS must happen.
func (b block) hard() bool { return !b.open() && b.until.IsZero() && b.gate != gateFresh }

// look is one domain at one time.
type look struct {
	p   *Policy
	d   *Domain
	e   *Evidence
	now time.Time
	off gateID // a test switches one off

	group
	closed [2][numGates]block // before the best standby, and before the next
}

// blocks appends the closed gates before k to buf.
func (l *look) blocks(on occasion, k *Key, buf []block) []block {
	for i := range gates {
		g := &gates[i]
		if g.on&on == 0 || g.id == l.off {
			continue
		}
		if b := g.check(l, k); !b.open() {
			b.gate, b.selector = g.id, k.Selector
			buf = append(buf, b)
		}
	}
	return buf
}

// trusted reports whether receivers can verify what k signs, as far as is known.
func (l *look) trusted(k *Key) bool {
	var buf [numGates]block
	return (k.State == Prepared || k.State == Active) && len(l.blocks(toSign, k, buf[:0])) == 0
}

// unbroken reports whether the proof that made k ACTIVE still stands, whatever its age.
//
// A key became ACTIVE by proof, and its state remembers that. So an observation that is missing, after a restore say, or
// that has begun anew since, is no reason to stop signing: only a contradiction is, until a new proof has stood for as long
// as the first one.
func unbroken(k *Key, o Observation) bool {
	return k.State == Active && (o.DenyTime.IsZero() || !o.Since.IsZero() && !o.Since.Add(Margin).After(k.ActivateTime))
}

func served(l *look, k *Key) block {
	o := l.e.Served[k.ID]
	switch {
	case unbroken(k, o), !o.Since.IsZero():
		return block{}
	case o.Finding == Contradicted, !o.DenyTime.IsZero():
		return block{reason: ReasonNotServed, detail: o.Reason}
	}
	return block{reason: ReasonServingUnknown, detail: o.Reason}
}

func aliased(l *look, k *Key) block {
	if l.d.Kind != Customer {
		return block{}
	}
	o := l.e.Aliases[k.Selector]
	if unbroken(k, o) {
		return block{}
	}
	return denied(o)
}

// waitsForCustomer reports whether k lacks its alias, which it may do for ever.
func (l *look) waitsForCustomer(k *Key) bool { b := aliased(l, k); return !b.open() }

// denied is the block of an alias that is not proven.
func denied(o Observation) block {
	switch {
	case !o.Since.IsZero():
		return block{}
	case o.Finding == Contradicted:
		return block{reason: "ALIAS_" + o.Reason}
	}
	return block{reason: ReasonAliasUnknown, detail: o.Reason}
}

// seenByAll waits until no resolver can hold an answer from before the proof.
func seenByAll(l *look, k *Key) block {
	var until time.Time
	lead := l.lead(k)
	if o := l.e.Served[k.ID]; !unbroken(k, o) && !o.Since.IsZero() {
		until = later(o.Since, k.PrepareTime).Add(lead)
	}
	if o := l.e.Aliases[k.Selector]; l.d.Kind == Customer && !unbroken(k, o) && !o.Since.IsZero() {
		until = later(until, o.Since.Add(lead))
	}
	return l.before(until, ReasonLead)
}

// lead is how long a proof must have stood. The very first keys of a domain under our own zone follow nothing but the
// denial of their names.
func (l *look) lead(k *Key) time.Duration {
	if l.d.Kind != Customer && k.PrepareTime.Sub(l.d.CreateTime) < Margin && !slices.ContainsFunc(l.d.Keys, Key.moved) {
		return seconds(l.d.NegativeTTL) + Margin
	}
	return max(l.p.Lead, seconds(max(k.TTL, l.d.NegativeTTL))+Margin)
}

// moved reports whether a key was ever more than prepared.
func (k Key) moved() bool { return k.State != Prepared }

func heldBySigners(l *look, k *Key) block {
	var lacking []string
	for _, s := range l.e.Signers {
		if _, ok := s.Holds[k.ID]; !ok && s.live(l.now) {
			lacking = append(lacking, s.ID)
		}
	}
	if lacking == nil {
		return block{}
	}
	return block{reason: ReasonSignerLacksKey, detail: names(lacking)}
}

func notPaused(l *look, _ *Key) block {
	if l.p.Paused {
		return block{reason: ReasonPaused}
	}
	return block{}
}

func notFrozen(l *look, _ *Key) block { return l.before(l.p.thaw(l.now), ReasonFrozen) }

// fresh demands that the last look at the DNS was good, and lately.
func fresh(l *look, k *Key) block {
	if !l.justProven(l.e.Served[k.ID]) || l.d.Kind == Customer && !l.justProven(l.e.Aliases[k.Selector]) {
		return block{reason: ReasonEvidenceOld}
	}
	return block{}
}

func (l *look) justProven(o Observation) bool {
	return o.Finding == Proven && l.now.Sub(o.CheckTime) <= l.p.freshness()
}

// freshness is how old evidence may be that a switch relies upon.
func (p *Policy) freshness() time.Duration { return min(time.Hour, p.CheckInterval) }

// due waits for the end of the interval of the key that signs now.
func due(l *look, _ *Key) block {
	at, _ := l.dueTime()
	return l.before(at, ReasonNotDue)
}

// reported waits for each live signer to report after the switch, since until then it may sign with the old key.
func reported(l *look, k *Key) block {
	var silent []string
	for _, s := range l.e.Signers {
		if s.live(l.now) && !s.reportedAfter(k.RetireTime) {
			silent = append(silent, s.ID)
		}
	}
	if silent == nil {
		return block{}
	}
	return block{reason: ReasonSignerSilent, detail: names(silent)}
}

func drained(l *look, k *Key) block { return l.before(l.lastUse(k).Add(l.p.Drain), ReasonDraining) }

// lastUse is when k may have signed for the last time. A signer that reported after the switch says it itself; one that
// vanished without a word may have signed as long as its lease ran; one that does not report had asked at the latest
// when the switch came, and keeps an answer for its validity.
func (l *look) lastUse(k *Key) time.Time {
	last := k.RetireTime.Add(l.p.validity())
	for _, s := range l.e.Signers {
		if s.reportedAfter(k.RetireTime) {
			last = later(last, s.Holds[k.ID])
		} else if !s.live(l.now) {
			last = later(last, s.LeaseExpiry)
		}
	}
	return last
}

// validity is how long a signer goes by what it was told, unless it gets no other answer.
func (p *Policy) validity() time.Duration {
	return min(5*time.Minute, p.CheckInterval, p.Drain/2)
}

// Hold is how long a key may sign after it was last known to be ACTIVE. If it was retired right then, it is still
// published for Drain from the retirement, so mail that is signed at the end of Hold has half of that to arrive.
func (p *Policy) Hold() time.Duration { return p.Drain / 2 }

func gapOver(l *look, k *Key) block { return l.before(RefillTime(*l.p, *k), ReasonResting) }

// RefillTime is when the selector of a REVOKED key may show another one: a selector never goes from one live key to
// another, in no resolver's eyes.
func RefillTime(p Policy, k Key) time.Time {
	return k.RevokeTime.Add(max(p.Gap, seconds(k.TTL)+Margin))
}

// before is a gate that is closed until a time.
func (l *look) before(until time.Time, reason string) block {
	if l.now.Before(until) {
		return block{reason: reason, until: until}
	}
	return block{}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func seconds(n uint32) time.Duration { return time.Duration(n) * time.Second }

// names lists ids in order, the first few.
func names(ids []string) string {
	const most = 5
	slices.Sort(ids)
	if len(ids) > most {
		return strings.Join(ids[:most], ", ") + " and others"
	}
	return strings.Join(ids, ", ")
}
