package embedetcd_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/embedetcd"
)

// fill puts n keys under k/ and returns the revision.
func fill(t *testing.T, c *clientv3.Client, n int) int64 {
	t.Helper()
	var ops []clientv3.Op
	var revision int64
	for i := range n {
		ops = append(ops, clientv3.OpPut(fmt.Sprintf("k/%06d", i), "value"))
		if len(ops) == 128 || i == n-1 {
			resp, err := c.Txn(deadline(t)).Then(ops...).Commit()
			if err != nil {
				t.Fatal(err)
			}
			ops, revision = nil, resp.Header.Revision
		}
	}
	return revision
}

func TestGetStream(t *testing.T) {
	s, ctx := start(t, t.TempDir()), deadline(t)
	c := s.Client()
	const n = 3000
	revision := fill(t, c, n)
	put(t, c, "k/later", "not there yet")
	parts, err := c.GetStream(ctx, "k/", clientv3.WithPrefix(), clientv3.WithRev(revision))
	if err != nil {
		t.Fatal(err)
	}
	got, chunks := 0, 0
	for part := range parts {
		if err := part.Err(); err != nil {
			t.Fatal(err)
		}
		chunks++
		for _, kv := range part.Kvs {
			if want := fmt.Sprintf("k/%06d", got); string(kv.Key) != want {
				t.Fatalf("key %s, want %s", kv.Key, want)
			}
			got++
		}
	}
	if got != n || chunks < 2 {
		t.Errorf("%d keys in %d parts, want %d in some", got, chunks, n)
	}
}

// lastError reads a stream to its end.
func lastError(parts clientv3.GetStreamChan) error {
	var err error
	for part := range parts {
		err = part.Err()
	}
	return err
}

func TestGetStreamOfCompactedRevision(t *testing.T) {
	s, ctx := start(t, t.TempDir()), deadline(t)
	c := s.Client()
	put(t, c, "k", "1")
	revision := put(t, c, "k", "2")
	if _, err := c.Compact(ctx, revision); err != nil {
		t.Fatal(err)
	}
	parts, err := c.GetStream(ctx, "k", clientv3.WithRev(revision-1))
	if err == nil {
		err = lastError(parts)
	}
	if rpctypes.Error(err) != rpctypes.ErrCompacted { //nolint:errorlint // as etcd's clients compare
		t.Errorf("%v, want %v", err, rpctypes.ErrCompacted)
	}
}

func TestGetStreamEnds(t *testing.T) {
	for name, end := range map[string]struct {
		by   func(cancel func(), s *embedetcd.Server)
		want error
	}{
		"with its context": {func(cancel func(), _ *embedetcd.Server) { cancel() }, context.Canceled},
		"with the server":  {func(_ func(), s *embedetcd.Server) { s.Close() }, rpctypes.ErrStopped},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, t.TempDir())
			fill(t, s.Client(), 3000)
			ctx, cancel := context.WithCancel(deadline(t))
			defer cancel()
			parts, err := s.Client().GetStream(ctx, "k/", clientv3.WithPrefix())
			if err != nil {
				t.Fatal(err)
			}
			<-parts // the server waits for the next one to be taken
			end.by(cancel, s)
			if err := lastError(parts); !errors.Is(err, end.want) {
				t.Errorf("ended with %v, want %v", err, end.want)
			}
		})
	}
	s := start(t, t.TempDir())
	s.Close()
	parts, err := s.Client().GetStream(deadline(t), "k")
	if err == nil {
		err = lastError(parts)
	}
	if err == nil {
		t.Error("a closed server answers")
	}
}
