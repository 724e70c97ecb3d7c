package rotation

import (
	"time"

	"github.com/dkimzone/dkimzone/internal/dnsname"
)

// What conditions say beside the reasons of gates and steps.
const (
	ReasonSigning   = "SIGNING"   // a proven key signs
	ReasonUnchecked = "UNCHECKED" // a key signs that was proven once, of which nothing is known now
	ReasonReady     = "READY"     // the switch happens now
)

// report says how the group fares.
func (l *look) report(p *plan, t turn) {
	if p.Conditions == nil {
		p.Conditions = make([]Condition, 0, 2*len(l.d.Selectors)/max(1, len(l.slots))+1)
	}
	p.Conditions = append(p.Conditions, l.signing(t), l.rotating(t))
}

func (l *look) signing(t turn) Condition {
	c := Condition{Group: l.algorithm, Type: ConditionSigning, Since: l.now}
	if l.active == nil {
		b := l.why(t)
		c.Reason, c.Message = b.reason, "no key signs: "+l.sentence(b)
		if b.open() {
			c.Reason, c.Message = ReasonReady, string(t.standby.Selector)+" signs as soon as this is done"
		}
		return c
	}
	var buf [numGates]block
	if closed := l.blocks(toSign, l.active, buf[:0]); len(closed) > 0 {
		c.Reason, c.Message = closed[0].reason, string(l.active.Selector)+" must not sign: "+l.sentence(closed[0])
		return c
	}
	c.OK, c.Reason, c.Message = true, ReasonSigning, string(l.active.Selector)+" signs"
	if l.e.Served[l.active.ID].Since.IsZero() || l.d.Kind == Customer && l.e.Aliases[l.active.Selector].Since.IsZero() {
		c.Reason, c.Message = ReasonUnchecked, string(l.active.Selector)+" signs, and nothing is known against it; its proof has to be gathered anew"
	}
	return c
}

func (l *look) rotating(t turn) Condition {
	c := Condition{Group: l.algorithm, Type: ConditionRotation, Since: l.now}
	b := l.why(t)
	if t.on == scheduled && !b.open() {
		if at, _ := l.dueTime(); l.now.Before(at) && (b.gate != gateServed && b.gate != gateAlias) {
			b = l.awaited()
			if b.open() {
				c.OK, c.Reason, c.Message = true, ReasonNotDue, "the next rotation is due "+stamp(at)
				return c
			}
		}
	}
	if b.open() {
		c.OK, c.Reason, c.Message = true, ReasonReady, string(t.standby.Selector)+" takes over"
		return c
	}
	c.Reason, c.Message = b.reason, "the next key cannot take over: "+l.sentence(b)
	return c
}

// why is the first reason why the standby does not take over.
func (l *look) why(t turn) block {
	switch {
	case t.ready():
		return block{}
	case t.standby != nil:
		return t.closed[0]
	}
	b, _ := l.absence()
	return b
}

// awaited is what the resting selectors wait for besides time.
func (l *look) awaited() block {
	for _, s := range l.slots {
		switch {
		case s.key == nil && !s.alien && l.signers:
			return block{reason: ReasonAwaitSignersKey, selector: s.Selector.Selector}
		case s.key == nil:
		case s.key.State == Retiring:
			if b := l.first(toRevoke, s.key); b.gate == gateSilent {
				return b
			}
		case s.key.State == Revoked && s.key.Custody == Signer && !l.now.Before(RefillTime(*l.p, *s.key)):
			return block{reason: ReasonAwaitSignersKey, selector: s.key.Selector}
		}
	}
	return block{}
}

