//go:build unix

package replica

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/dkimzone/dkimzone/internal/schema"
)

var designSizes = flag.String("designs", "10000", "numbers of records for BenchmarkDesigns, with commas between")

// index is what the designs have in common. put is called by one goroutine, get
// by any number at the same time. A key that get returns is good until the next
// put or close.
type index interface {
	put(owner []byte, rec schema.PublicRecord)
	get(owner, buf []byte) (schema.PublicRecord, bool)
	close()
}

// designs are the ways to keep records that docs/index-design.md compares. All
// but the view leave out what they would need besides: empty non-terminals and
// marks.
var designs = []struct {
	name string
	open func(b *testing.B) index
}{
	{"map-of-pointers", func(*testing.B) index { return &pointerMap{m: make(map[string]*schema.PublicRecord)} }},
	{"map-of-offsets", func(*testing.B) index { return &offsetMap{m: make(map[string]uint32)} }},
	{"sharded-map", func(*testing.B) index { return newShardedMap() }},
	{"sync.Map", func(*testing.B) index { return &syncMap{} }},
	{"sorted-array", func(*testing.B) index { return newSortedArray() }},
	{"bbolt-file", func(b *testing.B) index { return newBoltIndex(b) }},
	{"view", func(b *testing.B) index { return ourView{b, newView()} }},
}

// pointerMap is a Go map behind one lock.
type pointerMap struct {
	mu sync.RWMutex
	m  map[string]*schema.PublicRecord
}

func (p *pointerMap) put(owner []byte, rec schema.PublicRecord) {
	rec.PublicKey = bytes.Clone(rec.PublicKey)
	p.mu.Lock()
	p.m[string(owner)] = &rec
	p.mu.Unlock()
}

func (p *pointerMap) get(owner, _ []byte) (schema.PublicRecord, bool) {
	p.mu.RLock()
	rec := p.m[string(owner)]
	p.mu.RUnlock()
	if rec == nil {
		return schema.PublicRecord{}, false
	}
	return *rec, true
}

func (*pointerMap) close() {}

// shardedMap is pointerMap 256 times.
type shardedMap [shardCount]pointerMap

func newShardedMap() *shardedMap {
	s := new(shardedMap)
	for i := range s {
		s[i].m = make(map[string]*schema.PublicRecord)
	}
	return s
}

func (s *shardedMap) put(owner []byte, rec schema.PublicRecord) { s[shardOf(owner)].put(owner, rec) }
func (s *shardedMap) get(owner, buf []byte) (schema.PublicRecord, bool) {
	return s[shardOf(owner)].get(owner, buf)
}
func (*shardedMap) close() {}

type syncMap struct{ m sync.Map }

func (s *syncMap) put(owner []byte, rec schema.PublicRecord) {
	rec.PublicKey = bytes.Clone(rec.PublicKey)
	s.m.Store(string(owner), &rec)
}

func (s *syncMap) get(owner, _ []byte) (schema.PublicRecord, bool) {
	v, ok := s.m.Load(string(owner))
	if !ok {
		return schema.PublicRecord{}, false
	}
	return *v.(*schema.PublicRecord), true
}

func (*syncMap) close() {}

// offsetMap keeps the records in slabs of the Go heap that hold no pointers. What
// is replaced is lost.
type offsetMap struct {
	mu    sync.RWMutex
	m     map[string]uint32
	slabs [][]byte
}

func (o *offsetMap) put(owner []byte, rec schema.PublicRecord) {
	n := blockSize(len(owner), len(rec.PublicKey)+unit-1) &^ (unit - 1)
	o.mu.Lock()
	defer o.mu.Unlock()
	last := len(o.slabs) - 1
	if last < 0 || len(o.slabs[last])+n > slabSize {
		o.slabs = append(o.slabs, make([]byte, 0, slabSize))
		last++
	}
	at := len(o.slabs[last])
	o.slabs[last] = o.slabs[last][:at+n]
	fill(o.slabs[last][at:], owner, &rec, 0, 0)
	o.m[string(owner)] = uint32(last*slabUnits + at/unit)
}

func (o *offsetMap) get(owner, buf []byte) (schema.PublicRecord, bool) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	ref, ok := o.m[string(owner)]
	if !ok {
		return schema.PublicRecord{}, false
	}
	return copied(o.slabs[ref/slabUnits][ref%slabUnits*unit:], buf), true
}

func (*offsetMap) close() {}

// copied is the record of the block that b begins with.
func copied(b, buf []byte) schema.PublicRecord {
	rec := block(b[:blockSize(int(b[12]), int(binary.LittleEndian.Uint16(b[8:])))]).record()
	rec.PublicKey = append(buf[:0], rec.PublicKey...)
	return rec
}

