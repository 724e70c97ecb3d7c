// Package dnsname turns what people type into the DNS names dkimzone works with: the customer's signing domain, the
// hosting zone, the DKIM selector, the host label a domain claims in a zone, and the owner names made of them.
//
// Every value is kept in one text form: lower case, A-labels (RFC 5890 §2.3.2.1), no trailing dot. The values are plain
// strings; only what a Parse function returned is known to be valid. All functions are pure and safe for concurrent use.
package dnsname

// DomainKey is the label under which DKIM keys live (RFC 6376 §3.6.2.1).
const DomainKey = "_domainkey"

// Limits of RFC 1035 §2.3.4, in octets of the text form without the trailing dot.
const (
	MaxName  = 253
	MaxLabel = 63
)

// Limits that follow from the shape of an owner name, in octets.
const (
	// MaxZone leaves room for one full label and "_domainkey" in front of the zone.
	MaxZone = MaxName - MaxLabel - len(".") - len(DomainKey) - len(".")
	// MaxSelector leaves room for "_domainkey" and the shortest domain of two labels behind the selector.
	MaxSelector = MaxName - len(".") - len(DomainKey) - len(".") - len("a.b")
	// MaxPlainHostLabel leaves room for a selector of one octet and a dash in front of the label.
	MaxPlainHostLabel = MaxLabel - len("s-")
)

// Domain is a customer's signing domain, the d= of a signature: "spamtrap.dk", "xn--bcher-kva.example".
type Domain string

// Zone is a hosting zone the provider is authoritative for: "keys.example.net".
type Zone string

// Selector is the s= of a signature, "selector1". It may hold dots (RFC 6376 §3.1); each of its labels is made of
// letters, digits and inner dashes.
type Selector string

// HostLabel is a domain's part of its owner names in a zone: "spamtrap-dk". A label is claimed, never decoded.
type HostLabel string
