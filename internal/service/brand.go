package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/audit"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/rotation"
)

const (
	maxDisplayName = 200
	// maxQuota is more than any cluster holds, and far from where sums overflow.
	maxQuota = 1_000_000_000
)

// CreateBrand implements dkim.v1.KeyManagement.
func (s *Service) CreateBrand(ctx context.Context, req *dkimv1.CreateBrandRequest) (*dkimv1.Brand, error) {
	if err := checkBrandID("brand_id", req.GetBrandId()); err != nil {
		return nil, err
	}
	zone, err := s.brandZone(ctx, req.GetBrand().GetZone())
	if err != nil {
		return nil, err
	}
	b := keystore.Brand{Name: req.GetBrandId(), Zone: zone, CreateTime: s.now()}
	if err := setBrand(&b, req.GetBrand(), brandPaths()); err != nil {
		return nil, err
	}
	b, err = s.store.CreateBrand(ctx, b)
	if errors.Is(err, keystore.ErrZoneNotFound) {
		return nil, fail(codes.FailedPrecondition, "ZONE_NOT_FOUND", err.Error()+"; create the zone first")
	}
	if err != nil {
		return nil, storeFailure(err)
	}
	if err := s.ensureKeyDomains(ctx, b); err != nil {
		s.takeBack(ctx, b)
		return nil, err
	}
	return s.brandMessage(ctx, b)
}

// takeBackTime is how long a call that has failed tries to leave nothing.
const takeBackTime = 5 * time.Second

// takeBack deletes a new brand whose keys could not be made. If it does not
// succeed the brand stays without them, until UpdateBrand makes them.
func (s *Service) takeBack(ctx context.Context, b keystore.Brand) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), takeBackTime)
	defer cancel()
	own, err := s.ownDomains(ctx, b)
	if err == nil {
		err = s.store.DeleteBrand(ctx, b, own...)
	}
	if err != nil {
		s.logger.LogAttrs(ctx, slog.LevelWarn, "new brand stays without keys", slog.String("brand", b.Name), slog.Any("error", err))
	}
}

// brandZone is the zone a new brand asks for, or the only one there is.
func (s *Service) brandZone(ctx context.Context, resource string) (dnsname.Zone, error) {
	if resource != "" {
		return parseZoneName("brand.zone", resource)
	}
	zones, more, err := s.store.Zones(ctx, "", 1)
	switch {
	case err != nil:
		return "", storeFailure(err)
	case len(zones) == 0:
		return "", fail(codes.FailedPrecondition, "ZONE_NOT_FOUND", "there is no zone yet; create one first")
	case more:
		return "", fail(codes.FailedPrecondition, "ZONE_UNSPECIFIED", "there are several zones; say in brand.zone which one hosts the brand's domains")
	}
	return zones[0].Name, nil
}

// GetBrand implements dkim.v1.KeyManagement.
func (s *Service) GetBrand(ctx context.Context, req *dkimv1.GetBrandRequest) (*dkimv1.Brand, error) {
	b, err := s.brand(ctx, "name", req.GetName())
	if err != nil {
		return nil, err
	}
	return s.brandMessage(ctx, b)
}

func (s *Service) brand(ctx context.Context, field, resource string) (keystore.Brand, error) {
	name, err := parseBrandName(field, resource)
	if err != nil {
		return keystore.Brand{}, err
	}
	b, err := s.store.Brand(ctx, name)
	return b, storeFailure(err)
}

// ListBrands implements dkim.v1.KeyManagement.
func (s *Service) ListBrands(ctx context.Context, req *dkimv1.ListBrandsRequest) (*dkimv1.ListBrandsResponse, error) {
	size, err := pageSize(req.GetPageSize())
	if err != nil {
		return nil, err
	}
	after, err := pagePlace(req.GetPageToken(), "brands")
	if err != nil {
		return nil, err
	}
	brands, more, err := s.brandsOf(ctx, after, size)
	if err != nil {
		return nil, storeFailure(err)
	}
	resp := &dkimv1.ListBrandsResponse{}
	for _, b := range brands {
		m, err := s.brandMessage(ctx, b)
		if err != nil {
			return nil, err
		}
		resp.Brands = append(resp.Brands, m)
	}
	if more {
		resp.NextPageToken = pageToken("brands", brands[len(brands)-1].Name)
	}
	return resp, nil
}

