package replica

import (
	"bytes"
	"errors"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// once calls fn before the first listing from now on is answered.
func (f *fakeEtcd) onceListing(fn func()) {
	var once sync.Once
	f.before(func(op clientv3.Op) error {
		if op.RangeBytes() != nil {
			once.Do(fn)
		}
		return nil
	})
}

// await waits, in the time of a bubble, until something is so.
func await(t *testing.T, so func() bool) {
	t.Helper()
	for range 2 * int(time.Hour/time.Second) {
		if so() {
			return
		}
		time.Sleep(time.Second)
	}
	t.Fatal("not in two hours")
}

// A backup is put in place while a comparison waits for its listing, and etcd
// is past our revision again before anybody asks where it is: that the listing
// is of an earlier revision than ours must not be overlooked, for the watch
// brings nothing of what was written in between.
func TestBackupInPlaceUnderAComparison(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEtcd()
		f.write(zoneOf(t, 50))
		var log bytes.Buffer
		h := follow(t, f, func(c *Config) {
			c.ReconcileInterval, c.Logger = time.Hour, slog.New(slog.NewTextHandler(&log, nil))
		})
		synctest.Wait()
		backup := f.rev
		for range 5 {
			f.write(touch(t, 1, "undone"))
		}
		synctest.Wait()
		log.Reset()
		ours := f.rev
		f.onceListing(func() {
			f.rewind(backup)
			f.write(touch(t, 2, "before the listing"))
			f.set(func(f *fakeEtcd) {
				f.onAnswer = sync.OnceFunc(func() {
					f.write(touch(t, 3, "after the listing"))
					for f.rev <= ours {
						f.write(touch(t, 4, "more"))
					}
				})
			})
		})
		await(t, func() bool { return h.Status().Resyncs[CausePeriodic] > 0 })
		time.Sleep(2 * heartbeatInterval)
		s := wantState(t, h, Synced)
		if s.Resyncs[CauseRevision] != 1 || s.Repairs != 0 {
			t.Errorf("status = %+v, want a listing because of the revision and no repairs", s)
		}
		wantKey(t, h, 1, "key1")
		wantKey(t, h, 2, "before the listing")
		wantKey(t, h, 3, "after the listing")
		wantKey(t, h, 4, "more")
		if n := strings.Count(log.String(), "\n"); n != 1 {
			t.Errorf("%d lines, want the one of the listing:\n%s", n, log.String())
		}
		f.write(touch(t, 5, "later"))
		synctest.Wait()
		wantKey(t, h, 5, "later")
	})
}

// What a comparison has listed, and the watch has not brought yet, is undone by
// a backup: it is not served, also if the backup has all that we have.
func TestBackupInPlaceOfWhatWasCompared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEtcd()
		f.write(zoneOf(t, 50))
		h := follow(t, f, func(c *Config) { c.ReconcileInterval = time.Hour })
		synctest.Wait()
		backup := f.rev
		f.onceListing(func() {
			f.set(func(f *fakeEtcd) { f.hung = true })
			f.write(touch(t, 1, "undone"))
			f.write(touch(t, 2, ""))
			f.write(touch(t, 50, "undone"))
		})
		await(t, func() bool { return h.Status().Resyncs[CausePeriodic] > 0 })
		synctest.Wait() // it waits for the watch
		f.rewind(backup)
		time.Sleep(2 * heartbeatInterval)
		f.set(func(f *fakeEtcd) { f.hung = false })
		for range 5 {
			f.write(touch(t, 3, "after"))
		}
		time.Sleep(2 * heartbeatInterval)
		wantState(t, h, Synced)
		wantKey(t, h, 1, "key1")
		wantKey(t, h, 2, "key2")
		wantKey(t, h, 3, "after")
		wantKey(t, h, 50, "")
	})
}

// An answer to a question from before a listing is no reason to list again.
func TestAnswerFromBeforeAListing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEtcd()
		f.write(zoneOf(t, 50))
		h := follow(t, f, func(c *Config) { c.ReconcileInterval = time.Minute })
		synctest.Wait()
		backup := f.rev
		f.write(touch(t, 1, "undone"))
		f.write(touch(t, 2, "undone"))
		synctest.Wait()
		// From now on questions about the zone object wait, until the zone is listed.
		listed := make(chan struct{})
		open := sync.OnceFunc(func() { close(listed) })
		t.Cleanup(open)
		rewind := sync.OnceFunc(func() { f.rewind(backup) })
		f.before(func(op clientv3.Op) error {
			if op.RangeBytes() == nil && h.Status().Resyncs[CausePeriodic] > 0 {
				<-listed
			}
			if op.RangeBytes() != nil {
				time.Sleep(jitter(heartbeatInterval) + heartbeatInterval/2) // a question is asked meanwhile
				rewind()
			}
			return nil
		})
		await(t, func() bool { return h.Status().Resyncs[CausePeriodic] > 0 })
		await(t, func() bool { return h.Status().Revision == backup })
		f.before(nil)
		open()
		time.Sleep(5 * heartbeatInterval)
		if s := wantState(t, h, Synced); s.Resyncs[CauseRevision] != 1 {
			t.Errorf("resyncs = %v, want one because of the revision", s.Resyncs)
		}
		wantKey(t, h, 1, "key1")
	})
}

