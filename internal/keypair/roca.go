package keypair

import "sync"

// rocaPrimes are those below it. The generator used more of them for longer keys, but these for all, from 512 bits on.
const rocaPrimes = 168

// rocaField is what is known of the logarithms to the base 65537 modulo a small prime.
type rocaField struct {
	prime uint64
	order int // of 65537: its powers repeat after so many
	// logs has the exponent of each power of 65537; -1 for what is none.
	logs []int
}

// rocaTables has a field for each odd prime below rocaPrimes, with the groups that give the rests.
var rocaTables = sync.OnceValues(func() ([]primeGroup, []rocaField) {
	primes := primesBelow(rocaPrimes)[1:]
	fields := make([]rocaField, len(primes))
	for i, p := range primes {
		f := rocaField{prime: p, logs: make([]int, p)}
		for n := range f.logs {
			f.logs[n] = -1
		}
		for power := uint64(1); f.logs[power] < 0; power = power * 65537 % p {
			f.logs[power] = f.order
			f.order++
		}
		fields[i] = f
	}
	return groupPrimes(primes), fields
})

// isROCA recognizes the moduli of CVE-2017-15361 (Nemec and others, "The Return of Coppersmith's Attack", 2017): the
// library made only primes of the form k·M + (65537^a mod M), where M is the product of the first primes, so their
// product is a power of 65537 modulo M, too, and the factors can be found.
//
// Whether a number is such a power is known from its logarithms modulo each prime of M: they must all exist, and there
// must be one exponent that agrees with all of them, which is so if each two agree modulo what their orders have in
// common. One of 2¹⁵⁴ other moduli looks like that by chance.
func isROCA(number *words) bool {
	groups, fields := rocaTables()
	logs := make([]int, len(fields))
	i := 0
	for g := range groups {
		rest := groups[g].rest(number)
		for _, p := range groups[g].primes {
			if logs[i] = fields[i].logs[rest%p]; logs[i] < 0 {
				return false
			}
			i++
		}
	}
	for i := range fields {
		for j := range i {
			if (logs[i]-logs[j])%gcd(fields[i].order, fields[j].order) != 0 {
				return false
			}
		}
	}
	return true
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
