package envelope

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ErrMoved is returned when something changed again and again while it was being
// rewritten. It may be tried again.
var ErrMoved = errors.New("changed by somebody else again and again")

// SettleTime is how long after AddDataKey a Sealer of another process may still
// seal under the data key before.
const SettleTime = newestValid

// Rewrap wraps the brand's data key number n anew with the key-encryption key
// that wraps now. The data key itself stays. It returns ErrMoved, or as Open.
func (s *Sealer) Rewrap(ctx context.Context, brand string, n uint32) error {
	for range markRaces {
		old, err := s.store.DataKey(ctx, brand, n)
		if err != nil {
			return fmt.Errorf("read data key %d of brand %s: %w", n, brand, err)
		}
		m, err := s.current(ctx)
		if err != nil {
			return err
		}
		labelled, err := s.openDataKey(ctx, brand, n, old)
		if err != nil {
			return err
		}
		wrapped, err := m.key.encrypt(ctx, labelled)
		clear(labelled)
		if err != nil {
			return fmt.Errorf("wrap data key %d of brand %s: %w", n, brand, err)
		}
		replaced, err := s.store.ReplaceDataKey(ctx, brand, n, old, wrapped, m.revision)
		if err != nil {
			return fmt.Errorf("store data key %d of brand %s: %w", n, brand, err)
		}
		if replaced {
			return nil
		}
	}
	return fmt.Errorf("data key %d of brand %s: %w", n, brand, ErrMoved)
}

// AddDataKey makes the brand's data key number n, unless there is one, for all
// that is sealed from now on; other processes begin to use it within SettleTime.
func (s *Sealer) AddDataKey(ctx context.Context, brand string, n uint32) error {
	for range markRaces {
		created, _, err := s.add(ctx, brand, n)
		if err != nil {
			return err
		}
		newest, _, err := s.store.NewestDataKey(ctx, brand)
		if err != nil {
			return fmt.Errorf("read the newest data key of brand %s: %w", brand, err)
		}
		if created || newest >= n {
			return s.forgetNewest(ctx, brand)
		}
	}
	return fmt.Errorf("data key %d of brand %s: %w", n, brand, ErrMoved)
}

// forgetNewest makes the next Seal ask for the brand's newest data key.
func (s *Sealer) forgetNewest(ctx context.Context, brand string) error {
	b, err := s.lock(ctx, brand)
	if err != nil {
		return err
	}
	defer b.unlock()
	b.newest, b.asked = 0, time.Time{}
	return nil
}

// Reseal returns a value that Seal made, sealed anew under the brand's data key
// number n, or nil when it is sealed under that one or a newer one already.
// Errors are as those of Open.
func (s *Sealer) Reseal(ctx context.Context, brand, name string, sealed []byte, n uint32) ([]byte, error) {
	_, old, err := parseHeader(sealed)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	if old >= n {
		return nil, nil
	}
	plaintext, err := s.Open(ctx, brand, name, sealed)
	if err != nil {
		return nil, err
	}
	defer clear(plaintext)
	aead, err := s.numbered(ctx, brand, n)
	if err != nil {
		return nil, fmt.Errorf("seal %s: %w", name, err)
	}
	return sealUnder(aead, n, name, plaintext), nil
}