// While following etcd is interrupted nothing is compared: not by a comparison
// that was under way, not by one that is due.
func TestNothingIsComparedWhileInterrupted(t *testing.T) {
	for _, tt := range []struct {
		name  string
		begun bool
	}{{"under way", true}, {"due", false}} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const interval = time.Hour
				f := newFakeEtcd()
				f.write(zoneOf(t, 50))
				var log bytes.Buffer
				h := follow(t, f, func(c *Config) {
					c.ReconcileInterval, c.Logger = interval, slog.New(slog.NewTextHandler(&log, nil))
				})
				synctest.Wait()
				f.unseen(func() { f.write(alone(t, 1, "lost")) })
				f.write(touch(t, 2, "seen"))
				synctest.Wait()
				log.Reset()

				// The client asks again and again until etcd is back.
				back := make(chan struct{})
				if tt.begun {
					begun := make(chan struct{})
					f.onceListing(func() { close(begun); <-back })
					<-begun
				}
				f.set(func(f *fakeEtcd) { f.down = true })
				time.Sleep(2 * interval)
				wantState(t, h, Disconnected)
				f.set(func(f *fakeEtcd) { f.down = false })
				close(back)
				time.Sleep(2 * reconcileRetry)
				if s := wantState(t, h, Synced); s.Repairs != 1 {
					t.Errorf("%d repairs, want 1", s.Repairs)
				}
				wantKey(t, h, 1, "lost")
				var told []string
				for line := range strings.Lines(log.String()) {
					_, msg, _ := strings.Cut(line, "msg=")
					told = append(told, msg)
				}
				want := []string{"following etcd is interrupted", "following etcd again", "records differed from etcd"}
				if err := begin(told, want); err != nil {
					t.Errorf("told %q: %v", told, err)
				}
			})
		})
	}
}

// A comparison that ended with its watch is made up for soon.
func TestComparisonIsMadeUpFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEtcd()
		f.write(zoneOf(t, 50))
		h := follow(t, f, func(c *Config) { c.ReconcileInterval = time.Hour })
		synctest.Wait()
		f.unseen(func() { f.write(alone(t, 1, "lost")) })
		begun, back := make(chan struct{}), make(chan struct{})
		f.onceListing(func() { f.cut(); close(begun); <-back })
		<-begun
		synctest.Wait() // or the comparison might be over before the end of the watch is seen
		close(back)
		time.Sleep(2 * reconcileRetry)
		wantKey(t, h, 1, "lost")
		if s := wantState(t, h, Synced); s.Repairs != 1 || s.Resyncs[CausePeriodic] != 2 {
			t.Errorf("status = %+v, want one repair by the second comparison", s)
		}
	})
}

// Each change of a zone counts in its object: what does not follow from what is
// served is found out by the first change, or by the next question.
func TestOtherHistory(t *testing.T) {
	const other = "/dkim/v1/other"
	for _, tt := range []struct {
		name string
		do   func(t *testing.T, f *fakeEtcd, backup int64)
	}{
		{"the watch loses changes", func(t *testing.T, f *fakeEtcd, _ int64) {
			f.unseen(func() {
				f.write(touch(t, 1, "new"))
				f.write(touch(t, 2, ""))
			})
			f.write(touch(t, 3, "new"))
		}},
		{"back, and on by other changes of the zone", func(t *testing.T, f *fakeEtcd, backup int64) {
			ours := f.rev
			f.rewind(backup)
			f.write(touch(t, 1, "new"))
			f.write(touch(t, 2, ""))
			for f.rev < ours {
				f.write(map[string][]byte{other: {1}})
			}
			f.write(touch(t, 3, "new"))
		}},
		{"back, and on by changes elsewhere", func(t *testing.T, f *fakeEtcd, backup int64) {
			ours := f.rev
			f.rewind(backup)
			f.write(touch(t, 1, "new"))
			f.write(touch(t, 2, ""))
			f.write(touch(t, 3, "new"))
			for f.rev <= ours {
				f.write(map[string][]byte{other: {1}})
			}
		}},
		{"back, and on with the zone's last change where it was", func(t *testing.T, f *fakeEtcd, backup int64) {
			ours := f.rev
			f.rewind(backup)
			f.write(touch(t, 1, "new"))
			kvs := touch(t, 2, "")
			maps.Copy(kvs, touch(t, 3, "new"))
			for f.rev < ours-1 {
				f.write(map[string][]byte{other: {1}})
			}
			f.write(kvs)
		}},
	} {
		for _, down := range []bool{false, true} {
			name := tt.name
			if down {
				name += ", while the node is down"
			}
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFakeEtcd()
					f.write(zoneOf(t, 50))
					dir := t.TempDir()
					edit := func(c *Config) { c.Dir = dir }
					h := follow(t, f, edit)
					synctest.Wait()
					backup := f.rev
					for range 7 {
						f.write(touch(t, 4, "undone"))
						f.write(touch(t, 4, "key4"))
					}
					synctest.Wait()
					if down {
						if err := h.Release(); err != nil {
							t.Fatal(err)
						}
						tt.do(t, f, backup)
						h = follow(t, f, edit)
					} else {
						tt.do(t, f, backup)
					}
					time.Sleep(3 * heartbeatInterval)
					s := wantState(t, h, Synced)
					if lost := down && strings.Contains(tt.name, "loses"); lost != (s.Resyncs[CauseHistory] == 0) || s.Resyncs[CauseHistory] > 1 {
						t.Errorf("resyncs = %v, want one because of the history", s.Resyncs)
					}
					wantKey(t, h, 1, "new")
					wantKey(t, h, 2, "")
					wantKey(t, h, 3, "new")
					wantKey(t, h, 4, "key4")
				})
			})
		}
	}
}

// begin reports an error unless each line begins, but for quotes, as wanted.
func begin(lines, want []string) error {
	if len(lines) != len(want) {
		return errors.New("not as many lines as wanted")
	}
	for i, line := range lines {
		if !strings.HasPrefix(strings.TrimPrefix(line, `"`), want[i]) {
			return errors.New("not " + want[i])
		}
	}
	return nil
}
