package keystore

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// SigningChange is the present state of one of the values that decide which keys
// sign: a brand, a domain or a domain's status. One of Brand, Domain and Status is
// set. When it is deleted that one has its names and Revision only.
type SigningChange struct {
	Brand   *Brand
	Domain  *Domain // without its events
	Status  *Status
	Deleted bool
	// Damaged says why the value cannot be used. It then counts as Deleted.
	Damaged error
}

// SigningPosition is how far a watch has come. It belongs to one watch at a time.
type SigningPosition struct{ applied []int64 } // by prefix: the revision of the last change that was told

// signingPrefixes are where these values stand.
func signingPrefixes() []string {
	return []string{schema.BrandPrefix(), schema.AllDomainsPrefix(), schema.AllStatusPrefix()}
}

// SigningSnapshot calls each for all brands, then all domains, then all statuses,
// as they stood at one revision, from which on they may be watched.
func (s *Store) SigningSnapshot(ctx context.Context, each func(SigningChange) error) (SigningPosition, error) {
	var pos SigningPosition
	revision := int64(0)
	for _, prefix := range signingPrefixes() {
		var err error
		revision, err = s.snapshot(ctx, prefix, revision, func(kv *mvccpb.KeyValue) error {
			return each(signingChangeFrom(prefix, kv, false))
		})
		if err != nil {
			return SigningPosition{}, err
		}
		pos.applied = append(pos.applied, revision)
	}
	return pos, nil
}

// SigningWatcher is what a watch tells. Its methods are called one at a time.
type SigningWatcher interface {
	// Changed is called with each change. A domain and its status that change in one
	// transaction come one after the other, in any order.
	Changed(SigningChange) error
	// Confirmed is called when all changes that were there at a time have come.
	Confirmed(at time.Time)
}

// signingStream keeps the progress of these watches apart from that of others:
// etcd's client has a stream for each set of metadata.
const signingStream = "dkimzone-signing"

// WatchSigning tells w of every change after pos, which it takes along, in order
// for each value, until ctx ends or w fails, and returns that error. Every interval
// it confirms that nothing is missing, by a linearizable read; a watch that stays
// unconfirmed for the timeout of a call besides is ended. It returns ErrCompacted and
// ErrUnavailable as WatchDomains does; after the latter it may be called again. now
// is the clock that confirmations are dated with.
func (s *Store) WatchSigning(ctx context.Context, pos *SigningPosition, interval time.Duration, now func() time.Time, w SigningWatcher) error {
	present, err := s.Revision(ctx)
	if err != nil {
		return err
	}
	if revision := slices.Max(pos.applied); revision > present {
		return fmt.Errorf("%w: %d is ahead of the store's %d", ErrCompacted, revision, present)
	}
	watchCtx, cancel := context.WithCancel(ctx)
	var senders sync.WaitGroup
	defer senders.Wait()
	defer cancel()
	streamCtx := metadata.AppendToOutgoingContext(clientv3.WithRequireLeader(watchCtx), signingStream, "1")
	m := &signingWatch{
		store: s, prefixes: signingPrefixes(), pos: pos, known: slices.Clone(pos.applied), now: now, w: w,
		asked: make(chan question, 1), responses: make(chan signingResponse),
	}
	for i, prefix := range m.prefixes {
		// etcd does not say how far a stream is while a watch of it is for revisions
		// that are still to come, so the last one is told once more.
		from := min(pos.applied[i]+1, present)
		watch := s.client.Watch(streamCtx, prefix, clientv3.WithPrefix(), clientv3.WithRev(from))
		senders.Go(func() { m.forward(watchCtx, i, watch) })
	}
	senders.Go(func() { m.ask(streamCtx, interval) })
	return m.run(ctx, interval+s.timeout)
}

// signingWatch joins the watches of several prefixes.
type signingWatch struct {
	store     *Store
	prefixes  []string
	pos       *SigningPosition
	known     []int64 // by prefix: nothing up to this revision is missing
	now       func() time.Time
	w         SigningWatcher
	asked     chan question
	responses chan signingResponse
}

// question is when the store was asked for its revision, and what it said.
type question struct {
	at       time.Time
	revision int64
}

type signingResponse struct {
	prefix int
	clientv3.WatchResponse
	ended bool
}

