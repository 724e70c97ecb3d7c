package keystore

import (
	"math"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/internal/schema/schemapb"
)

// policyValue is the stored form of what a zone, brand or domain sets of its
// policy; nil for nothing.
func policyValue(o rotation.Override) *schemapb.Policy {
	v := &schemapb.Policy{
		IntervalMicros: micros(o.Interval), DrainMicros: micros(o.Drain), GapMicros: micros(o.Gap),
		LeadMicros: micros(o.Lead), CheckIntervalMicros: micros(o.CheckInterval),
		JitterPercent: number(o.JitterPercent), Paused: o.Paused, MaxPerHour: number(o.MaxPerHour),
	}
	for _, f := range o.Freezes {
		v.Freezes = append(v.Freezes, &schemapb.Freeze{StartMicros: schema.Micros(f.Start), EndMicros: schema.Micros(f.End)})
	}
	if proto.Size(v) == 0 {
		return nil
	}
	return v
}

// policyFrom is the inverse of policyValue.
func policyFrom(v *schemapb.Policy) rotation.Override {
	if v == nil {
		return rotation.Override{}
	}
	o := rotation.Override{
		Interval: duration(v.IntervalMicros), Drain: duration(v.DrainMicros), Gap: duration(v.GapMicros),
		Lead: duration(v.LeadMicros), CheckInterval: duration(v.CheckIntervalMicros),
		JitterPercent: integer(v.JitterPercent), Paused: v.Paused, MaxPerHour: integer(v.MaxPerHour),
	}
	for _, f := range v.GetFreezes() {
		o.Freezes = append(o.Freezes, rotation.Freeze{Start: schema.FromMicros(f.GetStartMicros()), End: schema.FromMicros(f.GetEndMicros())})
	}
	return o
}

func micros(d *time.Duration) *int64 {
	if d == nil {
		return nil
	}
	return new(d.Microseconds())
}

func duration(us *int64) *time.Duration {
	if us == nil {
		return nil
	}
	d := time.Duration(*us) * time.Microsecond
	return &d
}

// number stores one that is not negative, as rotation.Override.Validate sees to.
func number(n *int) *uint32 {
	if n == nil {
		return nil
	}
	return new(uint32(min(max(*n, 0), math.MaxInt32)))
}

func integer(n *uint32) *int {
	if n == nil {
		return nil
	}
	i := int(*n)
	return &i
}
