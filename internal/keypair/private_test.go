package keypair_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dkimzone/dkimzone/internal/keypair"
)

// numbers are those of PKCS #1, good or not.
type numbers struct {
	Version       int
	N, E, D, P, Q *big.Int
	DP, DQ, QInv  *big.Int
}

// numbersOf computes those of a key with two primes.
func numbersOf(p, q *big.Int, e int64) numbers {
	one := big.NewInt(1)
	p1, q1 := new(big.Int).Sub(p, one), new(big.Int).Sub(q, one)
	n := numbers{N: product(p, q), E: big.NewInt(e), P: p, Q: q}
	if n.D = new(big.Int).ModInverse(n.E, product(p1, q1)); n.D == nil {
		n.D = big.NewInt(3)
	}
	n.DP, n.DQ = new(big.Int).Mod(n.D, p1), new(big.Int).Mod(n.D, q1)
	if n.QInv = new(big.Int).ModInverse(q, p); n.QInv == nil {
		n.QInv = big.NewInt(3)
	}
	return n
}

func (n numbers) der(tb testing.TB) []byte {
	tb.Helper()
	der, err := asn1.Marshal(struct {
		Version                     int
		N, E, D, P, Q, DP, DQ, QInv *big.Int
	}{n.Version, n.N, n.E, n.D, n.P, n.Q, n.DP, n.DQ, n.QInv})
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

func pkcs8(tb testing.TB, key any) []byte {
	tb.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

func TestParsePrivateKey(t *testing.T) {
	rsaPair, edPair := pair(t, keypair.RSA2048), pair(t, keypair.Ed25519)
	rsaKey, edKey := private(t, rsaPair).(*rsa.PrivateKey), private(t, edPair).(ed25519.PrivateKey)
	pkcs1 := x509.MarshalPKCS1PrivateKey(rsaKey)
	withPublic, err := asn1.Marshal(struct {
		Version   int
		Algorithm struct{ Algorithm asn1.ObjectIdentifier }
		Key       []byte
		Public    asn1.BitString `asn1:"tag:1"`
	}{1, struct{ Algorithm asn1.ObjectIdentifier }{asn1.ObjectIdentifier{1, 3, 101, 112}},
		append([]byte{4, 32}, edKey.Seed()...), asn1.BitString{Bytes: edKey[32:], BitLength: 256}})
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, in string
		want     *keypair.KeyPair
	}{
		{"pkcs 1", string(block("RSA PRIVATE KEY", pkcs1)), rsaPair},
		{"pkcs 8", string(block("PRIVATE KEY", pkcs8(t, rsaKey))), rsaPair},
		{"pkcs 8 with carriage returns", strings.ReplaceAll(string(block("PRIVATE KEY", pkcs8(t, rsaKey))), "\n", "\r\n"), rsaPair},
		{"behind a comment", "mail, 2019\n" + string(block("RSA PRIVATE KEY", pkcs1)) + "\n\n", rsaPair},
		{"pkcs 1 under the other label", string(block("PRIVATE KEY", pkcs1)), rsaPair},
		{"base64 of pkcs 1", b64(pkcs1), rsaPair},
		{"base64 of pkcs 8 in lines", fold(b64(pkcs8(t, rsaKey)), 64, "\n"), rsaPair},
		{"primes the other way round", string(block("RSA PRIVATE KEY", numbersOf(rsaKey.Primes[1], rsaKey.Primes[0], 65537).der(t))), nil},
		{"private exponent modulo φ", string(block("RSA PRIVATE KEY", numbersOf(rsaKey.Primes[0], rsaKey.Primes[1], 65537).der(t))), rsaPair},
		{"ed25519 pkcs 8", string(block("PRIVATE KEY", pkcs8(t, edKey))), edPair},
		{"ed25519 pkcs 8 with its public half", string(block("PRIVATE KEY", withPublic)), edPair},
		{"ed25519 seed", b64(edKey.Seed()) + "\n", edPair},
		{"ed25519 seed and public key", b64(edKey), edPair},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := keypair.ParsePrivateKey([]byte(tt.in))
			if err != nil {
				t.Fatal(err)
			}
			if tt.want == nil {
				checkWithVerifier(t, got)
				return
			}
			if !cmp.Equal(got.Public(), tt.want.Public()) || !bytes.Equal(got.Marshal(), tt.want.Marshal()) {
				t.Error("the key is another")
			}
		})
	}
	k, err := keypair.ParsePrivateKey([]byte(tests[0].in))
	if err != nil {
		t.Fatal(err)
	}
	checkWithVerifier(t, k)
}

