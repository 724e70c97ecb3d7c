package replica

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"pgregory.net/rapid"

	"github.com/dkimzone/dkimzone/internal/etcdclient"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// follow starts a replica of f in memory, or in dir.
func follow(t *testing.T, f Client, edit ...func(*Config)) *Handle {
	t.Helper()
	name := t.Name()
	unregister := RegisterInProcess(name, f)
	cfg := Config{Zone: testZone, Etcd: etcdclient.Config{Endpoints: []string{InProcessScheme + name}}}
	for _, fn := range edit {
		fn(&cfg)
	}
	h, err := Acquire(cfg)
	if err != nil {
		t.Fatalf("Acquire: %v", err)
	}
	t.Cleanup(func() {
		if err := h.Release(); err != nil {
			t.Errorf("Release: %v", err)
		}
		unregister()
	})
	return h
}

// wantKey checks what is served for record i; an empty key means nothing is.
func wantKey(t *testing.T, h *Handle, i int, key string) {
	t.Helper()
	rec, result := h.Lookup([]byte(ownerName(i)), nil)
	if key == "" {
		if result != Absent {
			t.Errorf("record %d: result %d, want %d", i, result, Absent)
		}
		return
	}
	if result != Found || string(rec.PublicKey) != key {
		t.Errorf("record %d: %q, result %d; want %q", i, rec.PublicKey, result, key)
	}
}

func wantState(t *testing.T, h *Handle, want State) Status {
	t.Helper()
	s := h.Status()
	if s.State != want {
		t.Errorf("state = %q, want %q", s.State, want)
	}
	return s
}

func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEtcd()
		f.write(zoneOf(t, 3))
		var served []time.Duration
		h := follow(t, f, func(c *Config) { c.Served = func(d time.Duration) { served = append(served, d) } })
		synctest.Wait()
		s := wantState(t, h, Synced)
		if !s.Loaded || s.Records != 3 || s.Revision != 2 || s.ZoneRevision != 2 || s.ClusterID != 77 || s.Resyncs[CauseStart] != 1 {
			t.Errorf("status = %+v", s)
		}
		if got := h.Apex().Serial; got != 2 {
			t.Errorf("serial = %d, want 2", got)
		}
		wantKey(t, h, 2, "key2")

		rev := f.write(touch(t, 2, "new"))
		synctest.Wait()
		wantKey(t, h, 2, "new")
		f.write(touch(t, 1, ""))
		synctest.Wait()
		wantKey(t, h, 1, "")
		if err := h.WaitRevision(t.Context(), rev); err != nil {
			t.Error(err)
		}
		if got := h.Apex().Serial; got != 4 {
			t.Errorf("serial = %d, want 4", got)
		}
		if len(served) != 1 {
			t.Errorf("%d write-to-served times, want 1", len(served))
		}

		// A change elsewhere in etcd moves the revision, not the serial.
		f.write(map[string][]byte{"/other": {1}})
		time.Sleep(2 * heartbeatInterval)
		if s := h.Status(); s.Revision != 5 || s.ZoneRevision != 4 || s.Staleness > 2*heartbeatInterval {
			t.Errorf("status = %+v", s)
		}
	})
}

func TestWaitRevisionEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := follow(t, newFakeEtcd())
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := h.WaitRevision(ctx, 99); !bytes.Contains([]byte(fmt.Sprint(err)), []byte("revision 99")) {
			t.Errorf("WaitRevision = %v", err)
		}
	})
}

func TestZoneMissingThenCreated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEtcd()
		h := follow(t, f)
		synctest.Wait()
		wantState(t, h, Missing)
		if _, result := h.Lookup([]byte(ownerName(0)), nil); h.Loaded() || result != Unavailable {
			t.Errorf("loaded = %v, result %d; want false, %d", h.Loaded(), result, Unavailable)
		}
		f.write(zoneOf(t, 1))
		synctest.Wait()
		wantKey(t, h, 0, "key0")
		time.Sleep(2 * heartbeatInterval)
		wantState(t, h, Synced)
	})
}

func TestEtcdGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEtcd()
		f.write(zoneOf(t, 20))
		h := follow(t, f)
		synctest.Wait()
		f.set(func(f *fakeEtcd) { f.down = true })
		f.cut()
		time.Sleep(10 * time.Minute)
		s := wantState(t, h, Disconnected)
		if s.Staleness < 9*time.Minute || s.Staleness > 11*time.Minute {
			t.Errorf("staleness = %s after 10 min", s.Staleness)
		}
		wantKey(t, h, 7, "key7")
		f.mu.Lock()
		gets := len(f.gets)
		f.mu.Unlock()
		if gets > 200 {
			t.Errorf("%d calls in 10 min without etcd", gets)
		}

		f.set(func(f *fakeEtcd) { f.down = false })
		rev := f.write(touch(t, 7, "after"))
		time.Sleep(backoffMax + 3*heartbeatInterval)
		wantState(t, h, Synced)
		wantKey(t, h, 7, "after")
		if got := f.lists(); got != 1 {
			t.Errorf("%d listings, want 1: the watch can resume", got)
		}
		if got := f.watchRevs[len(f.watchRevs)-1]; got > rev || got <= 2 {
			t.Errorf("watch resumed from %d, want from behind 2 up to %d", got, rev)
		}
	})
}

// Each way in which following on is impossible leads to one listing, and to
// what etcd has.
func TestResync(t *testing.T) {
	tests := []struct {
		name  string
		cause Cause
		do    func(t *testing.T, f *fakeEtcd)
	}{
		{"compacted", CauseCompacted, func(t *testing.T, f *fakeEtcd) {
			f.unseen(func() {
				f.write(touch(t, 1, "changed"))
				f.write(touch(t, 2, ""))
			})
			f.compact()
			f.cut()
		}},
		{"another cluster", CauseCluster, func(t *testing.T, f *fakeEtcd) {
			f.unseen(func() {
				f.write(touch(t, 1, "changed"))
				f.write(touch(t, 2, ""))
			})
			f.set(func(f *fakeEtcd) { f.clusterID++ })
		}},
		{"another cluster, seen by the watch", CauseCluster, func(t *testing.T, f *fakeEtcd) {
			f.set(func(f *fakeEtcd) { f.clusterID++ })
			f.write(touch(t, 1, "changed"))
			f.write(touch(t, 2, ""))
		}},
		{"revision went back", CauseRevision, func(t *testing.T, f *fakeEtcd) {
			for range 5 {
				f.write(touch(t, 1, "lost"))
			}
			synctest.Wait()
			f.unseen(func() {
				f.rewind(2)
				f.write(touch(t, 1, "changed"))
				f.write(touch(t, 2, ""))
			})
		}},
		{"listing compacted in the middle", CauseCompacted, func(t *testing.T, f *fakeEtcd) {
			f.unseen(func() {
				f.write(touch(t, 1, "changed"))
				f.write(touch(t, 2, ""))
			})
			f.compact()
			done := false
			f.before(func(op clientv3.Op) error {
				if op.RangeBytes() != nil && !done {
					done = true
					return rpctypes.ErrCompacted
				}
				return nil
			})
			f.cut()
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeEtcd()
				f.write(zoneOf(t, 50))
				h := follow(t, f)
				synctest.Wait()
				tt.do(t, f)
				time.Sleep(30 * time.Second)
				s := wantState(t, h, Synced)
				if s.Resyncs[tt.cause] == 0 {
					t.Errorf("resyncs = %v, want one for %s", s.Resyncs, tt.cause)
				}
				wantKey(t, h, 0, "key0")
				wantKey(t, h, 1, "changed")
				wantKey(t, h, 2, "")
				f.write(touch(t, 0, "later"))
				synctest.Wait()
				wantKey(t, h, 0, "later")
				if got, want := h.Status().Revision, f.rev; got != want {
					t.Errorf("revision = %d, want %d", got, want)
				}
			})
		})
	}
}

