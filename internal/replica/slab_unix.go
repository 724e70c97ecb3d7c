//go:build unix

package replica

import "golang.org/x/sys/unix"

// newSlab returns zeroed memory outside the Go heap: on the heap, the collector
// would let as much garbage pile up beside the records as there are records.
func newSlab() ([]byte, error) {
	return unix.Mmap(-1, 0, slabSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
}

func freeSlab(b []byte) error { return unix.Munmap(b) }
