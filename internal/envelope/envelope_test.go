package envelope_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dkimzone/dkimzone/internal/envelope"
)

var errNoDataKey = errors.New("no such data key")

// memoryStore is a Store in memory.
type memoryStore struct {
	mu      sync.Mutex
	wrapped map[string]map[uint32][]byte
	label   string
	check   []byte
	mark    int64 // revision of label and check
	reads   int
	writes  int // of data keys

	err          error  // returned by all calls
	beforeCreate func() // called at the beginning of CreateDataKey
}

func (s *memoryStore) NewestDataKey(_ context.Context, brand string) (uint32, []byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	var newest uint32
	for n := range s.wrapped[brand] {
		newest = max(newest, n)
	}
	return newest, s.wrapped[brand][newest], s.err
}

func (s *memoryStore) DataKey(_ context.Context, brand string, n uint32) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	wrapped, ok := s.wrapped[brand][n]
	if !ok {
		return nil, errNoDataKey
	}
	return wrapped, s.err
}

func (s *memoryStore) CreateDataKey(_ context.Context, brand string, n uint32, wrapped []byte, mark int64) (bool, error) {
	if s.beforeCreate != nil {
		s.beforeCreate()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return false, s.err
	}
	if s.wrapped[brand][n] != nil || mark != s.mark {
		return false, nil
	}
	s.put(brand, n, wrapped)
	return true, nil
}

func (s *memoryStore) ReplaceDataKey(_ context.Context, brand string, n uint32, old, wrapped []byte, mark int64) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil || mark != s.mark || !bytes.Equal(s.wrapped[brand][n], old) {
		return false, s.err
	}
	s.put(brand, n, wrapped)
	return true, nil
}

func (s *memoryStore) AnyDataKeyBrand(context.Context) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for brand := range s.wrapped {
		return brand, s.err
	}
	return "", s.err
}

func (s *memoryStore) KeyEncryptionMark(context.Context) (string, []byte, int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.label, s.check, s.mark, s.err
}

func (s *memoryStore) SetKeyEncryptionMark(_ context.Context, label string, check []byte, revision int64, unused bool) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil || revision != s.mark || unused && len(s.wrapped) > 0 {
		return false, s.err
	}
	s.label, s.check = label, check
	s.mark++
	return true, nil
}

func (s *memoryStore) put(brand string, n uint32, wrapped []byte) {
	if s.wrapped == nil {
		s.wrapped = make(map[string]map[uint32][]byte)
	}
	if s.wrapped[brand] == nil {
		s.wrapped[brand] = make(map[uint32][]byte)
	}
	s.writes++
	s.wrapped[brand][n] = wrapped
}

// newKey makes a key file and returns its URL.
func newKey(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kek.key")
	if err := envelope.CreateKeyFile(path); err != nil {
		t.Fatal(err)
	}
	return "file://" + path
}

func openKeeper(t testing.TB, url string, further ...string) *envelope.Keeper {
	t.Helper()
	keeper, err := envelope.OpenKeeper(t.Context(), url, further...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = keeper.Close() }) // a test may have closed it
	return keeper
}

func newKeeper(t testing.TB) *envelope.Keeper { t.Helper(); return openKeeper(t, newKey(t)) }

func seal(t testing.TB, s *envelope.Sealer, brand, name, plaintext string) []byte {
	t.Helper()
	sealed, err := s.Seal(context.Background(), brand, name, []byte(plaintext))
	if err != nil {
		t.Fatalf("Seal(%s, %s): %v", brand, name, err)
	}
	return sealed
}

func checkOpens(t testing.TB, s *envelope.Sealer, brand, name string, sealed []byte, want string) {
	t.Helper()
	got, err := s.Open(context.Background(), brand, name, sealed)
	if err != nil || string(got) != want {
		t.Errorf("Open(%s, %s) = %q, %v; want %q", brand, name, got, err, want)
	}
}

