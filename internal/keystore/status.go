package keystore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/internal/schema/schemapb"
)

// ErrNoDue says that a status must tell when the domain is to be looked at again, or it
// never would be.
var ErrNoDue = errors.New("status without a due time")

// Status is what was observed of a domain and what follows from it. All its times
// are kept to the second.
type Status struct {
	Brand   string
	Domain  dnsname.Domain
	Aliases map[dnsname.Selector]rotation.Observation
	Served  map[string]rotation.Observation // by key id
	// Conditions are kept without the Message of those that are OK.
	Conditions []rotation.Condition
	Due        time.Time // when the domain is to be looked at next
	Revision   int64     // store revision it was read or written at; 0: there is none

	entry time.Time // of the due entry that stands for it in the store
}

// numbersPerObservation and numbersPerCondition are how many numbers they are
// stored as.
const (
	numbersPerObservation = 6
	numbersPerCondition   = 6
)

// dueKey is where the due entry of a stored status stands.
func (st *Status) dueKey() string { return schema.DueKey(st.entry, st.Brand, string(st.Domain)) }

// Status reads a domain's status. Without one, that has Revision 0.
func (s *Store) Status(ctx context.Context, brand string, domain dnsname.Domain) (Status, error) {
	resp, err := s.get(ctx, schema.StatusKey(brand, string(domain)))
	if err != nil {
		return Status{}, err
	}
	if len(resp.Kvs) == 0 {
		return Status{Brand: brand, Domain: domain}, nil
	}
	return statusFrom(brand, domain, resp.Kvs[0])
}

// StatusesOf reads the status of several domains of a brand, in the order of
// names.
func (s *Store) StatusesOf(ctx context.Context, brand string, names []dnsname.Domain) ([]Status, error) {
	statuses := make([]Status, 0, len(names))
	for len(names) > 0 {
		n := min(len(names), maxTxnOps)
		gets := make([]clientv3.Op, n)
		for i, name := range names[:n] {
			gets[i] = clientv3.OpGet(schema.StatusKey(brand, string(name)))
		}
		resp, err := s.txn(ctx, nil, gets, nil)
		if err != nil {
			return nil, err
		}
		for i, name := range names[:n] {
			st, err := statusFrom(brand, name, readAt(resp, i))
			if err != nil {
				return nil, err
			}
			statuses = append(statuses, st)
		}
		names = names[n:]
	}
	return statuses, nil
}

// SaveStatus stores a status, if it is still the one st was read as, with its due
// entry, and deletes the due entry that stood for it before and those that are
// handled by it. It returns ErrConflict, also when a handled entry was written
// anew meanwhile; ErrDomainNotFound, ErrNoDue and ErrFenced.
func (s *Store) SaveStatus(ctx context.Context, st Status, fence *Fence, handled ...DueEntry) (Status, error) {
	p, err := planStatus(st, handled)
	if err != nil {
		return Status{}, err
	}
	domainKey := schema.DomainKey(st.Brand, string(st.Domain))
	cmps := []clientv3.Cmp{present(domainKey)}
	for key, revision := range p.unchanged {
		cmps = append(cmps, unchanged(key, revision))
	}
	resp, err := s.fencedTxn(ctx, fence, cmps, p.ops, []clientv3.Op{clientv3.OpGet(domainKey, clientv3.WithKeysOnly())})
	if err != nil {
		return Status{}, err
	}
	if !resp.Succeeded {
		return Status{}, missingOrConflict(resp, fmt.Errorf("%w: %s", ErrDomainNotFound, st.Domain))
	}
	return statusFrom(st.Brand, st.Domain, &mvccpb.KeyValue{Value: p.value, ModRevision: resp.Header.Revision})
}

// planStatus plans the part of a transaction that stores a status and keeps the
// due index in step with it.
func planStatus(st Status, handled []DueEntry) (plan, error) {
	if st.Due.IsZero() {
		return plan{}, fmt.Errorf("%w: %s", ErrNoDue, st.Domain)
	}
	value, err := st.marshal()
	if err != nil {
		return plan{}, err
	}
	statusKey := schema.StatusKey(st.Brand, string(st.Domain))
	p := plan{value: value, unchanged: map[string]int64{statusKey: st.Revision}}
	p.put(statusKey, value)
	due := schema.DueKey(st.Due, st.Brand, string(st.Domain))
	p.put(due, nil)
	gone := map[string]bool{due: true}
	if st.Revision != 0 {
		p.drop(st.dueKey(), gone)
	}
	for _, e := range handled {
		p.handle(e, gone)
	}
	return p, nil
}

// handle deletes an entry of the due index that is not gone or written anyway.
func (p *plan) handle(e DueEntry, gone map[string]bool) {
	key := e.key()
	if e.Revision != 0 {
		p.unchanged[key] = e.Revision
	}
	p.drop(key, gone)
}

func (p *plan) drop(key string, gone map[string]bool) {
	if !gone[key] {
		gone[key] = true
		p.ops = append(p.ops, clientv3.OpDelete(key))
	}
}

