package keypair

import (
	"bytes"
	"crypto/ed25519"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
)

const (
	// primeRounds of Miller-Rabin, beside the test of Baillie-PSW, are for each prime of a key that was made elsewhere.
	primeRounds = 8
	// primeDistance is how far apart the primes must be, less than half the modulus, in bits (FIPS 186-5, A.1.3).
	primeDistance = 100
)

// rsaPrivateKey is the RSAPrivateKey of RFC 8017 §A.1.2.
type rsaPrivateKey struct {
	Version            int
	N, E, D, P, Q      *big.Int
	DP, DQ, QInv       *big.Int
	OtherPrimeInfosRaw asn1.RawValue `asn1:"optional"`
}

// privateKeyInfo is the PrivateKeyInfo of RFC 5208 §5 and the OneAsymmetricKey of RFC 5958 §2.
type privateKeyInfo struct {
	Version    int
	Algorithm  algorithmIdentifier
	PrivateKey []byte
	Attributes asn1.RawValue  `asn1:"optional,tag:0"`
	PublicKey  asn1.BitString `asn1:"optional,tag:1"`
}

// algorithmIdentifier is that of RFC 5280 §4.1.1.2.
type algorithmIdentifier struct {
	Algorithm  asn1.ObjectIdentifier
	Parameters asn1.RawValue `asn1:"optional"`
}

// ParsePrivateKey reads one private key that was made elsewhere, in any of the forms people have it in:
//   - a PEM block "RSA PRIVATE KEY" (PKCS #1) or "PRIVATE KEY" (PKCS #8, RSA or Ed25519);
//   - the base64 of what is in such a block, as OpenDKIM's tables have it;
//   - the base64 of the 32 octets of an Ed25519 seed (RFC 8032 §5.1.5), or of these and the 32 of the public key, as
//     rspamd has it.
//
// It demands what ParsePublicKey does of the public half. Of an RSA key also: the exponent is 65537; there are two
// primes, of half the bits each, that are not close together; and all its numbers belong together. Every error is an
// *InvalidError with Private set, and repeats nothing of data.
func ParsePrivateKey(data []byte) (*KeyPair, error) {
	k, err := parsePrivate(data)
	if e, ok := errors.AsType[*InvalidError](err); ok {
		marked := *e
		marked.Private = true
		return nil, &marked
	}
	return k, err
}

func parsePrivate(data []byte) (*KeyPair, error) {
	text := bytes.TrimSpace(data)
	switch {
	case len(text) == 0:
		return nil, invalid(ReasonEmpty)
	case len(data) > maxText:
		return nil, invalid(ReasonTooLong)
	case bytes.Contains(text, []byte("-----BEGIN")):
		return parsePrivatePEM(text)
	}
	octets, err := base64.StdEncoding.Strict().DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		return nil, refusePublic(data)
	}
	defer clear(octets)
	switch len(octets) {
	case ed25519.SeedSize:
		return seedPair(octets, nil)
	case ed25519.PrivateKeySize:
		return seedPair(octets[:ed25519.SeedSize], octets[ed25519.SeedSize:])
	}
	k, err := parsePrivateDER(octets)
	if e, ok := errors.AsType[*InvalidError](err); ok && e.Reason == ReasonBadEncoding {
		return nil, refusePublic(data)
	}
	return k, err
}

// refusePublic says of what is no private key whether it is a public one.
func refusePublic(data []byte) error {
	if _, err := ParsePublicKey(data); err == nil {
		return invalid(ReasonPublicKey)
	}
	return invalid(ReasonBadEncoding)
}

func parsePrivatePEM(text []byte) (*KeyPair, error) {
	block, rest := pem.Decode(text)
	if block == nil {
		return nil, invalid(ReasonBadEncoding)
	}
	defer clear(block.Bytes)
	switch {
	case block.Type == "ENCRYPTED PRIVATE KEY", strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED"):
		return nil, invalid(ReasonEncrypted)
	case block.Type == "PUBLIC KEY", block.Type == "RSA PUBLIC KEY":
		return nil, invalid(ReasonPublicKey)
	case block.Type != "RSA PRIVATE KEY" && block.Type != "PRIVATE KEY":
		return nil, invalid(ReasonUnsupportedType)
	case len(bytes.TrimSpace(rest)) != 0:
		return nil, invalid(ReasonTrailingData)
	}
	return parsePrivateDER(block.Bytes)
}

// parsePrivateDER reads PKCS #1 or PKCS #8, of which the second element is a number or a sequence.
func parsePrivateDER(der []byte) (*KeyPair, error) {
	var outer, version, second asn1.RawValue
	rest, err := asn1.Unmarshal(der, &outer)
	switch {
	case err != nil || outer.Tag != asn1.TagSequence:
		return nil, invalid(ReasonBadEncoding)
	case len(rest) != 0:
		return nil, invalid(ReasonTrailingData)
	}
	if rest, err = asn1.Unmarshal(outer.Bytes, &version); err != nil {
		return nil, invalid(ReasonBadEncoding)
	}
	if _, err = asn1.Unmarshal(rest, &second); err != nil {
		return nil, invalid(ReasonBadEncoding)
	}
	switch {
	case version.Tag == asn1.TagSequence && second.Tag == asn1.TagOctetString:
		return nil, invalid(ReasonEncrypted) // EncryptedPrivateKeyInfo of RFC 5208 §6
	case version.Tag == asn1.TagInteger && second.Tag == asn1.TagInteger:
		return parsePrivatePKCS1(der)
	case version.Tag == asn1.TagInteger && second.Tag == asn1.TagSequence:
		return parsePKCS8(der)
	}
	return nil, invalid(ReasonBadEncoding)
}

