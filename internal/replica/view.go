package replica

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/maphash"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// Result says what stands at an owner name.
type Result uint8

// The results of a look-up.
const (
	Unavailable Result = iota // nothing is known: the zone is not loaded, or the view is closed
	Absent                    // no name stands here or below
	Empty                     // an empty non-terminal: names stand below, nothing here (RFC 4592 §2.2.2)
	Found
)

// ErrFull is wrapped by the error of Put when the index cannot take the record.
var ErrFull = errors.New("replica: index is full")

var errClosed = errors.New("replica: view is closed")

const (
	shardCount = 256
	slabSize   = 256 << 10
	unit       = 8 // octets; blocks are multiples of it
	slabUnits  = slabSize / unit
	maxRef     = 1<<24 - 1
	minSlots   = 8
	maxOwner   = 253

	flagRecord     = 1 << 0 // without it the block is an empty non-terminal
	flagTesting    = 1 << 1
	flagSameDomain = 1 << 2
	keyTypeShift   = 4

	// A block: children u32, ttl u32, key length u16, mark u16, name length
	// u8, flags u8, name, key.
	headerSize = 14
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// view is an index of a zone's records by relative owner name, such as
// "selector1-spamtrap-dk._domainkey". It also knows the empty non-terminals
// above them.
//
// # Concurrency
//
// lookup and len may be called by any number of goroutines at any time, close
// included. All other methods belong to one goroutine.
type view struct {
	seed    maphash.Seed
	records atomic.Int64
	shards  [shardCount]shard
}

// shard is an open-addressing table over blocks in slabs. A slot holds 0 or
// eight bits of the hash and a 24-bit block reference, counted in units.
type shard struct {
	mu     sync.RWMutex // held by readers only while one record is copied out
	closed bool
	slots  []uint32
	used   int
	slabs  [][]byte
	tail   int      // first unit of the last slab that was never handed out
	free   []uint32 // heads of the lists of freed blocks, by size in units
	live   int      // units in use
	dead   int      // units in the free lists
}

// newView returns an empty view. Its memory is not garbage collected: it must
// be closed.
func newView() *view { return &view{seed: maphash.MakeSeed()} }

// len is the number of records.
func (v *view) len() int { return int(v.records.Load()) }

// lookup reports what stands at owner, which must be in lower case and without
// the zone. The record's public key is appended to buf[:0], so that a buffer of
// schema.MaxPublicKeyLen octets saves any allocation; its UpdateTime is zero.
func (v *view) lookup(owner, buf []byte) (schema.PublicRecord, Result) {
	s := &v.shards[shardOf(owner)]
	h := maphash.Bytes(v.seed, owner)
	s.mu.RLock()
	if s.closed {
		s.mu.RUnlock()
		return schema.PublicRecord{}, Unavailable
	}
	_, b := s.find(h, owner)
	if b == nil {
		s.mu.RUnlock()
		return schema.PublicRecord{}, Absent
	}
	if !b.isRecord() {
		s.mu.RUnlock()
		return schema.PublicRecord{}, Empty
	}
	rec := b.record()
	rec.PublicKey = append(buf[:0], rec.PublicKey...)
	s.mu.RUnlock()
	return rec, Found
}

// put stores rec at owner and reports an error only if there is no room.
func (v *view) put(owner []byte, rec schema.PublicRecord, mark uint16) error {
	if len(owner) == 0 || len(owner) > maxOwner || len(rec.PublicKey) > schema.MaxPublicKeyLen {
		return fmt.Errorf("%w: owner name of %d octets, key of %d", ErrFull, len(owner), len(rec.PublicKey))
	}
	s := &v.shards[shardOf(owner)]
	h := maphash.Bytes(v.seed, owner)
	s.mu.Lock()
	_, b := s.find(h, owner)
	fresh := b == nil || !b.isRecord()
	err := v.store(s, h, owner, &rec, mark)
	s.mu.Unlock()
	if err != nil || !fresh {
		return err
	}
	v.records.Add(1)
	for rest := parent(owner); rest != nil; rest = parent(rest) {
		if err := v.adopt(rest, 1); err != nil {
			return err
		}
	}
	return nil
}

// remove deletes the record at owner, if there is one, and the empty
// non-terminals that only it kept.
func (v *view) remove(owner []byte) bool {
	s := &v.shards[shardOf(owner)]
	h := maphash.Bytes(v.seed, owner)
	s.mu.Lock()
	slot, b := s.find(h, owner)
	if b == nil || !b.isRecord() {
		s.mu.Unlock()
		return false
	}
	if b.children() == 0 {
		v.drop(s, slot, b)
	} else {
		// Shrinking a block needs no memory, so this cannot fail.
		_ = v.store(s, h, owner, nil, 0)
	}
	s.mu.Unlock()
	v.records.Add(-1)
	for rest := parent(owner); rest != nil; rest = parent(rest) {
		_ = v.adopt(rest, -1) // takes memory only when it counts up
	}
	return true
}

// adopt counts n more names below owner.
func (v *view) adopt(owner []byte, n int) error {
	s := &v.shards[shardOf(owner)]
	h := maphash.Bytes(v.seed, owner)
	s.mu.Lock()
	defer s.mu.Unlock()
	slot, b := s.find(h, owner)
	if b == nil {
		if err := v.store(s, h, owner, nil, 0); err != nil {
			return err
		}
		slot, b = s.find(h, owner)
	}
	b.setChildren(uint32(int(b.children()) + n)) //nolint:gosec // never below zero
	if b.children() == 0 && !b.isRecord() {
		v.drop(s, slot, b)
	}
	return nil
}

// matches reports whether the record at owner equals rec, and marks what stands
// there in any case.
func (v *view) matches(owner []byte, rec schema.PublicRecord, mark uint16) bool {
	s := &v.shards[shardOf(owner)]
	h := maphash.Bytes(v.seed, owner)
	s.mu.Lock()
	defer s.mu.Unlock()
	_, b := s.find(h, owner)
	if b == nil || !b.isRecord() {
		return false
	}
	b.setMark(mark)
	return equal(b.record(), rec)
}

// mark marks the record at owner, if there is one.
func (v *view) mark(owner []byte, mark uint16) {
	s := &v.shards[shardOf(owner)]
	h := maphash.Bytes(v.seed, owner)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, b := s.find(h, owner); b != nil {
		b.setMark(mark)
	}
}

// countUnmarked is the number of records that do not carry mark.
func (v *view) countUnmarked(mark uint16, pace *Pace) int {
	n := 0
	for i := range v.shards {
		pace.Step()
		v.each(i, func(b block) {
			if b.mark() != mark {
				n++
			}
		})
	}
	return n
}

// unmarked returns the owner names of those records in one shard.
func (v *view) unmarked(i int, mark uint16) []string {
	var names []string
	v.each(i, func(b block) {
		if b.mark() != mark {
			names = append(names, string(b.name()))
		}
	})
	return names
}

// divide returns names that cut the sorted records into parts of about size
// records each; a size is a multiple of sampleEvery. Their number varies by some
// hundreds, since only a sample of the names is sorted.
func (v *view) divide(size int, pace *Pace) []string {
	var sample []string
	n := 0
	for i := range v.shards {
		pace.Step()
		v.each(i, func(b block) {
			if n++; n%sampleEvery == 0 {
				sample = append(sample, string(b.name()))
			}
		})
	}
	slices.Sort(sample)
	every := size / sampleEvery
	bounds := sample[:0]
	for i := every - 1; i < len(sample); i += every {
		bounds = append(bounds, sample[i])
	}
	return bounds
}

// each calls fn for the records of one shard. A block is good only during the
// call, and fn must not use the view.
func (v *view) each(i int, fn func(block)) { v.eachFrom(i, 0, math.MaxInt, fn) }

// eachFrom is each for so many slots of the table from the given one on. It
// reports whether there are more.
func (v *view) eachFrom(i, first, slots int, fn func(block)) bool {
	s := &v.shards[i]
	s.mu.RLock()
	defer s.mu.RUnlock()
	last := first + min(slots, len(s.slots)-first)
	for _, slot := range s.slots[first:last] {
		if slot == 0 {
			continue
		}
		if b := s.block(slot & maxRef); b.isRecord() {
			fn(b)
		}
	}
	return last < len(s.slots)
}

// copyShard calls fn for copies of the records of one shard, of which none may
// change meanwhile.
func (v *view) copyShard(i int, fn func(owner string, rec schema.PublicRecord)) error {
	s := &v.shards[i]
	s.mu.RLock()
	closed := s.closed
	s.mu.RUnlock()
	if closed { // it stays so, and nothing closes a view while it is copied
		return errClosed
	}
	const slots = 1024
	var pace Pace
	for first, more := 0, true; more; first += slots {
		pace.Step()
		more = v.eachFrom(i, first, slots, func(b block) {
			rec := b.record()
			rec.PublicKey = bytes.Clone(rec.PublicKey)
			fn(string(b.name()), rec)
		})
	}
	return nil
}

// close frees the memory. From then on every look-up finds Unavailable.
func (v *view) close() error {
	var errs []error
	for i := range v.shards {
		s := &v.shards[i]
		s.mu.Lock()
		slabs := s.slabs
		s.closed, s.slots, s.slabs, s.free = true, nil, nil, nil
		s.used, s.tail, s.live, s.dead = 0, 0, 0, 0
		s.mu.Unlock()
		for _, b := range slabs {
			errs = append(errs, freeSlab(b))
		}
	}
	v.records.Store(0)
	return errors.Join(errs...)
}

// shardOf is the same in every process, so that the file can be in shard order.
func shardOf(owner []byte) byte { return byte(crc32.Checksum(owner, castagnoli) >> 24) }

// home is the slot where the search for h begins.
func home(h uint64, mask int) int { return int(h & uint64(mask)) } //nolint:gosec // the low bits

// parent is owner without its first label, or nil.
func parent(owner []byte) []byte {
	if i := bytes.IndexByte(owner, '.'); i >= 0 && i+1 < len(owner) {
		return owner[i+1:]
	}
	return nil
}

// find returns the slot and the block of owner, or a nil block.
func (s *shard) find(h uint64, owner []byte) (int, block) {
	if len(s.slots) == 0 {
		return 0, nil
	}
	mask := len(s.slots) - 1
	tag := uint32(h >> 56)
	for i := home(h, mask); ; i = (i + 1) & mask {
		slot := s.slots[i]
		if slot == 0 {
			return i, nil
		}
		if slot>>24 == tag {
			if b := s.block(slot & maxRef); string(b.name()) == string(owner) {
				return i, b
			}
		}
	}
}

// block returns the block that ref points to.
func (s *shard) block(ref uint32) block {
	b := s.slabs[ref/slabUnits][ref%slabUnits*unit:]
	return block(b[:blockSize(int(b[12]), int(binary.LittleEndian.Uint16(b[8:])))])
}

func blockSize(name, key int) int { return headerSize + name + key }

func units(size int) int { return (size + unit - 1) / unit }

// store writes a block for owner, with rec or as an empty non-terminal, in
// place of the one that may be there.
func (v *view) store(s *shard, h uint64, owner []byte, rec *schema.PublicRecord, mark uint16) error {
	if s.closed {
		return fmt.Errorf("%w: view is closed", ErrFull)
	}
	if 4*(s.used+1) > 3*len(s.slots) {
		v.grow(s)
	}
	slot, old := s.find(h, owner)
	var children uint32
	if old != nil {
		children = old.children()
	}
	size := blockSize(len(owner), 0)
	if rec != nil {
		size += len(rec.PublicKey)
	}
	n := units(size)
	if old != nil && units(len(old)) == n {
		fill(s.slabs[s.slots[slot]&maxRef/slabUnits][s.slots[slot]&maxRef%slabUnits*unit:], owner, rec, mark, children)
		return nil
	}
	ref, err := s.alloc(n)
	if err != nil {
		return err
	}
	fill(s.slabs[ref/slabUnits][ref%slabUnits*unit:], owner, rec, mark, children)
	if old != nil {
		s.release(s.slots[slot]&maxRef, units(len(old)))
	} else {
		s.used++
	}
	s.slots[slot] = uint32(h>>56)<<24 | ref
	return v.compact(s)
}

// drop removes the block in slot and closes the gap, so that there are no
// tombstones to probe past.
func (v *view) drop(s *shard, slot int, b block) {
	s.release(s.slots[slot]&maxRef, units(len(b)))
	s.used--
	mask := len(s.slots) - 1
	hole := slot
	for i := (slot + 1) & mask; s.slots[i] != 0; i = (i + 1) & mask {
		want := home(maphash.Bytes(v.seed, s.block(s.slots[i]&maxRef).name()), mask)
		if (i-want)&mask >= (i-hole)&mask {
			s.slots[hole] = s.slots[i]
			hole = i
		}
	}
	s.slots[hole] = 0
	_ = v.compact(s) // keeps what it has when there is no memory
}

func (v *view) grow(s *shard) {
	old := s.slots
	s.slots = make([]uint32, max(minSlots, 2*len(old)))
	for _, slot := range old {
		if slot != 0 {
			s.place(maphash.Bytes(v.seed, s.block(slot&maxRef).name()), slot)
		}
	}
}

// place puts slot, which is not in the table, where a look-up finds it.
func (s *shard) place(h uint64, slot uint32) {
	mask := len(s.slots) - 1
	i := home(h, mask)
	for s.slots[i] != 0 {
		i = (i + 1) & mask
	}
	s.slots[i] = slot
}

// alloc returns the reference of a block of n units.
func (s *shard) alloc(n int) (uint32, error) {
	if n < len(s.free) && s.free[n] != 0 {
		ref := s.free[n]
		s.free[n] = binary.LittleEndian.Uint32(s.slabs[ref/slabUnits][ref%slabUnits*unit:])
		s.dead -= n
		s.live += n
		return ref, nil
	}
	if len(s.slabs) == 0 || s.tail+n > slabUnits {
		if (len(s.slabs)+1)*slabUnits > maxRef {
			return 0, fmt.Errorf("%w: a shard holds at most %d octets", ErrFull, maxRef*unit)
		}
		b, err := newSlab()
		if err != nil {
			return 0, fmt.Errorf("%w: %w", ErrFull, err)
		}
		if len(s.slabs) > 0 {
			s.dead += slabUnits - s.tail
		}
		s.slabs = append(s.slabs, b)
		s.tail = 0
		if len(s.slabs) == 1 {
			s.tail = 1 // reference 0 means none
		}
	}
	ref := uint32((len(s.slabs)-1)*slabUnits + s.tail) //nolint:gosec // below maxRef
	s.tail += n
	s.live += n
	return ref, nil
}

// release puts a block of n units into its free list.
func (s *shard) release(ref uint32, n int) {
	for len(s.free) <= n {
		s.free = append(s.free, 0)
	}
	binary.LittleEndian.PutUint32(s.slabs[ref/slabUnits][ref%slabUnits*unit:], s.free[n])
	s.free[n] = ref
	s.live -= n
	s.dead += n
}

// compact copies the blocks of a shard into new slabs when more room is lost to
// free lists than used: sizes change when many keys are revoked.
func (v *view) compact(s *shard) error {
	if s.dead <= s.live || s.dead < slabUnits {
		return nil
	}
	fresh := shard{slots: make([]uint32, len(s.slots))}
	for _, slot := range s.slots {
		if slot == 0 {
			continue
		}
		b := s.block(slot & maxRef)
		ref, err := fresh.alloc(units(len(b)))
		if err != nil {
			for _, slab := range fresh.slabs {
				_ = freeSlab(slab)
			}
			return nil //nolint:nilerr // the shard stays as it is
		}
		copy(fresh.slabs[ref/slabUnits][ref%slabUnits*unit:], b)
		fresh.place(maphash.Bytes(v.seed, b.name()), slot&^maxRef|ref)
	}
	for _, slab := range s.slabs {
		if err := freeSlab(slab); err != nil {
			return fmt.Errorf("freeing index memory: %w", err)
		}
	}
	s.slots, s.slabs, s.tail, s.free = fresh.slots, fresh.slabs, fresh.tail, nil
	s.live, s.dead = fresh.live, fresh.dead
	return nil
}

// block is one entry of the index as it stands in a slab.
type block []byte

func fill(b []byte, owner []byte, rec *schema.PublicRecord, mark uint16, children uint32) {
	binary.LittleEndian.PutUint32(b, children)
	var ttl uint32
	var key []byte
	var flags byte
	if rec != nil {
		ttl, key, flags = rec.TTL, rec.PublicKey, recordFlags(rec)
	}
	binary.LittleEndian.PutUint32(b[4:], ttl)
	binary.LittleEndian.PutUint16(b[8:], uint16(len(key))) //nolint:gosec // checked by put
	binary.LittleEndian.PutUint16(b[10:], mark)
	b[12] = byte(len(owner)) //nolint:gosec // checked by put
	b[13] = flags
	copy(b[headerSize:], owner)
	copy(b[headerSize+len(owner):], key)
}

func (b block) children() uint32     { return binary.LittleEndian.Uint32(b) }
func (b block) setChildren(n uint32) { binary.LittleEndian.PutUint32(b, n) }
func (b block) mark() uint16         { return binary.LittleEndian.Uint16(b[10:]) }
func (b block) setMark(m uint16)     { binary.LittleEndian.PutUint16(b[10:], m) }
func (b block) isRecord() bool       { return b[13]&flagRecord != 0 }
func (b block) name() []byte         { return b[headerSize : headerSize+int(b[12])] }

// record returns the record, whose key aliases the block.
func (b block) record() schema.PublicRecord {
	rec := schema.PublicRecord{
		PublicKey: b[headerSize+int(b[12]):],
		TTL:       binary.LittleEndian.Uint32(b[4:]),
	}
	setFlags(&rec, b[13])
	return rec
}

// equal reports whether two records are served the same way.
func equal(a, b schema.PublicRecord) bool {
	return a.KeyType == b.KeyType && a.Testing == b.Testing && a.SameDomain == b.SameDomain &&
		a.TTL == b.TTL && bytes.Equal(a.PublicKey, b.PublicKey)
}

func recordFlags(rec *schema.PublicRecord) byte {
	flags := flagRecord | byte(rec.KeyType)<<keyTypeShift
	if rec.Testing {
		flags |= flagTesting
	}
	if rec.SameDomain {
		flags |= flagSameDomain
	}
	return flags
}

func setFlags(rec *schema.PublicRecord, flags byte) {
	rec.KeyType = dkimrecord.KeyType(flags >> keyTypeShift)
	rec.Testing = flags&flagTesting != 0
	rec.SameDomain = flags&flagSameDomain != 0
}
