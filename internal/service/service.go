// Package service is the API, KeyManagement and Signer: it checks what it is
// asked, decides what should stand, and lets keystore make it so.
package service

import (
	"context"
	"log/slog"
	"time"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/evidence"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/mint"
	"github.com/dkimzone/dkimzone/internal/prober"
)

// Prober asks DNS; *prober.Prober is one. It must be safe for concurrent use.
type Prober interface {
	evidence.Prober
	// Challenge reports whether the name servers of a domain serve the token as
	// TXT data of _dkimzone-challenge below it.
	Challenge(ctx context.Context, domain, token string) (bool, []prober.ServerAnswer)
}

// Service implements dkim.v1.KeyManagement and dkim.v1.Signer. It holds no
// state: any number of them may work on one store.
type Service struct {
	dkimv1.UnimplementedKeyManagementServer
	dkimv1.UnimplementedSignerServer

	store  *keystore.Store
	mint   *mint.Mint
	prober Prober
	gate   Gate // nil: every domain is admitted
	now    func() time.Time
	logger *slog.Logger

	signing *signatory // nil: what signs is read from the store each time, and nothing is signed here
}

// Option sets something of a Service that it can do without.
type Option func(*Service)

// WithGate makes the Service ask before a domain gets keys.
func WithGate(g Gate) Option { return func(s *Service) { s.gate = g } }

// New returns a Service. Without a prober, nil, domains cannot be checked, nor
// taken over from another brand. now is the clock that dates records and keys.
func New(store *keystore.Store, m *mint.Mint, p Prober, now func() time.Time, logger *slog.Logger, options ...Option) *Service {
	s := &Service{store: store, mint: m, prober: p, now: now, logger: logger}
	for _, set := range options {
		set(s)
	}
	return s
}

// conflictRetries is how often a change that named no etag is computed anew
// when somebody else was faster.
const conflictRetries = 10
