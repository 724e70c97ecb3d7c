package keypair

import (
	"crypto/ed25519"
	"math/big"
	"slices"
)

// pointSize is the length of an Ed25519 public key in octets.
const pointSize = ed25519.PublicKeySize

// The field prime 2²⁵⁵−19 and the constant d of the curve −x²+y² = 1+dx²y² (RFC 8032 §5.1).
var (
	fieldPrime = number("7fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffed")
	curveD     = number("52036cee2b6ffe738cc740797779e89800700a4d4141d8ab75eb4dca135978a3")
)

// smallOrder has the y of the points whose order divides 8. A signature that verifies with such a key can be made by
// anyone.
var smallOrder = []*big.Int{
	number("0"),
	number("1"),
	number("7fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffec"),
	number("05fc536d880238b13933c6d305acdfd5f098eff289f4c345b027b2c28f95e826"),
	number("7a03ac9277fdc74ec6cc392cfa53202a0f67100d760b3cba4fd84d3d706a17c7"),
}

func number(hex string) *big.Int {
	n, ok := new(big.Int).SetString(hex, 16)
	if !ok {
		panic("keypair: bad constant " + hex)
	}
	return n
}

// isPoint reports whether the pointSize octets are the canonical form of a curve point that is not of small order.
func isPoint(octets []byte) bool {
	littleEndian := slices.Clone(octets)
	littleEndian[pointSize-1] &= 0x7f // the sign of x
	slices.Reverse(littleEndian)
	y := new(big.Int).SetBytes(littleEndian)
	if y.Cmp(fieldPrime) >= 0 {
		return false
	}
	for _, bad := range smallOrder {
		if y.Cmp(bad) == 0 {
			return false
		}
	}
	// There is an x if x² = (y²−1)/(dy²+1) is a square, that is, if (y²−1)(dy²+1) is.
	one := big.NewInt(1)
	square := new(big.Int).Mul(y, y)
	square.Mod(square, fieldPrime)
	denominator := new(big.Int).Mul(curveD, square)
	denominator.Add(denominator, one)
	product := square.Sub(square, one)
	product.Mul(product, denominator)
	return big.Jacobi(product.Mod(product, fieldPrime), fieldPrime) == 1
}
