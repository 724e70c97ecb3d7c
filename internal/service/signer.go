package service

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/authn"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/rotation"
)

const (
	defaultLease = time.Hour
	minLease     = 10 * time.Second
	maxLease     = 30 * 24 * time.Hour

	maxDescription = 200
	// maxUses bounds the domains of one report, maxHeld the keys of one domain in
	// it: more than a domain ever has at a time.
	maxUses = 1000
	maxHeld = 64
)

var signerPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

func signerName(id string) string { return "signers/" + id }

func parseSignerName(field, name string) (string, error) {
	v, err := collections(field, name, "signers")
	if err != nil {
		return "", err
	}
	if !signerPattern.MatchString(v[0]) {
		return "", invalid(field, "INVALID_SIGNER", fmt.Sprintf(
			"%.80q is no signer: use at most 63 of a-z, 0-9, \"-\", \"_\" and \".\", a letter or digit first", v[0]))
	}
	return v[0], nil
}

// callingSigner is the signer that a call is about: the one named, as which the
// caller may speak, or the caller.
func callingSigner(ctx context.Context, field, name string) (string, error) {
	caller, known := authn.FromContext(ctx)
	id := caller.SignerID()
	if name == "" {
		if !known {
			return "", invalid(field, "INVALID_SIGNER", "it is missing: say which signer it is about")
		}
		return parseSignerName(field, signerName(id))
	}
	signer, err := parseSignerName(field, name)
	if err != nil {
		return "", err
	}
	if known && caller.Role == authn.Signer && signer != id && !strings.HasPrefix(signer, id+".") {
		return "", fail(codes.PermissionDenied, "PERMISSION_DENIED", fmt.Sprintf(
			"%s may not speak for signer %s: use %s, or a name that begins with %s.", caller.Identity, signer, id, id))
	}
	return signer, nil
}

// RegisterSigner implements dkim.v1.Signer.
func (s *Service) RegisterSigner(ctx context.Context, req *dkimv1.RegisterSignerRequest) (*dkimv1.SignerRegistration, error) {
	m := req.GetSigner()
	id, err := callingSigner(ctx, "signer.name", m.GetName())
	if err != nil {
		return nil, err
	}
	now := s.now()
	next := keystore.Signer{ID: id, Description: m.GetDescription(), RegisterTime: now, Lease: defaultLease}
	if n := utf8.RuneCountInString(m.GetDescription()); n > maxDescription {
		return nil, invalid("signer.description", "INVALID_SIGNER", fmt.Sprintf("%d characters, at most %d are allowed", n, maxDescription))
	}
	if m.GetLeaseDuration() != nil {
		if next.Lease = m.GetLeaseDuration().AsDuration(); next.Lease < minLease || next.Lease > maxLease {
			return nil, invalid("signer.lease_duration", "INVALID_LEASE", fmt.Sprintf("%s is out of range: use %s to %s", next.Lease, minLease, maxLease))
		}
	}
	if m.GetBrand() != "" {
		if next.Brand, err = parseBrandName("signer.brand", m.GetBrand()); err != nil {
			return nil, err
		}
	} else {
		next.Brand = boundBrand(ctx)
	}
	if next.Brand != "" {
		if _, err := s.store.Brand(ctx, next.Brand); err != nil {
			return nil, storeFailure(err)
		}
	}
	next.LeaseExpiry = now.Add(next.Lease)
	stored, err := s.putSigner(ctx, id, func(before keystore.Signer) (keystore.Signer, error) {
		if err := checkSigner(ctx, before); err != nil {
			return before, err
		}
		next.Revision = before.Revision
		if before.Revision != 0 {
			next.RegisterTime = before.RegisterTime
		}
		return next, nil
	})
	if err != nil {
		return nil, err
	}
	return signerMessage(stored), nil
}

// checkSigner refuses one who is bound to a brand and would speak for a signer of
// the provider, or of another brand, that has come to have the same id.
func checkSigner(ctx context.Context, before keystore.Signer) error {
	if bound := boundBrand(ctx); bound != "" && before.Revision != 0 && before.Brand != bound {
		return fail(codes.PermissionDenied, "PERMISSION_DENIED", fmt.Sprintf("signer %s is not of brand %s: choose another name", before.ID, bound))
	}
	return nil
}

