package replica

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	pageKeys    = 10_000
	pageTimeout = 30 * time.Second

	// While queries are answered, pages are so small on average: a page is taken
	// apart in one go, which no query should wait for.
	servingPageKeys = 512
	sampleEvery     = 128
)

var errCutShort = errors.New("the listing ended too early")

// page is a piece of a listing.
type page struct {
	kvs       []*mvccpb.KeyValue
	clusterID uint64
	rev       int64 // of the whole listing; in a stream only the last page has it
	more      bool
	err       error
}

// streamer is a Client that lists in one call. It spares etcd counting, for
// each page, all the keys that follow: a million keys take 5 s and not 16 s.
// *clientv3.Client has it, etcd from 3.7 on.
type streamer interface {
	GetStream(ctx context.Context, key string, opts ...clientv3.OpOption) (clientv3.GetStreamChan, error)
}

// list sends all keys below prefix as of one revision, up to a page without
// more or with an error. The bounds, keys below prefix in their order, divide it
// into small pages; without any, pages are large.
func list(ctx context.Context, client Client, prefix string, bounds []string, pages chan<- page) {
	ctx = clientv3.WithRequireLeader(ctx) // a member that is cut off says so, and the next one is asked
	if c, ok := client.(streamer); ok && len(bounds) == 0 && stream(ctx, c, prefix, pages) {
		return
	}
	key, rev := prefix, int64(0)
	for i := range len(bounds) + 1 {
		end := clientv3.GetPrefixRangeEnd(prefix)
		if i < len(bounds) {
			end = bounds[i]
		}
		for within := true; within; {
			p := fetch(ctx, client, key, end, rev)
			within = p.more
			p.more = within || i < len(bounds)
			if !send(ctx, pages, p) || p.err != nil {
				return
			}
			rev = p.rev
			if within {
				key = string(p.kvs[len(p.kvs)-1].Key) + "\x00"
			}
		}
		key = end
	}
}

func fetch(ctx context.Context, client Client, key, end string, rev int64) page {
	ctx, cancel := context.WithTimeout(ctx, pageTimeout)
	defer cancel()
	resp, err := client.Get(ctx, key, clientv3.WithRange(end), clientv3.WithLimit(pageKeys), clientv3.WithRev(rev))
	if err != nil {
		return page{err: err}
	}
	p := page{kvs: resp.Kvs, clusterID: resp.Header.GetClusterId(), rev: rev, more: resp.More && len(resp.Kvs) > 0}
	if rev == 0 {
		p.rev = resp.Header.GetRevision()
	}
	return p
}

// stream is list in one call. It reports false, having sent nothing, if etcd or
// what is in front of it does not know the call.
func stream(ctx context.Context, c streamer, prefix string, pages chan<- page) bool {
	callCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	stalled := time.AfterFunc(pageTimeout, cancel)
	defer stalled.Stop()
	chunks, err := c.GetStream(callCtx, prefix, clientv3.WithPrefix())
	if err != nil {
		if status.Code(err) == codes.Unimplemented {
			return false
		}
		send(ctx, pages, page{err: err})
		return true
	}
	defer func() {
		cancel()
		for range chunks { // lets its sender end
		}
	}()
	for first := true; ; first = false {
		chunk, ok := <-chunks
		stalled.Reset(pageTimeout)
		p := page{more: true}
		switch {
		case !ok:
			p.err = errCutShort
		case first && status.Code(chunk.Err()) == codes.Unimplemented:
			return false
		case chunk.Err() != nil:
			p.err = chunk.Err()
		default:
			p.kvs = chunk.Kvs
			if h := chunk.Header; h.GetRevision() != 0 { // the last one
				p.clusterID, p.rev, p.more = h.GetClusterId(), h.GetRevision(), false
			}
		}
		if !send(ctx, pages, p) || p.err != nil || !p.more {
			return true
		}
	}
}

// send reports whether somebody took p.
func send(ctx context.Context, pages chan<- page, p page) bool {
	select {
	case pages <- p:
		return true
	case <-ctx.Done():
		return false
	}
}
