package keypair

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"slices"
	"strings"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
)

// maxText bounds what ParsePublicKey looks at, in octets: many times what an RSA-4096 key needs.
const maxText = 16 << 10

// PublicKey is a public key as it stands in a DKIM record. One key has one form only.
type PublicKey struct {
	Algorithm Algorithm
	// Octets are those of p=: the DER of a SubjectPublicKeyInfo for RSA, the 32 raw octets for Ed25519 (RFC 8463 §4).
	Octets []byte
}

// Fingerprint returns the SHA-256 of the octets. Two keys are the same if it is.
func (k PublicKey) Fingerprint() [sha256.Size]byte { return sha256.Sum256(k.Octets) }

// ParsePublicKey reads one public key in any of the forms people have it in:
//   - a PEM block "PUBLIC KEY" or "RSA PUBLIC KEY";
//   - bare base64, broken into lines or not, of a SubjectPublicKeyInfo or PKCS #1 RSAPublicKey in DER, or of the 32
//     octets of an Ed25519 key;
//   - the text of a DKIM record, of which it takes k= and p= only.
//
// An RSA modulus must have exactly 2048, 3072 or 4096 bits, no small factor, no factors next to each other, and must not
// be of the library that made ROCA keys; the exponent must be odd and from 3 to 2³¹−1. An Ed25519 key must be the
// canonical form of a curve point that is not of small order. Keys whose private halves are in an RFC are refused. Every
// error is an *InvalidError and repeats nothing of data; a private key is refused as PRIVATE_KEY whatever form it is in.
func ParsePublicKey(data []byte) (PublicKey, error) {
	text := bytes.TrimSpace(data)
	switch {
	case len(text) == 0:
		return PublicKey{}, invalid(ReasonEmpty)
	case len(data) > maxText:
		return PublicKey{}, invalid(ReasonTooLong)
	case isPrivate(data):
		return PublicKey{}, invalid(ReasonPrivateKey)
	case bytes.Contains(text, []byte("-----BEGIN")):
		return parsePEM(text)
	case isRecord(string(text)):
		return parseRecord(string(text))
	}
	octets, err := base64.StdEncoding.Strict().DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		return PublicKey{}, invalid(ReasonBadEncoding)
	}
	return parseOctets(octets)
}

// RefusePrivate returns the *InvalidError with which ParsePublicKey refuses data because it is a private key, and nil for
// anything else, good or not. It is for those who leave the rest of the judgement to others, and costs less.
func RefusePrivate(data []byte) error {
	text := bytes.TrimSpace(data)
	if isPrivate(data) {
		return invalid(ReasonPrivateKey)
	}
	if octets, err := base64.StdEncoding.DecodeString(string(text)); err == nil {
		if isPrivate(octets) {
			return invalid(ReasonPrivateKey)
		}
		return nil
	}
	_, err := ParsePublicKey(data)
	if e, ok := errors.AsType[*InvalidError](err); ok && e.Reason == ReasonPrivateKey {
		return err
	}
	return nil
}

func parsePEM(text []byte) (PublicKey, error) {
	block, rest := pem.Decode(text)
	switch {
	case block == nil:
		return PublicKey{}, invalid(ReasonBadEncoding)
	case block.Type != "PUBLIC KEY" && block.Type != "RSA PUBLIC KEY":
		return PublicKey{}, invalid(ReasonUnsupportedType)
	case len(bytes.TrimSpace(rest)) != 0:
		return PublicKey{}, invalid(ReasonTrailingData)
	}
	return parseOctets(block.Bytes)
}

// isRecord tells a tag-list from base64, which has no semicolon and its first "=" near the end.
func isRecord(text string) bool {
	tag, _, found := strings.Cut(text, "=")
	return found && len(strings.TrimSpace(tag)) == 1 || strings.Contains(text, ";")
}

func parseRecord(text string) (PublicKey, error) {
	record, err := dkimrecord.Parse(strings.Join(strings.Fields(text), " ")) // line ends need not fold
	switch {
	case err != nil:
		return PublicKey{}, &InvalidError{Reason: ReasonBadRecord, Err: err}
	case record.Revoked():
		return PublicKey{}, invalid(ReasonRevoked)
	}
	k, err := parseOctets(record.PublicKey)
	switch {
	case err != nil:
		return PublicKey{}, err
	case k.Algorithm.KeyType() != record.KeyType:
		return PublicKey{}, invalid(ReasonAlgorithmMismatch)
	}
	return k, nil
}

// parseOctets reads what a PEM block or the base64 of p= stands for.
func parseOctets(octets []byte) (PublicKey, error) {
	switch {
	case len(octets) == 0:
		return PublicKey{}, invalid(ReasonEmpty)
	case saysPrivate(octets):
		return PublicKey{}, invalid(ReasonPrivateKey)
	}
	if k, ok, err := parseCommon(octets); ok { // no form of a private key begins like that
		return k, err
	}
	switch {
	case isPrivate(octets):
		return PublicKey{}, invalid(ReasonPrivateKey)
	case len(octets) == pointSize:
		return newEd25519(octets)
	}
	return parseDER(octets)
}

func newEd25519(point []byte) (PublicKey, error) {
	if !isPoint(point) {
		return PublicKey{}, invalid(ReasonBadPoint)
	}
	if err := judgeFame(point); err != nil {
		return PublicKey{}, err
	}
	return PublicKey{Algorithm: Ed25519, Octets: slices.Clone(point)}, nil
}

func newRSA(a Algorithm, key *rsa.PublicKey) (PublicKey, error) {
	octets, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return PublicKey{}, invalid(ReasonBadEncoding)
	}
	return PublicKey{Algorithm: a, Octets: octets}, nil
}