func (m *signingWatch) forward(ctx context.Context, prefix int, watch clientv3.WatchChan) {
	for resp := range watch {
		select {
		case m.responses <- signingResponse{prefix: prefix, WatchResponse: resp}:
		case <-ctx.Done():
			return
		}
	}
	select {
	case m.responses <- signingResponse{prefix: prefix, ended: true}:
	case <-ctx.Done():
	}
}

// ask asks for the store's revision, and then how far the watches are.
func (m *signingWatch) ask(ctx context.Context, interval time.Duration) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		at := m.now()
		if revision, err := m.store.Revision(ctx); err == nil { // if not, there will be no confirmation
			select {
			case <-m.asked: // the last one was not answered yet
			default:
			}
			m.asked <- question{at, revision}
			callCtx, cancel := context.WithTimeout(ctx, m.store.timeout)
			_ = m.store.client.RequestProgress(callCtx) // as above
			cancel()
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (m *signingWatch) run(ctx context.Context, silence time.Duration) error {
	limit := time.NewTimer(silence)
	defer limit.Stop()
	var open question
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-limit.C:
			return fmt.Errorf("%w: the watch was not confirmed for %s", ErrUnavailable, silence)
		case q := <-m.asked:
			if open.revision == 0 {
				open = q
			}
		case resp := <-m.responses:
			if err := m.take(ctx, resp); err != nil {
				return err
			}
		}
		if open.revision != 0 && m.complete(open.revision) {
			m.w.Confirmed(open.at)
			open = question{}
			limit.Reset(silence)
		}
	}
}

func (m *signingWatch) complete(revision int64) bool {
	for _, r := range m.known {
		if r < revision {
			return false
		}
	}
	return true
}

func (m *signingWatch) take(ctx context.Context, resp signingResponse) error {
	i := resp.prefix
	switch {
	case resp.ended:
		if err := ctx.Err(); err != nil {
			return err
		}
		return fmt.Errorf("%w: watch ended", ErrUnavailable)
	case resp.CompactRevision != 0:
		return fmt.Errorf("%w: %d", ErrCompacted, m.pos.applied[i])
	case resp.Err() != nil:
		return storeError(ctx, resp.Err())
	}
	for _, ev := range resp.Events {
		if err := m.w.Changed(signingChangeFrom(m.prefixes[i], ev.Kv, ev.Type == clientv3.EventTypeDelete)); err != nil {
			return err
		}
	}
	if n := len(resp.Events); n > 0 { // all of a revision come in one response
		m.pos.applied[i] = resp.Events[n-1].Kv.ModRevision
		m.known[i] = max(m.known[i], m.pos.applied[i])
	}
	if resp.IsProgressNotify() {
		m.known[i] = max(m.known[i], resp.Header.GetRevision())
	}
	return nil
}

func signingChangeFrom(prefix string, kv *mvccpb.KeyValue, deleted bool) SigningChange {
	key := string(kv.Key)
	c := SigningChange{Deleted: deleted}
	switch prefix {
	case schema.BrandPrefix():
		b := Brand{Name: strings.TrimPrefix(key, prefix), Revision: kv.ModRevision}
		c.Brand = &b
		if !deleted {
			b, c.Damaged = decoded(b, kv, brandFrom)
		}
	case schema.AllDomainsPrefix():
		brand, name, ok := schema.ParseDomainKey(key)
		d := Domain{Brand: brand, Name: dnsname.Domain(name), Revision: kv.ModRevision}
		c.Domain = &d
		if !ok || !deleted {
			d, c.Damaged = decoded(d, kv, bareDomainFrom)
		}
	default:
		brand, name, ok := schema.ParseStatusKey(key)
		st := Status{Brand: brand, Domain: dnsname.Domain(name), Revision: kv.ModRevision}
		c.Status = &st
		if !ok {
			c.Damaged = fmt.Errorf("%w: %q is no status' key", schema.ErrCorrupt, key)
		} else if !deleted {
			st, c.Damaged = decoded(st, kv, func(kv *mvccpb.KeyValue) (Status, error) { return statusFrom(brand, st.Domain, kv) })
		}
	}
	c.Deleted = deleted || c.Damaged != nil
	return c
}

// decoded is what decode makes of a value, or bare with the error.
func decoded[T any](bare T, kv *mvccpb.KeyValue, decode func(*mvccpb.KeyValue) (T, error)) (T, error) {
	v, err := decode(kv)
	if err != nil {
		return bare, err
	}
	return v, nil
}
