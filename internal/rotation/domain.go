package rotation

import (
	"fmt"
	"time"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keypair"
)

// Kind says what a domain's keys are for. The numbers are stored.
type Kind uint8

// The kinds.
const (
	Customer     Kind = 0 // a customer's domain, which aliases our names
	BrandDefault Kind = 1 // the brand's own, under our zone: d= is a name of ours
	BrandShared  Kind = 2 // the brand's, shared by the domains that alias its names: d= is theirs
)

var kindNames = [...]string{Customer: "CUSTOMER", BrandDefault: "BRAND_DEFAULT", BrandShared: "BRAND_SHARED"}

// Valid reports whether k is one of the kinds.
func (k Kind) Valid() bool { return k <= BrandShared }

// String is the kind's name, "CUSTOMER".
func (k Kind) String() string {
	if !k.Valid() {
		return fmt.Sprintf("Kind(%d)", uint8(k))
	}
	return kindNames[k]
}

// Mode is how a brand signs for its domains. The numbers are stored.
type Mode uint8

// The modes.
const (
	ModePerDomain    Mode = 0 // each domain with its own keys, the brand's default key where that cannot be
	ModeBrandDefault Mode = 1 // all with the brand's default key, d= a name of ours
	ModeBrandShared  Mode = 2 // all with one key of the brand, d= the sender's domain
)

var modeNames = [...]string{ModePerDomain: "PER_DOMAIN", ModeBrandDefault: "BRAND_DEFAULT", ModeBrandShared: "BRAND_SHARED"}

// Valid reports whether m is one of the modes.
func (m Mode) Valid() bool { return m <= ModeBrandShared }

// String is the mode's name, "PER_DOMAIN".
func (m Mode) String() string {
	if !m.Valid() {
		return fmt.Sprintf("Mode(%d)", uint8(m))
	}
	return modeNames[m]
}

// Selector is a selector whose keys take turns, and what its next key shall be. The selectors of one algorithm are a
// group: one of them signs, the others stand by or rest.
type Selector struct {
	Selector  dnsname.Selector
	Algorithm keypair.Algorithm
}

// Domain is what rotation knows of a domain.
type Domain struct {
	Name       dnsname.Domain
	Brand      string
	Kind       Kind
	CreateTime time.Time
	Selectors  []Selector
	Keys       []Key
	// NegativeTTL is how long, in seconds, a resolver may remember that a name of our zone does not exist.
	NegativeTTL uint32
	// RotateRequested is when somebody asked for a rotation by hand; zero: nobody did. It is answered by a key that
	// becomes ACTIVE then or later.
	RotateRequested time.Time
	// Shared are the selectors of the brand's shared key whose aliases this domain is expected to have.
	Shared []dnsname.Selector
}
