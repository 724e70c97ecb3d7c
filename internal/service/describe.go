package service

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/evidence"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/rotation"
)

// place is what a brand's domains have in common.
type place struct {
	brand  keystore.Brand
	zone   keystore.Zone
	shared *keystore.Domain // the domain of the keys they share, if they sign so
}

func (s *Service) place(ctx context.Context, brand string) (place, error) {
	b, err := s.store.Brand(ctx, brand)
	if err != nil {
		return place{}, storeFailure(err)
	}
	p := place{brand: b}
	if p.zone, err = s.store.Zone(ctx, b.Zone); err != nil {
		return place{}, storeFailure(err)
	}
	if b.Mode != rotation.ModeBrandShared {
		return p, nil
	}
	switch d, err := s.store.Domain(ctx, b.Name, keystore.SharedDomainName(b)); {
	case err == nil:
		p.shared = &d
	case !errors.Is(err, keystore.ErrDomainNotFound): // it is there as soon as the brand is complete
		return place{}, storeFailure(err)
	}
	return p, nil
}

// policy is the policy that holds for a domain.
func (p place) policy(d keystore.Domain) rotation.Policy {
	return evidence.Policy(p.zone, p.brand, d)
}

// view is a domain as rotation sees it.
func (p place) view(d keystore.Domain) rotation.Domain {
	return evidence.Domain(d, p.zone, p.sharedBy(d))
}

// sharedBy holds the shared keys that a domain is signed with; nil if it is not.
func (p place) sharedBy(d keystore.Domain) *keystore.Domain {
	if d.Kind != rotation.Customer {
		return nil
	}
	return p.shared
}

// picture is a domain with all that decides about its keys.
type picture struct {
	place
	domain   keystore.Domain
	status   keystore.Status
	evidence rotation.Evidence
	whole    bool // evidence has what the signers say
}

// view is the domain as rotation sees it.
func (p picture) view() rotation.Domain { return p.place.view(p.domain) }

// look reads all that decides about a domain's keys.
func (s *Service) look(ctx context.Context, d keystore.Domain) (picture, error) {
	p := picture{domain: d}
	var err error
	if p.place, err = s.place(ctx, d.Brand); err != nil {
		return picture{}, err
	}
	if p.status, err = s.store.Status(ctx, d.Brand, d.Name); err != nil {
		return picture{}, storeFailure(err)
	}
	signers, err := s.store.Signers(ctx, d.Brand)
	if err != nil {
		return picture{}, storeFailure(err)
	}
	reports, err := s.store.Reports(ctx, d.Brand, d.Name)
	if err != nil {
		return picture{}, storeFailure(err)
	}
	p.evidence, p.whole = evidence.Of(p.status, signers, reports), true
	return p, nil
}

// message is the whole of a domain.
func (s *Service) message(p picture) (*dkimv1.Domain, error) {
	m, err := domainMessage(p.domain, p.sharedBy(p.domain))
	if err != nil {
		return nil, err
	}
	policy := p.policy(p.domain)
	m.EffectiveRotationPolicy = policyMessage(policy)
	now := s.now()
	for _, c := range p.conditions(now) {
		m.Conditions = append(m.Conditions, conditionMessage(c))
	}
	at, _ := rotation.Forecast(policy, p.view(), p.evidence, now)
	m.NextRotationTime = timestamp(at)
	m.NextCheckTime = timestamp(p.status.Due)
	for _, sel := range m.GetSelectors() {
		name := dnsname.Selector(sel.GetSelector())
		if sel.GetCnameOwner() != "" {
			sel.CnameCheck = checkMessage(p.status.Aliases[name])
		}
		if k := p.domain.KeyIn(name); k != nil {
			sel.RecordCheck = checkMessage(p.status.Served[k.ID])
		}
	}
	return m, nil
}