func parsePKCS8(der []byte) (*KeyPair, error) {
	var info privateKeyInfo
	if _, err := asn1.Unmarshal(der, &info); err != nil {
		return nil, invalid(ReasonBadEncoding)
	}
	switch {
	case info.Algorithm.Algorithm.Equal(oidRSA):
		return parsePrivatePKCS1(info.PrivateKey)
	case info.Algorithm.Algorithm.Equal(oidEd25519):
		var seed []byte
		if rest, err := asn1.Unmarshal(info.PrivateKey, &seed); err != nil || len(rest) != 0 || len(seed) != ed25519.SeedSize {
			return nil, invalid(ReasonBadEncoding)
		}
		return seedPair(seed, info.PublicKey.RightAlign())
	}
	return nil, invalid(ReasonUnsupportedType)
}

// seedPair makes the pair of an Ed25519 seed. public is its public half, if that is given too.
func seedPair(seed, public []byte) (*KeyPair, error) {
	if bytes.Count(seed, seed[:1]) == len(seed) {
		return nil, &InvalidError{Reason: ReasonWellKnown, Detail: "32 times the same octet"}
	}
	key := ed25519.NewKeyFromSeed(seed)
	if len(public) != 0 && !bytes.Equal(public, key[ed25519.SeedSize:]) {
		return nil, &InvalidError{Reason: ReasonMismatch, Detail: "the public half is another key's"}
	}
	if err := judgeFame(key[ed25519.SeedSize:]); err != nil {
		return nil, err
	}
	return newEd25519Pair(key), nil
}

func parsePrivatePKCS1(der []byte) (*KeyPair, error) {
	var raw rsaPrivateKey
	rest, err := asn1.Unmarshal(der, &raw)
	switch {
	case err != nil:
		return nil, invalid(ReasonBadEncoding)
	case len(rest) != 0:
		return nil, invalid(ReasonTrailingData)
	case raw.Version != 0 || len(raw.OtherPrimeInfosRaw.FullBytes) != 0:
		return nil, invalid(ReasonMultiPrime)
	}
	for _, n := range []*big.Int{raw.N, raw.D, raw.P, raw.Q, raw.DP, raw.DQ, raw.QInv} {
		if n.Sign() <= 0 {
			return nil, invalid(ReasonBadModulus)
		}
	}
	if err := judgeExponent(raw.E); err != nil {
		return nil, err
	}
	public, err := parsePKCS1(marshalPKCS1(raw.N, raw.E))
	if err != nil {
		return nil, err
	}
	if raw.E.Cmp(big.NewInt(exponent)) != 0 {
		return nil, &InvalidError{Reason: ReasonBadExponent, Detail: "is not 65537"}
	}
	if err := judgePrimes(&raw, public.Algorithm); err != nil {
		return nil, err
	}
	key, ok := rsaFromPrimes(raw.P, raw.Q, public.Algorithm.Bits())
	if !ok {
		return nil, &InvalidError{Reason: ReasonBadPrimes, Detail: "it fails the checks of every RSA key"}
	}
	return newRSAPair(public.Algorithm, key)
}

// judgePrimes looks at the private numbers of a key whose modulus has passed.
func judgePrimes(k *rsaPrivateKey, a Algorithm) error {
	mismatch := func(detail string) error { return &InvalidError{Reason: ReasonMismatch, Detail: detail} }
	bad := func(detail string) error { return &InvalidError{Reason: ReasonBadPrimes, Detail: detail} }
	one := big.NewInt(1)
	p1, q1 := new(big.Int).Sub(k.P, one), new(big.Int).Sub(k.Q, one)
	product := new(big.Int).Mul(k.P, k.Q)
	switch {
	case product.Cmp(k.N) != 0:
		return mismatch("the modulus is not the product of the primes")
	case k.P.BitLen() != a.Bits()/2 || k.Q.BitLen() != a.Bits()/2:
		return bad("its primes are not of half its length each")
	case new(big.Int).Sub(k.P, k.Q).BitLen() <= a.Bits()/2-primeDistance:
		return invalid(ReasonClosePrimes)
	case !k.P.ProbablyPrime(primeRounds) || !k.Q.ProbablyPrime(primeRounds):
		return bad("what should be a prime is none")
	}
	for _, m := range []*big.Int{p1, q1} {
		if new(big.Int).GCD(nil, nil, m, k.E).Cmp(one) != 0 {
			return bad("its exponent does not suit its primes")
		}
		if rest := new(big.Int).Mul(k.D, k.E); rest.Mod(rest, m).Cmp(one) != 0 {
			return mismatch("the private exponent is another key's")
		}
	}
	inverse := new(big.Int).Mul(k.QInv, k.Q)
	if new(big.Int).Mod(k.D, p1).Cmp(k.DP) != 0 || new(big.Int).Mod(k.D, q1).Cmp(k.DQ) != 0 || inverse.Mod(inverse, k.P).Cmp(one) != 0 {
		return mismatch("the numbers of the remainder theorem are another key's")
	}
	return nil
}
