package service

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/status"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/admission"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/mint"
	"github.com/dkimzone/dkimzone/internal/refusal"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
)

const (
	maxBatch = 1000
	// maxTogether bounds the keys of one domain that go into one change, so that
	// it fits into a transaction. The others follow one by one.
	maxTogether = 12
)

// batch is a BatchPublishKeys under way.
type batch struct {
	zone    keystore.Zone
	items   []publishing
	results []*dkimv1.BatchPublishKeysResponse_Result
	domains []*batchDomain // in the order of their first items
	alone   []int          // items that are published by themselves when the others are done
}

// batchDomain is what a batch does with one domain at once.
type batchDomain struct {
	name  dnsname.Domain
	items []int
}

// BatchPublishKeys implements dkim.v1.KeyManagement.
func (s *Service) BatchPublishKeys(ctx context.Context, req *dkimv1.BatchPublishKeysRequest) (*dkimv1.BatchPublishKeysResponse, error) {
	brand, err := parseBrandName("parent", req.GetParent())
	if err != nil {
		return nil, err
	}
	if n := len(req.GetRequests()); n > maxBatch {
		return nil, invalid("requests", "BATCH_TOO_LARGE", fmt.Sprintf("%d requests given, at most %d are allowed: send several batches", n, maxBatch))
	}
	zone, err := s.zoneOfBrand(ctx, brand)
	if err != nil {
		return nil, err
	}
	b := &batch{zone: zone}
	if err := b.parse(brand, req.GetRequests()); err != nil {
		return nil, err
	}
	if err := s.publishTogether(ctx, brand, b); err != nil {
		return nil, err
	}
	for _, i := range b.alone {
		d, err := s.publish(ctx, b.items[i], zone)
		if err := b.done(i, d, err); err != nil {
			return nil, err
		}
	}
	return &dkimv1.BatchPublishKeysResponse{Results: b.results}, nil
}

// parse checks each request and sorts the good ones by domain.
func (b *batch) parse(brand string, reqs []*dkimv1.PublishKeyRequest) error {
	b.items = make([]publishing, len(reqs))
	b.results = make([]*dkimv1.BatchPublishKeysResponse_Result, len(reqs))
	type place struct {
		domain   dnsname.Domain
		selector dnsname.Selector
	}
	byName := make(map[dnsname.Domain]*batchDomain)
	taken := make(map[place]bool)
	keys := make(map[[schema.FingerprintLen]byte]bool)
	for i, req := range reqs {
		p, err := parsePublishing(req)
		if err == nil && p.name.brand != brand {
			err = invalid("parent", "INVALID_NAME", fmt.Sprintf("%s is not of brands/%s, which the batch is for", p.name, brand))
		}
		if err != nil {
			if err := b.refuse(i, err); err != nil {
				return err
			}
			continue
		}
		b.items[i] = p
		d := byName[p.name.domain]
		if d == nil {
			d = &batchDomain{name: p.name.domain}
			byName[d.name] = d
			b.domains = append(b.domains, d)
		}
		// What becomes of a second one for a selector, or of the same key for
		// another name, depends on the first.
		at, key := place{p.name.domain, p.selector}, mint.Fingerprint(p.public)
		if taken[at] || keys[key] || len(d.items) == maxTogether {
			b.alone = append(b.alone, i)
			continue
		}
		taken[at], keys[key] = true, true
		d.items = append(d.items, i)
	}
	return nil
}

