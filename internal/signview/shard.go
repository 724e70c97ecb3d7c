package signview

import (
	"encoding/binary"
	"sync"
)

// A record is a header, the domain's name, and what encodeDomain and encodeStatus
// made; either of these may be missing. The header has, little-endian: the place
// of the next record with the same hash (4 octets), the lengths of both parts (2
// each), the brand (4), the length of the name (1), flags (1), 2 octets of nothing,
// and the digest of what signs (8).
const (
	headerLen = 24

	domainSeen = 1 << 0 // by the last listing
	statusSeen = 1 << 1
)

type record []byte

func (r record) next() place        { return place(binary.LittleEndian.Uint32(r)) }
func (r record) setNext(p place)    { binary.LittleEndian.PutUint32(r, uint32(p)) }
func (r record) brand() uint32      { return binary.LittleEndian.Uint32(r[8:]) }
func (r record) flags() byte        { return r[13] }
func (r record) digest() uint64     { return binary.LittleEndian.Uint64(r[16:]) }
func (r record) setDigest(d uint64) { binary.LittleEndian.PutUint64(r[16:], d) }
func (r record) name() []byte       { return r[headerLen:][:r[12]] }

func (r record) domain() []byte {
	return r[headerLen+int(r[12]):][:binary.LittleEndian.Uint16(r[4:])]
}

func (r record) status() []byte {
	return r[headerLen+int(r[12])+len(r.domain()):][:binary.LittleEndian.Uint16(r[6:])]
}

func (r record) size() int { return headerLen + int(r[12]) + len(r.domain()) + len(r.status()) }

// shard is a part of all records. One goroutine at a time writes.
type shard struct {
	mu    sync.RWMutex
	index map[uint64]place // by hash of the name
	slab  slab
}

// find returns a record, and the place of the one before it with the same hash.
func (s *shard) find(hash uint64, brand uint32, name string) (at, before place) {
	for at = s.index[hash]; at != 0; before, at = at, s.record(at).next() {
		if r := s.record(at); r.brand() == brand && string(r.name()) == name {
			return at, before
		}
	}
	return 0, 0
}

func (s *shard) record(at place) record { return s.slab.at(at) }

// set stores a record, which has next and both lengths unset, or removes it when
// both parts are empty. It reports whether it fitted.
func (s *shard) set(hash uint64, scratch record, domainLen, statusLen int) bool {
	if domainLen > 0xffff || statusLen > 0xffff || len(scratch) > maxRecord {
		return false
	}
	binary.LittleEndian.PutUint16(scratch[4:], uint16(domainLen)) //nolint:gosec // checked above
	binary.LittleEndian.PutUint16(scratch[6:], uint16(statusLen)) //nolint:gosec // checked above
	old, before := s.find(hash, scratch.brand(), string(scratch.name()))
	s.mu.Lock()
	defer s.mu.Unlock()
	var next place
	size := 0
	if old != 0 {
		next, size = s.record(old).next(), s.record(old).size()
	} else {
		next = s.index[hash]
	}
	gone := domainLen == 0 && statusLen == 0
	if old != 0 && (gone || granules(size) != granules(len(scratch))) {
		s.slab.give(old, size)
		s.link(hash, before, next)
		old = 0
		if !gone {
			next = s.index[hash]
		}
	}
	if gone {
		return true
	}
	at := old
	if at == 0 {
		at = s.slab.take(len(scratch))
		s.link(hash, 0, at)
	}
	copy(s.record(at), scratch)
	s.record(at).setNext(next)
	return true
}

// link makes a record, or none, follow the one before, or come first.
func (s *shard) link(hash uint64, before, at place) {
	switch {
	case before != 0:
		s.record(before).setNext(at)
	case at != 0:
		s.index[hash] = at
	default:
		delete(s.index, hash)
	}
}

// copies appends copies of all records to b, and where each ends.
func (s *shard) copies(b []byte, keep func(record) bool) (all []byte, ends []int) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, at := range s.index {
		for ; at != 0; at = s.record(at).next() {
			if r := s.record(at); keep(r) {
				b = append(b, r[:r.size()]...)
				ends = append(ends, len(b))
			}
		}
	}
	return b, ends
}
