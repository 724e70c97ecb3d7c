package dnsname_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dkimzone/dkimzone/internal/dnsname"
)

// octets returns a name of exactly n octets that ends with tail, its labels as long as can be.
func octets(n int, tail string) string {
	name := tail
	for len(name) < n {
		label := min(n-len(name)-1, dnsname.MaxLabel)
		if n-len(name)-1-label == 1 {
			label-- // a dot needs a label in front of it
		}
		name = strings.Repeat("a", label) + "." + name
	}
	return name
}

func reasonOf(t *testing.T, err error) dnsname.Reason {
	t.Helper()
	if err == nil {
		return ""
	}
	var invalid *dnsname.InvalidError
	if !errors.As(err, &invalid) {
		t.Fatalf("error is %T, want *InvalidError", err)
	}
	return invalid.Reason
}

// nameTests hold for domains and zones alike.
var nameTests = []struct {
	name, in string
	want     string
	reason   dnsname.Reason
}{
	{name: "plain", in: "spamtrap.dk", want: "spamtrap.dk"},
	{name: "mixed case", in: "SpamTrap.DK", want: "spamtrap.dk"},
	{name: "dash", in: "a-b.com", want: "a-b.com"},
	{name: "dots", in: "a.b.com", want: "a.b.com"},
	{name: "digits", in: "163.com", want: "163.com"},
	{name: "dashes in third and fourth place", in: "r3---sn-apo3.example", want: "r3---sn-apo3.example"},
	{name: "unlisted top-level domain", in: "foo.example", want: "foo.example"},
	{name: "label of 63", in: strings.Repeat("a", 63) + ".com", want: strings.Repeat("a", 63) + ".com"},

	{name: "u-label", in: "bücher.example", want: "xn--bcher-kva.example"},
	{name: "u-label in capitals", in: "BÜCHER.EXAMPLE", want: "xn--bcher-kva.example"},
	{name: "u-label decomposed", in: "bu\u0308cher.example", want: "xn--bcher-kva.example"},
	{name: "a-label", in: "xn--bcher-kva.example", want: "xn--bcher-kva.example"},
	{name: "a-label in capitals", in: "XN--BCHER-KVA.example", want: "xn--bcher-kva.example"},
	{name: "a-label not first", in: "mail.xn--bcher-kva.example", want: "mail.xn--bcher-kva.example"},
	{name: "sharp s stays", in: "straße.example", want: "xn--strae-oqa.example"},
	{name: "ss stays", in: "STRASSE.example", want: "strasse.example"},
	{name: "final sigma stays", in: "βόλος.example", want: "xn--nxasmm1c.example"},
	{name: "u-label with dashes in second and third place", in: "é--a.example", want: "xn----a-9la.example"},
	{name: "emoji", in: "☕.example", want: "xn--53h.example"},
	{name: "emoji with variation selector", in: "i❤\ufe0f.example", want: "xn--i-7iq.example"},
	{name: "full width", in: "ｅｘａｍｐｌｅ．ＣＯＭ", want: "example.com"},
	{name: "ideographic full stop", in: "日本語。jp", want: "xn--wgv71a119e.jp"},
	{name: "soft hyphen", in: "exam\u00adple.com", want: "example.com"},
	{name: "right to left", in: "מייל.example", want: "xn--eebajf.example"},
	{name: "u-label beside dashes in third and fourth place", in: "r3---sn.bücher.example", want: "r3---sn.xn--bcher-kva.example"},

	{name: "empty", in: "", reason: dnsname.ReasonEmpty},
	{name: "dot", in: ".", reason: dnsname.ReasonEmptyLabel},
	{name: "leading dot", in: ".example.com", reason: dnsname.ReasonEmptyLabel},
	{name: "two dots", in: "example..com", reason: dnsname.ReasonEmptyLabel},
	{name: "two trailing dots", in: "example.com..", reason: dnsname.ReasonEmptyLabel},
	{name: "trailing dot", in: "example.com.", reason: dnsname.ReasonTrailingDot},
	{name: "trailing ideographic full stop", in: "bücher.example。", reason: dnsname.ReasonTrailingDot},
	{name: "single label", in: "localhost", reason: dnsname.ReasonSingleLabel},
	{name: "254 octets", in: octets(254, "com"), reason: dnsname.ReasonTooLong},
	{name: "253 octets and a trailing dot", in: octets(253, "com") + ".", reason: dnsname.ReasonTrailingDot},
	{name: "more than can be mapped", in: strings.Repeat("a", 1013), reason: dnsname.ReasonTooLong},
	{name: "u-labels of 253 octets", in: strings.Repeat("ü.", 126) + "a", reason: dnsname.ReasonTooLong},
	{name: "label of 64", in: strings.Repeat("a", 64) + ".com", reason: dnsname.ReasonLabelTooLong},
	{name: "u-label that gets too long", in: "ü" + strings.Repeat("a", 60) + ".com", reason: dnsname.ReasonLabelTooLong},
	{name: "underscore", in: "_dmarc.example.com", reason: dnsname.ReasonUnderscore},
	{name: "inner underscore", in: "foo_bar.com", reason: dnsname.ReasonUnderscore},
	{name: "wildcard", in: "*.example.com", reason: dnsname.ReasonWildcard},
	{name: "dash in front", in: "-a.example.com", reason: dnsname.ReasonHyphen},
	{name: "dash behind", in: "a-.example.com", reason: dnsname.ReasonHyphen},
	{name: "only a dash", in: "-.com", reason: dnsname.ReasonHyphen},
	{name: "space", in: "exam ple.com", reason: dnsname.ReasonBadCharacter},
	{name: "space in front", in: " example.com", reason: dnsname.ReasonBadCharacter},
	{name: "line end", in: "example.com\n", reason: dnsname.ReasonBadCharacter},
	{name: "zero octet", in: "example\x00.com", reason: dnsname.ReasonBadCharacter},
	{name: "escape", in: `exam\046ple.com`, reason: dnsname.ReasonBadCharacter},
	{name: "mail address", in: "john@example.com", reason: dnsname.ReasonBadCharacter},
	{name: "url", in: "https://example.com/", reason: dnsname.ReasonBadCharacter},
	{name: "slash", in: "example.com/a", reason: dnsname.ReasonBadCharacter},
	{name: "port", in: "example.com:53", reason: dnsname.ReasonBadCharacter},

	{name: "ipv4", in: "192.0.2.1", reason: dnsname.ReasonIPAddress},
	{name: "ipv4 in brackets", in: "[192.0.2.1]", reason: dnsname.ReasonIPAddress},
	{name: "ipv4 out of range", in: "192.0.2.256", reason: dnsname.ReasonIPAddress},
	{name: "ipv4 short form", in: "10.1", reason: dnsname.ReasonIPAddress},
	{name: "ipv4 hexadecimal", in: "10.0xa", reason: dnsname.ReasonIPAddress},
	{name: "ipv4 in full width", in: "１２７．０．０．１", reason: dnsname.ReasonIPAddress},
	{name: "ipv6", in: "2001:db8::1", reason: dnsname.ReasonIPAddress},
	{name: "ipv6 in brackets", in: "[2001:db8::1]", reason: dnsname.ReasonIPAddress},
	{name: "ipv6 domain literal", in: "[IPv6:2001:db8::1]", reason: dnsname.ReasonIPAddress},
	{name: "ipv6 with zone", in: "fe80::1%eth0", reason: dnsname.ReasonIPAddress},

	{name: "empty a-label", in: "xn--.example", reason: dnsname.ReasonEmptyLabel},
	{name: "a-label of ASCII", in: "xn--abc-.example", reason: dnsname.ReasonBadIDNA},
	{name: "a-label that does not decode", in: "xn--0.example", reason: dnsname.ReasonBadIDNA},
	{name: "a-label of a capital", in: "xn--bcher-2pa.example", reason: dnsname.ReasonBadIDNA},
	{name: "a-label that is not Punycode", in: "xn--bücher.example", reason: dnsname.ReasonBadIDNA},
	{name: "u-label with dashes in third and fourth place", in: "bü--cher.example", reason: dnsname.ReasonBadIDNA},
	{name: "u-label beginning with a dash", in: "-ü.example", reason: dnsname.ReasonBadIDNA},
	{name: "a-label of the same", in: "xn--b--cher-n2a.example", reason: dnsname.ReasonBadIDNA},
	{name: "a-label of a decomposed letter", in: "xn--bucher-xyd.example", reason: dnsname.ReasonBadIDNA},
	{name: "combining mark in front", in: "\u0301a.example", reason: dnsname.ReasonBadIDNA},
	{name: "joiner without context", in: "a\u200db.example", reason: dnsname.ReasonBadIDNA},
	{name: "mixed directions", in: "אa.example", reason: dnsname.ReasonBadIDNA},
	{name: "full-width underscore", in: "foo＿bar.example", reason: dnsname.ReasonBadIDNA},
	{name: "private use", in: "\ue000.example", reason: dnsname.ReasonBadIDNA},
	{name: "bidi override", in: "a\u202eb.example", reason: dnsname.ReasonBadIDNA},
	{name: "not UTF-8", in: "\xff.example", reason: dnsname.ReasonBadIDNA},
}

