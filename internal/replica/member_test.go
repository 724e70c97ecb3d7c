package replica

import (
	"bytes"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// One of three members does not answer, as when it is stopped or cut off: that
// is no reason to call the zone stale, time and again.
func TestSilentMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEtcd()
		f.write(zoneOf(t, 3))
		var log bytes.Buffer
		h := follow(t, f, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
		synctest.Wait()
		before := log.Len()
		var asked atomic.Int64
		f.before(func(clientv3.Op) error {
			if asked.Add(1)%3 != 0 {
				time.Sleep(2 * heartbeatTimeout)
			}
			return nil
		})
		for range 60 {
			time.Sleep(time.Second)
			if s := wantState(t, h, Synced); s.Staleness > 2*heartbeatInterval+heartbeatAsked*heartbeatAgain {
				t.Fatalf("stale by %v", s.Staleness)
			}
		}
		f.before(nil)
		time.Sleep(2 * heartbeatTimeout) // the last of those that sleep
		if s := log.String()[before:]; s != "" {
			t.Errorf("logged:\n%s", s)
		}
	})
}

// A watch that etcd does not begin is tried again, and that is one interruption.
func TestWatchDoesNotBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEtcd()
		f.write(zoneOf(t, 3))
		var log bytes.Buffer
		h := follow(t, f, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
		synctest.Wait()
		log.Reset()
		f.set(func(f *fakeEtcd) { f.silent = true })
		f.cut()
		rev := f.write(touch(t, 1, "new"))
		time.Sleep(time.Minute)
		if s := wantState(t, h, Disconnected); s.Staleness < time.Minute-2*heartbeatInterval {
			t.Errorf("stale by %v", s.Staleness)
		}
		f.set(func(f *fakeEtcd) { f.silent = false })
		if err := h.WaitRevision(t.Context(), rev); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * heartbeatInterval)
		wantState(t, h, Synced)
		wantKey(t, h, 1, "new")
		for _, line := range []string{"following etcd is interrupted", "following etcd again"} {
			if n := strings.Count(log.String(), line); n != 1 {
				t.Errorf("logged %q %d times, want once:\n%s", line, n, log.String())
			}
		}
		if n := h.Status().Resyncs[CauseHung]; n != 0 {
			t.Errorf("the zone was listed %d times, want no listing", n)
		}
	})
}
