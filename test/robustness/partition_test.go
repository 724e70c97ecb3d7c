package robustness_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/dkimzone/dkimzone/test/harness"
)

// Members of etcd that no longer reach each other, although all of them reach
// the DNS nodes.
func TestPartition(t *testing.T) {
	t.Parallel()
	s := newSiteOf(t, harness.StartDivisibleCluster(t, harness.NewPKI(t)), 2)
	all, one := s.nodes[0], s.nodes[1]

	for name, member := range map[string]func() int{
		"leader alone":   func() int { return s.leader(t) },
		"follower alone": func() int { return (s.leader(t) + 1) % len(s.etcd.Members) },
	} {
		t.Run(name, func(t *testing.T) {
			stop := s.model.writing(t)
			s.isolate(t, member())
			last(t)
			stop()
			// It lasts, and nobody stays behind.
			s.model.settle(t, s.nodes...)
			s.fresh(t, s.nodes...)
			stop = s.model.writing(t)
			s.etcd.Heal()
			stop()
			s.model.settle(t, s.nodes...)
			s.fresh(t, s.nodes...)
			for _, n := range s.nodes {
				n.tells(t, atMost...)
			}
		})
	}

	t.Run("alone, and the only one in reach", func(t *testing.T) {
		stop := s.model.writing(t)
		i := s.leader(t)
		s.isolate(t, i)
		for j, p := range one.proxies {
			if j != i {
				p.Blackhole()
			}
		}
		last(t)
		s.noticed(t, one)
		stop()
		s.model.settle(t, all)
		s.fresh(t, all)
		s.etcd.Heal() // which makes what is in reach good again
		s.model.settle(t, s.nodes...)
		s.fresh(t, s.nodes...)
		one.each((*harness.Proxy).Restore)
		s.model.settle(t, s.nodes...)
		s.fresh(t, s.nodes...)
		one.tells(t, episode...)
		all.tells(t, atMost...)
	})
}

// isolate cuts a member off from the others and waits until it knows.
func (s *site) isolate(t *testing.T, i int) {
	t.Helper()
	s.etcd.Isolate(i)
	harness.Eventually(t, limit, "a member without a leader", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), writeTimeout)
		defer cancel()
		st, err := s.model.client.Status(ctx, s.etcd.Members[i].URL)
		if err == nil && st.Leader != 0 {
			err = fmt.Errorf("it follows %x", st.Leader)
		}
		return err
	})
}

// fresh waits until nodes follow etcd and know that they have all of it.
func (s *site) fresh(t *testing.T, nodes ...*node) {
	t.Helper()
	for _, n := range nodes {
		n.waitState(t, "synced")
		n.waitMetric(t, stale, func(v float64) bool { return v < 5 })
		if err := n.isReady(); err != nil {
			t.Error(err)
		}
	}
}
