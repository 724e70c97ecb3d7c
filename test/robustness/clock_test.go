package robustness_test

import (
	"testing"
	"time"

	"github.com/dkimzone/dkimzone/test/harness"
)

const (
	served      = `coredns_dkim_write_to_served_seconds_`
	servedLimit = 24 * time.Hour
)

// Clocks that jump, of a DNS node and of etcd.
func TestClock(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1)
	n := s.nodes[0]
	clock := n.Clock(t)
	// writes lets writes be served for a while, and returns the mean of the
	// times from write to served, in seconds.
	writes := func(t *testing.T) float64 {
		t.Helper()
		sum, count := n.mustMetric(t, served+"sum"), n.mustMetric(t, served+"count")
		stop := s.model.writing(t)
		last(t)
		stop()
		s.model.settle(t, n)
		s.fresh(t, n)
		return (n.mustMetric(t, served+"sum") - sum) / (n.mustMetric(t, served+"count") - count)
	}

	t.Run("forward", func(t *testing.T) {
		clock.Set(t, 30*time.Hour, 0)
		if mean := writes(t); mean < 0.9*servedLimit.Seconds() || mean > servedLimit.Seconds()+1 {
			t.Errorf("write to served took %v s on average, want %v, the most there is", mean, servedLimit)
		}
		n.tells(t, nothing...)
	})

	t.Run("backward", func(t *testing.T) {
		clock.Set(t, -30*time.Hour, 0)
		if mean := writes(t); mean != 0 {
			t.Errorf("write to served took %v s on average, want 0", mean)
		}
		clock.Set(t, 0, 0)
		writes(t)
		n.tells(t, nothing...)
	})

	// As certificates are not valid then, no new connection is made.
	t.Run("past all certificates", func(t *testing.T) {
		clock.Set(t, 20*365*24*time.Hour, 0)
		stop := s.model.writing(t)
		last(t)
		n.waitState(t, "synced") // connections live on
		n.tells(t, nothing...)
		n.each((*harness.Proxy).Cut)
		n.each((*harness.Proxy).Restore)
		s.noticed(t, n)
		last(t)
		clock.Set(t, 0, 0)
		stop()
		s.model.settle(t, n)
		s.fresh(t, n)
		n.tells(t, episode...)
	})

	t.Run("all timers at once", func(t *testing.T) {
		clock.Set(t, 0, 5*time.Hour)
		writes(t)
		n.tells(t, atMost...)
	})

	t.Run("restarted when the file is of the future", func(t *testing.T) {
		clock.Set(t, 30*time.Hour, 5*time.Hour)
		writes(t)
		n.restarting(t, func() {
			n.Terminate()
			n.Exit(t, limit)
			n.each((*harness.Proxy).Cut)
			n.start() // by the right time
			n.waitReady(t)
		})
		n.waitState(t, "disconnected")
		if v := n.mustMetric(t, stale); v != 0 {
			t.Errorf("stale by %v s, want 0 of a file of the future", v)
		}
		s.model.waitServed(t, n)
		n.each((*harness.Proxy).Restore)
		s.model.settle(t, n)
		s.fresh(t, n)
		n.tells(t, []string{loaded}, []string{loaded, interrupted, followed})
	})

	// Not further back: before its certificates begin, a member takes no new
	// connections.
	t.Run("of etcd", func(t *testing.T) {
		var clocks []*harness.Clock
		for _, m := range s.etcd.Members {
			clocks = append(clocks, m.Process.Clock(t))
		}
		for i, ahead := range []time.Duration{30 * time.Hour, -30 * time.Minute, 0} {
			clocks[i].Set(t, ahead, 0)
		}
		writes(t)
		leader := s.leader(t)
		clocks[leader].Set(t, -30*time.Minute, 0)
		writes(t)
		clocks[leader].Set(t, 30*time.Hour, 0)
		writes(t)
		n.tells(t, nothing...)
	})
}
