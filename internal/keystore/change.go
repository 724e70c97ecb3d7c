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
	// TakeOver lets a new domain have the names of one that another brand gave up,
	// whose CNAMEs may still be there: its owner has shown to want it.
	TakeOver bool
	// Look is what Admit found out about a new domain. It saves Apply its own look
	// unless it turns out that things have changed. May be nil.
	Look *Look

	// Actor is who makes the change, of those Events that do not say.
	Actor  string
	Events []Event
	// Status is stored with the change if it is not nil, as SaveStatus does; its
	// Due does not count. It has the domain's Revision then.
	Status *Status
	// Due is when the domain is to be looked at next; zero: at once.
	Due time.Time
	// Handled are due entries that the change answers.
	Handled []DueEntry
	// Fence is what makes the change depend on its maker's being the leader.
	Fence *Fence
}

// due is when the domain is to be looked at after the change.
func (c *Change) due() time.Time {
	if c.Due.IsZero() {
		return c.Domain.UpdateTime
	}
	return c.Due
}

// Publication is a record to write for a key of the domain.
type Publication struct {
	Key    Key
	Record schema.PublicRecord
	Sealed []byte // the sealed private half to keep, if any
	// New is false when only the record of a published key changes.
	New bool
	// Replaces is the key of the same selector, if any, that a new one takes the
	// place of: its record is overwritten, and its claim and its private half go.
	Replaces *Key
	// Retain says that the private half of the replaced key is kept, sealed, to be
	// disclosed later (Retained).
	Retain bool
}

// labelRaces is how often Apply starts again when somebody else claims a host
// label, or changes the brand, between its look and its transaction.
const labelRaces = 8

// maxTxnOps is etcd's bound of a transaction (--max-txn-ops).
const maxTxnOps = 128

// Apply carries out a change in one transaction and returns the domain as
// stored. It returns ErrConflict if the domain is no longer the one the change
// was computed from, or the brand not in the domain's zone; ErrBrandNotFound,
// ErrZoneNotFound, ErrTooManyKeys, ErrFenced, a *ClaimError or a *QuotaError.
//
// With the domain goes a due entry: one for its status, if there is one in the
// change, else one beside that which the domain has.
func (s *Store) Apply(ctx context.Context, c Change) (Domain, error) {
	if err := s.ready(); err != nil {
		return Domain{}, err
	}
	d, err := s.apply(ctx, c)
	s.tellChange(ctx, c, d, err)
	return d, err
}

func (s *Store) apply(ctx context.Context, c Change) (Domain, error) {
	for range labelRaces {
		d, again, err := s.tryApply(ctx, c)
		if !again {
			return d, err
		}
		c.Look = nil
	}
	return Domain{}, fmt.Errorf("%w: host label of %s", ErrConflict, c.Domain.Name)
}

func (s *Store) tryApply(ctx context.Context, c Change) (_ Domain, again bool, _ error) {
	d := c.Domain
	brandKey := schema.BrandKey(d.Brand)
	if d.Revision != 0 {
		return s.commit(ctx, c, d, []clientv3.Cmp{present(brandKey)}, nil)
	}
	l := c.Look
	if l == nil {
		var err error
		if l, err = s.look(ctx, d); err != nil {
			return Domain{}, false, err
		}
	}
	cmps, count, err := l.allow(&d, newSelectors(c.Publish), c.TakeOver)
	if err != nil {
		return Domain{}, c.Look != nil, err // what refuses is looked at now
	}
	for _, cl := range l.claims {
		if cl.domain == d.Name {
			d.HistoryBlocks = max(d.HistoryBlocks, cl.historyBlocks)
		}
	}
	also, err := inherited(d, l.claims)
	if err != nil {
		return Domain{}, false, err
	}
	cmps = append(cmps, unchanged(brandKey, l.brand.Revision))
	for label, cl := range l.claims {
		cmps = append(cmps, unchanged(schema.LabelKey(string(d.Zone), string(label)), cl.revision))
	}
	return s.commit(ctx, c, d, cmps, append(also, count...))
}

// Look is what a new domain's host label and its being allowed rest on. The
// transaction that makes the domain compares all of it.
type Look struct {
	claims map[dnsname.HostLabel]claim // of all candidates
	brand  Brand
	tally  *tally
}

