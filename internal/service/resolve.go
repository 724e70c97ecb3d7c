package service

import (
	"context"
	"errors"
	"fmt"
	"strings"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/evidence"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/rotation"
)

// ResolveSigningKeys implements dkim.v1.Signer.
func (s *Service) ResolveSigningKeys(ctx context.Context, req *dkimv1.ResolveSigningKeysRequest) (*dkimv1.ResolveSigningKeysResponse, error) {
	n, err := s.parseSender(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	p, err := s.place(ctx, n.brand)
	if err != nil {
		return nil, err
	}
	own, err := s.signingView(ctx, p, n.domain)
	if err != nil {
		return nil, err
	}
	byDefault, err := s.signingView(ctx, p, keystore.DefaultDomainName(p.brand))
	if err != nil {
		return nil, err
	}
	var shared *rotation.View
	policy := p.policy(keystore.Domain{})
	if own != nil {
		policy = p.policy(own.stored)
	}
	if p.shared != nil {
		v, err := s.signingViewOf(ctx, p, *p.shared)
		if err != nil {
			return nil, err
		}
		shared = &v.View
	}
	r := rotation.Resolve(p.brand.Mode, policy, own.view(), shared, byDefault.view(), s.now())
	resp := &dkimv1.ResolveSigningKeysResponse{Fallback: r.Fallback, Reason: r.Reason, Message: r.Message, ExpireTime: timestamp(r.ValidUntil)}
	for _, k := range r.Keys {
		resp.Keys = append(resp.Keys, &dkimv1.SigningKey{
			Domain: string(k.Domain), Selector: string(k.Selector), Algorithm: algorithmMessage(k.Algorithm),
			Key: domainName{n.brand, k.Owner}.key(k.KeyID),
		})
	}
	return resp, nil
}

// storedView is a view with the domain it was made of.
type storedView struct {
	rotation.View

	stored keystore.Domain
}

func (v *storedView) view() *rotation.View {
	if v == nil {
		return nil
	}
	return &v.View
}

// signingView is what is known of a domain's keys; nil if it is not there. Who
// signs does not matter for what to sign with.
func (s *Service) signingView(ctx context.Context, p place, name dnsname.Domain) (*storedView, error) {
	d, err := s.store.Domain(ctx, p.brand.Name, name)
	if errors.Is(err, keystore.ErrDomainNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, storeFailure(err)
	}
	return s.signingViewOf(ctx, p, d)
}

func (s *Service) signingViewOf(ctx context.Context, p place, d keystore.Domain) (*storedView, error) {
	status, err := s.store.Status(ctx, d.Brand, d.Name)
	if err != nil {
		return nil, storeFailure(err)
	}
	return &storedView{rotation.View{Domain: p.view(d), Evidence: evidence.Of(status, nil, nil)}, d}, nil
}

// parseSender parses the name of a domain whose brand may be left open.
func (s *Service) parseSender(ctx context.Context, name string) (domainName, error) {
	rest, open := strings.CutPrefix(name, "brands/"+anyBrand+"/")
	if !open {
		return parseExistingDomainName("name", name)
	}
	n, err := parseExistingDomainName("name", "brands/x/"+rest) // any brand makes it a whole name
	if err != nil {
		return domainName{}, err
	}
	var after dnsname.Zone
	for {
		zones, more, err := s.store.Zones(ctx, after, maxPageSize)
		if err != nil {
			return domainName{}, storeFailure(err)
		}
		for _, z := range zones {
			brand, ok, err := s.store.OwnerOf(ctx, z.Name, n.domain)
			if err != nil {
				return domainName{}, storeFailure(err)
			}
			if ok && isOf(boundBrand(ctx), brand) {
				return domainName{brand, n.domain}, nil
			}
			after = z.Name
		}
		if !more {
			return domainName{}, storeFailure(fmt.Errorf("%w: %s", keystore.ErrDomainNotFound, n.domain))
		}
	}
}