// The answer to a heartbeat may be older than what the watch brought meanwhile.
func TestLateAnswerIsNoReturnOfRevision(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEtcd()
		f.write(zoneOf(t, 5))
		h := follow(t, f)
		synctest.Wait()
		f.set(func(f *fakeEtcd) {
			f.onAnswer = func() {
				f.write(touch(t, 3, "meanwhile"))
				time.Sleep(time.Millisecond) // the watch is faster
			}
		})
		time.Sleep(10 * heartbeatInterval)
		s := wantState(t, h, Synced)
		if s.Resyncs[CauseRevision] != 0 || f.lists() != 1 {
			t.Errorf("resyncs = %v, %d listings; want the one of the start", s.Resyncs, f.lists())
		}
		if s.Staleness > 2*heartbeatInterval {
			t.Errorf("staleness = %s", s.Staleness)
		}
	})
}

// Clocks that do not agree give no negative and no absurd time.
func TestServedTimesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEtcd()
		f.write(zoneOf(t, 5))
		var served []time.Duration
		h := follow(t, f, func(c *Config) { c.Served = func(d time.Duration) { served = append(served, d) } })
		synctest.Wait()
		for i, at := range []time.Time{time.Now().Add(time.Hour), time.Now().Add(-time.Second), time.Unix(1, 0)} {
			rec := schema.PublicRecord{PublicKey: []byte("later"), TTL: 60, UpdateTime: at}
			value, err := rec.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			f.write(map[string][]byte{schema.ApexKey(testZone): apexValue(t), schema.RecordKey(testZone, ownerName(i)): value})
			synctest.Wait()
			wantKey(t, h, i, "later")
		}
		if want := []time.Duration{0, time.Second, maxServed}; !slices.Equal(served, want) {
			t.Errorf("write-to-served times %v, want %v", served, want)
		}
	})
}

func TestHungWatchIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEtcd()
		f.write(zoneOf(t, 5))
		h := follow(t, f)
		synctest.Wait()
		f.unseen(func() { f.write(touch(t, 3, "unseen")) })
		time.Sleep(hangTimeout + 4*heartbeatInterval)
		wantKey(t, h, 3, "unseen")
		wantState(t, h, Synced)
		if got := len(f.watchRevs); got != 2 {
			t.Errorf("%d watches, want 2", got)
		}
	})
}

// An etcd whose watches have lost a change does not keep it from being served.
func TestHungWatchesEndInAListing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEtcd()
		f.write(zoneOf(t, 5))
		h := follow(t, f)
		synctest.Wait()
		f.set(func(f *fakeEtcd) { f.hung = true })
		f.write(touch(t, 3, "never brought"))
		time.Sleep(3 * (hangTimeout + 4*heartbeatInterval))
		wantKey(t, h, 3, "never brought")
		if s := wantState(t, h, Synced); s.Resyncs[CauseHung] != 1 {
			t.Errorf("resyncs = %v, want one of cause %q", s.Resyncs, CauseHung)
		}
	})
}

// A node that always has something to catch up with is not stale.
func TestSteadyWritesAreNotStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEtcd()
		f.write(zoneOf(t, 5))
		h := follow(t, f)
		synctest.Wait()
		// Answers to Get are always one write ahead of the watch.
		f.before(func(clientv3.Op) error {
			f.mu.Lock()
			f.hung = true
			f.mu.Unlock()
			f.write(touch(t, 3, "steady"))
			return nil
		})
		for range 60 {
			time.Sleep(time.Second)
			f.set(func(f *fakeEtcd) { f.hung = false })
		}
		if s := wantState(t, h, Synced); s.Staleness > 3*heartbeatInterval {
			t.Errorf("staleness = %s", s.Staleness)
		}
		if got := len(f.watchRevs); got != 1 {
			t.Errorf("%d watches, want 1", got)
		}
	})
}

