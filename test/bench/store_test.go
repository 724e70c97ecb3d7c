package bench_test

import (
	"crypto/rand"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/embedetcd"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// BenchmarkStoreSize stores domains of two RSA-2048 selectors, with random
// octets of the right number for the keys, and the status that the controller
// keeps of each, and reports what etcd's database takes for each, history
// compacted.
func BenchmarkStoreSize(b *testing.B) {
	etcd, err := embedetcd.Start(b.Context(), embedetcd.Config{
		Dir: filepath.Join(b.TempDir(), "etcd"), Logger: slog.New(slog.DiscardHandler), UnsafeNoFsync: true,
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(etcd.Close)
	store := keystore.New(etcd.Client(), 10*time.Second)
	now := time.Now()
	if _, err := store.CreateZone(b.Context(), keystore.Zone{Name: zone, Apex: schema.Apex{
		NameServers: []schema.NameServer{{Name: "ns1.example.net"}}, Mailbox: "hostmaster.example.net",
	}}); err != nil {
		b.Fatal(err)
	}
	if _, err := store.CreateBrand(b.Context(), keystore.Brand{Name: "acme", Zone: zone}); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	for i := range b.N {
		// As long as the names of real domains are on average.
		d := keystore.Domain{
			Brand: "acme", Name: dnsname.Domain(fmt.Sprintf("customer-%07d.example", i)), Zone: zone, CreateTime: now, UpdateTime: now,
		}
		change := keystore.Change{}
		for n, sel := range []dnsname.Selector{"selector1", "selector2"} {
			k := keystore.Key{
				Key: rotation.Key{
					ID: fmt.Sprintf("%016d", 2*i+n), Selector: sel, Algorithm: keypair.RSA2048,
					State: rotation.Prepared, Custody: rotation.Service, PrepareTime: now, ActivateTime: now, TTL: 3600,
				},
				Fingerprint: [schema.FingerprintLen]byte(random(schema.FingerprintLen)),
			}
			d.Selectors = append(d.Selectors, keystore.Selector{Selector: sel, Algorithm: keypair.RSA2048})
			d.Keys = append(d.Keys, k)
			change.Publish = append(change.Publish, keystore.Publication{
				Key: k, New: true,
				Record: schema.PublicRecord{KeyType: dkimrecord.RSA, PublicKey: random(294), TTL: 3600, UpdateTime: now},
				Sealed: random(257 + 30), // the primes, a nonce, a tag, the number of the data key
			})
		}
		change.Domain = d
		change.Events = []keystore.Event{{Time: now, Actor: "admin/admin", Action: "CREATE"}, {Time: now, Actor: "admin/admin", Action: "REFILL", Selector: "selector1"}}
		if d, err = store.Apply(b.Context(), change); err != nil {
			b.Fatal(err)
		}
		if _, err := store.SaveStatus(b.Context(), observed(d, now), nil, keystore.DueEntry{Time: now, Brand: d.Brand, Domain: d.Name}); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	revision, err := store.Revision(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	client := etcd.Client()
	if _, err := client.Compact(b.Context(), revision, clientv3.WithCompactPhysical()); err != nil {
		b.Fatal(err)
	}
	status, err := client.Status(b.Context(), "")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(status.DbSizeInUse)/float64(b.N), "etcd-B/domain")
	b.ReportMetric(float64(status.DbSize)/float64(b.N), "etcd-file-B/domain")
}

// observed is the status of a domain whose DNS shows everything as it should be.
func observed(d keystore.Domain, now time.Time) keystore.Status {
	seen := rotation.Observation{}.Observe(rotation.Proven, "", now)
	st := keystore.Status{Brand: d.Brand, Domain: d.Name, Due: now.Add(6 * time.Hour), Aliases: make(map[dnsname.Selector]rotation.Observation), Served: make(map[string]rotation.Observation)}
	for _, k := range d.Keys {
		st.Aliases[k.Selector], st.Served[k.ID] = seen, seen
	}
	for _, what := range []string{rotation.ConditionSigning, rotation.ConditionRotation} {
		st.Conditions = append(st.Conditions, rotation.Condition{Group: keypair.RSA2048, Type: what, OK: true, Reason: "SIGNING", Since: now})
	}
	return st
}

func random(n int) []byte {
	p := make([]byte, n)
	_, _ = rand.Read(p) // never fails
	return p
}
