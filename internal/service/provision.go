package service

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

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

const (
	maxSelectors = 12
	// maxSelectorDashes bounds the claims a selector needs (dnsname.ShadowLabels)
	// and with it the size of a transaction.
	maxSelectorDashes = 4
	// minPerAlgorithm is how many selectors keys need to take turns.
	minPerAlgorithm = 2
)

var defaultSelectors = []dnsname.Selector{"selector1", "selector2"}

// wish is a checked ProvisionDomainRequest.
type wish struct {
	name      domainName
	selectors []keystore.Selector // as asked, Algorithm 0 where unnamed; nil: whatever is there, or the default
	algorithm keypair.Algorithm   // 0: unnamed
	testing   bool
	ttl       int32
}

// ProvisionDomain implements dkim.v1.KeyManagement.
func (s *Service) ProvisionDomain(ctx context.Context, req *dkimv1.ProvisionDomainRequest) (*dkimv1.Domain, error) {
	w, err := parseWish(req)
	if err != nil {
		return nil, err
	}
	ctx = keystore.WithFloor(ctx)
	p, err := s.place(ctx, w.name.brand)
	if err != nil {
		return nil, err
	}
	if err := inZone("name", w.name.domain, p.zone.Name); err != nil {
		return nil, err
	}
	ttl, err := parseTTL(w.ttl, p.zone.RecordTTL)
	if err != nil {
		return nil, err
	}
	if p.brand.Mode != rotation.ModePerDomain && w.selectors == nil {
		w.selectors = []keystore.Selector{} // it signs with the brand's keys
	}
	opts := mint.Options{Actor: actor(ctx), TTL: ttl, Testing: w.testing, Pairs: make(mint.Pairs)}
	d, err := s.changeDomain(ctx, w.name, p.zone, func(d keystore.Domain) (*keystore.Change, error) {
		missing, err := plan(&d, w)
		if err != nil || len(missing) == 0 && d.Revision != 0 {
			return nil, err
		}
		// A refusal must not leave anything, not even a first data key of the
		// brand, which sealing makes.
		look, takeOver, err := s.admit(ctx, d, missing)
		if err != nil {
			return nil, err
		}
		operation := admission.Provision
		if takeOver {
			operation = admission.TakeOver
		}
		if err := s.ask(ctx, w.name, operation); err != nil {
			return nil, err
		}
		change, err := s.provisioning(ctx, d, missing, look, opts)
		if err != nil {
			return nil, err
		}
		change.TakeOver = takeOver
		return change, nil
	})
	if err != nil {
		return nil, err
	}
	return domainMessage(d, p.shared)
}

func parseWish(req *dkimv1.ProvisionDomainRequest) (wish, error) {
	w := wish{testing: req.GetTesting(), ttl: req.GetTtlSeconds()}
	var err error
	if w.name, err = parseDomainName("name", req.GetName()); err != nil {
		return wish{}, err
	}
	if w.algorithm, err = parseAlgorithm("algorithm", req.GetAlgorithm()); err != nil {
		return wish{}, err
	}
	if _, err := parseTTL(w.ttl, 0); err != nil {
		return wish{}, err
	}
	if n := len(req.GetSelectors()); n > maxSelectors {
		return wish{}, invalid("selectors", "INVALID_SELECTOR", fmt.Sprintf("%d selectors given, at most %d are allowed", n, maxSelectors))
	}
	for i, spec := range req.GetSelectors() {
		field := fmt.Sprintf("selectors[%d]", i)
		sel, err := parseSelector(field+".selector", spec.GetSelector(), w.name.domain)
		if err != nil {
			return wish{}, err
		}
		if slices.ContainsFunc(w.selectors, func(s keystore.Selector) bool { return s.Selector == sel }) {
			return wish{}, invalid(field+".selector", "INVALID_SELECTOR", fmt.Sprintf("%s is there twice", sel))
		}
		a, err := parseAlgorithm(field+".algorithm", spec.GetAlgorithm())
		if err != nil {
			return wish{}, err
		}
		w.selectors = append(w.selectors, keystore.Selector{Selector: sel, Algorithm: a})
	}
	return w, nil
}

