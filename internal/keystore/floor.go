package keystore

import (
	"context"
	"sync/atomic"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// floor is the newest revision that a piece of work has been told of; 0: it has
// not read yet.
type floor struct{ revision atomic.Int64 }

type floorKey struct{}

// WithFloor returns a context for one piece of work, of whose reads only the first
// has etcd ask a majority of its members what is newest. That read sees all that
// was acknowledged to anybody before the work began, and tells the revision. Later
// reads are answered by one member alone. They count if that member has come at
// least as far as the newest revision that the work was told of, by a read or by a
// transaction of its own, be it one whose comparison failed; if not, a majority is
// asked after all. So whatever the work decides, to refuse, to leave things as they
// are or to write, rests on a state no older than its beginning and its own last
// transaction. A member that lags behind costs time, never a wrong answer.
//
// The context is not for work that waits for what others do later.
func WithFloor(ctx context.Context) context.Context {
	return context.WithValue(ctx, floorKey{}, new(floor))
}

// floorOf returns nil where every read asks a majority.
func floorOf(ctx context.Context) *floor {
	f, _ := ctx.Value(floorKey{}).(*floor)
	return f
}

// set reports whether there is a revision that a member can have come to.
func (f *floor) set() bool { return f != nil && f.revision.Load() > 0 }

// raise takes note of the revision of an answer, and reports whether it was not
// below the floor.
func (f *floor) raise(revision int64) bool {
	if f == nil {
		return true
	}
	for {
		was := f.revision.Load()
		if revision <= was {
			return revision == was
		}
		if f.revision.CompareAndSwap(was, revision) {
			return true
		}
	}
}

// alone returns gets for one member to answer by itself; ok is false if ops write.
func alone(ops []clientv3.Op) (gets []clientv3.Op, ok bool) {
	gets = make([]clientv3.Op, len(ops))
	for i, op := range ops {
		if !op.IsGet() {
			return nil, false
		}
		clientv3.WithSerializable()(&op)
		gets[i] = op
	}
	return gets, true
}
