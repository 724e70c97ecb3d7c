package replica

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/dkimzone/dkimzone/internal/schema"
)

// A snapshot has what was there when it was taken, whatever happens meanwhile.
func TestSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 1000
		f := newFakeEtcd()
		f.write(zoneOf(t, n))
		h := follow(t, f)
		synctest.Wait()
		snap, err := h.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		defer snap.Close()
		got := make(map[string]string)
		i := 0
		if err := snap.Each(func(owner string, rec schema.PublicRecord) bool {
			if _, ok := got[owner]; ok {
				t.Errorf("%s is there twice", owner)
			}
			got[owner] = string(rec.PublicKey)
			switch i++; {
			case i%3 == 0:
				f.write(touch(t, i, "another"))
			case i%3 == 1:
				f.write(touch(t, i, ""))
			default:
				f.write(touch(t, n+i, "added"))
			}
			synctest.Wait()
			return true
		}); err != nil {
			t.Fatal(err)
		}
		if len(got) != n {
			t.Errorf("%d records, want %d", len(got), n)
		}
		for i := range n {
			if want := fmt.Sprintf("key%d", i); got[ownerName(i)] != want {
				t.Errorf("record %d: %q, want %q", i, got[ownerName(i)], want)
			}
		}
		if snap.Apex().Revision != 2 || h.Apex().Revision != n+2 {
			t.Errorf("revision %d, and %d now", snap.Apex().Revision, h.Apex().Revision)
		}
		if len(snap.undo) != 0 {
			t.Errorf("%d records are still kept", len(snap.undo))
		}
	})
}

func TestSnapshotIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEtcd()
		h := follow(t, f)
		synctest.Wait()
		if _, err := h.Snapshot(); !errors.Is(err, ErrNotLoaded) {
			t.Errorf("Snapshot of an unloaded zone: %v", err)
		}
		f.write(zoneOf(t, 10))
		synctest.Wait()
		take := func() *Snapshot {
			s, err := h.Snapshot()
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		flooded, closed, released := take(), take(), take()
		h.changes.Lock()
		for i := range maxUndo + 1 {
			flooded.keep([]byte(ownerName(i)), nil)
		}
		h.changes.Unlock()
		closed.Close()
		closed.Close()
		none := func(string, schema.PublicRecord) bool { t.Error("a record"); return true }
		if err := flooded.Each(none); !errors.Is(err, ErrSnapshotLost) {
			t.Errorf("after too many changes: %v", err)
		}
		if err := closed.Each(none); !errors.Is(err, ErrSnapshotLost) {
			t.Errorf("after Close: %v", err)
		}
		if err := h.Release(); err != nil {
			t.Fatal(err)
		}
		if err := released.Each(none); !errors.Is(err, ErrSnapshotLost) {
			t.Errorf("after Release: %v", err)
		}
		flooded.Close()
		released.Close()
		if len(h.snapshots) != 0 {
			t.Errorf("%d snapshots are left", len(h.snapshots))
		}
	})
}
