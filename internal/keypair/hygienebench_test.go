package keypair

import "testing"

func BenchmarkJudgeModulus(b *testing.B) {
	n := random(2048)
	for {
		if err := judgeModulus(n.Bytes()); err == nil {
			break
		}
		n = random(2048)
	}
	octets := n.Bytes()
	b.Run("all", func(b *testing.B) {
		for b.Loop() {
			_ = judgeModulus(octets)
		}
	})
	b.Run("sieve", func(b *testing.B) {
		for b.Loop() {
			w := wordsOf(octets)
			smallFactor(&w)
		}
	})
	b.Run("close", func(b *testing.B) {
		for b.Loop() {
			hasClosePrimes(n)
		}
	})
}