func (st *Status) marshal() ([]byte, error) {
	var c clock
	for _, o := range st.Aliases {
		c.includeObservation(o)
	}
	for _, o := range st.Served {
		c.includeObservation(o)
	}
	for _, cond := range st.Conditions {
		c.include(cond.Since)
	}
	var w words
	v := &schemapb.Status{DueSeconds: schema.Seconds(st.Due), TimeSeconds: c.last}
	for _, sel := range slices.Sorted(maps.Keys(st.Aliases)) {
		v.Aliases = appendObservation(v.Aliases, string(sel), st.Aliases[sel], c, &w)
	}
	for _, id := range slices.Sorted(maps.Keys(st.Served)) {
		v.Served = appendObservation(v.Served, id, st.Served[id], c, &w)
	}
	for _, cond := range st.Conditions {
		ok, message := uint64(0), cond.Message
		if cond.OK {
			ok, message = 1, ""
		}
		v.Conditions = append(v.Conditions, uint64(cond.Group), w.ref(cond.Type), ok, w.ref(cond.Reason), w.ref(message), c.ref(cond.Since))
	}
	v.Words = w.stored()
	b, err := proto.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("status of %s: %w", st.Domain, err)
	}
	return b, nil
}

func (c *clock) includeObservation(o rotation.Observation) {
	c.include(o.Since)
	c.include(o.CheckTime)
	c.include(o.DenyTime)
}

func appendObservation(numbers []uint64, of string, o rotation.Observation, c clock, w *words) []uint64 {
	return append(numbers, w.ref(of), uint64(o.Finding), c.ref(o.Since), c.ref(o.CheckTime), c.ref(o.DenyTime), w.ref(o.Reason))
}

// statusFrom decodes a status; a nil kv is none. Its errors wrap
// schema.ErrCorrupt.
func statusFrom(brand string, domain dnsname.Domain, kv *mvccpb.KeyValue) (Status, error) {
	st := Status{Brand: brand, Domain: domain}
	if kv == nil {
		return st, nil
	}
	bad := func(err error) (Status, error) {
		return Status{}, fmt.Errorf("status of %s of %s: %w", domain, brand, err)
	}
	var v schemapb.Status
	if err := proto.Unmarshal(kv.Value, &v); err != nil {
		return bad(fmt.Errorf("%w: %w", schema.ErrCorrupt, err))
	}
	st.Revision, st.Due = kv.ModRevision, schema.FromSeconds(v.GetDueSeconds())
	st.entry = st.Due
	c, w := clock{v.GetTimeSeconds()}, words{list: v.GetWords()}
	aliases, err := observationsFrom(v.GetAliases(), c, w)
	if err != nil {
		return bad(err)
	}
	for of, o := range aliases {
		if st.Aliases == nil {
			st.Aliases = make(map[dnsname.Selector]rotation.Observation, len(aliases))
		}
		st.Aliases[dnsname.Selector(of)] = o
	}
	if st.Served, err = observationsFrom(v.GetServed(), c, w); err != nil {
		return bad(err)
	}
	n := v.GetConditions()
	if len(n)%numbersPerCondition != 0 {
		return bad(fmt.Errorf("%w: %d numbers of conditions", schema.ErrCorrupt, len(n)))
	}
	for ; len(n) > 0; n = n[numbersPerCondition:] {
		cond := rotation.Condition{OK: n[2] != 0, Since: c.time(n[5])}
		if cond.Group, err = algorithmOrNone(n[0]); err != nil {
			return bad(err)
		}
		if cond.Type, err = w.word(n[1]); err != nil {
			return bad(err)
		}
		if cond.Reason, err = w.word(n[3]); err != nil {
			return bad(err)
		}
		if cond.Message, err = w.word(n[4]); err != nil {
			return bad(err)
		}
		st.Conditions = append(st.Conditions, cond)
	}
	return st, nil
}

func observationsFrom(n []uint64, c clock, w words) (map[string]rotation.Observation, error) {
	if len(n) == 0 {
		return nil, nil
	}
	if len(n)%numbersPerObservation != 0 {
		return nil, fmt.Errorf("%w: %d numbers of observations", schema.ErrCorrupt, len(n))
	}
	observations := make(map[string]rotation.Observation, len(n)/numbersPerObservation)
	for ; len(n) > 0; n = n[numbersPerObservation:] {
		of, err := w.word(n[0])
		if err != nil {
			return nil, err
		}
		o := rotation.Observation{Since: c.time(n[2]), CheckTime: c.time(n[3]), DenyTime: c.time(n[4])}
		if o.Reason, err = w.word(n[5]); err != nil {
			return nil, err
		}
		o.Finding = rotation.Finding(n[1]) //nolint:gosec // checked below
		if n[1] > 255 || !o.Finding.Valid() {
			return nil, fmt.Errorf("%w: unknown finding %d", schema.ErrCorrupt, n[1])
		}
		observations[of] = o
	}
	return observations, nil
}
