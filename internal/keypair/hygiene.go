package keypair

import (
	"math"
	"math/big"
)

// judgeExponent says what is wrong with a public exponent: verifiers take odd ones from 3 to 2³¹−1.
func judgeExponent(e *big.Int) error {
	bad := func(detail string) error { return &InvalidError{Reason: ReasonBadExponent, Detail: detail} }
	switch {
	case e.Sign() <= 0:
		return bad("is not positive")
	case e.Cmp(big.NewInt(1)) == 0:
		return bad("is 1, with which a signature is the message itself")
	case e.Bit(0) == 0:
		return bad("is even, so that no signature can be made")
	case !e.IsInt64() || e.Int64() > math.MaxInt32:
		return bad("is larger than verifiers take")
	}
	return nil
}

// judgeModulus looks for what makes a modulus easy to factor. number is big-endian and of the length of an RSA algorithm.
func judgeModulus(number []byte) error {
	w := wordsOf(number)
	if p := smallFactor(&w); p != 0 {
		return &InvalidError{Reason: ReasonSmallFactor, Factor: p}
	}
	if isROCA(&w) {
		return invalid(ReasonROCA)
	}
	if hasClosePrimes(new(big.Int).SetBytes(number)) {
		return invalid(ReasonClosePrimes)
	}
	return nil
}

// judge is for an RSA key of a good size: octets are those of p=, modulus is as in judgeModulus.
func judge(octets, modulus []byte) error {
	if err := judgeFame(octets); err != nil {
		return err
	}
	return judgeModulus(modulus)
}