// putSigner stores what change makes of a signer, which may be new.
func (s *Service) putSigner(ctx context.Context, id string, change func(keystore.Signer) (keystore.Signer, error)) (keystore.Signer, error) {
	for range conflictRetries {
		before, err := s.store.Signer(ctx, id)
		if err != nil && !errors.Is(err, keystore.ErrSignerNotFound) {
			return keystore.Signer{}, storeFailure(err)
		}
		next, err := change(before)
		if err != nil {
			return keystore.Signer{}, err
		}
		stored, err := s.store.PutSigner(ctx, next)
		if err == nil {
			return stored, nil
		}
		if !errors.Is(err, keystore.ErrConflict) && !errors.Is(err, keystore.ErrSignerNotFound) { // deleted meanwhile
			return keystore.Signer{}, storeFailure(err)
		}
	}
	return keystore.Signer{}, storeFailure(keystore.ErrConflict)
}

// ReportUse implements dkim.v1.Signer.
func (s *Service) ReportUse(ctx context.Context, req *dkimv1.ReportUseRequest) (*dkimv1.ReportUseResponse, error) {
	id, err := callingSigner(ctx, "signer", req.GetSigner())
	if err != nil {
		return nil, err
	}
	now := s.now()
	reports, err := parseUses(id, req.GetDomains(), now)
	if err != nil {
		return nil, err
	}
	// The lease first: a report counts only for a signer that is there.
	signer, err := s.putSigner(ctx, id, func(before keystore.Signer) (keystore.Signer, error) {
		if before.Revision == 0 {
			return before, signerNotFound(id)
		}
		if err := checkSigner(ctx, before); err != nil {
			return before, err
		}
		for i, r := range reports {
			if before.Brand != "" && r.Brand != before.Brand {
				return before, fail(codes.PermissionDenied, "PERMISSION_DENIED", fmt.Sprintf(
					"domains[%d]: signer %s is registered for brand %s, not for %s", i, id, before.Brand, r.Brand))
			}
		}
		before.LeaseExpiry = now.Add(before.Lease)
		return before, nil
	})
	if err != nil {
		return nil, err
	}
	resp := &dkimv1.ReportUseResponse{LeaseExpireTime: timestamp(signer.LeaseExpiry)}
	for len(reports) > 0 {
		brand := reports[0].Brand
		same := slices.IndexFunc(reports, func(r keystore.Report) bool { return r.Brand != brand })
		if same < 0 {
			same = len(reports)
		}
		unknown, err := s.store.PutReports(ctx, reports[:same])
		if err != nil {
			return nil, storeFailure(err)
		}
		for _, d := range unknown {
			resp.UnknownDomains = append(resp.UnknownDomains, domainName{brand, d}.String())
		}
		if err := s.addActive(ctx, resp, brand, reports[:same]); err != nil {
			return nil, err
		}
		reports = reports[same:]
	}
	return resp, nil
}

// addActive tells a signer which keys sign. It comes after its report was noted:
// who reports after a switch is then taken to know of it.
func (s *Service) addActive(ctx context.Context, resp *dkimv1.ReportUseResponse, brand string, reports []keystore.Report) error {
	names := make([]dnsname.Domain, len(reports))
	for i, r := range reports {
		names[i] = r.Domain
	}
	domains, err := s.store.DomainsOf(ctx, brand, names)
	if err != nil {
		return storeFailure(err)
	}
	for _, d := range domains {
		if d.Revision == 0 {
			continue
		}
		n := domainName{d.Brand, d.Name}
		m := &dkimv1.ReportUseResponse_Domain{Domain: n.String()}
		for _, k := range d.Keys {
			if k.State == rotation.Active {
				m.ActiveKeys = append(m.ActiveKeys, n.key(k.ID))
			}
		}
		resp.Domains = append(resp.Domains, m)
	}
	return nil
}

func signerNotFound(id string) error {
	return fail(codes.NotFound, "SIGNER_NOT_FOUND", fmt.Sprintf("signer %s is not registered; RegisterSigner does that", id))
}

