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
)

// InvalidError is the error of this package's parsers. It never holds a piece of what was given.
type InvalidError struct {
	Reason Reason
	Bits   int   // with BAD_KEY_SIZE: how long the modulus is
	Err    error // with BAD_RECORD: a *dkimrecord.InvalidError
}

// Unwrap returns e.Err.
func (e *InvalidError) Unwrap() error { return e.Err }

// Error returns one sentence: what is wrong, and what to do.
func (e *InvalidError) Error() string {
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
		return "RSA public exponent is not an odd number from 3 to 2147483647; use 65537"
	case ReasonBadModulus:
		return "RSA modulus is not a product of two large primes; the key was damaged or badly made, make a new one"
	case ReasonBadPoint:
		return "Ed25519 public key is not a point that verifies signatures; the key was damaged or badly made, make a new one"
	case ReasonBadStoredForm:
		return "stored private key is damaged"
	}
	return string(e.Reason)
}

func invalid(reason Reason) error { return &InvalidError{Reason: reason} }
