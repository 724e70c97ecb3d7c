package keystore

import (
	"context"
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// DeleteDomain removes a domain with all that is known of it, its records and its
// private keys, and leaves tombstones of its host labels and its history, to which
// it adds events; their time is now if they have none. It returns the revision of
// the deletion, or ErrDomainNotFound, or ErrConflict if d is not the domain as it
// stands.
//
// Due entries of changes that nobody looked at may stay, for DropDue.
func (s *Store) DeleteDomain(ctx context.Context, d Domain, now time.Time, events ...Event) (int64, error) {
	if err := s.ready(); err != nil {
		return 0, err
	}
	revision, err := s.deleteDomain(ctx, d, now, events)
	s.tell(ctx, Witnessed{Brand: d.Brand, Domain: d.Name, Revision: revision, Events: events}, err)
	return revision, err
}

func (s *Store) deleteDomain(ctx context.Context, d Domain, now time.Time, events []Event) (int64, error) {
	domainKey := schema.DomainKey(d.Brand, string(d.Name))
	ops, err := s.planDeletion(ctx, d, now, events)
	if err != nil {
		return 0, err
	}
	counted, also, err := s.countGone(ctx, d)
	if err != nil {
		return 0, err
	}
	ops = slices.Concat(ops, also, []clientv3.Op{touchApex(string(d.Zone))})
	resp, err := s.txn(ctx, append(counted, unchanged(domainKey, d.Revision)), ops, []clientv3.Op{clientv3.OpGet(domainKey)})
	if err != nil {
		return 0, err
	}
	if !resp.Succeeded {
		return 0, missingOrConflict(resp, fmt.Errorf("%w: %s", ErrDomainNotFound, d.Name))
	}
	return resp.Header.Revision, nil
}

// planDeletion returns the operations, deletionOps less that which touches the
// apex, that delete d as it was read.
func (s *Store) planDeletion(ctx context.Context, d Domain, now time.Time, events []Event) ([]clientv3.Op, error) {
	st, err := s.Status(ctx, d.Brand, d.Name)
	if err != nil {
		return nil, err
	}
	zone, name := string(d.Zone), string(d.Name)
	ops := []clientv3.Op{
		clientv3.OpDelete(schema.DomainKey(d.Brand, name)),
		clientv3.OpDelete(schema.SealedKeyPrefix(d.Brand, name), clientv3.WithPrefix()),
		clientv3.OpDelete(schema.RetainedDomainPrefix(d.Brand, name), clientv3.WithPrefix()),
		clientv3.OpDelete(schema.DisclosedPrefix(d.Brand, name), clientv3.WithPrefix()),
		clientv3.OpDelete(schema.ReportPrefix(d.Brand, name), clientv3.WithPrefix()),
		clientv3.OpDelete(schema.StatusKey(d.Brand, name)),
	}
	var p plan
	gone := make(map[string]bool)
	p.drop(schema.DueKey(d.UpdateTime, d.Brand, name), gone) // of the last change, if it named no time
	if st.Revision != 0 {
		p.drop(st.dueKey(), gone)
	}
	ops = append(ops, p.ops...)
	if past := slices.Concat(d.Events, completed(events, "", now)); len(past) > 0 {
		key, block, err := d.block(past)
		if err != nil {
			return nil, err
		}
		d.HistoryBlocks++
		ops = append(ops, clientv3.OpPut(key, string(block)))
	}
	for _, k := range d.Keys {
		if !k.Published() {
			continue
		}
		key, err := recordKey(d, k.Selector)
		if err != nil {
			return nil, err
		}
		ops = append(ops, clientv3.OpDelete(key), clientv3.OpDelete(schema.FingerprintKey(zone, k.Fingerprint[:])))
	}
	for _, l := range d.labels() {
		c := claim{brand: d.Brand, domain: d.Name, deleteTime: now}
		if l == d.HostLabel {
			c.historyBlocks = d.HistoryBlocks
		}
		tombstone, err := c.marshal()
		if err != nil {
			return nil, fmt.Errorf("tombstone of %s: %w", d.Name, err)
		}
		ops = append(ops, clientv3.OpPut(schema.LabelKey(zone, string(l)), string(tombstone)))
	}
	return ops, nil
}

// deletionOps is the number of operations that DeleteDomain needs for d with a
// key in each of the selectors, at most. No domain grows beyond what one
// transaction deletes.
func deletionOps(d Domain, selectors []dnsname.Selector) int {
	d.Keys = slices.Clone(d.Keys)
	for _, sel := range selectors {
		if d.KeyIn(sel) == nil {
			d.Keys = append(d.Keys, Key{Key: rotation.Key{Selector: sel}})
		}
	}
	published := 0
	for _, k := range d.Keys {
		if k.Published() {
			published++
		}
	}
	const fixed = 11 // the apex, the tally, the history, two due entries and the six of every deletion
	return fixed + 2*published + len(d.labels())
}