func TestParseDomain(t *testing.T) {
	tests := append(slices.Clip(nameTests), []struct {
		name, in string
		want     string
		reason   dnsname.Reason
	}{
		{name: "253 octets", in: octets(253, "com"), want: octets(253, "com")},
		{name: "public suffix", in: "co.uk", reason: dnsname.ReasonPublicSuffix},
		{name: "public suffix in capitals", in: "CO.UK", reason: dnsname.ReasonPublicSuffix},
		{name: "below a public suffix", in: "example.co.uk", want: "example.co.uk"},
		{name: "internationalized public suffix", in: "個人.hk", reason: dnsname.ReasonPublicSuffix},
		{name: "public suffix by wildcard rule", in: "foo.ck", reason: dnsname.ReasonPublicSuffix},
		{name: "exception to a wildcard rule", in: "www.ck", want: "www.ck"},
		{name: "public suffix of the private section", in: "github.io", want: "github.io"},
		{name: "top-level domain", in: "com", reason: dnsname.ReasonSingleLabel},
	}...)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := dnsname.ParseDomain(tt.in)
			if reason := reasonOf(t, err); string(got) != tt.want || reason != tt.reason {
				t.Errorf("ParseDomain(%q) = %q, %q; want %q, %q", tt.in, got, reason, tt.want, tt.reason)
			}
		})
	}
}

