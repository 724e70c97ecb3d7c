package dnsname

import (
	"strconv"
	"strings"
)

// Kind says what an InvalidError was meant to be.
type Kind string

// The kinds of names.
const (
	KindDomain    Kind = "domain"
	KindZone      Kind = "zone"
	KindSelector  Kind = "selector"
	KindOwnerName Kind = "owner name"
)

// Reason says in one word why a name is refused. The values are stable: they go to API callers as they are.
type Reason string

// The reasons.
const (
	ReasonEmpty        Reason = "EMPTY"
	ReasonTooLong      Reason = "TOO_LONG"
	ReasonLabelTooLong Reason = "LABEL_TOO_LONG"
	ReasonEmptyLabel   Reason = "EMPTY_LABEL"
	ReasonSingleLabel  Reason = "SINGLE_LABEL"
	ReasonTrailingDot  Reason = "TRAILING_DOT"
	ReasonUnderscore   Reason = "UNDERSCORE"
	ReasonWildcard     Reason = "WILDCARD"
	ReasonHyphen       Reason = "HYPHEN"
	ReasonBadCharacter Reason = "BAD_CHARACTER"
	ReasonBadIDNA      Reason = "BAD_IDNA"
	ReasonIPAddress    Reason = "IP_ADDRESS"
	ReasonPublicSuffix Reason = "PUBLIC_SUFFIX"
)

// maxInput is how many characters of a refused input an InvalidError keeps.
const maxInput = 64

// InvalidError is the error of every function of this package.
type InvalidError struct {
	Kind   Kind
	Input  string // at most 64 characters of what was given, unescaped: quote it before showing it
	Reason Reason
	Hint   string // what to do about it: a clause without a full stop
}

// Error returns one sentence: the input, what is wrong with it, what to do.
func (e *InvalidError) Error() string {
	return string(e.Kind) + " " + strconv.Quote(e.Input) + " is not valid: " + e.Reason.text() + "; " + e.Hint
}

func (r Reason) text() string {
	switch r {
	case ReasonEmpty:
		return "it is empty"
	case ReasonTooLong:
		return "it is too long"
	case ReasonLabelTooLong:
		return "one of its labels is longer than 63 octets"
	case ReasonEmptyLabel:
		return "one of its labels is empty"
	case ReasonSingleLabel:
		return "it has only one label"
	case ReasonTrailingDot:
		return "it ends with a dot"
	case ReasonUnderscore:
		return "it has an underscore"
	case ReasonWildcard:
		return "it is a wildcard"
	case ReasonHyphen:
		return "one of its labels begins or ends with a dash"
	case ReasonBadCharacter:
		return "it has a character that no host name has"
	case ReasonBadIDNA:
		return "it is not an internationalized name that can be looked up (UTS #46)"
	case ReasonIPAddress:
		return "it is an IP address or reads like one"
	case ReasonPublicSuffix:
		return "it is a public suffix, below which others have their domains"
	}
	return string(r)
}

// invalid makes the error for input, which was meant to be a kind.
func invalid(kind Kind, input string, reason Reason) *InvalidError {
	return &InvalidError{Kind: kind, Input: cut(input), Reason: reason, Hint: hint(kind, input, reason)}
}

func hint(kind Kind, input string, reason Reason) string {
	switch reason {
	case ReasonEmpty:
		switch kind {
		case KindSelector:
			return `give a name such as "selector1"`
		case KindOwnerName:
			return "give a selector and a name to put it in front of"
		}
		return `give a name such as "example.com"`
	case ReasonTooLong:
		switch kind {
		case KindOwnerName:
			return "use a shorter selector; a DNS name has at most " + strconv.Itoa(MaxName) + " octets"
		case KindZone:
			return "a zone has at most " + strconv.Itoa(MaxZone) + " octets, which leaves room for the owner names in it"
		case KindSelector:
			return "a selector has at most " + strconv.Itoa(MaxSelector) + " octets"
		}
		return "a domain has at most " + strconv.Itoa(MaxName) + " octets"
	case ReasonLabelTooLong:
		if kind == KindOwnerName {
			return "use a shorter selector or the next host label of the domain"
		}
		return "shorten that label"
	case ReasonEmptyLabel:
		return "put exactly one dot between labels and none in front"
	case ReasonSingleLabel:
		return `give the full name, such as "example.com"`
	case ReasonTrailingDot:
		return "leave the last dot off"
	case ReasonUnderscore:
		if kind == KindSelector {
			return `give only the part in front of "._domainkey"`
		}
		return "give the name of the domain itself, not of a record below it"
	case ReasonWildcard:
		return "name each " + string(kind) + " by itself"
	case ReasonHyphen:
		return "begin and end every label with a letter or a digit"
	case ReasonBadCharacter:
		switch {
		case kind == KindSelector:
			return "use letters a to z, digits, dashes and dots"
		case strings.Contains(input, "://"):
			return "give the name alone, without scheme and path"
		case strings.Contains(input, "@"):
			return "give only the part behind the @"
		}
		return "use letters, digits, dashes and dots"
	case ReasonBadIDNA:
		return "check the spelling, or give the name in its xn-- form"
	case ReasonIPAddress:
		return "give a name"
	case ReasonPublicSuffix:
		return "give the customer's own domain below it"
	}
	return ""
}

// cut returns at most maxInput characters of s, the last one an ellipsis if some are missing. The result is valid UTF-8
// and does not keep a long s in memory.
func cut(s string) string {
	out := make([]rune, 0, maxInput)
	for _, r := range s {
		if len(out) == maxInput {
			out[maxInput-1] = '…'
			break
		}
		out = append(out, r) // a broken octet comes as utf8.RuneError
	}
	return string(out)
}
