package keypair

import "strconv"

// Reason says in one word why a key is refused. The values are stable: they go to API callers as they are.
type Reason string

// The reasons.
const (
	ReasonEmpty             Reason = "EMPTY"
	ReasonTooLong           Reason = "TOO_LONG"
	ReasonUnknownAlgorithm  Reason = "UNKNOWN_ALGORITHM"
	ReasonPrivateKey        Reason = "PRIVATE_KEY"
	ReasonBadEncoding       Reason = "BAD_ENCODING"
	ReasonTrailingData      Reason = "TRAILING_DATA"
	ReasonBadRecord         Reason = "BAD_RECORD"
	ReasonRevoked           Reason = "REVOKED"
	ReasonUnsupportedType   Reason = "UNSUPPORTED_KEY_TYPE"
	ReasonAlgorithmMismatch Reason = "ALGORITHM_MISMATCH"
	ReasonBadKeySize        Reason = "BAD_KEY_SIZE"
	ReasonBadExponent       Reason = "BAD_EXPONENT"
	ReasonBadModulus        Reason = "BAD_MODULUS"
	ReasonBadPoint          Reason = "BAD_POINT"
	ReasonBadStoredForm     Reason = "BAD_STORED_FORM"

	// Of keys that are well formed and not safe.
	ReasonSmallFactor Reason = "SMALL_FACTOR"
	ReasonROCA        Reason = "ROCA"
	ReasonClosePrimes Reason = "CLOSE_PRIMES"
	ReasonWellKnown   Reason = "WELL_KNOWN_KEY"

	// Of private keys only.
	ReasonPublicKey  Reason = "PUBLIC_KEY"
	ReasonEncrypted  Reason = "ENCRYPTED_KEY"
	ReasonMultiPrime Reason = "MULTI_PRIME"
	ReasonBadPrimes  Reason = "BAD_PRIMES"
	ReasonMismatch   Reason = "KEY_MISMATCH"
)

// InvalidError is the error of this package's parsers. It never holds a piece of what was given.
type InvalidError struct {
	Reason  Reason
	Private bool   // of ParsePrivateKey
	Bits    int    // with BAD_KEY_SIZE: how long the modulus is
	Factor  uint64 // with SMALL_FACTOR
	Detail  string // with BAD_EXPONENT, BAD_PRIMES and KEY_MISMATCH: what is wrong; with WELL_KNOWN_KEY: where it is from
	Err     error  // with BAD_RECORD: a *dkimrecord.InvalidError
}

// Unwrap returns e.Err.
func (e *InvalidError) Unwrap() error { return e.Err }

// Error returns one sentence: what is wrong, and what to do.
func (e *InvalidError) Error() string {
	if e.Private {
		if text := e.private(); text != "" {
			return text
		}
	}
	switch e.Reason {
	case ReasonEmpty:
		return "public key is empty; give a PEM block, base64 or the text of a DKIM record"
	case ReasonTooLong:
		return "public key is too long; give one key in at most " + strconv.Itoa(maxText) + " octets"
	case ReasonUnknownAlgorithm:
		return "unknown key algorithm; use rsa2048, rsa3072, rsa4096 or ed25519"
	case ReasonPrivateKey:
		return "this is a private key and must stay secret; give its public half (openssl pkey -in FILE -pubout)"
	case ReasonBadEncoding:
		return "public key is malformed; give a PEM block, base64 or the text of a DKIM record, complete and unchanged"
	case ReasonTrailingData:
		return "something follows the public key; give one key and nothing else"
	case ReasonBadRecord:
		return "public key is " + e.Err.Error()
	case ReasonRevoked:
		return "the DKIM record has an empty p= tag, which revokes a key; give a record that has one"
	case ReasonUnsupportedType:
		return "key type is not one of DKIM; use RSA or Ed25519"
	case ReasonAlgorithmMismatch:
		return "public key is not of the algorithm it is said to be; correct one of them"
	case ReasonBadKeySize:
		return "RSA key has " + strconv.Itoa(e.Bits) + " bits; use 2048, 3072 or 4096"
	case ReasonBadExponent:
		return "RSA public exponent " + e.Detail + "; use 65537"
	case ReasonBadModulus:
		return "RSA modulus is not a product of two large primes; the key was damaged or badly made, make a new one"
	case ReasonBadPoint:
		return "Ed25519 public key is not a point that verifies signatures; the key was damaged or badly made, make a new one"
	case ReasonBadStoredForm:
		return "stored private key is damaged"
	case ReasonSmallFactor:
		return "RSA modulus is a multiple of " + strconv.FormatUint(e.Factor, 10) + "; the key was damaged or badly made, make a new one"
	case ReasonROCA:
		return "RSA key is of the kind that a faulty library made (ROCA, CVE-2017-15361), whose private half can be computed; make a new one elsewhere"
	case ReasonClosePrimes:
		return "RSA modulus is the product of two numbers that are close together (CVE-2022-26320), so that anybody can factor it; make a new one elsewhere"
	case ReasonWellKnown:
		return "this is an example key (" + e.Detail + "), whose private half everybody has; make one of your own"
	case ReasonPublicKey:
		return "this is a public key; give the private key it belongs to, or publish it as it is"
	case ReasonEncrypted:
		return "private key is encrypted with a passphrase; decrypt it first (openssl pkey -in FILE)"
	case ReasonMultiPrime:
		return "RSA key has more than two primes, which is not supported; make a new one"
	case ReasonBadPrimes:
		return "RSA key is badly made: " + e.Detail + "; make a new one"
	case ReasonMismatch:
		return "the parts of the private key do not belong together: " + e.Detail + "; the key was damaged, take it from a backup or make a new one"
	}
	return string(e.Reason)
}

// private is what to say of a private key where it differs.
func (e *InvalidError) private() string {
	switch e.Reason {
	case ReasonEmpty:
		return "private key is empty; give PKCS #1 or PKCS #8 in PEM, or the base64 of an Ed25519 seed"
	case ReasonTooLong:
		return "private key is too long; give one key in at most " + strconv.Itoa(maxText) + " octets"
	case ReasonBadEncoding:
		return "private key is malformed; give PKCS #1 or PKCS #8 in PEM, or the base64 of an Ed25519 seed, complete and unchanged"
	case ReasonTrailingData:
		return "something follows the private key; give one key and nothing else"
	}
	return ""
}

func invalid(reason Reason) error { return &InvalidError{Reason: reason} }
