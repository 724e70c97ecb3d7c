package custody

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dkimzone/dkimzone/internal/envelope"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/mint"
)

const (
	// dataKeysAtOnce is how many data keys are wrapped, or made, between two
	// notes of how far it is.
	dataKeysAtOnce = 50
	// privateKeysAtOnce is the same for private keys.
	privateKeysAtOnce = 500
	// stepLimit is how long a step may take before how far it is is noted.
	stepLimit = 5 * time.Second
)

// step does the next part of a rotation and returns how far it is then.
func (c *Custody) step(ctx context.Context, r keystore.KeyEncryptionRotation) (keystore.KeyEncryptionRotation, error) {
	// While the key that wraps is not there failures would not be the data keys'.
	if err := c.Sealer.Check(ctx); err != nil {
		return r, err
	}
	switch r.Phase {
	case keystore.PhaseWrap:
		return c.wrap(ctx, r)
	case keystore.PhaseDataKeys:
		return c.makeDataKeys(ctx, r)
	case keystore.PhaseSeal:
		return c.seal(ctx, r)
	case keystore.PhaseSettle:
		if left := r.PhaseTime.Add(c.Settle).Sub(c.Now()); left > 0 && r.Cursor == "" {
			return r, wait(ctx, min(left, c.TakeOver/3))
		}
		return c.seal(ctx, r)
	}
	return r, fmt.Errorf("phase %d of the rotation is not known: it was begun by a later release", r.Phase)
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// enter begins a phase.
func (c *Custody) enter(r keystore.KeyEncryptionRotation, p keystore.RotationPhase) keystore.KeyEncryptionRotation {
	if p == keystore.PhaseDone && r.Failures > 0 {
		p = keystore.PhaseFailed
	}
	r.Phase, r.Cursor, r.PhaseTime = p, "", c.Now()
	return r
}

// wrap wraps some data keys anew.
func (c *Custody) wrap(ctx context.Context, r keystore.KeyEncryptionRotation) (keystore.KeyEncryptionRotation, error) {
	after, err := dataKeyAt(r.Cursor)
	if err != nil {
		return r, err
	}
	keys, more, err := c.Store.DataKeys(ctx, after, dataKeysAtOnce)
	if err != nil {
		return r, err
	}
	begin := time.Now()
	for _, k := range keys {
		if time.Since(begin) > stepLimit {
			return r, nil
		}
		switch err := c.Sealer.Rewrap(ctx, k.Brand, k.N); {
		case err == nil:
			r.DataKeysWrapped++
		case !fail(&r, err):
			return r, err
		}
		r.Cursor = k.Brand + "/" + strconv.FormatUint(uint64(k.N), 10)
	}
	switch {
	case more:
		return r, nil
	case r.DataKeys:
		return c.enter(r, keystore.PhaseDataKeys), nil
	}
	return c.enter(r, keystore.PhaseDone), nil
}

func dataKeyAt(cursor string) (keystore.DataKeyInfo, error) {
	if cursor == "" {
		return keystore.DataKeyInfo{}, nil
	}
	brand, digits, _ := strings.Cut(cursor, "/")
	n, err := strconv.ParseUint(digits, 10, 32)
	if err != nil {
		return keystore.DataKeyInfo{}, fmt.Errorf("cursor %q of the rotation: %w", cursor, err)
	}
	return keystore.DataKeyInfo{Brand: brand, N: uint32(n)}, nil
}

// fail counts what cannot be done, now or later. It reports false for errors
// that may pass.
func fail(r *keystore.KeyEncryptionRotation, err error) bool {
	if !errors.Is(err, envelope.ErrWrongKey) && !errors.Is(err, envelope.ErrCorrupt) {
		return false
	}
	if r.Failures == 0 {
		r.Error = err.Error()
	}
	r.Failures++
	return true
}

// newestDataKeys are the newest data keys, by brand.
func (c *Custody) newestDataKeys(ctx context.Context) (map[string]keystore.DataKeyInfo, error) {
	newest := make(map[string]keystore.DataKeyInfo)
	for after := (keystore.DataKeyInfo{}); ; {
		keys, more, err := c.Store.DataKeys(ctx, after, 1000)
		if err != nil {
			return nil, err
		}
		for _, k := range keys { // in order of number
			newest[k.Brand] = k
			after = k
		}
		if !more {
			return newest, nil
		}
	}
}

// makeDataKeys makes new data keys for some brands that have only ones from
// before the rotation.
func (c *Custody) makeDataKeys(ctx context.Context, r keystore.KeyEncryptionRotation) (keystore.KeyEncryptionRotation, error) {
	newest, err := c.newestDataKeys(ctx)
	if err != nil {
		return r, err
	}
	begin, done := time.Now(), 0
	for _, brand := range slices.Sorted(maps.Keys(newest)) {
		k := newest[brand]
		if brand <= r.Cursor {
			continue
		}
		if done++; done > dataKeysAtOnce || time.Since(begin) > stepLimit {
			return r, nil
		}
		if k.CreateRevision <= r.StartRevision {
			switch err := c.Sealer.AddDataKey(ctx, brand, k.N+1); {
			case err == nil:
				r.DataKeysMade++
			case errors.Is(err, keystore.ErrBrandNotFound): // deleted: only its data keys are left
			default:
				return r, err
			}
		}
		r.Cursor = brand
	}
	return c.enter(r, keystore.PhaseSeal), nil
}

// seal seals some private keys anew that are not under their brand's newest
// data key.
func (c *Custody) seal(ctx context.Context, r keystore.KeyEncryptionRotation) (keystore.KeyEncryptionRotation, error) {
	newest, err := c.newestDataKeys(ctx)
	if err != nil {
		return r, err
	}
	for begin := time.Now(); ; {
		keys, more, err := c.Store.SealedKeys(ctx, r.Cursor, privateKeysAtOnce)
		if err != nil {
			return r, err
		}
		var changed []keystore.SealedKey
		for _, k := range keys {
			name := mint.KeyName(k.Brand, k.Domain, k.KeyID)
			sealed, err := c.Sealer.Reseal(ctx, k.Brand, name, k.Sealed, newest[k.Brand].N)
			switch {
			case err != nil && !fail(&r, err):
				return r, err
			case err == nil && sealed != nil:
				k.Sealed = sealed
				changed = append(changed, k)
			}
		}
		stored, err := c.Store.Reseal(ctx, changed)
		r.PrivateKeysSealed += uint64(stored) //nolint:gosec // a count
		if err != nil {
			return r, err
		}
		if len(keys) > 0 {
			r.Cursor = keys[len(keys)-1].Cursor()
		}
		switch {
		case !more && r.Phase == keystore.PhaseSeal:
			return c.enter(r, keystore.PhaseSettle), nil
		case !more:
			return c.enter(r, keystore.PhaseDone), nil
		case time.Since(begin) > stepLimit/5:
			return r, nil
		}
	}
}
