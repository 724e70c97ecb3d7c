// Package custody changes what private keys are sealed with, while everything
// goes on: it puts another key-encryption key in the place of the present one, and
// new data keys in the place of those of the brands.
//
// A rotation stands in the store with how far it is. Any process may carry it on:
// each step is compared with what it was computed from and may be done twice, so
// nothing is lost when a process ends, or when two work on it for a moment.
package custody

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/dkimzone/dkimzone/internal/envelope"
	"github.com/dkimzone/dkimzone/internal/keystore"
)

var (
	// ErrRunning says that another rotation than the one asked for is not done yet.
	ErrRunning = errors.New("a rotation of the key-encryption key is running")
	// ErrOtherKey says that the process that was asked would wrap with another
	// key-encryption key than the caller wants.
	ErrOtherKey = errors.New("another key-encryption key than wanted")
)

// Options is what a Custody works with.
type Options struct {
	Store  *keystore.Store
	Direct *keystore.Store // on the same etcd, but not gated (keystore.Gated)
	Sealer *envelope.Sealer
	Name   string // of this process, different from that of any other
	Now    func() time.Time
	Logger *slog.Logger

	// Poll is how often it is looked whether there is something to do.
	Poll time.Duration
	// TakeOver is after how long without progress another process carries on.
	TakeOver time.Duration
	// Settle is how long after new data keys were made values may still be
	// written that are sealed under the ones before:
	// envelope.SettleTime and the longest call.
	Settle time.Duration
	// RestoreSettle is how long a restore waits until calls to etcd that passed
	// the gate have ended.
	RestoreSettle time.Duration
	// KeyExport lets ExportPrivateKey give keys away.
	KeyExport bool
	// AfterRestore, if not nil, is called when a backup has been restored.
	AfterRestore func(context.Context)
}

// Custody starts rotations and carries them through. It is safe for concurrent
// use.
type Custody struct {
	Options

	begun chan struct{} // has an element when this process began a rotation
}

// New returns a Custody.
func New(o Options) *Custody { return &Custody{Options: o, begun: make(chan struct{}, 1)} }

// Status is which key-encryption key wraps, since when (zero if that is not known),
// which ones this process has, and how far the last rotation is.
type Status struct {
	Wrapping string
	Since    time.Time
	Keys     []string
	Rotation keystore.KeyEncryptionRotation
}

// Status returns errors of the Store and of the Sealer's Check.
func (c *Custody) Status(ctx context.Context) (Status, error) {
	s := Status{Keys: c.Sealer.Keys()}
	var err error
	if s.Wrapping, err = c.Sealer.Wrapping(ctx); err != nil {
		return s, err
	}
	if s.Since, err = c.Store.KeyEncryptionSince(ctx); err != nil {
		return s, err
	}
	s.Rotation, err = c.Store.KeyEncryptionRotation(ctx)
	return s, err
}

// Rotate makes this process's first key-encryption key the one that wraps, and
// begins to wrap all data keys anew with it, also when it was that before; with
// dataKeys, to make new data keys, too, and to seal all private keys anew. It
// returns at once; Run does the work. If the same is being done already that is
// returned. want, unless it is empty, is the label that the key must have.
//
// It returns ErrOtherKey, ErrRunning, keystore.ErrConflict, or an error of the
// Store or the Sealer.
func (c *Custody) Rotate(ctx context.Context, dataKeys bool, want string) (keystore.KeyEncryptionRotation, error) {
	last, err := c.Store.KeyEncryptionRotation(ctx)
	if err != nil {
		return last, err
	}
	if first := c.Sealer.Keys()[0]; want != "" && want != first {
		return last, fmt.Errorf("%w: this dkimd has %s, not %s", ErrOtherKey, first, want)
	} else if !last.Phase.Over() {
		if last.Label == first && last.DataKeys == dataKeys {
			return last, nil
		}
		return last, fmt.Errorf("%w: to %s, begun at %s", ErrRunning, last.Label, last.StartTime.UTC().Format(time.RFC3339))
	}
	revision, err := c.Store.Revision(ctx)
	if err != nil {
		return last, err
	}
	label, check, mark, err := c.Sealer.Propose(ctx)
	if err != nil {
		return last, err
	}
	now := c.Now()
	r, err := c.Store.BeginKeyEncryptionRotation(ctx, keystore.KeyEncryptionRotation{
		Label: label, DataKeys: dataKeys, Phase: keystore.PhaseWrap,
		StartTime: now, UpdateTime: now, PhaseTime: now, StartRevision: revision, Revision: last.Revision,
	}, check, mark)
	if err != nil {
		return last, err
	}
	select {
	case c.begun <- struct{}{}:
	default:
	}
	return r, nil
}

