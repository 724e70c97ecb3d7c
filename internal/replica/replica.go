// Package replica keeps a copy of a zone's public records in a DNS node: read
// from etcd, followed by a watch, answered from memory and saved to a file, so
// that neither etcd nor the disk has a part in an answer.
//
// A replica starts from its file, which it serves at once, and goes on from the
// revision the file stands for. When etcd can no longer tell what changed since
// (compaction), or is another cluster, or has gone back in time (a restored
// backup), or when a change is not the next one after what is served, the zone is
// listed again and only the differences are applied, when all of them are known.
// If that would delete more than a set share of the zone it is held: the old
// records are served until an operator confirms.
package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dkimzone/dkimzone/internal/schema"
)

// State says how a replica stands to etcd.
type State string

// The states.
const (
	Loading      State = "loading"      // nothing was read yet, from etcd or from the file
	Synced       State = "synced"       // following etcd
	Missing      State = "missing"      // following etcd, which does not have the zone
	Disconnected State = "disconnected" // etcd cannot be reached; serving what there is
	Held         State = "held"         // a resync would delete too much; serving what there was
)

// States is all of them, for metrics that want one series each.
var States = []State{Loading, Synced, Missing, Disconnected, Held}

// Cause says why a zone was listed.
type Cause string

// The causes of a resync.
const (
	CauseStart     Cause = "start"     // there was no data
	CauseCluster   Cause = "cluster"   // another cluster id
	CauseRevision  Cause = "revision"  // etcd is at a revision below ours
	CauseCompacted Cause = "compacted" // etcd no longer has the changes since our revision
	CauseDeleted   Cause = "deleted"   // the zone object was deleted, or much of the zone at once
	CauseHeld      Cause = "held"      // a held resync is tried again
	CauseHung      Cause = "hung"      // a second watch in a row did not bring what etcd has
	CauseHistory   Cause = "history"   // the zone object is not the next one after ours
	CausePeriodic  Cause = "periodic"  // the watch is not trusted for ever
)

// Apex is the zone object as served. It must not be changed.
type Apex struct {
	schema.Apex
	Revision int64  // of the zone's last change
	Serial   uint32 // SOA serial
}

// Status is what there is to know about a replica at one moment.
type Status struct {
	Zone         string
	State        State
	Loaded       bool
	Records      int
	Revision     int64 // of etcd: all changes up to here are served
	ZoneRevision int64 // of the zone's last change that is served; 0 if not loaded
	ClusterID    uint64
	Staleness    time.Duration // since this was last known to be all
	HeldRevision int64         // of etcd when the resync in hold began; 0 if none is
	HeldRecords  int           // how many records it would delete
	Resyncs      map[Cause]uint64
	Repairs      uint64 // records that a periodic reconcile found wrong
	Invalid      uint64 // values in etcd that do not decode
	FileErrors   uint64 // failures to read or write the file
}

// Replica is the copy of one zone. All methods are safe for concurrent use.
type Replica struct {
	zone    string
	started time.Time
	view    *view
	apex    atomic.Pointer[Apex]
	logger  *slog.Logger

	fileErrors atomic.Uint64

	// changes is held while records change, from one revision to the next, so
	// that who holds it finds the view at one revision. Look-ups do not take it.
	// It is taken before mu and before the persister's lock.
	changes   sync.Mutex
	snapshots map[*Snapshot]struct{}
	journal   journal

	mu      sync.Mutex
	status  Status        // Records, Loaded, Staleness and FileErrors are filled in by Status
	since   time.Time     // when the data was last known to be complete
	changed chan struct{} // closed and replaced with each advance of Revision

	settings atomic.Pointer[settings]
	renewed  chan struct{} // new settings
	cancel   context.CancelFunc
	done     sync.WaitGroup
}

// Zone is the name of the zone, without a trailing dot.
func (r *Replica) Zone() string { return r.zone }

// Apex is the zone object, or nil as long as the zone is not loaded.
func (r *Replica) Apex() *Apex { return r.apex.Load() }

// Loaded reports whether the zone's names are known. Until then no answer may
// deny one.
func (r *Replica) Loaded() bool { return r.apex.Load() != nil }

// Lookup reports what stands at owner: an owner name in lower case without the
// zone, "selector1-spamtrap-dk._domainkey". The record's public key is appended
// to buf[:0]; with room for schema.MaxPublicKeyLen octets nothing is allocated.
// The record's UpdateTime is not kept. No lock is held on return.
func (r *Replica) Lookup(owner, buf []byte) (schema.PublicRecord, Result) {
	if !r.Loaded() {
		return schema.PublicRecord{}, Unavailable
	}
	return r.view.lookup(owner, buf)
}