// publishTogether publishes the keys of each domain in one change, and many
// domains in one transaction. Where that does not succeed, each key is left to be
// published by itself, which tells what is wrong with it.
func (s *Service) publishTogether(ctx context.Context, brand string, b *batch) error {
	names := make([]dnsname.Domain, len(b.domains))
	for i, d := range b.domains {
		names[i] = d.name
	}
	present, err := s.store.DomainsOf(ctx, brand, names)
	if err != nil {
		return storeFailure(err)
	}
	var changes []keystore.Change
	var changed [][]int // the items of each change
	var alone []int
	for n, d := range b.domains {
		if present[n].Revision == 0 {
			present[n] = keystore.Domain{Brand: brand, Name: d.name, Zone: b.zone.Name, CreateTime: s.now()}
		}
		change := keystore.Change{Domain: present[n], Actor: actor(ctx)}
		var items []int
		for _, i := range d.items {
			before := len(change.Publish)
			switch err := s.addPublication(ctx, &change, b.items[i], b.zone); {
			case err != nil: // by what stands, or by another item of this batch
				alone = append(alone, i)
			case len(change.Publish) == before: // is there already
				if err := b.done(i, change.Domain, nil); err != nil {
					return err
				}
			default:
				items = append(items, i)
			}
		}
		if len(items) == 0 {
			continue
		}
		change.Domain.UpdateTime = s.now()
		change.Due = firstLook(change.Domain)
		changes, changed = append(changes, change), append(changed, items)
	}
	if changes, changed, err = s.admitted(ctx, brand, b, changes, changed); err != nil {
		return err
	}
	for n, res := range s.store.ApplyBatch(ctx, changes) {
		if errors.Is(res.Err, keystore.ErrUnavailable) || ctx.Err() != nil && res.Err != nil {
			return storeFailure(res.Err)
		}
		if res.Err != nil && (len(changed[n]) > 1 || errors.Is(res.Err, keystore.ErrConflict)) {
			alone = append(alone, changed[n]...)
			continue
		}
		refusal := storeFailure(res.Err)
		if claim, ok := errors.AsType[*keystore.ClaimError](res.Err); ok && claim.Reason == keystore.ReservedForBrand {
			refusal = reserved(brand, claim) // a batch does not wait for DNS
		}
		for _, i := range changed[n] {
			if err := b.done(i, res.Domain, refusal); err != nil {
				return err
			}
		}
	}
	b.alone = append(b.alone, alone...)
	slices.Sort(b.alone)
	return nil
}

// firstLook is when the controller is to look at a domain whose keys a batch has
// published. Unless it has other keys nothing in it may happen by itself.
func firstLook(d keystore.Domain) time.Time {
	if slices.ContainsFunc(d.Keys, func(k keystore.Key) bool { return k.Custody != rotation.PublicOnly }) {
		return time.Time{} // at once
	}
	return keystore.LaterLook(d)
}

// admitted leaves out the changes of domains that are to get keys and are not
// admitted, and fills in the results of their items.
func (s *Service) admitted(ctx context.Context, brand string, b *batch, changes []keystore.Change, changed [][]int) ([]keystore.Change, [][]int, error) {
	if s.gate == nil {
		return changes, changed, nil
	}
	var names []dnsname.Domain
	var places []int
	for n, c := range changes {
		if slices.ContainsFunc(c.Publish, func(p keystore.Publication) bool { return p.New }) {
			names, places = append(names, c.Domain.Name), append(places, n)
		}
	}
	rejections, err := s.askAll(ctx, brand, names, admission.Publish)
	if err != nil {
		return nil, nil, err
	}
	rejected := make(map[int]bool)
	for k, n := range places {
		if rejections[k] == nil {
			continue
		}
		rejected[n] = true
		for _, i := range changed[n] {
			if err := b.refuse(i, rejections[k]); err != nil {
				return nil, nil, err
			}
		}
	}
	var leftChanges []keystore.Change
	var left [][]int
	for n := range changes {
		if !rejected[n] {
			leftChanges, left = append(leftChanges, changes[n]), append(left, changed[n])
		}
	}
	return leftChanges, left, nil
}

// done fills in the result of an item. It returns the errors that no item is to
// blame for.
func (b *batch) done(i int, d keystore.Domain, err error) error {
	if err != nil {
		return b.refuse(i, err)
	}
	p := b.items[i]
	owner, err := dnsname.OwnerName(p.selector, d.HostLabel, d.Zone)
	if err != nil {
		return err
	}
	b.results[i] = &dkimv1.BatchPublishKeysResponse_Result{Key: p.name.key(d.KeyIn(p.selector).ID), OwnerName: owner}
	return nil
}

// refuse fills in the result of an item that was rejected. An err that is no
// rejection is returned: it is the call's, and so is a store that is away.
func (b *batch) refuse(i int, err error) error {
	if _, down := errors.AsType[*storeDown](err); down {
		return err
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	if refusal.Reason(err) == "" {
		return err
	}
	b.results[i] = &dkimv1.BatchPublishKeysResponse_Result{Error: st.Proto()}
	return nil
}