// conditions are those that hold. Without the signers it is those that were
// decided last.
func (p picture) conditions(now time.Time) []rotation.Condition {
	fresh := rotation.Next(p.policy(p.domain), p.view(), p.evidence, now).Conditions
	switch {
	case p.status.Revision == 0: // nobody looked yet, so nobody knows since when
		for i := range fresh {
			fresh[i].Since = time.Time{}
		}
		return fresh
	case p.whole:
		return rotation.MergeConditions(p.status.Conditions, fresh)
	}
	stored := slices.Clone(p.status.Conditions)
	for i := range stored { // what is right is stored without words
		c := &stored[i]
		for _, f := range fresh {
			if c.Message == "" && f.Group == c.Group && f.Type == c.Type && f.OK == c.OK {
				c.Message = f.Message
			}
		}
	}
	return stored
}

// describe is message for a domain of which nothing else was read yet.
func (s *Service) describe(ctx context.Context, d keystore.Domain) (*dkimv1.Domain, error) {
	p, err := s.look(ctx, d)
	if err != nil {
		return nil, err
	}
	return s.message(p)
}

// messages are the domains of a list. Who signs is not looked at.
func (s *Service) messages(ctx context.Context, domains []keystore.Domain) ([]*dkimv1.Domain, error) {
	var all []*dkimv1.Domain
	for len(domains) > 0 {
		brand := domains[0].Brand
		var names []dnsname.Domain
		for _, d := range domains {
			if d.Brand != brand {
				break
			}
			names = append(names, d.Name)
		}
		pl, err := s.place(ctx, brand)
		if errors.Is(err, keystore.ErrBrandNotFound) { // deleted meanwhile, and so are these
			domains = domains[len(names):]
			continue
		}
		if err != nil {
			return nil, err
		}
		statuses, err := s.store.StatusesOf(ctx, brand, names)
		if err != nil {
			return nil, storeFailure(err)
		}
		for i := range names {
			m, err := s.message(picture{place: pl, domain: domains[i], status: statuses[i], evidence: evidence.Of(statuses[i], nil, nil)})
			if err != nil {
				return nil, err
			}
			all = append(all, m)
		}
		domains = domains[len(names):]
	}
	return all, nil
}

func conditionMessage(c rotation.Condition) *dkimv1.Condition {
	m := &dkimv1.Condition{
		Type: c.Type, Status: dkimv1.Condition_STATUS_FALSE, Reason: c.Reason, Message: c.Message,
		LastTransitionTime: timestamp(c.Since), Algorithm: algorithmMessage(c.Group),
	}
	if c.OK {
		m.Status = dkimv1.Condition_STATUS_TRUE
	}
	return m
}

var findings = map[rotation.Finding]dkimv1.Check_Finding{
	rotation.Proven:       dkimv1.Check_FINDING_PROVEN,
	rotation.Contradicted: dkimv1.Check_FINDING_CONTRADICTED,
	rotation.Unreachable:  dkimv1.Check_FINDING_UNREACHABLE,
}

// checkMessage is what was observed; nil if nothing was yet.
func checkMessage(o rotation.Observation) *dkimv1.Check {
	if o.CheckTime.IsZero() {
		return nil
	}
	return &dkimv1.Check{
		Finding: findings[o.Finding], Reason: o.Reason, CheckTime: timestamp(o.CheckTime), ProvenSince: timestamp(o.Since),
	}
}

// changeKnown is changeDomain for a domain that must be there, whose etag must
// be the given one.
func (s *Service) changeKnown(ctx context.Context, n domainName, etag string, compute func(keystore.Domain) (*keystore.Change, error)) (keystore.Domain, error) {
	return s.changeDomain(ctx, n, keystore.Zone{}, func(d keystore.Domain) (*keystore.Change, error) {
		if d.Revision == 0 {
			return nil, storeFailure(fmt.Errorf("%w: %s", keystore.ErrDomainNotFound, n.domain))
		}
		if err := checkETag(etag, d.ETag()); err != nil {
			return nil, err
		}
		return compute(d)
	})
}
