package replica

import (
	"bytes"
	"fmt"
	"log/slog"
	"runtime"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// BenchmarkUpdate is one transaction that changes a record, from the watch into
// service: with the journal that incremental transfers are made from, and
// without. It also says what the journal keeps of each in memory.
func BenchmarkUpdate(b *testing.B) {
	const records = 200_000
	apex, err := schema.Apex{NameServers: []schema.NameServer{{Name: "ns1.example.org"}}, Mailbox: "hostmaster.example.org"}.Marshal()
	if err != nil {
		b.Fatal(err)
	}
	for _, journal := range []bool{true, false} {
		b.Run(fmt.Sprintf("journal=%t", journal), func(b *testing.B) {
			v, names := benchView(b, records)
			r := &Replica{
				zone: testZone, view: v, logger: slog.New(slog.DiscardHandler), changed: make(chan struct{}),
				snapshots: make(map[*Snapshot]struct{}), status: Status{Resyncs: make(map[Cause]uint64)},
			}
			r.settings.Store(&settings{})
			s := &session{loop: newLoop(r)}
			rev := int64(1)
			s.setApex(b.Context(), &mvccpb.KeyValue{Key: []byte(s.apexKey), Value: apex, ModRevision: rev})
			keys := make([][]byte, 2)
			for i := range keys {
				if keys[i], err = (schema.PublicRecord{KeyType: dkimrecord.RSA, PublicKey: bytes.Repeat([]byte{byte(i + 1)}, 294), TTL: 3600}).Marshal(); err != nil {
					b.Fatal(err)
				}
			}
			before := heap()
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				rev++
				if !journal {
					r.journal.stop()
				}
				owner := names[i%len(names)]
				if err := s.revision(b.Context(), rev, []*clientv3.Event{
					{Kv: &mvccpb.KeyValue{Key: []byte(s.apexKey), Value: apex, ModRevision: rev}},
					{Kv: &mvccpb.KeyValue{Key: []byte(s.recordPrefix + string(owner)), Value: keys[i/len(names)%2], ModRevision: rev}},
				}); err != nil {
					b.Fatal(err)
				}
			}
			if n := len(r.journal.entries); n > 0 {
				b.ReportMetric(float64(heap()-before)/float64(n), "B/entry")
				runtime.KeepAlive(names)
				b.ReportMetric(float64(n), "entries")
			}
		})
	}
}

// heap is what is in use on the Go heap.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
