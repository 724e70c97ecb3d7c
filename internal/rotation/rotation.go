// Package rotation holds the life of keys: their states, which change may
// follow which, and what a rotation does. It computes; others read, write and
// wait.
package rotation

import (
	"fmt"
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

// TransitionError says that a key may not go from one state to another.
type TransitionError struct {
	KeyID    string
	From, To State
}

func (e *TransitionError) Error() string {
	return fmt.Sprintf("key %s is %s and cannot become %s", e.KeyID, e.From, e.To)
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
