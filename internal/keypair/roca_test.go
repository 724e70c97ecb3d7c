package keypair

import (
	"math/big"
	"testing"
)

// TestROCATables checks the tables against what is published of the generator: the order of 65537 modulo the product of
// the primes up to 167.
func TestROCATables(t *testing.T) {
	groups, fields := rocaTables()
	order, powers, all := big.NewInt(1), big.NewInt(1), big.NewInt(1)
	i := 0
	for _, g := range groups {
		for _, p := range g.primes {
			if fields[i].prime != p {
				t.Fatalf("field %d is of %d, the group's prime is %d", i, fields[i].prime, p)
			}
			n := big.NewInt(int64(fields[i].order))
			common := new(big.Int).GCD(nil, nil, order, n)
			order.Mul(order, n).Div(order, common)
			powers.Mul(powers, n)
			all.Mul(all, big.NewInt(int64(p-1)))
			i++
		}
	}
	if len(fields) != 38 || i != 38 {
		t.Errorf("%d fields, %d primes, want 38", len(fields), i)
	}
	if want := "2454106387091158800"; order.String() != want {
		t.Errorf("65537 has the order %v, want %s", order, want)
	}
	if chance := all.Div(all, order); chance.BitLen() != 155 {
		t.Errorf("one of 2^%d moduli looks like one by chance, want 2^154", chance.BitLen()-1)
	}
	if powers.Cmp(order) <= 0 {
		t.Error("the orders have nothing in common, so nothing is compared")
	}
}

// TestROCAPublished recognizes a modulus of 1 024 bits from the publication's detector, and no neighbour of it.
func TestROCAPublished(t *testing.T) {
	n, _ := new(big.Int).SetString("1db349e1f58f5d41f65aa5b0ffa6ae0cea80de6c170b2b4abf9c358d79494ca59cab008f5ee92759b91d497e2131701047f953935a163e91db5460"+
		"c82566f4df0c05bca02a8576f7c4e916b274e2f307b56fc8a20ad452b1b54d3924726a3b2329da882c7b8e102379dfe7a8c6b01d62e7ff0fd58e1e9822f6e32b5b0486561fb", 16)
	is := func(n *big.Int) bool {
		w := wordsOf(n.FillBytes(make([]byte, (n.BitLen()+63)/64*8)))
		return isROCA(&w)
	}
	if !is(n) {
		t.Fatal("it is not recognized")
	}
	for range 1000 {
		if n.Add(n, big.NewInt(2)); is(n) {
			t.Errorf("%x passes for one, too", n)
		}
	}
}

// TestROCASubgroups takes numbers that have a logarithm modulo each prime, but none that agrees with all: the cheap half
// of the test passes, the other must not.
func TestROCASubgroups(t *testing.T) {
	_, fields := rocaTables()
	modulus := big.NewInt(1)
	for _, f := range fields {
		modulus.Mul(modulus, new(big.Int).SetUint64(f.prime))
	}
	number := func(log func(i int) int) *words {
		n := new(big.Int)
		for i, f := range fields {
			p := new(big.Int).SetUint64(f.prime)
			others := new(big.Int).Div(modulus, p)
			rest := new(big.Int).Exp(big.NewInt(65537), big.NewInt(int64(log(i)%f.order)), p)
			rest.Mul(rest, new(big.Int).ModInverse(others, p))
			n.Add(n, rest.Mul(rest, others)).Mod(n, modulus)
		}
		w := wordsOf(n.FillBytes(make([]byte, 256)))
		return &w
	}
	if !isROCA(number(func(int) int { return 123456789 })) {
		t.Error("a power of 65537 is not recognized")
	}
	for range 1000 {
		if isROCA(number(func(int) int { return below(1000) })) {
			t.Error("a number of unrelated logarithms passes for a power of 65537")
		}
	}
}
