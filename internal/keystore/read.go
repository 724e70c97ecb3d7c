package keystore

import (
	"context"
	"fmt"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// Domain reads a domain. It returns ErrDomainNotFound.
func (s *Store) Domain(ctx context.Context, brand string, name dnsname.Domain) (Domain, error) {
	kv, err := s.getOne(ctx, schema.DomainKey(brand, string(name)), fmt.Errorf("%w: %s", ErrDomainNotFound, name))
	if err != nil {
		return Domain{}, err
	}
	return domainFrom(kv)
}

// Cursor is a place in the list of all domains: after this one.
type Cursor struct {
	Brand  string
	Domain dnsname.Domain
}

// Domains lists up to limit domains of a brand, or of all brands when brand is
// empty, that follow after, in order of brand and name.
func (s *Store) Domains(ctx context.Context, brand string, after Cursor, limit int) (domains []Domain, more bool, err error) {
	prefix, from := schema.AllDomainsPrefix(), ""
	if brand != "" {
		prefix = schema.DomainPrefix(brand)
	}
	if after != (Cursor{}) {
		from = schema.DomainKey(after.Brand, string(after.Domain))[len(prefix):]
	}
	kvs, more, err := s.page(ctx, prefix, from, limit)
	if err != nil {
		return nil, false, err
	}
	for _, kv := range kvs {
		d, err := domainFrom(kv)
		if err != nil {
			return nil, false, err
		}
		domains = append(domains, d)
	}
	return domains, more, nil
}

// Records reads the records of a domain's published keys, by selector, as they
// stood with d. It returns ErrConflict if the domain has changed since.
func (s *Store) Records(ctx context.Context, d Domain) (map[dnsname.Selector]schema.PublicRecord, error) {
	var selectors []dnsname.Selector
	var gets []clientv3.Op
	for _, k := range d.Keys {
		if !k.Published() {
			continue
		}
		key, err := recordKey(d, k.Selector)
		if err != nil {
			return nil, err
		}
		selectors = append(selectors, k.Selector)
		gets = append(gets, clientv3.OpGet(key))
	}
	resp, err := s.txn(ctx, []clientv3.Cmp{unchanged(schema.DomainKey(d.Brand, string(d.Name)), d.Revision)}, gets, nil)
	if err != nil {
		return nil, err
	}
	if !resp.Succeeded {
		return nil, fmt.Errorf("%w: domain %s", ErrConflict, d.Name)
	}
	records := make(map[dnsname.Selector]schema.PublicRecord, len(selectors))
	for i, sel := range selectors {
		kv := readAt(resp, i)
		if kv == nil {
			return nil, fmt.Errorf("%w: record of selector %s of %s is missing", schema.ErrCorrupt, sel, d.Name)
		}
		if records[sel], err = schema.UnmarshalPublicRecord(kv.Value); err != nil {
			return nil, fmt.Errorf("record of selector %s of %s: %w", sel, d.Name, err)
		}
	}
	return records, nil
}

// SealedKey reads the sealed private half of a key. It returns ErrKeyNotFound.
func (s *Store) SealedKey(ctx context.Context, brand string, domain dnsname.Domain, keyID string) ([]byte, error) {
	kv, err := s.getOne(ctx, schema.SealedKeyKey(brand, string(domain), keyID), fmt.Errorf("%w: %s of %s", ErrKeyNotFound, keyID, domain))
	if err != nil {
		return nil, err
	}
	return kv.Value, nil
}

// DomainEvent is a domain's change. Of a deleted domain only Brand, Name and
// Revision are set.
type DomainEvent struct {
	Domain  Domain
	Deleted bool
}

// DomainSnapshot calls each for all domains of a brand, or of all brands when
// brand is empty, as they stood at one revision, which it returns.
func (s *Store) DomainSnapshot(ctx context.Context, brand string, each func(Domain) error) (revision int64, err error) {
	return s.snapshot(ctx, domainWatchPrefix(brand), 0, func(kv *mvccpb.KeyValue) error {
		d, err := domainFrom(kv)
		if err != nil {
			return err
		}
		return each(d)
	})
}

// WatchDomains calls each with every change after revision, in order, all the
// changes of a revision before those of the next, until ctx ends or each fails,
// and returns that error. It returns ErrCompacted when etcd no longer knows the
// changes after revision, or has not come to it, having been restored from an
// earlier state; and ErrUnavailable when etcd is lost.
func (s *Store) WatchDomains(ctx context.Context, brand string, revision int64, each func(DomainEvent) error) error {
	present, err := s.Revision(ctx)
	if err != nil {
		return err
	}
	if revision > present {
		return fmt.Errorf("%w: %d is ahead of the store's %d", ErrCompacted, revision, present)
	}
	watchCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := s.client.Watch(clientv3.WithRequireLeader(watchCtx), domainWatchPrefix(brand),
		clientv3.WithPrefix(), clientv3.WithRev(revision+1))
	for resp := range events {
		if resp.CompactRevision != 0 {
			return fmt.Errorf("%w: %d", ErrCompacted, revision)
		}
		if err := resp.Err(); err != nil {
			return storeError(ctx, err)
		}
		for _, ev := range resp.Events {
			e, err := domainEventFrom(ev)
			if err != nil {
				return err
			}
			if err := each(e); err != nil {
				return err
			}
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return fmt.Errorf("%w: watch ended", ErrUnavailable)
}

func domainEventFrom(ev *clientv3.Event) (DomainEvent, error) {
	if ev.Type != clientv3.EventTypeDelete {
		d, err := domainFrom(ev.Kv)
		return DomainEvent{Domain: d}, err
	}
	brand, name, ok := schema.ParseDomainKey(string(ev.Kv.Key))
	if !ok {
		return DomainEvent{}, fmt.Errorf("%w: %q is no domain's key", schema.ErrCorrupt, ev.Kv.Key)
	}
	return DomainEvent{Domain: Domain{Brand: brand, Name: dnsname.Domain(name), Revision: ev.Kv.ModRevision}, Deleted: true}, nil
}

func domainWatchPrefix(brand string) string {
	if brand == "" {
		return schema.AllDomainsPrefix()
	}
	return schema.DomainPrefix(brand)
}
