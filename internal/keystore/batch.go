package keystore

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// batchTxns is how many transactions of a batch are in flight at a time: while
// one waits for the disk, others are built and applied.
const batchTxns = 4

// Result is what became of a change of a batch.
type Result struct {
	Domain Domain // as stored
	Err    error  // as of Apply
}

// DomainsOf reads several domains of a brand, in the order of names. One that is
// not there has Revision 0 and no name.
func (s *Store) DomainsOf(ctx context.Context, brand string, names []dnsname.Domain) ([]Domain, error) {
	domains := make([]Domain, 0, len(names))
	for len(names) > 0 {
		n := min(len(names), maxTxnOps)
		gets := make([]clientv3.Op, n)
		for i, name := range names[:n] {
			gets[i] = clientv3.OpGet(schema.DomainKey(brand, string(name)))
		}
		resp, err := s.txn(ctx, nil, gets, nil)
		if err != nil {
			return nil, err
		}
		for i := range n {
			var d Domain
			if kv := readAt(resp, i); kv != nil {
				if d, err = domainFrom(kv); err != nil {
					return nil, err
				}
			}
			domains = append(domains, d)
		}
		names = names[n:]
	}
	return domains, nil
}

// ApplyBatch carries out changes of different domains of one brand as Apply
// does, each whole or not at all, and returns the results in the same order.
// Many of them share a transaction. A new domain is first taken to have its host
// labels for itself, without a look; changes for which that, or anything else,
// turns out wrong are applied one by one, in order, when the others are done. Of
// two that want the same, a public key or a host label, the first has it.
//
// In a brand with a quota those transactions that make domains follow one another.
//
// Once a result is ErrUnavailable or an error of ctx, others may be so too
// without having been tried.
func (s *Store) ApplyBatch(ctx context.Context, changes []Change) []Result {
	results := make([]Result, len(changes))
	if len(changes) == 0 {
		return results
	}
	defer func() {
		for i, r := range results {
			s.tellChange(ctx, changes[i], r.Domain, r.Err)
		}
	}()
	var groups []*group
	var single []int
	err := s.ready()
	if err == nil {
		groups, single, err = s.groups(ctx, changes)
	}
	if err != nil {
		for i := range results {
			results[i].Err = err
		}
		return results
	}
	var (
		wg    sync.WaitGroup
		slots = make(chan struct{}, batchTxns)
	)
	for _, g := range groups {
		slots <- struct{}{}
		wg.Go(func() {
			s.applyGroup(ctx, g, results)
			<-slots
		})
	}
	wg.Wait()
	for _, i := range single {
		results[i].Err = errAlone
	}
	var broken error
	for i := range results {
		switch {
		case errors.Is(results[i].Err, errAlone) && broken != nil:
			results[i].Err = broken
		case errors.Is(results[i].Err, errAlone):
			results[i].Domain, results[i].Err = s.apply(ctx, changes[i])
		}
		if err := results[i].Err; errors.Is(err, ErrUnavailable) || ctx.Err() != nil {
			broken = err
		}
	}
	return results
}

// errAlone marks a change that is to be applied by itself.
var errAlone = errors.New("not in a batch")

// group is a transaction of several changes.
type group struct {
	brandKey, apexKey string
	brand             Brand
	zone              string
	changes           []int // indexes
	plans             []plan
	ops, cmps         int
}

// groups sorts changes into transactions, and out those that must go alone.
func (s *Store) groups(ctx context.Context, changes []Change) (groups []*group, single []int, _ error) {
	first := changes[0].Domain
	b, err := s.Brand(ctx, first.Brand)
	if err != nil {
		return nil, nil, err
	}
	open := func() *group {
		g := &group{
			brandKey: schema.BrandKey(b.Name), brand: b, apexKey: schema.ApexKey(string(b.Zone)), zone: string(b.Zone),
			ops: 2, cmps: 4, // with those of a tally
		}
		groups = append(groups, g)
		return g
	}
	// What holds for one of two changes that touch the same key depends on the
	// other: the second waits.
	taken := make(map[string]bool)
	var g *group
	for i, c := range changes {
		if c.Domain.Brand != b.Name || c.Domain.Zone != b.Zone {
			single = append(single, i)
			continue
		}
		p, ok, err := optimistic(c)
		if err != nil {
			return nil, nil, err
		}
		if !ok {
			p.unchanged = wanted(c)
		}
		ok = ok && len(p.ops)+2 <= maxTxnOps && len(p.unchanged)+4 <= maxTxnOps
		for key := range p.unchanged {
			ok = ok && !taken[key]
		}
		for key := range p.unchanged {
			taken[key] = true
		}
		if !ok {
			single = append(single, i)
			continue
		}
		if g == nil || g.ops+len(p.ops) > maxTxnOps || g.cmps+len(p.unchanged) > maxTxnOps {
			g = open()
		}
		g.add(i, p)
	}
	return groups, single, nil
}

