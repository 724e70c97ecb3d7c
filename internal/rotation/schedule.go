package rotation

import (
	"time"
)

// dueTime is when the key that signs is to be followed by another, and why.
func (l *look) dueTime() (time.Time, string) {
	k := l.active
	switch {
	case k.Algorithm != l.algorithm:
		return k.ActivateTime, ReasonAlgorithmChanged
	case k.ActivateTime.Before(l.d.RotateRequested):
		return l.d.RotateRequested, ReasonRequested
	}
	spread := float64(l.p.JitterPercent) / 100 * (2*unit(string(l.d.Name), k.ID) - 1)
	return k.ActivateTime.Add(l.p.Interval + time.Duration(spread*float64(l.p.Interval))), ReasonScheduled
}

// unit spreads names evenly over [0, 1).
func unit(parts ...string) float64 {
	h := uint64(14695981039346656037) // FNV-1a
	for _, s := range parts {
		for i := range len(s) {
			h = (h ^ uint64(s[i])) * 1099511628211
		}
		h = (h ^ 0xff) * 1099511628211
	}
	h ^= h >> 33 // similar names differ in their last octets: bring these to the top
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	return float64(h>>11) / (1 << 53)
}

// firstCheck is how soon a fact that is not proven is looked at again after it became so.
const firstCheck = 5 * time.Minute

// checkTime is when evidence is to be gathered next; zero: there is nothing to observe.
//
// What is proven is looked at each CheckInterval, each hour when a switch is near. What is not is looked at after five
// minutes, and ever more seldom the longer it stays so: each wait is as long as all before it.
func (l *look) checkTime(near bool) time.Time {
	usual := l.p.CheckInterval
	if near {
		usual = l.p.freshness()
	}
	// Never longer than the interval: it is a promise how soon a lost alias is noticed.
	share := 1 - 0.2*unit(string(l.d.Name))
	var at time.Time
	look := func(o Observation, since time.Time) {
		wait := usual
		if o.Since.IsZero() {
			waited := o.CheckTime.Sub(later(since, o.DenyTime))
			wait = min(usual, max(waited, firstCheck))
		}
		next := l.now
		if o.Finding != Unknown {
			next = o.CheckTime.Add(time.Duration(share * float64(wait)))
		}
		if at.IsZero() || next.Before(at) {
			at = next
		}
	}
	for _, sel := range l.d.Shared {
		look(l.e.Aliases[sel], l.d.CreateTime)
	}
	for _, sel := range l.d.Selectors {
		since := l.d.CreateTime
		for i := range l.d.Keys {
			k := &l.d.Keys[i]
			if k.Selector != sel.Selector || k.Custody == PublicOnly || k.State == Destroyed {
				continue
			}
			since = later(since, k.PrepareTime)
			if k.State == Prepared || k.State == Active {
				look(l.e.Served[k.ID], k.PrepareTime)
			}
		}
		if l.d.Kind == Customer {
			look(l.e.Aliases[sel.Selector], since)
		}
	}
	return at
}
