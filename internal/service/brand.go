package service

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/emptypb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keystore"
)

const maxDisplayName = 200

// CreateBrand implements dkim.v1.KeyManagement.
func (s *Service) CreateBrand(ctx context.Context, req *dkimv1.CreateBrandRequest) (*dkimv1.Brand, error) {
	if err := checkBrandID("brand_id", req.GetBrandId()); err != nil {
		return nil, err
	}
	if err := checkDisplayName(req.GetBrand().GetDisplayName()); err != nil {
		return nil, err
	}
	zone, err := s.brandZone(ctx, req.GetBrand().GetZone())
	if err != nil {
		return nil, err
	}
	b, err := s.store.CreateBrand(ctx, keystore.Brand{
		Name: req.GetBrandId(), Zone: zone, DisplayName: req.GetBrand().GetDisplayName(), CreateTime: s.now(),
	})
	if errors.Is(err, keystore.ErrZoneNotFound) {
		return nil, fail(codes.FailedPrecondition, "ZONE_NOT_FOUND", err.Error()+"; create the zone first")
	}
	if err != nil {
		return nil, storeFailure(err)
	}
	return brandMessage(b), nil
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
	return brandMessage(b), nil
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
	brands, more, err := s.store.Brands(ctx, after, size)
	if err != nil {
		return nil, storeFailure(err)
	}
	resp := &dkimv1.ListBrandsResponse{}
	for _, b := range brands {
		resp.Brands = append(resp.Brands, brandMessage(b))
	}
	if more {
		resp.NextPageToken = pageToken("brands", brands[len(brands)-1].Name)
	}
	return resp, nil
}

// UpdateBrand implements dkim.v1.KeyManagement.
func (s *Service) UpdateBrand(ctx context.Context, req *dkimv1.UpdateBrandRequest) (*dkimv1.Brand, error) {
	paths, err := maskPaths(req.GetUpdateMask(), req.GetBrand(), []string{"display_name", "zone"})
	if err != nil {
		return nil, err
	}
	if err := checkDisplayName(req.GetBrand().GetDisplayName()); err != nil {
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
		if slices.Contains(paths, "display_name") {
			b.DisplayName = req.GetBrand().GetDisplayName()
		}
		b, err = s.store.UpdateBrand(ctx, b)
		if err == nil {
			return brandMessage(b), nil
		}
		if !errors.Is(err, keystore.ErrConflict) {
			return nil, storeFailure(err)
		}
	}
	return nil, storeFailure(keystore.ErrConflict)
}

// DeleteBrand implements dkim.v1.KeyManagement.
func (s *Service) DeleteBrand(ctx context.Context, req *dkimv1.DeleteBrandRequest) (*emptypb.Empty, error) {
	b, err := s.brand(ctx, "name", req.GetName())
	if err != nil {
		return nil, err
	}
	if err := checkETag(req.GetEtag(), b.ETag()); err != nil {
		return nil, err
	}
	if err := s.store.DeleteBrand(ctx, b); err != nil {
		return nil, storeFailure(err)
	}
	return &emptypb.Empty{}, nil
}

func checkDisplayName(name string) error {
	if n := utf8.RuneCountInString(name); n > maxDisplayName {
		return invalid("brand.display_name", "INVALID_BRAND", fmt.Sprintf("%d characters, at most %d are allowed", n, maxDisplayName))
	}
	return nil
}

func brandMessage(b keystore.Brand) *dkimv1.Brand {
	return &dkimv1.Brand{
		Name:        "brands/" + b.Name,
		Zone:        "zones/" + string(b.Zone),
		DisplayName: b.DisplayName,
		CreateTime:  timestamp(b.CreateTime),
		Etag:        b.ETag(),
	}
}
