package service

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/authn"
	"github.com/dkimzone/dkimzone/internal/keyring"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/refusal"
	"github.com/dkimzone/dkimzone/internal/signview"
)

// SigningOptions is what signing takes. View and Ring are required.
type SigningOptions struct {
	View *signview.View
	Ring *keyring.Ring
	// Rate is how many signatures a second each signer may have made; 0: no limit.
	Rate float64
	// KeyFetchers are the names of signers that may fetch private keys; "*" is all.
	KeyFetchers []string
}

// UseSigning lets the Service answer from a view of what signs, and sign. It must
// be called before the first request.
func (s *Service) UseSigning(o SigningOptions) {
	s.signing = &signatory{
		view: o.View, ring: o.Ring, fetchers: o.KeyFetchers, rates: newRates(o.Rate),
		cores:   make(chan struct{}, runtime.GOMAXPROCS(0)),
		watches: make(chan struct{}, maxWatches), snapshots: make(chan struct{}, maxSnapshots),
	}
}

// signatory is what the Service answers signers with.
type signatory struct {
	view     *signview.View
	ring     *keyring.Ring
	fetchers []string
	rates    *rates
	// cores has an element for each signature that is being made, watches and
	// snapshots for each that runs.
	cores, watches, snapshots chan struct{}
}

// maxDigests bounds the digests of one call, and the keys fetched by one.
const maxDigests = 100

// ready is what signing works with, if it can.
func (s *Service) ready() (*signatory, error) {
	if s.signing == nil || !s.signing.view.Loaded() {
		return nil, failWith(codes.Unavailable, "NOT_READY", "it is not loaded yet which keys sign; try again, or another dkimd",
			refusal.Retry(retryAfter))
	}
	return s.signing, nil
}

// viewFailure turns an error of the view into a rejection.
func viewFailure(err error) error {
	if no, ok := errors.AsType[*signview.NotSigningError](err); ok {
		return fail(codes.FailedPrecondition, "KEY_NOT_SIGNING", no.Error()+": resolve again, and sign with the key that signs now", "state", no.State.String())
	}
	if errors.Is(err, signview.ErrStale) {
		return storeFailure(fmt.Errorf("%w: %w", keystore.ErrUnavailable, err))
	}
	return storeFailure(err)
}

// Sign implements dkim.v1.Signer.
func (s *Service) Sign(ctx context.Context, req *dkimv1.SignRequest) (*dkimv1.SignResponse, error) {
	g, err := s.ready()
	if err != nil {
		return nil, err
	}
	digests := req.GetDigests()
	switch n := len(digests); {
	case n == 0:
		return nil, invalid("digests", "INVALID_DIGEST", "none is given")
	case n > maxDigests:
		return nil, invalid("digests", "BATCH_TOO_LARGE", fmt.Sprintf("%d digests given, at most %d are allowed: send several requests", n, maxDigests))
	}
	id, _ := authn.FromContext(ctx)
	if wait := g.rates.take(id.String(), len(digests), s.now()); wait > 0 {
		signatures.WithLabelValues("rate_limited").Add(float64(len(digests)))
		return nil, failWith(codes.ResourceExhausted, "RATE_LIMITED", fmt.Sprintf("%s has too many signatures made: dkimd allows %g a second", id.Identity, g.rates.limit()),
			refusal.Retry(wait))
	}
	resp := &dkimv1.SignResponse{Results: make([]*dkimv1.SignResponse_Result, len(digests))}
	one := func(i int) error {
		r := &dkimv1.SignResponse_Result{}
		resp.Results[i] = r
		var err error
		if r.Signature, r.PublicKey, err = g.sign(ctx, digests[i], fmt.Sprintf("digests[%d]", i)); err == nil {
			signatures.WithLabelValues("made").Inc()
			return nil
		}
		r.Error, err = s.itemFailure(ctx, err)
		signatures.WithLabelValues("refused").Inc()
		return err
	}
	if len(digests) == 1 {
		if err := one(0); err != nil {
			return nil, err
		}
		return resp, nil
	}
	var group errgroup.Group
	group.SetLimit(cap(g.cores))
	for i := range digests {
		group.Go(func() error { return one(i) })
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return resp, nil
}

// sign makes one signature.
func (g *signatory) sign(ctx context.Context, d *dkimv1.SignRequest_Digest, field string) (signature, public []byte, err error) {
	name, err := parseRingName(field+".key", d.GetKey())
	if err != nil {
		return nil, nil, err
	}
	var digest *[sha256.Size]byte
	switch n := len(d.GetDigest()); n {
	case 0:
	case sha256.Size:
		digest = (*[sha256.Size]byte)(d.GetDigest())
	default:
		return nil, nil, invalid(field+".digest", "INVALID_DIGEST", fmt.Sprintf("%d octets: it is the SHA-256 digest of the header fields, %d octets, whatever the key", n, sha256.Size))
	}
	if _, err := g.view.SigningKey(name.Brand, name.Domain, name.ID); err != nil {
		if _, ok := errors.AsType[*signview.NotSigningError](err); ok {
			g.ring.Drop(name)
		}
		return nil, nil, viewFailure(err)
	}
	select {
	case g.cores <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	defer func() { <-g.cores }()
	signature, public, err = g.ring.Sign(ctx, name, digest)
	return signature, public, ringFailure(err)
}

func parseRingName(field, name string) (keyring.Name, error) {
	n, id, err := parseKeyName(field, name)
	if err != nil {
		return keyring.Name{}, err
	}
	return keyring.Name{Brand: n.brand, Domain: n.domain, ID: id}, nil
}

// ringFailure turns an error of the keyring into a rejection.
func ringFailure(err error) error {
	if errors.Is(err, keystore.ErrKeyNotFound) { // the key is there, as the view says
		return fail(codes.FailedPrecondition, "KEY_NOT_HELD", "the private half of this key is not here: who published the key has it")
	}
	return storeFailure(err)
}

// itemFailure is the status of one failed part of a call. It returns the error
// itself when that must not be told, or is about the call.
func (s *Service) itemFailure(ctx context.Context, err error) (*statuspb.Status, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if down, ok := errors.AsType[*storeDown](err); ok {
		err = down.rejection
	}
	if st, ok := status.FromError(err); ok {
		return st.Proto(), nil
	}
	return nil, err
}

// Sweep closes the private keys that are of no use any more, once a minute until
// ctx ends, and then all.
func (s *Service) Sweep(ctx context.Context) {
	defer s.signing.ring.Close()
	ticker := time.NewTicker(time.Minute)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			s.signing.ring.Sweep(func(n keyring.Name) bool {
				_, err := s.signing.view.HeldKey(n.Brand, n.Domain, n.ID)
				return err == nil || errors.Is(err, signview.ErrStale)
			})
		}
	}
}
