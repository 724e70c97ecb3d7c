package replica

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/dkimzone/dkimzone/internal/schema"
)

func TestSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEtcd()
		f.write(zoneOf(t, 30)) // revision 2
		h := follow(t, f)
		synctest.Wait()
		f.write(touch(t, 1, "one"))
		f.write(touch(t, 2, ""))
		f.write(touch(t, 50, "fifty"))
		f.write(touch(t, 1, "one again"))
		f.write(touch(t, 50, ""))
		synctest.Wait()

		d, ok := h.Since(2)
		if !ok || d.Old.Serial != 2 || d.New.Serial != 7 || len(d.Changes) != 2 {
			t.Fatalf("since 2: %+v, %v", d, ok)
		}
		for _, c := range d.Changes {
			switch {
			case c.Owner == ownerName(1) && c.Old != nil && string(c.Old.PublicKey) == "key1" && c.New != nil && string(c.New.PublicKey) == "one again":
			case c.Owner == ownerName(2) && c.Old != nil && string(c.Old.PublicKey) == "key2" && c.New == nil:
			default:
				t.Errorf("change %+v", c)
			}
		}
		if d, ok := h.Since(6); !ok || len(d.Changes) != 1 || d.Changes[0].Old == nil || d.Changes[0].New != nil {
			t.Errorf("since 6: %+v, %v", d, ok)
		}
		for _, serial := range []uint32{0, 1, 7, 8} {
			if _, ok := h.Since(serial); ok {
				t.Errorf("something is known since %d", serial)
			}
		}

		// A change that the zone object does not tell of, then one that it does.
		kvs := touch(t, 3, "quiet")
		for key := range kvs {
			if key == apexKeyOf(h) {
				delete(kvs, key)
			}
		}
		f.write(kvs)
		synctest.Wait()
		if _, ok := h.Since(6); ok {
			t.Error("the journal goes on after a change without a serial")
		}
		f.write(touch(t, 3, "loud"))
		synctest.Wait()
		if _, ok := h.Since(7); !ok {
			t.Error("the journal does not begin anew")
		}
		if _, ok := h.Since(6); ok {
			t.Error("the journal has a gap")
		}
	})
}

func TestJournalEndsWithListing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEtcd()
		f.write(zoneOf(t, 30))
		h := follow(t, f)
		synctest.Wait()
		f.write(touch(t, 1, "one"))
		synctest.Wait()
		if _, ok := h.Since(2); !ok {
			t.Fatal("nothing is known since 2")
		}
		f.mu.Lock()
		f.clusterID++
		f.mu.Unlock()
		time.Sleep(3 * heartbeatInterval)
		if got := h.Status().Resyncs[CauseCluster]; got != 1 {
			t.Fatalf("%d listings", got)
		}
		if _, ok := h.Since(2); ok {
			t.Error("what another cluster had is still known")
		}
	})
}

func TestJournalIsBounded(t *testing.T) {
	v := newView()
	defer v.close() //nolint:errcheck // nothing depends on it
	var j journal
	apex := &Apex{Revision: 1, Serial: 1}
	key := make([]byte, 2048)
	for i := range 10_000 {
		next := &Apex{Revision: int64(i + 2), Serial: uint32(i + 2)}
		owner := []byte(ownerName(i % 10))
		rec := recordOf(key, uint32(i))
		j.before(owner, &rec)
		rec.TTL++
		if err := v.put(owner, rec, 0); err != nil {
			t.Fatal(err)
		}
		j.commit(v, apex, next)
		apex = next
		if j.octets > maxJournalOctets {
			t.Fatalf("%d octets after %d changes", j.octets, i+1)
		}
	}
	octets := 0
	for i, e := range j.entries {
		octets += e.octets()
		if i > 0 && j.entries[i-1].New != e.Old {
			t.Fatalf("gap before entry %d", i)
		}
	}
	if octets != j.octets || len(j.entries) < 1000 || j.entries[len(j.entries)-1].New != apex {
		t.Errorf("%d entries of %d octets, %d counted", len(j.entries), octets, j.octets)
	}

	for i := range maxJournalEntries + 1 { // in one revision
		j.before([]byte(ownerName(i)), nil)
	}
	next := &Apex{Revision: apex.Revision + 1}
	j.commit(v, apex, next)
	if len(j.entries) != 0 || j.octets != 0 || j.tooMuch {
		t.Errorf("after too many changes: %d entries", len(j.entries))
	}
}

func apexKeyOf(h *Handle) string { return schema.ApexKey(h.zone) }

func recordOf(key []byte, ttl uint32) schema.PublicRecord {
	return schema.PublicRecord{PublicKey: key, TTL: ttl}
}
