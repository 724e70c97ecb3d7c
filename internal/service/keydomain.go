package service

import (
	"context"
	"errors"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/mint"
	"github.com/dkimzone/dkimzone/internal/rotation"
)

// keyDomain is a domain that holds keys of a brand's own.
type keyDomain struct {
	kind      rotation.Kind
	name      func(keystore.Brand) dnsname.Domain
	selectors []dnsname.Selector
	needed    func(rotation.Mode) bool
}

// keyDomains are the brand's own. The default keys have three selectors: there
// is always a standby, so that the last resort never runs out.
var keyDomains = []keyDomain{
	{
		rotation.BrandDefault, keystore.DefaultDomainName, []dnsname.Selector{"default1", "default2", "default3"},
		func(rotation.Mode) bool { return true },
	},
	{
		rotation.BrandShared, keystore.SharedDomainName, []dnsname.Selector{"mail1", "mail2"},
		func(m rotation.Mode) bool { return m == rotation.ModeBrandShared },
	},
}

// ensureKeyDomains makes those of a brand's own key domains that its mode needs
// and that are not there. They are not asked of by anybody until DNS proves them.
func (s *Service) ensureKeyDomains(ctx context.Context, b keystore.Brand) error {
	var zone keystore.Zone
	for _, kd := range keyDomains {
		if !kd.needed(b.Mode) {
			continue
		}
		name := kd.name(b)
		switch _, err := s.store.Domain(ctx, b.Name, name); {
		case err == nil:
			continue
		case !errors.Is(err, keystore.ErrDomainNotFound):
			return storeFailure(err)
		}
		if zone.Name == "" {
			var err error
			if zone, err = s.store.Zone(ctx, b.Zone); err != nil {
				return storeFailure(err)
			}
		}
		if err := s.makeKeyDomain(ctx, domainName{b.Name, name}, kd, zone); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) makeKeyDomain(ctx context.Context, n domainName, kd keyDomain, zone keystore.Zone) error {
	opts := mint.Options{Actor: actor(ctx), TTL: zone.RecordTTL, Pairs: make(mint.Pairs)}
	_, err := s.changeDomain(ctx, n, zone, func(d keystore.Domain) (*keystore.Change, error) {
		if d.Revision != 0 { // somebody else was faster
			return nil, nil
		}
		d.Kind = kd.kind
		for _, sel := range kd.selectors {
			d.Selectors = append(d.Selectors, keystore.Selector{Selector: sel, Algorithm: keypair.RSA2048})
		}
		look, _, err := s.admit(ctx, d, d.Selectors)
		if err != nil {
			return nil, err
		}
		return s.provisioning(ctx, d, d.Selectors, look, opts)
	})
	return err
}

// ownDomains are a brand's own key domains, as they are to be deleted with it.
func (s *Service) ownDomains(ctx context.Context, b keystore.Brand) ([]keystore.Domain, error) {
	var own []keystore.Domain
	for _, kd := range keyDomains {
		d, err := s.store.Domain(ctx, b.Name, kd.name(b))
		if errors.Is(err, keystore.ErrDomainNotFound) {
			continue
		}
		if err != nil {
			return nil, storeFailure(err)
		}
		d.UpdateTime = s.now()
		own = append(own, d)
	}
	return own, nil
}
