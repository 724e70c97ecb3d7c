package rotation

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// UnknownKeyError says that a domain has no key of that id.
type UnknownKeyError struct{ KeyID string }

func (e *UnknownKeyError) Error() string { return "there is no key " + e.KeyID }

// RevokeCompromised plans the end of a key that others may know: its p= at once, and if it is the one that signs, the
// group's standby takes over in the same transaction, if receivers can verify it. No interval, pause, freeze or signer
// is waited for: better no signature of the domain than one that anybody can make.
//
// A key that is REVOKED already needs no steps. The errors are an *UnknownKeyError, or a *TransitionError for a
// DESTROYED key.
func RevokeCompromised(p Policy, d Domain, e Evidence, keyID string, now time.Time) ([]Step, error) {
	i := slices.IndexFunc(d.Keys, func(k Key) bool { return k.ID == keyID })
	if i < 0 {
		return nil, &UnknownKeyError{keyID}
	}
	k := &d.Keys[i]
	switch k.State {
	case Revoked:
		return nil, nil
	case Destroyed:
		return nil, &TransitionError{KeyID: keyID, From: Destroyed, To: Revoked}
	}
	steps := []Step{step(Revoke, k, ReasonCompromised)}
	l := &look{p: &p, d: &d, e: &e, now: now}
	for _, sel := range d.Selectors {
		if sel.Selector != k.Selector || k.State != Active || k.Custody == PublicOnly {
			continue
		}
		l.enter(sel.Algorithm, nil)
		if t := l.standbyFor(emergency); t.ready() {
			steps = append(steps, step(Activate, t.standby, ReasonCompromised))
		}
	}
	return steps, nil
}

// GateError says why a rotation cannot be done now.
type GateError struct {
	// Conditions name what is missing, of each group that cannot rotate, in the order of the gates.
	Conditions []Condition
}

func (e *GateError) Error() string {
	reasons := make([]string, len(e.Conditions))
	for i, c := range e.Conditions {
		reasons[i] = fmt.Sprintf("%s: %s", c.Group, c.Message)
	}
	return "the domain cannot rotate now: " + strings.Join(reasons, "; ")
}

// ErrNoGroups is returned by Request for a domain without selectors of its own.
var ErrNoGroups = errors.New("the domain has no keys that the service rotates")

// Request plans a rotation by hand: all groups of the domain, or none. It waits for no interval, but for all else. The
// error is a *GateError, or ErrNoGroups.
func Request(p Policy, d Domain, e Evidence, now time.Time) ([]Step, error) {
	l := &look{p: &p, d: &d, e: &e, now: now}
	groups := l.algorithms(nil)
	if len(groups) == 0 {
		return nil, ErrNoGroups
	}
	var (
		steps  []Step
		closed []Condition
	)
	for _, a := range groups {
		l.enter(a, nil)
		t := l.turn()
		if t.on == scheduled {
			t = l.standbyFor(requested)
		}
		if t.ready() {
			reason := ReasonRequested
			if t.on != requested {
				reason = t.reason()
			}
			steps = append(steps, l.over(t.standby, reason)...)
			continue
		}
		if t.standby == nil {
			b, _ := l.absence()
			t.closed = []block{b}
		}
		for _, b := range t.closed {
			closed = append(closed, Condition{Group: a, Type: ConditionRotation, Reason: b.reason, Message: l.sentence(b), Since: now})
		}
	}
	if closed != nil {
		return nil, &GateError{closed}
	}
	return steps, nil
}
