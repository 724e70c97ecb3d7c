package keypair

import (
	"math/big"
	"math/bits"
)

// fermatRounds is how far to look for a modulus that is the product of primes next to each other. Generators that took
// one prime soon after the other (CVE-2022-26320) are found in the first rounds.
const fermatRounds = 32

// hasClosePrimes is Fermat's method: n = a² − b² = (a+b)(a−b) for the first a from √n on for which b² is a square.
func hasClosePrimes(n *big.Int) bool {
	a := squareRoot(n)
	square := new(big.Int).Mul(a, a)
	if square.Cmp(n) == 0 {
		return true
	}
	one, two := big.NewInt(1), big.NewInt(2)
	a.Add(a, one)
	square.Mul(a, a).Sub(square, n) // b², if it is one
	step := new(big.Int).Lsh(a, 1)
	step.Add(step, one)
	for range fermatRounds {
		if isSquare(square) {
			return true
		}
		square.Add(square, step)
		step.Add(step, two)
	}
	return false
}

// squareRoot is floor(√n). It takes the root of the upper half of n and mends that by one step of Newton's method, which is
// much faster than to begin such steps with a guess, as big.Int does.
func squareRoot(n *big.Int) *big.Int {
	const small = 128
	if n.BitLen() <= small {
		return new(big.Int).Sqrt(n)
	}
	one, half := big.NewInt(1), uint(n.BitLen()/4)
	x := squareRoot(new(big.Int).Rsh(n, 2*half))
	x.Lsh(x.Add(x, one), half) // above the root, and so is what the step makes of it, or right
	quotient := new(big.Int).Div(n, x)
	x.Rsh(x.Add(x, quotient), 1)
	for square := new(big.Int).Mul(x, x); square.Cmp(n) > 0; square.Mul(x, x) {
		x.Sub(x, one)
	}
	return x
}

// squaresOf64 has a bit for each number that is a square modulo 64.
var squaresOf64 = func() (mask uint64) {
	for k := range uint64(64) {
		mask |= 1 << (k * k % 64)
	}
	return mask
}()

// isSquare is for n ≥ 0. Nearly all other numbers are told by their rests: modulo 64, and modulo primes that divide 2³²−1
// and 2⁶⁴−1, so that the sum of the words has the same rest.
func isSquare(n *big.Int) bool {
	words := n.Bits()
	if len(words) > 0 && squaresOf64>>(words[0]%64)&1 == 0 {
		return false
	}
	var sum, carry uint
	for _, w := range words {
		sum, carry = bits.Add(sum, uint(w), carry)
	}
	if sum += carry; sum < carry {
		sum++
	}
	for _, p := range []uint{3, 5, 17, 257} {
		if !isSquareModulo(sum%p, p) {
			return false
		}
	}
	root := new(big.Int).Sqrt(n)
	return root.Mul(root, root).Cmp(n) == 0
}

func isSquareModulo(n, modulo uint) bool {
	for k := range modulo/2 + 1 {
		if k*k%modulo == n {
			return true
		}
	}
	return false
}
