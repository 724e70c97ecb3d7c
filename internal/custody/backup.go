package custody

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/dkimzone/dkimzone/internal/keystore"
)

// ErrInvalidBackup says that what is to be restored is not what Backup made.
var ErrInvalidBackup = errors.New("not a whole backup")

// Header is what a backup begins with.
type Header struct {
	Time     time.Time
	Revision int64 // of the store
	// Label and Check are the mark of the key-encryption key that wraps; empty
	// while there is no data key.
	Label string
	Check []byte
}

// Backup calls head with what a backup begins with and then each with all that the
// store holds, as it stands at one moment. It returns keystore.ErrCompacted
// if that takes too long, or errors of the store or of its arguments.
func (c *Custody) Backup(ctx context.Context, head func(Header) error, each func(keystore.Entry) error) error {
	h := Header{Time: c.Now()}
	var err error
	if h.Revision, err = c.Store.Revision(ctx); err != nil {
		return err
	}
	if h.Label, h.Check, _, err = c.Store.KeyEncryptionMark(ctx); err != nil {
		return err
	}
	if err := head(h); err != nil {
		return err
	}
	return c.Store.Backup(ctx, h.Revision, each)
}

// Restored is what Restore has done.
type Restored struct {
	Entries  int64
	Revision int64 // of the store, from which on all is there
}

// Restore puts a backup into a store without brands: next returns entries, and at
// the end of a whole backup none. It returns keystore.ErrNotEmpty and
// envelope.ErrWrongKey before anything is changed; after any other error the store
// is shut until a restore has been completed.
func (c *Custody) Restore(ctx context.Context, h Header, next func() ([]keystore.Entry, error)) (Restored, error) {
	if h.Label != "" {
		if err := c.Sealer.Opens(ctx, h.Label, h.Check); err != nil {
			return Restored{}, err
		}
	}
	c.Logger.LogAttrs(ctx, slog.LevelWarn, "restoring a backup", slog.Time("backup", h.Time))
	r, err := c.Direct.Restore(ctx, keystore.RestoreInfo{Time: h.Time, Revision: h.Revision}, c.RestoreSettle)
	if err != nil {
		return Restored{}, err
	}
	for {
		entries, err := next()
		if err != nil {
			return Restored{}, err
		}
		if len(entries) == 0 {
			break
		}
		if err := r.Add(ctx, entries...); err != nil {
			return Restored{}, err
		}
	}
	var done Restored
	if done.Entries, done.Revision, err = r.Finish(ctx); err != nil {
		return Restored{}, fmt.Errorf("complete the restore: %w", err)
	}
	c.Logger.LogAttrs(ctx, slog.LevelWarn, "restored a backup", slog.Time("backup", h.Time),
		slog.Int64("entries", done.Entries), slog.Int64("revision", done.Revision))
	if c.AfterRestore != nil {
		c.AfterRestore(ctx)
	}
	return done, nil
}
