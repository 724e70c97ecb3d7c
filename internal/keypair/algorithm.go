// Package keypair makes, judges and stores DKIM keys: RSA of 2048, 3072 or 4096 bits, and Ed25519 (RFC 8301, RFC 8463).
//
// A PublicKey is what may be published; a KeyPair holds the private half and shows it to nobody but Marshal, PKCS8 and
// Signer. All functions are safe for concurrent use.
package keypair

import (
	"strconv"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
)

// Algorithm is what a key is made for. The zero value is not valid.
type Algorithm uint8

// The algorithms. Their numbers are stored (see KeyPair.Marshal): never change one.
const (
	RSA2048 Algorithm = 1
	RSA3072 Algorithm = 2
	RSA4096 Algorithm = 3
	Ed25519 Algorithm = 4
)

// Algorithms returns the valid algorithms.
func Algorithms() []Algorithm { return []Algorithm{RSA2048, RSA3072, RSA4096, Ed25519} }

// ParseAlgorithm returns the algorithm of a name that String gives: "rsa2048", "rsa3072", "rsa4096", "ed25519". The
// error is an *InvalidError, UNKNOWN_ALGORITHM.
func ParseAlgorithm(name string) (Algorithm, error) {
	for _, a := range Algorithms() {
		if a.String() == name {
			return a, nil
		}
	}
	return 0, invalid(ReasonUnknownAlgorithm)
}

// Valid reports whether a is one of the algorithms.
func (a Algorithm) Valid() bool { return RSA2048 <= a && a <= Ed25519 }

// String returns the name of a, as ParseAlgorithm takes it.
func (a Algorithm) String() string {
	switch a {
	case RSA2048:
		return "rsa2048"
	case RSA3072:
		return "rsa3072"
	case RSA4096:
		return "rsa4096"
	case Ed25519:
		return "ed25519"
	}
	return "Algorithm(" + strconv.Itoa(int(a)) + ")"
}

// Bits returns the length of an RSA modulus or of an Ed25519 public key in bits, 0 for an invalid algorithm.
func (a Algorithm) Bits() int {
	switch a {
	case RSA2048:
		return 2048
	case RSA3072:
		return 3072
	case RSA4096:
		return 4096
	case Ed25519:
		return 256
	}
	return 0
}

// KeyType returns the k= of the records of a.
func (a Algorithm) KeyType() dkimrecord.KeyType {
	if a == Ed25519 {
		return dkimrecord.Ed25519
	}
	return dkimrecord.RSA
}

// rsaAlgorithm returns the RSA algorithm with a modulus of bits, 0 if there is none.
func rsaAlgorithm(bits int) Algorithm {
	for _, a := range []Algorithm{RSA2048, RSA3072, RSA4096} {
		if a.Bits() == bits {
			return a
		}
	}
	return 0
}
