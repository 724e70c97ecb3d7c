package keystore

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// Change is everything one transaction does to a domain.
type Change struct {
	// Domain as it will stand. Its Revision is the one it was read at, 0 for a
	// new domain, whose HostLabel is then left empty for Apply to choose. Its
	// UpdateTime is the time of the change.
	Domain Domain
	// Publish holds the records to write.
	Publish []Publication
	// Withdraw holds keys whose records and private halves go.
	Withdraw []Key
}

// Publication is a record to write for a key of the domain.
type Publication struct {
	Key    Key
	Record schema.PublicRecord
	Sealed []byte // the sealed private half to keep, if any
	// New is false when only the record of a published key changes.
	New bool
}

// labelRaces is how often Apply starts again when somebody else claims a host
// label, or changes the brand, between its look and its transaction.
const labelRaces = 8

// maxTxnOps is etcd's bound of a transaction (--max-txn-ops).
const maxTxnOps = 128

// Apply carries out a change in one transaction and returns the domain as
// stored. It returns ErrConflict if the domain is no longer the one the change
// was computed from, or the brand not in the domain's zone; ErrBrandNotFound,
// ErrZoneNotFound, ErrTooManyKeys, or a *ClaimError.
func (s *Store) Apply(ctx context.Context, c Change) (Domain, error) {
	for range labelRaces {
		d, again, err := s.tryApply(ctx, c)
		if !again {
			return d, err
		}
	}
	return Domain{}, fmt.Errorf("%w: host label of %s", ErrConflict, c.Domain.Name)
}

func (s *Store) tryApply(ctx context.Context, c Change) (_ Domain, again bool, _ error) {
	d := c.Domain
	brandKey := schema.BrandKey(d.Brand)
	if d.Revision != 0 {
		return s.commit(ctx, c, d, []clientv3.Cmp{present(brandKey)})
	}
	candidates := dnsname.HostLabelCandidates(d.Name)
	claims, brand, err := s.look(ctx, d, candidates)
	if err != nil {
		return Domain{}, false, err
	}
	d.HostLabel, err = chooseLabel(&d, candidates, claims, newSelectors(c.Publish))
	if err != nil {
		return Domain{}, false, err
	}
	cmps := []clientv3.Cmp{unchanged(brandKey, brand.Revision)}
	for l, cl := range claims {
		cmps = append(cmps, unchanged(schema.LabelKey(string(d.Zone), string(l)), cl.revision))
	}
	return s.commit(ctx, c, d, cmps)
}

// look reads the claims of a new domain's candidate labels, and its brand, which
// may have been deleted and made anew in another zone since d was computed.
func (s *Store) look(ctx context.Context, d Domain, candidates []dnsname.HostLabel) (map[dnsname.HostLabel]claim, Brand, error) {
	claims, kv, err := s.claims(ctx, d.Zone, candidates, clientv3.OpGet(schema.BrandKey(d.Brand)))
	if err != nil {
		return nil, Brand{}, err
	}
	if kv == nil {
		return nil, Brand{}, fmt.Errorf("%w: %s", ErrBrandNotFound, d.Brand)
	}
	b, err := brandFrom(kv)
	if err != nil {
		return nil, Brand{}, err
	}
	if b.Zone != d.Zone {
		return nil, Brand{}, fmt.Errorf("%w: brand %s", ErrConflict, d.Brand)
	}
	return claims, b, nil
}

