package service

import (
	"context"
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
)

// importing is a checked request to import a key.
type importing struct {
	name     domainName
	selector dnsname.Selector
	pair     *keypair.KeyPair
	ttl      int32 // 0: none given
	testing  bool
	inUse    bool
}

func parseImporting(req *dkimv1.ImportKeyRequest) (importing, error) {
	n, err := parseDomainName("parent", req.GetParent())
	if err != nil {
		return importing{}, err
	}
	sel, err := parseSelector("selector", req.GetSelector(), n.domain)
	if err != nil {
		return importing{}, err
	}
	if _, err := parseTTL(req.GetTtlSeconds(), 0); err != nil {
		return importing{}, err
	}
	pair, err := keypair.ParsePrivateKey([]byte(req.GetPrivateKey()))
	if err != nil {
		return importing{}, keyFailure("private_key", err)
	}
	return importing{n, sel, pair, req.GetTtlSeconds(), req.GetTesting(), req.GetInUse()}, nil
}

// ImportKey implements dkim.v1.KeyManagement.
func (s *Service) ImportKey(ctx context.Context, req *dkimv1.ImportKeyRequest) (*dkimv1.Key, error) {
	i, err := parseImporting(req)
	if err != nil {
		return nil, err
	}
	zone, err := s.zoneOfBrand(ctx, i.name.brand)
	if err != nil {
		return nil, err
	}
	if err := inZone("parent", i.name.domain, zone.Name); err != nil {
		return nil, err
	}
	var planned *keystore.Key // of a request that only asks
	d, err := s.changeDomain(ctx, i.name, zone, func(d keystore.Domain) (*keystore.Change, error) {
		planned = nil
		k, isNew, err := s.imported(d, i, zone)
		if err != nil || k == nil {
			return nil, err
		}
		var look *keystore.Look
		takeOver := false
		if isNew {
			// A refusal must not leave anything, as in ProvisionDomain.
			if look, takeOver, err = s.admitKey(ctx, d, *k); err != nil {
				return nil, err
			}
		}
		operation := admission.Import
		if takeOver {
			operation = admission.TakeOver
		}
		if err := s.ask(ctx, i.name, operation); err != nil {
			return nil, err
		}
		if req.GetValidateOnly() {
			planned = k
			return nil, nil
		}
		c, err := s.importChange(ctx, d, *k, i.pair, isNew)
		if err != nil {
			return nil, err
		}
		c.Look, c.TakeOver = look, takeOver
		return c, nil
	})
	if err != nil {
		return nil, err
	}
	if planned != nil {
		m, err := keyMessage(d, *planned, nil)
		if err == nil {
			m.Name, m.PrepareTime, m.ActivateTime = "", nil, nil
		}
		return m, err
	}
	k := d.KeyIn(i.selector)
	record := s.record(i.pair.Public(), k.TTL, k.Testing)
	return keyMessage(d, *k, &record)
}

// imported is the key that the import makes of what d holds; nil if d has it. It
// is not new if its public half is there.
func (s *Service) imported(d keystore.Domain, i importing, zone keystore.Zone) (_ *keystore.Key, isNew bool, _ error) {
	fingerprint, held := mint.Fingerprint(i.pair.Public()), d.KeyIn(i.selector)
	switch {
	case held != nil && held.Fingerprint != fingerprint:
		return nil, false, selectorInUse(&d, held)
	case held == nil && d.Selector(i.selector) != nil:
		return nil, false, selectorInUse(&d, &keystore.Key{Key: rotation.Key{Selector: i.selector, Custody: rotation.Service}})
	case held != nil && held.State == rotation.Revoked:
		return nil, false, fail(codes.FailedPrecondition, "KEY_REVOKED", fmt.Sprintf("the key in selector %s of %s is revoked; make a new one", i.selector, d.Name))
	case held != nil && held.Custody == rotation.Service:
		return nil, false, nil
	}
	now := s.now()
	k := keystore.Key{
		Key: rotation.Key{
			ID: mint.NewKeyID(), Selector: i.selector, Algorithm: i.pair.Algorithm(), State: rotation.Prepared, Custody: rotation.Service, PrepareTime: now,
		},
		Testing: i.testing, Imported: true, Fingerprint: fingerprint,
	}
	preset := zone.RecordTTL
	if held != nil {
		k, preset = *held, held.TTL // ACTIVE, as all that are published
		k.Custody, k.Imported, k.Testing = rotation.Service, true, i.testing
	} else if i.inUse {
		k.State, k.ActivateTime = rotation.Active, now
	}
	ttl, err := parseTTL(i.ttl, preset)
	if err != nil {
		return nil, false, err
	}
	k.TTL = ttl
	if signs := signing(d, k.Algorithm); signs != nil && k.State == rotation.Active {
		return nil, false, fail(codes.FailedPrecondition, "KEY_ACTIVE", fmt.Sprintf(
			"the key in selector %s of %s signs with %s already: a second one cannot be in use, import it to take its turn", signs.Selector, d.Name, k.Algorithm),
			"selector", string(signs.Selector))
	}
	if len(d.Selectors) == maxSelectors {
		return nil, false, invalid("selector", "INVALID_SELECTOR", fmt.Sprintf("%s has %d selectors, more are not allowed", d.Name, maxSelectors))
	}
	return &k, held == nil, nil
}

// signing is the key that signs in the selectors of an algorithm, if there is one.
func signing(d keystore.Domain, a keypair.Algorithm) *keystore.Key {
	for i, k := range d.Keys {
		sel := d.Selector(k.Selector)
		if k.State == rotation.Active && sel != nil && sel.Algorithm == a {
			return &d.Keys[i]
		}
	}
	return nil
}

// admitKey asks the store whether d may have a new key, whose fingerprint is
// known.
func (s *Service) admitKey(ctx context.Context, d keystore.Domain, k keystore.Key) (look *keystore.Look, takeOver bool, _ error) {
	taken, err := s.store.FingerprintClaimed(ctx, d.Zone, k.Fingerprint)
	if err != nil {
		return nil, false, storeFailure(err)
	}
	if taken {
		return nil, false, claimFailure(&keystore.ClaimError{Reason: keystore.PublicKeyUsedElsewhere, Domain: d.Name, Zone: d.Zone, Selector: k.Selector})
	}
	return s.admit(ctx, d, []keystore.Selector{{Selector: k.Selector, Algorithm: k.Algorithm}})
}

// importChange is the change that takes the key in, or only its private half.
func (s *Service) importChange(ctx context.Context, d keystore.Domain, k keystore.Key, pair *keypair.KeyPair, isNew bool) (*keystore.Change, error) {
	sealed, err := s.mint.Seal(ctx, d, k.ID, pair)
	if err != nil {
		return nil, mintFailure(err)
	}
	e := s.keyEvent(ctx, "IMPORT", k)
	if isNew {
		e.To = k.State
	}
	d.Selectors = append(slices.Clip(d.Selectors), keystore.Selector{Selector: k.Selector, Algorithm: k.Algorithm})
	d.Keys = append(slices.DeleteFunc(slices.Clone(d.Keys), func(other keystore.Key) bool { return other.ID == k.ID }), k)
	return &keystore.Change{
		Domain: d, Actor: actor(ctx), Events: []keystore.Event{e},
		Publish: []keystore.Publication{{Key: k, Record: s.record(pair.Public(), k.TTL, k.Testing), Sealed: sealed, New: isNew}},
	}, nil
}
