package service

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/rotation"
)

// maxScan bounds the domains one ListDomains looks at for a filter.
const maxScan = 20000

// GetDomain implements dkim.v1.KeyManagement.
func (s *Service) GetDomain(ctx context.Context, req *dkimv1.GetDomainRequest) (*dkimv1.Domain, error) {
	d, err := s.domain(ctx, "name", req.GetName())
	if err != nil {
		return nil, err
	}
	return domainMessage(d)
}

func (s *Service) domain(ctx context.Context, field, resource string) (keystore.Domain, error) {
	n, err := parseExistingDomainName(field, resource)
	if err != nil {
		return keystore.Domain{}, err
	}
	d, err := s.store.Domain(ctx, n.brand, n.domain)
	return d, storeFailure(err)
}

// ListDomains implements dkim.v1.KeyManagement.
func (s *Service) ListDomains(ctx context.Context, req *dkimv1.ListDomainsRequest) (*dkimv1.ListDomainsResponse, error) {
	brand, err := parseParentBrand("parent", req.GetParent())
	if err != nil {
		return nil, err
	}
	size, err := pageSize(req.GetPageSize())
	if err != nil {
		return nil, err
	}
	match, err := parseFilter(req.GetFilter())
	if err != nil {
		return nil, err
	}
	request := "domains\x00" + brand + "\x00" + req.GetFilter()
	place, err := pagePlace(req.GetPageToken(), request)
	if err != nil {
		return nil, err
	}
	if brand != "" {
		if _, err := s.store.Brand(ctx, brand); err != nil {
			return nil, storeFailure(err)
		}
	}
	after, err := parseCursor(place, brand)
	if err != nil {
		return nil, err
	}

	batch := size
	if req.GetFilter() != "" {
		batch = maxPageSize
	}
	resp := &dkimv1.ListDomainsResponse{}
	for scanned := 0; scanned < maxScan; {
		domains, more, err := s.store.Domains(ctx, brand, after, batch)
		if err != nil {
			return nil, storeFailure(err)
		}
		for i, d := range domains {
			after = keystore.Cursor{Brand: d.Brand, Domain: d.Name}
			if !match(d) {
				continue
			}
			m, err := domainMessage(d)
			if err != nil {
				return nil, err
			}
			resp.Domains = append(resp.Domains, m)
			if len(resp.Domains) == size {
				more = more || i < len(domains)-1
				break
			}
		}
		if !more {
			return resp, nil
		}
		if len(resp.Domains) == size {
			break
		}
		scanned += len(domains)
	}
	resp.NextPageToken = pageToken(request, after.Brand+"/"+string(after.Domain))
	return resp, nil
}

// parseCursor is the cursor at the place of a page token, which may have been
// made up.
func parseCursor(place, brand string) (keystore.Cursor, error) {
	if place == "" {
		return keystore.Cursor{}, nil
	}
	b, d, ok := strings.Cut(place, "/")
	if !ok || b == "" || d == "" || (brand != "" && b != brand) {
		return keystore.Cursor{}, badPageToken()
	}
	return keystore.Cursor{Brand: b, Domain: dnsname.Domain(d)}, nil
}

// DeleteDomain implements dkim.v1.KeyManagement.
func (s *Service) DeleteDomain(ctx context.Context, req *dkimv1.DeleteDomainRequest) (*dkimv1.Domain, error) {
	for range conflictRetries {
		d, err := s.domain(ctx, "name", req.GetName())
		if err != nil {
			return nil, err
		}
		if err := checkETag(req.GetEtag(), d.ETag()); err != nil {
			return nil, err
		}
		now := s.now()
		revision, err := s.store.DeleteDomain(ctx, d, now)
		if errors.Is(err, keystore.ErrConflict) {
			continue
		}
		if err != nil {
			return nil, storeFailure(err)
		}
		m, err := domainMessage(d)
		if err != nil {
			return nil, err
		}
		m.DeleteTime, m.Revision, m.Etag = timestamp(now), revision, ""
		return m, nil
	}
	return nil, storeFailure(keystore.ErrConflict)
}

// RotateDomain implements dkim.v1.KeyManagement.
func (s *Service) RotateDomain(ctx context.Context, req *dkimv1.RotateDomainRequest) (*dkimv1.Domain, error) {
	n, err := parseExistingDomainName("name", req.GetName())
	if err != nil {
		return nil, err
	}
	d, err := s.changeDomain(ctx, n, keystore.Zone{}, func(d keystore.Domain) (*keystore.Change, error) {
		if d.Revision == 0 {
			return nil, storeFailure(fmt.Errorf("%w: %s", keystore.ErrDomainNotFound, n.domain))
		}
		if err := checkETag(req.GetEtag(), d.ETag()); err != nil {
			return nil, err
		}
		return s.rotate(d)
	})
	if err != nil {
		return nil, err
	}
	return domainMessage(d)
}

func (s *Service) rotate(d keystore.Domain) (*keystore.Change, error) {
	keys := make([]rotation.Key, len(d.Keys))
	for i, k := range d.Keys {
		keys[i] = k.Key
	}
	steps, err := rotation.Rotate(keys)
	if err != nil {
		return nil, rotationFailure(err)
	}
	d.Keys = slices.Clone(d.Keys)
	for _, step := range steps {
		if err := d.Key(step.KeyID).Step(step.To, s.now()); err != nil {
			return nil, err
		}
	}
	return &keystore.Change{Domain: d}, nil
}
