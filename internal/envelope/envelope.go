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
	"time"

	"gocloud.dev/gcerrors"
	"gocloud.dev/secrets"
)

var (
	// ErrWrongKey is wrapped when the key-encryption key does not open a data
	// key: it is another one than the data key was wrapped with, or the
	// wrapped data key was changed.
	ErrWrongKey = errors.New("the key-encryption key does not open the data key")

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

// DataKeyStore keeps the wrapped data keys of brands, numbered from 1. It never
// drops one, not even with its brand: a Sealer of another process may go on
// sealing under it. The methods must be safe for concurrent use.
type DataKeyStore interface {
	// NewestDataKey returns the data key with the highest number, or 0 when
	// the brand has none.
	NewestDataKey(ctx context.Context, brand string) (n uint32, wrapped []byte, err error)

	// DataKey returns the data key number n; its absence is an error.
	DataKey(ctx context.Context, brand string, n uint32) (wrapped []byte, err error)

	// CreateDataKey stores a data key unless there is one of that number, and
	// reports whether it did. It must have stored it durably when it returns.
	CreateDataKey(ctx context.Context, brand string, n uint32, wrapped []byte) (created bool, err error)
}

// Sealer seals and opens values. Unwrapped data keys stay in its memory. It is
// safe for concurrent use.
type Sealer struct {
	keeper *secrets.Keeper
	store  DataKeyStore

	mu     sync.Mutex
	brands map[string]*brandKeys
}

// NewSealer returns a Sealer whose data keys are wrapped by keeper and kept in
// store. The caller closes the keeper when the Sealer is no longer used.
func NewSealer(keeper *secrets.Keeper, store DataKeyStore) *Sealer {
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
	sealed := binary.AppendUvarint([]byte{formatVersion}, uint64(n))
	return aead.Seal(sealed, nil, plaintext, additionalData(sealed, name)), nil //nolint:gosec // G407: this AEAD makes its own random nonces
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

// Verify unwraps the brand's newest data key, past the ones in memory. It
// returns an error wrapping ErrWrongKey when the key-encryption key is not the
// right one, and nil when the brand has no data key.
func (s *Sealer) Verify(ctx context.Context, brand string) error {
	n, wrapped, err := s.store.NewestDataKey(ctx, brand)
	if err != nil {
		return fmt.Errorf("read the newest data key of brand %s: %w", brand, err)
	}
	if n == 0 {
		return nil
	}
	_, err = s.unwrap(ctx, brand, n, wrapped)
	return err
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
	n = 1
	key := make([]byte, dataKeySize, dataKeySize+len(brand)+16)
	_, _ = rand.Read(key)
	wrapped, err = s.keeper.Encrypt(ctx, append(key, keyLabel(brand, n)...))
	clear(key)
	if err != nil {
		return 0, nil, fmt.Errorf("wrap a data key for brand %s: %w", brand, err)
	}
	created, err := s.store.CreateDataKey(ctx, brand, n, wrapped)
	if err != nil {
		return 0, nil, fmt.Errorf("store a data key of brand %s: %w", brand, err)
	}
	if created {
		return n, wrapped, nil
	}
	n, wrapped, err = s.store.NewestDataKey(ctx, brand)
	if err != nil {
		return 0, nil, fmt.Errorf("read the newest data key of brand %s: %w", brand, err)
	}
	if n == 0 {
		return 0, nil, fmt.Errorf("the first data key of brand %s is not there although it was made", brand)
	}
	return n, wrapped, nil
}

func (s *Sealer) unwrap(ctx context.Context, brand string, n uint32, wrapped []byte) (cipher.AEAD, error) {
	labelled, err := s.keeper.Decrypt(ctx, wrapped)
	if err != nil {
		// The local keeper says Unknown, others InvalidArgument; the rest,
		// such as no permission, is not about this key.
		if code := gcerrors.Code(err); code == gcerrors.Unknown || code == gcerrors.InvalidArgument {
			err = fmt.Errorf("%w: %w", ErrWrongKey, err)
		}
		return nil, fmt.Errorf("unwrap data key %d of brand %s: %w", n, brand, err)
	}
	defer clear(labelled)
	if len(labelled) < dataKeySize || string(labelled[dataKeySize:]) != keyLabel(brand, n) {
		return nil, fmt.Errorf("unwrap data key %d of brand %s: %w", n, brand, ErrCorrupt)
	}
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

func keyLabel(brand string, n uint32) string {
	return brand + "/" + strconv.FormatUint(uint64(n), 10)
}
