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

func TestHasSmallFactor(t *testing.T) {
	divisible := func(n *big.Int) bool {
		for p := int64(2); p < 1000; p++ {
			if new(big.Int).Mod(n, big.NewInt(p)).Sign() == 0 {
				return true
			}
		}
		return false
	}
	seen := map[bool]int{}
	for _, bits := range []int{2048, 3072, 4096} {
		for range 200 {
			n := random(bits)
			want := divisible(n)
			seen[want]++
			if got := hasSmallFactor(n.Bytes()); got != want {
				t.Fatalf("hasSmallFactor(%x) = %t, want %t", n, got, want)
			}
		}
		// The greatest sums, and each prime by itself.
		ones := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), uint(bits)), big.NewInt(1))
		if !hasSmallFactor(ones.Bytes()) { // it is a multiple of 3
			t.Errorf("no small factor in %x", ones)
		}
		free := random(bits - 16)
		for divisible(free) {
			free.Add(free, big.NewInt(2))
		}
		for p := int64(2); p < 1000; p++ {
			if !big.NewInt(p).ProbablyPrime(0) {
				continue
			}
			n := new(big.Int).Mul(free, big.NewInt(p))
			if !hasSmallFactor(n.FillBytes(make([]byte, bits/8))) {
				t.Errorf("the factor %d is not seen", p)
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
		if _, ok, err := parseCommon(der); !ok || reason(err) != ReasonBadModulus {
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
