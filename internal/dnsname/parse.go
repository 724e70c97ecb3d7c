package dnsname

import (
	"strings"

	"golang.org/x/net/publicsuffix"
)

// ParseDomain returns the stored form of a customer's domain. It takes ASCII and internationalized names in either
// form, maps them as UTS #46 says for a look-up (non-transitional: ß stays), and then wants letters, digits and inner
// dashes, at least two labels and at most MaxName octets. It refuses IP addresses, wildcards, a trailing dot, and a
// domain that is itself a public suffix of the list's ICANN section: "co.uk", but neither "github.io" nor a name below a
// top-level domain the list does not know. Every error is an *InvalidError.
func ParseDomain(s string) (Domain, error) {
	d, err := ParseExistingDomain(s)
	if err != nil {
		return "", err
	}
	if suffix, icann := publicsuffix.PublicSuffix(string(d)); icann && suffix == string(d) {
		return "", invalid(KindDomain, s, ReasonPublicSuffix)
	}
	return d, nil
}

// ParseExistingDomain is ParseDomain without the public-suffix rule, for a name that may have been stored before the list
// had it.
func ParseExistingDomain(s string) (Domain, error) {
	name, reason := parseName(s)
	if reason != "" {
		return "", invalid(KindDomain, s, reason)
	}
	return Domain(name), nil
}

// Unicode returns d with U-labels, for showing it to people; a domain that has no valid Unicode form comes back as it is.
func (d Domain) Unicode() string {
	u, err := profile.ToUnicode(string(d))
	if err != nil {
		return string(d)
	}
	return u
}

// ParseZone returns the stored form of a hosting zone. The rules are those of ParseDomain without the public-suffix
// rule, and a zone has at most MaxZone octets. Every error is an *InvalidError.
func ParseZone(s string) (Zone, error) {
	name, reason := parseName(s)
	if reason == "" && len(name) > MaxZone {
		reason = ReasonTooLong
	}
	if reason != "" {
		return "", invalid(KindZone, s, reason)
	}
	return Zone(name), nil
}

// ParseSelector returns the stored form of a selector: labels of letters, digits and inner dashes with dots between
// them (RFC 6376 §3.1), at most MaxLabel octets each and MaxSelector in all. Every error is an *InvalidError.
func ParseSelector(s string) (Selector, error) {
	reason := Reason("")
	switch {
	case s == "":
		reason = ReasonEmpty
	case len(s) > MaxSelector:
		reason = ReasonTooLong
	case !isASCII(s):
		reason = ReasonBadCharacter
	default:
		reason = checkLabels(s)
	}
	if reason != "" {
		return "", invalid(KindSelector, s, reason)
	}
	return Selector(strings.ToLower(s)), nil
}

// parseName returns the stored form of a name of at least two labels and at most MaxName octets, or why there is none.
func parseName(s string) (string, Reason) {
	switch {
	case s == "":
		return "", ReasonEmpty
	case len(s) > maxUnmapped:
		return "", ReasonTooLong
	case isAddress(s):
		return "", ReasonIPAddress
	}
	if reason := checkOctets(s); reason != "" {
		return "", reason
	}
	name := strings.ToLower(s)
	if !isASCII(name) || hasALabel(name) {
		var ok bool
		if name, ok = mapIDNA(s); !ok {
			return "", ReasonBadIDNA
		}
	}
	if len(strings.TrimSuffix(name, ".")) > MaxName {
		return "", ReasonTooLong
	}
	if reason := checkLabels(name); reason != "" {
		return "", reason
	}
	switch {
	case endsInNumber(name):
		return "", ReasonIPAddress
	case !strings.Contains(name, "."):
		return "", ReasonSingleLabel
	}
	return name, ""
}
