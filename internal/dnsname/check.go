package dnsname

import (
	"net/netip"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// maxUnmapped bounds the input of the IDNA mapping, in octets: no name that fits needs more in UTF-8.
const maxUnmapped = utf8.UTFMax * MaxName

const acePrefix = "xn--"

// profile maps as UTS #46 says for a look-up, non-transitional. Dashes are isALabel's to judge: in the third and fourth
// place of a plain label they have nothing to do with IDNA ("r3---sn.example"), and idna counts octets.
var profile = idna.New(idna.MapForLookup(), idna.Transitional(false), idna.BidiRule(), idna.CheckHyphens(false))

// mapIDNA returns the A-label form of s. It is not ok if a label is not a valid IDNA label, or not written in the one
// way that encodes it.
func mapIDNA(s string) (name string, ok bool) {
	name, err := profile.ToASCII(s)
	if err != nil {
		return "", false
	}
	for label := range strings.SplitSeq(name, ".") {
		if strings.HasPrefix(label, acePrefix) && !isALabel(label) {
			return "", false
		}
	}
	return name, true
}

// isALabel reports whether label is what its Unicode form encodes to, and that form has no dash at either end or in
// both the third and the fourth place (RFC 5891 §4.2.3.1).
func isALabel(label string) bool {
	unicode, err := profile.ToUnicode(label)
	if err != nil {
		return false
	}
	again, err := profile.ToASCII(unicode)
	if err != nil || again != label {
		return false
	}
	runes := []rune(unicode)
	dash := func(i int) bool { return i < len(runes) && runes[i] == '-' }
	return !dash(0) && !dash(len(runes)-1) && !(dash(2) && dash(3))
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// hasALabel reports whether a label of the lower-case name has the prefix of A-labels.
func hasALabel(name string) bool {
	return strings.HasPrefix(name, acePrefix) || strings.Contains(name, "."+acePrefix)
}

// checkOctets judges the ASCII octets of s; the others are the IDNA mapping's to judge.
func checkOctets(s string) Reason {
	if strings.ContainsRune(s, '*') {
		return ReasonWildcard
	}
	reason := Reason("")
	for i := range len(s) {
		switch c := s[i]; {
		case isAlphanumeric(c), c == '-', c == '.', c >= utf8.RuneSelf:
		case c == '_':
			reason = ReasonUnderscore
		default:
			return ReasonBadCharacter
		}
	}
	return reason
}

// checkLabels judges an ASCII name label by label.
func checkLabels(name string) Reason {
	if reason := checkOctets(name); reason != "" {
		return reason
	}
	if len(name) > 1 && name[len(name)-1] == '.' && name[len(name)-2] != '.' {
		return ReasonTrailingDot
	}
	for label := range strings.SplitSeq(name, ".") {
		switch {
		case label == "":
			return ReasonEmptyLabel
		case label[0] == '-', label[len(label)-1] == '-':
			return ReasonHyphen
		case len(label) > MaxLabel:
			return ReasonLabelTooLong
		}
	}
	return ""
}

func isAlphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// isAddress reports whether s is an IPv6 address as such, or any address in the brackets of a URL or as the domain
// literal of a mail address (RFC 5321 §4.1.3). A bare IPv4 address ends in a number.
func isAddress(s string) bool {
	if !strings.ContainsAny(s, ":[") {
		return false
	}
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		s = s[1 : len(s)-1]
		const tag = "ipv6:"
		if len(s) > len(tag) && strings.EqualFold(s[:len(tag)], tag) {
			s = s[len(tag):]
		}
	}
	_, err := netip.ParseAddr(s)
	return err == nil
}

// endsInNumber reports whether the last label is a number in a form that address parsers take ("1.2.3", "10.0x1f"). No
// top-level domain is one (RFC 3696 §2), and resolver libraries would read such a name as an IPv4 address.
func endsInNumber(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	digits := "0123456789"
	if hex, ok := strings.CutPrefix(last, "0x"); ok {
		last, digits = hex, "0123456789abcdef"
	}
	return strings.Trim(last, digits) == ""
}