// sortedArray is never changed: a put makes another one. Until the first get
// there is only a list.
type sortedArray struct {
	blocks  []byte
	pending []uint32
	at      atomic.Pointer[[]uint32] // of the blocks, in the order of the names
}

func newSortedArray() *sortedArray { return &sortedArray{} }

func (s *sortedArray) name(at uint32) []byte { return block(s.blocks[at:]).name() }

func (s *sortedArray) put(owner []byte, rec schema.PublicRecord) {
	at := uint32(len(s.blocks))
	s.blocks = append(s.blocks, make([]byte, blockSize(len(owner), len(rec.PublicKey)))...)
	fill(s.blocks[at:], owner, &rec, 0, 0)
	order := s.at.Load()
	if order == nil {
		s.pending = append(s.pending, at)
		return
	}
	i, there := s.search(*order, owner)
	next := slices.Clone(*order)
	if there {
		next[i] = at
	} else {
		next = slices.Insert(next, i, at)
	}
	s.at.Store(&next)
}

// sort ends the loading.
func (s *sortedArray) sort() {
	slices.SortFunc(s.pending, func(a, b uint32) int { return bytes.Compare(s.name(a), s.name(b)) })
	s.blocks = bytes.Clone(s.blocks) // without room to grow
	s.at.Store(&s.pending)
}

func (s *sortedArray) search(order []uint32, owner []byte) (int, bool) {
	return slices.BinarySearchFunc(order, owner, func(at uint32, owner []byte) int { return bytes.Compare(s.name(at), owner) })
}

func (s *sortedArray) get(owner, buf []byte) (schema.PublicRecord, bool) {
	order := *s.at.Load()
	i, ok := s.search(order, owner)
	if !ok {
		return schema.PublicRecord{}, false
	}
	return copied(s.blocks[order[i]:], buf), true
}

func (*sortedArray) close() {}

// boltIndex answers from a B+ tree in a mapped file.
type boltIndex struct {
	b       *testing.B
	db      *bolt.DB
	pending []boltRecord // until the first get
}

type boltRecord struct {
	owner []byte
	rec   schema.PublicRecord
}

var boltBucket = []byte("records")

func newBoltIndex(b *testing.B) *boltIndex {
	b.Helper()
	db, err := bolt.Open(filepath.Join(b.TempDir(), "index"), 0o600, &bolt.Options{NoSync: true})
	if err != nil {
		b.Fatal(err)
	}
	i := &boltIndex{b: b, db: db, pending: []boltRecord{}}
	i.update(func(tx *bolt.Tx) error {
		_, err := tx.CreateBucket(boltBucket)
		return err
	})
	return i
}

func (i *boltIndex) update(fn func(*bolt.Tx) error) {
	if err := i.db.Update(fn); err != nil {
		i.b.Fatal(err)
	}
}

func (r boltRecord) store(tx *bolt.Tx) error {
	value := make([]byte, blockSize(len(r.owner), len(r.rec.PublicKey)))
	fill(value, r.owner, &r.rec, 0, 0)
	return tx.Bucket(boltBucket).Put(r.owner, value)
}

func (i *boltIndex) put(owner []byte, rec schema.PublicRecord) {
	r := boltRecord{owner, rec}
	if i.pending != nil {
		i.pending = append(i.pending, r)
		return
	}
	i.update(r.store)
}

// sort ends the loading: in the order of the names it is quick.
func (i *boltIndex) sort() {
	slices.SortFunc(i.pending, func(a, b boltRecord) int { return bytes.Compare(a.owner, b.owner) })
	for part := range slices.Chunk(i.pending, 10_000) {
		i.update(func(tx *bolt.Tx) error {
			for _, r := range part {
				if err := r.store(tx); err != nil {
					return err
				}
			}
			return nil
		})
	}
	i.pending = nil
}

func (i *boltIndex) get(owner, buf []byte) (rec schema.PublicRecord, ok bool) {
	err := i.db.View(func(tx *bolt.Tx) error {
		value := tx.Bucket(boltBucket).Get(owner)
		if ok = value != nil; ok {
			rec = copied(value, buf)
		}
		return nil
	})
	return rec, ok && err == nil
}

func (i *boltIndex) close() {
	if err := i.db.Close(); err != nil {
		i.b.Error(err)
	}
}

// ourView is the index that the replica has.
type ourView struct {
	b *testing.B
	*view
}

func (v ourView) put(owner []byte, rec schema.PublicRecord) {
	if err := v.view.put(owner, rec, 0); err != nil {
		v.b.Fatal(err)
	}
}

func (v ourView) get(owner, buf []byte) (schema.PublicRecord, bool) {
	rec, result := v.lookup(owner, buf)
	return rec, result == Found
}

func (v ourView) close() {
	if err := v.view.close(); err != nil {
		v.b.Error(err)
	}
}

