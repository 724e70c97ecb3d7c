package rotation

import "time"

// Forecast says when the domain's next switch can be, if nothing else changes, and what stands before it in groups where
// something must. Zero: in no group by itself. It takes no account of the limits on how many may be in an hour.
func Forecast(p Policy, d Domain, e Evidence, now time.Time) (at time.Time, blocked []Condition) {
	l := &look{p: &p, d: &d, e: &e, now: now}
	for _, a := range l.algorithms(nil) {
		l.enter(a, nil)
		opens, b := l.forecast()
		if !b.open() {
			blocked = append(blocked, Condition{Group: a, Type: ConditionRotation, Reason: b.reason, Message: l.sentence(b), Since: now})
			continue
		}
		if at.IsZero() || opens.Before(at) {
			at = opens
		}
	}
	return at, blocked
}

// forecast is when the group's next switch can be, or what else it waits for.
func (l *look) forecast() (time.Time, block) {
	t := l.turn()
	opens, ok := t.opens()
	if t.standby == nil {
		var b block
		if b, opens = l.absence(); opens.IsZero() {
			return time.Time{}, b
		}
		if t.on != failover && l.p.Paused {
			return time.Time{}, block{reason: ReasonPaused}
		}
	} else if !ok {
		for _, b := range t.closed {
			if b.hard() {
				return time.Time{}, b
			}
		}
	}
	if t.on == scheduled {
		due, _ := l.dueTime()
		opens = later(opens, due)
	}
	opens = later(opens, l.now)
	if t.on != failover {
		opens = l.p.thaw(opens) // a freeze may begin before then
	}
	return opens, block{}
}
