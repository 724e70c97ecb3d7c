package keypair

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"sync"
)

var (
	oidRSA     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidEd25519 = asn1.ObjectIdentifier{1, 3, 101, 112}
)

// subjectPublicKeyInfo is the SubjectPublicKeyInfo of RFC 5280 §4.1.
type subjectPublicKeyInfo struct {
	Algorithm pkix.AlgorithmIdentifier
	Key       asn1.BitString
}

// rsaPublicKey is the RSAPublicKey of RFC 8017 §A.1.1.
type rsaPublicKey struct {
	N, E *big.Int
}

// isPrivate recognizes private keys: any PEM block of one, and what comes without a PEM label, which is PKCS #1, SEC 1
// and PKCS #8, which begin with a small version number, encrypted PKCS #8, and the 64 octets of an Ed25519 key with its
// seed.
func isPrivate(octets []byte) bool {
	if saysPrivate(octets) {
		return true
	}
	if len(octets) == ed25519.PrivateKeySize {
		key := ed25519.NewKeyFromSeed(octets[:ed25519.SeedSize])
		if bytes.Equal(key, octets) {
			return true
		}
	}
	if len(octets) == 0 || octets[0]&0x1f != asn1.TagSequence { // as below, in less time
		return false
	}
	var outer, first, second asn1.RawValue
	if _, err := asn1.Unmarshal(octets, &outer); err != nil || outer.Tag != asn1.TagSequence {
		return false
	}
	rest, err := asn1.Unmarshal(outer.Bytes, &first)
	if err != nil {
		return false
	}
	if first.Tag == asn1.TagInteger {
		return len(first.Bytes) == 1 && first.Bytes[0] <= 1
	}
	_, err = asn1.Unmarshal(rest, &second)
	return err == nil && first.Tag == asn1.TagSequence && second.Tag == asn1.TagOctetString
}

// saysPrivate reports whether the words "private key" are there, in whatever case.
func saysPrivate(text []byte) bool {
	const before, after = "PRIVATE", "KEY"
	for from := 0; ; {
		i := bytes.IndexByte(text[from:], ' ')
		if i < 0 {
			return false
		}
		i += from
		if i >= len(before) && len(text) > i+len(after) &&
			bytes.EqualFold(text[i-len(before):i], []byte(before)) && bytes.EqualFold(text[i+1:i+1+len(after)], []byte(after)) {
			return true
		}
		from = i + 1
	}
}

// rsaForm is what the SubjectPublicKeyInfo of each RSA key of an algorithm with the exponent 65537 has around its modulus,
// and so nearly every public key there is. The modulus begins with a bit that is set.
type rsaForm struct {
	algorithm  Algorithm
	head, tail []byte
}

var rsaForms = sync.OnceValue(func() (forms []rsaForm) {
	for _, a := range []Algorithm{RSA2048, RSA3072, RSA4096} {
		n := new(big.Int).Lsh(big.NewInt(1), uint(a.Bits()-1))
		der, err := x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: n, E: 65537})
		if err != nil {
			continue // the long way is good for all
		}
		at := bytes.Index(der, n.Bytes())
		forms = append(forms, rsaForm{a, der[:at], der[at+len(n.Bytes()):]})
	}
	return forms
})

// parseCommon reads a key of an rsaForm, with the result of parseDER, in a fraction of its time. It reports false for any
// other, good or not.
func parseCommon(der []byte) (_ PublicKey, ok bool, _ error) {
	for _, f := range rsaForms() {
		if len(der) != len(f.head)+f.algorithm.Bits()/8+len(f.tail) || !bytes.HasPrefix(der, f.head) || !bytes.HasSuffix(der, f.tail) {
			continue
		}
		modulus := der[len(f.head) : len(der)-len(f.tail)]
		if modulus[0] < 0x80 { // a shorter number, not in its shortest form
			return PublicKey{}, false, nil
		}
		if err := judge(der, modulus); err != nil {
			return PublicKey{}, true, err
		}
		return PublicKey{Algorithm: f.algorithm, Octets: bytes.Clone(der)}, true, nil
	}
	return PublicKey{}, false, nil
}

