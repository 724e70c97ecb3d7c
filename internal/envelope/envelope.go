// Package envelope seals private keys before they are stored. Each brand has
// data keys, with which values are sealed; the data keys are stored wrapped by
// a key-encryption key, which stays with a keeper outside the store.
//
// A sealed value is the octet 1, the number of the data key as an unsigned
// varint, a random nonce of 12 octets, and the AES-256-GCM ciphertext with its
// tag of 16 octets. What comes before the nonce, followed by the resource name,
// is the additional authenticated data, so a value opens under its own name
// only. With random nonces a data key is good for 2^32 values.
//
// A wrapped data key is what the keeper makes of the 32 octets of the key
// followed by "<brand>/<number>", so it opens for its own brand only.
//
// Which key-encryption key wraps is noted in the store, in the mark, and not up
// to the configuration of a process: a data key is stored only while the mark is
// still what its maker looked at. So there is one such key at a time, however
// many processes there are and whatever they were told.
package envelope

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

var (
	// ErrWrongKey is wrapped when the key-encryption key does not open a data
	// key, or the mark: it is another one than these were wrapped with, or
	// what was wrapped was changed.
	ErrWrongKey = errors.New("the key-encryption key is not the one that the stored keys were wrapped with")

	// ErrCorrupt is wrapped when a sealed value or a data key was changed,
	// was cut, or was made for another brand or resource.
	ErrCorrupt = errors.New("damaged, or sealed for something else")
)

const (
	formatVersion = 1
	dataKeySize   = 32

	// newestValid is how long the number of a brand's newest data key is used
	// without asking the store again.
	newestValid = time.Minute
)

// Store keeps the wrapped data keys of brands, numbered from 1, and the mark. It
// never drops a data key, not even with its brand: a Sealer of another process
// may go on sealing under it. The methods must be safe for concurrent use, and
// must have written durably when they return.
type Store interface {
	// NewestDataKey returns the data key with the highest number, or 0 when
	// the brand has none.
	NewestDataKey(ctx context.Context, brand string) (n uint32, wrapped []byte, err error)

	// DataKey returns the data key number n; its absence is an error.
	DataKey(ctx context.Context, brand string, n uint32) (wrapped []byte, err error)

	// CreateDataKey stores a data key unless there is one of that number, or
	// the mark's revision is another one, and reports whether it did.
	CreateDataKey(ctx context.Context, brand string, n uint32, wrapped []byte, mark int64) (created bool, err error)

	// ReplaceDataKey stores a data key that is wrapped anew if what is stored is
	// still old and the mark's revision the given one, and reports whether it did.
	ReplaceDataKey(ctx context.Context, brand string, n uint32, old, wrapped []byte, mark int64) (replaced bool, err error)

	// AnyDataKeyBrand returns a brand that has a data key, "" when none has.
	AnyDataKeyBrand(ctx context.Context) (brand string, err error)

	// KeyEncryptionMark returns the mark: the label of the key-encryption key, a
	// known text wrapped by it, and its revision, 0 when there is no mark.
	KeyEncryptionMark(ctx context.Context) (label string, check []byte, revision int64, err error)

	// SetKeyEncryptionMark stores the mark if its revision is still the given
	// one, and, if unused is set, no data key is stored, and reports whether it did.
	SetKeyEncryptionMark(ctx context.Context, label string, check []byte, revision int64, unused bool) (set bool, err error)
}

// Sealer seals and opens values. Unwrapped data keys stay in its memory. It is
// safe for concurrent use.
type Sealer struct {
	keeper *Keeper
	store  Store

	mu     sync.Mutex
	brands map[string]*brandKeys
	mark   mark // as last seen and opened

	tried atomic.Bool // the first key has wrapped and opened something
}

// NewSealer returns a Sealer whose data keys are wrapped by keeper and kept in
// store. The caller closes the keeper when the Sealer is no longer used.
func NewSealer(keeper *Keeper, store Store) *Sealer {
	return &Sealer{keeper: keeper, store: store, brands: make(map[string]*brandKeys)}
}

