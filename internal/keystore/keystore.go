// Package keystore keeps zones, brands, domains and sealed keys in etcd. Each
// change is one transaction, compared on what it was computed from: it happens
// whole or not at all, and two writers never overwrite each other.
package keystore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/dkimzone/dkimzone/internal/schema"
)

// Client is what a Store needs of etcd; *clientv3.Client is one. It must be
// safe for concurrent use.
type Client interface {
	Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error)
	Txn(ctx context.Context) clientv3.Txn
	Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan
	// RequestProgress has the watches of ctx's stream say how far they are.
	RequestProgress(ctx context.Context) error
}

// Errors that callers branch on. Others are failures of the store itself.
var (
	ErrZoneNotFound   = errors.New("zone not found")
	ErrZoneExists     = errors.New("zone exists")
	ErrZoneInUse      = errors.New("zone is used by a brand")
	ErrBrandNotFound  = errors.New("brand not found")
	ErrBrandExists    = errors.New("brand exists")
	ErrBrandNotEmpty  = errors.New("brand has domains")
	ErrDomainNotFound = errors.New("domain not found")
	ErrKeyNotFound    = errors.New("key not found")
	// ErrTooManyKeys: a domain with more keys, or with more dashes in their
	// selectors, could not be deleted in one transaction.
	ErrTooManyKeys = errors.New("too many keys")
	// ErrConflict: what the change was computed from has changed meanwhile;
	// nothing was written. Read again and decide again.
	ErrConflict = errors.New("changed by somebody else")
	// ErrUnavailable: etcd did not answer in time or cannot take writes. A write
	// that ends so may or may not have happened.
	ErrUnavailable = errors.New("etcd unavailable")
	// ErrCompacted: the revision to watch from is no longer in etcd's history.
	ErrCompacted = errors.New("revision compacted")
)

// Store keeps everything of one installation in one etcd cluster. It is safe
// for concurrent use and holds no state of its own but who waits for whom.
type Store struct {
	client   Client
	timeout  time.Duration
	counting [64]chan struct{} // see enter
	witness  Witness           // may be nil
}

// New returns a Store on client. Each call to etcd ends after timeout, at most.
func New(client Client, timeout time.Duration) *Store {
	s := &Store{client: client, timeout: timeout}
	for i := range s.counting {
		s.counting[i] = make(chan struct{}, 1)
	}
	return s
}

// Revision is the store's present revision, by a linearizable read: it succeeds
// only while a majority of the etcd cluster is there.
func (s *Store) Revision(ctx context.Context) (int64, error) {
	resp, err := s.get(ctx, schema.Root)
	if err != nil {
		return 0, err
	}
	return resp.Header.Revision, nil
}

func (s *Store) get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	if err := ctx.Err(); err != nil {
		return nil, storeError(ctx, err) // etcd in this process might answer all the same
	}
	callCtx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	f := floorOf(ctx)
	if f.set() {
		resp, err := s.client.Get(callCtx, key, append(slices.Clip(opts), clientv3.WithSerializable())...)
		if err == nil && f.raise(resp.Header.GetRevision()) {
			return resp, nil
		}
	}
	resp, err := s.client.Get(callCtx, key, opts...)
	if err != nil {
		return nil, storeError(ctx, err)
	}
	f.raise(resp.Header.GetRevision())
	return resp, nil
}

// getOne returns the value at key, or notFound.
func (s *Store) getOne(ctx context.Context, key string, notFound error) (*mvccpb.KeyValue, error) {
	resp, err := s.get(ctx, key)
	if err != nil {
		return nil, err
	}
	if len(resp.Kvs) == 0 {
		return nil, notFound
	}
	return resp.Kvs[0], nil
}

// txn commits one transaction. If a comparison fails it carries out reads and
// returns their results, so that the caller can tell which.
func (s *Store) txn(ctx context.Context, cmps []clientv3.Cmp, ops, reads []clientv3.Op) (*clientv3.TxnResponse, error) {
	if err := ctx.Err(); err != nil {
		return nil, storeError(ctx, err) // etcd in this process would write all the same
	}
	callCtx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	f := floorOf(ctx)
	if f.set() && len(cmps) == 0 {
		if gets, ok := alone(ops); ok {
			resp, err := s.client.Txn(callCtx).Then(gets...).Commit()
			if err == nil && f.raise(resp.Header.GetRevision()) {
				return resp, nil
			}
		}
	}
	resp, err := s.client.Txn(callCtx).If(cmps...).Then(ops...).Else(reads...).Commit()
	if err != nil {
		return nil, storeError(ctx, err)
	}
	f.raise(resp.Header.GetRevision())
	return resp, nil
}

// readAt is what the i-th read of a failed transaction found, or nil.
func readAt(resp *clientv3.TxnResponse, i int) *mvccpb.KeyValue {
	r := resp.Responses[i].GetResponseRange()
	if r == nil || len(r.Kvs) == 0 {
		return nil
	}
	return r.Kvs[0]
}

// touchApex bumps the apex's mod_revision, which is the zone's serial, and
// leaves its value alone: no read, and no conflict between writers.
func touchApex(zone string) clientv3.Op {
	return clientv3.OpPut(schema.ApexKey(zone), "", clientv3.WithIgnoreValue())
}

func absent(key string) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(key), "=", 0)
}

func present(key string) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(key), ">", 0)
}

// unchanged compares with the mod_revision that was read; 0 means absent.
func unchanged(key string, modRevision int64) clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(key), "=", modRevision)
}

// noneUnder compares with there being no key below prefix.
func noneUnder(prefix string) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(prefix), "=", 0).WithPrefix()
}

// noneBetween compares with there being no key from one on and before another.
func noneBetween(from, end string) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(from), "=", 0).WithRange(end)
}

// storeError marks the errors that stand for "etcd is not there". ctx is that of
// the caller: calls are cancelled too when the client or etcd stops.
func storeError(ctx context.Context, err error) error {
	code := codes.OK
	if st, ok := status.FromError(err); ok {
		code = st.Code()
	}
	if etcdErr, ok := errors.AsType[rpctypes.EtcdError](err); ok {
		code = etcdErr.Code()
	}
	canceled := code == codes.Canceled || errors.Is(err, context.Canceled)
	switch {
	case canceled && errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err()
	case canceled, errors.Is(err, context.DeadlineExceeded),
		code == codes.DeadlineExceeded, code == codes.Unavailable, code == codes.ResourceExhausted,
		code == codes.Unknown: // etcd's word for what goes wrong inside it: "raft: stopped"
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return fmt.Errorf("etcd: %w", err)
}

// page reads up to limit values whose keys follow prefix+after, in key order.
// more reports whether there are further ones.
func (s *Store) page(ctx context.Context, prefix, after string, limit int) (kvs []*mvccpb.KeyValue, more bool, err error) {
	from := prefix
	if after != "" {
		from = prefix + after + "\x00"
	}
	resp, err := s.get(ctx, from, clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)), clientv3.WithLimit(int64(limit)))
	if err != nil {
		return nil, false, err
	}
	return resp.Kvs, resp.More, nil
}
