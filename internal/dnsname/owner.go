package dnsname

import (
	"crypto/sha256"
	"encoding/base32"
	"strings"
)

// Shape of the hashed form of a host label, in octets: 31 of the name, a dash, 8 of the hash.
const (
	hashedStem   = 31
	hashedSuffix = 8
	hashedOctets = hashedSuffix * 5 / 8
)

var hashAlphabet = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// HostLabelCandidates returns the labels d may claim in a zone, the best first: d with dashes for dots, if that has at
// most MaxPlainHostLabel octets, then the hashed form, the beginning of the same (at most 31 octets, no dash at its end)
// with a dash and 8 characters of the base32 of SHA-256(d) behind it. Neither form is injective, so a label must be
// claimed before it is used. The result depends on d alone; whether a selector fits is for Selector.FitsLabel to say,
// and one whose last label has at most 22 octets fits the hashed form always.
func HostLabelCandidates(d Domain) []HostLabel {
	plain := strings.ReplaceAll(string(d), ".", "-")
	stem := strings.TrimRight(plain[:min(len(plain), hashedStem)], "-")
	sum := sha256.Sum256([]byte(d))

	hashed := make([]byte, 0, hashedStem+1+hashedSuffix)
	hashed = append(hashed, stem...)
	hashed = append(hashed, '-')
	hashed = hashAlphabet.AppendEncode(hashed, sum[:hashedOctets])

	candidates := make([]HostLabel, 0, 2)
	if len(plain) <= MaxPlainHostLabel {
		candidates = append(candidates, HostLabel(plain))
	}
	return append(candidates, HostLabel(hashed))
}

// FitsLabel reports whether sel and l make a DNS label of at most MaxLabel octets.
func (sel Selector) FitsLabel(l HostLabel) bool {
	return len(sel.lastLabel())+len("-")+len(l) <= MaxLabel
}

// lastLabel returns the label of sel that the host label is joined to.
func (sel Selector) lastLabel() string {
	return string(sel[strings.LastIndexByte(string(sel), '.')+1:])
}

// RelativeOwnerName returns the name of the TXT record of sel and l below the apex of their zone:
// "selector1-spamtrap-dk._domainkey". The error is an *InvalidError, LABEL_TOO_LONG if sel and l do not fit, TOO_LONG
// if no zone could hold the name.
func RelativeOwnerName(sel Selector, l HostLabel) (string, error) {
	name := string(sel) + "-" + string(l) + "." + DomainKey
	switch {
	case sel == "" || l == "":
		return "", invalid(KindOwnerName, name, ReasonEmpty)
	case !sel.FitsLabel(l):
		return "", invalid(KindOwnerName, name, ReasonLabelTooLong)
	case len(name) > MaxName:
		return "", invalid(KindOwnerName, name, ReasonTooLong)
	}
	return name, nil
}

// OwnerName returns the name of the TXT record of sel and l in z, which is also the target of the customer's CNAME:
// "selector1-spamtrap-dk._domainkey.keys.example.net". The error is an *InvalidError, LABEL_TOO_LONG if sel and l do
// not fit, TOO_LONG if the name has more than MaxName octets.
func OwnerName(sel Selector, l HostLabel, z Zone) (string, error) {
	relative, err := RelativeOwnerName(sel, l)
	if err != nil {
		return "", err
	}
	return join(relative, string(z))
}

// AliasOwnerName returns the customer's side, where verifiers look and the CNAME stands (RFC 6376 §3.6.2.1):
// "selector1._domainkey.spamtrap.dk". The error is an *InvalidError, TOO_LONG if the name has more than MaxName octets.
func AliasOwnerName(sel Selector, d Domain) (string, error) {
	if sel == "" {
		return "", invalid(KindOwnerName, DomainKey+"."+string(d), ReasonEmpty)
	}
	return join(string(sel)+"."+DomainKey, string(d))
}

func join(relative, parent string) (string, error) {
	name := relative + "." + parent
	switch {
	case parent == "":
		return "", invalid(KindOwnerName, name, ReasonEmpty)
	case len(name) > MaxName:
		return "", invalid(KindOwnerName, name, ReasonTooLong)
	}
	return name, nil
}

// ShadowLabels returns the labels that other readings of the owner name of sel and l would use. A dash joins selector
// and label, so "sel-x" on "y" and "sel" on "x-y" meet in one owner name: a domain that uses "sel-x" on "y" must claim
// "x-y" as well. There is one label for each dash in the last label of sel that leaves a valid selector and a valid
// label; "a-b-c" on "y" gives "b-c-y" and "c-y". Two uses that share no claimed label never share an owner name.
func ShadowLabels(sel Selector, l HostLabel) []HostLabel {
	last := sel.lastLabel()
	var shadows []HostLabel
	for i := 1; i < len(last)-1; i++ {
		if last[i] == '-' && last[i-1] != '-' && last[i+1] != '-' {
			shadows = append(shadows, HostLabel(last[i+1:]+"-"+string(l)))
		}
	}
	return shadows
}
