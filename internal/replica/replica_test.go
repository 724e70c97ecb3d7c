package replica_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"github.com/dkimzone/dkimzone/internal/etcdclient"
	"github.com/dkimzone/dkimzone/internal/replica"
	"github.com/dkimzone/dkimzone/internal/schema"
)

const zone = "keys.example.net"

// etcd is a real server of one member.
type etcd struct {
	*clientv3.Client
	server   *embed.Etcd
	endpoint string
}

// startEtcd starts a server on dir, on the address of a server before or on a
// free one.
func startEtcd(t testing.TB, dir, endpoint string) *etcd {
	t.Helper()
	if endpoint == "" {
		endpoint = "http://127.0.0.1:0"
	}
	clientURL, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	cfg := embed.NewConfig()
	cfg.Dir = dir
	cfg.LogLevel = "panic"
	cfg.ListenClientUrls = []url.URL{*clientURL}
	cfg.ListenPeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	cfg.UnsafeNoFsync = true
	s, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Server.ReadyNotify():
	case err := <-s.Err():
		t.Fatal(err)
	}
	return &etcd{Client: v3client.New(s.Server), server: s, endpoint: "http://" + s.Clients[0].Addr().String()}
}

func (e *etcd) stop() {
	e.Client.Close()
	e.server.Close()
}

func (e *etcd) write(t testing.TB, ops ...clientv3.Op) int64 {
	t.Helper()
	resp, err := e.Txn(t.Context()).Then(append(ops, putApex(t))...).Commit()
	if err != nil {
		t.Fatal(err)
	}
	return resp.Header.Revision
}

func putApex(t testing.TB) clientv3.Op {
	t.Helper()
	b, err := schema.Apex{NameServers: []schema.NameServer{{Name: "ns1.example.org"}}, ApexTTL: 3600, NegativeTTL: 300}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return clientv3.OpPut(schema.ApexKey(zone), string(b))
}

func owner(i int) string { return fmt.Sprintf("selector1-customer%d._domainkey", i) }

func putRecord(t testing.TB, i int, key string) clientv3.Op {
	t.Helper()
	b, err := schema.PublicRecord{PublicKey: []byte(key), TTL: 60, UpdateTime: time.Now()}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return clientv3.OpPut(schema.RecordKey(zone, owner(i)), string(b))
}

func deleteRecord(i int) clientv3.Op { return clientv3.OpDelete(schema.RecordKey(zone, owner(i))) }

func acquire(t testing.TB, cfg replica.Config) *replica.Handle {
	t.Helper()
	cfg.Zone = zone
	h, err := replica.Acquire(cfg)
	if err != nil {
		t.Fatalf("Acquire: %v", err)
	}
	t.Cleanup(func() { release(t, h) })
	return h
}

func release(t testing.TB, h *replica.Handle) {
	t.Helper()
	if err := h.Release(); err != nil {
		t.Errorf("Release: %v", err)
	}
}

func wait(t testing.TB, h *replica.Handle, rev int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := h.WaitRevision(ctx, rev); err != nil {
		t.Fatal(err)
	}
}

func want(t testing.TB, h *replica.Handle, i int, key string) {
	t.Helper()
	rec, result := h.Lookup([]byte(owner(i)), nil)
	if key == "" && result != replica.Absent || key != "" && (result != replica.Found || string(rec.PublicKey) != key) {
		t.Errorf("record %d: %q, result %d; want %q", i, rec.PublicKey, result, key)
	}
}

