package keypair

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"slices"
)

// exponent is the public exponent of every RSA key made here (RFC 8301 leaves it open; all verifiers take this one).
const exponent = 65537

// KeyPair is a private key with its public half. Only Marshal, PKCS8 and the signatures of Signer come from the private
// half: printing, logging or marshalling a KeyPair shows the algorithm and the fingerprint. A KeyPair does not change
// and is safe for concurrent use; only what Generate and Unmarshal return is valid.
type KeyPair struct {
	public PublicKey
	secret secret
}

// secret returns the private half: an *rsa.PrivateKey with two primes, or an ed25519.PrivateKey. It is itself a
// crypto.Signer that does not show the key. It is a function since nothing that prints values by reflection looks into
// one; package fmt follows a pointer if the verb is wrong and the field not exported.
type secret func() crypto.Signer

func keep(key crypto.Signer) secret { return func() crypto.Signer { return key } }

// Generate makes a new key pair from the system's random source. RSA-4096 takes seconds. The error is an *InvalidError,
// UNKNOWN_ALGORITHM, or what the random source said.
func Generate(a Algorithm) (*KeyPair, error) {
	switch a {
	case RSA2048, RSA3072, RSA4096:
		key, err := rsa.GenerateKey(rand.Reader, a.Bits())
		if err != nil {
			return nil, fmt.Errorf("generating an %v key: %w", a, err)
		}
		return newRSAPair(a, key)
	case Ed25519:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("generating an %v key: %w", a, err)
		}
		return newEd25519Pair(key), nil
	}
	return nil, invalid(ReasonUnknownAlgorithm)
}

func newRSAPair(a Algorithm, key *rsa.PrivateKey) (*KeyPair, error) {
	public, err := newRSA(a, &key.PublicKey)
	if err != nil {
		return nil, err
	}
	return &KeyPair{public: public, secret: keep(key)}, nil
}

func newEd25519Pair(key ed25519.PrivateKey) *KeyPair {
	public := PublicKey{Algorithm: Ed25519, Octets: slices.Clone(key[ed25519.SeedSize:])}
	return &KeyPair{public: public, secret: keep(key)}
}

// Algorithm returns what the key is made for.
func (k *KeyPair) Algorithm() Algorithm { return k.public.Algorithm }

// Public returns the public half. The caller owns its octets.
func (k *KeyPair) Public() PublicKey {
	return PublicKey{Algorithm: k.public.Algorithm, Octets: slices.Clone(k.public.Octets)}
}

// Signer returns what signs with the private half: RSASSA-PKCS1-v1_5 or PSS as opts say, or Ed25519. Its Public method
// returns an *rsa.PublicKey or an ed25519.PublicKey. It does not show the key either.
func (k *KeyPair) Signer() crypto.Signer { return k.secret }

// Marshal returns the form to seal and store: one octet with the algorithm's number, then the 32 octets of the Ed25519
// seed, or the two primes of the RSA key, each half the modulus long, big-endian (257 octets in all for RSA-2048).
func (k *KeyPair) Marshal() []byte {
	form := []byte{byte(k.Algorithm())}
	switch key := k.secret().(type) {
	case *rsa.PrivateKey:
		size := k.Algorithm().primeSize()
		form = append(form, make([]byte, 2*size)...)
		key.Primes[0].FillBytes(form[1 : 1+size])
		key.Primes[1].FillBytes(form[1+size:])
	case ed25519.PrivateKey:
		form = append(form, key.Seed()...)
	}
	return form
}

// primeSize is the length of one prime of an RSA key in octets.
func (a Algorithm) primeSize() int { return a.Bits() / 16 }

