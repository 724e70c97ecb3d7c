package keypair_test

import (
	"testing"

	"github.com/dkimzone/dkimzone/internal/keypair"
)

var benchmarked = []keypair.Algorithm{keypair.RSA2048, keypair.Ed25519}

func BenchmarkGenerate(b *testing.B) {
	for _, a := range benchmarked {
		b.Run(a.String(), func(b *testing.B) {
			for b.Loop() {
				if _, err := keypair.Generate(a); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkMarshal(b *testing.B) {
	for _, a := range benchmarked {
		b.Run(a.String(), func(b *testing.B) {
			k := pair(b, a)
			b.ReportAllocs()
			for b.Loop() {
				k.Marshal()
			}
		})
	}
}

func BenchmarkUnmarshal(b *testing.B) {
	for _, a := range benchmarked {
		b.Run(a.String(), func(b *testing.B) {
			form := pair(b, a).Marshal()
			b.ReportAllocs()
			for b.Loop() {
				if _, err := keypair.Unmarshal(form); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkParsePublicKey(b *testing.B) {
	for _, a := range benchmarked {
		b.Run(a.String(), func(b *testing.B) {
			text := []byte(record(pair(b, a).Public()))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := keypair.ParsePublicKey(text); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
