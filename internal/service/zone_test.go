package service_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/keystore"
)

func TestZone(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	made := must(f.api.CreateZone(ctx, &dkimv1.CreateZoneRequest{ZoneId: "Keys.Bücher.example", Zone: &dkimv1.Zone{
		NameServers: []*dkimv1.NameServer{
			{Host: "NS1.keys.bücher.example", Addresses: []string{"192.0.2.1", "2001:DB8::0:1", "::ffff:192.0.2.1"}},
			{Host: "ns2.example.org"},
		},
		Mailbox: "dns@example.org",
	}}))(t)
	want := &dkimv1.Zone{
		Name: "zones/keys.xn--bcher-kva.example",
		NameServers: []*dkimv1.NameServer{
			{Host: "ns1.keys.xn--bcher-kva.example", Addresses: []string{"192.0.2.1", "2001:db8::1"}},
			{Host: "ns2.example.org"},
		},
		Mailbox:          "dns.example.org",
		RecordTtlSeconds: 3600, NegativeTtlSeconds: 300, ApexTtlSeconds: 86400,
		RefreshSeconds: 3600, RetrySeconds: 600, ExpireSeconds: 1209600,
		CreateTime: timestamppb.New(start.Truncate(time.Microsecond)), Revision: made.GetRevision(), Serial: made.GetRevision(), Etag: made.GetEtag(),
	}
	wantEqual(t, "zone as made", made, want)
	wantEqual(t, "zone as read", must(f.api.GetZone(ctx, &dkimv1.GetZoneRequest{Name: "zones/keys.Bücher.example"}))(t), want)
	if made.GetEtag() == "" || made.GetRevision() == 0 {
		t.Errorf("zone has etag %q and revision %d", made.GetEtag(), made.GetRevision())
	}

	// Named by a mask, by what is set, and by a star.
	changed := must(f.api.UpdateZone(ctx, &dkimv1.UpdateZoneRequest{
		Zone:       &dkimv1.Zone{Name: made.GetName(), Etag: made.GetEtag(), RecordTtlSeconds: 60, Mailbox: "ignored.example"},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"record_ttl_seconds"}},
	}))(t)
	want.RecordTtlSeconds, want.Etag, want.Revision, want.Serial = 60, changed.GetEtag(), changed.GetRevision(), changed.GetRevision()
	wantEqual(t, "zone changed by a mask", changed, want)
	if changed.GetEtag() == made.GetEtag() || changed.GetRevision() <= made.GetRevision() {
		t.Errorf("a change leaves etag %q and revision %d", changed.GetEtag(), changed.GetRevision())
	}
	for ttl, mask := range map[int32]*fieldmaskpb.FieldMask{5: nil, 6: {}} {
		changed = must(f.api.UpdateZone(ctx, &dkimv1.UpdateZoneRequest{
			Zone: &dkimv1.Zone{Name: made.GetName(), NegativeTtlSeconds: ttl}, UpdateMask: mask,
		}))(t)
		want.NegativeTtlSeconds, want.Etag, want.Revision, want.Serial = ttl, changed.GetEtag(), changed.GetRevision(), changed.GetRevision()
		wantEqual(t, "zone changed without a mask", changed, want)
	}
	changed = must(f.api.UpdateZone(ctx, &dkimv1.UpdateZoneRequest{
		Zone:       &dkimv1.Zone{Name: made.GetName(), NameServers: outside},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"*"}},
	}))(t)
	want = &dkimv1.Zone{
		Name: made.GetName(), NameServers: outside, Mailbox: "hostmaster.keys.xn--bcher-kva.example",
		RecordTtlSeconds: 3600, NegativeTtlSeconds: 300, ApexTtlSeconds: 86400,
		RefreshSeconds: 3600, RetrySeconds: 600, ExpireSeconds: 1209600,
		CreateTime: made.GetCreateTime(), Revision: changed.GetRevision(), Serial: changed.GetRevision(), Etag: changed.GetEtag(),
	}
	wantEqual(t, "zone changed as a whole", changed, want)

	must(f.api.DeleteZone(ctx, &dkimv1.DeleteZoneRequest{Name: made.GetName(), Etag: changed.GetEtag()}))(t)
	list := must(f.api.ListZones(ctx, &dkimv1.ListZonesRequest{}))(t)
	wantEqual(t, "zones that are left", names(list.GetZones()), []string{"keys.example.net"})
}