func parseSelector(field, selector string, d dnsname.Domain) (dnsname.Selector, error) {
	sel, err := dnsname.ParseSelector(selector)
	if err != nil {
		return "", nameFailure(field, "INVALID_SELECTOR", err)
	}
	if strings.Count(string(sel), "-") > maxSelectorDashes {
		return "", invalid(field, "INVALID_SELECTOR", fmt.Sprintf("%s has more than %d dashes: choose a plainer one", sel, maxSelectorDashes))
	}
	if _, err := dnsname.AliasOwnerName(sel, d); err != nil {
		return "", nameFailure(field, "INVALID_SELECTOR", err)
	}
	return sel, nil
}

// plan sets the managed selectors that d is to have and returns those that hold
// no key yet.
func plan(d *keystore.Domain, w wish) (missing []keystore.Selector, err error) {
	asked := w.selectors
	if asked == nil && len(d.Selectors) > 0 {
		for _, s := range d.Selectors {
			asked = append(asked, keystore.Selector{Selector: s.Selector})
		}
	} else if asked == nil {
		for _, sel := range defaultSelectors {
			if _, err := dnsname.AliasOwnerName(sel, d.Name); err != nil {
				return nil, nameFailure("name", "INVALID_DOMAIN", err)
			}
			asked = append(asked, keystore.Selector{Selector: sel})
		}
	}
	for _, want := range asked {
		named := want.Algorithm
		if named == 0 {
			named = w.algorithm
		}
		have := d.Selector(want.Selector)
		if have == nil {
			if k := d.KeyIn(want.Selector); k != nil {
				return nil, selectorInUse(d, k)
			}
			if named == 0 {
				named = keypair.RSA2048
			}
			d.Selectors = append(d.Selectors, keystore.Selector{Selector: want.Selector, Algorithm: named})
			have = &d.Selectors[len(d.Selectors)-1]
		} else if named != 0 && named != have.Algorithm {
			return nil, fail(codes.FailedPrecondition, "ALGORITHM_DIFFERS", fmt.Sprintf(
				"selector %s of %s is of algorithm %s, not %s: UpdateDomain changes the algorithm of selectors that are there, or provision further ones with the new one",
				want.Selector, d.Name, have.Algorithm, named), "selector", string(want.Selector), "algorithm", have.Algorithm.String())
		}
		if d.KeyIn(want.Selector) == nil {
			missing = append(missing, *have)
		}
	}
	if len(missing) == 0 {
		return nil, nil
	}
	if len(d.Selectors) > maxSelectors {
		return nil, invalid("selectors", "INVALID_SELECTOR", fmt.Sprintf("%s would have %d selectors, at most %d are allowed", d.Name, len(d.Selectors), maxSelectors))
	}
	count := make(map[keypair.Algorithm]int)
	for _, s := range d.Selectors {
		count[s.Algorithm]++
	}
	for _, s := range missing { // one that was imported may be alone
		if count[s.Algorithm] < minPerAlgorithm {
			return nil, invalid("selectors", "INVALID_SELECTOR", fmt.Sprintf(
				"%s would be the only selector of algorithm %s: keys take turns, give at least %d of each algorithm", s.Selector, s.Algorithm, minPerAlgorithm))
		}
	}
	return missing, nil
}

// admit asks the store whether d may have new keys in the selectors, and reports
// whether it may because the domain is shown to have changed hands.
func (s *Service) admit(ctx context.Context, d keystore.Domain, missing []keystore.Selector) (look *keystore.Look, takeOver bool, _ error) {
	selectors := make([]dnsname.Selector, len(missing))
	for i, sel := range missing {
		selectors[i] = sel.Selector
	}
	look, err := s.store.Admit(ctx, d, selectors, false)
	if shown, refused := s.mayTakeOver(ctx, d.Brand, err); refused != nil {
		return nil, false, refused
	} else if shown {
		takeOver = true
		look, err = s.store.Admit(ctx, d, selectors, true)
	}
	if errors.Is(err, keystore.ErrConflict) {
		return nil, takeOver, nil // Apply finds it too, and then all is computed anew
	}
	return look, takeOver, storeFailure(err)
}

func selectorInUse(d *keystore.Domain, k *keystore.Key) error {
	what := "the service manages its keys"
	if k.Custody == rotation.PublicOnly {
		what = "it holds a published key made elsewhere; delete that key first"
	}
	return fail(codes.FailedPrecondition, "SELECTOR_IN_USE", fmt.Sprintf(
		"selector %s of %s is in use: %s, or choose another selector", k.Selector, d.Name, what), "selector", string(k.Selector))
}

