package keypair

import (
	"crypto/ed25519"
	"crypto/rsa"
	"math/big"
)

// Clear overwrites the private half in memory, as far as it can be reached: crypto/rsa keeps a copy of its own, which
// goes with the garbage collector. Nothing may use the KeyPair, or its Signer, during the call or after it.
func (k *KeyPair) Clear() {
	switch key := k.secret().(type) {
	case *rsa.PrivateKey:
		for _, n := range append([]*big.Int{key.D, key.Precomputed.Dp, key.Precomputed.Dq, key.Precomputed.Qinv}, key.Primes...) {
			if n != nil {
				clear(n.Bits())
			}
		}
	case ed25519.PrivateKey:
		clear(key)
	}
}
