package service

import (
	"context"
	"fmt"
	"slices"

	"google.golang.org/grpc/codes"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/audit"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
)

// algorithmChange is a checked AlgorithmChange.
type algorithmChange struct{ from, to keypair.Algorithm }

// UpdateDomain implements dkim.v1.KeyManagement.
func (s *Service) UpdateDomain(ctx context.Context, req *dkimv1.UpdateDomainRequest) (*dkimv1.Domain, error) {
	n, err := parseExistingDomainName("domain.name", req.GetDomain().GetName())
	if err != nil {
		return nil, err
	}
	paths, err := maskPaths(req.GetUpdateMask(), req.GetDomain(), policyPaths())
	if err != nil {
		return nil, err
	}
	changes, err := parseAlgorithmChanges(req.GetAlgorithmChanges())
	if err != nil {
		return nil, err
	}
	d, err := s.changeKnown(ctx, n, req.GetDomain().GetEtag(), func(d keystore.Domain) (*keystore.Change, error) {
		audit.Before(ctx, &dkimv1.Domain{RotationPolicy: overrideMessage(d.Policy)})
		change := &keystore.Change{Actor: actor(ctx)}
		if len(paths) > 0 {
			if err := setPolicy(&d.Policy, req.GetDomain().GetRotationPolicy(), "domain", paths); err != nil {
				return nil, err
			}
			change.Events = append(change.Events, s.event(ctx, "UPDATE_POLICY"))
		}
		d.Selectors = slices.Clone(d.Selectors)
		for _, c := range changes {
			if err := changeAlgorithm(&d, c); err != nil {
				return nil, err
			}
			e := s.event(ctx, "CHANGE_ALGORITHM")
			e.Algorithm, e.Detail = c.to, fmt.Sprintf("from %s to %s", c.from, c.to)
			change.Events = append(change.Events, e)
		}
		if len(change.Events) == 0 {
			return nil, nil
		}
		change.Domain = d
		return change, nil
	})
	if err != nil {
		return nil, err
	}
	return s.describe(ctx, d)
}

func parseAlgorithmChanges(msgs []*dkimv1.AlgorithmChange) ([]algorithmChange, error) {
	var changes []algorithmChange
	for i, m := range msgs {
		var c algorithmChange
		for _, part := range []struct {
			field string
			api   dkimv1.KeyAlgorithm
			to    *keypair.Algorithm
		}{{"from", m.GetFrom(), &c.from}, {"to", m.GetTo(), &c.to}} {
			field := fmt.Sprintf("algorithm_changes[%d].%s", i, part.field)
			a, err := parseAlgorithm(field, part.api)
			if err != nil {
				return nil, err
			}
			if a == 0 {
				return nil, invalid(field, "INVALID_ALGORITHM", "it is missing: name the algorithm to replace and the new one")
			}
			*part.to = a
		}
		changes = append(changes, c)
	}
	return changes, nil
}

// changeAlgorithm sets the algorithm that the selectors of a group are to have.
// Rotation does the rest.
func changeAlgorithm(d *keystore.Domain, c algorithmChange) error {
	used := func(a keypair.Algorithm) bool {
		return slices.ContainsFunc(d.Selectors, func(s keystore.Selector) bool { return s.Algorithm == a })
	}
	switch {
	case !used(c.from):
		return fail(codes.FailedPrecondition, "ALGORITHM_NOT_USED", fmt.Sprintf(
			"no selector of %s is of algorithm %s; GetDomain shows which are", d.Name, c.from), "algorithm", c.from.String())
	case c.from == c.to:
		return nil
	case used(c.to):
		return fail(codes.FailedPrecondition, "ALGORITHM_IN_USE", fmt.Sprintf(
			"other selectors of %s are of algorithm %s already: keys of one algorithm take turns in all its selectors", d.Name, c.to),
			"algorithm", c.to.String())
	}
	for i := range d.Selectors {
		if d.Selectors[i].Algorithm == c.from {
			d.Selectors[i].Algorithm = c.to
		}
	}
	return nil
}
