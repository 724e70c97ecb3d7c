package keypair

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"math/big"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// random returns an odd number of so many bits.
func random(bits int) *big.Int {
	b := make([]byte, bits/8)
	_, _ = rand.Read(b) // never fails
	b[0] |= 0x80
	b[len(b)-1] |= 1
	return new(big.Int).SetBytes(b)
}

func TestSmallFactor(t *testing.T) {
	primes := primesBelow(sieveBound)
	least := func(n *big.Int) uint64 {
		for _, p := range primes {
			if new(big.Int).Mod(n, new(big.Int).SetUint64(p)).Sign() == 0 {
				return p
			}
		}
		return 0
	}
	factor := func(n *big.Int) uint64 {
		w := wordsOf(n.FillBytes(make([]byte, (n.BitLen()+63)/64*8)))
		return smallFactor(&w)
	}
	seen := map[bool]int{}
	for _, bits := range []int{2048, 3072, 4096} {
		for range 100 {
			n := random(bits)
			want := least(n)
			seen[want == 0]++
			if got := factor(n); got != want {
				t.Fatalf("smallFactor(%x) = %d, want %d", n, got, want)
			}
		}
		// The greatest sums, and each prime by itself.
		ones := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), uint(bits)), big.NewInt(1))
		if got := factor(ones); got != 3 {
			t.Errorf("smallFactor(%x) = %d, want 3", ones, got)
		}
		free := random(bits - 16)
		for least(free) != 0 {
			free.Add(free, big.NewInt(2))
		}
		for _, p := range primes {
			if got := factor(new(big.Int).Mul(free, new(big.Int).SetUint64(p))); got != p {
				t.Errorf("the factor %d is not seen, but %d", p, got)
			}
		}
	}
	if seen[true] == 0 || seen[false] == 0 {
		t.Errorf("the numbers are all of one kind: %v", seen)
	}
}

// below returns a number below n.
func below(n int) int {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	return int(binary.BigEndian.Uint32(b[:]) % uint32(n))
}

// The short way of parseCommon leads where the long one does.
func TestParseCommon(t *testing.T) {
	short := map[bool]int{}
	for _, f := range rsaForms() {
		for i := range 400 {
			n := random(f.algorithm.Bits())
			der := slices.Concat(f.head, n.Bytes(), f.tail)
			switch i % 4 { // one octet is damaged somewhere, one is missing
			case 1:
				at := []int{below(len(f.head)), len(der) - 1 - below(len(f.tail))}
				der[at[i/4%2]] ^= byte(1 + below(255))
			case 2:
				der[len(f.head)] &= 0x7f
			case 3:
				at := below(len(der))
				der = slices.Delete(der, at, at+1)
			}
			got, ok, err := parseCommon(der)
			short[ok && err == nil]++
			if !ok {
				continue
			}
			want, wantErr := parseDER(der)
			if isPrivate(der) {
				t.Fatalf("%x passes for a private key", der)
			}
			if diff := cmp.Diff(want, got); diff != "" || reason(err) != reason(wantErr) {
				t.Fatalf("%x: error %v, want %v; differs (-want +got):\n%s", der, err, wantErr, diff)
			}
			if ok && err == nil && &got.Octets[0] == &der[0] {
				t.Fatal("the key aliases what it was read from")
			}
		}
		der := slices.Concat(f.head, bytes.Repeat([]byte{0x80}, f.algorithm.Bits()/8), f.tail)
		if _, ok, err := parseCommon(der); !ok || reason(err) != ReasonSmallFactor {
			t.Errorf("an even modulus: %t, %v", ok, err)
		}
	}
	if short[true] == 0 || short[false] == 0 || len(rsaForms()) != 3 {
		t.Errorf("%d forms, keys by the short way: %v", len(rsaForms()), short)
	}
}

func reason(err error) Reason {
	if e, ok := errors.AsType[*InvalidError](err); ok {
		return e.Reason
	}
	return ""
}
