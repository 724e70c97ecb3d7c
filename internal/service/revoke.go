package service

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"unicode/utf8"

	"google.golang.org/grpc/codes"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/mint"
	"github.com/dkimzone/dkimzone/internal/rotation"
)

// maxReason bounds what a caller says in the history, in characters.
const maxReason = 200

// RevokeKey implements dkim.v1.KeyManagement.
func (s *Service) RevokeKey(ctx context.Context, req *dkimv1.RevokeKeyRequest) (*dkimv1.RevokeKeyResponse, error) {
	n, id, err := parseKeyName("name", req.GetName())
	if err != nil {
		return nil, err
	}
	if c := utf8.RuneCountInString(req.GetReason()); c > maxReason {
		return nil, invalid("reason", "INVALID_REASON", fmt.Sprintf("%d characters, at most %d are allowed", c, maxReason))
	}
	resp := &dkimv1.RevokeKeyResponse{}
	d, err := s.changeKnown(ctx, n, req.GetEtag(), func(d keystore.Domain) (*keystore.Change, error) {
		k := d.Key(id)
		if k == nil {
			return nil, keyNotFound(n, id)
		}
		steps, err := s.revocation(ctx, d, *k, req.GetCompromised())
		if err != nil {
			return nil, err
		}
		resp.PromotedKey = ""
		for _, step := range steps {
			if step.Kind == rotation.Activate {
				resp.PromotedKey = n.key(step.KeyID)
			}
		}
		change, err := s.mint.Change(ctx, d, steps, mint.Options{Now: s.now(), Actor: actor(ctx)})
		if err != nil {
			return nil, err
		}
		for i := range change.Events {
			if change.Events[i].KeyID == id {
				change.Events[i].Detail = req.GetReason()
			}
		}
		return &change, nil
	})
	if err != nil {
		return nil, err
	}
	// The key is revoked now, also when the call fails because nobody can tell
	// who held it: a report without holders would be taken for "nobody did".
	if resp.Holders, err = s.holders(ctx, n, id); err != nil {
		return nil, err
	}
	resp.Domain, err = s.describe(ctx, d)
	return resp, err
}

// revocation are the steps that revoke a key.
func (s *Service) revocation(ctx context.Context, d keystore.Domain, k keystore.Key, compromised bool) ([]rotation.Step, error) {
	switch {
	case k.State == rotation.Revoked:
		return nil, fail(codes.FailedPrecondition, "KEY_REVOKED", fmt.Sprintf("key %s in selector %s of %s is revoked already", k.ID, k.Selector, d.Name))
	case !compromised && k.State != rotation.Prepared:
		return nil, fail(codes.FailedPrecondition, "KEY_IN_USE", fmt.Sprintf(
			"key %s in selector %s of %s is %s: mail that it signed may be under way and would no longer verify. Rotate the domain, which revokes it in time; or say that it is compromised",
			k.ID, k.Selector, d.Name, k.State))
	case !compromised:
		return []rotation.Step{{Kind: rotation.Revoke, KeyID: k.ID, Selector: k.Selector, Algorithm: k.Algorithm, Reason: rotation.ReasonRequested}}, nil
	case k.Custody == rotation.PublicOnly: // nothing stands by for it
		return []rotation.Step{{Kind: rotation.Revoke, KeyID: k.ID, Selector: k.Selector, Algorithm: k.Algorithm, Reason: rotation.ReasonCompromised}}, nil
	}
	p, err := s.look(ctx, d)
	if err != nil {
		return nil, err
	}
	return rotation.RevokeCompromised(p.policy(d), p.view(), p.evidence, k.ID, s.now())
}

// holders says which signers had a key, those that used it last first.
func (s *Service) holders(ctx context.Context, n domainName, keyID string) ([]*dkimv1.KeyHolder, error) {
	reports, err := s.store.Reports(ctx, n.brand, n.domain)
	if err != nil {
		return nil, storeFailure(err)
	}
	slices.SortFunc(reports, func(a, b keystore.Report) int {
		return cmp.Or(b.Holds[keyID].Compare(a.Holds[keyID]), cmp.Compare(a.Signer, b.Signer))
	})
	var all []*dkimv1.KeyHolder
	for _, r := range reports {
		used, holding := r.Holds[keyID]
		first, held := r.FirstSeen[keyID]
		if !holding && !held {
			continue
		}
		all = append(all, &dkimv1.KeyHolder{
			Signer: signerName(r.Signer), HoldTime: timestamp(first), LastUseTime: timestamp(used),
			ReportTime: timestamp(r.Time), Holding: holding,
		})
	}
	return all, nil
}
