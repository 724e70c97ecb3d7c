package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/schema"
)

const testZone = "keys.example.net"

var errDown = errors.New("etcd is down")

// fakeEtcd is one cluster with its history, and the ways in which it can fail.
// It must be made inside the bubble that uses it.
type fakeEtcd struct {
	mu        sync.Mutex
	clusterID uint64
	rev       int64
	compacted int64
	history   []*clientv3.Event // in order of revisions
	versions  map[string]int64
	watches   []*fakeWatch
	down      bool
	hung      bool                       // watches bring nothing
	silent    bool                       // watches do not even begin
	onGet     func(op clientv3.Op) error // before each Get
	onAnswer  func()                     // between what a Get found and its answer
	gets      []clientv3.Op
	watchRevs []int64
}

type fakeWatch struct {
	ctx  context.Context
	ch   chan clientv3.WatchResponse
	next int64
	key  string
	end  string
}

func newFakeEtcd() *fakeEtcd {
	return &fakeEtcd{clusterID: 77, rev: 1, versions: make(map[string]int64)}
}

// before has fn called with each Get from now on.
func (f *fakeEtcd) before(fn func(clientv3.Op) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onGet = fn
}

// write is one transaction: a nil value deletes.
func (f *fakeEtcd) write(kvs map[string][]byte) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rev++
	keys := make([]string, 0, len(kvs))
	for key := range kvs {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		f.versions[key]++
		ev := &clientv3.Event{Type: mvccpb.Event_PUT, Kv: &mvccpb.KeyValue{
			Key: []byte(key), Value: kvs[key], ModRevision: f.rev, Version: f.versions[key],
		}}
		if kvs[key] == nil {
			ev.Type, ev.Kv.Version, f.versions[key] = mvccpb.Event_DELETE, 0, 0
		}
		f.history = append(f.history, ev)
	}
	f.deliver()
	return f.rev
}

// deliver sends to each watch what it has not had, in one response, as etcd
// does for a watch that catches up.
func (f *fakeEtcd) deliver() {
	if f.hung || f.down {
		return
	}
	for _, w := range f.watches {
		if w.ctx.Err() != nil {
			continue
		}
		resp := clientv3.WatchResponse{Header: &pb.ResponseHeader{ClusterId: f.clusterID, Revision: f.rev}}
		for _, ev := range f.history {
			if ev.Kv.ModRevision >= w.next && string(ev.Kv.Key) >= w.key && string(ev.Kv.Key) < w.end {
				resp.Events = append(resp.Events, ev)
			}
		}
		w.next = max(w.next, f.rev+1)
		if len(resp.Events) > 0 {
			w.ch <- resp
		}
	}
}

func (f *fakeEtcd) set(fn func(*fakeEtcd)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn(f)
	f.deliver()
}

// at is what the keys held at rev.
func (f *fakeEtcd) at(rev int64) map[string]*mvccpb.KeyValue {
	state := make(map[string]*mvccpb.KeyValue)
	for _, ev := range f.history {
		switch {
		case ev.Kv.ModRevision > rev:
		case ev.Type == mvccpb.Event_DELETE:
			delete(state, string(ev.Kv.Key))
		default:
			state[string(ev.Kv.Key)] = ev.Kv
		}
	}
	return state
}

func (f *fakeEtcd) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	if _, ok := ctx.Deadline(); !ok {
		return nil, errors.New("Get without a deadline")
	}
	op := clientv3.OpGet(key, opts...)
	if op.IsSerializable() {
		return nil, errors.New("serializable Get")
	}
	f.mu.Lock()
	onGet, onAnswer := f.onGet, f.onAnswer
	f.gets = append(f.gets, op)
	f.mu.Unlock()
	if onGet != nil {
		if err := onGet(op); err != nil {
			return nil, err
		}
	}
	resp, err := f.get(key, op)
	if onAnswer != nil {
		onAnswer()
	}
	return resp, err
}

func (f *fakeEtcd) get(key string, op clientv3.Op) (*clientv3.GetResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return nil, errDown
	}
	rev := op.Rev()
	switch {
	case rev == 0:
		rev = f.rev
	case rev > f.rev:
		return nil, rpctypes.ErrFutureRev
	case rev < f.compacted:
		return nil, rpctypes.ErrCompacted
	}
	resp := &clientv3.GetResponse{Header: &pb.ResponseHeader{ClusterId: f.clusterID, Revision: f.rev}}
	for k, kv := range f.at(rev) {
		if k == key || op.RangeBytes() != nil && k >= key && k < string(op.RangeBytes()) {
			resp.Kvs = append(resp.Kvs, kv)
		}
	}
	slices.SortFunc(resp.Kvs, func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Key, b.Key) })
	if n := int(op.Limit()); n > 0 && len(resp.Kvs) > n {
		resp.Kvs, resp.More = resp.Kvs[:n], true
	}
	return resp, nil
}

