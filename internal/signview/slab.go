package signview

import "fmt"

const (
	granule   = 16       // octets; what is taken and given back is a multiple of it
	chunkSize = 64 << 10 // octets
	// maxRecord bounds a record, so that it fits a chunk.
	maxRecord = chunkSize
)

// place is where a record stands in a slab, in granules from its beginning. The
// zero place is none.
type place uint32

// slab holds records in chunks that the garbage collector does not look into. What
// is given back is used again for records of the same size. It is not safe for
// concurrent use.
type slab struct {
	chunks [][]byte
	used   int             // of the last chunk, in octets
	free   map[int][]place // by size in granules
	live   int             // octets in records
}

func granules(size int) int { return (size + granule - 1) / granule }

// take returns the place of size octets, at most maxRecord.
func (s *slab) take(size int) place {
	n := granules(size)
	if size <= 0 || size > maxRecord {
		panic(fmt.Sprintf("signview: record of %d octets", size))
	}
	s.live += n * granule
	if free := s.free[n]; len(free) > 0 {
		at := free[len(free)-1]
		s.free[n] = free[:len(free)-1]
		return at
	}
	if s.chunks == nil {
		s.free = make(map[int][]place)
		s.chunks = append(s.chunks, make([]byte, chunkSize))
		s.used = granule // place 0 is none
	}
	if rest := chunkSize - s.used; rest < n*granule {
		if rest > 0 {
			s.free[rest/granule] = append(s.free[rest/granule], s.end())
		}
		s.chunks = append(s.chunks, make([]byte, chunkSize))
		s.used = 0
	}
	at := s.end()
	s.used += n * granule
	return at
}

// end is the place after the last one that was taken.
func (s *slab) end() place {
	return place(((len(s.chunks)-1)*chunkSize + s.used) / granule) //nolint:gosec // 64 GiB at most, of memory
}

// give takes back what take returned for size.
func (s *slab) give(at place, size int) {
	n := granules(size)
	s.live -= n * granule
	s.free[n] = append(s.free[n], at)
}

// at returns the octets from a place to the end of its chunk.
func (s *slab) at(p place) []byte {
	offset := int(p) * granule
	return s.chunks[offset/chunkSize][offset%chunkSize:]
}

// octets is what the slab takes of memory.
func (s *slab) octets() int { return len(s.chunks) * chunkSize }