// commit builds and commits the transaction. cmps holds what must still be as it
// was looked at. again reports that a label was claimed, or the brand changed,
// meanwhile.
func (s *Store) commit(ctx context.Context, c Change, d Domain, cmps []clientv3.Cmp) (_ Domain, again bool, _ error) {
	shadows, err := s.admit(ctx, d, newSelectors(c.Publish))
	if err != nil {
		return Domain{}, false, err
	}
	p, err := planChange(c, d, shadows)
	if err != nil {
		return Domain{}, false, err
	}
	zone, brandKey, apexKey := string(d.Zone), schema.BrandKey(d.Brand), schema.ApexKey(string(d.Zone))
	for key, revision := range p.unchanged {
		cmps = append(cmps, unchanged(key, revision))
	}
	cmps = append(cmps, present(apexKey))
	reads := []clientv3.Op{clientv3.OpGet(p.domainKey), clientv3.OpGet(brandKey), clientv3.OpGet(apexKey)}
	fixed := len(reads) // reads[fixed+i] is of p.fresh[i]'s fingerprint
	for _, f := range p.fresh {
		reads = append(reads, clientv3.OpGet(schema.FingerprintKey(zone, f.Key.Fingerprint[:])))
	}
	resp, err := s.txn(ctx, cmps, append(p.ops, touchApex(zone)), reads)
	if err != nil {
		return Domain{}, false, err
	}
	if resp.Succeeded {
		d, err = p.stored(resp.Header.Revision)
		return d, false, err
	}
	again, err = why(resp, d, fixed, p.fresh)
	return Domain{}, again, err
}

// plan is the part of a transaction that is one domain's. What domains share,
// the brand's comparison and the touch of the apex, is not in it.
type plan struct {
	domainKey string
	value     []byte           // of domainKey
	unchanged map[string]int64 // keys with the mod_revision they must still have, 0: absent
	ops       []clientv3.Op
	fresh     []Publication // new ones
}

// planChange plans c. d is c.Domain with its host label, shadows are the claims
// that its new selectors rest on.
func planChange(c Change, d Domain, shadows map[dnsname.HostLabel]claim) (plan, error) {
	value, err := d.marshal()
	if err != nil {
		return plan{}, err
	}
	own, err := claim{brand: d.Brand, domain: d.Name}.marshal()
	if err != nil {
		return plan{}, fmt.Errorf("claim of %s: %w", d.Name, err)
	}
	zone := string(d.Zone)
	p := plan{domainKey: schema.DomainKey(d.Brand, string(d.Name)), value: value, unchanged: make(map[string]int64)}
	p.unchanged[p.domainKey] = d.Revision
	p.put(p.domainKey, value)
	if d.Revision == 0 {
		p.put(schema.LabelKey(zone, string(d.HostLabel)), own)
	}
	for l, cl := range shadows {
		key := schema.LabelKey(zone, string(l))
		p.unchanged[key] = cl.revision
		if cl.revision == 0 || !cl.deleteTime.IsZero() {
			p.put(key, own)
		}
	}
	if err := p.withdraw(c, d); err != nil {
		return plan{}, err
	}
	return p, p.publish(c, d)
}

func (p *plan) put(key string, value []byte) {
	p.ops = append(p.ops, clientv3.OpPut(key, string(value)))
}

func (p *plan) withdraw(c Change, d Domain) error {
	if len(c.Withdraw) == 0 {
		return nil
	}
	zone := string(d.Zone)
	for _, k := range c.Withdraw {
		recordKey, err := recordKey(d, k.Selector)
		if err != nil {
			return err
		}
		p.ops = append(p.ops,
			clientv3.OpDelete(recordKey),
			clientv3.OpDelete(schema.FingerprintKey(zone, k.Fingerprint[:])),
			clientv3.OpDelete(schema.SealedKeyKey(d.Brand, string(d.Name), k.ID)))
	}
	tombstone, err := claim{brand: d.Brand, domain: d.Name, deleteTime: d.UpdateTime}.marshal()
	if err != nil {
		return fmt.Errorf("tombstone of %s: %w", d.Name, err)
	}
	for _, l := range released(c.Withdraw, d) {
		p.put(schema.LabelKey(zone, string(l)), tombstone)
	}
	return nil
}

