package keypair

import (
	"crypto/ed25519"
	"crypto/rsa"
	"testing"
)

func TestClear(t *testing.T) {
	for _, a := range []Algorithm{RSA2048, Ed25519} {
		k, err := Generate(a)
		if err != nil {
			t.Fatal(err)
		}
		public := k.Public()
		var octets [][]byte
		switch key := k.secret().(type) {
		case *rsa.PrivateKey:
			words := append(key.Primes[0].Bits(), key.Primes[1].Bits()...)
			k.Clear()
			octets = [][]byte{key.D.Bytes(), key.Primes[0].Bytes(), key.Primes[1].Bytes(), key.Precomputed.Dp.Bytes()}
			if len(words) == 0 {
				t.Fatal("nothing was there to clear")
			}
		case ed25519.PrivateKey:
			k.Clear()
			octets = append(octets, key)
		}
		for _, b := range octets {
			for _, o := range b {
				if o != 0 {
					t.Fatalf("%v: something is left of the private half", a)
				}
			}
		}
		if got := k.Public(); string(got.Octets) != string(public.Octets) {
			t.Errorf("%v: the public half has changed", a)
		}
	}
}