// brandsOf reads the brands that the caller may know of.
func (s *Service) brandsOf(ctx context.Context, after string, size int) (brands []keystore.Brand, more bool, err error) {
	bound := boundBrand(ctx)
	if bound == "" {
		return s.store.Brands(ctx, after, size)
	}
	b, err := s.store.Brand(ctx, bound)
	if errors.Is(err, keystore.ErrBrandNotFound) || err == nil && after >= bound {
		return nil, false, nil
	}
	return []keystore.Brand{b}, false, err
}

// UpdateBrand implements dkim.v1.KeyManagement.
func (s *Service) UpdateBrand(ctx context.Context, req *dkimv1.UpdateBrandRequest) (*dkimv1.Brand, error) {
	paths, err := maskPaths(req.GetUpdateMask(), req.GetBrand(), append(brandPaths(), "zone"))
	if err != nil {
		return nil, err
	}
	for range conflictRetries {
		b, err := s.brand(ctx, "brand.name", req.GetBrand().GetName())
		if err != nil {
			return nil, err
		}
		if err := checkETag(req.GetBrand().GetEtag(), b.ETag()); err != nil {
			return nil, err
		}
		if slices.Contains(paths, "zone") && req.GetBrand().GetZone() != "zones/"+string(b.Zone) {
			return nil, invalid("brand.zone", "IMMUTABLE_FIELD", "a brand stays in its zone, where its customers' CNAMEs point: create another brand there")
		}
		audit.Before(ctx, brandSettings(b))
		if err := setBrand(&b, req.GetBrand(), paths); err != nil {
			return nil, err
		}
		// The keys before the mode that needs them.
		if err := s.ensureKeyDomains(ctx, b); err != nil {
			return nil, err
		}
		b, err = s.store.UpdateBrand(ctx, b)
		if err == nil {
			return s.brandMessage(ctx, b)
		}
		if !errors.Is(err, keystore.ErrConflict) {
			return nil, storeFailure(err)
		}
	}
	return nil, storeFailure(keystore.ErrConflict)
}

// DeleteBrand implements dkim.v1.KeyManagement.
func (s *Service) DeleteBrand(ctx context.Context, req *dkimv1.DeleteBrandRequest) (*emptypb.Empty, error) {
	for range conflictRetries {
		b, err := s.brand(ctx, "name", req.GetName())
		if err != nil {
			return nil, err
		}
		if err := checkETag(req.GetEtag(), b.ETag()); err != nil {
			return nil, err
		}
		own, err := s.ownDomains(ctx, b)
		if err != nil {
			return nil, err
		}
		audit.Before(ctx, brandSettings(b))
		err = s.store.DeleteBrand(ctx, b, own...)
		if err == nil {
			return &emptypb.Empty{}, nil
		}
		if !errors.Is(err, keystore.ErrConflict) { // its own keys rotate meanwhile
			return nil, storeFailure(err)
		}
	}
	return nil, storeFailure(keystore.ErrConflict)
}

// brandPaths are the fields of a brand that may be set.
func brandPaths() []string {
	return append(policyPaths(), "display_name", "signing_mode", "disclosure", "disclosure.enabled", "disclosure.lag", "max_domains")
}

// setBrand sets the named fields of b from msg; fields that msg leaves empty get
// their defaults.
func setBrand(b *keystore.Brand, msg *dkimv1.Brand, paths []string) error {
	if slices.Contains(paths, "display_name") {
		if n := utf8.RuneCountInString(msg.GetDisplayName()); n > maxDisplayName {
			return invalid("brand.display_name", "INVALID_BRAND", fmt.Sprintf("%d characters, at most %d are allowed", n, maxDisplayName))
		}
		b.DisplayName = msg.GetDisplayName()
	}
	if slices.Contains(paths, "signing_mode") {
		mode, ok := modes[msg.GetSigningMode()]
		if !ok {
			return invalid("brand.signing_mode", "INVALID_BRAND", fmt.Sprintf("%d is no mode: use PER_DOMAIN, BRAND_DEFAULT or BRAND_SHARED", msg.GetSigningMode()))
		}
		b.Mode = mode
	}
	if slices.Contains(paths, "max_domains") {
		if n := msg.GetMaxDomains(); n < 0 || n > maxQuota {
			return invalid("brand.max_domains", "INVALID_BRAND", fmt.Sprintf("%d: use 1 to %d, or 0 for no bound", n, maxQuota))
		}
		b.MaxDomains = msg.GetMaxDomains()
	}
	if err := setDisclosure(&b.Disclosure, msg.GetDisclosure(), paths); err != nil {
		return err
	}
	return setPolicy(&b.Policy, msg.GetRotationPolicy(), "brand", paths)
}

