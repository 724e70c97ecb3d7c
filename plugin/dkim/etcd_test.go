package dkim

import (
	"bytes"
	"context"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/etcdclient"
	"github.com/dkimzone/dkimzone/internal/replica"
	"github.com/dkimzone/dkimzone/internal/schema"
)

const testZone = "keys.example.net"

// memory is an etcd that holds its keys and brings what is put, nothing more.
type memory struct {
	mu    sync.Mutex
	rev   int64
	kvs   map[string]*mvccpb.KeyValue
	past  []clientv3.WatchResponse // one for each revision
	watch []chan clientv3.WatchResponse
}

func newMemory() *memory { return &memory{rev: 1, kvs: make(map[string]*mvccpb.KeyValue)} }

func (m *memory) put(values map[string][]byte) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rev++
	resp := clientv3.WatchResponse{Header: &pb.ResponseHeader{ClusterId: 1, Revision: m.rev}}
	for key, value := range values {
		if value == nil {
			delete(m.kvs, key)
			resp.Events = append(resp.Events, &clientv3.Event{Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: []byte(key), ModRevision: m.rev}})
			continue
		}
		m.kvs[key] = &mvccpb.KeyValue{Key: []byte(key), Value: value, ModRevision: m.rev}
		resp.Events = append(resp.Events, &clientv3.Event{Type: mvccpb.Event_PUT, Kv: m.kvs[key]})
	}
	m.past = append(m.past, resp)
	for _, ch := range m.watch {
		ch <- resp
	}
	return m.rev
}

func (m *memory) Get(_ context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	op := clientv3.OpGet(key, opts...)
	m.mu.Lock()
	defer m.mu.Unlock()
	resp := &clientv3.GetResponse{Header: &pb.ResponseHeader{ClusterId: 1, Revision: m.rev}}
	for k, kv := range m.kvs {
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

func (m *memory) Watch(_ context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	m.mu.Lock()
	defer m.mu.Unlock()
	ch := make(chan clientv3.WatchResponse, 100)
	ch <- clientv3.WatchResponse{Header: &pb.ResponseHeader{ClusterId: 1, Revision: m.rev}, Created: true}
	from := clientv3.OpGet(key, opts...).Rev()
	for _, resp := range m.past {
		if resp.Header.GetRevision() >= from {
			ch <- resp
		}
	}
	m.watch = append(m.watch, ch)
	return ch
}

func testApex(edit ...func(*schema.Apex)) schema.Apex {
	a := schema.Apex{
		NameServers: []schema.NameServer{
			{Name: "ns1." + testZone, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}},
			{Name: "ns2.site." + testZone, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.2")}},
			{Name: "ns3.example.org"},
		},
		Mailbox: "hostmaster.example.org",
		ApexTTL: 3600, Refresh: 7200, Retry: 900, Expire: 1209600, NegativeTTL: 300, RecordTTL: 1800,
	}
	for _, fn := range edit {
		fn(&a)
	}
	return a
}

// zoneValues is a zone in etcd.
func zoneValues(t testing.TB, zone string, apex schema.Apex, records map[string]schema.PublicRecord) map[string][]byte {
	t.Helper()
	values := make(map[string][]byte)
	b, err := apex.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	values[schema.ApexKey(zone)] = b
	for owner, rec := range records {
		rec.UpdateTime = time.Now()
		if b, err = rec.Marshal(); err != nil {
			t.Fatal(err)
		}
		values[schema.RecordKey(zone, owner)] = b
	}
	return values
}

// newHandler returns a handler for zones of m, which are loaded if they are
// there.
func newHandler(t testing.TB, m *memory, zones ...string) *DKIM {
	t.Helper()
	unregister := replica.RegisterInProcess(t.Name(), m)
	d := &DKIM{}
	t.Cleanup(func() {
		if err := d.release(); err != nil {
			t.Error(err)
		}
		unregister()
	})
	for _, name := range zones {
		z := &zone{name: name + ".", counts: newCounters(name + ".")}
		h, err := replica.Acquire(replica.Config{Zone: name, Etcd: etcdclient.Config{Endpoints: []string{replica.InProcessScheme + t.Name()}}})
		if err != nil {
			t.Fatal(err)
		}
		z.replica.Store(h)
		d.zones = append(d.zones, z)
		if m.kvs[schema.ApexKey(name)] != nil {
			if err := h.WaitRevision(t.Context(), m.rev); err != nil {
				t.Fatal(err)
			}
		}
	}
	return d
}
