package robustness_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/test/harness"
)

const (
	changing = 32  // names that are written all the time
	fixed    = 300 // names that stay as they are
	names    = changing + fixed

	writeTimeout  = 2 * time.Second
	writeInterval = 5 * time.Millisecond
)

// model is what was written to the zone: for each name, versions counted from
// 1, each a key that tells its number, or a deletion.
type model struct {
	client *clientv3.Client

	mu    sync.Mutex
	names [names]history
	top   uint64 // the newest version of any name
}

type history struct {
	versions map[uint64]version
	acked    []ack  // in the order of both
	current  uint64 // the newest that etcd is known to have
	revision int64  // of the key in etcd, 0 without one
}

// ack is a version that etcd is known to have had, from a revision on.
type ack struct {
	revision int64
	version  uint64
}

type version struct{ deleted bool }

func newModel(client *clientv3.Client) *model {
	m := &model{client: client}
	for i := range m.names {
		m.names[i].versions = make(map[uint64]version)
	}
	return m
}

// owner is the i-th name, without the zone.
func owner(i int) string { return fmt.Sprintf("selector1-d%d._domainkey", i) }

// keyOf is the public key that stands for a version of a name.
func keyOf(i int, v uint64) []byte {
	key := make([]byte, 32)
	binary.BigEndian.PutUint64(key, v)
	binary.BigEndian.PutUint64(key[8:], uint64(i))
	binary.BigEndian.PutUint64(key[16:], ^v)
	return key
}

// versionOf is the inverse of keyOf.
func versionOf(i int, key []byte) (uint64, error) {
	if len(key) != 32 {
		return 0, fmt.Errorf("a key of %d octets", len(key))
	}
	v := binary.BigEndian.Uint64(key)
	if got := binary.BigEndian.Uint64(key[8:]); got != uint64(i) || binary.BigEndian.Uint64(key[16:]) != ^v {
		return 0, fmt.Errorf("key %x, which is of name %d", key, got)
	}
	return v, nil
}

func recordValue(i int, v uint64) (string, error) {
	b, err := schema.PublicRecord{KeyType: dkimrecord.Ed25519, PublicKey: keyOf(i, v), TTL: 60, UpdateTime: time.Now()}.Marshal()
	return string(b), err
}

// fill writes the zone and the first version of each name.
func (m *model) fill(t *testing.T) {
	t.Helper()
	m.putZone(t, newZone())
	const batch = 100 // of the 128 operations that a transaction may have
	for first := 0; first < names; first += batch {
		var ops []clientv3.Op
		last := min(first+batch, names)
		for i := first; i < last; i++ {
			value, err := recordValue(i, 1)
			if err != nil {
				t.Fatal(err)
			}
			ops = append(ops, clientv3.OpPut(schema.RecordKey(zone, owner(i)), value))
		}
		revision := m.do(t, "write names", append(ops, clientv3.OpPut(schema.ApexKey(zone), "", clientv3.WithIgnoreValue()))...)
		for i := first; i < last; i++ {
			m.names[i] = history{versions: map[uint64]version{1: {}}, acked: []ack{{revision, 1}}, current: 1, revision: revision}
		}
	}
	m.top = 1
}

func (m *model) putZone(t *testing.T, a schema.Apex) {
	t.Helper()
	b, err := a.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	m.do(t, "write the zone", clientv3.OpPut(schema.ApexKey(zone), string(b)))
}

// do writes to etcd behind the model's back.
func (m *model) do(t *testing.T, what string, ops ...clientv3.Op) (revision int64) {
	t.Helper()
	harness.Eventually(t, limit, what, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), writeTimeout)
		defer cancel()
		resp, err := m.client.Txn(ctx).Then(ops...).Commit()
		if err == nil {
			revision = resp.Header.GetRevision()
		}
		return err
	})
	return revision
}

func (m *model) mustWrite(t *testing.T, i int, deleted bool) {
	t.Helper()
	harness.Eventually(t, limit, "write "+owner(i), func() error { return m.write(t.Context(), i, deleted) })
}