const (
	day                  = 24 * time.Hour
	minDisclosureLag     = 7*day + maxTTL*time.Second
	maxDisclosureLag     = 3650 * day
	defaultDisclosureLag = 30 * day
)

func setDisclosure(d *keystore.Disclosure, msg *dkimv1.KeyDisclosure, paths []string) error {
	all := slices.Contains(paths, "disclosure")
	enabled, lag := all || slices.Contains(paths, "disclosure.enabled"), all || slices.Contains(paths, "disclosure.lag")
	if enabled {
		d.Enabled = msg.GetEnabled()
	}
	if lag {
		d.Lag = 0
		if msg.GetLag() != nil {
			given := msg.GetLag().AsDuration().Truncate(time.Microsecond)
			if msg.GetLag().CheckValid() != nil || given < minDisclosureLag || given > maxDisclosureLag {
				return invalid("brand.disclosure.lag", "INVALID_BRAND",
					fmt.Sprintf("%s: use %d to %d days", given, minDisclosureLag/day, maxDisclosureLag/day))
			}
			d.Lag = given
		}
	}
	if d.Enabled && d.Lag == 0 {
		d.Lag = defaultDisclosureLag
	}
	return nil
}

// disclosureMessage is nil for a brand that has never wanted it.
func disclosureMessage(d keystore.Disclosure) *dkimv1.KeyDisclosure {
	if d == (keystore.Disclosure{}) {
		return nil
	}
	m := &dkimv1.KeyDisclosure{Enabled: d.Enabled}
	if d.Lag != 0 {
		m.Lag = durationpb.New(d.Lag)
	}
	return m
}

// modes are the signing modes of the API.
var modes = map[dkimv1.SigningMode]rotation.Mode{
	dkimv1.SigningMode_SIGNING_MODE_UNSPECIFIED:   rotation.ModePerDomain,
	dkimv1.SigningMode_SIGNING_MODE_PER_DOMAIN:    rotation.ModePerDomain,
	dkimv1.SigningMode_SIGNING_MODE_BRAND_DEFAULT: rotation.ModeBrandDefault,
	dkimv1.SigningMode_SIGNING_MODE_BRAND_SHARED:  rotation.ModeBrandShared,
}

func modeMessage(m rotation.Mode) dkimv1.SigningMode {
	switch m {
	case rotation.ModeBrandDefault:
		return dkimv1.SigningMode_SIGNING_MODE_BRAND_DEFAULT
	case rotation.ModeBrandShared:
		return dkimv1.SigningMode_SIGNING_MODE_BRAND_SHARED
	}
	return dkimv1.SigningMode_SIGNING_MODE_PER_DOMAIN
}

// brandSettings is a brand without its own key domains.
func brandSettings(b keystore.Brand) *dkimv1.Brand {
	return &dkimv1.Brand{
		Name:           "brands/" + b.Name,
		Zone:           "zones/" + string(b.Zone),
		DisplayName:    b.DisplayName,
		CreateTime:     timestamp(b.CreateTime),
		Etag:           b.ETag(),
		SigningMode:    modeMessage(b.Mode),
		RotationPolicy: overrideMessage(b.Policy),
		Disclosure:     disclosureMessage(b.Disclosure),
		MaxDomains:     b.MaxDomains,
	}
}

// brandMessage is a brand with its own key domains, as far as they are there.
func (s *Service) brandMessage(ctx context.Context, b keystore.Brand) (*dkimv1.Brand, error) {
	m := brandSettings(b)
	if b.MaxDomains != 0 {
		var err error
		if m.DomainCount, err = s.store.CustomerDomains(ctx, b.Name); err != nil {
			return nil, storeFailure(err)
		}
	}
	names := []dnsname.Domain{keystore.DefaultDomainName(b), keystore.SharedDomainName(b)}
	domains, err := s.store.DomainsOf(ctx, b.Name, names)
	if err != nil {
		return nil, storeFailure(err)
	}
	for i, to := range []*string{&m.DefaultDomain, &m.SharedDomain} {
		if domains[i].Revision != 0 {
			*to = domainName{b.Name, names[i]}.String()
		}
	}
	return m, nil
}
