package replica

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
	"github.com/dkimzone/dkimzone/internal/schema"
)

func openView(t testing.TB) *view {
	t.Helper()
	v := newView()
	t.Cleanup(func() {
		if err := v.close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return v
}

func mustPut(t testing.TB, v *view, owner string, rec schema.PublicRecord) {
	t.Helper()
	if err := v.put([]byte(owner), rec, 0); err != nil {
		t.Fatalf("put(%q): %v", owner, err)
	}
}

// contents is all records of v.
func contents(v *view) map[string]schema.PublicRecord {
	all := make(map[string]schema.PublicRecord)
	for i := range v.shards {
		v.each(i, func(b block) {
			rec := b.record()
			rec.PublicKey = slices.Clone(rec.PublicKey)
			all[string(b.name())] = rec
		})
	}
	return all
}

// model is what a view should be, the slow way.
type model map[string]schema.PublicRecord

func (m model) lookup(owner string) (schema.PublicRecord, Result) {
	if rec, ok := m[owner]; ok {
		return rec, Found
	}
	for name := range m {
		if strings.HasSuffix(name, "."+owner) {
			return schema.PublicRecord{}, Empty
		}
	}
	return schema.PublicRecord{}, Absent
}

func drawRecord(t *rapid.T) schema.PublicRecord {
	return schema.PublicRecord{
		KeyType:    rapid.SampledFrom([]dkimrecord.KeyType{dkimrecord.RSA, dkimrecord.Ed25519}).Draw(t, "type"),
		PublicKey:  bytes.Repeat([]byte{rapid.Byte().Draw(t, "octet")}, rapid.SampledFrom([]int{0, 1, 32, 294, 422, 550, schema.MaxPublicKeyLen}).Draw(t, "length")),
		Testing:    rapid.Bool().Draw(t, "testing"),
		SameDomain: rapid.Bool().Draw(t, "same domain"),
		TTL:        rapid.Uint32().Draw(t, "ttl"),
	}
}

// Few names, so that they meet, stand above one another and change places in
// the free lists.
var owners = rapid.Map(
	rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "s1-x", "_domainkey"}), 1, 4),
	func(labels []string) string { return strings.Join(labels, ".") },
)

func TestViewAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := newView()
		defer v.close() //nolint:errcheck // rapid has its own t
		want := make(model)
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				owner, rec := owners.Draw(t, "owner"), drawRecord(t)
				if err := v.put([]byte(owner), rec, 0); err != nil {
					t.Fatalf("put(%q): %v", owner, err)
				}
				want[owner] = rec
			},
			"remove": func(t *rapid.T) {
				owner := owners.Draw(t, "owner")
				_, had := want[owner]
				if got := v.remove([]byte(owner)); got != had {
					t.Fatalf("remove(%q) = %v, want %v", owner, got, had)
				}
				delete(want, owner)
			},
			"lookup": func(t *rapid.T) {
				owner := owners.Draw(t, "owner")
				got, result := v.lookup([]byte(owner), nil)
				wantRec, wantResult := want.lookup(owner)
				if result != wantResult || !equal(got, wantRec) {
					t.Fatalf("lookup(%q) = %v, %d; want %v, %d", owner, got, result, wantRec, wantResult)
				}
			},
			"": func(t *rapid.T) {
				if v.len() != len(want) {
					t.Fatalf("len = %d, want %d", v.len(), len(want))
				}
			},
		})
	})
}

func TestViewManyNamesChangeSize(t *testing.T) {
	v := openView(t)
	rng := rand.New(rand.NewPCG(1, 2))
	want := make(model)
	names := make([]string, 60000)
	for i := range names {
		names[i] = fmt.Sprintf("selector%d-customer%d._domainkey", i%2+1, i/2)
	}
	for _, length := range []int{550, 0, 294, 0} {
		for _, name := range names {
			rec := schema.PublicRecord{TTL: rng.Uint32(), PublicKey: bytes.Repeat([]byte{byte(rng.Uint32())}, length)}
			mustPut(t, v, name, rec)
			want[name] = rec
		}
	}
	if diff := cmp.Diff(map[string]schema.PublicRecord(want), contents(v)); diff != "" {
		t.Errorf("contents (-want +got):\n%s", diff)
	}
	slabs := 0
	for i := range v.shards {
		slabs += len(v.shards[i].slabs)
	}
	if slabs > shardCount {
		t.Errorf("%d slabs for revoked records, want one for each of %d shards", slabs, shardCount)
	}
	for _, name := range names {
		v.remove([]byte(name))
	}
	if _, result := v.lookup([]byte("_domainkey"), nil); result != Absent || v.len() != 0 {
		t.Errorf("after removing all: _domainkey is %d, %d records; want %d, 0", result, v.len(), Absent)
	}
}

func TestViewRefuses(t *testing.T) {
	v := openView(t)
	for name, owner := range map[string]string{"empty name": "", "long name": strings.Repeat("a", 254)} {
		if err := v.put([]byte(owner), schema.PublicRecord{}, 0); !errors.Is(err, ErrFull) {
			t.Errorf("%s: put = %v, want ErrFull", name, err)
		}
	}
	if err := v.put([]byte("a"), schema.PublicRecord{PublicKey: make([]byte, schema.MaxPublicKeyLen+1)}, 0); !errors.Is(err, ErrFull) {
		t.Errorf("long key: put = %v, want ErrFull", err)
	}
}

