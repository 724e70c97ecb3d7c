package dnsname_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/dkimzone/dkimzone/internal/dnsname"
)

func TestHostLabelCandidates(t *testing.T) {
	a, b := strings.Repeat("a", 70), strings.Repeat("b", 70)
	tests := []struct {
		name, in string
		want     []dnsname.HostLabel // the hashes come from sha256sum and base32
	}{
		{name: "plain", in: "spamtrap.dk", want: []dnsname.HostLabel{"spamtrap-dk", "spamtrap-dk-6nkrdu3y"}},
		{name: "dash", in: "a-b.com", want: []dnsname.HostLabel{"a-b-com", "a-b-com-hyzgqu7f"}},
		{name: "dots", in: "a.b.com", want: []dnsname.HostLabel{"a-b-com", "a-b-com-fcxgssuj"}},
		{
			name: "a-label", in: "xn--bcher-kva.example",
			want: []dnsname.HostLabel{"xn--bcher-kva-example", "xn--bcher-kva-example-s4gknnz6"},
		},
		{
			name: "61 octets", in: a[:58] + ".dk",
			want: []dnsname.HostLabel{dnsname.HostLabel(a[:58] + "-dk"), dnsname.HostLabel(a[:31] + "-brvkctk4")},
		},
		{name: "62 octets", in: a[:59] + ".dk", want: []dnsname.HostLabel{dnsname.HostLabel(a[:31] + "-5mfw4yqz")}},
		{name: "cut at a dot", in: a[:30] + "." + b[:40] + ".dk", want: []dnsname.HostLabel{dnsname.HostLabel(a[:30] + "-vdkvvsck")}},
		{name: "cut at dashes", in: a[:28] + "---" + b[:30] + ".dk", want: []dnsname.HostLabel{dnsname.HostLabel(a[:28] + "-4bfvvkoy")}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, err := dnsname.ParseDomain(tt.in)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, dnsname.HostLabelCandidates(d)); diff != "" {
				t.Errorf("HostLabelCandidates(%q) differs (-want +got):\n%s", d, diff)
			}
		})
	}
}

func TestOwnerName(t *testing.T) {
	label := func(n int) dnsname.HostLabel { return dnsname.HostLabel(strings.Repeat("a", n)) }
	tests := []struct {
		name   string
		sel    dnsname.Selector
		label  dnsname.HostLabel
		zone   dnsname.Zone
		want   string
		reason dnsname.Reason
	}{
		{name: "plain", sel: "selector1", label: "spamtrap-dk", zone: "keys.example.net", want: "selector1-spamtrap-dk._domainkey.keys.example.net"},
		{name: "dots in the selector", sel: "foo.bar", label: "spamtrap-dk", zone: "keys.example.net", want: "foo.bar-spamtrap-dk._domainkey.keys.example.net"},
		{name: "label of 63", sel: "selector1", label: label(53), zone: "z.net", want: "selector1-" + string(label(53)) + "._domainkey.z.net"},
		{name: "label of 64", sel: "selector1", label: label(54), zone: "z.net", reason: dnsname.ReasonLabelTooLong},
		{name: "only the last label of the selector counts", sel: "selector1.s", label: label(61), zone: "z.net", want: "selector1.s-" + string(label(61)) + "._domainkey.z.net"},
		{name: "253 octets", sel: "s", label: label(61), zone: dnsname.Zone(octets(178, "net")), want: "s-" + string(label(61)) + "._domainkey." + octets(178, "net")},
		{name: "255 octets", sel: "a.s", label: label(61), zone: dnsname.Zone(octets(178, "net")), reason: dnsname.ReasonTooLong},
		{name: "no selector", label: "a-com", zone: "z.net", reason: dnsname.ReasonEmpty},
		{name: "no label", sel: "s", zone: "z.net", reason: dnsname.ReasonEmpty},
		{name: "no zone", sel: "s", label: "a-com", reason: dnsname.ReasonEmpty},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := dnsname.OwnerName(tt.sel, tt.label, tt.zone)
			if reason := reasonOf(t, err); got != tt.want || reason != tt.reason {
				t.Errorf("OwnerName = %q, %q; want %q, %q", got, reason, tt.want, tt.reason)
			}
			if tt.want == "" {
				return
			}
			relative, err := dnsname.RelativeOwnerName(tt.sel, tt.label)
			if want := strings.TrimSuffix(tt.want, "."+string(tt.zone)); relative != want || err != nil {
				t.Errorf("RelativeOwnerName = %q, %v; want %q", relative, err, want)
			}
		})
	}
}

