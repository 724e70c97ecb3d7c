package rotation_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dkimzone/dkimzone/internal/rotation"
)

const day = 24 * time.Hour

func TestPolicyWith(t *testing.T) {
	base := rotation.DefaultPolicy()
	if diff := cmp.Diff(base, base.With(rotation.Override{})); diff != "" {
		t.Errorf("an empty override changes the policy (-want +got):\n%s", diff)
	}
	first, second := rotation.Freeze{Start: now, End: now.Add(day)}, rotation.Freeze{Start: now.Add(7 * day), End: now.Add(8 * day)}
	all := rotation.Override{
		Interval: new(30 * day), Drain: new(1 * day), Gap: new(2 * day), Lead: new(time.Hour), CheckInterval: new(time.Minute),
		JitterPercent: new(0), Paused: new(true), Freezes: []rotation.Freeze{first}, MaxPerHour: new(7),
	}
	want := rotation.Policy{
		Interval: 30 * day, Drain: day, Gap: 2 * day, Lead: time.Hour, CheckInterval: time.Minute,
		Paused: true, Freezes: []rotation.Freeze{first}, MaxPerHour: 7,
	}
	zone := base.With(all)
	if diff := cmp.Diff(want, zone); diff != "" {
		t.Errorf("policy (-want +got):\n%s", diff)
	}
	// The next override wins, but for freezes, which add up.
	want.Paused, want.Interval, want.Freezes = false, 10*day, []rotation.Freeze{first, second}
	brand := zone.With(rotation.Override{Paused: new(false), Interval: new(10 * day), Freezes: []rotation.Freeze{second}})
	if diff := cmp.Diff(want, brand); diff != "" {
		t.Errorf("policy of the brand (-want +got):\n%s", diff)
	}
	other := zone.With(rotation.Override{Freezes: []rotation.Freeze{{Start: now.Add(9 * day), End: now.Add(10 * day)}}})
	if len(zone.Freezes) != 1 || brand.Freezes[1] != second || len(other.Freezes) != 2 {
		t.Error("policies share their freezes")
	}
}

func TestOverrideValidate(t *testing.T) {
	many := make([]rotation.Freeze, 33)
	for i := range many {
		many[i] = rotation.Freeze{Start: now, End: now.Add(1)}
	}
	tests := []struct {
		field string
		good  []rotation.Override
		bad   []rotation.Override
	}{
		{
			"interval",
			[]rotation.Override{{Interval: new(time.Minute)}, {Interval: new(5 * 365 * day)}},
			[]rotation.Override{{Interval: new(time.Minute - 1)}, {Interval: new(5*365*day + 1)}, {Interval: new(time.Duration(0))}},
		},
		{
			"drain",
			[]rotation.Override{{Drain: new(time.Second)}, {Drain: new(365 * day)}},
			[]rotation.Override{{Drain: new(time.Second - 1)}, {Drain: new(365*day + 1)}},
		},
		{
			"gap",
			[]rotation.Override{{Gap: new(time.Second)}, {Gap: new(365 * day)}},
			[]rotation.Override{{Gap: new(time.Second - 1)}, {Gap: new(365*day + 1)}},
		},
		{
			"lead",
			[]rotation.Override{{Lead: new(time.Duration(0))}, {Lead: new(365 * day)}},
			[]rotation.Override{{Lead: new(time.Duration(-1))}, {Lead: new(365*day + 1)}},
		},
		{
			"check_interval",
			[]rotation.Override{{CheckInterval: new(time.Second)}, {CheckInterval: new(7 * day)}},
			[]rotation.Override{{CheckInterval: new(time.Second - 1)}, {CheckInterval: new(7*day + 1)}},
		},
		{
			"jitter_percent",
			[]rotation.Override{{JitterPercent: new(0)}, {JitterPercent: new(50)}},
			[]rotation.Override{{JitterPercent: new(-1)}, {JitterPercent: new(51)}},
		},
		{
			"max_per_hour",
			[]rotation.Override{{MaxPerHour: new(0)}, {MaxPerHour: new(1)}},
			[]rotation.Override{{MaxPerHour: new(-1)}},
		},
		{
			"freezes",
			[]rotation.Override{{}, {Freezes: many[:32]}, {Freezes: []rotation.Freeze{{Start: now, End: now.Add(365 * day)}}}},
			[]rotation.Override{
				{Freezes: many}, {Freezes: []rotation.Freeze{{Start: now, End: now}}},
				{Freezes: []rotation.Freeze{{Start: now, End: now.Add(365*day + 1)}}},
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.field, func(t *testing.T) {
			for _, o := range tt.good {
				if err := o.Validate(); err != nil {
					t.Errorf("%+v: %v", o, err)
				}
			}
			for _, o := range tt.bad {
				err := o.Validate()
				var refused *rotation.PolicyError
				if !errors.As(err, &refused) || refused.Field != tt.field {
					t.Errorf("%+v: error %v, want a PolicyError about %s", o, err, tt.field)
				}
			}
		})
	}
	if got, want := (rotation.Override{Drain: new(time.Millisecond)}).Validate().Error(), "drain is 1ms: use 1s to 8760h0m0s"; got != want {
		t.Errorf("message %q, want %q", got, want)
	}
}

func TestNames(t *testing.T) {
	// Stored: neither numbers nor order may change.
	names := map[fmt.Stringer]string{
		rotation.Customer: "CUSTOMER", rotation.BrandDefault: "BRAND_DEFAULT", rotation.BrandShared: "BRAND_SHARED", rotation.Kind(3): "Kind(3)",
		rotation.ModePerDomain: "PER_DOMAIN", rotation.ModeBrandDefault: "BRAND_DEFAULT", rotation.ModeBrandShared: "BRAND_SHARED", rotation.Mode(3): "Mode(3)",
		rotation.Unknown: "UNKNOWN", rotation.Proven: "PROVEN", rotation.Contradicted: "CONTRADICTED", rotation.Unreachable: "UNREACHABLE",
		rotation.Finding(4): "Finding(4)",
		rotation.Activate:   "ACTIVATE", rotation.Retire: "RETIRE", rotation.Revoke: "REVOKE", rotation.Refill: "REFILL",
		rotation.StepKind(0): "StepKind(0)", rotation.StepKind(5): "StepKind(5)",
	}
	for v, want := range names {
		if v.String() != want {
			t.Errorf("%#v: %q, want %q", v, v, want)
		}
	}
	numbers := []uint8{
		uint8(rotation.Customer), uint8(rotation.BrandDefault), uint8(rotation.BrandShared),
		uint8(rotation.ModePerDomain), uint8(rotation.ModeBrandDefault), uint8(rotation.ModeBrandShared),
		uint8(rotation.Unknown), uint8(rotation.Proven), uint8(rotation.Contradicted), uint8(rotation.Unreachable),
		uint8(rotation.Activate), uint8(rotation.Retire), uint8(rotation.Revoke), uint8(rotation.Refill),
	}
	if diff := cmp.Diff([]uint8{0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 1, 2, 3, 4}, numbers); diff != "" {
		t.Errorf("the stored numbers have changed (-want +got):\n%s", diff)
	}
	if rotation.Kind(3).Valid() || rotation.Mode(3).Valid() || rotation.Finding(4).Valid() ||
		!rotation.BrandShared.Valid() || !rotation.ModeBrandShared.Valid() || !rotation.Unreachable.Valid() {
		t.Error("Valid is wrong about the last number or the one after it")
	}
}
