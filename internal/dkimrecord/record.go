// Package dkimrecord reads and writes the text of DKIM key records (RFC 6376 §3.6.1, RFC 8463) and cuts it into the
// character-strings of a TXT record. It knows the tags, not the keys: the octets of p= are for package keypair to judge.
//
// All functions are pure and safe for concurrent use.
package dkimrecord

import (
	"encoding/base64"
	"errors"
	"slices"
	"strconv"
)

// KeyType is the k= of a record. The zero value is RSA, as k= defaults to "rsa".
type KeyType uint8

// The key types. Their numbers are stored: never change one.
const (
	RSA     KeyType = 0 // RFC 6376 §3.3.1
	Ed25519 KeyType = 1 // RFC 8463
)

// String returns the value of k=, "rsa" or "ed25519".
func (t KeyType) String() string {
	switch t {
	case RSA:
		return "rsa"
	case Ed25519:
		return "ed25519"
	}
	return "KeyType(" + strconv.Itoa(int(t)) + ")"
}

// Record is a key record. The zero value is a revoked RSA key.
type Record struct {
	KeyType KeyType
	// PublicKey has the octets of p=: a SubjectPublicKeyInfo in DER for RSA (some publish the bare PKCS #1 key), the 32
	// raw octets for Ed25519. Empty means that the key is revoked.
	PublicKey []byte
	// Testing is t=y: verifiers treat a failed signature like an unsigned message.
	Testing bool
	// SameDomain is t=s: the domain of i= must be the one of d=, not below it.
	SameDomain bool
	// HashAlgorithms is h=, ServiceTypes is s=; nil, and the tag left out, means all. Each element is a
	// hyphenated-word of RFC 6376 §3.2 or, in ServiceTypes, "*".
	HashAlgorithms []string
	ServiceTypes   []string
	// Notes is n=, decoded from quoted-printable. Empty leaves the tag out.
	Notes string
}

// Revoked reports whether p= is empty.
func (r Record) Revoked() bool { return len(r.PublicKey) == 0 }

// AppendText appends the canonical text of r to dst and returns the longer slice: "v=DKIM1; k=rsa; t=y:s; p=MIIB…", the
// tags in the order v, k, h, s, n, t, p, each of h, s, n and t only if there is something to say, no semicolon at the
// end. It allocates nothing but the room dst lacks.
func (r Record) AppendText(dst []byte) []byte {
	const usual = len("v=DKIM1; k=ed25519; t=y:s; p=")
	dst = slices.Grow(dst, usual+base64.StdEncoding.EncodedLen(len(r.PublicKey)))

	dst = append(dst, "v=DKIM1; k="...)
	dst = append(dst, r.KeyType.String()...)
	dst = appendList(dst, "; h=", r.HashAlgorithms)
	dst = appendList(dst, "; s=", r.ServiceTypes)
	if r.Notes != "" {
		dst = append(dst, "; n="...)
		dst = appendQuotedPrintable(dst, r.Notes)
	}
	switch {
	case r.Testing && r.SameDomain:
		dst = append(dst, "; t=y:s"...)
	case r.Testing:
		dst = append(dst, "; t=y"...)
	case r.SameDomain:
		dst = append(dst, "; t=s"...)
	}
	dst = append(dst, "; p="...)
	return base64.StdEncoding.AppendEncode(dst, r.PublicKey)
}

// String returns the canonical text of r; see AppendText.
func (r Record) String() string { return string(r.AppendText(nil)) }

func appendList(dst []byte, tag string, list []string) []byte {
	for i, element := range list {
		if i == 0 {
			dst = append(dst, tag...)
		} else {
			dst = append(dst, ':')
		}
		dst = append(dst, element...)
	}
	return dst
}

// MaxString is how many octets a character-string holds (RFC 1035 §3.3.14).
const MaxString = 255

// ErrEmpty says that there is no text to split: a TXT record has at least one octet of it here.
var ErrEmpty = errors.New("dkimrecord: empty text")

// Split cuts txt into character-strings of 1 to MaxString octets, all but the last one full. The results alias txt. It
// returns ErrEmpty for "" and never an empty string.
func Split(txt string) ([]string, error) {
	if txt == "" {
		return nil, ErrEmpty
	}
	parts := make([]string, 0, (len(txt)+MaxString-1)/MaxString)
	for len(txt) > MaxString {
		parts = append(parts, txt[:MaxString])
		txt = txt[MaxString:]
	}
	return append(parts, txt), nil
}