func TestParseZone(t *testing.T) {
	tests := append(slices.Clip(nameTests), []struct {
		name, in string
		want     string
		reason   dnsname.Reason
	}{
		{name: "public suffix", in: "co.uk", want: "co.uk"},
		{name: "178 octets", in: octets(178, "net"), want: octets(178, "net")},
		{name: "179 octets", in: octets(179, "net"), reason: dnsname.ReasonTooLong},
	}...)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := dnsname.ParseZone(tt.in)
			if reason := reasonOf(t, err); string(got) != tt.want || reason != tt.reason {
				t.Errorf("ParseZone(%q) = %q, %q; want %q, %q", tt.in, got, reason, tt.want, tt.reason)
			}
		})
	}
}

func TestParseSelector(t *testing.T) {
	tests := []struct {
		name, in string
		want     dnsname.Selector
		reason   dnsname.Reason
	}{
		{name: "plain", in: "selector1", want: "selector1"},
		{name: "one octet", in: "s", want: "s"},
		{name: "capitals", in: "Selector1", want: "selector1"},
		{name: "digits", in: "20230601", want: "20230601"},
		{name: "dashes", in: "google-2024--a", want: "google-2024--a"},
		{name: "dots", in: "Foo.Bar-Baz", want: "foo.bar-baz"},
		{name: "looks like an address", in: "10.0.0.1", want: "10.0.0.1"},
		{name: "63 octets", in: strings.Repeat("a", 63), want: dnsname.Selector(strings.Repeat("a", 63))},
		{name: "238 octets", in: octets(238, "b"), want: dnsname.Selector(octets(238, "b"))},
		{name: "empty", in: "", reason: dnsname.ReasonEmpty},
		{name: "64 octets", in: strings.Repeat("a", 64), reason: dnsname.ReasonLabelTooLong},
		{name: "239 octets", in: octets(239, "b"), reason: dnsname.ReasonTooLong},
		{name: "underscore", in: "selector1._domainkey", reason: dnsname.ReasonUnderscore},
		{name: "trailing dot", in: "selector1.", reason: dnsname.ReasonTrailingDot},
		{name: "leading dot", in: ".selector1", reason: dnsname.ReasonEmptyLabel},
		{name: "two dots", in: "a..b", reason: dnsname.ReasonEmptyLabel},
		{name: "dash in front", in: "-a", reason: dnsname.ReasonHyphen},
		{name: "dash behind", in: "a-", reason: dnsname.ReasonHyphen},
		{name: "dash behind inside", in: "a-.b", reason: dnsname.ReasonHyphen},
		{name: "wildcard", in: "*", reason: dnsname.ReasonWildcard},
		{name: "space", in: "a b", reason: dnsname.ReasonBadCharacter},
		{name: "not ASCII", in: "schlüssel", reason: dnsname.ReasonBadCharacter},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := dnsname.ParseSelector(tt.in)
			if reason := reasonOf(t, err); got != tt.want || reason != tt.reason {
				t.Errorf("ParseSelector(%q) = %q, %q; want %q, %q", tt.in, got, reason, tt.want, tt.reason)
			}
		})
	}
}

