package keypair

import (
	"math/big"
	"testing"
)

func TestIsSquare(t *testing.T) {
	for n := range int64(100_000) {
		root := new(big.Int).Sqrt(big.NewInt(n)).Int64()
		if got, want := isSquare(big.NewInt(n)), root*root == n; got != want {
			t.Fatalf("isSquare(%d) = %t", n, got)
		}
	}
	for range 100 {
		root := random(1024)
		square := new(big.Int).Mul(root, root)
		if !isSquare(square) {
			t.Fatalf("isSquare(%v) = false", square)
		}
		for _, d := range []int64{-1, 1, 64, 3 * 5 * 17 * 257 * 64} {
			if isSquare(new(big.Int).Add(square, big.NewInt(d))) {
				t.Fatalf("isSquare(%v + %d) = true", square, d)
			}
		}
	}
}

func TestSquareRoot(t *testing.T) {
	for _, bits := range []int{64, 128, 136, 256, 1032, 2048, 3072, 4096} {
		for range 100 {
			n := random(bits)
			for _, n := range []*big.Int{n, new(big.Int).Mul(n, n), new(big.Int).Sub(new(big.Int).Mul(n, n), big.NewInt(1))} {
				if got, want := squareRoot(n), new(big.Int).Sqrt(n); got.Cmp(want) != 0 {
					t.Fatalf("squareRoot(%v) = %v, want %v", n, got, want)
				}
			}
		}
	}
}

// TestClosePrimes looks how far the search goes: a and b of n = (a−b)(a+b) with a first found in the last round, and after it.
func TestClosePrimes(t *testing.T) {
	a := new(big.Int).Lsh(random(1024), 1)
	for _, tt := range []struct {
		rounds int64
		want   bool
	}{{1, true}, {fermatRounds / 2, true}, {fermatRounds, true}, {fermatRounds + 5, false}} {
		// For a b of √(2·a·r) the first a to try is r below it, or nearly.
		b := new(big.Int).Mul(a, big.NewInt(2*tt.rounds-1))
		b.Sqrt(b)
		n := new(big.Int).Mul(new(big.Int).Add(a, b), new(big.Int).Sub(a, b))
		if got := hasClosePrimes(n); got != tt.want {
			t.Errorf("found in round %d: %t", tt.rounds, got)
		}
	}
}