// write writes the next version of a name. After an error, etcd may have it or
// not, and may even take it later: which of both will be known when the name is
// written the next time.
func (m *model) write(ctx context.Context, i int, deleted bool) error {
	m.mu.Lock()
	h := &m.names[i]
	m.top++
	v, revision := m.top, h.revision
	h.versions[v] = version{deleted: deleted}
	m.mu.Unlock()

	key, apex := schema.RecordKey(zone, owner(i)), schema.ApexKey(zone)
	op := clientv3.OpDelete(key)
	if !deleted {
		value, err := recordValue(i, v)
		if err != nil {
			return err
		}
		op = clientv3.OpPut(key, value)
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	// No write overtakes another: each is made upon the one before.
	resp, err := m.client.Txn(clientv3.WithRequireLeader(ctx)).
		If(clientv3.Compare(clientv3.ModRevision(key), "=", revision)).
		Then(op, clientv3.OpPut(apex, "", clientv3.WithIgnoreValue())).
		Else(clientv3.OpGet(key)).Commit()
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if resp.Succeeded {
		h.acknowledge(resp.Header.GetRevision(), v)
		return nil
	}
	// A write that had failed for all we knew was done.
	delete(h.versions, v)
	return h.adopt(i, resp.Responses[0].GetResponseRange().GetKvs())
}

// adopt makes what etcd has the current version.
func (h *history) adopt(i int, kvs []*mvccpb.KeyValue) error {
	if len(kvs) == 0 {
		h.revision = 0
		for v, ver := range h.versions {
			if ver.deleted && v > h.current {
				h.current = v
			}
		}
		return errors.New("deleted by a write that failed")
	}
	rec, err := schema.UnmarshalPublicRecord(kvs[0].Value)
	if err != nil {
		return err
	}
	v, err := versionOf(i, rec.PublicKey)
	if err != nil {
		return err
	}
	h.acknowledge(kvs[0].ModRevision, v)
	return errors.New("written by a write that failed")
}

// acknowledge notes that etcd has had a version since a revision. Another writer
// may have noted a later one already.
func (h *history) acknowledge(revision int64, v uint64) {
	if n := len(h.acked); n > 0 && revision <= h.acked[n-1].revision {
		return
	}
	h.acked = append(h.acked, ack{revision, v})
	h.current, h.revision = v, revision
	if h.versions[v].deleted {
		h.revision = 0
	}
}

// writing writes to the changing names until the function that it returns is
// called. Faults of etcd make it pause.
func (m *model) writing(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	const writers = 2
	for w := range writers {
		done.Go(func() {
			tick := time.NewTicker(writeInterval)
			defer tick.Stop()
			for ctx.Err() == nil {
				i := rand.N(changing/writers)*writers + w
				_ = m.write(ctx, i, rand.N(8) == 0) // settle finds out
				select {
				case <-tick.C:
				case <-ctx.Done():
				}
			}
		})
	}
	stop = sync.OnceFunc(func() { cancel(); done.Wait() })
	t.Cleanup(stop)
	return stop
}

// settle writes all changing names once more and waits until the nodes serve
// what etcd has. From then on nothing that was before may be seen.
func (m *model) settle(t *testing.T, nodes ...*node) {
	t.Helper()
	for i := range changing {
		m.mustWrite(t, i, rand.N(8) == 0)
	}
	m.waitServed(t, nodes...)
}

func (m *model) waitServed(t *testing.T, nodes ...*node) {
	t.Helper()
	for _, n := range nodes {
		harness.Eventually(t, limit, n.name+" serves what was written", func() error {
			for i := range names {
				m.mu.Lock()
				h := &m.names[i]
				current, deleted := h.current, h.versions[h.current].deleted
				m.mu.Unlock()
				got, found, err := ask(n.dns, owner(i), answerTimeout)
				switch {
				case err != nil:
					return err
				case found == deleted:
					return fmt.Errorf("%s is there: %v; want %v", owner(i), found, !deleted)
				case !found:
					continue
				}
				if v, err := versionOf(i, got); err != nil {
					return err
				} else if v != current {
					return fmt.Errorf("%s has version %d, want %d", owner(i), v, current)
				}
			}
			return nil
		})
		m.mu.Lock()
		if n.seen.rewinding.Load() {
			m.forgetUndone()
			n.seen.forget()
		}
		for i := range names {
			n.seen.raise(i, m.names[i].current)
		}
		m.mu.Unlock()
		n.seen.set(&n.seen.rewinding, false)
	}
}

// forgetUndone removes the versions that went with what a backup replaced.
func (m *model) forgetUndone() {
	for i := range m.names {
		h := &m.names[i]
		for v := range h.versions {
			if v > h.current {
				delete(h.versions, v)
			}
		}
	}
}

// rewound takes over what etcd has now, after a backup was put back.
func (m *model) rewound(t *testing.T) {
	t.Helper()
	var kvs []*mvccpb.KeyValue
	harness.Eventually(t, limit, "read what is in the backup", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), writeTimeout)
		defer cancel()
		resp, err := m.client.Get(ctx, schema.RecordPrefix(zone), clientv3.WithPrefix())
		if err == nil {
			kvs = resp.Kvs
		}
		return err
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.names {
		h := &m.names[i]
		h.acked = nil // their revisions are of another time
		j := slices.IndexFunc(kvs, func(kv *mvccpb.KeyValue) bool { return strings.HasSuffix(string(kv.Key), "/"+owner(i)) })
		if j < 0 {
			h.current, h.revision = 0, 0
			h.versions[0] = version{deleted: true}
			continue
		}
		rec, err := schema.UnmarshalPublicRecord(kvs[j].Value)
		if err != nil {
			t.Fatal(err)
		}
		if h.current, err = versionOf(i, rec.PublicKey); err != nil {
			t.Fatal(err)
		}
		h.revision = kvs[j].ModRevision
	}
}

// check judges an answer to a question that was asked when floor was the
// oldest version that might be answered, and serial had been served: that is a
// revision of etcd, and all that was written up to it must be served, too.
func (m *model) check(i int, floor, serial, v uint64, found bool) (seen uint64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := &m.names[i]
	for _, a := range slices.Backward(h.acked) {
		if a.revision <= int64(serial) {
			floor = max(floor, a.version)
			break
		}
	}
	if found {
		ver, written := h.versions[v]
		switch {
		case !written || ver.deleted:
			return 0, fmt.Errorf("%s: version %d was never written", owner(i), v)
		case v < floor:
			return 0, fmt.Errorf("%s: version %d after version %d", owner(i), v, floor)
		}
		return v, nil
	}
	// Which deletion it was is not told: the oldest that it can be.
	for v, ver := range h.versions {
		if ver.deleted && v >= floor && (seen == 0 || v < seen) {
			seen = v
		}
	}
	if _, undone := h.versions[0]; seen == 0 && !(undone && floor == 0) {
		return 0, fmt.Errorf("%s: denied, although it was not deleted since version %d", owner(i), floor)
	}
	return seen, nil
}
