package robustness_test

import (
	"path/filepath"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/config"
	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/test/harness"
)

const held = `coredns_dkim_held_deletions{zone="keys.example.net."}`

// Most of a zone vanishes from etcd: nothing is denied before an operator says
// that it is meant.
func TestMassDeletion(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1)
	n := s.nodes[0]
	operate := s.operator(t)

	t.Run("while cut off", func(t *testing.T) {
		n.each((*harness.Proxy).Cut)
		// One transaction may have 128 operations.
		var gone []int
		for i := changing; i < changing+200; i++ {
			gone = append(gone, i)
		}
		s.model.wipe(t, gone)
		s.compact(t)
		n.each((*harness.Proxy).Restore)
		s.checkHeld(t, n, 200)
		s.accept(t, n, operate, gone)
		n.tells(t, []string{listing("compacted"), heldNow, heldNoMore},
			[]string{interrupted, listing("compacted"), heldNow, followed, heldNoMore})
	})

	t.Run("under the watch", func(t *testing.T) {
		var gone []int
		for i := changing + 200; i < changing+280; i++ {
			gone = append(gone, i)
		}
		s.model.wipe(t, gone)
		s.checkHeld(t, n, 80)
		s.accept(t, n, operate, gone)
		n.tells(t, []string{listing("deleted"), heldNow, heldNoMore})
	})

	// Without a zone object there is nowhere to confirm: the hold ends when the
	// object is there again.
	t.Run("of the zone object", func(t *testing.T) {
		s.model.do(t, "delete the zone object", clientv3.OpDelete(schema.ApexKey(zone)))
		s.checkHeld(t, n, 1)
		operate(t, "zone", "create", zone, "--name-server", "ns1."+zone+"=192.0.2.53")
		s.model.settle(t, n)
		s.fresh(t, n)
		n.waitMetric(t, held, func(v float64) bool { return v == 0 })
		n.tells(t, []string{listing("deleted"), heldNow, heldNoMore})
	})
}

// wipe deletes names without the model knowing: the answers must not change.
func (m *model) wipe(t *testing.T, gone []int) {
	t.Helper()
	for len(gone) > 0 {
		k := min(len(gone), 100)
		ops := []clientv3.Op{clientv3.OpPut(schema.ApexKey(zone), "", clientv3.WithIgnoreValue())}
		for _, i := range gone[:k] {
			ops = append(ops, clientv3.OpDelete(schema.RecordKey(zone, owner(i))))
		}
		m.do(t, "delete names", ops...)
		gone = gone[k:]
	}
}

// deleted tells the model that names are gone, and when: from now on they may
// be denied.
func (m *model) deleted(gone []int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, i := range gone {
		m.top++
		m.names[i].versions[m.top] = version{deleted: true}
		m.names[i].current, m.names[i].revision = m.top, 0
	}
}

// checkHeld waits until the node holds a resync.
func (s *site) checkHeld(t *testing.T, n *node, records float64) {
	t.Helper()
	n.waitState(t, "held")
	n.waitMetric(t, held, func(v float64) bool { return v >= records })
	last(t) // the queries that go on see to it that nothing is denied
	s.ready(t)
}

// accept lets an operator confirm a deletion, and waits until it is done.
func (s *site) accept(t *testing.T, n *node, operate func(*testing.T, ...string), gone []int) {
	t.Helper()
	s.model.deleted(gone)
	operate(t, "zone", "accept-deletions", zone)
	s.model.settle(t, n)
	s.fresh(t, n)
	n.waitMetric(t, held, func(v float64) bool { return v == 0 })
}

// operator starts a dkimd and returns what runs dkimctl.
func (s *site) operator(t *testing.T) func(t *testing.T, args ...string) {
	t.Helper()
	pki := s.etcd.PKI
	server, user, admin := pki.Server(t, "dkimd1", harness.Host()), pki.Client(t, "dkimd", "etcd"), pki.Client(t, "alice", "admin")
	grpc, metrics := harness.Addr(t), harness.Addr(t)
	args := []string{
		"serve", "--etcd-ca", user.CA, "--etcd-cert", user.Cert, "--etcd-key", user.Key,
		"--tls-ca", server.CA, "--tls-cert", server.Cert, "--tls-key", server.Key, "--kek-url", pki.KEK(t),
		"--grpc-listen", grpc, "--http-listen", harness.Addr(t), "--metrics-listen", metrics,
	}
	for _, url := range s.etcd.Endpoints() {
		args = append(args, "--etcd-endpoint", url)
	}
	harness.Start(t, "dkimd", harness.Dkimd, nil, args...)
	harness.Eventually(t, limit, "dkimd is ready", func() error {
		_, err := get("http://" + metrics + "/readyz")
		return err
	})
	file := filepath.Join(t.TempDir(), "dkimctl.yaml")
	if err := (config.Client{Address: grpc, CAFile: admin.CA, CertFile: admin.Cert, KeyFile: admin.Key}).Write(file); err != nil {
		t.Fatal(err)
	}
	return func(t *testing.T, args ...string) {
		t.Helper()
		r := harness.Run(t, t.TempDir(), harness.Dkimctl, []string{"DKIMCTL_CONFIG=" + file}, args...)
		if r.Code != 0 {
			t.Fatalf("dkimctl %v: exit code %d\n%s%s", args, r.Code, r.Stdout, r.Stderr)
		}
	}
}