// provisioning is the change that puts a key into each of the selectors, which look
// has admitted.
func (s *Service) provisioning(ctx context.Context, d keystore.Domain, selectors []keystore.Selector, look *keystore.Look, opts mint.Options) (*keystore.Change, error) {
	steps := make([]rotation.Step, len(selectors))
	for i, sel := range selectors {
		steps[i] = rotation.Step{Kind: rotation.Refill, Selector: sel.Selector, Algorithm: sel.Algorithm, Reason: rotation.ReasonEmptySelector}
	}
	opts.Now = s.now()
	change, err := s.mint.Change(ctx, d, steps, opts)
	if err != nil {
		return nil, mintFailure(err)
	}
	change.Look = look
	return &change, nil
}

// mintFailure turns an error of making keys into a rejection.
func mintFailure(err error) error {
	switch {
	case errors.Is(err, keystore.ErrUnavailable): // the brand's data key is in the store too
		return storeFailure(err)
	case errors.Is(err, context.DeadlineExceeded):
		return fail(codes.DeadlineExceeded, "KEY_GENERATION_SLOW", "the deadline passed while waiting for a key to be generated; nothing was changed, try again with more time")
	case errors.Is(err, context.Canceled):
		return storeFailure(context.Canceled)
	}
	return err
}

func (s *Service) record(k keypair.PublicKey, ttl uint32, testing bool) schema.PublicRecord {
	return schema.PublicRecord{
		KeyType: k.Algorithm.KeyType(), PublicKey: k.Octets, Testing: testing, TTL: ttl, UpdateTime: s.now(),
	}
}

func (s *Service) zoneOfBrand(ctx context.Context, brand string) (keystore.Zone, error) {
	b, err := s.store.Brand(ctx, brand)
	if err != nil {
		return keystore.Zone{}, storeFailure(err)
	}
	z, err := s.store.Zone(ctx, b.Zone)
	return z, storeFailure(err)
}

// changeDomain reads a domain (or begins a new one), lets compute say what is to
// change, and applies it; again if somebody else was faster. A nil change
// leaves the domain as it is.
func (s *Service) changeDomain(ctx context.Context, n domainName, zone keystore.Zone, compute func(keystore.Domain) (*keystore.Change, error)) (keystore.Domain, error) {
	for range conflictRetries {
		d, err := s.store.Domain(ctx, n.brand, n.domain)
		if errors.Is(err, keystore.ErrDomainNotFound) {
			d, err = keystore.Domain{Brand: n.brand, Name: n.domain, Zone: zone.Name, CreateTime: s.now()}, nil
		}
		if err != nil {
			return keystore.Domain{}, storeFailure(err)
		}
		change, err := compute(d)
		if err != nil {
			return keystore.Domain{}, storeFailure(err) // of what seals keys, say
		}
		if change == nil {
			return d, nil
		}
		change.Domain.UpdateTime = s.now()
		if d.Revision == 0 {
			change.Events = slices.Concat([]keystore.Event{s.event(ctx, "CREATE")}, change.Events)
		}
		stored, err := s.apply(ctx, *change)
		if err == nil {
			return stored, nil
		}
		if !errors.Is(err, keystore.ErrConflict) {
			return keystore.Domain{}, storeFailure(err)
		}
	}
	return keystore.Domain{}, storeFailure(keystore.ErrConflict)
}

// apply applies a change, of a domain that another brand had too if DNS shows
// that it has changed hands.
func (s *Service) apply(ctx context.Context, change keystore.Change) (keystore.Domain, error) {
	stored, err := s.store.Apply(ctx, change)
	shown, refused := s.mayTakeOver(ctx, change.Domain.Brand, err)
	switch {
	case refused != nil:
		return keystore.Domain{}, refused
	case shown:
		n := domainName{change.Domain.Brand, change.Domain.Name}
		if err := s.ask(ctx, n, admission.TakeOver); err != nil {
			return keystore.Domain{}, err
		}
		change.TakeOver = true
		return s.store.Apply(ctx, change)
	}
	return stored, err
}
