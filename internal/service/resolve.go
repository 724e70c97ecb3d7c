package service

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/types/known/durationpb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/evidence"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/signview"
)

// ResolveSigningKeys implements dkim.v1.Signer.
func (s *Service) ResolveSigningKeys(ctx context.Context, req *dkimv1.ResolveSigningKeysRequest) (*dkimv1.ResolveSigningKeysResponse, error) {
	n, err := parseSender(req.GetName())
	if err != nil {
		return nil, err
	}
	a, err := s.resolve(ctx, n)
	if err != nil {
		return nil, err
	}
	now := s.now()
	resp := &dkimv1.ResolveSigningKeysResponse{
		Fallback: a.Fallback, Reason: a.Reason, Message: a.Message, ExpireTime: timestamp(a.ValidUntil),
		RefreshDuration: durationpb.New(max(0, a.ValidUntil.Sub(now))), HoldDuration: durationpb.New(a.Hold),
	}
	resp.Keys = signingKeyMessages(a.Brand, a.Keys)
	return resp, nil
}

func signingKeyMessages(brand string, keys []rotation.SigningKey) []*dkimv1.SigningKey {
	var messages []*dkimv1.SigningKey
	for _, k := range keys {
		messages = append(messages, &dkimv1.SigningKey{
			Domain: string(k.Domain), Selector: string(k.Selector), Algorithm: algorithmMessage(k.Algorithm),
			Key: domainName{brand, k.Owner}.key(k.KeyID),
		})
	}
	return messages
}

// resolve asks the view of what signs, and the store as long as that is not loaded.
func (s *Service) resolve(ctx context.Context, n domainName) (signview.Answer, error) {
	if s.signing == nil {
		return s.resolveStored(ctx, n)
	}
	bound := boundBrand(ctx)
	brand := n.brand
	if brand == "" {
		brand = bound
	}
	a, err := s.signing.view.Resolve(brand, n.domain)
	if errors.Is(err, signview.ErrNotLoaded) {
		return s.resolveStored(ctx, n)
	}
	if err == nil && n.brand == "" && !a.Known {
		err = fmt.Errorf("%w: %s", keystore.ErrDomainNotFound, n.domain)
	}
	return a, viewFailure(err)
}

// resolveStored resolves from the store itself.
func (s *Service) resolveStored(ctx context.Context, n domainName) (signview.Answer, error) {
	if n.brand == "" {
		brand, err := s.ownerOf(ctx, n.domain)
		if err != nil {
			return signview.Answer{}, err
		}
		n.brand = brand
	}
	p, err := s.place(ctx, n.brand)
	if err != nil {
		return signview.Answer{}, err
	}
	own, err := s.signingView(ctx, p, n.domain)
	if err != nil {
		return signview.Answer{}, err
	}
	byDefault, err := s.signingView(ctx, p, keystore.DefaultDomainName(p.brand))
	if err != nil {
		return signview.Answer{}, err
	}
	var shared *storedView
	if p.shared != nil {
		if shared, err = s.signingViewOf(ctx, p, *p.shared); err != nil {
			return signview.Answer{}, err
		}
	}
	policy := p.policy(keystore.Domain{})
	if own != nil {
		policy = p.policy(own.stored)
	}
	a := signview.Answer{Brand: n.brand, Hold: policy.Hold()}
	a.Resolution = rotation.Resolve(p.brand.Mode, policy, own.view(), shared.view(), byDefault.view(), s.now())
	for _, v := range []*storedView{shared, byDefault} {
		if v != nil {
			of := p.policy(v.stored)
			a.Hold = min(a.Hold, of.Hold())
		}
	}
	return a, nil
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

// parseSender parses the name of a domain whose brand may be left open, "".
func parseSender(name string) (domainName, error) {
	rest, open := strings.CutPrefix(name, "brands/"+anyBrand+"/")
	if !open {
		return parseExistingDomainName("name", name)
	}
	n, err := parseExistingDomainName("name", "brands/x/"+rest) // any brand makes it a whole name
	return domainName{domain: n.domain}, err
}

// ownerOf is the brand that has a domain.
func (s *Service) ownerOf(ctx context.Context, domain dnsname.Domain) (string, error) {
	var after dnsname.Zone
	for {
		zones, more, err := s.store.Zones(ctx, after, maxPageSize)
		if err != nil {
			return "", storeFailure(err)
		}
		for _, z := range zones {
			brand, ok, err := s.store.OwnerOf(ctx, z.Name, domain)
			if err != nil {
				return "", storeFailure(err)
			}
			if ok && isOf(boundBrand(ctx), brand) {
				return brand, nil
			}
			after = z.Name
		}
		if !more {
			return "", storeFailure(fmt.Errorf("%w: %s", keystore.ErrDomainNotFound, domain))
		}
	}
}
