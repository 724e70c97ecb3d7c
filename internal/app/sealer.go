package app

import (
	"context"
	"sync/atomic"

	"github.com/dkimzone/dkimzone/internal/envelope"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/telemetry"
)

// checkedSealer seals only with the key-encryption key that the stored data keys
// are wrapped with. With another one it would make data keys that nobody else
// opens. It is safe for concurrent use.
type checkedSealer struct {
	sealer *envelope.Sealer
	store  *keystore.Store
	right  atomic.Bool // found out once
}

// check returns an error that wraps envelope.ErrWrongKey, or why it cannot be
// told whether the key is right. While nothing is encrypted any key is.
func (s *checkedSealer) check(ctx context.Context) error {
	if s.right.Load() {
		return nil
	}
	brand, err := s.store.AnyDataKeyBrand(ctx)
	if err != nil || brand == "" {
		return err
	}
	if err := s.sealer.Verify(ctx, brand); err != nil {
		return err
	}
	s.right.Store(true)
	return nil
}

// Seal implements service.Sealer.
func (s *checkedSealer) Seal(ctx context.Context, brand, name string, plaintext []byte) ([]byte, error) {
	if err := s.check(ctx); err != nil {
		return nil, err
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
