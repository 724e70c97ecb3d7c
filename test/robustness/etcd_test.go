package robustness_test

import (
	"context"
	"errors"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/test/harness"
)

const (
	stale   = `coredns_dkim_staleness_seconds{zone="keys.example.net."}`
	resyncs = "coredns_dkim_resyncs_total"
)

// What a node may tell of a fault.
var (
	nothing     = [][]string{{}}
	episode     = [][]string{{interrupted, followed}}
	atMost      = [][]string{{}, {interrupted, followed}}
	isCompacted = [][]string{{interrupted, listing("compacted"), followed}}
)

// fault is something that breaks under two nodes that are asked, while etcd is
// written.
type fault struct {
	name  string
	do    func(*site, *testing.T)
	tells [][]string
}

// What can happen to etcd.
func TestEtcd(t *testing.T) {
	t.Parallel()
	newSite(t, 2).suffer(t, []fault{
		{"leader killed", (*site).killLeader, atMost},
		{"leader paused", (*site).pauseLeader, atMost},
		{"all members killed", (*site).killAll, episode},
		{"no space", (*site).noSpace, nothing},
	})
}

// What can happen to the network between nodes and etcd.
func TestNetwork(t *testing.T) {
	t.Parallel()
	newSite(t, 2).suffer(t, []fault{
		{"cut off and compacted", (*site).cutAndCompact, isCompacted},
		{"packets lost, and connections hung", (*site).blackholeAndHang, episode},
	})
}

// suffer lets faults happen one after the other. Each must pass and be told,
// and nothing may be left of any.
func (s *site) suffer(t *testing.T, faults []fault) {
	t.Helper()
	before := make(map[*node]size)
	for _, n := range s.nodes {
		before[n] = n.size(t)
	}
	for _, f := range faults {
		ok := t.Run(f.name, func(t *testing.T) {
			stop := s.model.writing(t)
			f.do(s, t)
			stop()
			s.model.settle(t, s.nodes...)
			s.fresh(t, s.nodes...)
			for _, n := range s.nodes {
				n.tells(t, f.tells...)
			}
		})
		if !ok {
			return
		}
	}
	for _, n := range s.nodes {
		n.waitSize(t, before[n])
		if v := n.mustMetric(t, "coredns_dkim_reconcile_repairs_total"); v != 0 {
			t.Errorf("%s: the watch left %v records wrong", n.name, v)
		}
	}
}

// ready checks that no node thinks that it cannot answer.
func (s *site) ready(t *testing.T) {
	t.Helper()
	for _, n := range s.nodes {
		if err := n.isReady(); err != nil {
			t.Error(err)
		}
	}
}

func (s *site) killLeader(t *testing.T) {
	i := s.leader(t)
	s.etcd.Members[i].Process.Kill()
	last(t)
	s.model.mustWrite(t, 0, false) // there is another leader
	s.ready(t)
	s.etcd.Start(s.t, i)
}

func (s *site) pauseLeader(t *testing.T) {
	m := s.etcd.Members[s.leader(t)]
	m.Process.Pause()
	last(t)
	s.model.mustWrite(t, 0, false)
	s.ready(t)
	m.Process.Resume()
}

func (s *site) killAll(t *testing.T) {
	s.etcd.Kill()
	last(t)
	s.noticed(t, s.nodes...)
	for i := range s.etcd.Members {
		s.etcd.Start(s.t, i)
	}
}

// noticed checks that nodes know, and tell, that they may be behind.
func (s *site) noticed(t *testing.T, nodes ...*node) {
	t.Helper()
	for _, n := range nodes {
		n.waitState(t, "disconnected")
		n.waitMetric(t, stale, func(v float64) bool { return v > 2 })
	}
	s.ready(t)
}

// cutAndCompact closes the connections, and has etcd forget what it wrote
// meanwhile.
func (s *site) cutAndCompact(t *testing.T) {
	const compacted = resyncs + `{cause="compacted"`
	before := make(map[*node]float64)
	for _, n := range s.nodes {
		before[n] = n.mustMetric(t, compacted)
		n.each((*harness.Proxy).Cut)
	}
	for i := range changing {
		s.model.mustWrite(t, i+changing, i%8 == 0)
	}
	last(t)
	s.noticed(t, s.nodes...)
	s.compact(t)
	for _, n := range s.nodes {
		n.each((*harness.Proxy).Restore)
		n.waitMetric(t, compacted, func(v float64) bool { return v > before[n] })
	}
}

func (s *site) compact(t *testing.T) {
	t.Helper()
	root := s.etcd.Client(t, "root")
	harness.Eventually(t, limit, "compact", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), writeTimeout)
		defer cancel()
		resp, err := root.Get(ctx, schema.ApexKey(zone))
		if err == nil {
			_, err = root.Compact(ctx, resp.Header.GetRevision())
		}
		return err
	})
}

// blackholeAndHang cuts one node off without a word. The other one has
// connections that nothing ever comes from again: it has to find that out
// itself, and to connect anew.
func (s *site) blackholeAndHang(t *testing.T) {
	s.nodes[0].each((*harness.Proxy).Blackhole)
	s.nodes[1].each((*harness.Proxy).Hang)
	last(t)
	s.noticed(t, s.nodes[0])
	s.nodes[0].each((*harness.Proxy).Restore)
}

// noSpace raises the alarm that etcd raises at its quota.
func (s *site) noSpace(t *testing.T) {
	root := s.etcd.Client(t, "root")
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	st, err := root.Status(ctx, s.etcd.Members[0].URL)
	if err != nil {
		t.Fatal(err)
	}
	alarm := &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE, MemberID: st.Header.MemberId}
	if _, err := pb.NewMaintenanceClient(root.ActiveConnection()).Alarm(ctx, alarm); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, limit, "writes are refused", func() error {
		if err := s.model.write(ctx, 0, false); !errors.Is(err, rpctypes.ErrNoSpace) {
			return errors.New("not refused")
		}
		return nil
	})
	last(t)
	s.fresh(t, s.nodes...)
	if _, err := root.AlarmDisarm(ctx, &clientv3.AlarmMember{}); err != nil {
		t.Fatal(err)
	}
}