func TestAcceptZoneDeletions(t *testing.T) {
	f := newFixture(t)
	f.provision(t, "brands/acme/domains/spamtrap.dk")
	before := must(f.store.Revision(t.Context()))(t)
	z := must(f.api.AcceptZoneDeletions(t.Context(), &dkimv1.AcceptZoneDeletionsRequest{Name: "zones/keys.example.net"}))(t)
	stored := must(f.store.Zone(t.Context(), "keys.example.net"))(t)
	if stored.AcceptDeletionsRevision != before {
		t.Errorf("deletions are accepted up to revision %d, want %d, as it was", stored.AcceptDeletionsRevision, before)
	}
	if z.GetRevision() != stored.Revision || z.GetRevision() <= before {
		t.Errorf("answer of revision %d, zone of %d", z.GetRevision(), stored.Revision)
	}
}

func TestListZones(t *testing.T) {
	f := newFixture(t)
	want := []string{"keys.example.net"}
	for i := range 24 {
		id := fmt.Sprintf("z%02d.example", i)
		want = append(want, id)
		must(f.api.CreateZone(t.Context(), &dkimv1.CreateZoneRequest{ZoneId: id, Zone: &dkimv1.Zone{NameServers: outside}}))(t)
	}
	for _, size := range []int32{0, 1, 5, 24, 25, 26, 2000} {
		req := &dkimv1.ListZonesRequest{PageSize: size}
		var got []string
		for more := true; more; more = req.GetPageToken() != "" {
			resp := must(f.api.ListZones(t.Context(), req))(t)
			if n := len(resp.GetZones()); n == 0 || size > 0 && n > int(size) {
				t.Fatalf("page of %d zones for size %d", n, size)
			}
			got = append(got, names(resp.GetZones())...)
			req.PageToken = resp.GetNextPageToken()
		}
		wantEqual(t, fmt.Sprintf("zones by %d", size), got, want)
	}
}

func TestBrand(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	must(f.api.CreateZone(ctx, &dkimv1.CreateZoneRequest{ZoneId: "zwei.example", Zone: &dkimv1.Zone{NameServers: outside}}))(t)
	made := must(f.api.CreateBrand(ctx, &dkimv1.CreateBrandRequest{
		BrandId: "b-2", Brand: &dkimv1.Brand{Name: "brands/ignored", Zone: "zones/ZWEI.example", DisplayName: "Zwei GmbH"},
	}))(t)
	want := &dkimv1.Brand{
		Name: "brands/b-2", Zone: "zones/zwei.example", DisplayName: "Zwei GmbH",
		CreateTime: timestamppb.New(start.Truncate(time.Microsecond)), Etag: made.GetEtag(),
		SigningMode: dkimv1.SigningMode_SIGNING_MODE_PER_DOMAIN, DefaultDomain: "brands/b-2/domains/b-2.zwei.example",
	}
	wantEqual(t, "brand as made", made, want)
	wantEqual(t, "brand as read", must(f.api.GetBrand(ctx, &dkimv1.GetBrandRequest{Name: "brands/b-2"}))(t), want)

	for i, req := range []*dkimv1.UpdateBrandRequest{
		{Brand: &dkimv1.Brand{Name: "brands/b-2", DisplayName: "one"}},
		{Brand: &dkimv1.Brand{Name: "brands/b-2", DisplayName: "two", Zone: "zones/zwei.example"}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"*"}}},
		{Brand: &dkimv1.Brand{Name: "brands/b-2", DisplayName: "three", Zone: "zones/other.example"}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"display_name"}}},
		{Brand: &dkimv1.Brand{Name: "brands/b-2"}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"display_name"}}},
	} {
		req.Brand.Etag = want.GetEtag()
		changed := must(f.api.UpdateBrand(ctx, req))(t)
		want.DisplayName, want.Etag = req.GetBrand().GetDisplayName(), changed.GetEtag()
		wantEqual(t, fmt.Sprintf("brand after update %d", i), changed, want)
		wantEqual(t, "brand as read", must(f.api.GetBrand(ctx, &dkimv1.GetBrandRequest{Name: "brands/b-2"}))(t), want)
	}

	must(f.api.DeleteBrand(ctx, &dkimv1.DeleteBrandRequest{Name: "brands/b-2", Etag: want.GetEtag()}))(t)
	list := must(f.api.ListBrands(ctx, &dkimv1.ListBrandsRequest{}))(t)
	wantEqual(t, "brands that are left", names(list.GetBrands()), []string{"acme", "other"})
}

