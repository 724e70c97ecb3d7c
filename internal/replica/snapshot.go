package replica

import (
	"errors"
	"fmt"

	"github.com/dkimzone/dkimzone/internal/schema"
)

// What a snapshot ends with.
var (
	// ErrNotLoaded is returned when there is nothing to take a snapshot of.
	ErrNotLoaded = errors.New("replica: the zone is not loaded")
	// ErrSnapshotLost is wrapped when the records as they were are no longer at
	// hand: too many changed while they were read, or the replica was released.
	ErrSnapshotLost = errors.New("replica: snapshot is lost")
)

// maxUndo is how many records may change while a snapshot is read, those that
// were read already aside. With RSA-2048 keys that takes some 50 MB.
const maxUndo = 100_000

// Snapshot is a zone as it was at one revision. The records are not copied:
// what changes while they are read is kept as it was. It must be closed.
//
// A snapshot belongs to one goroutine.
type Snapshot struct {
	replica *Replica
	apex    *Apex

	// The rest is guarded by the replica's changes.
	next int                             // shards below this one were read
	undo map[string]*schema.PublicRecord // what stood there; nil is nothing
	lost error
}

// Snapshot returns the zone as of its last change. It returns ErrNotLoaded as
// long as the zone is not loaded.
func (r *Replica) Snapshot() (*Snapshot, error) {
	r.changes.Lock()
	defer r.changes.Unlock()
	apex := r.apex.Load()
	if apex == nil {
		return nil, ErrNotLoaded
	}
	s := &Snapshot{replica: r, apex: apex, undo: make(map[string]*schema.PublicRecord)}
	r.snapshots[s] = struct{}{}
	return s, nil
}

// Apex is the zone object of the snapshot's revision.
func (s *Snapshot) Apex() *Apex { return s.apex }

// Each calls fn for each record, in no order, until it returns false. The record
// must not be changed. fn may take its time: at most a 256th of the zone is held
// in memory for it. The error wraps ErrSnapshotLost. Each may be called once.
func (s *Snapshot) Each(fn func(owner string, rec schema.PublicRecord) bool) error {
	for range shardCount {
		records, err := s.shard()
		if err != nil {
			return err
		}
		for _, c := range records {
			if !fn(c.owner, c.rec) {
				return nil
			}
		}
	}
	return nil
}

// shard copies the next shard as it was.
func (s *Snapshot) shard() ([]change, error) {
	s.replica.changes.Lock()
	defer s.replica.changes.Unlock()
	if s.lost != nil {
		return nil, s.lost
	}
	var records []change
	if err := s.replica.view.copyShard(s.next, func(owner string, rec schema.PublicRecord) {
		if _, changed := s.undo[owner]; !changed {
			records = append(records, change{owner, rec})
		}
	}); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSnapshotLost, err)
	}
	for owner, rec := range s.undo {
		if int(shardOf([]byte(owner))) != s.next {
			continue
		}
		if rec != nil {
			records = append(records, change{owner, *rec})
		}
		delete(s.undo, owner)
	}
	s.next++
	return records, nil
}

// Close ends the snapshot. Closing twice does nothing.
func (s *Snapshot) Close() {
	s.replica.changes.Lock()
	defer s.replica.changes.Unlock()
	delete(s.replica.snapshots, s)
	s.undo = nil
	if s.lost == nil {
		s.lost = fmt.Errorf("%w: it is closed", ErrSnapshotLost)
	}
}

// keep notes what stood at owner before it changes.
func (s *Snapshot) keep(owner []byte, rec *schema.PublicRecord) {
	if s.lost != nil || int(shardOf(owner)) < s.next {
		return
	}
	if _, ok := s.undo[string(owner)]; ok {
		return
	}
	if len(s.undo) >= maxUndo {
		s.lost, s.undo = fmt.Errorf("%w: more than %d records changed", ErrSnapshotLost, maxUndo), nil
		return
	}
	s.undo[string(owner)] = rec
}
