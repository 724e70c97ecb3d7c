// Package service is the KeyManagement API: it checks what it is asked, decides
// what should stand, and lets keystore make it so.
package service

import (
	"context"
	"crypto/rand"
	"log/slog"
	"strings"
	"time"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
)

// KeySource makes key pairs. Get waits when none is at hand; it fails only when
// ctx ends or keys cannot be made at all. It must be safe for concurrent use.
type KeySource interface {
	Get(ctx context.Context, a keypair.Algorithm) (*keypair.KeyPair, error)
}

// Sealer encrypts a private key under the brand's data key, bound to the name
// of the resource it belongs to. It must be safe for concurrent use.
type Sealer interface {
	Seal(ctx context.Context, brand, name string, plaintext []byte) ([]byte, error)
}

// Service implements dkim.v1.KeyManagement. It holds no state: any number of
// them may work on one store.
type Service struct {
	dkimv1.UnimplementedKeyManagementServer

	store  *keystore.Store
	keys   KeySource
	sealer Sealer
	now    func() time.Time
	logger *slog.Logger
}

// New returns a Service. now is the clock that dates records and keys.
func New(store *keystore.Store, keys KeySource, sealer Sealer, now func() time.Time, logger *slog.Logger) *Service {
	return &Service{store: store, keys: keys, sealer: sealer, now: now, logger: logger}
}

// conflictRetries is how often a change that named no etag is computed anew
// when somebody else was faster.
const conflictRetries = 10

// newKeyID returns 80 random bits in base32: a key's name is never used again,
// not even after its domain was deleted and provisioned anew.
func newKeyID() string { return strings.ToLower(rand.Text()[:16]) }
