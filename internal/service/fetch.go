package service

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc/codes"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/authn"
	"github.com/dkimzone/dkimzone/internal/keystore"
)

// FetchPrivateKeys implements dkim.v1.Signer.
func (s *Service) FetchPrivateKeys(ctx context.Context, req *dkimv1.FetchPrivateKeysRequest) (*dkimv1.FetchPrivateKeysResponse, error) {
	g, err := s.ready()
	if err != nil {
		return nil, err
	}
	caller, ok := authn.FromContext(ctx)
	id := caller.SignerID()
	if !ok || caller.Role != authn.Signer || !slices.Contains(g.fetchers, id) && !slices.Contains(g.fetchers, "*") {
		return nil, fail(codes.PermissionDenied, "KEY_FETCH_NOT_ALLOWED", fmt.Sprintf("%s may not fetch private keys: let dkimd sign (Sign), or start dkimd with --allow-key-fetch for this signer", caller.Identity))
	}
	signer := keystore.Signer{ID: id, Brand: caller.Brand}
	if !req.GetTransient() {
		signer, err = s.store.Signer(ctx, id)
	}
	if errors.Is(err, keystore.ErrSignerNotFound) {
		return nil, fail(codes.FailedPrecondition, "SIGNER_NOT_FOUND", fmt.Sprintf("signer %s is not registered; RegisterSigner does that", id))
	}
	if err != nil {
		return nil, storeFailure(err)
	}
	if n := len(req.GetKeys()); n == 0 || n > maxDigests {
		return nil, invalid("keys", "BATCH_TOO_LARGE", fmt.Sprintf("%d keys given: ask for 1 to %d", n, maxDigests))
	}
	resp := &dkimv1.FetchPrivateKeysResponse{}
	for i, key := range req.GetKeys() {
		r, err := g.fetch(ctx, signer, key, fmt.Sprintf("keys[%d]", i))
		if err != nil {
			r = &dkimv1.FetchPrivateKeysResponse_Result{}
			if r.Error, err = s.itemFailure(ctx, err); err != nil {
				return nil, err
			}
		}
		resp.Results = append(resp.Results, r)
	}
	return resp, nil
}

func (g *signatory) fetch(ctx context.Context, signer keystore.Signer, key, field string) (*dkimv1.FetchPrivateKeysResponse_Result, error) {
	name, err := parseRingName(field, key)
	if err != nil {
		return nil, err
	}
	if signer.Brand != "" && signer.Brand != name.Brand {
		return nil, fail(codes.PermissionDenied, "PERMISSION_DENIED", fmt.Sprintf("signer %s is registered for brand %s, not for %s", signer.ID, signer.Brand, name.Brand))
	}
	if _, err := g.view.HeldKey(name.Brand, name.Domain, name.ID); err != nil {
		return nil, viewFailure(err)
	}
	_, err = g.view.SigningKey(name.Brand, name.Domain, name.ID)
	signs := err == nil
	der, a, err := g.ring.PKCS8(ctx, name)
	if err != nil {
		return nil, ringFailure(err)
	}
	return &dkimv1.FetchPrivateKeysResponse_Result{PrivateKey: der, Algorithm: algorithmMessage(a), Signing: signs, Key: name.String()}, nil
}