// With a real etcd: listing, watch, compaction while the node is down, restart
// with etcd down, and going on when it is back.
func TestRealEtcd(t *testing.T) {
	data := t.TempDir()
	e := startEtcd(t, data, "")
	defer func() { e.stop() }()
	for i := range 25 {
		var ops []clientv3.Op
		for j := range 100 {
			ops = append(ops, putRecord(t, 100*i+j, fmt.Sprint("first", 100*i+j)))
		}
		e.write(t, ops...)
	}
	cfg := replica.Config{Dir: t.TempDir(), Etcd: etcdclient.Config{Endpoints: []string{e.endpoint}}}

	h := acquire(t, cfg)
	wait(t, h, e.write(t, putRecord(t, 3000, "listed or watched")))
	if s := h.Status(); s.Records != 2501 || s.Resyncs[replica.CauseStart] != 1 {
		t.Errorf("status = %+v", s)
	}
	wait(t, h, e.write(t, putRecord(t, 1, "second"), deleteRecord(2)))
	want(t, h, 0, "first0")
	want(t, h, 1, "second")
	want(t, h, 2, "")
	release(t, h)
	if _, result := h.Lookup([]byte(owner(0)), nil); result != replica.Unavailable {
		t.Errorf("after release: result %d, want %d", result, replica.Unavailable)
	}

	// What is compacted cannot be watched any more.
	e.write(t, putRecord(t, 4, "missed"), deleteRecord(5))
	rev := e.write(t, putRecord(t, 6, "missed"))
	if _, err := e.Compact(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
	h = acquire(t, cfg)
	if !h.Loaded() {
		t.Error("not loaded from the file")
	}
	want(t, h, 7, "first7")
	wait(t, h, rev)
	want(t, h, 4, "missed")
	want(t, h, 5, "")
	if s := h.Status(); s.Resyncs[replica.CauseCompacted] != 1 || s.Records != 2499 {
		t.Errorf("status = %+v", s)
	}
	release(t, h)

	// What happened while the node was down is watched from where it was.
	rev = e.write(t, putRecord(t, 8, "while down"))
	h = acquire(t, cfg)
	wait(t, h, rev)
	want(t, h, 8, "while down")
	if s := h.Status(); len(s.Resyncs) != 0 {
		t.Errorf("status = %+v, want no listing", s)
	}
	release(t, h)

	endpoint := e.endpoint
	e.stop()
	h = acquire(t, cfg)
	want(t, h, 8, "while down")
	want(t, h, 2, "")
	if a := h.Apex(); a == nil || a.Serial != schema.Serial(rev) {
		t.Errorf("apex = %+v, want serial %d", a, rev)
	}
	if s := h.Status(); s.State != replica.Disconnected || s.Staleness <= 0 {
		t.Errorf("status = %+v", s)
	}

	e = startEtcd(t, data, endpoint)
	wait(t, h, e.write(t, putRecord(t, 9, "etcd is back")))
	want(t, h, 9, "etcd is back")
	release(t, h)
}

// Handles of one zone and directory share a replica, whichever way to etcd they
// name.
func TestSharedAndReleased(t *testing.T) {
	e := startEtcd(t, t.TempDir(), "")
	defer e.stop()
	rev := e.write(t, putRecord(t, 1, "one"))
	defer replica.RegisterInProcess(t.Name(), e.Client)()
	dir := t.TempDir()
	network := replica.Config{Dir: dir, Etcd: etcdclient.Config{Endpoints: []string{e.endpoint}}, MaxDeletion: 0.5}
	local := replica.Config{Dir: dir, Etcd: etcdclient.Config{Endpoints: []string{replica.InProcessScheme + t.Name()}}, ReconcileInterval: time.Minute}

	first := acquire(t, network)
	wait(t, first, rev)
	second := acquire(t, network)
	third := acquire(t, local)
	if first.Replica != second.Replica || first.Replica != third.Replica {
		t.Error("the same zone and directory are two replicas")
	}
	if got := len(replica.Statuses()); got != 1 {
		t.Errorf("%d statuses, want 1", got)
	}
	// The latest way to etcd is the one in use, and what is served stays.
	wait(t, third, e.write(t, putRecord(t, 2, "two")))
	want(t, third, 1, "one")
	release(t, third)
	release(t, third)
	wait(t, first, e.write(t, putRecord(t, 3, "three")))
	want(t, first, 3, "three")
	if s := first.Status(); len(s.Resyncs) != 1 {
		t.Errorf("resyncs = %v, want the one at the start", s.Resyncs)
	}
	release(t, first)
	want(t, second, 1, "one")
	release(t, second)
	if got := len(replica.Statuses()); got != 0 {
		t.Errorf("%d statuses, want 0", got)
	}
}

func TestAcquireErrors(t *testing.T) {
	endpoints := etcdclient.Config{Endpoints: []string{"http://127.0.0.1:1"}}
	for name, cfg := range map[string]replica.Config{
		"no zone":             {Etcd: endpoints},
		"zone not stored":     {Zone: "Keys.Example.NET", Etcd: endpoints},
		"reconcile too often": {Zone: zone, Etcd: endpoints, ReconcileInterval: time.Millisecond},
		"share below 0":       {Zone: zone, Etcd: endpoints, MaxDeletion: -0.1},
		"share above 1":       {Zone: zone, Etcd: endpoints, MaxDeletion: 1.1},
	} {
		if h, err := replica.Acquire(cfg); err == nil {
			release(t, h)
			t.Errorf("%s: Acquire succeeded", name)
		}
	}
	for _, endpoint := range []string{"", "inprocess:nobody", "127.0.0.1:1"} {
		_, err := replica.Acquire(replica.Config{Zone: zone, Etcd: etcdclient.Config{Endpoints: []string{endpoint}}})
		if _, ok := errors.AsType[*etcdclient.ConfigError](err); !ok {
			t.Errorf("endpoint %q: %v, want a *etcdclient.ConfigError", endpoint, err)
		}
	}
}

// BenchmarkWriteToServed is the time from a transaction to its record in
// service, through an etcd on the same machine without fsync.
func BenchmarkWriteToServed(b *testing.B) {
	e := startEtcd(b, b.TempDir(), "")
	defer e.stop()
	e.write(b)
	h := acquire(b, replica.Config{Etcd: etcdclient.Config{Endpoints: []string{e.endpoint}}})
	wait(b, h, 2)
	i := 0
	for b.Loop() {
		wait(b, h, e.write(b, putRecord(b, i%1000, "key")))
		i++
	}
}

// switched is a client of one etcd and then of another, between which listings and
// questions wait.
type switched struct {
	mu      sync.Mutex
	etcd    *clientv3.Client
	held    chan struct{} // nil, or closed to let go of what waits
	listing chan struct{} // closed when a listing waits
}

func (c *switched) client(ctx context.Context, listing bool) (*clientv3.Client, error) {
	c.mu.Lock()
	held := c.held
	if held != nil && listing && c.listing != nil {
		close(c.listing)
		c.listing = nil
	}
	c.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.etcd, nil
}

// hold returns when a listing waits.
func (c *switched) hold() {
	listing := make(chan struct{})
	c.mu.Lock()
	c.held, c.listing = make(chan struct{}), listing
	c.mu.Unlock()
	<-listing
}

func (c *switched) letGo(etcd *clientv3.Client) {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.held)
	c.held, c.etcd = nil, etcd
}

