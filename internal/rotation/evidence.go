package rotation

import (
	"fmt"
	"time"

	"github.com/dkimzone/dkimzone/internal/dnsname"
)

// Finding is the result of one observation. The numbers are stored.
type Finding uint8

// The findings.
const (
	Unknown      Finding = 0 // never looked
	Proven       Finding = 1 // seen as it should be, everywhere
	Contradicted Finding = 2 // an authoritative server denies it or says otherwise
	Unreachable  Finding = 3 // no proof either way
)

var findingNames = [...]string{Unknown: "UNKNOWN", Proven: "PROVEN", Contradicted: "CONTRADICTED", Unreachable: "UNREACHABLE"}

// Valid reports whether f is one of the findings.
func (f Finding) Valid() bool { return f <= Unreachable }

// String is the finding's name, "PROVEN".
func (f Finding) String() string {
	if !f.Valid() {
		return fmt.Sprintf("Finding(%d)", uint8(f))
	}
	return findingNames[f]
}

// Observation is what is known of one fact in the DNS: that a customer's alias points at us, or that all name servers
// serve a key. The zero value: nothing.
type Observation struct {
	// Finding is the result of the last look.
	Finding Finding
	// Since says from when on the fact has been proven and never contradicted; zero: it is not proven.
	Since time.Time
	// CheckTime is when the last look was.
	CheckTime time.Time
	// DenyTime is when the present contradictions began, or the last ones if the fact is proven again; zero: none is known
	// of. It tells an alias that vanished and came back from one whose proof was lost.
	DenyTime time.Time
	// Reason is the class of the last finding in UPPER_SNAKE; empty when it is Proven.
	Reason string
}

// Observe returns o after one more look at time at.
//
// Proven keeps Since, or begins it; Contradicted ends it; Unreachable and Unknown leave it. A result that comes late,
// from before the last look, changes nothing, unless it contradicts: doubt wins. If a proof began after it, the proof stands
// and it is remembered when nothing else is.
func (o Observation) Observe(f Finding, reason string, at time.Time) Observation {
	if at.Before(o.CheckTime) && (f != Contradicted || at.Before(o.Since)) {
		if f == Contradicted && o.DenyTime.IsZero() {
			o.DenyTime = at
		}
		return o
	}
	o.CheckTime = later(o.CheckTime, at)
	o.Finding, o.Reason = f, reason
	switch f {
	case Proven:
		o.Reason = ""
		if o.Since.IsZero() {
			o.Since = at
		}
	case Contradicted:
		if o.DenyTime.IsZero() || !o.Since.IsZero() {
			o.DenyTime = at
		}
		o.Since = time.Time{}
	}
	return o
}

// Evidence is what has been observed of a domain.
type Evidence struct {
	// Aliases says of each selector whether the customer's CNAME points at our name, as the customer's own servers say.
	Aliases map[dnsname.Selector]Observation
	// Served says of each key, by id, whether all name servers of the zone serve exactly this key.
	Served map[string]Observation
	// Signers are the registered signers of the brand, those whose lease is over included.
	Signers []SignerView
}

// SignerView is what a signer last said about a domain's keys.
type SignerView struct {
	ID string
	// LeaseExpiry is when the signer stops counting unless it renews; ReportTime is when it last reported on this domain, zero: never.
	LeaseExpiry, ReportTime time.Time
	// Holds has the ids of the keys it holds, with the time it last signed with each; zero: never.
	Holds map[string]time.Time
}

// live reports whether the signer counts at now, by its own clock or ours.
func (s SignerView) live(now time.Time) bool { return now.Before(s.LeaseExpiry.Add(Margin)) }

// reportedAfter reports whether the signer reported after t by any clock, and so was told what holds since.
func (s SignerView) reportedAfter(t time.Time) bool { return s.ReportTime.After(t.Add(Margin)) }
