package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc/codes"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// ListKeys implements dkim.v1.KeyManagement.
func (s *Service) ListKeys(ctx context.Context, req *dkimv1.ListKeysRequest) (*dkimv1.ListKeysResponse, error) {
	n, err := parseExistingDomainName("parent", req.GetParent())
	if err != nil {
		return nil, err
	}
	size, err := pageSize(req.GetPageSize())
	if err != nil {
		return nil, err
	}
	request := "keys\x00" + n.String()
	after, err := pagePlace(req.GetPageToken(), request)
	if err != nil {
		return nil, err
	}
	d, records, err := s.domainWithRecords(ctx, n)
	if err != nil {
		return nil, err
	}
	keys := slices.Clone(d.Keys)
	slices.SortFunc(keys, func(a, b keystore.Key) int { return cmp.Compare(keyPlace(a), keyPlace(b)) })
	resp := &dkimv1.ListKeysResponse{}
	last := ""
	for _, k := range keys {
		if keyPlace(k) <= after {
			continue
		}
		if len(resp.Keys) == size {
			resp.NextPageToken = pageToken(request, last)
			break
		}
		last = keyPlace(k)
		m, err := keyMessage(d, k, recordOf(k, records))
		if err != nil {
			return nil, err
		}
		resp.Keys = append(resp.Keys, m)
	}
	return resp, nil
}

// keyPlace orders the keys of a domain: by selector, then by id.
func keyPlace(k keystore.Key) string { return string(k.Selector) + "\x00" + k.ID }

// GetKey implements dkim.v1.KeyManagement.
func (s *Service) GetKey(ctx context.Context, req *dkimv1.GetKeyRequest) (*dkimv1.Key, error) {
	n, id, err := parseKeyName("name", req.GetName())
	if err != nil {
		return nil, err
	}
	d, records, err := s.domainWithRecords(ctx, n)
	if err != nil {
		return nil, err
	}
	k := d.Key(id)
	if k == nil {
		return nil, keyNotFound(n, id)
	}
	return keyMessage(d, *k, recordOf(*k, records))
}

func keyNotFound(n domainName, id string) error {
	return fail(codes.NotFound, "KEY_NOT_FOUND", fmt.Sprintf("%s has no key %s; ListKeys shows which it has", n, id))
}

// domainWithRecords reads a domain and its records as they stood together.
func (s *Service) domainWithRecords(ctx context.Context, n domainName) (keystore.Domain, map[dnsname.Selector]schema.PublicRecord, error) {
	for range conflictRetries {
		d, err := s.store.Domain(ctx, n.brand, n.domain)
		if err != nil {
			return keystore.Domain{}, nil, storeFailure(err)
		}
		records, err := s.store.Records(ctx, d)
		if err == nil {
			return d, records, nil
		}
		if !errors.Is(err, keystore.ErrConflict) {
			return keystore.Domain{}, nil, storeFailure(err)
		}
	}
	return keystore.Domain{}, nil, storeFailure(keystore.ErrConflict)
}

func recordOf(k keystore.Key, records map[dnsname.Selector]schema.PublicRecord) *schema.PublicRecord {
	if !k.Published() {
		return nil
	}
	r, ok := records[k.Selector]
	if !ok {
		return nil
	}
	return &r
}

// PublishKey implements dkim.v1.KeyManagement.
func (s *Service) PublishKey(ctx context.Context, req *dkimv1.PublishKeyRequest) (*dkimv1.Key, error) {
	n, err := parseDomainName("parent", req.GetParent())
	if err != nil {
		return nil, err
	}
	sel, err := parseSelector("selector", req.GetSelector(), n.domain)
	if err != nil {
		return nil, err
	}
	public, err := keypair.ParsePublicKey([]byte(req.GetPublicKey()))
	if err != nil {
		return nil, publicKeyFailure("public_key", err)
	}
	if _, err := parseTTL(req.GetTtlSeconds(), 0); err != nil {
		return nil, err
	}
	zone, err := s.zoneOfBrand(ctx, n.brand)
	if err != nil {
		return nil, err
	}
	record := s.record(public, zone.RecordTTL, req.GetTesting())
	d, err := s.changeDomain(ctx, n, zone, func(d keystore.Domain) (*keystore.Change, error) {
		if k := d.KeyIn(sel); k != nil {
			return s.republish(d, *k, public, req)
		}
		if d.Selector(sel) != nil {
			return nil, selectorInUse(&d, &keystore.Key{Key: rotation.Key{Selector: sel, Custody: rotation.Service}})
		}
		ttl, err := parseTTL(req.GetTtlSeconds(), zone.RecordTTL)
		if err != nil {
			return nil, err
		}
		record.TTL = ttl
		now := s.now()
		k := keystore.Key{
			Key: rotation.Key{
				ID: newKeyID(), Selector: sel, Algorithm: public.Algorithm, State: rotation.Active, Custody: rotation.PublicOnly,
				PrepareTime: now, ActivateTime: now,
			},
			TTL: ttl, Testing: req.GetTesting(), Fingerprint: fingerprint(public),
		}
		d.Keys = append(slices.Clone(d.Keys), k)
		return &keystore.Change{Domain: d, Publish: []keystore.Publication{{Key: k, Record: record, New: true}}}, nil
	})
	if err != nil {
		return nil, err
	}
	k := d.KeyIn(sel)
	record.TTL, record.Testing = k.TTL, k.Testing
	return keyMessage(d, *k, &record)
}

// republish is the change for a selector that holds a key already: nothing or,
// for the same key, another TTL or test flag.
func (s *Service) republish(d keystore.Domain, k keystore.Key, public keypair.PublicKey, req *dkimv1.PublishKeyRequest) (*keystore.Change, error) {
	if k.Custody != rotation.PublicOnly || k.Fingerprint != fingerprint(public) {
		return nil, selectorInUse(&d, &k)
	}
	ttl, err := parseTTL(req.GetTtlSeconds(), k.TTL)
	if err != nil {
		return nil, err
	}
	if ttl == k.TTL && req.GetTesting() == k.Testing {
		return nil, nil
	}
	k.TTL, k.Testing = ttl, req.GetTesting()
	d.Keys = slices.Clone(d.Keys)
	*d.Key(k.ID) = k
	return &keystore.Change{Domain: d, Publish: []keystore.Publication{{Key: k, Record: s.record(public, ttl, k.Testing)}}}, nil
}

// DeleteKey implements dkim.v1.KeyManagement.
func (s *Service) DeleteKey(ctx context.Context, req *dkimv1.DeleteKeyRequest) (*dkimv1.Domain, error) {
	n, id, err := parseKeyName("name", req.GetName())
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
		k := d.Key(id)
		if k == nil {
			return nil, keyNotFound(n, id)
		}
		if k.Custody != rotation.PublicOnly {
			return nil, fail(codes.FailedPrecondition, "KEY_MANAGED", fmt.Sprintf(
				"key %s in selector %s is the service's own, which only rotation withdraws; DeleteDomain withdraws all keys of a domain", id, k.Selector))
		}
		gone := *k
		d.Keys = slices.DeleteFunc(slices.Clone(d.Keys), func(k keystore.Key) bool { return k.ID == id })
		return &keystore.Change{Domain: d, Withdraw: []keystore.Key{gone}}, nil
	})
	if err != nil {
		return nil, err
	}
	return domainMessage(d)
}