func TestViewMarks(t *testing.T) {
	v := openView(t)
	rec := schema.PublicRecord{TTL: 60, PublicKey: []byte("key")}
	for _, name := range []string{"a._domainkey", "b._domainkey", "c._domainkey"} {
		mustPut(t, v, name, rec)
	}
	if !v.matches([]byte("a._domainkey"), rec, 7) {
		t.Error("matches = false for an equal record")
	}
	other := rec
	other.TTL = 61
	if v.matches([]byte("b._domainkey"), other, 7) {
		t.Error("matches = true for another TTL")
	}
	if v.matches([]byte("_domainkey"), rec, 7) || v.matches([]byte("z"), rec, 7) {
		t.Error("matches = true where no record stands")
	}
	if got := v.countUnmarked(7, new(Pace)); got != 1 {
		t.Errorf("countUnmarked = %d, want 1", got)
	}
	var names []string
	for i := range shardCount {
		names = append(names, v.unmarked(i, 7)...)
	}
	if diff := cmp.Diff([]string{"c._domainkey"}, names); diff != "" {
		t.Errorf("unmarked (-want +got):\n%s", diff)
	}
}

// Readers see whole records only, whatever the writer does.
func TestViewDivide(t *testing.T) {
	const n, size = 40_000, 512
	v := openView(t)
	for i := range n {
		mustPut(t, v, fmt.Sprintf("s1-d%06d._domainkey", i), schema.PublicRecord{TTL: 1})
	}
	bounds := v.divide(size, new(Pace))
	if len(bounds) < n/size-1 || !slices.IsSorted(bounds) {
		t.Fatalf("%d bounds, sorted: %t", len(bounds), slices.IsSorted(bounds))
	}
	last := 0
	for _, b := range append(bounds, fmt.Sprintf("s1-d%06d._domainkey", n)) {
		var i int
		if _, err := fmt.Sscanf(b, "s1-d%06d._domainkey", &i); err != nil {
			t.Fatal(err)
		}
		if i-last > 10*size {
			t.Errorf("a part of %d records", i-last)
		}
		last = i
	}
	if got := openView(t).divide(size, new(Pace)); len(got) != 0 {
		t.Errorf("an empty view has bounds %q", got)
	}
}

func TestViewConcurrentReaders(t *testing.T) {
	v := newView()
	names := make([]string, 64)
	for i := range names {
		names[i] = fmt.Sprintf("s%d-x._domainkey", i)
	}
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for r := range 4 {
		readers.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(r), 1))
			buf := make([]byte, schema.MaxPublicKeyLen)
			for {
				select {
				case <-stop:
					return
				default:
				}
				rec, result := v.lookup([]byte(names[rng.IntN(len(names))]), buf)
				if result != Found {
					continue
				}
				for _, c := range rec.PublicKey {
					if uint32(c) != rec.TTL {
						t.Errorf("torn record: octet %d with TTL %d", c, rec.TTL)
						return
					}
				}
			}
		})
	}
	rng := rand.New(rand.NewPCG(9, 9))
	for range 20000 {
		name := []byte(names[rng.IntN(len(names))])
		if rng.IntN(3) == 0 {
			v.remove(name)
			continue
		}
		c := byte(rng.Uint32())
		if err := v.put(name, schema.PublicRecord{TTL: uint32(c), PublicKey: bytes.Repeat([]byte{c}, rng.IntN(600))}, 0); err != nil {
			t.Errorf("put: %v", err)
			break
		}
	}
	if err := v.close(); err != nil {
		t.Errorf("close: %v", err)
	}
	close(stop)
	readers.Wait()
	if _, result := v.lookup([]byte(names[0]), nil); result != Unavailable {
		t.Errorf("lookup after close = %d, want %d", result, Unavailable)
	}
}

func benchView(b *testing.B, n int) (*view, [][]byte) {
	b.Helper()
	v := openView(b)
	names := make([][]byte, n)
	key := make([]byte, 294)
	for i := range names {
		names[i] = fmt.Appendf(nil, "selector%d-customer%07d-example._domainkey", i%2+1, i/2)
		if err := v.put(names[i], schema.PublicRecord{TTL: 3600, PublicKey: key}, 0); err != nil {
			b.Fatal(err)
		}
	}
	rand.New(rand.NewPCG(3, 4)).Shuffle(n, func(i, j int) { names[i], names[j] = names[j], names[i] })
	return v, names
}

func BenchmarkViewLookup(b *testing.B) {
	for _, n := range []int{1000, 200_000, 2_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			v, names := benchView(b, n)
			used := 0
			for i := range v.shards {
				used += len(v.shards[i].slabs)*slabSize + 4*len(v.shards[i].slots)
			}
			buf := make([]byte, schema.MaxPublicKeyLen)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if _, result := v.lookup(names[i%n], buf); result != Found {
					b.Fatal("not found")
				}
				i++
			}
			b.ReportMetric(float64(used)/float64(n), "B/record")
		})
		b.Run(fmt.Sprintf("%d/parallel", n), func(b *testing.B) {
			v, names := benchView(b, n)
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				buf := make([]byte, schema.MaxPublicKeyLen)
				for i := rand.IntN(n); pb.Next(); i++ {
					if _, result := v.lookup(names[i%n], buf); result != Found {
						b.Error("not found")
						return
					}
				}
			})
		})
	}
}

func BenchmarkViewPut(b *testing.B) {
	v, names := benchView(b, 200_000)
	rec := schema.PublicRecord{TTL: 300, PublicKey: make([]byte, 294)}
	i := 0
	for b.Loop() {
		if err := v.put(names[i%len(names)], rec, 0); err != nil {
			b.Fatal(err)
		}
		i++
	}
}
