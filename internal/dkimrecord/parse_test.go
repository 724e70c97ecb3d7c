package dkimrecord_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
)

var parseTests = []struct {
	name, in string
	want     dkimrecord.Record
}{
	{"shortest", "p=", dkimrecord.Record{}},
	{"revoked", "v=DKIM1; p=", dkimrecord.Record{}},
	{"revoked, semicolon", "v=DKIM1; p=;", dkimrecord.Record{}},
	{"key type left out", "v=DKIM1; p=AAEC", dkimrecord.Record{PublicKey: []byte{0, 1, 2}}},
	{"version left out", "k=ed25519; p=AAEC", dkimrecord.Record{KeyType: dkimrecord.Ed25519, PublicKey: []byte{0, 1, 2}}},
	{"no blanks", "v=DKIM1;k=rsa;p=AAEC", dkimrecord.Record{PublicKey: []byte{0, 1, 2}}},
	{"blanks everywhere", " v = DKIM1 ;\tk = rsa ; p = A A\tE C ; ", dkimrecord.Record{PublicKey: []byte{0, 1, 2}}},
	{"folded", "v=DKIM1;\r\n k=rsa;\r\n\tp=AA\r\n EC", dkimrecord.Record{PublicKey: []byte{0, 1, 2}}},
	{"folded between padding", "p=AAECAw= =", dkimrecord.Record{PublicKey: []byte{0, 1, 2, 3}}},
	{"any order behind v=", "v=DKIM1; p=AAEC; t=s; k=rsa", dkimrecord.Record{PublicKey: []byte{0, 1, 2}, SameDomain: true}},
	{"testing", "v=DKIM1; t=y; p=", dkimrecord.Record{Testing: true}},
	{"both flags", "v=DKIM1; t=s : y; p=", dkimrecord.Record{Testing: true, SameDomain: true}},
	{"unknown flags", "v=DKIM1; t=x:y-1:Y; p=", dkimrecord.Record{}},
	{"unknown tags", "v=DKIM1; g=*; zz_9=a=b; P=; p=", dkimrecord.Record{}},
	{"empty unknown tag", "v=DKIM1; x=; p=", dkimrecord.Record{}},
	{
		"lists", "v=DKIM1; h=sha256 : sha1; s=email:*; p=",
		dkimrecord.Record{HashAlgorithms: []string{"sha256", "sha1"}, ServiceTypes: []string{"email", "*"}},
	},
	{"notes", "v=DKIM1; n=one  two=3B=C3=A9; p=", dkimrecord.Record{Notes: "one  two;é"}},
	{"folded notes", "v=DKIM1; n=one\r\n two; p=", dkimrecord.Record{Notes: "one two"}},
	{"empty notes", "v=DKIM1; n=; p=", dkimrecord.Record{}},
}

func TestParse(t *testing.T) {
	for _, tt := range parseTests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := dkimrecord.Parse(tt.in)
			if err != nil {
				t.Fatalf("Parse(%q): %v", tt.in, err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("Parse(%q) differs (-want +got):\n%s", tt.in, diff)
			}
		})
	}
}