// absence is why no selector of the group holds a standby of the right algorithm, and when one may be trusted if nothing
// goes wrong; zero: nobody knows.
func (l *look) absence() (block, time.Time) {
	best, soonest := block{reason: ReasonNoStandby}, time.Time{}
	take := func(b block, at time.Time) {
		switch {
		case at.IsZero() && soonest.IsZero():
			best = b
		case !at.IsZero() && (soonest.IsZero() || at.Before(soonest)):
			best, soonest = b, at
		}
	}
	for _, s := range l.slots {
		sel := s.Selector.Selector
		switch {
		case s.key == nil && s.alien:
		case s.key == nil && l.signers:
			take(block{reason: ReasonAwaitSignersKey, selector: sel}, time.Time{})
		case s.key == nil:
			at := l.now.Add(l.lead(&Key{PrepareTime: l.now}))
			take(block{reason: ReasonResting, selector: sel, until: at}, at)
		case s.key.State == Prepared && s.key.Algorithm != l.algorithm:
			at := l.now.Add(max(l.p.Gap, seconds(s.key.TTL)+Margin) + l.lead(s.key))
			take(block{reason: ReasonAlgorithmChanged, selector: sel, until: at}, at)
		case s.key.State == Retiring:
			if b := l.first(toRevoke, s.key); b.hard() {
				take(b, time.Time{})
				continue
			}
			end := later(l.lastUse(s.key).Add(l.p.Drain), l.now)
			at := end.Add(max(l.p.Gap, seconds(s.key.TTL)+Margin) + l.lead(s.key))
			take(block{reason: ReasonDraining, selector: sel, until: at}, at)
		case s.key.State == Revoked && s.key.Custody == Signer:
			take(block{reason: ReasonAwaitSignersKey, selector: sel}, time.Time{})
		case s.key.State == Revoked:
			at := later(RefillTime(*l.p, *s.key), l.now).Add(l.lead(s.key))
			take(block{reason: ReasonResting, selector: sel, until: at}, at)
		}
	}
	return best, soonest
}

// first is the first closed gate before k.
func (l *look) first(on occasion, k *Key) block {
	var buf [numGates]block
	if closed := l.blocks(on, k, buf[:0]); len(closed) > 0 {
		return closed[0]
	}
	return block{}
}

// sharedAliases says whether the domain's aliases of the brand's shared key are in place.
func (l *look) sharedAliases() Condition {
	c := Condition{Type: ConditionSigning, Since: l.now}
	for _, sel := range l.d.Shared {
		b := denied(l.e.Aliases[sel])
		if b.open() {
			continue
		}
		b.gate, b.selector = gateAlias, sel
		c.Reason, c.Message = b.reason, l.sentence(b)
		return c
	}
	c.OK, c.Reason, c.Message = true, ReasonSigning, "the aliases of the brand's shared key are in place"
	return c
}

// sentence tells people what a closed gate waits for.
func (l *look) sentence(b block) string {
	sel := string(b.selector)
	switch b.reason {
	case ReasonNotServed:
		return "not all name servers of the zone serve the key of " + sel + because(b.detail)
	case ReasonServingUnknown:
		return "it is not proven yet that all name servers of the zone serve the key of " + sel + because(b.detail)
	case ReasonAliasUnknown:
		return "it is not proven yet that " + aliasName(b.selector, l.d.Name) + " points at us" + because(b.detail)
	case ReasonLead:
		return "until " + stamp(b.until) + " resolvers may hold what " + sel + " showed before"
	case ReasonSignerLacksKey:
		return "signers have not said that they hold the key of " + sel + ": " + b.detail
	case ReasonPaused:
		return "rotation is paused"
	case ReasonFrozen:
		return "changes are frozen until " + stamp(b.until)
	case ReasonEvidenceOld:
		return "the last look at " + sel + " was too long ago or brought no proof"
	case ReasonNotDue:
		return "the rotation is due " + stamp(b.until)
	case ReasonSignerSilent:
		return "signers have not reported since the key of " + sel + " was retired, and may still use it: " + b.detail
	case ReasonDraining:
		return sel + " drains and rests; its next key can be used from " + stamp(b.until)
	case ReasonResting:
		return sel + " rests; its next key can be used from " + stamp(b.until)
	case ReasonAlgorithmChanged:
		return sel + " gets a key of the new algorithm, which can be used from " + stamp(b.until)
	case ReasonAwaitSignersKey:
		return sel + " waits for a key that a signer publishes"
	case ReasonNoStandby:
		return "there is no selector for another key"
	}
	return aliasName(b.selector, l.d.Name) + " does not point at us"
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return " (" + reason + ")"
}

func aliasName(sel dnsname.Selector, d dnsname.Domain) string {
	return string(sel) + "._domainkey." + string(d)
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }
