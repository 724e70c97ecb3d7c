package dnsname_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/dkimzone/dkimzone/internal/dnsname"
)

// checkStored fails the test unless name is in stored form.
func checkStored(t *testing.T, name string, limit int) {
	t.Helper()
	if len(name) == 0 || len(name) > limit {
		t.Errorf("%q has %d octets", name, len(name))
	}
	for label := range strings.SplitSeq(name, ".") {
		if len(label) == 0 || len(label) > dnsname.MaxLabel || strings.Trim(label, "-") != label ||
			strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			t.Errorf("%q has the label %q", name, label)
		}
	}
}

// checkRefused fails the test unless err can be shown.
func checkRefused(t *testing.T, err error) {
	t.Helper()
	if reasonOf(t, err) == "" {
		t.Error("refused without a reason")
	}
	if text := err.Error(); !utf8.ValidString(text) || len(text) > 1000 || strings.ContainsAny(text, "\x00\r\n\x1b") {
		t.Errorf("error cannot be shown: %q", text)
	}
}

func FuzzParseDomain(f *testing.F) {
	for _, tt := range nameTests {
		f.Add(tt.in)
	}
	f.Add("co.uk")
	f.Fuzz(func(t *testing.T, s string) {
		d, err := dnsname.ParseDomain(s)
		if err != nil {
			if d != "" {
				t.Errorf("ParseDomain(%q) = %q with an error", s, d)
			}
			checkRefused(t, err)
			return
		}
		checkStored(t, string(d), dnsname.MaxName)
		for _, again := range []string{string(d), strings.ToUpper(string(d)), d.Unicode()} {
			if same, err := dnsname.ParseDomain(again); same != d || err != nil {
				t.Errorf("ParseDomain(%q) = %q, but ParseDomain(%q) = %q, %v", s, d, again, same, err)
			}
		}
		for _, l := range dnsname.HostLabelCandidates(d) {
			checkStored(t, string(l), dnsname.MaxPlainHostLabel)
		}
		z, err := dnsname.ParseZone(s)
		if fits := len(d) <= dnsname.MaxZone; fits && string(z) != string(d) || fits != (err == nil) {
			t.Errorf("ParseZone(%q) = %q, %v; the domain is %q", s, z, err, d)
		}
	})
}

func FuzzParseSelector(f *testing.F) {
	for _, s := range []string{"", "selector1", "Foo.bar-Baz", "a..b", "s._domainkey", "-", ".", "ß", octets(238, "b")} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		sel, err := dnsname.ParseSelector(s)
		if err != nil {
			if sel != "" {
				t.Errorf("ParseSelector(%q) = %q with an error", s, sel)
			}
			checkRefused(t, err)
			return
		}
		checkStored(t, string(sel), dnsname.MaxSelector)
		if same, err := dnsname.ParseSelector(string(sel)); same != sel || err != nil {
			t.Errorf("ParseSelector(%q) = %q, %v", sel, same, err)
		}
		if _, err := dnsname.AliasOwnerName(sel, "a.b"); err != nil {
			t.Error(err)
		}
	})
}