// optimistic plans a change as if all that it claims were free. It reports
// false for one that needs a look or would be refused.
func optimistic(c Change) (_ plan, ok bool, _ error) {
	d := c.Domain
	selectors := newSelectors(c.Publish)
	if d.Kind != rotation.Customer || c.Fence != nil || slices.ContainsFunc(c.Publish, func(p Publication) bool { return p.Retain }) {
		return plan{}, false, nil
	}
	var labels map[string]int64
	if d.Revision == 0 {
		candidates := dnsname.HostLabelCandidates(d.Name)
		label, err := chooseLabel(&d, candidates, nil, selectors, false)
		if err != nil {
			return plan{}, false, nil
		}
		d.HostLabel = label
		labels = make(map[string]int64, len(candidates))
		for _, l := range candidates {
			labels[schema.LabelKey(string(d.Zone), string(l))] = 0
		}
	}
	shadows := make(map[dnsname.HostLabel]claim)
	if d.misfit(selectors) != nil {
		return plan{}, false, nil
	}
	for _, sel := range selectors {
		for _, l := range dnsname.ShadowLabels(sel, d.HostLabel) {
			shadows[l] = claim{}
		}
	}
	// Of a domain that is there some shadows are claimed already.
	if d.Revision != 0 && len(shadows) > 0 || deletionOps(d, selectors) > maxTxnOps {
		return plan{}, false, nil
	}
	for l := range shadows {
		if _, both := labels[schema.LabelKey(string(d.Zone), string(l))]; both {
			return plan{}, false, nil
		}
	}
	p, err := planChange(c, d, shadows)
	if err != nil {
		return plan{}, false, err
	}
	maps.Copy(p.unchanged, labels)
	return p, true, nil
}

// wanted is what a change without a plan may claim.
func wanted(c Change) map[string]int64 {
	zone := string(c.Domain.Zone)
	keys := map[string]int64{schema.DomainKey(c.Domain.Brand, string(c.Domain.Name)): 0}
	for _, l := range dnsname.HostLabelCandidates(c.Domain.Name) {
		keys[schema.LabelKey(zone, string(l))] = 0
		for _, sel := range newSelectors(c.Publish) {
			for _, shadow := range dnsname.ShadowLabels(sel, l) {
				keys[schema.LabelKey(zone, string(shadow))] = 0
			}
		}
	}
	for _, pub := range c.Publish {
		keys[schema.FingerprintKey(zone, pub.Key.Fingerprint[:])] = 0
	}
	return keys
}

func (g *group) add(i int, p plan) {
	g.changes, g.plans = append(g.changes, i), append(g.plans, p)
	g.ops += len(p.ops)
	g.cmps += len(p.unchanged)
}

// newDomains is how many domains a group makes.
func (g *group) newDomains() (n int64) {
	for i := range g.plans {
		if g.plans[i].makes() {
			n++
		}
	}
	return n
}

// makes reports whether the plan makes a domain.
func (p *plan) makes() bool { return p.unchanged[p.domainKey] == 0 }

// countRaces is how often a group is tried again because others of its brand, by
// way of another process, made domains meanwhile.
const countRaces = 16