func number(t testing.TB, sealed []byte) uint32 {
	t.Helper()
	n, size := binary.Uvarint(sealed[1:])
	if size <= 0 {
		t.Fatalf("no number in % x", sealed[:min(8, len(sealed))])
	}
	return uint32(n)
}

func TestSealOpen(t *testing.T) {
	keeper, store := newKeeper(t), &memoryStore{}
	s := envelope.NewSealer(keeper, store)
	for _, plaintext := range []string{"", "x", "private key", strings.Repeat("long", 10000)} {
		sealed := seal(t, s, "acme", "keys/1", plaintext)
		checkOpens(t, s, "acme", "keys/1", sealed, plaintext)
		// A restarted process, with nothing in memory.
		checkOpens(t, envelope.NewSealer(keeper, store), "acme", "keys/1", sealed, plaintext)
		if len(plaintext) > 1 && bytes.Contains(sealed, []byte(plaintext)) {
			t.Error("the sealed value shows the plaintext")
		}
	}
	if store.writes != 1 {
		t.Errorf("%d data keys made, want 1", store.writes)
	}
}

func TestSealedForm(t *testing.T) {
	store := &memoryStore{}
	s := envelope.NewSealer(newKeeper(t), store)
	sealed := seal(t, s, "acme", "keys/1", "12345")
	n, size := binary.Uvarint(sealed[1:])
	if sealed[0] != 1 || size <= 0 || n == 0 || n > math.MaxUint32 {
		t.Fatalf("value begins with % x, want version 1 and a data key number", sealed[:6])
	}
	if _, ok := store.wrapped["acme"][uint32(n)]; !ok || number(t, sealed) != uint32(n) {
		t.Errorf("data key number %d (%d) is not the one in the store", n, number(t, sealed))
	}
	if want := 1 + size + 12 + 5 + 16; len(sealed) != want {
		t.Errorf("value has %d octets, want %d", len(sealed), want)
	}
}

func TestNoncesDiffer(t *testing.T) {
	s := envelope.NewSealer(newKeeper(t), &memoryStore{})
	seen := make(map[[12]byte]bool)
	const rounds = 10000
	for range rounds {
		sealed := seal(t, s, "acme", "keys/1", "")
		seen[[12]byte(sealed[len(sealed)-28:len(sealed)-16])] = true
	}
	if len(seen) != rounds {
		t.Errorf("%d different nonces in %d values", len(seen), rounds)
	}
}