func (c *switched) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	etcd, err := c.client(ctx, len(clientv3.OpGet(key, opts...).RangeBytes()) > 0)
	if err != nil {
		return nil, err
	}
	return etcd.Get(ctx, key, opts...)
}

func (c *switched) GetStream(ctx context.Context, key string, opts ...clientv3.OpOption) (clientv3.GetStreamChan, error) {
	etcd, err := c.client(ctx, true)
	if err != nil {
		return nil, err
	}
	return etcd.GetStream(ctx, key, opts...)
}

func (c *switched) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.etcd.Watch(ctx, key, opts...)
}

// With a real etcd: a backup takes its place while a comparison is under way.
// The listing is older than what is served.
func TestRealBackupUnderAComparison(t *testing.T) {
	data, backup := t.TempDir(), t.TempDir()
	before := startEtcd(t, data, "")
	before.write(t, putRecord(t, 1, "first"), putRecord(t, 2, "first"))
	before.stop()
	if err := os.CopyFS(backup, os.DirFS(data)); err != nil {
		t.Fatal(err)
	}
	before = startEtcd(t, data, "")
	defer before.stop()
	client := &switched{etcd: before.Client}
	defer replica.RegisterInProcess(t.Name(), client)()
	h := acquire(t, replica.Config{
		Etcd:              etcdclient.Config{Endpoints: []string{replica.InProcessScheme + t.Name()}},
		ReconcileInterval: replica.MinReconcileInterval,
	})
	defer release(t, h) // while there is an etcd
	var ours int64
	for i := range 5 {
		ours = before.write(t, putRecord(t, 1, fmt.Sprint("undone", i)))
	}
	wait(t, h, ours)

	client.hold()
	after := startEtcd(t, backup, "")
	defer after.stop()
	rev := after.write(t, putRecord(t, 2, "after"))
	if rev >= ours {
		t.Fatalf("at revision %d, want one before %d", rev, ours)
	}
	client.letGo(after.Client)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for a := h.Apex(); a.Revision != rev; {
		var err error
		if a, err = h.WaitChange(ctx, a); err != nil {
			t.Fatalf("%v, status = %+v", err, h.Status())
		}
	}
	wait(t, h, rev)
	if s := h.Status(); s.Repairs != 0 || s.Resyncs[replica.CauseRevision] != 1 {
		t.Errorf("status = %+v, want a listing because of the revision and no repairs", s)
	}
	want(t, h, 1, "first")
	want(t, h, 2, "after")
	wait(t, h, after.write(t, putRecord(t, 3, "later")))
	want(t, h, 3, "later")
}