var refusedTests = []struct {
	name, in string
	want     dkimrecord.InvalidError
	text     string
}{
	{
		"empty", "", dkimrecord.InvalidError{Reason: dkimrecord.ReasonEmpty},
		"not a DKIM key record: the text is empty",
	},
	{
		"only blanks", " \r\n ", dkimrecord.InvalidError{Reason: dkimrecord.ReasonEmpty},
		"not a DKIM key record: the text is empty",
	},
	{
		"too long", "p=" + strings.Repeat(" ", dkimrecord.MaxText-1), dkimrecord.InvalidError{Reason: dkimrecord.ReasonTooLong},
		"not a DKIM key record: the text is longer than a TXT record can be",
	},
	{
		"not ASCII", "v=DKIM1; n=é; p=", dkimrecord.InvalidError{Reason: dkimrecord.ReasonBadCharacter, Offset: 11},
		"not a DKIM key record: the text has a character other than printable ASCII and folding white space",
	},
	{"bare line feed", "v=DKIM1;\n p=", dkimrecord.InvalidError{Reason: dkimrecord.ReasonBadCharacter, Offset: 8}, ""},
	{"bare carriage return", "v=DKIM1;\r p=", dkimrecord.InvalidError{Reason: dkimrecord.ReasonBadCharacter, Offset: 8}, ""},
	{"line end that does not fold", "v=DKIM1;\r\np=", dkimrecord.InvalidError{Reason: dkimrecord.ReasonBadCharacter, Offset: 9}, ""},
	{"line end at the end", "v=DKIM1; p=\r\n", dkimrecord.InvalidError{Reason: dkimrecord.ReasonBadCharacter, Offset: 12}, ""},
	{"zero octet", "v=DKIM1; p=\x00", dkimrecord.InvalidError{Reason: dkimrecord.ReasonBadCharacter, Offset: 11}, ""},
	{
		"no tag", "hello", dkimrecord.InvalidError{Reason: dkimrecord.ReasonBadTag},
		"not a DKIM key record: a part of it does not have the form tag=value; separate the tags with one semicolon each",
	},
	{"semicolon in front", ";v=DKIM1; p=", dkimrecord.InvalidError{Reason: dkimrecord.ReasonBadTag}, ""},
	{"two semicolons", "v=DKIM1;; p=", dkimrecord.InvalidError{Reason: dkimrecord.ReasonBadTag, Offset: 8}, ""},
	{"two semicolons at the end", "v=DKIM1; p=; ;", dkimrecord.InvalidError{Reason: dkimrecord.ReasonBadTag, Offset: 12}, ""},
	{"tag without a name", "v=DKIM1; =a; p=", dkimrecord.InvalidError{Reason: dkimrecord.ReasonBadTag, Offset: 8}, ""},
	{"tag that begins with a digit", "v=DKIM1; 1a=; p=", dkimrecord.InvalidError{Reason: dkimrecord.ReasonBadTag, Offset: 8}, ""},
	{"tag with a dash", "v=DKIM1; a-b=; p=", dkimrecord.InvalidError{Reason: dkimrecord.ReasonBadTag, Offset: 8}, ""},
	{"blank in a tag", "v=DKIM1; a b=; p=", dkimrecord.InvalidError{Reason: dkimrecord.ReasonBadTag, Offset: 8}, ""},
	{
		"duplicate", "v=DKIM1; p=; p=", dkimrecord.InvalidError{Reason: dkimrecord.ReasonDuplicateTag, Tag: "p", Offset: 12},
		"not a DKIM key record: p= stands in it twice",
	},
	{"duplicate version", "v=DKIM1; v=DKIM1; p=", dkimrecord.InvalidError{Reason: dkimrecord.ReasonDuplicateTag, Tag: "v", Offset: 8}, ""},
	{
		"duplicate unknown tag", "v=DKIM1; secret=1; p=; secret=2", dkimrecord.InvalidError{Reason: dkimrecord.ReasonDuplicateTag, Offset: 22},
		"not a DKIM key record: a tag stands in it twice",
	},
	{
		"version not first", "k=rsa; v=DKIM1; p=", dkimrecord.InvalidError{Reason: dkimrecord.ReasonVersionNotFirst, Tag: "v", Offset: 6},
		"not a DKIM key record: v= is not the first tag",
	},
	{
		"other version", "v=spf1; p=", dkimrecord.InvalidError{Reason: dkimrecord.ReasonBadVersion, Tag: "v"},
		"not a DKIM key record: v= is not DKIM1",
	},
	{"version in lower case", "v=dkim1; p=", dkimrecord.InvalidError{Reason: dkimrecord.ReasonBadVersion, Tag: "v"}, ""},
	{
		"unknown key type", "v=DKIM1; k=dsa; p=", dkimrecord.InvalidError{Reason: dkimrecord.ReasonUnknownKeyType, Tag: "k", Offset: 8},
		"not a DKIM key record: k= is neither rsa nor ed25519",
	},
	{"key type in capitals", "v=DKIM1; k=RSA; p=", dkimrecord.InvalidError{Reason: dkimrecord.ReasonUnknownKeyType, Tag: "k", Offset: 8}, ""},
	{"empty key type", "v=DKIM1; k=; p=", dkimrecord.InvalidError{Reason: dkimrecord.ReasonUnknownKeyType, Tag: "k", Offset: 8}, ""},
	{
		"empty list", "v=DKIM1; h=; p=", dkimrecord.InvalidError{Reason: dkimrecord.ReasonBadValue, Tag: "h", Offset: 8},
		"not a DKIM key record: the value of h= is malformed",
	},
	{"star among hashes", "v=DKIM1; h=*; p=", dkimrecord.InvalidError{Reason: dkimrecord.ReasonBadValue, Tag: "h", Offset: 8}, ""},
	{"empty element", "v=DKIM1; s=email:; p=", dkimrecord.InvalidError{Reason: dkimrecord.ReasonBadValue, Tag: "s", Offset: 8}, ""},
	{"element that ends with a dash", "v=DKIM1; s=email-; p=", dkimrecord.InvalidError{Reason: dkimrecord.ReasonBadValue, Tag: "s", Offset: 8}, ""},
	{"element that begins with a digit", "v=DKIM1; t=1; p=", dkimrecord.InvalidError{Reason: dkimrecord.ReasonBadValue, Tag: "t", Offset: 8}, ""},
	{"empty flags", "v=DKIM1; t=; p=", dkimrecord.InvalidError{Reason: dkimrecord.ReasonBadValue, Tag: "t", Offset: 8}, ""},
	{"notes with a bad escape", "v=DKIM1; n==zz; p=", dkimrecord.InvalidError{Reason: dkimrecord.ReasonBadValue, Tag: "n", Offset: 8}, ""},
	{"notes with half an escape", "v=DKIM1; n=a=3; p=", dkimrecord.InvalidError{Reason: dkimrecord.ReasonBadValue, Tag: "n", Offset: 8}, ""},
	{
		"bad base64", "v=DKIM1; p=A*==", dkimrecord.InvalidError{Reason: dkimrecord.ReasonBadBase64, Tag: "p", Offset: 8},
		"not a DKIM key record: p= is not base64",
	},
	{"base64 without padding", "v=DKIM1; p=AAECAw", dkimrecord.InvalidError{Reason: dkimrecord.ReasonBadBase64, Tag: "p", Offset: 8}, ""},
	{"base64 with stray bits", "v=DKIM1; p=AAECAx==", dkimrecord.InvalidError{Reason: dkimrecord.ReasonBadBase64, Tag: "p", Offset: 8}, ""},
	{"base64 for URLs", "v=DKIM1; p=__--", dkimrecord.InvalidError{Reason: dkimrecord.ReasonBadBase64, Tag: "p", Offset: 8}, ""},
	{
		"no key", "v=DKIM1; k=rsa", dkimrecord.InvalidError{Reason: dkimrecord.ReasonMissingPublicKey, Tag: "p"},
		"not a DKIM key record: it has no p= tag",
	},
}