func TestTampering(t *testing.T) {
	keeper, store := newKeeper(t), &memoryStore{}
	s := envelope.NewSealer(keeper, store)
	const plaintext = "private key"
	sealed := seal(t, s, "acme", "keys/1", plaintext)
	seal(t, s, "other", "keys/1", plaintext)
	checkOpens(t, s, "acme", "keys/1", sealed, plaintext)

	refused := func(t *testing.T, s *envelope.Sealer, brand, name string, sealed []byte, want error) {
		t.Helper()
		got, err := s.Open(t.Context(), brand, name, sealed)
		if !errors.Is(err, want) || got != nil {
			t.Errorf("Open = %q, %v; want nothing and %v", got, err, want)
		}
		if err != nil && strings.Contains(err.Error(), plaintext) {
			t.Errorf("error %q shows the plaintext", err)
		}
	}
	t.Run("any bit flipped", func(t *testing.T) {
		header := 1 + len(binary.AppendUvarint(nil, uint64(number(t, sealed))))
		for i := range len(sealed) * 8 {
			changed := bytes.Clone(sealed)
			changed[i/8] ^= 1 << (i % 8)
			got, err := s.Open(t.Context(), "acme", "keys/1", changed)
			if err == nil || got != nil {
				t.Fatalf("Open with bit %d flipped = %q, %v", i, got, err)
			}
			if inNumber := i/8 > 0 && i/8 < header; !inNumber && !errors.Is(err, envelope.ErrCorrupt) {
				t.Fatalf("Open with bit %d flipped: %v, want %v", i, err, envelope.ErrCorrupt)
			}
		}
	})
	t.Run("cut anywhere", func(t *testing.T) {
		for n := range len(sealed) {
			got, err := s.Open(t.Context(), "acme", "keys/1", sealed[:n])
			if err == nil || got != nil {
				t.Fatalf("Open of %d octets = %q, %v", n, got, err)
			}
		}
	})
	t.Run("octet added", func(t *testing.T) {
		refused(t, s, "acme", "keys/1", append(bytes.Clone(sealed), 0), envelope.ErrCorrupt)
	})
	t.Run("other name", func(t *testing.T) { refused(t, s, "acme", "keys/2", sealed, envelope.ErrCorrupt) })
	t.Run("name cut", func(t *testing.T) { refused(t, s, "acme", "keys/", sealed, envelope.ErrCorrupt) })
	t.Run("other brand", func(t *testing.T) { refused(t, s, "other", "keys/1", sealed, envelope.ErrCorrupt) })
	t.Run("unknown brand", func(t *testing.T) { refused(t, s, "nobody", "keys/1", sealed, errNoDataKey) })
	t.Run("data key number that is not there", func(t *testing.T) {
		n := number(t, sealed)
		refused(t, s, "acme", "keys/1", renumber(sealed, n, uint64(n)+1), errNoDataKey)
	})
	t.Run("other data key number with the same data key", func(t *testing.T) {
		n := number(t, sealed)
		store.put("acme", n+1, store.wrapped["acme"][n])
		defer delete(store.wrapped["acme"], n+1)
		refused(t, s, "acme", "keys/1", renumber(sealed, n, uint64(n)+1), envelope.ErrCorrupt)
	})
	t.Run("number written with more octets", func(t *testing.T) {
		n := number(t, sealed)
		number := binary.AppendUvarint(nil, uint64(n))
		rest := sealed[1+len(number):]
		number[len(number)-1] |= 0x80
		longer := append(append([]byte{1}, append(number, 0)...), rest...)
		refused(t, s, "acme", "keys/1", longer, envelope.ErrCorrupt)
	})
	t.Run("number zero", func(t *testing.T) {
		refused(t, s, "acme", "keys/1", renumber(sealed, number(t, sealed), 0), envelope.ErrCorrupt)
	})
	t.Run("number too big", func(t *testing.T) {
		refused(t, s, "acme", "keys/1", renumber(sealed, number(t, sealed), math.MaxUint32+1), envelope.ErrCorrupt)
	})
	t.Run("data key of another brand", func(t *testing.T) {
		swapped := &memoryStore{}
		n := number(t, sealed)
		swapped.put("other", n, store.wrapped["acme"][n])
		refused(t, envelope.NewSealer(keeper, swapped), "other", "keys/1", sealed, envelope.ErrCorrupt)
	})
	t.Run("data key damaged", func(t *testing.T) {
		damaged := &memoryStore{}
		n := number(t, sealed)
		wrapped := bytes.Clone(store.wrapped["acme"][n])
		wrapped[len(wrapped)-1] ^= 1
		damaged.put("acme", n, wrapped)
		refused(t, envelope.NewSealer(keeper, damaged), "acme", "keys/1", sealed, envelope.ErrWrongKey)
	})
	t.Run("wrong key-encryption key", func(t *testing.T) {
		refused(t, envelope.NewSealer(newKeeper(t), store), "acme", "keys/1", sealed, envelope.ErrWrongKey)
	})
	checkOpens(t, s, "acme", "keys/1", sealed, plaintext)
}

// renumber returns the value with another data key number in its header.
func renumber(sealed []byte, from uint32, to uint64) []byte {
	size := len(binary.AppendUvarint(nil, uint64(from)))
	return append(binary.AppendUvarint([]byte{sealed[0]}, to), sealed[1+size:]...)
}

func TestSealWithTheWrongKeyMakesNoNewDataKey(t *testing.T) {
	store := &memoryStore{}
	seal(t, envelope.NewSealer(newKeeper(t), store), "acme", "keys/1", "x")
	_, err := envelope.NewSealer(newKeeper(t), store).Seal(t.Context(), "acme", "keys/1", []byte("x"))
	if !errors.Is(err, envelope.ErrWrongKey) || store.writes != 1 {
		t.Errorf("Seal: %v with %d data keys made, want %v and 1", err, store.writes, envelope.ErrWrongKey)
	}
}