// Watches that break again and again do not put the comparison off for ever.
func TestReconcileComesThoughWatchesBreak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEtcd()
		f.write(zoneOf(t, 5))
		h := follow(t, f, func(c *Config) { c.ReconcileInterval = 10 * time.Minute })
		synctest.Wait()
		for range 30 {
			time.Sleep(time.Minute)
			f.cut()
		}
		if s := h.Status(); s.Resyncs[CausePeriodic] < 2 {
			t.Errorf("resyncs = %v in half an hour, want 2 periodic ones at least", s.Resyncs)
		}
	})
}

func TestReconcileRepairs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEtcd()
		f.write(zoneOf(t, 50))
		h := follow(t, f, func(c *Config) { c.ReconcileInterval = time.Hour })
		synctest.Wait()
		// The watch loses a put and a deletion, and goes on.
		f.unseen(func() {
			f.write(alone(t, 1, "lost"))
			f.write(alone(t, 2, ""))
		})
		f.write(touch(t, 3, "seen"))
		synctest.Wait()
		wantKey(t, h, 1, "key1")
		wantKey(t, h, 2, "key2")

		// While the zone is listed, the watch changes names it lists.
		f.before(func(op clientv3.Op) error {
			if op.RangeBytes() != nil {
				f.write(touch(t, 4, "before the listing"))
				go func() {
					f.write(touch(t, 4, "after the listing"))
					f.write(touch(t, 5, ""))
					f.write(touch(t, 60, "new"))
				}()
			}
			return nil
		})
		time.Sleep(90 * time.Minute)
		f.before(nil)
		wantKey(t, h, 1, "lost")
		wantKey(t, h, 2, "")
		wantKey(t, h, 3, "seen")
		wantKey(t, h, 4, "after the listing")
		wantKey(t, h, 5, "")
		wantKey(t, h, 60, "new")
		s := wantState(t, h, Synced)
		if s.Repairs != 2 || s.Resyncs[CausePeriodic] != 1 || len(s.Resyncs) != 2 {
			t.Errorf("status = %+v", s)
		}
	})
}

// Values that do not decode leave the last good ones in service.
func TestInvalidValues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		f := newFakeEtcd()
		f.write(zoneOf(t, 3))
		h := follow(t, f, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
		synctest.Wait()
		rev := f.write(map[string][]byte{
			schema.ApexKey(testZone):                 {0xff},
			schema.RecordKey(testZone, ownerName(1)): {0xff},
			schema.RecordKey(testZone, "UPPER"):      recordValue(t, "x"),
			schema.ZonePrefix(testZone) + "later":    {1},
		})
		synctest.Wait()
		wantKey(t, h, 1, "key1")
		if got := h.Apex(); got == nil || got.Revision != rev || got.Mailbox != "hostmaster.example.org" {
			t.Errorf("apex = %+v", got)
		}
		if s := h.Status(); s.Invalid != 4 || s.Records != 3 {
			t.Errorf("status = %+v", s)
		}
		if got := bytes.Count(log.Bytes(), []byte("cannot be served")); got != 4 {
			t.Errorf("%d log lines, want 4:\n%s", got, log.Bytes())
		}
		// A listing leaves them alone, too.
		f.set(func(f *fakeEtcd) { f.clusterID++ })
		time.Sleep(time.Minute)
		wantState(t, h, Synced)
		wantKey(t, h, 1, "key1")
	})
}

func TestPages(t *testing.T) {
	for _, n := range []int{0, 1, pageKeys - 2, pageKeys - 1, pageKeys, 2*pageKeys + 1} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeEtcd()
				f.write(zoneOf(t, n))
				first := true
				f.before(func(op clientv3.Op) error {
					if op.RangeBytes() != nil && first {
						first = false
						return nil
					}
					if op.RangeBytes() != nil && op.Rev() != 2 {
						t.Errorf("page at revision %d, want 2", op.Rev())
					}
					return nil
				})
				h := follow(t, f)
				synctest.Wait()
				if s := wantState(t, h, Synced); s.Records != n {
					t.Errorf("%d records, want %d", s.Records, n)
				}
			})
		})
	}
}