func (p *plan) publish(c Change, d Domain) error {
	zone := string(d.Zone)
	for _, pub := range c.Publish {
		record, err := pub.Record.Marshal()
		if err != nil {
			return fmt.Errorf("record of %s: %w", d.Name, err)
		}
		recordKey, err := recordKey(d, pub.Key.Selector)
		if err != nil {
			return err
		}
		p.put(recordKey, record)
		if pub.New {
			fingerprintKey := schema.FingerprintKey(zone, pub.Key.Fingerprint[:])
			p.fresh = append(p.fresh, pub)
			p.unchanged[recordKey], p.unchanged[fingerprintKey] = 0, 0
			p.put(fingerprintKey, []byte(string(pub.Key.Selector)+"."+string(d.Name)))
		}
		if pub.Sealed != nil {
			p.put(schema.SealedKeyKey(d.Brand, string(d.Name), pub.Key.ID), pub.Sealed)
		}
	}
	return nil
}

// stored is the domain as it stands after the transaction.
func (p *plan) stored(revision int64) (Domain, error) {
	return domainFrom(&mvccpb.KeyValue{Key: []byte(p.domainKey), Value: p.value, ModRevision: revision})
}

// why tells what made the transaction of a change fail.
func why(resp *clientv3.TxnResponse, d Domain, fixed int, fresh []Publication) (again bool, err error) {
	kv := readAt(resp, 0)
	switch {
	case kv == nil && d.Revision != 0, kv != nil && kv.ModRevision != d.Revision:
		return false, fmt.Errorf("%w: domain %s", ErrConflict, d.Name)
	case readAt(resp, 1) == nil:
		return false, fmt.Errorf("%w: %s", ErrBrandNotFound, d.Brand)
	case readAt(resp, 2) == nil:
		return false, fmt.Errorf("%w: %s", ErrZoneNotFound, d.Zone)
	}
	for i, p := range fresh {
		if readAt(resp, fixed+i) != nil {
			return false, &ClaimError{Reason: PublicKeyUsedElsewhere, Domain: d.Name, Zone: d.Zone, Selector: p.Key.Selector}
		}
	}
	return true, nil
}

// Admit returns the *ClaimError, if any, with which Apply would refuse new keys
// in the given selectors of d as things stand, whatever the keys, or
// ErrBrandNotFound, ErrTooManyKeys or ErrConflict. d is as in Change. Who makes keys asks first,
// so that a refusal costs none.
func (s *Store) Admit(ctx context.Context, d Domain, selectors []dnsname.Selector) error {
	if d.Revision == 0 {
		candidates := dnsname.HostLabelCandidates(d.Name)
		claims, _, err := s.look(ctx, d, candidates)
		if err != nil {
			return err
		}
		if d.HostLabel, err = chooseLabel(&d, candidates, claims, selectors); err != nil {
			return err
		}
	}
	_, err := s.admit(ctx, d, selectors)
	return err
}

// admit tells whether d may have new keys in the given selectors, and returns
// the claims that this rests on.
func (s *Store) admit(ctx context.Context, d Domain, selectors []dnsname.Selector) (map[dnsname.HostLabel]claim, error) {
	for _, sel := range selectors {
		if !fits(sel, d.HostLabel, d.Zone) {
			return nil, &ClaimError{Reason: SelectorDoesNotFit, Domain: d.Name, Zone: d.Zone, Selector: sel, Label: d.HostLabel}
		}
	}
	if deletionOps(d, selectors) > maxTxnOps {
		return nil, fmt.Errorf("%w: %s", ErrTooManyKeys, d.Name)
	}
	return s.shadows(ctx, d, selectors)
}

// shadows reads the claims of the labels that must not belong to another domain
// for new keys in the given selectors to be unambiguous (dnsname.ShadowLabels).
func (s *Store) shadows(ctx context.Context, d Domain, selectors []dnsname.Selector) (map[dnsname.HostLabel]claim, error) {
	bySelector := make(map[dnsname.HostLabel]dnsname.Selector)
	var labels []dnsname.HostLabel
	for _, sel := range selectors {
		for _, l := range dnsname.ShadowLabels(sel, d.HostLabel) {
			if _, seen := bySelector[l]; !seen {
				bySelector[l] = sel
				labels = append(labels, l)
			}
		}
	}
	if len(labels) == 0 {
		return nil, nil
	}
	claims, _, err := s.claims(ctx, d.Zone, labels)
	if err != nil {
		return nil, err
	}
	for l, cl := range claims {
		if cl.revision != 0 && cl.domain != d.Name {
			return nil, &ClaimError{Reason: SelectorTaken, Domain: d.Name, Zone: d.Zone, Selector: bySelector[l], Label: l}
		}
	}
	return claims, nil
}

