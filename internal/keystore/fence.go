package keystore

import (
	"context"
	"errors"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Fence makes a write conditional on its writer still being the elected leader:
// on the key of its term, by the revision of its creation.
type Fence struct {
	Key            string
	CreateRevision int64
}

// ErrFenced says that the writer no longer leads; nothing was written.
var ErrFenced = errors.New("no longer the leader")

// holds compares with the term not being over.
func (f *Fence) holds() clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(f.Key), "=", f.CreateRevision)
}

// fencedTxn is txn under a fence, if there is one: if that does not hold, it
// returns ErrFenced.
func (s *Store) fencedTxn(ctx context.Context, f *Fence, cmps []clientv3.Cmp, ops, reads []clientv3.Op) (*clientv3.TxnResponse, error) {
	if f == nil {
		return s.txn(ctx, cmps, ops, reads)
	}
	resp, err := s.txn(ctx, append(cmps, f.holds()), ops, append(reads, clientv3.OpGet(f.Key, clientv3.WithKeysOnly())))
	if err != nil || resp.Succeeded {
		return resp, err
	}
	if kv := readAt(resp, len(reads)); kv == nil || kv.CreateRevision != f.CreateRevision {
		return nil, fmt.Errorf("%w: term %q is over", ErrFenced, f.Key)
	}
	return resp, nil
}
