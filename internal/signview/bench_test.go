package signview

import (
	"context"
	"flag"
	"fmt"
	"runtime"
	"testing"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/rotation"
)

var benchDomains = flag.Int("domains", 20_000, "domains in the view that is measured")

func benchName(i int) dnsname.Domain { return dnsname.Domain(fmt.Sprintf("customer-%d.example", i)) }

// benchFixture is a view of many domains of two keys, of which it says how much
// memory each takes: as its records, and of the whole heap.
func benchFixture(b *testing.B) *fixture {
	b.Helper()
	f := newFixture(b)
	f.brand("acme", rotation.ModePerDomain)
	before := heapInUse()
	f.generate = func(each func(keystore.SigningChange) error) error {
		for i := range *benchDomains {
			d, st := domain("acme", benchName(i), rotation.Customer, "selector")
			if err := each(keystore.SigningChange{Domain: &d}); err != nil {
				return err
			}
			if err := each(keystore.SigningChange{Status: &st}); err != nil {
				return err
			}
		}
		return nil
	}
	f.run(b)
	b.ReportMetric(float64(f.view.Stats().Octets)/float64(*benchDomains), "record-B/domain")
	b.ReportMetric(float64(heapInUse()-before)/float64(*benchDomains), "B/domain")
	return f
}

func heapInUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func BenchmarkResolve(b *testing.B) {
	f := benchFixture(b)
	names := make([]dnsname.Domain, 1<<16)
	for i := range names {
		names[i] = benchName(i * 7919 % *benchDomains)
	}
	for _, brand := range []string{"acme", ""} {
		b.Run("brand="+brand, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if a, err := f.view.Resolve(brand, names[i%len(names)]); err != nil || len(a.Keys) != 1 {
					b.Fatalf("%v, %v", a, err)
				}
			}
		})
	}
	b.Run("unknown", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if a, err := f.view.Resolve("acme", "no.example"); err != nil || !a.Fallback {
				b.Fatalf("%v, %v", a, err)
			}
		}
	})
	b.Run("key", func(b *testing.B) {
		id := keyID(string(names[1]), 0)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := f.view.SigningKey("acme", names[1], id); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkLoad is a listing of everything, without the time that the store takes.
func BenchmarkLoad(b *testing.B) {
	for b.Loop() {
		benchFixture(b)
	}
	b.ReportMetric(float64(*benchDomains)*float64(b.N)/b.Elapsed().Seconds(), "domains/s")
}

// BenchmarkChange is a rotation of one domain, until it is told.
func BenchmarkChange(b *testing.B) {
	f := benchFixture(b)
	c := f.view.log.end()
	var pairs [2]keystore.Domain
	pairs[0], _ = domain("acme", benchName(1), rotation.Customer, "selector")
	pairs[1], _ = domain("acme", benchName(1), rotation.Customer, "selector")
	pairs[1].Keys[0].State, pairs[1].Keys[0].RetireTime = rotation.Retiring, start
	pairs[1].Keys[1].State, pairs[1].Keys[1].ActivateTime = rotation.Active, start
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if err := (watcher{f.view}).Changed(keystore.SigningChange{Domain: &pairs[(i+1)%2]}); err != nil {
			b.Fatal(err)
		}
		entries, next, err := f.view.Changes(context.Background(), c, "", 10, nil)
		if err != nil || len(entries) != 1 {
			b.Fatalf("%v, %v", entries, err)
		}
		c = next
	}
}

// BenchmarkSnapshot is what one who begins to watch is told, for each domain.
func BenchmarkSnapshot(b *testing.B) {
	f := benchFixture(b)
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		if _, err := f.view.Snapshot(b.Context(), "", func(Entry) error { n++; return nil }); err != nil || n != *benchDomains+1 {
			b.Fatalf("%d entries, %v", n, err)
		}
	}
	b.ReportMetric(float64(*benchDomains)*float64(b.N)/b.Elapsed().Seconds(), "domains/s")
}