// claims reads the claims of labels, with revision 0 for free ones, and what
// the last of also finds.
func (s *Store) claims(ctx context.Context, zone dnsname.Zone, labels []dnsname.HostLabel, also ...clientv3.Op) (_ map[dnsname.HostLabel]claim, found *mvccpb.KeyValue, _ error) {
	gets := make([]clientv3.Op, len(labels), len(labels)+len(also))
	for i, l := range labels {
		gets[i] = clientv3.OpGet(schema.LabelKey(string(zone), string(l)))
	}
	resp, err := s.txn(ctx, nil, append(gets, also...), nil)
	if err != nil {
		return nil, nil, err
	}
	claims := make(map[dnsname.HostLabel]claim, len(labels))
	for i, l := range labels {
		if claims[l], err = claimFrom(readAt(resp, i)); err != nil {
			return nil, nil, err
		}
	}
	return claims, readAt(resp, len(resp.Responses)-1), nil
}

// DeleteDomain removes a domain, its records and its private keys, and leaves
// tombstones of its host labels. It returns the revision of the deletion, or
// ErrDomainNotFound, or ErrConflict if d is not the domain as it stands.
func (s *Store) DeleteDomain(ctx context.Context, d Domain, now time.Time) (int64, error) {
	zone, domainKey := string(d.Zone), schema.DomainKey(d.Brand, string(d.Name))
	tombstone, err := claim{brand: d.Brand, domain: d.Name, deleteTime: now}.marshal()
	if err != nil {
		return 0, fmt.Errorf("tombstone of %s: %w", d.Name, err)
	}
	ops := []clientv3.Op{
		clientv3.OpDelete(domainKey),
		touchApex(zone),
		clientv3.OpDelete(schema.SealedKeyPrefix(d.Brand, string(d.Name)), clientv3.WithPrefix()),
	}
	for _, k := range d.Keys {
		if !k.Published() {
			continue
		}
		key, err := recordKey(d, k.Selector)
		if err != nil {
			return 0, err
		}
		ops = append(ops, clientv3.OpDelete(key), clientv3.OpDelete(schema.FingerprintKey(zone, k.Fingerprint[:])))
	}
	for _, l := range d.labels() {
		ops = append(ops, clientv3.OpPut(schema.LabelKey(zone, string(l)), string(tombstone)))
	}
	resp, err := s.txn(ctx, []clientv3.Cmp{unchanged(domainKey, d.Revision)}, ops, []clientv3.Op{clientv3.OpGet(domainKey)})
	if err != nil {
		return 0, err
	}
	if !resp.Succeeded {
		return 0, missingOrConflict(resp, fmt.Errorf("%w: %s", ErrDomainNotFound, d.Name))
	}
	return resp.Header.Revision, nil
}

// deletionOps is the number of operations that DeleteDomain needs for d with a
// key in each of the selectors. No domain grows beyond what one transaction
// deletes.
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
	return 3 + 2*published + len(d.labels())
}

func newSelectors(publish []Publication) []dnsname.Selector {
	var selectors []dnsname.Selector
	for _, p := range publish {
		if p.New {
			selectors = append(selectors, p.Key.Selector)
		}
	}
	return selectors
}

func recordKey(d Domain, sel dnsname.Selector) (string, error) {
	relative, err := dnsname.RelativeOwnerName(sel, d.HostLabel)
	if err != nil {
		return "", fmt.Errorf("owner name: %w", err)
	}
	return schema.RecordKey(string(d.Zone), relative), nil
}