func TestParsePrivateKeyRefuses(t *testing.T) {
	rsaKey, edKey := private(t, pair(t, keypair.RSA2048)).(*rsa.PrivateKey), private(t, pair(t, keypair.Ed25519)).(ed25519.PrivateKey)
	p, q := rsaKey.Primes[0], rsaKey.Primes[1]
	other := randomPrime(t, 1024)
	near, next := closePrimes(t, 1024)
	far := prime(new(big.Int).Add(new(big.Int).Add(near, new(big.Int).Lsh(big.NewInt(1), 900)), big.NewInt(2)), big.NewInt(2))
	composite := new(big.Int)
	for composite.Bit(1023)+composite.Bit(1022) < 2 { // as large as a prime would be
		composite = product(randomPrime(t, 512), randomPrime(t, 512))
	}
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(curve)
	if err != nil {
		t.Fatal(err)
	}
	step := big.NewInt(2 * 65537)
	start := new(big.Int).Div(p, step)
	unsuited := prime(start.Mul(start, step).Add(start, big.NewInt(1)), step)
	encrypted := string(pem.EncodeToMemory(&pem.Block{
		Type: "RSA PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-128-CBC,00"}, Bytes: []byte("x"),
	}))
	encryptedInfo, err := asn1.Marshal(struct {
		Algorithm struct{ Algorithm asn1.ObjectIdentifier }
		Data      []byte
	}{struct{ Algorithm asn1.ObjectIdentifier }{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 13}}, []byte("data")})
	if err != nil {
		t.Fatal(err)
	}
	change := func(f func(*numbers)) string {
		n := numbersOf(p, q, 65537)
		f(&n)
		return string(block("RSA PRIVATE KEY", n.der(t)))
	}
	of := func(p, q *big.Int) string { return string(block("RSA PRIVATE KEY", numbersOf(p, q, 65537).der(t))) }
	exponent := func(e *big.Int) string { return change(func(n *numbers) { n.E = e }) }
	whole := string(block("PRIVATE KEY", pkcs8(t, rsaKey)))
	public := pair(t, keypair.RSA2048).Public()

	tests := []struct {
		name, in string
		want     keypair.Reason
	}{
		{"empty", "\n", keypair.ReasonEmpty},
		{"too long", strings.Repeat("A", 16<<10+1), keypair.ReasonTooLong},
		{"words", "hello there", keypair.ReasonBadEncoding},
		{"cut", whole[:400], keypair.ReasonBadEncoding},
		{"seed cut", b64(bytes.Repeat([]byte{7}, 31)), keypair.ReasonBadEncoding}, // no ASN.1, as one in 256 seeds may look
		{"two keys", whole + whole, keypair.ReasonTrailingData},
		{"der with more octets", b64(append(pkcs8(t, rsaKey), 0)), keypair.ReasonTrailingData},
		{"public pem", string(block("PUBLIC KEY", public.Octets)), keypair.ReasonPublicKey},
		{"public base64", b64(public.Octets), keypair.ReasonPublicKey},
		{"record", record(public), keypair.ReasonPublicKey},
		{"encrypted pkcs 8", string(block("ENCRYPTED PRIVATE KEY", encryptedInfo)), keypair.ReasonEncrypted},
		{"encrypted pkcs 8 in base64", b64(encryptedInfo), keypair.ReasonEncrypted},
		{"encrypted pkcs 1", encrypted, keypair.ReasonEncrypted},
		{"ecdsa", string(block("PRIVATE KEY", pkcs8(t, curve))), keypair.ReasonUnsupportedType},
		{"sec 1", string(block("EC PRIVATE KEY", sec1)), keypair.ReasonUnsupportedType},
		{"openssh", string(block("OPENSSH PRIVATE KEY", []byte("x"))), keypair.ReasonUnsupportedType},

		{"1024 bits", of(randomPrime(t, 512), randomPrime(t, 512)), keypair.ReasonBadKeySize},
		{"2046 bits", of(randomPrime(t, 1023), randomPrime(t, 1023)), keypair.ReasonBadKeySize},
		{"exponent 1", exponent(big.NewInt(1)), keypair.ReasonBadExponent},
		{"even exponent", exponent(big.NewInt(65536)), keypair.ReasonBadExponent},
		{"exponent 0", exponent(new(big.Int)), keypair.ReasonBadExponent},
		{"huge exponent", exponent(odd(200)), keypair.ReasonBadExponent},
		{"exponent 3", exponent(big.NewInt(3)), keypair.ReasonBadExponent},
		{"small factor", of(big.NewInt(4093), odd(2037)), keypair.ReasonSmallFactor},
		{"roca", of(rocaPrime(t, 1024), rocaPrime(t, 1024)), keypair.ReasonROCA},
		{"neighbours", of(near, next), keypair.ReasonClosePrimes},
		{"too close for FIPS 186-5", of(near, far), keypair.ReasonClosePrimes},
		{"primes of unequal size", of(randomPrime(t, 1100), randomPrime(t, 948)), keypair.ReasonBadPrimes},
		{"not a prime", of(composite, q), keypair.ReasonBadPrimes},
		{"exponent that does not suit", of(unsuited, q), keypair.ReasonBadPrimes},
		{"three primes", change(func(n *numbers) { n.Version = 1 }), keypair.ReasonMultiPrime},
		{"another modulus", change(func(n *numbers) { n.N = product(p, other) }), keypair.ReasonMismatch},
		{"another private exponent", change(func(n *numbers) { n.D = new(big.Int).Add(n.D, big.NewInt(2)) }), keypair.ReasonMismatch},
		{"another exponent of a prime", change(func(n *numbers) { n.DP = new(big.Int).Add(n.DP, big.NewInt(2)) }), keypair.ReasonMismatch},
		{"another coefficient", change(func(n *numbers) { n.QInv = new(big.Int).Add(n.QInv, big.NewInt(2)) }), keypair.ReasonMismatch},
		{"negative prime", change(func(n *numbers) { n.P = new(big.Int).Neg(n.P) }), keypair.ReasonBadModulus},
		{"ed25519 with another public key", b64(append(edKey.Seed(), make([]byte, 32)...)), keypair.ReasonMismatch},
		{"seed of zeros", b64(make([]byte, 32)), keypair.ReasonWellKnown},
		{"RFC 8032", "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=", keypair.ReasonWellKnown},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k, err := keypair.ParsePrivateKey([]byte(tt.in))
			if reason := reasonOf(t, err); k != nil || reason != tt.want {
				t.Fatalf("%v, %q (%v); want %q", k, reason, err, tt.want)
			}
			var invalid *keypair.InvalidError
			if !errors.As(err, &invalid) || !invalid.Private {
				t.Error("the error is not of a private key")
			}
			checkSilent(t, err, tt.in)
		})
	}
}

