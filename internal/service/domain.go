package service

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"

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
	return s.describe(ctx, d)
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
	var found []keystore.Domain
	last := false
	for scanned := 0; scanned < maxScan && len(found) < size && !last; {
		domains, more, err := s.store.Domains(ctx, brand, after, batch)
		if err != nil {
			return nil, storeFailure(err)
		}
		for i, d := range domains {
			after = keystore.Cursor{Brand: d.Brand, Domain: d.Name}
			if !match(d) {
				continue
			}
			found = append(found, d)
			if len(found) == size {
				more = more || i < len(domains)-1
				break
			}
		}
		last = !more
		scanned += len(domains)
	}
	if resp.Domains, err = s.messages(ctx, found); err != nil {
		return nil, err
	}
	if !last {
		resp.NextPageToken = pageToken(request, after.Brand+"/"+string(after.Domain))
	}
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
		if d.Kind != rotation.Customer {
			return nil, fail(codes.FailedPrecondition, "KEY_DOMAIN", fmt.Sprintf("%s holds the own keys of brand %s, which go with the brand", d.Name, d.Brand))
		}
		dangling, err := s.aliases(ctx, d)
		if err != nil {
			return nil, err
		}
		now := s.now()
		revision, err := s.store.DeleteDomain(ctx, d, now, s.event(ctx, "DELETE"))
		if errors.Is(err, keystore.ErrConflict) {
			continue
		}
		if err != nil {
			return nil, storeFailure(err)
		}
		m, err := domainMessage(d, nil)
		if err != nil {
			return nil, err
		}
		m.DeleteTime, m.Revision, m.Etag = timestamp(now), revision, ""
		m.DanglingCnames = dangling
		return m, nil
	}
	return nil, storeFailure(keystore.ErrConflict)
}

// aliases are the names of the CNAMEs that pointed here at the last look.
func (s *Service) aliases(ctx context.Context, d keystore.Domain) ([]string, error) {
	status, err := s.store.Status(ctx, d.Brand, d.Name)
	if err != nil {
		return nil, storeFailure(err)
	}
	var names []string
	for _, sel := range slices.Sorted(maps.Keys(status.Aliases)) {
		if status.Aliases[sel].Since.IsZero() {
			continue
		}
		name, err := dnsname.AliasOwnerName(sel, d.Name)
		if err != nil {
			return nil, fmt.Errorf("domain %s: %w", d.Name, err)
		}
		names = append(names, name)
	}
	return names, nil
}
