package rotation

import (
	"fmt"
	"slices"
	"time"
)

// Policy is how a domain's keys rotate. The zero value is not a policy: start from DefaultPolicy.
type Policy struct {
	// Interval is how long a key signs before the next one takes over.
	Interval time.Duration
	// Drain is how long a key stays published after the last signature that is known of.
	Drain time.Duration
	// Gap is how long a selector shows a revoked key before a new one is published in it.
	Gap time.Duration
	// Lead is how long a key and its alias must have been seen by everybody before it may sign. Where the caches of
	// resolvers may hold an older answer for longer, that time counts instead.
	Lead time.Duration
	// CheckInterval is how often evidence is gathered while nothing is due: how long a lost alias may go unnoticed.
	CheckInterval time.Duration
	// JitterPercent spreads rotations: each interval is up to so much shorter or longer, 0 to 50.
	JitterPercent int
	// Paused stops all but failovers and emergencies.
	Paused bool
	// Freezes do for a time what Paused does.
	Freezes []Freeze
	// MaxPerHour limits the scheduled switches of a zone or brand; 0: no limit. The controller counts.
	MaxPerHour int
}

// Freeze is a window in which nothing changes that can wait: Start is part of it, End is not.
type Freeze struct{ Start, End time.Time }

// DefaultPolicy is what holds where nobody said otherwise.
func DefaultPolicy() Policy {
	return Policy{
		Interval: 90 * day, Drain: 7 * day, Gap: 7 * day,
		Lead: day, CheckInterval: 6 * time.Hour, JitterPercent: 10,
	}
}

const day = 24 * time.Hour

// Override is what a zone, a brand or a domain sets otherwise. A nil field leaves what holds; Freezes add up.
type Override struct {
	Interval, Drain, Gap, Lead, CheckInterval *time.Duration
	JitterPercent                             *int
	Paused                                    *bool
	Freezes                                   []Freeze
	MaxPerHour                                *int
}

// With returns p with what o sets. Apply the zone's override first, then the brand's, then the domain's.
func (p Policy) With(o Override) Policy {
	set(&p.Interval, o.Interval)
	set(&p.Drain, o.Drain)
	set(&p.Gap, o.Gap)
	set(&p.Lead, o.Lead)
	set(&p.CheckInterval, o.CheckInterval)
	set(&p.JitterPercent, o.JitterPercent)
	set(&p.Paused, o.Paused)
	set(&p.MaxPerHour, o.MaxPerHour)
	if len(o.Freezes) > 0 {
		p.Freezes = append(slices.Clip(p.Freezes), o.Freezes...)
	}
	return p
}

func set[T any](field *T, value *T) {
	if value != nil {
		*field = *value
	}
}

// PolicyError says which setting of an Override is refused and why.
type PolicyError struct {
	// Field is the setting's name as the API has it, "check_interval".
	Field string
	// Value is what was given, Range what may be.
	Value, Range string
}

func (e *PolicyError) Error() string {
	return fmt.Sprintf("%s is %s: use %s", e.Field, e.Value, e.Range)
}

// The longest and shortest times that a policy may have. The short ones are for tests and drills: what a resolver may
// still hold is waited for whatever Lead and Gap say, a message that is still on its way is not.
const (
	minInterval      = time.Minute
	maxInterval      = 5 * 365 * day
	minTimer         = time.Second
	maxTimer         = 365 * day
	maxCheckInterval = 7 * day
	maxJitterPercent = 50
	maxFreezes       = 32
	maxFreeze        = 365 * day
	maxMaxPerHour    = 1_000_000_000
)

// Validate checks the settings against their ranges. The error is a *PolicyError about the first one outside.
func (o Override) Validate() error {
	for _, d := range []struct {
		field    string
		value    *time.Duration
		min, max time.Duration
	}{
		{"interval", o.Interval, minInterval, maxInterval},
		{"drain", o.Drain, minTimer, maxTimer},
		{"gap", o.Gap, minTimer, maxTimer},
		{"lead", o.Lead, 0, maxTimer},
		{"check_interval", o.CheckInterval, minTimer, maxCheckInterval},
	} {
		if d.value != nil && (*d.value < d.min || *d.value > d.max) {
			return &PolicyError{d.field, d.value.String(), fmt.Sprintf("%s to %s", d.min, d.max)}
		}
	}
	for _, n := range []struct {
		field string
		value *int
		max   int
	}{
		{"jitter_percent", o.JitterPercent, maxJitterPercent},
		{"max_per_hour", o.MaxPerHour, maxMaxPerHour},
	} {
		if n.value != nil && (*n.value < 0 || *n.value > n.max) {
			return &PolicyError{n.field, fmt.Sprint(*n.value), fmt.Sprintf("0 to %d", n.max)}
		}
	}
	if len(o.Freezes) > maxFreezes {
		return &PolicyError{"freezes", fmt.Sprintf("a list of %d", len(o.Freezes)), fmt.Sprintf("at most %d windows", maxFreezes)}
	}
	for _, f := range o.Freezes {
		if !f.Start.Before(f.End) || f.End.Sub(f.Start) > maxFreeze {
			return &PolicyError{
				"freezes", fmt.Sprintf("%s to %s", f.Start.UTC().Format(time.RFC3339), f.End.UTC().Format(time.RFC3339)),
				"an end after the start, by a year at most",
			}
		}
	}
	return nil
}

// thaw is when the freeze that holds at now ends, windows that touch or overlap being one; now, if none holds.
func (p *Policy) thaw(now time.Time) time.Time {
	end := now
	for again := true; again; {
		again = false
		for _, f := range p.Freezes {
			if !end.Before(f.Start) && end.Before(f.End) {
				end, again = f.End, true
			}
		}
	}
	return end
}
