package rotation

import "time"

// Why a Resolution says what it says, beside the reasons of gates.
const (
	ReasonOwnKey        = "OWN_KEY"
	ReasonSharedKey     = "SHARED_KEY"
	ReasonDefaultKey    = "DEFAULT_KEY"
	ReasonNoKeys        = "NO_KEYS"        // there are no keys to sign with
	ReasonUnknownDomain = "UNKNOWN_DOMAIN" // the brand has no such domain
)

// Resolve says what to sign the messages of a domain with, now. It only ever names ACTIVE keys that receivers can
// verify as far as is known: the domain's own, or the brand's shared one where the domain aliases it, as the mode says;
// else the brand's default key; else none, with the reason.
//
// own, shared and def are the domain, the brand's shared domain and its default domain; nil: there is none. In
// BRAND_SHARED mode the evidence of own has the aliases of the shared selectors. A shared key became ACTIVE by no proof
// about this domain, so here an alias counts only from its first observation on.
func Resolve(mode Mode, p Policy, own, shared, def *View, now time.Time) Resolution {
	return resolve(0, mode, &p, own, shared, def, now)
}

func resolve(off gateID, mode Mode, p *Policy, own, shared, def *View, now time.Time) Resolution {
	r := Resolution{ValidUntil: now.Add(p.validity())}
	switch {
	case mode == ModeBrandDefault:
		if r.sign(off, p, def, nil, now); r.Keys != nil {
			r.Reason, r.Message = ReasonDefaultKey, "the brand signs with its default key"
		}
		return r
	case own == nil:
		r.Reason, r.Message = ReasonUnknownDomain, "the brand has no such domain"
	case mode == ModeBrandShared:
		if r.sign(off, p, shared, own, now); r.Keys != nil {
			r.Reason, r.Message = ReasonSharedKey, "the brand's shared key signs"
			return r
		}
	default:
		if r.sign(off, p, own, nil, now); r.Keys != nil {
			r.Reason, r.Message = ReasonOwnKey, "the domain's own key signs"
			return r
		}
	}
	reason, message := r.Reason, r.Message
	r.sign(off, p, def, nil, now)
	r.Reason = reason
	if r.Keys != nil {
		r.Fallback = true
		r.Message = "the brand's default key signs, since " + message
		return r
	}
	r.Message = "nothing signs, since " + message + ", and the brand has no default key that can be used"
	return r
}

// sign puts the keys of a view into r that may sign for the domain: its own, or that of the user, which then must alias
// it. If there are none it says why.
func (r *Resolution) sign(off gateID, p *Policy, v, user *View, now time.Time) {
	r.Keys, r.Reason, r.Message = nil, "", ""
	if v == nil {
		r.Reason, r.Message = ReasonNoKeys, "there are no keys"
		return
	}
	l := &look{p: p, d: &v.Domain, e: &v.Evidence, now: now, off: off}
	for _, a := range l.algorithms(nil) {
		l.enter(a, nil)
		if l.active == nil {
			if r.Reason == "" {
				c := l.signing(l.turn())
				r.Reason, r.Message = c.Reason, c.Message
			}
			continue
		}
		b, from := l.first(toSign, l.active), l
		if b.open() && user != nil {
			from = &look{p: p, d: &user.Domain, e: &user.Evidence, now: now}
			b = from.aliasOf(l.active, l.lead(l.active))
		}
		if !b.open() {
			r.Reason, r.Message = b.reason, from.sentence(b)
			if at := b.until; !at.IsZero() && (r.ChangeAt.IsZero() || at.Before(r.ChangeAt)) {
				r.ChangeAt = at
			}
			continue
		}
		d := v.Domain.Name
		if user != nil {
			d = user.Domain.Name
		}
		r.Keys = append(r.Keys, SigningKey{Domain: d, Selector: l.active.Selector, KeyID: l.active.ID, Owner: v.Domain.Name, Algorithm: l.active.Algorithm})
	}
	if r.Reason == "" {
		r.Reason, r.Message = ReasonNoKeys, "there are no keys"
	}
}

// aliasOf is why the domain cannot use a key of the brand's.
func (l *look) aliasOf(k *Key, lead time.Duration) block {
	o := l.e.Aliases[k.Selector]
	b := denied(o)
	if b.open() {
		b = l.before(o.Since.Add(lead), ReasonLead)
	}
	b.selector = k.Selector
	return b
}