// parseDER reads a SubjectPublicKeyInfo or an RSAPublicKey, which begin with a sequence and with a number.
func parseDER(der []byte) (PublicKey, error) {
	var outer, first asn1.RawValue
	rest, err := asn1.Unmarshal(der, &outer)
	switch {
	case err != nil || outer.Tag != asn1.TagSequence:
		return PublicKey{}, invalid(ReasonBadEncoding)
	case len(rest) != 0:
		return PublicKey{}, invalid(ReasonTrailingData)
	}
	if _, err := asn1.Unmarshal(outer.Bytes, &first); err != nil {
		return PublicKey{}, invalid(ReasonBadEncoding)
	}
	if first.Tag == asn1.TagInteger {
		return parsePKCS1(der)
	}
	return parseSPKI(der)
}

func parseSPKI(der []byte) (PublicKey, error) {
	var info subjectPublicKeyInfo
	if _, err := asn1.Unmarshal(der, &info); err != nil {
		return PublicKey{}, invalid(ReasonBadEncoding)
	}
	var k PublicKey
	var canonical []byte
	switch bits := info.Key.RightAlign(); {
	case info.Algorithm.Algorithm.Equal(oidEd25519):
		if len(bits) != pointSize {
			return PublicKey{}, invalid(ReasonBadEncoding)
		}
		var err error
		if k, err = newEd25519(bits); err != nil {
			return PublicKey{}, err
		}
		canonical, err = x509.MarshalPKIXPublicKey(ed25519.PublicKey(bits))
		if err != nil {
			return PublicKey{}, invalid(ReasonBadEncoding)
		}
	case info.Algorithm.Algorithm.Equal(oidRSA):
		var err error
		if k, err = parsePKCS1(bits); err != nil {
			return PublicKey{}, err
		}
		canonical = k.Octets
	default:
		return PublicKey{}, invalid(ReasonUnsupportedType)
	}
	if !bytes.Equal(der, canonical) {
		return PublicKey{}, invalid(ReasonBadEncoding)
	}
	return k, nil
}

// parsePKCS1 reads an RSAPublicKey and judges its numbers.
func parsePKCS1(der []byte) (PublicKey, error) {
	var raw rsaPublicKey
	rest, err := asn1.Unmarshal(der, &raw)
	switch {
	case err != nil:
		return PublicKey{}, invalid(ReasonBadEncoding)
	case len(rest) != 0:
		return PublicKey{}, invalid(ReasonTrailingData)
	case raw.N.Sign() <= 0:
		return PublicKey{}, invalid(ReasonBadModulus)
	}
	if err := judgeExponent(raw.E); err != nil {
		return PublicKey{}, err
	}
	key := &rsa.PublicKey{N: raw.N, E: int(raw.E.Int64())}
	k, err := newRSA(rsaAlgorithm(raw.N.BitLen()), key)
	if err != nil {
		return PublicKey{}, err
	}
	if k.Algorithm == 0 {
		if err := judgeFame(k.Octets); err != nil {
			return PublicKey{}, err
		}
		return PublicKey{}, &InvalidError{Reason: ReasonBadKeySize, Bits: raw.N.BitLen()}
	}
	if err := judge(k.Octets, raw.N.Bytes()); err != nil {
		return PublicKey{}, err
	}
	if !bytes.Equal(der, x509.MarshalPKCS1PublicKey(key)) {
		return PublicKey{}, invalid(ReasonBadEncoding)
	}
	return k, nil
}

// marshalPKCS1 writes an RSAPublicKey. It takes more than crypto/x509 does, so that all is judged in one place.
func marshalPKCS1(n, e *big.Int) []byte {
	der, err := asn1.Marshal(rsaPublicKey{n, e})
	if err != nil {
		return nil // which is refused
	}
	return der
}
