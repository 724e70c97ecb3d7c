package dnsname_test

import (
	"testing"

	"github.com/dkimzone/dkimzone/internal/dnsname"
)

func BenchmarkParseDomain(b *testing.B) {
	for _, bb := range []struct{ name, in string }{
		{"ascii", "spamtrap.dk"},
		{"unicode", "bücher.example"},
		{"alabel", "xn--bcher-kva.example"},
	} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := dnsname.ParseDomain(bb.in); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkHostLabelCandidates(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		dnsname.HostLabelCandidates("spamtrap.dk")
	}
}

func BenchmarkOwnerName(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := dnsname.OwnerName("selector1", "spamtrap-dk", "keys.example.net"); err != nil {
			b.Fatal(err)
		}
	}
}