// A brand whose keys cannot be made is not left behind.
func TestCreateBrandWithoutKeys(t *testing.T) {
	f := newFixture(t)
	f.keys.err = errors.New("no entropy")
	before := f.under("/dkim/")
	_, err := f.api.CreateBrand(t.Context(), &dkimv1.CreateBrandRequest{BrandId: "new"})
	wantEqual(t, "code", status.Code(err), codes.Internal)
	wantEqual(t, "keys of the store", f.under("/dkim/"), before)
	f.keys.err = nil
	must(f.api.CreateBrand(t.Context(), &dkimv1.CreateBrandRequest{BrandId: "new"}))(t)
}

func TestBrandWithoutAZone(t *testing.T) {
	f := newFixture(t)
	for _, b := range []string{"acme", "other"} {
		must(f.api.DeleteBrand(t.Context(), &dkimv1.DeleteBrandRequest{Name: "brands/" + b}))(t)
	}
	must(f.api.DeleteZone(t.Context(), &dkimv1.DeleteZoneRequest{Name: "zones/keys.example.net"}))(t)
	f.refused(t, rejection{codes.FailedPrecondition, "ZONE_NOT_FOUND", ""}, func() error {
		_, err := f.api.CreateBrand(t.Context(), &dkimv1.CreateBrandRequest{BrandId: "acme"})
		return err
	})
}

func TestListBrands(t *testing.T) {
	f := newFixture(t)
	want := []string{"acme", "other"}
	for i := range 20 {
		id := fmt.Sprintf("b%02d", i)
		want = append(want, id)
		must(f.store.CreateBrand(t.Context(), keystore.Brand{Name: id, Zone: "keys.example.net", CreateTime: start}))(t)
	}
	slices.Sort(want)
	for _, size := range []int32{0, 1, 7, 21, 22, 23, 2000} {
		req := &dkimv1.ListBrandsRequest{PageSize: size}
		var got []string
		for more := true; more; more = req.GetPageToken() != "" {
			resp := must(f.api.ListBrands(t.Context(), req))(t)
			got = append(got, names(resp.GetBrands())...)
			req.PageToken = resp.GetNextPageToken()
		}
		wantEqual(t, fmt.Sprintf("brands by %d", size), got, want)
	}
}

// Whoever names no etag never has to look at conflicts.
func TestConcurrentUpdates(t *testing.T) {
	f := newFixture(t)
	const n = 5
	errs := make(chan error, 2*n)
	for i := range n {
		go func() {
			_, err := f.api.UpdateZone(t.Context(), &dkimv1.UpdateZoneRequest{Zone: &dkimv1.Zone{Name: "zones/keys.example.net", RecordTtlSeconds: int32(100 + i)}})
			errs <- err
		}()
		go func() {
			_, err := f.api.UpdateBrand(t.Context(), &dkimv1.UpdateBrandRequest{Brand: &dkimv1.Brand{Name: "brands/acme", DisplayName: fmt.Sprint(i)}})
			errs <- err
		}()
	}
	for range 2 * n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	// Of those who name one, one succeeds.
	b := must(f.api.GetBrand(t.Context(), &dkimv1.GetBrandRequest{Name: "brands/acme"}))(t)
	for i := range n {
		go func() {
			change := proto.CloneOf(b)
			change.DisplayName = fmt.Sprint("with etag ", i)
			_, err := f.api.UpdateBrand(t.Context(), &dkimv1.UpdateBrandRequest{Brand: change, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"display_name"}}})
			errs <- err
		}()
	}
	succeeded := 0
	for range n {
		if <-errs == nil {
			succeeded++
		}
	}
	if succeeded != 1 {
		t.Errorf("%d of %d updates with one etag succeeded, want 1", succeeded, n)
	}
}