// allow chooses d's host label and returns what counts d in its brand, or the
// *ClaimError or *QuotaError that refuses it.
func (l *Look) allow(d *Domain, selectors []dnsname.Selector, takeOver bool) (cmps []clientv3.Cmp, count []clientv3.Op, err error) {
	if d.HostLabel, err = chooseLabel(d, d.labelCandidates(), l.claims, selectors, takeOver); err != nil {
		return nil, nil, err
	}
	return l.tally.add(1)
}

// look reads the claims of a new domain's candidate labels, and its brand, which
// may have been deleted and made anew in another zone since d was computed, with
// the count of its domains if that matters to d.
func (s *Store) look(ctx context.Context, d Domain) (*Look, error) {
	candidates := d.labelCandidates()
	for range labelRaces {
		claims, found, err := s.claims(ctx, d.Zone, candidates,
			clientv3.OpGet(schema.BrandKey(d.Brand)), clientv3.OpGet(schema.TallyMadeKey(d.Brand)), clientv3.OpGet(schema.TallyGoneKey(d.Brand)))
		if err != nil {
			return nil, err
		}
		if found[0] == nil {
			return nil, fmt.Errorf("%w: %s", ErrBrandNotFound, d.Brand)
		}
		b, err := brandFrom(found[0])
		if err != nil {
			return nil, err
		}
		if b.Zone != d.Zone {
			return nil, fmt.Errorf("%w: brand %s", ErrConflict, d.Brand)
		}
		if d.Kind != rotation.Customer {
			return &Look{claims: claims, brand: b}, nil
		}
		t, begun, err := s.tally(ctx, b, found[1], found[2])
		if err != nil {
			return nil, err
		}
		if begun {
			return &Look{claims, b, t}, nil
		}
	}
	return nil, fmt.Errorf("%w: count of the domains of brand %s", ErrConflict, d.Brand)
}