func TestCheck(t *testing.T) {
	keeper, store := newKeeper(t), &memoryStore{}
	s := envelope.NewSealer(keeper, store)
	if err := s.Check(t.Context()); err != nil || store.writes != 0 {
		t.Errorf("Check without a data key: %v, %d made; want none and none made", err, store.writes)
	}
	if err := envelope.NewSealer(newKeeper(t), store).Check(t.Context()); err != nil || store.mark != 0 {
		t.Errorf("Check with another key and no data key: %v, mark %d; want none", err, store.mark)
	}
	seal(t, s, "acme", "keys/1", "x")
	if err := s.Check(t.Context()); err != nil {
		t.Errorf("Check: %v", err)
	}
	if err := envelope.NewSealer(newKeeper(t), store).Check(t.Context()); !errors.Is(err, envelope.ErrWrongKey) {
		t.Errorf("Check with another key: %v, want %v", err, envelope.ErrWrongKey)
	}
	store.err = errors.New("store is down")
	if err := s.Check(t.Context()); !errors.Is(err, store.err) || errors.Is(err, envelope.ErrWrongKey) {
		t.Errorf("Check without a store: %v, want %v only", err, store.err)
	}
	store.err = nil
	// What the keeper says of itself is not about the key.
	if err := keeper.Close(); err != nil {
		t.Fatal(err)
	}
	if err := envelope.NewSealer(keeper, store).Check(t.Context()); err == nil || errors.Is(err, envelope.ErrWrongKey) {
		t.Errorf("Check with a closed keeper: %v, want another error than %v", err, envelope.ErrWrongKey)
	}
}

// An installation from before there was a mark gets one for the key that its
// data keys are wrapped with, whatever the order of the keys.
func TestCheckOfAnOldInstallation(t *testing.T) {
	old, present := newKey(t), newKey(t)
	store := &memoryStore{}
	sealed := seal(t, envelope.NewSealer(openKeeper(t, old), store), "acme", "keys/1", "x")
	store.label, store.check, store.mark = "", nil, 0
	if err := envelope.NewSealer(openKeeper(t, present), store).Check(t.Context()); !errors.Is(err, envelope.ErrWrongKey) || store.mark != 0 {
		t.Errorf("Check with another key: %v, mark %d; want %v and no mark", err, store.mark, envelope.ErrWrongKey)
	}
	s := envelope.NewSealer(openKeeper(t, present, old), store)
	if label, err := s.Wrapping(t.Context()); err != nil || label != old {
		t.Errorf("Wrapping = %q, %v; want %q", label, err, old)
	}
	checkOpens(t, s, "acme", "keys/1", sealed, "x")
}

func TestFirstDataKeyIsMadeOnce(t *testing.T) {
	keeper, store := newKeeper(t), &memoryStore{}
	sealers := []*envelope.Sealer{envelope.NewSealer(keeper, store), envelope.NewSealer(keeper, store)}
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			s, other := sealers[i%2], sealers[1-i%2]
			name, plaintext := fmt.Sprintf("keys/%d", i), fmt.Sprintf("key %d", i)
			checkOpens(t, other, "acme", name, seal(t, s, "acme", name, plaintext), plaintext)
		})
	}
	wg.Wait()
	if store.writes != 1 {
		t.Errorf("%d data keys made, want 1", store.writes)
	}
	if store.reads > 4*len(sealers) {
		t.Errorf("%d reads by %d sealers: data keys are not kept in memory", store.reads, len(sealers))
	}
}

