package envelope_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dkimzone/dkimzone/internal/envelope"
)

// adopt makes the first key of a Sealer the one that wraps.
func adopt(t testing.TB, s *envelope.Sealer, store *memoryStore) {
	t.Helper()
	label, check, revision, err := s.Propose(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if set, err := store.SetKeyEncryptionMark(t.Context(), label, check, revision, false); !set || err != nil {
		t.Fatalf("the mark was not set: %v", err)
	}
}

func TestKeyEncryptionKeyTakesAnothersPlace(t *testing.T) {
	old, next := newKey(t), newKey(t)
	store := &memoryStore{}
	bare := envelope.NewSealer(openKeeper(t, old), store) // a process that was not restarted yet
	first := seal(t, bare, "one", "keys/1", "x")

	// What a process is told does not change by itself which key wraps.
	s := envelope.NewSealer(openKeeper(t, next, old), store)
	second := seal(t, s, "two", "keys/2", "y")
	if label, err := s.Wrapping(t.Context()); err != nil || label != old {
		t.Errorf("Wrapping = %q, %v; want the old key", label, err)
	}
	checkOpens(t, bare, "two", "keys/2", second, "y")

	adopt(t, s, store)
	if label, err := s.Wrapping(t.Context()); err != nil || label != next {
		t.Errorf("Wrapping = %q, %v; want the new key", label, err)
	}
	third := seal(t, s, "three", "keys/3", "z")
	for _, brand := range []string{"one", "two"} {
		if err := s.Rewrap(t.Context(), brand, 1); err != nil {
			t.Fatal(err)
		}
	}
	// The process without the new key must not make data keys, nor rewrap them.
	if err := bare.Check(t.Context()); !errors.Is(err, envelope.ErrWrongKey) {
		t.Errorf("Check without the new key: %v, want %v", err, envelope.ErrWrongKey)
	}
	writes := store.writes
	if _, err := bare.Seal(t.Context(), "four", "keys/4", nil); !errors.Is(err, envelope.ErrWrongKey) {
		t.Errorf("first Seal of a brand without the new key: %v, want %v", err, envelope.ErrWrongKey)
	}
	if err := bare.Rewrap(t.Context(), "one", 1); !errors.Is(err, envelope.ErrWrongKey) || store.writes != writes {
		t.Errorf("Rewrap without the new key: %v, %d writes; want %v and none", err, store.writes-writes, envelope.ErrWrongKey)
	}
	checkOpens(t, bare, "one", "keys/1", first, "x") // from memory, still

	// The old key is not needed any more.
	fresh := envelope.NewSealer(openKeeper(t, next), store)
	checkOpens(t, fresh, "one", "keys/1", first, "x")
	checkOpens(t, fresh, "two", "keys/2", second, "y")
	checkOpens(t, fresh, "three", "keys/3", third, "z")
	gone := envelope.NewSealer(openKeeper(t, old), store)
	if err := gone.Check(t.Context()); !errors.Is(err, envelope.ErrWrongKey) {
		t.Errorf("Check with the old key alone: %v, want %v", err, envelope.ErrWrongKey)
	}
	if _, err := gone.Open(t.Context(), "one", "keys/1", first); !errors.Is(err, envelope.ErrWrongKey) {
		t.Errorf("Open with the old key alone: %v, want %v", err, envelope.ErrWrongKey)
	}
}

// A data key that is being made while the key-encryption key changes is wrapped
// with the new one.
func TestDataKeyWhileTheKeyChanges(t *testing.T) {
	old, next := newKey(t), newKey(t)
	store := &memoryStore{}
	seal(t, envelope.NewSealer(openKeeper(t, old), store), "one", "keys/1", "x")
	s := envelope.NewSealer(openKeeper(t, next, old), store)
	store.beforeCreate = func() {
		store.beforeCreate = nil
		adopt(t, s, store)
	}
	sealed := seal(t, s, "two", "keys/1", "y")
	checkOpens(t, envelope.NewSealer(openKeeper(t, next), store), "two", "keys/1", sealed, "y")
}

func TestNewDataKeysAndReseal(t *testing.T) {
	keeper, store := newKeeper(t), &memoryStore{}
	synctest.Test(t, func(t *testing.T) {
		s, other := envelope.NewSealer(keeper, store), envelope.NewSealer(keeper, store)
		before := seal(t, s, "acme", "keys/1", "x")
		checkOpens(t, other, "acme", "keys/1", seal(t, other, "acme", "keys/1", "x"), "x")
		for range 2 { // again, as after a crash
			if err := s.AddDataKey(t.Context(), "acme", 2); err != nil {
				t.Fatal(err)
			}
		}
		if n := number(t, seal(t, s, "acme", "keys/2", "y")); n != 2 || store.writes != 2 {
			t.Errorf("sealed under data key %d, %d made; want 2 and 2", n, store.writes)
		}
		time.Sleep(envelope.SettleTime)
		if n := number(t, seal(t, other, "acme", "keys/2", "y")); n != 2 {
			t.Errorf("another process seals under data key %d after %s, want 2", n, envelope.SettleTime)
		}
		after, err := s.Reseal(t.Context(), "acme", "keys/1", before, 2)
		if err != nil || number(t, after) != 2 {
			t.Fatalf("Reseal = % x, %v; want a value under data key 2", after, err)
		}
		checkOpens(t, other, "acme", "keys/1", after, "x")
		if again, err := s.Reseal(t.Context(), "acme", "keys/1", after, 2); again != nil || err != nil {
			t.Errorf("Reseal of what was done = % x, %v; want nothing", again, err)
		}
		if _, err := s.Reseal(t.Context(), "acme", "keys/2", before, 2); !errors.Is(err, envelope.ErrCorrupt) {
			t.Errorf("Reseal under another name: %v, want %v", err, envelope.ErrCorrupt)
		}
	})
}

// Sealing goes on while data keys are wrapped anew, again and again.
func TestRewrapBesideSealing(t *testing.T) {
	a, b := newKey(t), newKey(t)
	store := &memoryStore{}
	sealers := []*envelope.Sealer{envelope.NewSealer(openKeeper(t, a, b), store), envelope.NewSealer(openKeeper(t, b, a), store)}
	sealed := seal(t, sealers[0], "acme", "keys/1", "x")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 50 {
				brand := fmt.Sprintf("brand%d-%d", i, j)
				value := seal(t, sealers[i%2], brand, "keys/1", brand)
				checkOpens(t, sealers[1-i%2], brand, "keys/1", value, brand)
			}
		})
	}
	for i := range 20 {
		adopt(t, sealers[i%2], store)
		if err := sealers[1-i%2].Rewrap(context.Background(), "acme", 1); err != nil {
			t.Errorf("Rewrap: %v", err)
		}
	}
	wg.Wait()
	checkOpens(t, envelope.NewSealer(openKeeper(t, b, a), store), "acme", "keys/1", sealed, "x")
	if label, err := sealers[0].Wrapping(t.Context()); err != nil || label != b {
		t.Errorf("Wrapping = %q, %v; want the last one, %q", label, err, b)
	}
}
