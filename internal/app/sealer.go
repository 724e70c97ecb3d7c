package app

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/dkimzone/dkimzone/internal/envelope"
	"github.com/dkimzone/dkimzone/internal/telemetry"
)

// checkedSealer seals only with the key-encryption key that the stored data keys
// are wrapped with. It is safe for concurrent use.
type checkedSealer struct {
	sealer *envelope.Sealer
	right  atomic.Int64 // when that was found last, in Unix nanoseconds
}

// rightFor is for how long a process goes on sealing without looking whether
// the key-encryption key was rotated to one that it does not have. It could still
// use the data keys that it has in memory, but is to be restarted before anybody
// needs another.
const rightFor = 15 * time.Second

// check returns an error that wraps envelope.ErrWrongKey, or why it cannot be
// told whether the key is right.
func (s *checkedSealer) check(ctx context.Context) error {
	if err := s.sealer.Check(ctx); err != nil {
		return err
	}
	s.right.Store(time.Now().UnixNano())
	return nil
}

// Seal implements service.Sealer.
func (s *checkedSealer) Seal(ctx context.Context, brand, name string, plaintext []byte) ([]byte, error) {
	if time.Since(time.Unix(0, s.right.Load())) > rightFor {
		if err := s.check(ctx); err != nil {
			return nil, err
		}
	}
	return s.sealer.Seal(ctx, brand, name, plaintext)
}

// Open implements controller.Opener. No other key-encryption key opens anything.
func (s *checkedSealer) Open(ctx context.Context, brand, name string, sealed []byte) ([]byte, error) {
	return s.sealer.Open(ctx, brand, name, sealed)
}

// readiness is that of the key-encryption key.
func (s *checkedSealer) readiness() telemetry.Check {
	return telemetry.Check{Name: "key-encryption key", Func: s.check}
}
