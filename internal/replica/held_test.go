package replica

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/dkimzone/dkimzone/internal/schema"
)

// One revision that deletes much of the zone is no more believed when the watch
// brings it.
func TestMassDeletionUnderTheWatchIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEtcd()
		f.write(zoneOf(t, 100))
		h := follow(t, f)
		synctest.Wait()
		wipe := make(map[string][]byte)
		for i := range 60 {
			wipe[schema.RecordKey(testZone, ownerName(i))] = nil
		}
		rev := f.write(wipe)
		synctest.Wait()
		s := wantState(t, h, Held)
		if s.HeldRecords != 60 || s.Records != 100 || s.Resyncs[CauseDeleted] != 1 {
			t.Errorf("status = %+v", s)
		}
		wantKey(t, h, 0, "key0")

		f.write(map[string][]byte{schema.ApexKey(testZone): apexValue(t, func(a *schema.Apex) { a.AcceptDeletionsRevision = rev })})
		time.Sleep(3 * heartbeatInterval)
		wantState(t, h, Synced)
		wantKey(t, h, 0, "")
		wantKey(t, h, 60, "key60")

		// As much in small pieces is what a provider does to its zone.
		for i := range 30 {
			f.write(touch(t, 60+i, ""))
		}
		synctest.Wait()
		wantState(t, h, Synced)
		wantKey(t, h, 60, "")
	})
}

func TestMassDeletionIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEtcd()
		f.write(zoneOf(t, 100))
		h := follow(t, f)
		synctest.Wait()

		wipe := map[string][]byte{schema.ApexKey(testZone): apexValue(t)}
		for i := range 60 {
			wipe[schema.RecordKey(testZone, ownerName(i))] = nil
		}
		wipe[schema.RecordKey(testZone, ownerName(80))] = recordValue(t, "withheld")
		f.unseen(func() { f.write(wipe) })
		f.compact()
		f.cut()
		time.Sleep(time.Minute)

		s := wantState(t, h, Held)
		if s.HeldRevision != 3 || s.HeldRecords != 60 || s.Records != 100 {
			t.Errorf("status = %+v", s)
		}
		wantKey(t, h, 0, "key0")
		wantKey(t, h, 80, "key80")
		time.Sleep(time.Hour)
		if n := f.lists(); n > 30 {
			t.Errorf("%d listings in an hour of hold", n)
		}

		// A word for an earlier revision does not count.
		f.write(map[string][]byte{schema.ApexKey(testZone): apexValue(t, func(a *schema.Apex) { a.AcceptDeletionsRevision = 2 })})
		time.Sleep(heldRetryMax * 2)
		wantState(t, h, Held)
		f.write(map[string][]byte{schema.ApexKey(testZone): apexValue(t, func(a *schema.Apex) { a.AcceptDeletionsRevision = 3 })})
		time.Sleep(2 * heartbeatInterval)
		s = wantState(t, h, Synced)
		if s.HeldRevision != 0 || s.HeldRecords != 0 || s.Records != 40 {
			t.Errorf("status = %+v", s)
		}
		wantKey(t, h, 0, "")
		wantKey(t, h, 80, "withheld")
		f.write(touch(t, 0, "again"))
		synctest.Wait()
		wantKey(t, h, 0, "again")
	})
}

// What was deleted comes back before anybody confirms.
func TestHoldEndsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEtcd()
		f.write(zoneOf(t, 100))
		h := follow(t, f)
		synctest.Wait()
		f.set(func(f *fakeEtcd) { f.clusterID, f.history, f.hung = 78, nil, true })
		f.cut()
		time.Sleep(time.Minute)
		wantState(t, h, Held)
		wantKey(t, h, 5, "key5")
		f.set(func(f *fakeEtcd) { f.hung = false })
		f.write(zoneOf(t, 101))
		time.Sleep(2 * heldRetryMax)
		s := wantState(t, h, Synced)
		if s.Records != 101 || s.ClusterID != 78 || s.HeldRevision != 0 {
			t.Errorf("status = %+v", s)
		}
	})
}

func TestDeletedZoneIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEtcd()
		f.write(zoneOf(t, 100))
		h := follow(t, f)
		synctest.Wait()
		wipe := map[string][]byte{schema.ApexKey(testZone): nil}
		for i := range 100 {
			wipe[schema.RecordKey(testZone, ownerName(i))] = nil
		}
		f.write(wipe)
		time.Sleep(time.Minute)
		s := wantState(t, h, Held)
		if !s.Loaded || s.HeldRecords != 100 {
			t.Errorf("status = %+v", s)
		}
		wantKey(t, h, 42, "key42")
	})
}

func TestDeletedEmptyZone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEtcd()
		f.write(zoneOf(t, 30))
		h := follow(t, f)
		synctest.Wait()
		// As the service deletes a zone: first its domains, then the object.
		for i := range 30 {
			f.write(touch(t, i, ""))
		}
		f.write(map[string][]byte{schema.ApexKey(testZone): nil})
		time.Sleep(time.Minute)
		if s := wantState(t, h, Missing); s.Loaded || s.Records != 0 || s.ZoneRevision != 0 {
			t.Errorf("status = %+v", s)
		}
	})
}

// A zone object whose deletion the watch does not bring is noticed.
func TestDeletedZoneUnseen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEtcd()
		f.write(zoneOf(t, 5))
		h := follow(t, f)
		synctest.Wait()
		f.unseen(func() { f.write(map[string][]byte{schema.ApexKey(testZone): nil}) })
		time.Sleep(time.Minute)
		if s := wantState(t, h, Missing); s.Loaded {
			t.Errorf("status = %+v", s)
		}
	})
}

func TestReconcileFindsMassDeletion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEtcd()
		f.write(zoneOf(t, 50))
		h := follow(t, f, func(c *Config) { c.ReconcileInterval = time.Hour })
		synctest.Wait()
		f.unseen(func() {
			for i := range 30 {
				f.write(alone(t, i, ""))
			}
		})
		f.write(touch(t, 40, "seen"))
		time.Sleep(90 * time.Minute)
		wantState(t, h, Held)
		wantKey(t, h, 7, "key7")
	})
}
