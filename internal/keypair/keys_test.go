package keypair_test

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"sync"
	"testing"

	"github.com/dkimzone/dkimzone/internal/keypair"
)

// Keys are made once for all tests. TestEveryAlgorithm makes the big ones for itself.
var (
	rsaPair     = sync.OnceValues(func() (*keypair.KeyPair, error) { return keypair.Generate(keypair.RSA2048) })
	ed25519Pair = sync.OnceValues(func() (*keypair.KeyPair, error) { return keypair.Generate(keypair.Ed25519) })
)

// pair returns the pair of RSA2048 or Ed25519.
func pair(tb testing.TB, a keypair.Algorithm) *keypair.KeyPair {
	tb.Helper()
	once := rsaPair
	if a == keypair.Ed25519 {
		once = ed25519Pair
	}
	k, err := once()
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

// private returns the private key that k exports.
func private(tb testing.TB, k *keypair.KeyPair) crypto.Signer {
	tb.Helper()
	der, err := k.PKCS8()
	if err != nil {
		tb.Fatal(err)
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		tb.Fatal(err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		tb.Fatalf("private key is a %T", key)
	}
	return signer
}

func block(label string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der})
}

// spki returns the SubjectPublicKeyInfo of a key.
func spki(tb testing.TB, key any) []byte {
	tb.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

// modulus returns the SubjectPublicKeyInfo of an RSA key of the modulus n and the exponent e.
func modulus(tb testing.TB, n *big.Int, e int) []byte {
	tb.Helper()
	return spki(tb, &rsa.PublicKey{N: n, E: e})
}

// odd returns an odd number of bits that has no factor below 4096.
func odd(bits uint) *big.Int {
	small := primorial(4096)
	n := new(big.Int).Lsh(big.NewInt(1), bits-1)
	for n.Add(n, big.NewInt(1)); new(big.Int).GCD(nil, nil, n, small).BitLen() > 1; {
		n.Add(n, big.NewInt(1))
	}
	return n
}

// primorial is the product of the primes below a bound.
func primorial(bound int64) *big.Int {
	product := big.NewInt(1)
	for i := int64(2); i < bound; i++ {
		if n := big.NewInt(i); n.ProbablyPrime(0) {
			product.Mul(product, n)
		}
	}
	return product
}
