package bench_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/controller"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/embedetcd"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/mint"
	"github.com/dkimzone/dkimzone/internal/prober"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
)

var idleDomains = flag.Int("domains", 1_000_000, "idle domains of BenchmarkController")

// BenchmarkController measures what the controller costs while none of many
// domains is due (poll: one look at the index), and from a domain's becoming
// due to its status being stored (handle), in a store of the same many domains.
// Its memory is what the heap has more after it has led for a while.
func BenchmarkController(b *testing.B) {
	etcd, err := embedetcd.Start(b.Context(), embedetcd.Config{
		Dir: filepath.Join(b.TempDir(), "etcd"), Logger: slog.New(slog.DiscardHandler), UnsafeNoFsync: true,
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(etcd.Close)
	store := keystore.New(etcd.Client(), 10*time.Second)
	fillIdle(b, etcd.Client(), store, *idleDomains)

	b.Run("poll", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			due, err := store.DueBefore(b.Context(), time.Now(), 500)
			if err != nil || len(due) != 0 {
				b.Fatalf("%d domains are due, %v", len(due), err)
			}
		}
	})
	b.Run("handle", func(b *testing.B) {
		before := heap()
		ctx, cancel := context.WithCancel(b.Context())
		done := make(chan error, 1)
		c := controller.New(controller.Options{
			Store: store, Mint: mint.New(freshKeys{}, noSealer{}), Prober: goodDNS{}, Elector: alwaysLeads{}, Now: time.Now,
			Logger: slog.New(slog.DiscardHandler), Workers: 64, Rate: 1_000_000, Poll: time.Millisecond,
		})
		go func() { done <- c.Run(ctx) }()
		i := 0
		for b.Loop() {
			name := idleName(i % *idleDomains)
			i++
			st, err := store.Status(b.Context(), "acme", name)
			if err != nil {
				b.Fatal(err)
			}
			st.Due = time.Now()
			saved, err := store.SaveStatus(b.Context(), st, nil)
			if err != nil {
				b.Fatal(err)
			}
			for st.Revision == 0 || st.Revision <= saved.Revision {
				if st, err = store.Status(b.Context(), "acme", name); err != nil {
					b.Fatal(err)
				}
			}
		}
		b.ReportMetric(float64(heap()-before)/(1<<20), "MiB")
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			b.Error(err)
		}
	})
}

// heap is the octets in use on the heap after a collection.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func idleName(i int) dnsname.Domain { return dnsname.Domain(fmt.Sprintf("customer-%07d.example", i)) }

// fillIdle makes one domain and its status through the store, and the others as
// copies of their values.
func fillIdle(b *testing.B, client *clientv3.Client, store *keystore.Store, total int) {
	b.Helper()
	now := time.Now()
	if _, err := store.CreateZone(b.Context(), keystore.Zone{Name: zone, Apex: schema.Apex{
		NameServers: []schema.NameServer{{Name: "ns1.example.net"}}, Mailbox: "hostmaster.example.net", RecordTTL: 3600, NegativeTTL: 300,
	}}); err != nil {
		b.Fatal(err)
	}
	if _, err := store.CreateBrand(b.Context(), keystore.Brand{Name: "acme", Zone: zone}); err != nil {
		b.Fatal(err)
	}
	d := keystore.Domain{Brand: "acme", Name: idleName(0), Zone: zone, CreateTime: now, UpdateTime: now}
	var fill []rotation.Step
	for _, sel := range []dnsname.Selector{"selector1", "selector2"} {
		d.Selectors = append(d.Selectors, keystore.Selector{Selector: sel, Algorithm: keypair.Ed25519})
		fill = append(fill, rotation.Step{Kind: rotation.Refill, Selector: sel, Algorithm: keypair.Ed25519})
	}
	change, err := mint.New(freshKeys{}, noSealer{}).Change(b.Context(), d, fill, mint.Options{Now: now, TTL: 3600})
	if err != nil {
		b.Fatal(err)
	}
	if d, err = store.Apply(b.Context(), change); err != nil {
		b.Fatal(err)
	}
	st, err := store.Status(b.Context(), d.Brand, d.Name)
	if err != nil {
		b.Fatal(err)
	}
	due, err := store.DueBefore(b.Context(), now.Add(time.Second), 10)
	if err != nil {
		b.Fatal(err)
	}
	seen := rotation.Observation{}.Observe(rotation.Proven, "", now)
	st.Aliases = map[dnsname.Selector]rotation.Observation{"selector1": seen, "selector2": seen}
	st.Due = now.Add(24 * time.Hour)
	if _, err := store.SaveStatus(b.Context(), st, nil, due...); err != nil {
		b.Fatal(err)
	}
	value := func(key string) string {
		resp, err := client.Get(b.Context(), key)
		if err != nil || len(resp.Kvs) != 1 {
			b.Fatalf("%s: %d values, %v", key, len(resp.Kvs), err)
		}
		return string(resp.Kvs[0].Value)
	}
	domain, status := value(schema.DomainKey("acme", string(d.Name))), value(schema.StatusKey("acme", string(d.Name)))
	var ops []clientv3.Op
	for i := 1; i < total; i++ {
		name := string(idleName(i))
		ops = append(ops,
			clientv3.OpPut(schema.DomainKey("acme", name), domain),
			clientv3.OpPut(schema.StatusKey("acme", name), status),
			clientv3.OpPut(schema.DueKey(st.Due, "acme", name), ""))
		if len(ops) < 120 && i < total-1 {
			continue
		}
		if _, err := client.Txn(b.Context()).Then(ops...).Commit(); err != nil {
			b.Fatal(err)
		}
		ops = ops[:0]
	}
}

type freshKeys struct{}

func (freshKeys) Get(_ context.Context, a keypair.Algorithm) (*keypair.KeyPair, error) {
	return keypair.Generate(a)
}

type noSealer struct{}

func (noSealer) Seal(context.Context, string, string, []byte) ([]byte, error) {
	return random(62), nil // seed, nonce, tag, number of the data key
}

// goodDNS shows everything as it should be.
type goodDNS struct{}

func (goodDNS) Alias(context.Context, prober.AliasQuestion) prober.AliasReport {
	return prober.AliasReport{Class: prober.OK, Finding: rotation.Proven}
}

func (goodDNS) Served(context.Context, string, []prober.NameServer, string, string) prober.ServedReport {
	return prober.ServedReport{Finding: rotation.Proven}
}

// alwaysLeads is an election without rivals.
type alwaysLeads struct{}

func (alwaysLeads) Campaign(context.Context) (controller.Term, error) { return leads{}, nil }

type leads struct{}

func (leads) Fence() *keystore.Fence { return nil }
func (leads) Done() <-chan struct{}  { return nil }
func (leads) Resign() error          { return nil }
