package service_test

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/keystore"
)

func TestBrandDisclosure(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	const day = 24 * time.Hour
	lag := func(d time.Duration) *durationpb.Duration { return durationpb.New(d) }
	for i, tt := range []struct {
		set   *dkimv1.KeyDisclosure
		paths []string
		want  *dkimv1.KeyDisclosure
	}{
		{nil, []string{"display_name"}, nil},
		{&dkimv1.KeyDisclosure{Enabled: true, Lag: lag(90 * day)}, []string{"display_name"}, nil},
		{&dkimv1.KeyDisclosure{Enabled: true}, nil, &dkimv1.KeyDisclosure{Enabled: true, Lag: lag(30 * day)}},
		{&dkimv1.KeyDisclosure{Lag: lag(8 * day)}, []string{"disclosure.lag"}, &dkimv1.KeyDisclosure{Enabled: true, Lag: lag(8 * day)}},
		{&dkimv1.KeyDisclosure{Lag: lag(3650 * day)}, []string{"disclosure.enabled"}, &dkimv1.KeyDisclosure{Lag: lag(8 * day)}},
		{&dkimv1.KeyDisclosure{Enabled: true}, []string{"disclosure.enabled"}, &dkimv1.KeyDisclosure{Enabled: true, Lag: lag(8 * day)}},
		{&dkimv1.KeyDisclosure{}, []string{"disclosure.lag"}, &dkimv1.KeyDisclosure{Enabled: true, Lag: lag(30 * day)}},
		{&dkimv1.KeyDisclosure{Enabled: true, Lag: lag(3650 * day)}, []string{"disclosure"}, &dkimv1.KeyDisclosure{Enabled: true, Lag: lag(3650 * day)}},
		{nil, []string{"*"}, nil},
	} {
		changed := must(f.api.UpdateBrand(ctx, &dkimv1.UpdateBrandRequest{
			Brand: &dkimv1.Brand{Name: "brands/acme", Zone: "zones/keys.example.net", Disclosure: tt.set}, UpdateMask: &fieldmaskpb.FieldMask{Paths: tt.paths},
		}))(t)
		wantEqual(t, fmt.Sprintf("disclosure after update %d", i), changed.GetDisclosure(), tt.want)
		wantEqual(t, "disclosure as read", must(f.api.GetBrand(ctx, &dkimv1.GetBrandRequest{Name: "brands/acme"}))(t).GetDisclosure(), tt.want)
	}
	made := must(f.api.CreateBrand(ctx, &dkimv1.CreateBrandRequest{BrandId: "new", Brand: &dkimv1.Brand{Disclosure: &dkimv1.KeyDisclosure{Enabled: true, Lag: lag(9 * day)}}}))(t)
	wantEqual(t, "disclosure of a new brand", made.GetDisclosure(), &dkimv1.KeyDisclosure{Enabled: true, Lag: lag(9 * day)})
	wantEqual(t, "as stored", must(f.store.Brand(ctx, "new"))(t).Disclosure, keystore.Disclosure{Enabled: true, Lag: 9 * day})

	type api = dkimv1.KeyManagementClient
	var refusals []refusal
	for name, bad := range map[string]*durationpb.Duration{
		"zero": {}, "below eight days": lag(8*day - 1), "negative": lag(-8 * day), "over ten years": lag(3650*day + time.Second), "no duration": {Seconds: 1, Nanos: -1},
	} {
		set := &dkimv1.KeyDisclosure{Enabled: true, Lag: bad}
		refusals = append(refusals,
			refusal{"update, " + name, badArgument("INVALID_BRAND", "brand.disclosure.lag"), calling(api.UpdateBrand, &dkimv1.UpdateBrandRequest{Brand: &dkimv1.Brand{Name: "brands/acme", Disclosure: set}})},
			refusal{"create, " + name, badArgument("INVALID_BRAND", "brand.disclosure.lag"), calling(api.CreateBrand, &dkimv1.CreateBrandRequest{BrandId: "bad", Brand: &dkimv1.Brand{Disclosure: set}})})
	}
	refusals = append(refusals, refusal{"unknown field", badArgument("INVALID_FIELD_MASK", "update_mask"), calling(api.UpdateBrand, &dkimv1.UpdateBrandRequest{
		Brand: &dkimv1.Brand{Name: "brands/acme"}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"disclosure.time"}},
	})})
	f.refuse(t, refusals)
}
