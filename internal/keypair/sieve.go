package keypair

import (
	"encoding/binary"
	"math"
	"math/big"
	"math/bits"
	"sync"
)

const (
	// maxWords is how many words of 64 bits the largest modulus has.
	maxWords = 4096 / 64
	// sieveBound is the first number that is not tried as a factor: six of seven numbers that were damaged have one below it.
	sieveBound = 4096
)

// words are those of a number, the lowest first.
type words struct {
	word  [maxWords]uint64
	count int
}

// wordsOf splits a big-endian number of at most 4096 bits, a multiple of 64.
func wordsOf(number []byte) (w words) {
	w.count = len(number) / 8
	for k := range w.count {
		w.word[k] = binary.BigEndian.Uint64(number[len(number)-8*k-8:])
	}
	return w
}

// primeGroup is some primes whose product fits into 64 bits.
type primeGroup struct {
	product uint64
	primes  []uint64         // odd ones
	powers  [maxWords]uint64 // 2^(64·i) modulo product
	// inverses are those of the primes modulo 2⁶⁴: times them the multiples of a prime p, and no other numbers, come to
	// 2⁶⁴/p at most. That is a test without a division.
	inverses, limits []uint64
}

// rest is the number modulo the product. The number is the sum of its words times powers of 2⁶⁴, so that takes a sum of
// products of 64 bits each and three divisions.
func (g *primeGroup) rest(number *words) uint64 {
	var low, middle, high, carry uint64
	for k, w := range number.word[:number.count] {
		h, l := bits.Mul64(w, g.powers[k])
		low, carry = bits.Add64(low, l, 0)
		middle, carry = bits.Add64(middle, h, carry)
		high += carry
	}
	r := bits.Rem64(high%g.product, middle, g.product)
	return bits.Rem64(r, low, g.product)
}

// groupPrimes sorts odd primes into groups.
func groupPrimes(primes []uint64) []primeGroup {
	var groups []primeGroup
	for _, p := range primes {
		if n := len(groups); n == 0 || overflows(groups[n-1].product, p) {
			groups = append(groups, primeGroup{product: 1})
		}
		g := &groups[len(groups)-1]
		g.product *= p
		g.primes = append(g.primes, p)
	}
	for i := range groups {
		g, power := &groups[i], uint64(1)
		for k := range g.powers {
			g.powers[k] = power
			power = bits.Rem64(power, 0, g.product)
		}
		for _, p := range g.primes {
			inverse := p // to three bits; each step doubles them
			for range 5 {
				inverse *= 2 - p*inverse
			}
			g.inverses, g.limits = append(g.inverses, inverse), append(g.limits, math.MaxUint64/p)
		}
	}
	return groups
}

func overflows(a, b uint64) bool {
	high, _ := bits.Mul64(a, b)
	return high != 0
}

// primesBelow returns the primes from 2 on.
func primesBelow(bound uint64) (primes []uint64) {
	for n := uint64(2); n < bound; n++ {
		if big.NewInt(int64(n)).ProbablyPrime(0) {
			primes = append(primes, n)
		}
	}
	return primes
}

var smallPrimes = sync.OnceValue(func() []primeGroup { return groupPrimes(primesBelow(sieveBound)[1:]) })

// smallFactor returns the least prime factor below sieveBound, 0 if there is none.
func smallFactor(number *words) uint64 {
	if number.word[0]%2 == 0 {
		return 2
	}
	groups := smallPrimes()
	for i := range groups {
		g := &groups[i]
		rest := g.rest(number)
		for k, p := range g.primes {
			if rest*g.inverses[k] <= g.limits[k] {
				return p
			}
		}
	}
	return 0
}
