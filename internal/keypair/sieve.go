package keypair

import (
	"encoding/binary"
	"math"
	"math/big"
	"sync"
)

// maxWords is how many words of 32 bits the largest modulus has.
const maxWords = 4096 / 32

// primeGroup is some primes whose product fits into 32 bits.
type primeGroup struct {
	product uint64
	primes  []uint64
	powers  [maxWords]uint64 // 2^(32·i) modulo product
}

// smallPrimes are the primes below 1 000: five of six numbers that were damaged have a factor among them.
var smallPrimes = sync.OnceValue(func() []primeGroup {
	groups := []primeGroup{{product: 1}}
	for n := uint64(2); n < 1000; n++ {
		if !big.NewInt(int64(n)).ProbablyPrime(0) {
			continue
		}
		if groups[len(groups)-1].product*n > math.MaxUint32 {
			groups = append(groups, primeGroup{product: 1})
		}
		g := &groups[len(groups)-1]
		g.product *= n
		g.primes = append(g.primes, n)
	}
	for i := range groups {
		g, power := &groups[i], uint64(1)
		for k := range g.powers {
			g.powers[k] = power
			power = power << 32 % g.product
		}
	}
	return groups
})

// hasSmallFactor tells for a big-endian number of at most 4096 bits, a multiple of 32. The number is the sum of its words
// times powers of 2³², so modulo a product it is a sum of products of 32 bits each, and that needs no division.
func hasSmallFactor(number []byte) bool {
	var words [maxWords]uint64
	count := len(number) / 4
	for k := range count {
		words[k] = uint64(binary.BigEndian.Uint32(number[len(number)-4*k-4:]))
	}
	groups := smallPrimes()
	for i := range groups {
		g := &groups[i]
		var low, high uint64 // of the sum: low + high·2³²
		for k, w := range words[:count] {
			p := w * g.powers[k]
			low += p & math.MaxUint32
			high += p >> 32
		}
		rest := (high%g.product<<32%g.product + low%g.product) % g.product
		for _, p := range g.primes {
			if rest%p == 0 {
				return true
			}
		}
	}
	return false
}