// applyGroup commits a group. When the comparison fails, it leaves out those
// that it failed for and tries once more with the others.
func (s *Store) applyGroup(ctx context.Context, g *group, results []Result) {
	for tries, races := 0, 0; tries < 2 && races < countRaces && len(g.plans) > 0; {
		wrong, err := s.commitGroup(ctx, g, results)
		if err != nil {
			g.settle(results, err)
			return
		}
		if wrong == nil {
			return
		}
		if !slices.Contains(wrong, true) {
			races++
			continue
		}
		tries++
		left := &group{brandKey: g.brandKey, brand: g.brand, apexKey: g.apexKey, zone: g.zone}
		for n, i := range g.changes {
			if wrong[n] {
				results[i].Err = errAlone
				continue
			}
			left.changes, left.plans = append(left.changes, i), append(left.plans, g.plans[n])
		}
		g = left
	}
	g.settle(results, errAlone)
}

// making tells, by their places, which plans make a domain.
func (g *group) making() []bool {
	making := make([]bool, len(g.plans))
	for n := range g.plans {
		making[n] = g.plans[n].makes()
	}
	return making
}

func (g *group) settle(results []Result, err error) {
	for _, i := range g.changes {
		results[i].Err = err
	}
}

// commitGroup commits a group and fills in its results, or tells, by their
// places, of which plans the comparison failed; of none, if only the number of the
// brand's domains is another by now.
func (s *Store) commitGroup(ctx context.Context, g *group, results []Result) (wrong []bool, _ error) {
	cmps := make([]clientv3.Cmp, 0, maxTxnOps)
	ops := make([]clientv3.Op, 0, maxTxnOps)
	if n := g.newDomains(); n > 0 && g.brand.MaxDomains != 0 {
		release, err := s.enter(ctx, g.brand.Name)
		if err != nil {
			return nil, err
		}
		defer release()
		t, err := s.tallyOf(ctx, g.brand.Name)
		if err != nil {
			return nil, err
		}
		counted, count, err := t.add(n)
		if _, full := errors.AsType[*QuotaError](err); full {
			return g.making(), nil // one by one, as many as there is room for
		}
		if err != nil {
			return nil, err
		}
		cmps, ops = append(cmps, counted...), append(ops, count...)
	}
	cmps = append(cmps, unchanged(g.brandKey, g.brand.Revision), present(g.apexKey))
	ops = append(ops, touchApex(g.zone))
	for _, p := range g.plans {
		for key, revision := range p.unchanged {
			cmps = append(cmps, unchanged(key, revision))
		}
		ops = append(ops, p.ops...)
	}
	resp, err := s.txn(ctx, cmps, ops, nil)
	if err != nil {
		return nil, err
	}
	if !resp.Succeeded {
		return s.wrongOf(ctx, g)
	}
	for n, i := range g.changes {
		d, err := g.plans[n].stored(resp.Header.Revision)
		results[i] = Result{d, err}
	}
	return nil, nil
}

// wrongOf tells of which plans the comparison fails. It is a transaction of its
// own, for few fail, and every etcd member keeps what a transaction asks for in
// its log, asked or not.
func (s *Store) wrongOf(ctx context.Context, g *group) ([]bool, error) {
	type expected struct {
		plan     int
		revision int64
	}
	expect := make([]expected, 0, maxTxnOps)
	reads := make([]clientv3.Op, 0, maxTxnOps)
	reads = append(reads, clientv3.OpGet(g.brandKey, clientv3.WithKeysOnly()), clientv3.OpGet(g.apexKey, clientv3.WithKeysOnly()))
	for n, p := range g.plans {
		for key, revision := range p.unchanged {
			reads = append(reads, clientv3.OpGet(key, clientv3.WithKeysOnly()))
			expect = append(expect, expected{n, revision})
		}
	}
	resp, err := s.txn(ctx, nil, reads, nil)
	if err != nil {
		return nil, err
	}
	wrong := make([]bool, len(g.plans))
	brand, apex := readAt(resp, 0), readAt(resp, 1)
	all := brand == nil || brand.ModRevision != g.brand.Revision || apex == nil
	for k, e := range expect {
		var revision int64
		if kv := readAt(resp, 2+k); kv != nil {
			revision = kv.ModRevision
		}
		if all || revision != e.revision {
			wrong[e.plan] = true
		}
	}
	return wrong, nil
}