// Status returns a snapshot.
func (r *Replica) Status() Status {
	apex := r.apex.Load()
	r.mu.Lock()
	s := r.status
	s.Resyncs = maps.Clone(s.Resyncs)
	if !r.since.IsZero() {
		s.Staleness = max(0, time.Since(r.since))
	}
	r.mu.Unlock()
	s.Zone, s.Records, s.FileErrors = r.zone, r.view.len(), r.fileErrors.Load()
	if apex != nil {
		s.Loaded, s.ZoneRevision = true, apex.Revision
	}
	return s
}

// WaitRevision returns when all changes up to etcd revision rev are served, or
// with the error of ctx.
func (r *Replica) WaitRevision(ctx context.Context, rev int64) error {
	for {
		r.mu.Lock()
		have, changed := r.status.Revision, r.changed
		r.mu.Unlock()
		if have >= rev {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("replica: waiting for revision %d, at %d: %w", rev, have, ctx.Err())
		}
	}
}

// WaitChange returns the zone object when it is another than old, or the error
// of ctx. A change of any record makes another zone object.
func (r *Replica) WaitChange(ctx context.Context, old *Apex) (*Apex, error) {
	for {
		r.mu.Lock()
		changed := r.changed
		r.mu.Unlock()
		if apex := r.Apex(); apex != nil && apex != old {
			return apex, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("replica: waiting for a change: %w", ctx.Err())
		}
	}
}

// update changes the status.
func (r *Replica) update(fn func(*Status)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.status.Revision
	fn(&r.status)
	if r.status.Revision != before {
		close(r.changed)
		r.changed = make(chan struct{})
	}
}

// confirm notes that at t nothing was missing.
func (r *Replica) confirm(t time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.since = t
}

func (r *Replica) fileFailed() { r.fileErrors.Add(1) }

// open reads the file, which is served from then on, and starts to follow etcd.
func open(cfg Config, s *settings) (*Replica, error) {
	r := &Replica{
		zone: cfg.Zone, started: time.Now(), view: newView(), logger: cfg.Logger.With(slog.String("zone", cfg.Zone)),
		changed: make(chan struct{}), renewed: make(chan struct{}, 1), snapshots: make(map[*Snapshot]struct{}),
		status: Status{State: Loading, Resyncs: make(map[Cause]uint64)},
	}
	r.settings.Store(s)
	l := newLoop(r)
	if cfg.Dir != "" {
		f, m, err := r.openFile(cfg.Dir)
		if err != nil {
			_ = r.view.close() // the first error is the one to tell
			return nil, err
		}
		l.persister = newPersister(f, r.view, r.logger, r.fileFailed)
		if m != nil {
			l.restore(m)
		} else {
			l.persister.noteAll()
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	if l.persister != nil {
		// It ends after the loop, so that its last transaction has everything.
		pctx, pcancel := context.WithCancel(context.Background())
		r.done.Go(func() { l.persister.run(pctx) })
		r.done.Go(func() { defer pcancel(); l.run(ctx) })
		return r, nil
	}
	r.done.Go(func() { l.run(ctx) })
	return r, nil
}

// openFile opens and loads the zone's file. Without a usable one it returns nil
// meta data and an empty view.
func (r *Replica) openFile(dir string) (*file, *meta, error) {
	f, aside, err := openFile(dir, r.zone)
	if aside != nil {
		r.damaged(aside)
	}
	if err != nil {
		return nil, nil, err
	}
	began := time.Now()
	m, err := f.load(r.view)
	if errors.Is(err, ErrInUse) {
		return nil, nil, err
	}
	if err != nil {
		r.damaged(err)
		if err := r.view.close(); err != nil {
			return nil, nil, err
		}
		r.view = newView()
		if err := f.setAside(); err != nil {
			return nil, nil, err
		}
		return f, nil, f.open()
	}
	if m != nil {
		r.logger.LogAttrs(context.Background(), slog.LevelInfo, "data file is loaded",
			slog.Int("records", m.Records), slog.Int64("revision", m.Revision), slog.Duration("took", time.Since(began)))
	}
	return f, m, nil
}

func (r *Replica) damaged(err error) {
	r.fileFailed()
	r.logger.LogAttrs(context.Background(), slog.LevelError, "data file is set aside, the zone is read from etcd",
		slog.Any("error", err))
}

// stop ends the replica. Look-ups that are still running find Unavailable.
func (r *Replica) stop() error {
	r.cancel()
	r.done.Wait()
	r.changes.Lock()
	defer r.changes.Unlock()
	r.apex.Store(nil)
	return r.view.close()
}
