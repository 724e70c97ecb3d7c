package signview

import (
	"reflect"
	"slices"
	"time"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/rotation"
)

// site is what the domains of a brand have in common. It does not change; a
// change makes another one.
type site struct {
	name    string
	present bool // the brand is there
	brand   keystore.Brand
	stored  *keystore.Brand // what brand will be when the site is made anew; nil: it is not there
	zone    zone
	policy  rotation.Policy

	byDefault, shared *picture           // nil: there are none
	selectors         []dnsname.Selector // of the shared keys
}

// zone is what counts of a zone.
type zone struct {
	policy      rotation.Override
	negativeTTL uint32
}

func zoneOf(z keystore.Zone) zone { return zone{z.Policy, z.NegativeTTL} }

func sameZone(a, b zone) bool { return reflect.DeepEqual(a, b) }

// view is a domain of the site as rotation sees it.
func (s *site) view(p *picture, name dnsname.Domain) *picture {
	p.Domain.Name, p.Domain.Brand, p.Domain.NegativeTTL = name, s.name, s.zone.negativeTTL
	if p.Domain.Kind == rotation.Customer {
		p.Domain.Shared = s.selectors
	}
	return p
}

// answer is what a domain is to be signed with.
type answer struct {
	rotation.Resolution

	// hold is how long the answer may be used after it was known to be right.
	hold time.Duration
}

// resolve says what to sign a domain with; own is nil if it is not there.
func (s *site) resolve(own *picture, now time.Time) answer {
	policy := s.policy
	if own != nil {
		policy = policy.With(own.policy)
	}
	a := answer{hold: policy.Hold()}
	a.Resolution = rotation.Resolve(s.brand.Mode, policy, own.rotationView(), s.shared.rotationView(), s.byDefault.rotationView(), now)
	for _, k := range a.Keys {
		for _, p := range []*picture{s.byDefault, s.shared} {
			if p != nil && p.Domain.Name == k.Owner {
				of := s.policy.With(p.policy)
				a.hold = min(a.hold, of.Hold())
			}
		}
	}
	return a
}

func (p *picture) rotationView() *rotation.View {
	if p == nil {
		return nil
	}
	return &p.View
}

// keysOf are the keys of a domain that sign, for itself or for others.
func (s *site) keysOf(p *picture, now time.Time) []rotation.SigningKey {
	if p == nil {
		return nil
	}
	policy := s.policy.With(p.policy)
	return rotation.Resolve(rotation.ModePerDomain, policy, &p.View, nil, nil, now).Keys
}

// standby are the keys of a domain that may come to sign.
func (p *picture) standby() []rotation.SigningKey {
	if p == nil {
		return nil
	}
	var keys []rotation.SigningKey
	for _, k := range p.Domain.Keys {
		if k.State == rotation.Prepared && k.Custody != rotation.PublicOnly {
			keys = append(keys, rotation.SigningKey{Domain: p.Domain.Name, Selector: k.Selector, KeyID: k.ID, Owner: p.Domain.Name, Algorithm: k.Algorithm})
		}
	}
	return keys
}

// entry is what all of a brand's domains may need to know.
func (s *site) entry(now time.Time) BrandEntry {
	a := answer{hold: s.policy.Hold()}
	a.Resolution = rotation.Resolve(rotation.ModeBrandDefault, s.policy, nil, nil, s.byDefault.rotationView(), now)
	if s.byDefault != nil {
		policy := s.policy.With(s.byDefault.policy)
		a.hold = min(a.hold, policy.Hold())
	}
	e := BrandEntry{
		Name: s.name, Deleted: !s.present, DefaultOnly: s.brand.Mode == rotation.ModeBrandDefault,
		Keys: a.Keys, Hold: a.hold, Refresh: a.ValidUntil.Sub(now), changeAt: a.ChangeAt,
	}
	e.Standby = slices.Concat(s.byDefault.standby(), s.shared.standby())
	return e
}

// sameForDomains reports whether nothing differs that an answer for a customer's
// domain depends on, other than the default keys.
func (s *site) sameForDomains(o *site, now time.Time) bool {
	return s.present == o.present && s.brand.Mode == o.brand.Mode && s.zone.negativeTTL == o.zone.negativeTTL &&
		reflect.DeepEqual(s.policy, o.policy) && slices.Equal(s.keysOf(s.shared, now), o.keysOf(o.shared, now))
}
