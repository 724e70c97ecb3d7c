//go:build !unix

package replica

func newSlab() ([]byte, error) { return make([]byte, slabSize), nil }

func freeSlab([]byte) error { return nil }