// Seal seals plaintext for the resource of that name, under the brand's newest
// data key, which it makes when the brand has none. Each call gives another
// result. name must tell the resource apart from all others of the brand.
func (s *Sealer) Seal(ctx context.Context, brand, name string, plaintext []byte) ([]byte, error) {
	n, aead, err := s.newest(ctx, brand)
	if err != nil {
		return nil, fmt.Errorf("seal %s: %w", name, err)
	}
	return sealUnder(aead, n, name, plaintext), nil
}

func sealUnder(aead cipher.AEAD, n uint32, name string, plaintext []byte) []byte {
	sealed := binary.AppendUvarint([]byte{formatVersion}, uint64(n))
	return aead.Seal(sealed, nil, plaintext, additionalData(sealed, name)) //nolint:gosec // G407: this AEAD makes its own random nonces
}

// Open returns the plaintext of a value that Seal made for the same brand and
// name. Errors wrap ErrCorrupt, ErrWrongKey, or what the store or the keeper
// returned.
func (s *Sealer) Open(ctx context.Context, brand, name string, sealed []byte) ([]byte, error) {
	header, n, err := parseHeader(sealed)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	aead, err := s.numbered(ctx, brand, n)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	plaintext, err := aead.Open(nil, nil, sealed[len(header):], additionalData(header, name))
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, ErrCorrupt)
	}
	return plaintext, nil
}

func parseHeader(sealed []byte) (header []byte, n uint32, err error) {
	if len(sealed) == 0 || sealed[0] != formatVersion {
		return nil, 0, fmt.Errorf("%w: no known format", ErrCorrupt)
	}
	number, size := binary.Uvarint(sealed[1:])
	if size <= 0 || number == 0 || number > math.MaxUint32 {
		return nil, 0, fmt.Errorf("%w: no data key number", ErrCorrupt)
	}
	return sealed[:1+size], uint32(number), nil
}

func additionalData(header []byte, name string) []byte {
	return append(bytes.Clone(header), name...)
}

// brandKeys are the data keys of one brand that are in memory.
type brandKeys struct {
	busy   chan struct{} // holds one element while somebody uses the rest
	newest uint32        // 0 when not known
	asked  time.Time     // when newest was read
	keys   map[uint32]dataKey
}

// dataKey is an unwrapped data key and what it was unwrapped from.
type dataKey struct {
	aead    cipher.AEAD
	wrapped []byte
}

// lock returns the brand's keys for the caller alone, so that many callers of
// a brand ask the keeper once. The caller must unlock them.
func (s *Sealer) lock(ctx context.Context, brand string) (*brandKeys, error) {
	s.mu.Lock()
	b, ok := s.brands[brand]
	if !ok {
		b = &brandKeys{busy: make(chan struct{}, 1), keys: make(map[uint32]dataKey)}
		s.brands[brand] = b
	}
	s.mu.Unlock()
	select {
	case b.busy <- struct{}{}:
		return b, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the data keys of brand %s: %w", brand, ctx.Err())
	}
}

func (b *brandKeys) unlock() { <-b.busy }

func (s *Sealer) newest(ctx context.Context, brand string) (uint32, cipher.AEAD, error) {
	b, err := s.lock(ctx, brand)
	if err != nil {
		return 0, nil, err
	}
	defer b.unlock()
	if b.newest != 0 && time.Since(b.asked) < newestValid {
		return b.newest, b.keys[b.newest].aead, nil
	}
	n, wrapped, err := s.store.NewestDataKey(ctx, brand)
	if err != nil {
		return 0, nil, fmt.Errorf("read the newest data key of brand %s: %w", brand, err)
	}
	if n == 0 {
		if n, wrapped, err = s.create(ctx, brand); err != nil {
			return 0, nil, err
		}
	}
	key, ok := b.keys[n]
	if !ok || !bytes.Equal(key.wrapped, wrapped) {
		aead, err := s.unwrap(ctx, brand, n, wrapped)
		if err != nil {
			return 0, nil, err
		}
		key = dataKey{aead: aead, wrapped: wrapped}
		b.keys[n] = key
	}
	b.newest, b.asked = n, time.Now()
	return n, key.aead, nil
}

