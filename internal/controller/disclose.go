package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/mint"
)

const (
	// discloseInterval is between two looks for keys that are to be disclosed.
	// The lag is counted in days.
	discloseInterval = time.Hour
	// discloseRetry is when a look is taken again that the store cut short.
	discloseRetry = time.Minute
	// disclosePage and disclosePause make a look at a hundred thousand retained
	// keys last some minutes.
	disclosePage  = 100
	disclosePause = 200 * time.Millisecond
)

// Opener decrypts what the Mint's Sealer sealed. It must be safe for concurrent
// use.
type Opener interface {
	Open(ctx context.Context, brand, name string, sealed []byte) ([]byte, error)
}

// errNotThisKey says that what was sealed is not the private half of the key.
var errNotThisKey = errors.New("it is the private half of another key")

// discloseAll makes public what is to be public, until ctx ends.
func (r *round) discloseAll(ctx context.Context) {
	for {
		wait := discloseInterval
		switch err := r.discloseDue(ctx); {
		case ctx.Err() != nil:
			return
		case errors.Is(err, keystore.ErrFenced):
			r.depose()
			return
		case err != nil:
			failures.WithLabelValues("disclosure").Inc()
			r.Logger.LogAttrs(ctx, slog.LevelWarn, "retained keys not looked through, trying again", slog.Any("error", err))
			wait = discloseRetry
		}
		if !pause(ctx, wait) {
			return
		}
	}
}

// discloseDue goes through all retained keys once.
func (r *round) discloseDue(ctx context.Context) error {
	var after keystore.Retained
	for {
		page, more, err := r.Store.RetainedKeys(ctx, "", after, disclosePage)
		if err != nil {
			return err
		}
		for len(page) > 0 {
			n := 1
			for n < len(page) && page[n].Brand == page[0].Brand {
				n++
			}
			if err := r.discloseOf(ctx, page[0].Brand, page[:n]); err != nil {
				return err
			}
			after, page = page[n-1], page[n:]
		}
		if !more {
			return nil
		}
		if !pause(ctx, disclosePause) {
			return ctx.Err()
		}
	}
}

// discloseOf discloses those of a brand's retained keys whose time has come, and
// deletes all of them if the brand does not want it any more: such a key was
// retained by a controller that did not know yet.
func (r *round) discloseOf(ctx context.Context, brand string, retained []keystore.Retained) error {
	b, err := r.Store.Brand(ctx, brand)
	if errors.Is(err, keystore.ErrBrandNotFound) || err == nil && !b.Disclosure.Enabled {
		return r.Store.DropRetained(ctx, brand)
	}
	if err != nil {
		return err
	}
	for _, k := range retained {
		if r.Now().Before(k.DestroyTime.Add(b.Disclosure.Lag)) {
			continue
		}
		attrs := []slog.Attr{
			slog.String("brand", k.Brand), slog.String("domain", string(k.Domain)),
			slog.String("selector", string(k.Selector)), slog.String("key", k.KeyID),
		}
		switch err := r.disclose(ctx, b, k); {
		case err == nil:
			disclosed.Inc()
			r.Logger.LogAttrs(ctx, slog.LevelInfo, "private key disclosed", attrs...)
		case ctx.Err() != nil, errors.Is(err, keystore.ErrFenced), errors.Is(err, keystore.ErrUnavailable):
			return err
		case errors.Is(err, keystore.ErrConflict), errors.Is(err, keystore.ErrKeyNotFound):
			// Somebody changed the brand or deleted the domain: the next look
			// knows.
		default:
			failures.WithLabelValues("disclosure").Inc()
			r.Logger.LogAttrs(ctx, slog.LevelError, "private key not disclosed", append(attrs, slog.Any("error", err))...)
		}
	}
	return nil
}

// disclose makes one key public. The store refuses what must not be.
func (r *round) disclose(ctx context.Context, b keystore.Brand, k keystore.Retained) error {
	name := mint.KeyName(k.Brand, string(k.Domain), k.KeyID)
	plaintext, err := r.Opener.Open(ctx, k.Brand, name, k.Sealed)
	if err != nil {
		return err
	}
	defer clear(plaintext)
	pair, err := keypair.Unmarshal(plaintext)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if mint.Fingerprint(pair.Public()) != k.Fingerprint {
		return fmt.Errorf("%s: %w", name, errNotThisKey)
	}
	private, err := pair.PKCS8()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	defer clear(private)
	return r.Store.Disclose(ctx, b, k, private, r.Now(), r.fence)
}