// Whatever the bounds, a listing brings every key once, as of one revision.
func TestListInParts(t *testing.T) {
	const n = 300
	f := newFakeEtcd()
	f.write(zoneOf(t, n))
	prefix := schema.ZonePrefix(testZone)
	keys := slices.Sorted(maps.Keys(f.at(2)))
	before, after := prefix, prefix+"\xff"
	rapid.Check(t, func(t *rapid.T) {
		bounds := rapid.SliceOfDistinct(rapid.OneOf(rapid.SampledFrom(keys), rapid.Just(before), rapid.Just(after)), rapid.ID[string]).Draw(t, "bounds")
		slices.Sort(bounds)
		pages := make(chan page)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		go list(ctx, f, prefix, bounds, pages)
		var got []string
		for more := true; more; {
			pg := <-pages
			if pg.err != nil || pg.rev != 2 {
				t.Fatalf("page at revision %d: %v", pg.rev, pg.err)
			}
			for _, kv := range pg.kvs {
				got = append(got, string(kv.Key))
			}
			more = pg.more
		}
		if !slices.Equal(got, keys) {
			t.Fatalf("listed %d keys, want %d", len(got), len(keys))
		}
	})
}

// streamingEtcd lists in one call, in chunks.
type streamingEtcd struct {
	*fakeEtcd
	chunk int
	err   error // of the call
	cut   bool  // the next stream ends before its last chunk
	calls int
}

func (f *streamingEtcd) GetStream(ctx context.Context, key string, opts ...clientv3.OpOption) (clientv3.GetStreamChan, error) {
	f.calls++
	if f.err != nil {
		return nil, f.err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute) // the fake wants a deadline
	defer cancel()
	resp, err := f.Get(ctx, key, opts...)
	if err != nil {
		return nil, err
	}
	cut := f.cut
	f.cut = false
	ch := make(chan clientv3.RangeStreamResponse, 1)
	go func() {
		defer close(ch)
		for kvs := resp.Kvs; ; {
			n := min(f.chunk, len(kvs))
			r := &pb.RangeResponse{Kvs: kvs[:n]}
			if kvs = kvs[n:]; len(kvs) == 0 {
				if cut {
					return
				}
				r.Header = resp.Header
			}
			ch <- clientv3.RangeStreamResponse{RangeResponse: r}
			if len(kvs) == 0 {
				return
			}
		}
	}()
	return ch, nil
}

func TestListsInOneCall(t *testing.T) {
	for _, n := range []int{0, 1, 9, 10, 11, 100} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &streamingEtcd{fakeEtcd: newFakeEtcd(), chunk: 10}
				f.write(zoneOf(t, n))
				h := follow(t, f)
				synctest.Wait()
				if s := wantState(t, h, Synced); s.Records != n || s.Revision != 2 || s.ClusterID != 77 || f.calls != 1 {
					t.Errorf("%d calls, status = %+v", f.calls, s)
				}
			})
		})
	}
}

// A listing that ends early deletes nothing, and is begun again.
func TestStreamCutShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &streamingEtcd{fakeEtcd: newFakeEtcd(), chunk: 10}
		f.write(zoneOf(t, 100))
		h := follow(t, f)
		synctest.Wait()
		f.cut = true
		f.set(func(f *fakeEtcd) { f.clusterID++ })
		time.Sleep(time.Minute)
		if s := wantState(t, h, Synced); s.Records != 100 || s.ClusterID != 78 || f.calls != 3 {
			t.Errorf("%d calls, status = %+v", f.calls, s)
		}
	})
}

func TestStreamNotKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &streamingEtcd{fakeEtcd: newFakeEtcd(), err: status.Error(codes.Unimplemented, "unknown method RangeStream")}
		f.write(zoneOf(t, 20))
		h := follow(t, f)
		synctest.Wait()
		if s := wantState(t, h, Synced); s.Records != 20 {
			t.Errorf("status = %+v", s)
		}
	})
}