func (s *Sealer) numbered(ctx context.Context, brand string, n uint32) (cipher.AEAD, error) {
	b, err := s.lock(ctx, brand)
	if err != nil {
		return nil, err
	}
	defer b.unlock()
	if key, ok := b.keys[n]; ok {
		return key.aead, nil
	}
	wrapped, err := s.store.DataKey(ctx, brand, n)
	if err != nil {
		return nil, fmt.Errorf("read data key %d of brand %s: %w", n, brand, err)
	}
	aead, err := s.unwrap(ctx, brand, n, wrapped)
	if err != nil {
		return nil, err
	}
	b.keys[n] = dataKey{aead: aead, wrapped: wrapped}
	return aead, nil
}

// create makes the brand's first data key, unless another process is quicker,
// and returns the one that is stored.
func (s *Sealer) create(ctx context.Context, brand string) (n uint32, wrapped []byte, err error) {
	for range markRaces {
		created, wrapped, err := s.add(ctx, brand, 1)
		if err != nil || created {
			return 1, wrapped, err
		}
		n, wrapped, err := s.store.NewestDataKey(ctx, brand)
		if err != nil {
			return 0, nil, fmt.Errorf("read the newest data key of brand %s: %w", brand, err)
		}
		if n != 0 {
			return n, wrapped, nil
		}
	}
	return 0, nil, fmt.Errorf("the first data key of brand %s cannot be stored: the key-encryption key changes all the time", brand)
}

// add makes the brand's data key number n, unless there is one.
func (s *Sealer) add(ctx context.Context, brand string, n uint32) (created bool, wrapped []byte, err error) {
	m, err := s.current(ctx)
	if err != nil {
		return false, nil, fmt.Errorf("wrap a data key for brand %s: %w", brand, err)
	}
	key := make([]byte, dataKeySize, dataKeySize+len(brand)+16)
	_, _ = rand.Read(key)
	labelled := append(key, keyLabel(brand, n)...)
	defer clear(labelled)
	if wrapped, err = m.key.encrypt(ctx, labelled); err != nil {
		return false, nil, fmt.Errorf("wrap a data key for brand %s: %w", brand, err)
	}
	if created, err = s.store.CreateDataKey(ctx, brand, n, wrapped, m.revision); err != nil {
		return false, nil, fmt.Errorf("store a data key of brand %s: %w", brand, err)
	}
	return created, wrapped, nil
}

func (s *Sealer) unwrap(ctx context.Context, brand string, n uint32, wrapped []byte) (cipher.AEAD, error) {
	labelled, err := s.openDataKey(ctx, brand, n, wrapped)
	if err != nil {
		return nil, err
	}
	defer clear(labelled)
	block, err := aes.NewCipher(labelled[:dataKeySize])
	if err != nil {
		return nil, fmt.Errorf("data key %d of brand %s: %w", n, brand, err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("data key %d of brand %s: %w", n, brand, err)
	}
	return aead, nil
}

// openDataKey returns the data key followed by its label. The caller clears it.
func (s *Sealer) openDataKey(ctx context.Context, brand string, n uint32, wrapped []byte) ([]byte, error) {
	labelled, _, err := s.keeper.decrypt(ctx, wrapped, s.markLabel())
	if err != nil {
		return nil, fmt.Errorf("unwrap data key %d of brand %s: %w", n, brand, err)
	}
	if len(labelled) < dataKeySize || string(labelled[dataKeySize:]) != keyLabel(brand, n) {
		clear(labelled)
		return nil, fmt.Errorf("unwrap data key %d of brand %s: %w", n, brand, ErrCorrupt)
	}
	return labelled, nil
}

func keyLabel(brand string, n uint32) string {
	return brand + "/" + strconv.FormatUint(uint64(n), 10)
}