// Another process makes the first data key between our look and our write.
func TestFirstDataKeyRaceIsLost(t *testing.T) {
	keeper, store := newKeeper(t), &memoryStore{}
	winner := envelope.NewSealer(keeper, store)
	var won []byte
	store.beforeCreate = func() {
		store.beforeCreate = nil
		won = seal(t, winner, "acme", "keys/1", "winner's")
	}
	loser := envelope.NewSealer(keeper, store)
	lost := seal(t, loser, "acme", "keys/2", "loser's")
	if number(t, won) != number(t, lost) || store.writes != 1 {
		t.Errorf("data keys %d and %d, %d made; want one", number(t, won), number(t, lost), store.writes)
	}
	checkOpens(t, winner, "acme", "keys/2", lost, "loser's")
	checkOpens(t, loser, "acme", "keys/1", won, "winner's")
}

func TestNewerDataKeyIsUsed(t *testing.T) {
	keeper, store := newKeeper(t), &memoryStore{}
	synctest.Test(t, func(t *testing.T) {
		s := envelope.NewSealer(keeper, store)
		before := seal(t, s, "acme", "keys/1", "x")
		n := number(t, before) + 1
		if err := envelope.NewSealer(keeper, store).AddDataKey(t.Context(), "acme", n); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		after := seal(t, s, "acme", "keys/1", "y")
		if number(t, after) != n {
			t.Errorf("data key number %d after a minute, want the new one, %d", number(t, after), n)
		}
		checkOpens(t, s, "acme", "keys/1", before, "x")
		checkOpens(t, s, "acme", "keys/1", after, "y")
	})
}

func TestStoreErrors(t *testing.T) {
	store := &memoryStore{err: errors.New("store is down")}
	s := envelope.NewSealer(newKeeper(t), store)
	if _, err := s.Seal(t.Context(), "acme", "keys/1", nil); !errors.Is(err, store.err) {
		t.Errorf("Seal: %v, want %v", err, store.err)
	}
	// It recovers with the store.
	store.err = nil
	sealed := seal(t, s, "acme", "keys/1", "x")
	store.err = errors.New("store is down")
	checkOpens(t, s, "acme", "keys/1", sealed, "x") // from memory
}

// A caller that waits for another's question to the keeper can give up.
func TestWaitIsCancelled(t *testing.T) {
	store := &memoryStore{}
	s := envelope.NewSealer(newKeeper(t), store)
	ctx, cancel := context.WithCancel(t.Context())
	store.beforeCreate = func() {
		store.beforeCreate = nil
		cancel()
		_, err := s.Seal(ctx, "acme", "keys/2", nil)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Seal while another has the brand: %v, want %v", err, context.Canceled)
		}
		seal(t, s, "other", "keys/1", "other brands do not wait")
	}
	seal(t, s, "acme", "keys/1", "x")
}

func FuzzOpen(f *testing.F) {
	keeper, store := newKeeper(f), &memoryStore{}
	s := envelope.NewSealer(keeper, store)
	sealed := seal(f, s, "acme", "keys/1", "private key")
	f.Add([]byte(nil))
	f.Add([]byte{1})
	f.Add([]byte{1, 1})
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Add(make([]byte, len(sealed)))
	f.Fuzz(func(t *testing.T, change []byte) {
		// As it is, and as a change of a good value.
		if got, err := s.Open(t.Context(), "acme", "keys/1", change); err == nil || got != nil {
			t.Errorf("Open(% x) = %q, %v", change, got, err)
		}
		changed := bytes.Clone(sealed)
		for i := range min(len(change), len(changed)) {
			changed[i] ^= change[i]
		}
		changed = append(changed, change[min(len(change), len(changed)):]...)
		got, err := s.Open(t.Context(), "acme", "keys/1", changed)
		if same := bytes.Equal(changed, sealed); same != (err == nil) || same != (got != nil) {
			t.Errorf("Open(% x) = %q, %v", changed, got, err)
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	s := envelope.NewSealer(newKeeper(b), &memoryStore{})
	plaintext := make([]byte, 257) // an RSA-2048 key as it is stored
	for b.Loop() {
		if _, err := s.Seal(b.Context(), "acme", "keys/1", plaintext); err != nil {
			b.Fatal(err)
		}
	}
}