// commit builds and commits the transaction. cmps holds what must still be as it
// was looked at, also what is to be written because of that. again reports that a
// label was claimed, or the brand changed, meanwhile.
func (s *Store) commit(ctx context.Context, c Change, d Domain, cmps []clientv3.Cmp, also []clientv3.Op) (_ Domain, again bool, _ error) {
	shadows, err := s.admit(ctx, d, newSelectors(c.Publish))
	if err != nil {
		return Domain{}, false, err
	}
	retained, err := s.retain(ctx, c, d)
	if err != nil {
		return Domain{}, false, err
	}
	p, err := planChange(c, d, shadows)
	if err != nil {
		return Domain{}, false, err
	}
	ops := slices.Concat(p.ops, also, retained, []clientv3.Op{touchApex(string(d.Zone))})
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
	beside := len(reads) // reads[beside+i] is of p.beside[i]
	for _, key := range p.beside {
		reads = append(reads, clientv3.OpGet(key, clientv3.WithKeysOnly()))
	}
	if max(len(ops), len(cmps)+1, len(reads)+1) > maxTxnOps {
		return Domain{}, false, fmt.Errorf("%w: in one change of %s", ErrTooManyKeys, d.Name)
	}
	resp, err := s.fencedTxn(ctx, c.Fence, cmps, ops, reads)
	if err != nil {
		return Domain{}, false, err
	}
	if resp.Succeeded {
		d, err = p.stored(resp.Header.Revision)
		return d, false, err
	}
	for i, key := range p.beside {
		var revision int64
		if kv := readAt(resp, beside+i); kv != nil {
			revision = kv.ModRevision
		}
		if revision != p.unchanged[key] {
			return Domain{}, false, fmt.Errorf("%w: status of %s", ErrConflict, d.Name)
		}
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
	beside    []string      // those of unchanged that are of the status and its due entries
}

// planChange plans c. d is c.Domain with its host label, shadows are the claims
// that its new selectors rest on.
func planChange(c Change, d Domain, shadows map[dnsname.HostLabel]claim) (plan, error) {
	blockKey, block, err := d.remember(c.Events, c.Actor, d.UpdateTime)
	if err != nil {
		return plan{}, err
	}
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
	p.ops = make([]clientv3.Op, 0, 2+len(shadows)+4*len(c.Withdraw)+3*len(c.Publish))
	p.unchanged[p.domainKey] = d.Revision
	p.put(p.domainKey, value)
	if block != nil {
		p.put(blockKey, block)
	}
	if err := p.look(c, d); err != nil {
		return plan{}, err
	}
	if d.Revision == 0 && d.HostLabel != "" {
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

// look plans when the domain is looked at next.
func (p *plan) look(c Change, d Domain) error {
	if c.Status == nil {
		due := schema.DueKey(c.due(), d.Brand, string(d.Name))
		p.put(due, nil)
		gone := map[string]bool{due: true}
		for _, e := range c.Handled {
			p.handle(e, gone)
		}
		return nil
	}
	st := *c.Status
	st.Brand, st.Domain, st.Due = d.Brand, d.Name, c.due()
	of, err := planStatus(st, c.Handled)
	if err != nil {
		return err
	}
	p.ops = append(p.ops, of.ops...)
	for key, revision := range of.unchanged {
		p.unchanged[key] = revision
		p.beside = append(p.beside, key)
	}
	return nil
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
			p.unchanged[fingerprintKey] = 0
			if pub.Replaces == nil {
				p.unchanged[recordKey] = 0
			} else if err := p.replace(*pub.Replaces, pub.Key, d); err != nil {
				return err
			}
			p.put(fingerprintKey, []byte(string(pub.Key.Selector)+"."+string(d.Name)))
		}
		if pub.Sealed != nil {
			p.put(schema.SealedKeyKey(d.Brand, string(d.Name), pub.Key.ID), pub.Sealed)
		}
	}
	return nil
}

// replace lets go of the key that another takes the place of.
func (p *plan) replace(old, by Key, d Domain) error {
	switch {
	case old.Selector != by.Selector || old.ID == by.ID:
		return fmt.Errorf("key %s of %s cannot take the place of key %s", by.ID, d.Name, old.ID)
	case old.Fingerprint == by.Fingerprint:
		return &ClaimError{Reason: PublicKeyUsedElsewhere, Domain: d.Name, Zone: d.Zone, Selector: by.Selector}
	}
	p.ops = append(p.ops,
		clientv3.OpDelete(schema.FingerprintKey(string(d.Zone), old.Fingerprint[:])),
		clientv3.OpDelete(schema.SealedKeyKey(d.Brand, string(d.Name), old.ID)))
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

// Admit returns the *ClaimError or *QuotaError, if any, with which Apply would
// refuse new keys in the given selectors of d as things stand, whatever the keys, or
// ErrBrandNotFound, ErrTooManyKeys or ErrConflict. d is as in Change, and so is
// takeOver. Who makes keys asks first, so that a refusal costs none. The Look is for
// the Change that makes d; it is nil if d is not new.
func (s *Store) Admit(ctx context.Context, d Domain, selectors []dnsname.Selector, takeOver bool) (l *Look, err error) {
	if d.Revision == 0 {
		if l, err = s.look(ctx, d); err != nil {
			return nil, err
		}
		if _, _, err = l.allow(&d, selectors, takeOver); err != nil {
			return nil, err
		}
	}
	if _, err = s.admit(ctx, d, selectors); err != nil {
		return nil, err
	}
	return l, nil
}

// FingerprintClaimed reports whether a public key stands under some name of a
// zone, or was disclosed. It never tells where.
func (s *Store) FingerprintClaimed(ctx context.Context, zone dnsname.Zone, fingerprint [schema.FingerprintLen]byte) (bool, error) {
	resp, err := s.get(ctx, schema.FingerprintKey(string(zone), fingerprint[:]), clientv3.WithKeysOnly())
	return err == nil && len(resp.Kvs) > 0, err
}

// admit tells whether d may have new keys in the given selectors, and returns
// the claims that this rests on.
func (s *Store) admit(ctx context.Context, d Domain, selectors []dnsname.Selector) (map[dnsname.HostLabel]claim, error) {
	if err := d.misfit(selectors); err != nil {
		return nil, err
	}
	if deletionOps(d, selectors) > maxTxnOps {
		return nil, fmt.Errorf("%w: %s", ErrTooManyKeys, d.Name)
	}
	if d.Kind == rotation.BrandDefault {
		return nil, nil
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
// each of also finds, nil for nothing.
func (s *Store) claims(ctx context.Context, zone dnsname.Zone, labels []dnsname.HostLabel, also ...clientv3.Op) (_ map[dnsname.HostLabel]claim, found []*mvccpb.KeyValue, _ error) {
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
	for i := range also {
		found = append(found, readAt(resp, len(labels)+i))
	}
	return claims, found, nil
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
	relative, err := d.RelativeOwner(sel)
	if err != nil {
		return "", fmt.Errorf("owner name: %w", err)
	}
	return schema.RecordKey(string(d.Zone), relative), nil
}