func TestRelativeOwnerNameTooLong(t *testing.T) {
	sel := dnsname.Selector(octets(dnsname.MaxSelector, "s"))
	_, err := dnsname.RelativeOwnerName(sel, "spamtrap-dk")
	if got := reasonOf(t, err); got != dnsname.ReasonTooLong {
		t.Errorf("reason %q, want %q", got, dnsname.ReasonTooLong)
	}
}

func TestAliasOwnerName(t *testing.T) {
	tests := []struct {
		name   string
		sel    dnsname.Selector
		domain dnsname.Domain
		want   string
		reason dnsname.Reason
	}{
		{name: "plain", sel: "selector1", domain: "spamtrap.dk", want: "selector1._domainkey.spamtrap.dk"},
		{name: "253 octets", sel: "selector1", domain: dnsname.Domain(octets(232, "com")), want: "selector1._domainkey." + octets(232, "com")},
		{name: "254 octets", sel: "selector1", domain: dnsname.Domain(octets(233, "com")), reason: dnsname.ReasonTooLong},
		{name: "longest selector", sel: dnsname.Selector(octets(238, "s")), domain: "a.b", want: octets(238, "s") + "._domainkey.a.b"},
		{name: "no selector", domain: "a.b", reason: dnsname.ReasonEmpty},
		{name: "no domain", sel: "s", reason: dnsname.ReasonEmpty},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := dnsname.AliasOwnerName(tt.sel, tt.domain)
			if reason := reasonOf(t, err); got != tt.want || reason != tt.reason {
				t.Errorf("AliasOwnerName = %q, %q; want %q, %q", got, reason, tt.want, tt.reason)
			}
		})
	}
}

func TestOwnerNameError(t *testing.T) {
	_, err := dnsname.OwnerName("selector1", dnsname.HostLabel(strings.Repeat("a", 54)), "keys.example.net")
	want := `owner name "selector1-` + strings.Repeat("a", 53) + `…" is not valid: one of its labels is longer than 63 octets; use a shorter selector or the next host label of the domain`
	if err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestShadowLabels(t *testing.T) {
	tests := []struct {
		sel   dnsname.Selector
		label dnsname.HostLabel
		want  []dnsname.HostLabel
	}{
		{"selector1", "y", nil},
		{"sel-x", "y", []dnsname.HostLabel{"x-y"}},
		{"a-b-c", "y", []dnsname.HostLabel{"b-c-y", "c-y"}},
		{"a-b-c", "y-z", []dnsname.HostLabel{"b-c-y-z", "c-y-z"}},
		{"a-b.c", "y", nil},
		{"a-b.c-d", "y", []dnsname.HostLabel{"d-y"}},
		{"a--b", "y", nil}, // neither "a-" nor "-b-y" is valid
		{"a--b-c", "y", []dnsname.HostLabel{"c-y"}},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, dnsname.ShadowLabels(tt.sel, tt.label)); diff != "" {
			t.Errorf("ShadowLabels(%q, %q) differs (-want +got):\n%s", tt.sel, tt.label, diff)
		}
	}
}

// use is a selector used on a host label.
type use struct {
	sel   dnsname.Selector
	label dnsname.HostLabel
}

func (u use) claims() []dnsname.HostLabel {
	return append(dnsname.ShadowLabels(u.sel, u.label), u.label)
}

func shareClaim(a, b use) bool {
	return slices.ContainsFunc(a.claims(), func(l dnsname.HostLabel) bool { return slices.Contains(b.claims(), l) })
}