// Run carries rotations through until ctx ends.
func (c *Custody) Run(ctx context.Context) error {
	ticker := time.NewTicker(c.Poll)
	defer ticker.Stop()
	var seen keystore.KeyEncryptionRotation // the last one looked at
	var since time.Time                     // when it was first seen so
	for {
		r, err := c.Store.KeyEncryptionRotation(ctx)
		if err == nil {
			if r.Revision != seen.Revision {
				seen, since = r, time.Now()
			}
			idle := r.Worker == "" || r.Worker == c.Name || time.Since(since) >= c.TakeOver
			if !r.Phase.Over() && idle {
				err = c.carryOn(ctx, r)
			}
		}
		if err != nil && ctx.Err() == nil && !errors.Is(err, keystore.ErrConflict) {
			c.Logger.LogAttrs(ctx, slog.LevelWarn, "rotation of the key-encryption key waits", slog.Any("error", err))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		case <-c.begun:
		}
	}
}

// carryOn takes a rotation over and works on it until it is over, another process
// takes it over (keystore.ErrConflict), or something fails that may not later.
func (c *Custody) carryOn(ctx context.Context, r keystore.KeyEncryptionRotation) (err error) {
	// Who has not the key to wrap with leaves it to others.
	if err := c.Sealer.Check(ctx); err != nil {
		return err
	}
	taken := r.Worker != c.Name
	r.Worker = c.Name
	if r, err = c.save(ctx, r); err != nil {
		return err
	}
	if taken {
		c.Logger.LogAttrs(ctx, slog.LevelInfo, "rotating the key-encryption key",
			slog.String("key", r.Label), slog.Bool("data_keys", r.DataKeys), slog.String("after", r.Cursor))
	}
	for !r.Phase.Over() {
		next, err := c.step(ctx, r)
		if err != nil {
			if ctx.Err() == nil && !errors.Is(err, keystore.ErrConflict) && r.Error != err.Error() && r.Failures == 0 {
				r.Error = err.Error()
				_, _ = c.save(ctx, r) // for the status, which is to say why it waits
			}
			return err
		}
		if next.Failures == 0 {
			next.Error = ""
		}
		if r, err = c.save(ctx, next); err != nil {
			return err
		}
	}
	level := slog.LevelInfo
	if r.Failures > 0 {
		level = slog.LevelError
	}
	c.Logger.LogAttrs(ctx, level, "rotated the key-encryption key", slog.String("key", r.Label),
		slog.Uint64("data_keys_wrapped", r.DataKeysWrapped), slog.Uint64("data_keys_made", r.DataKeysMade),
		slog.Uint64("private_keys_sealed", r.PrivateKeysSealed), slog.Uint64("failures", r.Failures), slog.String("first_failure", r.Error))
	return nil
}

func (c *Custody) save(ctx context.Context, r keystore.KeyEncryptionRotation) (keystore.KeyEncryptionRotation, error) {
	r.UpdateTime = c.Now()
	return c.Store.SaveKeyEncryptionRotation(ctx, r)
}
