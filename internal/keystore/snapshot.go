package keystore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// streamer is a Client that reads a range in one call. *clientv3.Client has it,
// etcd from 3.7 on. Otherwise, etcd counts for each page all the keys of the range
// that follow.
type streamer interface {
	GetStream(ctx context.Context, key string, opts ...clientv3.OpOption) (clientv3.GetStreamChan, error)
}

var (
	// errNoStream is returned when nothing was read in one call, and will not be.
	errNoStream = errors.New("etcd does not stream")
	errCutShort = errors.New("etcd ended a stream too early")
	errEnough   = errors.New("no more is wanted of a stream")
)

// snapshot calls each for all keys below prefix as they stood at a revision, 0
// the present one, and returns it. It returns ErrCompacted when etcd forgot it.
func (s *Store) snapshot(ctx context.Context, prefix string, revision int64, each func(*mvccpb.KeyValue) error) (int64, error) {
	at, err := s.stream(ctx, prefix, revision, each, clientv3.WithPrefix())
	if errors.Is(err, errNoStream) {
		at, err = s.pages(ctx, prefix, revision, each)
	}
	if errors.Is(err, rpctypes.ErrCompacted) {
		return 0, fmt.Errorf("%w: %d", ErrCompacted, revision)
	}
	if err != nil {
		return 0, err
	}
	return at, nil
}

func (s *Store) pages(ctx context.Context, prefix string, revision int64, each func(*mvccpb.KeyValue) error) (int64, error) {
	const pageSize = 2000
	end := clientv3.GetPrefixRangeEnd(prefix)
	from := prefix
	for {
		opts := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithLimit(pageSize)}
		if revision != 0 {
			opts = append(opts, clientv3.WithRev(revision))
		}
		resp, err := s.get(ctx, from, opts...)
		if err != nil {
			return 0, err
		}
		if revision == 0 {
			revision = resp.Header.Revision
		}
		for _, kv := range resp.Kvs {
			if err := each(kv); err != nil {
				return 0, err
			}
		}
		if !resp.More {
			return revision, nil
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}

// first reads the first keys, limit at most, from one key on and before another. It
// ends a stream that has no limit: for one that has, and for a page, etcd counts all
// keys that follow, of which there may be millions.
func (s *Store) first(ctx context.Context, from, end string, limit int, opts ...clientv3.OpOption) (kvs []*mvccpb.KeyValue, _ error) {
	opts = append(opts, clientv3.WithRange(end))
	_, err := s.stream(ctx, from, 0, func(kv *mvccpb.KeyValue) error {
		if kvs = append(kvs, kv); len(kvs) == limit {
			return errEnough
		}
		return nil
	}, opts...)
	switch {
	case err == nil, errors.Is(err, errEnough):
		return kvs, nil
	case !errors.Is(err, errNoStream):
		return nil, err
	}
	resp, err := s.get(ctx, from, append(opts, clientv3.WithLimit(int64(limit)))...)
	if err != nil {
		return nil, err
	}
	return resp.Kvs, nil
}

// stream reads a range, which opts say, in one call. It returns errNoStream, having
// called each never, if etcd or what is in front of it does not know the call.
func (s *Store) stream(ctx context.Context, from string, revision int64, each func(*mvccpb.KeyValue) error, opts ...clientv3.OpOption) (int64, error) {
	c, ok := s.client.(streamer)
	if !ok {
		return 0, errNoStream
	}
	if err := ctx.Err(); err != nil {
		return 0, storeError(ctx, err)
	}
	callCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Only etcd's time counts, not that of each.
	limit := time.AfterFunc(s.timeout, func() { cancel(context.DeadlineExceeded) })
	defer limit.Stop()
	if revision != 0 {
		opts = append(opts, clientv3.WithRev(revision))
	}
	chunks, err := c.GetStream(callCtx, from, opts...)
	if status.Code(err) == codes.Unimplemented {
		return 0, errNoStream
	}
	if err != nil {
		return 0, storeError(ctx, err)
	}
	defer func() {
		cancel(nil)
		for range chunks { // lets its sender end
		}
	}()
	for first := true; ; first = false {
		limit.Reset(s.timeout)
		chunk, ok := <-chunks
		limit.Stop()
		err := chunk.Err()
		switch {
		case !ok:
			return 0, storeError(ctx, status.Error(codes.Unavailable, errCutShort.Error()))
		case first && status.Code(err) == codes.Unimplemented:
			return 0, errNoStream
		case errors.Is(err, rpctypes.ErrCompacted):
			return 0, err
		case err != nil:
			return 0, storeError(ctx, err)
		}
		for _, kv := range chunk.Kvs {
			if err := each(kv); err != nil {
				return 0, err
			}
		}
		if at := chunk.Header.GetRevision(); at != 0 { // the last one
			if revision != 0 {
				at = revision
			}
			return at, nil
		}
	}
}