func TestParseRefuses(t *testing.T) {
	for _, tt := range refusedTests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := dkimrecord.Parse(tt.in)
			var invalid *dkimrecord.InvalidError
			if !errors.As(err, &invalid) {
				t.Fatalf("Parse(%q) = %v, %v; want an *InvalidError", tt.in, got, err)
			}
			if diff := cmp.Diff(tt.want, *invalid); diff != "" {
				t.Errorf("Parse(%q): error differs (-want +got):\n%s", tt.in, diff)
			}
			if diff := cmp.Diff(dkimrecord.Record{}, got); diff != "" {
				t.Errorf("Parse(%q): record with an error:\n%s", tt.in, diff)
			}
			if tt.text != "" && err.Error() != tt.text {
				t.Errorf("Parse(%q): error %q, want %q", tt.in, err, tt.text)
			}
		})
	}
}

func TestLongestText(t *testing.T) {
	text := "p=" + strings.Repeat(" ", dkimrecord.MaxText-2)
	if _, err := dkimrecord.Parse(text); err != nil {
		t.Fatal(err)
	}
	parts, err := dkimrecord.Split(text)
	if err != nil {
		t.Fatal(err)
	}
	if size := len(text) + len(parts); size != 65535 {
		t.Errorf("the longest text takes %d octets in a TXT record, want 65535", size)
	}
}

func FuzzParse(f *testing.F) {
	for _, tt := range parseTests {
		f.Add(tt.in)
	}
	for _, tt := range refusedTests {
		if len(tt.in) < 1000 {
			f.Add(tt.in)
		}
	}
	f.Add(strings.Join(golden(f), ""))
	f.Fuzz(func(t *testing.T, text string) {
		record, err := dkimrecord.Parse(text)
		if err != nil {
			var invalid *dkimrecord.InvalidError
			if !errors.As(err, &invalid) || strings.HasSuffix(err.Error(), string(invalid.Reason)) {
				t.Errorf("error without a sentence: %v", err)
			}
			return
		}
		canonical := record.String()
		if len(canonical) > dkimrecord.MaxText {
			return
		}
		again, err := dkimrecord.Parse(canonical)
		if err != nil {
			t.Fatalf("Parse(%q) gives %q, which does not parse: %v", text, canonical, err)
		}
		if diff := cmp.Diff(record, again); diff != "" {
			t.Errorf("Parse(%q) and Parse(%q) differ (-first +second):\n%s", text, canonical, diff)
		}
		if fixed := again.String(); fixed != canonical {
			t.Errorf("%q becomes %q", canonical, fixed)
		}
	})
}

func FuzzSplit(f *testing.F) {
	for _, n := range []int{0, 1, 254, 255, 256, 510, 511} {
		f.Add(strings.Repeat("a", n))
	}
	f.Fuzz(func(t *testing.T, text string) {
		parts, err := dkimrecord.Split(text)
		if text == "" {
			if !errors.Is(err, dkimrecord.ErrEmpty) {
				t.Errorf("error %v, want ErrEmpty", err)
			}
			return
		}
		if err != nil || strings.Join(parts, "") != text {
			t.Fatalf("Split(%q) = %q, %v", text, parts, err)
		}
		for i, part := range parts {
			full := len(part) == dkimrecord.MaxString
			if part == "" || len(part) > dkimrecord.MaxString || !full && i != len(parts)-1 {
				t.Errorf("string %d of %d has %d octets", i, len(parts), len(part))
			}
		}
	})
}