// names are owner names of one length in one piece of memory, so that asking for
// one after the other costs no more than reading them does.
type names struct {
	all  []byte
	size int
}

func (n names) at(i int) []byte { return n.all[i*n.size : (i+1)*n.size] }

func newNames(count int, end string) names {
	var n names
	for _, i := range rand.New(rand.NewPCG(3, 4)).Perm(count) {
		n.all = fmt.Appendf(n.all, "selector%d-customer%07d-%s._domainkey", i%2+1, i/2, end)
	}
	n.size = len(n.all) / count
	return n
}

// BenchmarkDesigns loads each design with RSA-2048 records and measures look-ups
// of names that are there and that are not, in random order, by one goroutine and
// by all CPUs, and changes. With the first of them it reports what the load took,
// what memory the records take (and how much of it is the garbage collector's,
// which lets it double), and what a collection costs while they are there.
func BenchmarkDesigns(b *testing.B) {
	for size := range strings.SplitSeq(*designSizes, ",") {
		count, err := strconv.Atoi(size)
		if err != nil {
			b.Fatal(err)
		}
		present, missing := newNames(count, "example"), newNames(count, "elsewhere")
		for _, d := range designs {
			b.Run(fmt.Sprintf("%d/%s", count, d.name), func(b *testing.B) { benchDesign(b, d.open, present, missing, count) })
		}
	}
}

func benchDesign(b *testing.B, open func(*testing.B) index, present, missing names, count int) {
	debug.FreeOSMemory()
	rss, heap, began := resident(b), heapSize(), cpuTime(b)
	x := open(b)
	defer x.close()
	rec := schema.PublicRecord{TTL: 3600, PublicKey: make([]byte, 294)}
	for i := range count {
		x.put(present.at(i), rec)
	}
	if s, ok := x.(interface{ sort() }); ok {
		s.sort()
	}
	load := cpuTime(b) - began
	debug.FreeOSMemory()
	rss, heap = resident(b)-rss, heapSize()-heap
	cpu, pause := collection(b)

	get := func(b *testing.B, n names, want bool) {
		buf := make([]byte, schema.MaxPublicKeyLen)
		i := 0
		began := cpuTime(b)
		for b.Loop() {
			if _, ok := x.get(n.at(i), buf); ok != want {
				b.Fatalf("%s: found is %t", n.at(i), ok)
			}
			if i++; i == count {
				i = 0
			}
		}
		reportCPU(b, began)
	}
	b.Run("hit", func(b *testing.B) {
		get(b, present, true)
		per := func(n int64) float64 { return float64(n) / float64(count) }
		b.ReportMetric(per(load.Nanoseconds()), "cpu-ns-load/record")
		b.ReportMetric(per(rss), "B-rss/record")
		b.ReportMetric(per(heap), "B-heap/record")
		b.ReportMetric(float64(cpu.Microseconds())/1000, "ms-cpu/gc")
		b.ReportMetric(float64(pause.Microseconds()), "µs-pause/gc")
	})
	b.Run("miss", func(b *testing.B) { get(b, missing, false) })
	b.Run("parallel", func(b *testing.B) {
		began := cpuTime(b)
		b.RunParallel(func(pb *testing.PB) {
			buf := make([]byte, schema.MaxPublicKeyLen)
			for i := rand.IntN(count); pb.Next(); i++ {
				if _, ok := x.get(present.at(i%count), buf); !ok {
					b.Error("not found")
					return
				}
			}
		})
		reportCPU(b, began)
	})
	b.Run("update", func(b *testing.B) {
		i := 0
		began := cpuTime(b)
		for b.Loop() {
			x.put(present.at(i%count), rec)
			i++
		}
		reportCPU(b, began)
	})
}

// reportCPU reports what the operations took of a CPU, the garbage collector
// included: that is the same on a busy machine, but for the caches.
func reportCPU(b *testing.B, began time.Duration) {
	b.Helper()
	b.ReportMetric(float64((cpuTime(b)-began).Nanoseconds())/float64(b.N), "cpu-ns/op")
}

// cpuTime is the user and system time of this process.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// collection is the CPU time and the longest pause of a garbage collection.
func collection(b *testing.B) (cpu, pause time.Duration) {
	b.Helper()
	const rounds = 5
	before := cpuTime(b)
	var m runtime.MemStats
	for range rounds {
		runtime.GC()
		runtime.ReadMemStats(&m)
		pause = max(pause, time.Duration(m.PauseNs[(m.NumGC+255)%256]))
	}
	return (cpuTime(b) - before) / rounds, pause
}

func heapSize() int64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// resident is what the process has in memory, its files included.
func resident(b *testing.B) int64 {
	b.Helper()
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Skip("this system has no /proc")
	}
	pages, err := strconv.ParseInt(strings.Fields(string(data))[1], 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}
