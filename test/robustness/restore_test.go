package robustness_test

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/test/harness"
)

// Backups that are put back, and another cluster behind the same addresses.
func TestRestore(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1)
	n := s.nodes[0]

	backup := s.backup()
	for i := range 2 * changing { // undone by the backup, and more than is written before the node asks
		s.model.mustWrite(t, changing+i, i == 2)
	}
	s.model.settle(t, n)
	n.tells(t, atMost...)

	t.Run("revision goes back", func(t *testing.T) {
		s.restore(t, backup)
		s.model.settle(t, n)
		s.fresh(t, n)
		n.listed(t, "revision")
		n.tells(t, []string{listing("revision")}, []string{interrupted, listing("revision"), followed})
	})

	t.Run("revision goes back and forth while cut off", func(t *testing.T) {
		// Whatever was written was a change of the zone, so that its object has been
		// written as often at each revision. From the outside this is a cluster that
		// went on: only the comparison of all records finds out.
		for i := range 10 {
			s.model.mustWrite(t, changing+i, i == 2)
		}
		s.model.settle(t, n)
		n.each((*harness.Proxy).Cut)
		s.restore(t, backup)
		s.writePast(t, n)
		n.each((*harness.Proxy).Restore)
		s.model.settle(t, n)
		n.waitMetric(t, "coredns_dkim_reconcile_repairs_total", func(v float64) bool { return v > 0 })
		s.fresh(t, n)
		// Nothing is compared while following is interrupted.
		n.tells(t, []string{repaired}, []string{interrupted, followed, repaired})
	})

	t.Run("the same, and not only by changes of the zone", func(t *testing.T) {
		for i := range 10 {
			s.model.mustWrite(t, changing+i, i == 2)
		}
		s.model.settle(t, n)
		n.each((*harness.Proxy).Cut)
		s.restore(t, backup)
		s.model.do(t, "write elsewhere", clientv3.OpPut(schema.Root+"elsewhere", ""))
		s.writePast(t, n)
		n.each((*harness.Proxy).Restore)
		s.model.settle(t, n)
		s.fresh(t, n)
		n.listed(t, "history")
		n.tells(t, []string{listing("history")}, []string{interrupted, listing("history"), followed})
	})

	t.Run("another cluster", func(t *testing.T) {
		other := harness.StartCluster(t, s.etcd.PKI)
		client := other.Client(t, "dkimd")
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		all, err := s.model.client.Get(ctx, schema.ZonePrefix(zone), clientv3.WithPrefix())
		if err != nil {
			t.Fatal(err)
		}
		const batch = 100 // of the 128 operations that a transaction may have
		for kvs := range slices.Chunk(all.Kvs, batch) {
			var ops []clientv3.Op
			for _, kv := range kvs {
				ops = append(ops, clientv3.OpPut(string(kv.Key), string(kv.Value)))
			}
			if _, err := client.Txn(ctx).Then(ops...).Commit(); err != nil {
				t.Fatal(err)
			}
		}
		s.model.client = client
		n.seen.set(&n.seen.rewinding, true)
		s.model.rewound(t)
		for i, p := range n.proxies {
			p.SetTarget(strings.TrimPrefix(other.Members[i].URL, "https://"))
		}
		s.model.settle(t, n)
		s.fresh(t, n)
		n.listed(t, "cluster")
		n.tells(t, []string{listing("cluster")}, []string{interrupted, listing("cluster"), followed})
		n.seen.set(&n.seen.down, true) // the other cluster ends with this test
	})
}

// writePast writes until etcd is past the revision that a node serves.
func (s *site) writePast(t *testing.T, n *node) {
	t.Helper()
	served := n.mustMetric(t, "coredns_dkim_revision")
	for revision := int64(0); float64(revision) <= served; {
		for i := range changing {
			s.model.mustWrite(t, i, false)
		}
		revision = s.model.names[0].revision
	}
}

// listed checks that the zone was listed once for a cause.
func (n *node) listed(t *testing.T, cause string) {
	t.Helper()
	if v := n.mustMetric(t, resyncs+`{cause="`+cause+`"`); v != 1 {
		t.Errorf("%s listed the zone %v times because of %s, want once", n.name, v, cause)
	}
}

// backup stops etcd, copies its data, and starts it again.
func (s *site) backup() (dir string) {
	s.t.Helper()
	dir = s.t.TempDir()
	s.etcd.Kill()
	for i, m := range s.etcd.Members {
		if err := os.CopyFS(dir+"/"+string(rune('0'+i)), os.DirFS(m.DataDir)); err != nil {
			s.t.Fatal(err)
		}
		s.etcd.Start(s.t, i)
	}
	return dir
}

// restore puts a backup in the place of what etcd has.
func (s *site) restore(t *testing.T, backup string) {
	t.Helper()
	for _, n := range s.nodes {
		n.seen.set(&n.seen.rewinding, true)
	}
	s.etcd.Kill()
	for i, m := range s.etcd.Members {
		if err := os.RemoveAll(m.DataDir); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(m.DataDir, os.DirFS(backup+"/"+string(rune('0'+i)))); err != nil {
			t.Fatal(err)
		}
	}
	for i := range s.etcd.Members {
		s.etcd.Start(s.t, i)
	}
	s.model.rewound(t)
}