// TestClaimsKeepOwnerNamesApart tries every selector and label of up to four characters.
func TestClaimsKeepOwnerNamesApart(t *testing.T) {
	var labels []string
	for _, n := range []int{1, 2, 3, 4} {
		for i := range 1 << (2 * n) {
			name := make([]byte, n)
			for j := range name {
				name[j] = "ab-."[i>>(2*j)&3]
			}
			if sel, err := dnsname.ParseSelector(string(name)); err == nil {
				labels = append(labels, string(sel))
			}
		}
	}
	uses := make(map[string][]use)
	met := 0
	for _, sel := range labels {
		for _, label := range labels {
			if strings.Contains(label, ".") {
				continue
			}
			u := use{dnsname.Selector(sel), dnsname.HostLabel(label)}
			owner, err := dnsname.OwnerName(u.sel, u.label, "keys.example.net")
			if err != nil {
				t.Fatal(err)
			}
			for _, other := range uses[owner] {
				met++
				if !shareClaim(u, other) {
					t.Errorf("%v and %v meet in %s and share no claim", u, other, owner)
				}
			}
			uses[owner] = append(uses[owner], u)
		}
	}
	if met == 0 {
		t.Error("no two uses met: the test proves nothing")
	}
}

// selectorGen and labelGen make values full of dashes.
var (
	ldhGen      = rapid.StringMatching(`[a-c0]([a-c0-]{0,10}[a-c0])?`)
	selectorGen = rapid.Custom(func(t *rapid.T) dnsname.Selector {
		return dnsname.Selector(strings.Join(rapid.SliceOfN(ldhGen, 1, 3).Draw(t, "labels"), "."))
	})
	labelGen = rapid.Custom(func(t *rapid.T) dnsname.HostLabel { return dnsname.HostLabel(ldhGen.Draw(t, "label")) })
)

func TestClaimsKeepOwnerNamesApartProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		u := use{selectorGen.Draw(t, "selector"), labelGen.Draw(t, "label")}
		owner, err := dnsname.OwnerName(u.sel, u.label, "keys.example.net")
		if err != nil {
			t.Fatal(err)
		}
		// Every valid reading of the owner name, wherever the dash is taken to be.
		first, _, _ := strings.Cut(owner, "._domainkey.")
		prefix, last := first[:strings.LastIndexByte(first, '.')+1], first[strings.LastIndexByte(first, '.')+1:]
		for i := range last {
			if last[i] != '-' {
				continue
			}
			sel, err := dnsname.ParseSelector(prefix + last[:i])
			if err != nil {
				continue
			}
			if _, err := dnsname.ParseSelector(last[i+1:]); err != nil {
				continue // not a label either
			}
			other := use{sel, dnsname.HostLabel(last[i+1:])}
			if again, err := dnsname.OwnerName(other.sel, other.label, "keys.example.net"); again != owner || err != nil {
				t.Fatalf("%v gives %q, %v; want %q", other, again, err, owner)
			}
			if !shareClaim(u, other) {
				t.Fatalf("%v and %v meet in %s and share no claim", u, other, owner)
			}
		}
	})
}

func TestHostLabelCandidatesProperty(t *testing.T) {
	labels := rapid.StringMatching(`[a-z]([a-z0-9-]{0,61}[a-z0-9])?`)
	rapid.Check(t, func(t *rapid.T) {
		in := strings.Join(rapid.SliceOfN(labels, 1, 6).Draw(t, "labels"), ".") + ".example"
		d, err := dnsname.ParseDomain(in)
		if err != nil {
			t.Skip("not a domain:", err)
		}
		candidates := dnsname.HostLabelCandidates(d)
		for _, l := range candidates {
			if _, err := dnsname.ParseSelector(string(l)); err != nil || strings.Contains(string(l), ".") || len(l) > dnsname.MaxPlainHostLabel {
				t.Fatalf("candidate %q of %q is not a label", l, d)
			}
		}
		sel := dnsname.Selector(rapid.StringMatching(`[a-z][a-z0-9-]{0,20}[a-z0-9]`).Draw(t, "selector"))
		last := candidates[len(candidates)-1]
		if !sel.FitsLabel(last) {
			t.Fatalf("%q does not fit the hashed label %q", sel, last)
		}
		if _, err := dnsname.OwnerName(sel, last, dnsname.Zone(octets(dnsname.MaxZone, "net"))); err != nil {
			t.Fatal(err)
		}
	})
}