// checkSilent fails the test if an error repeats a piece of a key.
func checkSilent(t *testing.T, err error, in string) {
	t.Helper()
	secret := strings.NewReplacer("PRIVATE KEY", "", "PUBLIC KEY", "", "ENCRYPTED", "").Replace(in)
	const window = 12
	for i := 0; i+window <= len(secret); i++ {
		if piece := secret[i : i+window]; strings.Contains(err.Error(), piece) {
			t.Fatalf("error %q repeats %q", err, piece)
		}
	}
}

func FuzzParsePrivateKey(f *testing.F) {
	for _, a := range []keypair.Algorithm{keypair.RSA2048, keypair.Ed25519} {
		der, err := pair(f, a).PKCS8()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(block("PRIVATE KEY", der))
		f.Add([]byte(b64(der)))
	}
	rsaKey := private(f, pair(f, keypair.RSA2048)).(*rsa.PrivateKey)
	f.Add(block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey)))
	f.Add([]byte(b64(private(f, pair(f, keypair.Ed25519)).(ed25519.PrivateKey))))
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := keypair.ParsePrivateKey(data)
		if err != nil {
			reasonOf(t, err)
			return
		}
		der, err := k.PKCS8()
		if err != nil {
			t.Fatal(err)
		}
		again, err := keypair.ParsePrivateKey([]byte(base64.StdEncoding.EncodeToString(der)))
		if err != nil || !bytes.Equal(again.Marshal(), k.Marshal()) {
			t.Fatalf("what it exports is another key, or none: %v", err)
		}
		if _, err := keypair.ParsePublicKey([]byte(record(k.Public()))); err != nil {
			t.Errorf("its public half is refused: %v", err)
		}
		digest := make([]byte, 32)
		opts := crypto.SignerOpts(crypto.SHA256)
		if k.Algorithm() == keypair.Ed25519 {
			opts = crypto.Hash(0)
		}
		if _, err := k.Signer().Sign(rand.Reader, digest, opts); err != nil {
			t.Errorf("it does not sign: %v", err)
		}
	})
}
