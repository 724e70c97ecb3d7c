package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc/codes"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/admission"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/mint"
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

// publishing is a checked request to publish a key.
type publishing struct {
	name     domainName
	selector dnsname.Selector
	public   keypair.PublicKey
	ttl      int32 // 0: none given
	testing  bool
}

func parsePublishing(req *dkimv1.PublishKeyRequest) (publishing, error) {
	n, err := parseDomainName("parent", req.GetParent())
	if err != nil {
		return publishing{}, err
	}
	sel, err := parseSelector("selector", req.GetSelector(), n.domain)
	if err != nil {
		return publishing{}, err
	}
	public, err := keypair.ParsePublicKey([]byte(req.GetPublicKey()))
	if err != nil {
		return publishing{}, keyFailure("public_key", err)
	}
	_, err = parseTTL(req.GetTtlSeconds(), 0)
	return publishing{n, sel, public, req.GetTtlSeconds(), req.GetTesting()}, err
}

// PublishKey implements dkim.v1.KeyManagement.
func (s *Service) PublishKey(ctx context.Context, req *dkimv1.PublishKeyRequest) (*dkimv1.Key, error) {
	p, err := parsePublishing(req)
	if err != nil {
		return nil, err
	}
	zone, err := s.zoneOfBrand(ctx, p.name.brand)
	if err != nil {
		return nil, err
	}
	d, err := s.publish(ctx, p, zone)
	if err != nil {
		return nil, err
	}
	k := d.KeyIn(p.selector)
	record := s.record(p.public, k.TTL, k.Testing)
	return keyMessage(d, *k, &record)
}

func (s *Service) publish(ctx context.Context, p publishing, zone keystore.Zone) (keystore.Domain, error) {
	if err := inZone("parent", p.name.domain, zone.Name); err != nil {
		return keystore.Domain{}, err
	}
	return s.changeDomain(ctx, p.name, zone, func(d keystore.Domain) (*keystore.Change, error) {
		change := &keystore.Change{Domain: d, Actor: actor(ctx)}
		if err := s.addPublication(ctx, change, p, zone); err != nil || len(change.Publish) == 0 {
			return nil, err
		}
		if change.Publish[0].New {
			if err := s.ask(ctx, p.name, admission.Publish); err != nil {
				return nil, err
			}
		}
		return change, nil
	})
}

// addPublication adds to a change what p asks for: a new key, or for a selector
// that holds the same key already another TTL or test flag, or nothing.
func (s *Service) addPublication(ctx context.Context, c *keystore.Change, p publishing, zone keystore.Zone) error {
	held := c.Domain.KeyIn(p.selector)
	if held != nil && (held.Custody != rotation.PublicOnly || held.Fingerprint != mint.Fingerprint(p.public)) {
		return selectorInUse(&c.Domain, held)
	}
	if held == nil && c.Domain.Selector(p.selector) != nil {
		return selectorInUse(&c.Domain, &keystore.Key{Key: rotation.Key{Selector: p.selector, Custody: rotation.Service}})
	}
	preset := zone.RecordTTL
	if held != nil {
		preset = held.TTL
	}
	ttl, err := parseTTL(p.ttl, preset)
	if err != nil {
		return err
	}
	keys := slices.Clone(c.Domain.Keys)
	var k keystore.Key
	switch {
	case held == nil:
		now := s.now()
		k = keystore.Key{
			Key: rotation.Key{
				ID: mint.NewKeyID(), Selector: p.selector, Algorithm: p.public.Algorithm, State: rotation.Active, Custody: rotation.PublicOnly,
				TTL: ttl, PrepareTime: now, ActivateTime: now,
			},
			Testing: p.testing, Fingerprint: mint.Fingerprint(p.public),
		}
		keys = append(keys, k)
	case ttl == held.TTL && p.testing == held.Testing:
		return nil
	default:
		k = *held
		k.TTL, k.Testing = ttl, p.testing
		keys[slices.IndexFunc(keys, func(other keystore.Key) bool { return other.ID == k.ID })] = k
	}
	c.Domain.Keys = keys
	e := s.keyEvent(ctx, "PUBLISH", k)
	if held == nil {
		e.To = k.State
	}
	c.Events = append(c.Events, e)
	c.Publish = append(c.Publish, keystore.Publication{Key: k, Record: s.record(p.public, ttl, p.testing), New: held == nil})
	return nil
}

// DeleteKey implements dkim.v1.KeyManagement.
func (s *Service) DeleteKey(ctx context.Context, req *dkimv1.DeleteKeyRequest) (*dkimv1.Domain, error) {
	n, id, err := parseKeyName("name", req.GetName())
	if err != nil {
		return nil, err
	}
	d, err := s.changeKnown(ctx, n, req.GetEtag(), func(d keystore.Domain) (*keystore.Change, error) {
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
		e := s.keyEvent(ctx, "WITHDRAW", gone)
		e.From, e.To = gone.State, rotation.Destroyed
		return &keystore.Change{Domain: d, Withdraw: []keystore.Key{gone}, Actor: actor(ctx), Events: []keystore.Event{e}}, nil
	})
	if err != nil {
		return nil, err
	}
	return domainMessage(d, nil)
}
