package embedetcd_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

// next returns the next response of a watch, or fails the test.
func next(t *testing.T, ctx context.Context, w clientv3.WatchChan) clientv3.WatchResponse {
	t.Helper()
	select {
	case resp, ok := <-w:
		if !ok {
			t.Fatal("watch ended")
		}
		return resp
	case <-ctx.Done():
		t.Fatal("no response from the watch")
	}
	panic("unreachable")
}

// ended waits for a watch channel to close.
func ended(t *testing.T, ctx context.Context, w clientv3.WatchChan) {
	t.Helper()
	for {
		select {
		case _, ok := <-w:
			if !ok {
				return
			}
		case <-ctx.Done():
			t.Fatal("watch did not end")
		}
	}
}

func TestWatch(t *testing.T) {
	s, ctx := start(t, t.TempDir()), deadline(t)
	c := s.Client()
	first := put(t, c, "p/a", "1")

	watchCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	watchCtx = clientv3.WithRequireLeader(watchCtx)
	w := c.Watch(watchCtx, "p/", clientv3.WithPrefix(), clientv3.WithRev(first), clientv3.WithCreatedNotify())
	if resp := next(t, ctx, w); !resp.Created {
		t.Fatalf("first response %+v, want created", resp)
	}
	if resp := next(t, ctx, w); len(resp.Events) != 1 || string(resp.Events[0].Kv.Key) != "p/a" {
		t.Fatalf("response %+v, want the put of p/a from before the watch", resp)
	}
	if _, err := c.Txn(ctx).Then(clientv3.OpPut("p/b", "2"), clientv3.OpDelete("p/a"), clientv3.OpPut("q", "3")).Commit(); err != nil {
		t.Fatal(err)
	}
	resp := next(t, ctx, w)
	if len(resp.Events) != 2 || resp.Events[0].Kv.ModRevision != resp.Events[1].Kv.ModRevision {
		t.Fatalf("response %+v, want both events of the transaction at once", resp)
	}

	// Nothing happens on p/, yet the watch can learn how far it is.
	last := put(t, c, "q", "4")
	if err := c.RequestProgress(watchCtx); err != nil {
		t.Fatalf("RequestProgress: %v", err)
	}
	if resp := next(t, ctx, w); !resp.IsProgressNotify() || resp.Header.Revision < last {
		t.Fatalf("response %+v, want progress to revision %d", resp, last)
	}

	cancel()
	ended(t, ctx, w)
}

func TestWatchEndsWithItsDeadline(t *testing.T) {
	s, ctx := start(t, t.TempDir()), deadline(t)
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	ended(t, ctx, s.Client().Watch(clientv3.WithRequireLeader(short), "k"))
	if short.Err() == nil {
		t.Error("watch ended before its deadline")
	}
}

func TestWatchOfCompactedRevision(t *testing.T) {
	s, ctx := start(t, t.TempDir()), deadline(t)
	c := s.Client()
	put(t, c, "k", "1")
	rev := put(t, c, "k", "2")
	if _, err := c.Compact(ctx, rev, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	resp := next(t, ctx, c.Watch(ctx, "k", clientv3.WithRev(rev-1)))
	if resp.CompactRevision != rev || !errors.Is(resp.Err(), rpctypes.ErrCompacted) {
		t.Errorf("response %+v (%v), want compacted at %d", resp, resp.Err(), rev)
	}
	if _, err := c.Get(ctx, "k", clientv3.WithRev(rev-1)); !errors.Is(err, rpctypes.ErrCompacted) {
		t.Errorf("Get of a compacted revision: %v, want %v", err, rpctypes.ErrCompacted)
	}
}

func TestErrorsAreThoseOfTheNetworkClient(t *testing.T) {
	s, ctx := start(t, t.TempDir()), deadline(t)
	c := s.Client()
	ops := make([]clientv3.Op, 129)
	for i := range ops {
		ops[i] = clientv3.OpPut(string(rune('a'+i)), "")
	}
	if _, err := c.Txn(ctx).Then(ops...).Commit(); !errors.Is(err, rpctypes.ErrTooManyOps) {
		t.Errorf("Txn of 129 operations: %v, want %v", err, rpctypes.ErrTooManyOps)
	}
	if _, err := c.Put(ctx, "k", string(make([]byte, 2<<20))); !errors.Is(err, rpctypes.ErrRequestTooLarge) {
		t.Errorf("Put of 2 MiB: %v, want %v", err, rpctypes.ErrRequestTooLarge)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := c.Put(cancelled, "k", "v"); !errors.Is(err, context.Canceled) {
		t.Errorf("Put with a cancelled context: %v, want %v", err, context.Canceled)
	}
	expired, cancel := context.WithTimeout(ctx, 0)
	defer cancel()
	if _, err := c.Put(expired, "k", "v"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Put after its deadline: %v, want %v", err, context.DeadlineExceeded)
	}
}

func TestLeaderElection(t *testing.T) {
	s, ctx := start(t, t.TempDir()), deadline(t)
	session, err := concurrency.NewSession(s.Client(), concurrency.WithTTL(5))
	if err != nil {
		t.Fatal(err)
	}
	if err := concurrency.NewElection(session, "leader").Campaign(ctx, "one"); err != nil {
		t.Fatalf("Campaign: %v", err)
	}
	if err := session.Close(); err != nil {
		t.Errorf("session.Close: %v", err)
	}
	resp, err := s.Client().Get(ctx, "leader", clientv3.WithPrefix())
	if err != nil || len(resp.Kvs) != 0 {
		t.Errorf("keys of the ended session = %v, %v; want none", resp, err)
	}
}

func TestCloseEndsWatchesAndCalls(t *testing.T) {
	s, ctx := start(t, t.TempDir()), deadline(t)
	c := s.Client()
	w := c.Watch(clientv3.WithRequireLeader(ctx), "k", clientv3.WithCreatedNotify())
	next(t, ctx, w)

	writers := make(chan error)
	for range 4 {
		go func() {
			for {
				if _, err := c.Put(ctx, "other", "v"); err != nil {
					writers <- err
					return
				}
			}
		}()
	}
	put(t, c, "other", "v")
	s.Close()
	ended(t, ctx, w)
	for range 4 {
		if err := <-writers; errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a call in flight at Close was left hanging: %v", err)
		}
	}
	if _, err := c.Get(ctx, "k"); err == nil || ctx.Err() != nil {
		t.Errorf("Get after Close: %v; want an error at once", err)
	}
	ended(t, ctx, c.Watch(ctx, "k"))
}
