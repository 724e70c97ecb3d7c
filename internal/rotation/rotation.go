// Package rotation holds the life of keys: their states, which change may
// follow which, and what a rotation does. It computes; others read, write and
// wait.
package rotation

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keypair"
)

// State is where a key stands in its life. The zero value is no state. The
// numbers are stored; never change them.
type State uint8

// The states in the order a key goes through them.
const (
	Prepared  State = 1 // published, not signing: the standby
	Active    State = 2 // published, signing
	Retiring  State = 3 // published, no longer signing
	Revoked   State = 4 // published with an empty p=
	Destroyed State = 5 // not published; the private half is gone
)

var stateNames = [...]string{Prepared: "PREPARED", Active: "ACTIVE", Retiring: "RETIRING", Revoked: "REVOKED", Destroyed: "DESTROYED"}

// Valid reports whether s is one of the states.
func (s State) Valid() bool { return s >= Prepared && s <= Destroyed }

// String is the state's name in the API, "PREPARED".
func (s State) String() string {
	if !s.Valid() {
		return fmt.Sprintf("State(%d)", uint8(s))
	}
	return stateNames[s]
}

// Custody says who holds the private half of a key. The numbers are stored.
type Custody uint8

// The custodies.
const (
	Service    Custody = 1 // this service, sealed
	Signer     Custody = 2 // the signer that published the public half
	PublicOnly Custody = 3 // somebody else; the service only publishes
)

// Valid reports whether c is one of the custodies.
func (c Custody) Valid() bool { return c >= Service && c <= PublicOnly }

// Key is what rotation knows of a key pair.
type Key struct {
	ID        string
	Selector  dnsname.Selector
	Algorithm keypair.Algorithm
	State     State
	Custody   Custody
	TTL       uint32 // of its record, in seconds

	// Compromised says that the key was revoked because its private half may be known to others.
	Compromised bool

	// When the key reached the state; zero for states it never reached.
	PrepareTime  time.Time
	ActivateTime time.Time
	RetireTime   time.Time
	RevokeTime   time.Time
}

// Transition is a key's step to another state.
type Transition struct {
	KeyID string
	To    State
}

// TransitionError says that a key may not go from one state to another.
type TransitionError struct {
	KeyID    string
	From, To State
}

func (e *TransitionError) Error() string {
	return fmt.Sprintf("key %s is %s and cannot become %s", e.KeyID, e.From, e.To)
}

// NoStandbyError says that no PREPARED key is there to take over.
type NoStandbyError struct {
	Algorithm keypair.Algorithm
	// Held lists what stands in the selectors of the algorithm.
	Held []Key
}

func (e *NoStandbyError) Error() string {
	held := make([]string, len(e.Held))
	for i, k := range e.Held {
		held[i] = fmt.Sprintf("%s is %s", k.Selector, k.State)
	}
	return fmt.Sprintf("no standby key of algorithm %s: %s", e.Algorithm, strings.Join(held, ", "))
}

// Step moves k to state to. The steps are PREPARED → ACTIVE → RETIRING →
// REVOKED → DESTROYED, and from each of the first three straight to REVOKED.
// Any other is a *TransitionError and leaves k as it was.
func (k *Key) Step(to State, now time.Time) error {
	legal := to == k.State+1 || (to == Revoked && k.State < Revoked)
	if !k.State.Valid() || !to.Valid() || !legal {
		return &TransitionError{KeyID: k.ID, From: k.State, To: to}
	}
	k.State = to
	switch to {
	case Active:
		k.ActivateTime = now
	case Retiring:
		k.RetireTime = now
	case Revoked:
		k.RevokeTime = now
	}
	return nil
}

// Start gives the keys of a domain's first provisioning their states: of each
// algorithm the first becomes ACTIVE, unless there is an ACTIVE one among
// present; the others are PREPARED.
func Start(fresh []Key, present []Key, now time.Time) []Key {
	started := slices.Clone(fresh)
	active := make(map[keypair.Algorithm]bool)
	for _, k := range present {
		if rotates(k) && k.State == Active {
			active[k.Algorithm] = true
		}
	}
	for i := range started {
		k := &started[i]
		k.State, k.PrepareTime = Prepared, now
		if !active[k.Algorithm] {
			k.State, k.ActivateTime = Active, now
			active[k.Algorithm] = true
		}
	}
	return started
}

// Rotate plans a rotation of all algorithms at once: of each, the standby that
// was prepared first becomes ACTIVE and the ACTIVE key becomes RETIRING. Keys
// in PUBLIC_ONLY custody take no part. It returns a *NoStandbyError, and no
// transitions, if one algorithm has no standby; ErrNothingToRotate if there is
// no key that rotates.
func Rotate(keys []Key) ([]Transition, error) {
	byAlgorithm := make(map[keypair.Algorithm][]Key)
	var order []keypair.Algorithm
	for _, k := range keys {
		if !rotates(k) || k.State == Destroyed {
			continue
		}
		if _, seen := byAlgorithm[k.Algorithm]; !seen {
			order = append(order, k.Algorithm)
		}
		byAlgorithm[k.Algorithm] = append(byAlgorithm[k.Algorithm], k)
	}
	if len(order) == 0 {
		return nil, ErrNothingToRotate
	}
	var plan []Transition
	for _, a := range order {
		held := byAlgorithm[a]
		standby := -1
		for i, k := range held {
			if k.State == Prepared && (standby < 0 || k.PrepareTime.Before(held[standby].PrepareTime)) {
				standby = i
			}
		}
		if standby < 0 {
			return nil, &NoStandbyError{Algorithm: a, Held: held}
		}
		plan = append(plan, Transition{held[standby].ID, Active})
		for _, k := range held {
			if k.State == Active {
				plan = append(plan, Transition{k.ID, Retiring})
			}
		}
	}
	return plan, nil
}

// ErrNothingToRotate is returned by Rotate for a domain without managed keys.
var ErrNothingToRotate = errors.New("the domain has no keys that the service rotates")

func rotates(k Key) bool { return k.Custody != PublicOnly }
