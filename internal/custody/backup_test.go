package custody_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/custody"
	"github.com/dkimzone/dkimzone/internal/envelope"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// bare is an etcd without zones.
func bare(t *testing.T) *site {
	t.Helper()
	s := newSite(t)
	if _, err := s.etcd.Delete(t.Context(), "\x00", clientv3.WithFromKey()); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *site) restorer(t *testing.T, urls ...string) *custody.Custody {
	t.Helper()
	gated := keystore.New(keystore.Gated(s.etcd), 10*time.Second)
	return custody.New(custody.Options{
		Store: gated, Direct: s.store, Sealer: sealerOf(t, gated, urls[0], urls[1:]...), Name: "restorer", Now: time.Now,
		Logger: slog.New(slog.DiscardHandler), Poll: 5 * time.Millisecond, RestoreSettle: time.Millisecond,
	})
}

// copyOf is a backup in memory.
type copyOf struct {
	custody.Header

	entries []keystore.Entry
}

func (s *site) backup(t *testing.T, url string) copyOf {
	t.Helper()
	var c copyOf
	err := s.restorer(t, url).Backup(t.Context(), func(h custody.Header) error { c.Header = h; return nil },
		func(e keystore.Entry) error { c.entries = append(c.entries, e); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// pieces gives n entries at a time, and fails after limit of them.
func (c copyOf) pieces(n, limit int, failure error) func() ([]keystore.Entry, error) {
	given := 0
	return func() ([]keystore.Entry, error) {
		if given >= limit {
			return nil, failure
		}
		from := given
		given = min(given+n, len(c.entries))
		return c.entries[from:given], nil
	}
}

func (c copyOf) all() func() ([]keystore.Entry, error) { return c.pieces(7, 1<<30, nil) }

// dump is all in etcd but who leads.
func (s *site) dump(t *testing.T) map[string]string {
	t.Helper()
	resp, err := s.etcd.Get(t.Context(), schema.Root, clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]string)
	for _, kv := range resp.Kvs {
		if !strings.HasPrefix(string(kv.Key), schema.LeaderPrefix()) {
			all[string(kv.Key)] = string(kv.Value)
		}
	}
	return all
}

func (s *site) serial(t *testing.T) (serial uint32, revision int64) {
	t.Helper()
	z, err := s.store.Zone(t.Context(), zoneName)
	if err != nil {
		t.Fatal(err)
	}
	return z.Serial(z.Revision), z.Revision
}

func TestRestore(t *testing.T) {
	kek := newKey(t)
	s := newSite(t, "acme", "beta")
	s.fill(t, sealerOf(t, s.store, kek), 150, "acme", "beta")
	if _, err := s.etcd.Put(t.Context(), schema.LeaderPrefix()+"/7", "old leader"); err != nil {
		t.Fatal(err)
	}
	c := s.backup(t, kek)
	want := s.dump(t)
	serial, _ := s.serial(t)

	// A new installation, where somebody leads and a zone was made.
	into := newSite(t)
	into.plain = s.plain
	if _, err := into.etcd.Put(t.Context(), schema.LeaderPrefix()+"/9", "leader"); err != nil {
		t.Fatal(err)
	}
	done, err := into.restorer(t, kek).Restore(t.Context(), c.Header, c.all())
	if err != nil || done.Entries != int64(len(c.entries)) || done.Entries < 2000 {
		t.Fatalf("Restore = %+v, %v; want %d entries", done, err, len(c.entries))
	}
	got := into.dump(t)
	apex := schema.ApexKey(zoneName)
	a, err := schema.UnmarshalApex([]byte(got[apex]))
	if err != nil || a.SerialOffset == 0 {
		t.Errorf("apex: %+v, %v; want one with a SerialOffset", a, err)
	}
	got[apex] = want[apex]
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the store after the restore (-want +got):\n%.2000s", diff)
	}
	resp, err := into.etcd.Get(t.Context(), schema.LeaderPrefix(), clientv3.WithPrefix())
	if err != nil || len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != "leader" {
		t.Errorf("leader after the restore: %v, %v; want it untouched", resp, err)
	}
	into.wantAll(t, kek, 1)
	if after, revision := into.serial(t); int32(after-serial) < 1<<27 || revision > int64(serial) {
		t.Errorf("serial %d at revision %d after %d", after, revision, serial)
	}
	// Life goes on, and serials with it.
	before, _ := into.serial(t)
	if err := into.provision(t.Context(), sealerOf(t, into.store, kek), "acme", "new.example"); err != nil {
		t.Fatal(err)
	}
	if after, _ := into.serial(t); int32(after-before) <= 0 {
		t.Errorf("serial goes from %d to %d", before, after)
	}
	// Once more, from the copy: serials go on from there.
	second := into.backup(t, kek)
	third := bare(t)
	if _, err := third.restorer(t, kek).Restore(t.Context(), second.Header, second.all()); err != nil {
		t.Fatal(err)
	}
	last, _ := into.serial(t)
	if after, _ := third.serial(t); int32(after-last) <= 0 {
		t.Errorf("serial goes from %d to %d by the second restore", last, after)
	}
}

func TestRestoreRefuses(t *testing.T) {
	kek := newKey(t)
	s := newSite(t, "acme")
	s.fill(t, sealerOf(t, s.store, kek), 2, "acme")
	c := s.backup(t, kek)

	refused := func(what string, into *site, h custody.Header, want error, urls ...string) {
		t.Helper()
		before := into.dump(t)
		_, err := into.restorer(t, urls...).Restore(t.Context(), h, c.all())
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
		if diff := cmp.Diff(before, into.dump(t)); diff != "" {
			t.Errorf("%s has changed the store (-before +after):\n%.1000s", what, diff)
		}
	}
	refused("where there is a brand", newSite(t, "other"), c.Header, keystore.ErrNotEmpty, kek)
	refused("where it came from", s, c.Header, keystore.ErrNotEmpty, kek)
	refused("with another key-encryption key", newSite(t), c.Header, envelope.ErrWrongKey, newKey(t))
	damaged := c.Header
	damaged.Check = append([]byte("x"), damaged.Check...)
	refused("with a damaged header", newSite(t), damaged, envelope.ErrWrongKey, kek)
}

// A restore that is cut short anywhere leaves an installation that nobody can use,
// until one is completed.
func TestRestoreIsCutShort(t *testing.T) {
	kek := newKey(t)
	s := newSite(t, "acme", "beta")
	s.fill(t, sealerOf(t, s.store, kek), 100, "acme", "beta")
	c := s.backup(t, kek)
	into := bare(t)
	into.plain = s.plain
	gated := keystore.New(keystore.Gated(into.etcd), 10*time.Second)
	cut := errors.New("the connection broke")
	for _, limit := range []int{0, 1, len(c.entries) / 3, len(c.entries) - 1, len(c.entries)} {
		if _, err := into.restorer(t, kek).Restore(t.Context(), c.Header, c.pieces(101, limit, cut)); !errors.Is(err, cut) {
			t.Fatalf("cut after %d entries: %v, want %v", limit, err, cut)
		}
		for what, call := range map[string]func(ctx context.Context, s *keystore.Store) error{
			"read": func(ctx context.Context, s *keystore.Store) error { _, _, err := s.Brands(ctx, "", 10); return err },
			"stream": func(ctx context.Context, s *keystore.Store) error {
				return s.Backup(ctx, 0, func(keystore.Entry) error { return nil })
			},
			"write": func(ctx context.Context, s *keystore.Store) error {
				_, err := s.CreateBrand(ctx, keystore.Brand{Name: "new", Zone: zoneName})
				return err
			},
		} {
			if err := call(t.Context(), gated); !errors.Is(err, keystore.ErrRestoring) || !errors.Is(err, keystore.ErrUnavailable) {
				t.Errorf("%s after a cut at %d: %v, want %v", what, limit, err, keystore.ErrRestoring)
			}
		}
		for key := range into.dump(t) {
			if strings.HasSuffix(key, "/apex") {
				t.Errorf("a zone is there after a cut at %d: name servers would serve it", limit)
			}
		}
		if restoring, err := into.store.Restoring(t.Context()); !restoring || err != nil {
			t.Errorf("Restoring = %t, %v", restoring, err)
		}
	}
	// A process that starts meanwhile waits; it does not take it for a wrong key.
	if err := sealerOf(t, gated, newKey(t)).Check(t.Context()); !errors.Is(err, keystore.ErrUnavailable) || errors.Is(err, envelope.ErrWrongKey) {
		t.Errorf("Check: %v, want %v", err, keystore.ErrUnavailable)
	}
	if _, err := into.restorer(t, kek).Restore(t.Context(), c.Header, c.all()); err != nil {
		t.Fatal(err)
	}
	into.wantAll(t, kek, 1)
	if len(into.dump(t)) != len(c.entries) {
		t.Errorf("%d keys are there, want %d", len(into.dump(t)), len(c.entries))
	}
	if _, _, err := gated.Brands(t.Context(), "", 10); err != nil {
		t.Errorf("read after the restore: %v", err)
	}
}

// Two restores at a time, and somebody who writes to etcd past everything: nothing
// but a complete restore is taken for one.
func TestRestoreBesideOthers(t *testing.T) {
	kek := newKey(t)
	s := newSite(t, "acme")
	s.fill(t, sealerOf(t, s.store, kek), 50, "acme")
	c := s.backup(t, kek)
	into := bare(t)
	into.plain = s.plain
	inner := false
	next := c.pieces(10, 1<<30, nil)
	_, err := into.restorer(t, kek).Restore(t.Context(), c.Header, func() ([]keystore.Entry, error) {
		if !inner {
			inner = true
			if _, err := into.restorer(t, kek).Restore(t.Context(), c.Header, c.all()); err != nil {
				t.Errorf("the second restore: %v", err)
			}
		}
		return next()
	})
	if !errors.Is(err, keystore.ErrConflict) {
		t.Errorf("the first restore: %v, want %v", err, keystore.ErrConflict)
	}
	into.wantAll(t, kek, 1)

	other := bare(t)
	next = c.all()
	_, err = other.restorer(t, kek).Restore(t.Context(), c.Header, func() ([]keystore.Entry, error) {
		entries, err := next()
		if err == nil && len(entries) == 0 {
			_, err = other.etcd.Put(t.Context(), schema.BrandKey("intruder"), "x")
		}
		return entries, err
	})
	if !errors.Is(err, keystore.ErrIncomplete) {
		t.Errorf("with an intruder: %v, want %v", err, keystore.ErrIncomplete)
	}
	for _, entries := range [][]keystore.Entry{{{Key: "/elsewhere", Value: []byte("x")}}, {{Key: schema.RestoreKey()}}, {{Key: schema.LeaderPrefix() + "/1"}}, {c.entries[0], c.entries[0]}} {
		given := false
		_, err := bare(t).restorer(t, kek).Restore(t.Context(), c.Header, func() ([]keystore.Entry, error) {
			if given {
				return nil, nil
			}
			given = true
			return entries, nil
		})
		if err == nil {
			t.Errorf("a backup with %q was restored", entries[0].Key)
		}
	}
}

// A backup that was made in the middle of a rotation goes on rotating.
func TestRestoreInTheMiddleOfARotation(t *testing.T) {
	old, next := newKey(t), newKey(t)
	s := newSite(t, "acme", "beta")
	s.fill(t, sealerOf(t, s.store, old), 3, "acme", "beta")
	ctx, cancel := context.WithCancel(t.Context())
	m := &mortal{Client: s.etcd, die: cancel}
	m.left.Store(1 << 40)
	victim := s.newCustody(t, "victim", keystore.New(m, 10*time.Second), time.Minute, next, old)
	if _, err := victim.Rotate(ctx, true, ""); err != nil {
		t.Fatal(err)
	}
	m.left.Store(6)
	_ = victim.Run(ctx)
	if r, err := s.store.KeyEncryptionRotation(t.Context()); err != nil || r.Phase.Over() {
		t.Fatalf("rotation: %+v, %v; want one that is not over", r, err)
	}
	c := s.backup(t, next)
	into := bare(t)
	into.plain = s.plain
	for i := range 1000 { // revisions are beyond those of the backup
		if _, err := into.etcd.Put(t.Context(), "/elsewhere", fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := into.restorer(t, next, old).Restore(t.Context(), c.Header, c.all()); err != nil {
		t.Fatal(err)
	}
	into.start(t, "dkimd1", time.Minute, next, old)
	if r := into.awaitOver(t); r.Phase != keystore.PhaseDone || r.Failures != 0 {
		t.Errorf("rotation: %+v", r)
	}
	into.wantAll(t, next, 0)
}
