package keystore

import (
	"context"
	"fmt"
	"hash/crc32"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// DueEntry says that a domain is to be looked at. A domain always has one at
// least, from the transaction that makes it to the one that deletes it: each
// entry but that of its status stands for a change nobody looked at yet.
type DueEntry struct {
	Time   time.Time // to the second
	Brand  string
	Domain dnsname.Domain
	// Revision is that of the entry as read. If it is not 0, whoever deletes the
	// entry wants the domain not to have become due again meanwhile.
	Revision int64
}

func (e DueEntry) key() string { return schema.DueKey(e.Time, e.Brand, string(e.Domain)) }

// DueBefore lists up to limit domains that are due at t or were before, those
// first that have been for longest. It reads nothing of what is due later.
func (s *Store) DueBefore(ctx context.Context, t time.Time, limit int) ([]DueEntry, error) {
	kvs, err := s.first(ctx, schema.DuePrefix(), schema.DueTimePrefix(t.Add(time.Second)), limit, clientv3.WithKeysOnly())
	if err != nil {
		return nil, err
	}
	entries := make([]DueEntry, 0, len(kvs))
	for _, kv := range kvs {
		at, brand, domain, ok := schema.ParseDueKey(string(kv.Key))
		if !ok {
			return nil, fmt.Errorf("%w: %q is no due entry's key", schema.ErrCorrupt, kv.Key)
		}
		entries = append(entries, DueEntry{at, brand, dnsname.Domain(domain), kv.ModRevision})
	}
	return entries, nil
}

// NextDue is when the first domain is due that is after t; zero: none is.
func (s *Store) NextDue(ctx context.Context, t time.Time) (time.Time, error) {
	kvs, err := s.first(ctx, schema.DueTimePrefix(t.Add(time.Second)), clientv3.GetPrefixRangeEnd(schema.DuePrefix()), 1, clientv3.WithKeysOnly())
	if err != nil || len(kvs) == 0 {
		return time.Time{}, err
	}
	at, _, _, ok := schema.ParseDueKey(string(kvs[0].Key))
	if !ok {
		return time.Time{}, fmt.Errorf("%w: %q is no due entry's key", schema.ErrCorrupt, kvs[0].Key)
	}
	return at, nil
}

// DropDue deletes those of the entries whose domain is not there, and those that
// are not of the domain's status while that has one. All others stay: they may be
// all that a domain has. It returns ErrFenced.
func (s *Store) DropDue(ctx context.Context, fence *Fence, entries ...DueEntry) error {
	for len(entries) > 0 {
		n := min(len(entries), maxTxnOps/3)
		if err := s.dropDue(ctx, fence, entries[:n]); err != nil {
			return err
		}
		entries = entries[n:]
	}
	return nil
}

func (s *Store) dropDue(ctx context.Context, fence *Fence, entries []DueEntry) error {
	gets := make([]clientv3.Op, 0, 2*len(entries))
	for _, e := range entries {
		gets = append(gets,
			clientv3.OpGet(schema.DomainKey(e.Brand, string(e.Domain)), clientv3.WithKeysOnly()),
			clientv3.OpGet(schema.StatusKey(e.Brand, string(e.Domain))))
	}
	resp, err := s.txn(ctx, nil, gets, nil)
	if err != nil {
		return err
	}
	var cmps []clientv3.Cmp
	var ops []clientv3.Op
	dropped := make(map[string]bool)
	for i, e := range entries {
		key := e.key()
		if dropped[key] {
			continue
		}
		if readAt(resp, 2*i) == nil {
			cmps = append(cmps, absent(schema.DomainKey(e.Brand, string(e.Domain))))
		} else {
			st, err := statusFrom(e.Brand, e.Domain, readAt(resp, 2*i+1))
			if err != nil {
				return err
			}
			if st.Revision == 0 || st.dueKey() == key {
				continue
			}
			cmps = append(cmps, unchanged(schema.StatusKey(e.Brand, string(e.Domain)), st.Revision), present(st.dueKey()))
		}
		if e.Revision != 0 {
			cmps = append(cmps, unchanged(key, e.Revision))
		}
		dropped[key] = true
		ops = append(ops, clientv3.OpDelete(key))
	}
	if len(ops) == 0 {
		return nil
	}
	tresp, err := s.fencedTxn(ctx, fence, cmps, ops, nil)
	if err != nil || tresp.Succeeded || len(entries) == 1 {
		return err // one that changed in between is left for the next time
	}
	for i := range entries {
		if err := s.dropDue(ctx, fence, entries[i:i+1]); err != nil {
			return err
		}
	}
	return nil
}

// Reindex gives a due entry at now to each of up to limit domains, in the order
// of Domains, that have none that it can tell of: those whose status has lost its
// entry, and those that were never looked at and have none of their last change. It returns how many that were and, while
// there may be more domains, where to go on. It returns ErrFenced.
//
// No transaction of the Store leaves a domain without its entry. A hand in etcd,
// or a backup from before there was an index, may.
func (s *Store) Reindex(ctx context.Context, fence *Fence, now time.Time, after Cursor, limit int) (added int, next Cursor, more bool, err error) {
	from := schema.AllDomainsPrefix()
	if after != (Cursor{}) {
		from = schema.DomainKey(after.Brand, string(after.Domain)) + "\x00"
	}
	resp, err := s.get(ctx, from, clientv3.WithRange(clientv3.GetPrefixRangeEnd(schema.AllDomainsPrefix())),
		clientv3.WithLimit(int64(limit)), clientv3.WithKeysOnly())
	if err != nil || len(resp.Kvs) == 0 {
		return 0, Cursor{}, false, err
	}
	domains := make([]Cursor, len(resp.Kvs))
	for i, kv := range resp.Kvs {
		brand, name, ok := schema.ParseDomainKey(string(kv.Key))
		if !ok {
			return 0, Cursor{}, false, fmt.Errorf("%w: %q is no domain's key", schema.ErrCorrupt, kv.Key)
		}
		domains[i] = Cursor{brand, dnsname.Domain(name)}
	}
	for todo := domains; len(todo) > 0; {
		n := min(len(todo), maxTxnOps/2)
		fresh, err := s.reindex(ctx, fence, now, todo[:n])
		if err != nil {
			return added, Cursor{}, false, err
		}
		added += fresh
		todo = todo[n:]
	}
	return added, domains[len(domains)-1], resp.More, nil
}

func (s *Store) reindex(ctx context.Context, fence *Fence, now time.Time, domains []Cursor) (added int, _ error) {
	gets := make([]clientv3.Op, len(domains))
	for i, d := range domains {
		gets[i] = clientv3.OpGet(schema.StatusKey(d.Brand, string(d.Domain)))
	}
	resp, err := s.txn(ctx, nil, gets, nil)
	if err != nil {
		return 0, err
	}
	entries := make([][]string, len(domains)) // keys of which one has to be there
	var unseen []int                          // domains without a status
	for i, d := range domains {
		kv := readAt(resp, i)
		if kv == nil {
			unseen = append(unseen, i)
			continue
		}
		// One that does not decode is looked at, which says so.
		if st, err := statusFrom(d.Brand, d.Domain, kv); err == nil {
			entries[i] = []string{st.dueKey()}
		}
	}
	if err := s.firstEntries(ctx, domains, unseen, entries); err != nil {
		return 0, err
	}
	found, err := s.anyThere(ctx, entries)
	if err != nil {
		return 0, err
	}
	var cmps []clientv3.Cmp
	var ops []clientv3.Op
	for i, d := range domains {
		if found[i] {
			continue
		}
		cmps = append(cmps, present(schema.DomainKey(d.Brand, string(d.Domain))))
		ops = append(ops, clientv3.OpPut(schema.DueKey(now, d.Brand, string(d.Domain)), ""))
	}
	if len(ops) == 0 {
		return 0, nil
	}
	tresp, err := s.fencedTxn(ctx, fence, cmps, ops, nil)
	if err != nil {
		return 0, err
	}
	if !tresp.Succeeded {
		// One was deleted meanwhile. An entry too many does no harm.
		if _, err = s.fencedTxn(ctx, fence, nil, ops, nil); err != nil {
			return 0, err
		}
	}
	return len(ops), nil
}

// firstEntries finds the entries that domains have which were never looked at.
func (s *Store) firstEntries(ctx context.Context, domains []Cursor, unseen []int, entries [][]string) error {
	if len(unseen) == 0 {
		return nil
	}
	gets := make([]clientv3.Op, len(unseen))
	for n, i := range unseen {
		gets[n] = clientv3.OpGet(schema.DomainKey(domains[i].Brand, string(domains[i].Domain)))
	}
	resp, err := s.txn(ctx, nil, gets, nil)
	if err != nil {
		return err
	}
	for n, i := range unseen {
		kv := readAt(resp, n)
		if kv == nil {
			continue // deleted meanwhile
		}
		if d, err := bareDomainFrom(kv); err == nil {
			for _, at := range []time.Time{d.UpdateTime, LaterLook(d)} {
				entries[i] = append(entries[i], schema.DueKey(at, d.Brand, string(d.Name)))
			}
		}
	}
	return nil
}

// anyThere tells for each list of keys whether one of them is there.
func (s *Store) anyThere(ctx context.Context, keys [][]string) ([]bool, error) {
	found := make([]bool, len(keys))
	var gets []clientv3.Op
	var of []int
	for i, list := range keys {
		for _, key := range list {
			gets, of = append(gets, clientv3.OpGet(key, clientv3.WithCountOnly())), append(of, i)
		}
	}
	if len(gets) == 0 {
		return found, nil
	}
	resp, err := s.txn(ctx, nil, gets, nil)
	if err != nil {
		return nil, err
	}
	for n, i := range of {
		found[i] = found[i] || resp.Responses[n].GetResponseRange().GetCount() > 0
	}
	return found, nil
}

// LaterLook is a time for the first look at a domain that does not need one at
// once: three to six hours after its last change, by its name, so that the looks
// at a million domains of one batch are spread. Reindex knows this time.
func LaterLook(d Domain) time.Time {
	const least, spread = 3 * 3600, 3 * 3600
	return d.UpdateTime.Add(time.Duration(least+crc32.ChecksumIEEE([]byte(d.Name))%spread) * time.Second)
}
