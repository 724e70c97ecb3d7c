package replica

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"

	"github.com/dkimzone/dkimzone/internal/schema"
)

// The file follows within a second of a change, in one transaction for all.
func TestPersistsBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		f := newFakeEtcd()
		f.write(zoneOf(t, 30))
		h := follow(t, f, func(c *Config) { c.Dir = dir })
		time.Sleep(persistInterval)
		for i := range 10 {
			f.write(touch(t, i, "changed"))
		}
		f.write(touch(t, 29, ""))
		time.Sleep(2 * persistInterval)
		saved := snapshot(t, dir)
		if err := h.Release(); err != nil {
			t.Fatal(err)
		}
		got, m := reload(t, saved)
		if len(got) != 29 || string(got[ownerName(3)].PublicKey) != "changed" || m.Revision != 13 || m.ClusterID != 77 || m.ApexRev != 13 {
			t.Errorf("%d records, %+v", len(got), m)
		}
		// The last state is written when the replica ends.
		if _, m := reload(t, dir); m.Revision != 13 {
			t.Errorf("after the end: %+v", m)
		}
	})
}

// snapshot copies the file as a crash would leave it.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, testZone+".db"))
	if err != nil {
		t.Fatal(err)
	}
	saved := t.TempDir()
	if err := os.WriteFile(filepath.Join(saved, testZone+".db"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return saved
}

// A hold is remembered: after a restart the zone is not followed past it.
func TestHoldOutlivesRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		f := newFakeEtcd()
		f.write(zoneOf(t, 100))
		inDir := func(c *Config) { c.Dir = dir }
		h := follow(t, f, inDir)
		synctest.Wait()
		f.unseen(func() {
			for i := range 50 {
				f.write(touch(t, i, ""))
			}
		})
		f.compact()
		f.cut()
		time.Sleep(time.Minute)
		wantState(t, h, Held)
		if err := h.Release(); err != nil {
			t.Fatal(err)
		}
		h = follow(t, f, inDir)
		time.Sleep(time.Minute)
		s := wantState(t, h, Held)
		if s.Records != 100 || s.HeldRecords != 50 {
			t.Errorf("status = %+v", s)
		}
		f.write(map[string][]byte{schema.ApexKey(testZone): apexValue(t, func(a *schema.Apex) { a.AcceptDeletionsRevision = s.HeldRevision })})
		time.Sleep(2 * heartbeatInterval)
		if s := wantState(t, h, Synced); s.Records != 50 {
			t.Errorf("status = %+v", s)
		}
	})
}

// A disk that fails costs a log line and a count, and is used again when it
// works; nothing is lost in between.
func TestDiskFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		var failures atomic.Int64
		dir := t.TempDir()
		f, v := openTestFile(t, dir), openView(t)
		p := newPersister(f, v, slog.New(slog.NewTextHandler(&log, nil)), func() { failures.Add(1) })
		want := fileRecords(50)
		names := putAll(t, v, want)
		for _, name := range names {
			p.note([]byte(name))
		}
		// A database that cannot be written stands for a full disk.
		if err := f.close(); err != nil {
			t.Fatal(err)
		}
		db, err := bolt.Open(f.path, 0o600, &bolt.Options{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		f.db = db
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); p.run(ctx) }()
		p.commit(testMeta(3), true)
		time.Sleep(5 * time.Minute)
		if n := failures.Load(); n < 3 || n > 20 {
			t.Errorf("%d tries in 5 min", n)
		}
		synctest.Wait()
		p.mu.Lock()
		if err := f.close(); err != nil {
			t.Fatal(err)
		}
		p.mu.Unlock()
		time.Sleep(2 * persistRetryMax)
		stop()
		<-done
		if n := strings.Count(log.String(), "is not written"); n != 1 || !strings.Contains(log.String(), "is written again") {
			t.Errorf("log:\n%s", log.String())
		}
		got, m := reload(t, dir)
		if diff := cmp.Diff(want, got); diff != "" || m.Revision != 3 {
			t.Errorf("revision %d, records (-want +got):\n%s", m.Revision, diff)
		}
	})
}

// More changed names than are noted one by one lead to a new file.
func TestManyChangesWriteANewFile(t *testing.T) {
	dir := t.TempDir()
	f, v := openTestFile(t, dir), openView(t)
	p := newPersister(f, v, slog.New(slog.DiscardHandler), func() { t.Error("write failed") })
	want := fileRecords(10)
	putAll(t, v, want)
	for i := range maxPending + 1 {
		p.note([]byte(ownerName(i)))
	}
	if !p.all || len(p.pending) != 0 {
		t.Errorf("all = %v, %d names pending", p.all, len(p.pending))
	}
	p.commit(testMeta(4), true)
	if n, err := p.flush(); err != nil || n != len(want) {
		t.Errorf("flush = %d, %v", n, err)
	}
	if n, err := p.flush(); err != nil || n != 0 {
		t.Errorf("second flush = %d, %v; want nothing to do", n, err)
	}
	if err := f.close(); err != nil {
		t.Fatal(err)
	}
	if got, _ := reload(t, dir); len(got) != len(want) {
		t.Errorf("%d records, want %d", len(got), len(want))
	}
}

// A file that is found damaged while the node runs is written anew.
func TestDamageFoundByWriting(t *testing.T) {
	dir := t.TempDir()
	path := writeFile(t, dir, 500)
	editBolt(t, path, func(tx *bolt.Tx) error { return tx.Bucket(metaBucket).Put(metaKey, []byte("damaged")) })
	f, v := openTestFile(t, dir), openView(t)
	p := newPersister(f, v, slog.New(slog.DiscardHandler), func() {})
	want := fileRecords(20)
	for _, name := range putAll(t, v, want) {
		p.note([]byte(name))
	}
	p.commit(testMeta(9), true)
	if _, err := p.flush(); !errors.Is(err, errCorrupt) {
		t.Fatalf("flush = %v, want errCorrupt", err)
	}
	if n, err := p.flush(); err != nil || n != len(want) {
		t.Fatalf("second flush = %d, %v", n, err)
	}
	if err := f.close(); err != nil {
		t.Fatal(err)
	}
	got, m := reload(t, dir)
	if diff := cmp.Diff(want, got); diff != "" || m.Revision != 9 {
		t.Errorf("revision %d, records (-want +got):\n%s", m.Revision, diff)
	}
}