func (f *fakeEtcd) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	op := clientv3.OpGet(key, opts...)
	w := &fakeWatch{ctx: ctx, ch: make(chan clientv3.WatchResponse, 1000), next: op.Rev(), key: key, end: string(op.RangeBytes())}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watchRevs = append(f.watchRevs, op.Rev())
	if f.silent {
		context.AfterFunc(ctx, func() { close(w.ch) })
		return w.ch
	}
	w.ch <- clientv3.WatchResponse{Header: &pb.ResponseHeader{ClusterId: f.clusterID, Revision: f.rev}, Created: true}
	if op.Rev() <= f.compacted {
		w.ch <- clientv3.WatchResponse{Header: &pb.ResponseHeader{ClusterId: f.clusterID, Revision: f.rev}, CompactRevision: f.compacted, Canceled: true}
		close(w.ch)
		return w.ch
	}
	f.watches = append(f.watches, w)
	f.deliver()
	return w.ch
}

// unseen makes changes that the present watches do not bring.
func (f *fakeEtcd) unseen(fn func()) {
	f.set(func(f *fakeEtcd) { f.hung = true })
	fn()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hung = false
	for _, w := range f.watches {
		w.next = f.rev + 1
	}
}

func (f *fakeEtcd) compact() { f.set(func(f *fakeEtcd) { f.compacted = f.rev }) }

// rewind puts a backup of a revision in place. Watches wait for what they have
// not had.
func (f *fakeEtcd) rewind(rev int64) {
	f.set(func(f *fakeEtcd) {
		f.rev = rev
		f.history = slices.DeleteFunc(f.history, func(ev *clientv3.Event) bool { return ev.Kv.ModRevision > rev })
		clear(f.versions)
		for _, ev := range f.history {
			f.versions[string(ev.Kv.Key)] = ev.Kv.Version
		}
	})
}

// cut ends all watches as a server that stops does.
func (f *fakeEtcd) cut() {
	f.set(func(f *fakeEtcd) {
		for _, w := range f.watches {
			close(w.ch)
		}
		f.watches = nil
	})
}

func (f *fakeEtcd) lists() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, op := range f.gets {
		if op.RangeBytes() != nil && op.Rev() == 0 {
			n++
		}
	}
	return n
}

func apexValue(t testing.TB, edit ...func(*schema.Apex)) []byte {
	t.Helper()
	a := schema.Apex{
		NameServers: []schema.NameServer{{Name: "ns1.example.org"}}, Mailbox: "hostmaster.example.org",
		ApexTTL: 3600, Refresh: 7200, Retry: 900, Expire: 1209600, NegativeTTL: 300, RecordTTL: 3600,
	}
	for _, fn := range edit {
		fn(&a)
	}
	return must(a.Marshal())(t)
}

func recordValue(t testing.TB, key string) []byte {
	t.Helper()
	return must(schema.PublicRecord{PublicKey: []byte(key), TTL: 3600, UpdateTime: time.Now()}.Marshal())(t)
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ownerName(i int) string { return fmt.Sprintf("s%d-x%d._domainkey", i%2, i) }

// zoneOf is a transaction that makes a zone of n records.
func zoneOf(t testing.TB, n int) map[string][]byte {
	t.Helper()
	kvs := map[string][]byte{schema.ApexKey(testZone): apexValue(t)}
	for i := range n {
		kvs[schema.RecordKey(testZone, ownerName(i))] = recordValue(t, fmt.Sprint("key", i))
	}
	return kvs
}

// alone is a transaction on record i that leaves the zone object as it is, which
// nobody makes: no count tells that it is missing.
func alone(t testing.TB, i int, key string) map[string][]byte {
	t.Helper()
	kvs := touch(t, i, key)
	delete(kvs, schema.ApexKey(testZone))
	return kvs
}

// touch is a transaction on record i; a nil key deletes it.
func touch(t testing.TB, i int, key string) map[string][]byte {
	t.Helper()
	kvs := map[string][]byte{schema.ApexKey(testZone): apexValue(t), schema.RecordKey(testZone, ownerName(i)): nil}
	if key != "" {
		kvs[schema.RecordKey(testZone, ownerName(i))] = recordValue(t, key)
	}
	return kvs
}