func TestDomainUnicode(t *testing.T) {
	tests := map[dnsname.Domain]string{
		"spamtrap.dk":           "spamtrap.dk",
		"xn--bcher-kva.example": "bücher.example",
		"xn--strae-oqa.de":      "straße.de",
		"r3---sn.example":       "r3---sn.example",
		"xn--0.example":         "xn--0.example", // no Domain, but it comes back
	}
	for d, want := range tests {
		if got := d.Unicode(); got != want {
			t.Errorf("Domain(%q).Unicode() = %q, want %q", d, got, want)
		}
	}
}

func TestInvalidError(t *testing.T) {
	parse := func(kind dnsname.Kind, in string) error {
		var err error
		switch kind {
		case dnsname.KindDomain:
			_, err = dnsname.ParseDomain(in)
		case dnsname.KindZone:
			_, err = dnsname.ParseZone(in)
		case dnsname.KindSelector:
			_, err = dnsname.ParseSelector(in)
		}
		return err
	}
	tests := []struct {
		kind     dnsname.Kind
		in, want string
	}{
		{dnsname.KindDomain, "", `domain "" is not valid: it is empty; give a name such as "example.com"`},
		{dnsname.KindSelector, "", `selector "" is not valid: it is empty; give a name such as "selector1"`},
		{dnsname.KindDomain, "co.uk", `domain "co.uk" is not valid: it is a public suffix, below which others have their domains; give the customer's own domain below it`},
		{dnsname.KindDomain, "192.0.2.1", `domain "192.0.2.1" is not valid: it is an IP address or reads like one; give a name`},
		{dnsname.KindDomain, "example.com.", `domain "example.com." is not valid: it ends with a dot; leave the last dot off`},
		{dnsname.KindDomain, "*.example.com", `domain "*.example.com" is not valid: it is a wildcard; name each domain by itself`},
		{dnsname.KindZone, "*.example.com", `zone "*.example.com" is not valid: it is a wildcard; name each zone by itself`},
		{dnsname.KindDomain, "a_b.com", `domain "a_b.com" is not valid: it has an underscore; give the name of the domain itself, not of a record below it`},
		{dnsname.KindSelector, "s._domainkey", `selector "s._domainkey" is not valid: it has an underscore; give only the part in front of "._domainkey"`},
		{dnsname.KindDomain, "a@example.com", `domain "a@example.com" is not valid: it has a character that no host name has; give only the part behind the @`},
		{dnsname.KindDomain, "http://example.com", `domain "http://example.com" is not valid: it has a character that no host name has; give the name alone, without scheme and path`},
		{dnsname.KindDomain, "\x1b[2J\u202e.com", `domain "\x1b[2J\u202e.com" is not valid: it has a character that no host name has; use letters, digits, dashes and dots`},
		{dnsname.KindSelector, "a b", `selector "a b" is not valid: it has a character that no host name has; use letters a to z, digits, dashes and dots`},
		{dnsname.KindDomain, "xn--0.example", `domain "xn--0.example" is not valid: it is not an internationalized name that can be looked up (UTS #46); check the spelling, or give the name in its xn-- form`},
		{dnsname.KindDomain, "localhost", `domain "localhost" is not valid: it has only one label; give the full name, such as "example.com"`},
		{dnsname.KindDomain, "a..com", `domain "a..com" is not valid: one of its labels is empty; put exactly one dot between labels and none in front`},
		{dnsname.KindDomain, "-.com", `domain "-.com" is not valid: one of its labels begins or ends with a dash; begin and end every label with a letter or a digit`},
		{dnsname.KindDomain, strings.Repeat("é", 65) + ".com", `domain "` + strings.Repeat("é", 63) + `…" is not valid: one of its labels is longer than 63 octets; shorten that label`},
		{dnsname.KindDomain, strings.Repeat("a.", 200) + "com", `domain "` + strings.Repeat("a.", 31) + `a…" is not valid: it is too long; a domain has at most 253 octets`},
		{dnsname.KindZone, octets(179, "net"), `zone "` + octets(179, "net")[:63] + `…" is not valid: it is too long; a zone has at most 178 octets, which leaves room for the owner names in it`},
		{dnsname.KindSelector, octets(239, "b"), `selector "` + octets(239, "b")[:63] + `…" is not valid: it is too long; a selector has at most 238 octets`},
	}
	for _, tt := range tests {
		err := parse(tt.kind, tt.in)
		if err == nil {
			t.Errorf("%s %q: no error", tt.kind, tt.in)
			continue
		}
		if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
			t.Errorf("%s %q: error differs (-want +got):\n%s", tt.kind, tt.in, diff)
		}
	}
}
