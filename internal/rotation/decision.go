package rotation

import (
	"fmt"
	"slices"
	"time"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keypair"
)

// StepKind is what a Step does. The numbers are stored.
type StepKind uint8

// The kinds of steps.
const (
	Activate StepKind = 1 // PREPARED → ACTIVE
	Retire   StepKind = 2 // ACTIVE → RETIRING
	Revoke   StepKind = 3 // → REVOKED
	Refill   StepKind = 4 // REVOKED → DESTROYED, if there is a key, and a new one PREPARED in the selector
)

var stepNames = [...]string{Activate: "ACTIVATE", Retire: "RETIRE", Revoke: "REVOKE", Refill: "REFILL"}

// String is the kind's name, "ACTIVATE".
func (k StepKind) String() string {
	if k < Activate || k > Refill {
		return fmt.Sprintf("StepKind(%d)", uint8(k))
	}
	return stepNames[k]
}

// Why a step is taken.
const (
	ReasonScheduled        = "SCHEDULED"         // the interval is over
	ReasonRequested        = "REQUESTED"         // somebody asked for a rotation
	ReasonFirstKey         = "FIRST_KEY"         // nothing signed before
	ReasonFailover         = "FAILOVER"          // the key that signed is no longer proven, or is gone
	ReasonDrained          = "DRAINED"           // nothing signed with it can still be on its way
	ReasonAlgorithmChanged = "ALGORITHM_CHANGED" // the selector is to have another algorithm
	ReasonGapOver          = "GAP_OVER"          // the selector has shown a revoked key for long enough
	ReasonEmptySelector    = "EMPTY_SELECTOR"    // the selector never had a key
	ReasonCompromised      = "COMPROMISED"       // others may know the private half
)

// Step is one change of one key. The steps of a Decision belong into one transaction, in their order.
type Step struct {
	Kind StepKind
	// KeyID is the key; of a Refill the one that is destroyed, empty if the selector is.
	KeyID    string
	Selector dnsname.Selector
	// Algorithm is the key's; of a Refill that of the key to be made. The caller makes it, with the TTL of the key it
	// replaces: lead and gap are computed from that.
	Algorithm keypair.Algorithm
	Reason    string
}

// Take does one step with the key; a Refill destroys it. A step that its state does not allow is a *TransitionError and
// leaves k as it was.
func (k *Key) Take(s Step, now time.Time) error {
	to := map[StepKind]State{Activate: Active, Retire: Retiring, Revoke: Revoked, Refill: Destroyed}[s.Kind]
	if err := k.Step(to, now); err != nil {
		return err
	}
	if s.Kind == Revoke && s.Reason == ReasonCompromised {
		k.Compromised = true
	}
	return nil
}

// The types of conditions.
const (
	ConditionSigning  = "SIGNING"  // does a key of the group sign
	ConditionRotation = "ROTATION" // does the group rotate as it should
)

// Condition says how a group of selectors fares, and why.
type Condition struct {
	// Group is the algorithm of the group; zero: the domain as a whole.
	Group keypair.Algorithm
	Type  string
	OK    bool
	// Reason is in UPPER_SNAKE; Message is a sentence for people.
	Reason, Message string
	// Since is when the condition became what it is.
	Since time.Time
}

// MergeConditions returns the conditions of now, each with the Since of the previous one of its group and type if that
// said the same.
func MergeConditions(previous, now []Condition) []Condition {
	merged := slices.Clone(now)
	for i := range merged {
		c := &merged[i]
		for _, p := range previous {
			if p.Group == c.Group && p.Type == c.Type && p.OK == c.OK && p.Reason == c.Reason {
				c.Since = p.Since
			}
		}
	}
	return merged
}

// Decision is what is to be done with a domain.
type Decision struct {
	// Steps are to be applied now, all in one transaction; nil: none.
	Steps []Step
	// Conditions hold at the time of the decision, before its steps: two for each group, in the order of the selectors.
	Conditions []Condition
	// CheckAt is when evidence is to be gathered next. If that is not after the time of the decision, gather it first and
	// decide again; the Steps are right all the same. Zero: there is nothing to observe.
	CheckAt time.Time
	// Due is when to decide again, never before the time of the decision; zero: nothing will change by itself.
	Due time.Time
	// Voluntary says that the steps contain a switch that may wait for its turn.
	Voluntary bool
}

// SigningKey is a key to sign with.
type SigningKey struct {
	Domain    dnsname.Domain // d=
	Selector  dnsname.Selector
	KeyID     string
	Owner     dnsname.Domain // the Domain whose key it is
	Algorithm keypair.Algorithm
}

// View is a domain and what has been observed of it.
type View struct {
	Domain   Domain
	Evidence Evidence
}

// Resolution says what to sign a domain's messages with.
type Resolution struct {
	// Keys all sign each message. None: nothing proven is there, and signing would do harm.
	Keys []SigningKey
	// Fallback says that the keys are the brand's default because the domain's own cannot be used.
	Fallback bool
	// Reason is in UPPER_SNAKE; Message is a sentence for people.
	Reason, Message string
	// ValidUntil is when to ask again. A signer that gets no answer then goes on with what it has.
	ValidUntil time.Time
	// ChangeAt is when time alone may change the answer, as a proof then has stood for long enough; zero: never.
	ChangeAt time.Time
}