// Unmarshal rebuilds a key pair from what Marshal returned. The error is an *InvalidError, BAD_STORED_FORM. It does not
// keep form.
func Unmarshal(form []byte) (*KeyPair, error) {
	if len(form) == 0 {
		return nil, invalid(ReasonBadStoredForm)
	}
	a, body := Algorithm(form[0]), form[1:]
	switch a {
	case RSA2048, RSA3072, RSA4096:
		if len(body) != 2*a.primeSize() {
			return nil, invalid(ReasonBadStoredForm)
		}
		p := new(big.Int).SetBytes(body[:a.primeSize()])
		q := new(big.Int).SetBytes(body[a.primeSize():])
		key, ok := rsaFromPrimes(p, q, a.Bits())
		if !ok {
			return nil, invalid(ReasonBadStoredForm)
		}
		return newRSAPair(a, key)
	case Ed25519:
		if len(body) != ed25519.SeedSize {
			return nil, invalid(ReasonBadStoredForm)
		}
		return newEd25519Pair(ed25519.NewKeyFromSeed(body)), nil
	}
	return nil, invalid(ReasonBadStoredForm)
}

// rsaFromPrimes rebuilds the private key of p and q. It is not ok unless they are primes of half the bits each and
// make a sound key with a modulus of all the bits.
func rsaFromPrimes(p, q *big.Int, bits int) (key *rsa.PrivateKey, ok bool) {
	n := new(big.Int).Mul(p, q)
	if n.BitLen() != bits { // with p and q of half as many at most, so both have half
		return nil, false
	}
	// Like crypto/rsa, take the inverse modulo λ(n), so that a rebuilt key equals the first one.
	one := big.NewInt(1)
	p1, q1 := new(big.Int).Sub(p, one), new(big.Int).Sub(q, one)
	lambda := new(big.Int).Mul(p1, q1)
	lambda.Div(lambda, new(big.Int).GCD(nil, nil, p1, q1))
	key = &rsa.PrivateKey{
		PublicKey: rsa.PublicKey{N: n, E: exponent},
		D:         new(big.Int).ModInverse(big.NewInt(exponent), lambda), // nil if there is none
		Primes:    []*big.Int{p, q},
	}
	key.Precompute()
	if key.Validate() != nil {
		return nil, false
	}
	return key, isProbablePrime(p) && isProbablePrime(q)
}

// isProbablePrime is Fermat's test to the base 2. crypto/rsa takes the primes on trust, and what has to be found here
// is damage, not an attack: stored forms are sealed. big.Int.ProbablyPrime takes four times as long.
func isProbablePrime(p *big.Int) bool {
	one := big.NewInt(1)
	return new(big.Int).Exp(big.NewInt(2), new(big.Int).Sub(p, one), p).Cmp(one) == 0
}

// PKCS8 returns the private key in PKCS #8 DER (RFC 5208), as signers import it.
func (k *KeyPair) PKCS8() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k.secret())
	if err != nil {
		return nil, fmt.Errorf("encoding an %v key: %w", k.Algorithm(), err)
	}
	return der, nil
}

// String returns the algorithm and the beginning of the fingerprint.
func (k *KeyPair) String() string {
	fingerprint := k.public.Fingerprint()
	return fmt.Sprintf("%v key pair %x", k.Algorithm(), fingerprint[:8])
}

// Format prints what String returns, whatever the verb.
func (k *KeyPair) Format(f fmt.State, _ rune) { writeString(f, k.String()) }

// LogValue logs what String returns.
func (k *KeyPair) LogValue() slog.Value { return slog.StringValue(k.String()) }

// MarshalText returns what String returns, so JSON and YAML show no more.
func (k *KeyPair) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// Public implements crypto.Signer.
func (s secret) Public() crypto.PublicKey { return s().Public() }

// Sign implements crypto.Signer.
func (s secret) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return s().Sign(random, digest, opts)
}

// Format prints nothing of the key, whatever the verb.
func (s secret) Format(f fmt.State, _ rune) { writeString(f, "private key") }

// writeString ignores the error as fmt.State has none to give.
func writeString(f fmt.State, s string) { _, _ = io.WriteString(f, s) }