// parseUses checks what a signer says of the keys it holds.
func parseUses(signer string, uses []*dkimv1.DomainUse, now time.Time) ([]keystore.Report, error) {
	if n := len(uses); n > maxUses {
		return nil, invalid("domains", "BATCH_TOO_LARGE", fmt.Sprintf("%d domains given, at most %d are allowed: send several reports", n, maxUses))
	}
	seen := make(map[domainName]bool)
	var reports []keystore.Report
	for i, u := range uses {
		field := fmt.Sprintf("domains[%d]", i)
		n, err := parseExistingDomainName(field+".domain", u.GetDomain())
		if err != nil {
			return nil, err
		}
		if seen[n] {
			return nil, invalid(field+".domain", "INVALID_DOMAIN", fmt.Sprintf("%s is there twice", n))
		}
		seen[n] = true
		if len(u.GetKeys()) > maxHeld {
			return nil, invalid(field+".keys", "INVALID_KEY", fmt.Sprintf("%d keys given, at most %d are allowed", len(u.GetKeys()), maxHeld))
		}
		r := keystore.Report{Signer: signer, Brand: n.brand, Domain: n.domain, Time: now, Holds: make(map[string]time.Time)}
		for j, k := range u.GetKeys() {
			keyField := fmt.Sprintf("%s.keys[%d]", field, j)
			owner, id, err := parseKeyName(keyField+".key", k.GetKey())
			if err != nil {
				return nil, err
			}
			used := time.Time{}
			if t := k.GetLastUseTime(); t != nil {
				used = t.AsTime()
			}
			switch {
			case owner != n:
				return nil, invalid(keyField+".key", "INVALID_KEY", fmt.Sprintf("%s is no key of %s", k.GetKey(), n))
			case k.GetLastUseTime() != nil && (k.GetLastUseTime().CheckValid() != nil || used.Before(time.Unix(0, 0))):
				return nil, invalid(keyField+".last_use_time", "INVALID_KEY", "it is no time at which mail was signed")
			}
			if used.After(now) { // its clock is ahead
				used = now
			}
			r.Holds[id] = used
		}
		reports = append(reports, r)
	}
	return reports, nil
}

// GetSigner implements dkim.v1.KeyManagement.
func (s *Service) GetSigner(ctx context.Context, req *dkimv1.GetSignerRequest) (*dkimv1.SignerRegistration, error) {
	id, err := parseSignerName("name", req.GetName())
	if err != nil {
		return nil, err
	}
	signer, err := s.store.Signer(ctx, id)
	if err != nil {
		return nil, storeFailure(err)
	}
	return signerMessage(signer), nil
}

// ListSigners implements dkim.v1.KeyManagement.
func (s *Service) ListSigners(ctx context.Context, req *dkimv1.ListSignersRequest) (*dkimv1.ListSignersResponse, error) {
	size, err := pageSize(req.GetPageSize())
	if err != nil {
		return nil, err
	}
	after, err := pagePlace(req.GetPageToken(), "signers")
	if err != nil {
		return nil, err
	}
	signers, err := s.store.Signers(ctx, "")
	if err != nil {
		return nil, storeFailure(err)
	}
	resp := &dkimv1.ListSignersResponse{}
	for _, signer := range signers { // in order of id
		if signer.ID <= after {
			continue
		}
		if len(resp.Signers) == size {
			resp.NextPageToken = pageToken("signers", strings.TrimPrefix(resp.GetSigners()[size-1].GetName(), "signers/"))
			break
		}
		resp.Signers = append(resp.Signers, signerMessage(signer))
	}
	return resp, nil
}

// DeleteSigner implements dkim.v1.KeyManagement.
func (s *Service) DeleteSigner(ctx context.Context, req *dkimv1.DeleteSignerRequest) (*emptypb.Empty, error) {
	id, err := parseSignerName("name", req.GetName())
	if err != nil {
		return nil, err
	}
	for range conflictRetries { // it may renew its lease meanwhile
		signer, err := s.store.Signer(ctx, id)
		if err == nil {
			err = s.store.DeleteSigner(ctx, signer)
		}
		if err == nil {
			return &emptypb.Empty{}, nil
		}
		if !errors.Is(err, keystore.ErrConflict) {
			return nil, storeFailure(err)
		}
	}
	return nil, storeFailure(keystore.ErrConflict)
}

func signerMessage(s keystore.Signer) *dkimv1.SignerRegistration {
	m := &dkimv1.SignerRegistration{
		Name: signerName(s.ID), Description: s.Description,
		RegisterTime: timestamp(s.RegisterTime), LeaseExpireTime: timestamp(s.LeaseExpiry), LeaseDuration: durationpb.New(s.Lease),
	}
	if s.Brand != "" {
		m.Brand = "brands/" + s.Brand
	}
	return m
}
