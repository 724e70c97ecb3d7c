package service

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/rotation"
)

// policyField is the field of zones, brands and domains that holds a policy.
const policyField = "rotation_policy"

// policyPart is a field of a rotation policy.
type policyPart struct {
	field string
	// put sets it in o from m, or clears it.
	put func(o *rotation.Override, m *dkimv1.RotationPolicy) error
	// show sets it in m from o, if o says anything.
	show func(m *dkimv1.RotationPolicy, o rotation.Override)
}

func spanPart(field string, api func(*dkimv1.RotationPolicy) **durationpb.Duration, stored func(*rotation.Override) **time.Duration) policyPart {
	return policyPart{
		field: field,
		put: func(o *rotation.Override, m *dkimv1.RotationPolicy) error {
			*stored(o) = nil
			given := *api(m)
			if given == nil {
				return nil
			}
			if err := given.CheckValid(); err != nil {
				return fmt.Errorf("%s: %w", field, err)
			}
			span := given.AsDuration()
			*stored(o) = &span
			return nil
		},
		show: func(m *dkimv1.RotationPolicy, o rotation.Override) {
			if span := *stored(&o); span != nil {
				*api(m) = durationpb.New(*span)
			}
		},
	}
}

// policyParts are the fields of a rotation policy, each of which may be updated
// alone.
var policyParts = []policyPart{
	spanPart("interval", func(m *dkimv1.RotationPolicy) **durationpb.Duration { return &m.Interval }, func(o *rotation.Override) **time.Duration { return &o.Interval }),
	spanPart("drain", func(m *dkimv1.RotationPolicy) **durationpb.Duration { return &m.Drain }, func(o *rotation.Override) **time.Duration { return &o.Drain }),
	spanPart("gap", func(m *dkimv1.RotationPolicy) **durationpb.Duration { return &m.Gap }, func(o *rotation.Override) **time.Duration { return &o.Gap }),
	spanPart("publish_lead", func(m *dkimv1.RotationPolicy) **durationpb.Duration { return &m.PublishLead }, func(o *rotation.Override) **time.Duration { return &o.Lead }),
	spanPart("check_interval", func(m *dkimv1.RotationPolicy) **durationpb.Duration { return &m.CheckInterval }, func(o *rotation.Override) **time.Duration { return &o.CheckInterval }),
	{"jitter_percent", func(o *rotation.Override, m *dkimv1.RotationPolicy) error {
		o.JitterPercent = countFrom(m.JitterPercent)
		return nil
	}, func(m *dkimv1.RotationPolicy, o rotation.Override) { m.JitterPercent = countMessage(o.JitterPercent) }},
	{"max_switches_per_hour", func(o *rotation.Override, m *dkimv1.RotationPolicy) error {
		o.MaxPerHour = countFrom(m.MaxSwitchesPerHour)
		return nil
	}, func(m *dkimv1.RotationPolicy, o rotation.Override) { m.MaxSwitchesPerHour = countMessage(o.MaxPerHour) }},
	{"paused", func(o *rotation.Override, m *dkimv1.RotationPolicy) error {
		o.Paused = m.Paused
		return nil
	}, func(m *dkimv1.RotationPolicy, o rotation.Override) { m.Paused = o.Paused }},
	{"freeze_windows", putFreezes, func(m *dkimv1.RotationPolicy, o rotation.Override) {
		for _, f := range o.Freezes {
			m.FreezeWindows = append(m.FreezeWindows, &dkimv1.FreezeWindow{StartTime: timestamp(f.Start), EndTime: timestamp(f.End)})
		}
	}},
}

func countFrom(n *int32) *int {
	if n == nil {
		return nil
	}
	v := int(*n)
	return &v
}

func countMessage(n *int) *int32 {
	if n == nil {
		return nil
	}
	v := int32(*n) //nolint:gosec // in range when stored
	return &v
}

func putFreezes(o *rotation.Override, m *dkimv1.RotationPolicy) error {
	o.Freezes = nil
	for i, w := range m.GetFreezeWindows() {
		for _, t := range []*timestamppb.Timestamp{w.GetStartTime(), w.GetEndTime()} {
			if err := t.CheckValid(); err != nil {
				return fmt.Errorf("freeze_windows[%d]: it needs a start_time and an end_time: %w", i, err)
			}
		}
		o.Freezes = append(o.Freezes, rotation.Freeze{
			Start: w.GetStartTime().AsTime().Truncate(time.Microsecond), End: w.GetEndTime().AsTime().Truncate(time.Microsecond),
		})
	}
	return nil
}

// policyPaths are the paths by which a policy may be updated.
func policyPaths() []string {
	paths := []string{policyField}
	for _, p := range policyParts {
		paths = append(paths, policyField+"."+p.field)
	}
	return paths
}

// setPolicy sets in o what paths name of the policy in m. resource is the field
// of the request that holds it.
func setPolicy(o *rotation.Override, m *dkimv1.RotationPolicy, resource string, paths []string) error {
	if m == nil {
		m = &dkimv1.RotationPolicy{}
	}
	changed := *o
	touched := false
	for _, p := range policyParts {
		if !slices.Contains(paths, policyField) && !slices.Contains(paths, policyField+"."+p.field) {
			continue
		}
		touched = true
		if err := p.put(&changed, m); err != nil {
			return badPolicy(resource, err)
		}
	}
	if !touched {
		return nil
	}
	if err := changed.Validate(); err != nil {
		return badPolicy(resource, err)
	}
	*o = changed
	return nil
}

// policyNames are the fields that the API names otherwise than rotation.
var policyNames = map[string]string{"lead": "publish_lead", "max_per_hour": "max_switches_per_hour", "freezes": "freeze_windows"}

func badPolicy(resource string, err error) error {
	field, message := policyField, err.Error()
	if e, ok := errors.AsType[*rotation.PolicyError](err); ok {
		field += "." + cmp.Or(policyNames[e.Field], e.Field)
		message = fmt.Sprintf("%s: use %s", e.Value, e.Range)
	}
	return invalid(resource+"."+field, "INVALID_ROTATION_POLICY", message)
}

// overrideMessage is a policy as somebody set it; nil if nothing is.
func overrideMessage(o rotation.Override) *dkimv1.RotationPolicy {
	m := &dkimv1.RotationPolicy{}
	for _, p := range policyParts {
		p.show(m, o)
	}
	if proto.Size(m) == 0 {
		return nil
	}
	return m
}

// policyMessage is a policy that holds, with all its fields.
func policyMessage(p rotation.Policy) *dkimv1.RotationPolicy {
	return overrideMessage(rotation.Override{
		Interval: &p.Interval, Drain: &p.Drain, Gap: &p.Gap, Lead: &p.Lead, CheckInterval: &p.CheckInterval,
		JitterPercent: &p.JitterPercent, Paused: &p.Paused, Freezes: p.Freezes, MaxPerHour: &p.MaxPerHour,
	})
}
