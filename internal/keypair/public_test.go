package keypair_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"math/big"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
	"github.com/dkimzone/dkimzone/internal/keypair"
)

func b64(octets []byte) string { return base64.StdEncoding.EncodeToString(octets) }

// fold breaks text into lines of n characters.
func fold(text string, n int, end string) string {
	var lines []string
	for len(text) > n {
		lines = append(lines, text[:n])
		text = text[n:]
	}
	return strings.Join(append(lines, text), end) + end
}

func record(k keypair.PublicKey) string {
	return dkimrecord.Record{KeyType: k.Algorithm.KeyType(), PublicKey: k.Octets}.String()
}

func TestParsePublicKey(t *testing.T) {
	rsaKey, edKey := pair(t, keypair.RSA2048).Public(), pair(t, keypair.Ed25519).Public()
	pkcs1 := x509.MarshalPKCS1PublicKey(pair(t, keypair.RSA2048).Signer().Public().(*rsa.PublicKey))
	edInfo := spki(t, pair(t, keypair.Ed25519).Signer().Public())
	tests := []struct {
		name, in string
		want     keypair.PublicKey
	}{
		{"rsa pem", string(block("PUBLIC KEY", rsaKey.Octets)), rsaKey},
		{"rsa pem of pkcs 1", string(block("RSA PUBLIC KEY", pkcs1)), rsaKey},
		{"pkcs 1 under the other label", string(block("PUBLIC KEY", pkcs1)), rsaKey},
		{"pem with carriage returns", strings.ReplaceAll(string(block("PUBLIC KEY", rsaKey.Octets)), "\n", "\r\n"), rsaKey},
		{"pem behind a comment", "Alice's key\n" + string(block("PUBLIC KEY", rsaKey.Octets)) + "\n\n", rsaKey},
		{"rsa base64", b64(rsaKey.Octets), rsaKey},
		{"rsa base64 of pkcs 1", b64(pkcs1), rsaKey},
		{"rsa base64 in lines", fold(b64(rsaKey.Octets), 64, "\r\n"), rsaKey},
		{"rsa record", record(rsaKey), rsaKey},
		{"rsa record of pkcs 1", "v=DKIM1; p=" + b64(pkcs1), rsaKey},
		{"rsa record in lines", fold(record(rsaKey)+";", 70, "\n"), rsaKey},
		{"rsa record of p= alone", "p=" + b64(rsaKey.Octets), rsaKey},
		{"rsa record that begins with a long tag", "note=mine; k=rsa; p=" + b64(rsaKey.Octets), rsaKey},
		{"rsa record with more tags", "v=DKIM1; t=y:s; h=sha256; n=mine; p=" + b64(rsaKey.Octets), rsaKey},
		{"ed25519 pem", string(block("PUBLIC KEY", edInfo)), edKey},
		{"ed25519 base64", b64(edKey.Octets), edKey},
		{"ed25519 base64 of a SubjectPublicKeyInfo", b64(edInfo), edKey},
		{"ed25519 record", record(edKey), edKey},
		{"ed25519 record of a SubjectPublicKeyInfo", "v=DKIM1; k=ed25519; p=" + b64(edInfo), edKey},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := keypair.ParsePublicKey([]byte(tt.in))
			if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
				t.Errorf("error %v; differs (-want +got):\n%s", err, diff)
			}
		})
	}
}

func TestParseGolden(t *testing.T) {
	data, err := os.ReadFile("../dkimrecord/testdata/golden.txt")
	if err != nil {
		t.Fatal(err)
	}
	var text string
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, `"`) {
			text += strings.Trim(line, `"`)
		}
	}
	k, err := keypair.ParsePublicKey([]byte(text + ";"))
	if err != nil {
		t.Fatal(err)
	}
	if k.Algorithm != keypair.RSA2048 || record(k) != text {
		t.Errorf("%v key gives the record %q, want %q", k.Algorithm, record(k), text)
	}
}

func reasonOf(t *testing.T, err error) keypair.Reason {
	t.Helper()
	if err == nil {
		return ""
	}
	var invalid *keypair.InvalidError
	if !errors.As(err, &invalid) {
		t.Fatalf("error is %T, want *InvalidError", err)
	}
	if err.Error() == string(invalid.Reason) {
		t.Errorf("reason %q has no sentence", invalid.Reason)
	}
	return invalid.Reason
}

// replace returns a copy of b with the only occurrence of old, in hexadecimal, replaced.
func replace(t *testing.T, b []byte, old, replacement string) []byte {
	t.Helper()
	from, err := hex.DecodeString(old)
	if err != nil {
		t.Fatal(err)
	}
	to, err := hex.DecodeString(replacement)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Count(b, from) != 1 {
		t.Fatalf("%s is not in %x once", old, b)
	}
	return bytes.Replace(b, from, to, 1)
}

func TestParsePublicKeyRefuses(t *testing.T) {
	rsaKey, edKey := pair(t, keypair.RSA2048).Public(), pair(t, keypair.Ed25519).Public()
	edInfo := spki(t, pair(t, keypair.Ed25519).Signer().Public())
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	const oidRSA = "06092a864886f70d010101"
	pss := replace(t, rsaKey.Octets, oidRSA, "06092a864886f70d01010a")
	number := func(n, e *big.Int) []byte {
		der, err := asn1.Marshal(struct{ N, E *big.Int }{n, e})
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	good := odd(2048)
	three, err := asn1.Marshal([]*big.Int{good, big.NewInt(65537), big.NewInt(1)})
	if err != nil {
		t.Fatal(err)
	}
	even := new(big.Int).Sub(good, big.NewInt(1))
	huge := new(big.Int).Lsh(big.NewInt(1), 70)
	identity := append([]byte{1}, make([]byte, 31)...)
	offCurve := append([]byte{2}, make([]byte, 31)...)
	pemKey := string(block("PUBLIC KEY", rsaKey.Octets))

	tests := []struct {
		name, in string
		want     keypair.Reason
	}{
		{"empty", "", keypair.ReasonEmpty},
		{"blanks", " \r\n\t", keypair.ReasonEmpty},
		{"too long", strings.Repeat("A", 16<<10+1), keypair.ReasonTooLong},
		{"words", "hello there", keypair.ReasonBadEncoding},
		{"base64 cut", b64(rsaKey.Octets)[:99], keypair.ReasonBadEncoding},
		{"der cut", b64(rsaKey.Octets[:200]), keypair.ReasonBadEncoding},
		{"base64 for URLs", base64.URLEncoding.EncodeToString(bytes.Repeat([]byte{0xff}, 33)), keypair.ReasonBadEncoding},
		{"zeros", b64(make([]byte, 100)), keypair.ReasonBadEncoding},
		{"empty sequence", b64([]byte{0x30, 0}), keypair.ReasonBadEncoding},
		{"31 octets", b64(edKey.Octets[:31]), keypair.ReasonBadEncoding},
		{"ed25519 of 31 octets", b64(append(replace(t, edInfo[:12], "302a300506032b6570032100", "3029300506032b6570032000"), edKey.Octets[:31]...)), keypair.ReasonBadEncoding},
		{"ed25519 with parameters", b64(append(replace(t, edInfo[:12], "302a300506032b6570032100", "302c300706032b65700500032100"), edKey.Octets...)), keypair.ReasonBadEncoding},
		{"rsa without parameters", b64(append(replace(t, rsaKey.Octets[:24], "30820122300d06092a864886f70d0101010500", "30820120300b06092a864886f70d010101"), rsaKey.Octets[24:]...)), keypair.ReasonBadEncoding},
		{"pem without an end", pemKey[:200], keypair.ReasonBadEncoding},
		{"pem with a second key", pemKey + pemKey, keypair.ReasonTrailingData},
		{"pem with more text", pemKey + "more", keypair.ReasonTrailingData},
		{"der with more octets", b64(append(slices.Clip(rsaKey.Octets), 0)), keypair.ReasonTrailingData},
		{"more octets in the bit string", b64(replace(t, append(slices.Clip(rsaKey.Octets), 0), "30820122300d06092a864886f70d01010105000382010f", "30820123300d06092a864886f70d010101050003820110")), keypair.ReasonTrailingData},
		{"three numbers", b64(three), keypair.ReasonBadEncoding},
		{"certificate", string(block("CERTIFICATE", []byte{0x30, 0})), keypair.ReasonUnsupportedType},
		{"ecdsa", string(block("PUBLIC KEY", spki(t, curve.Public()))), keypair.ReasonUnsupportedType},
		{"rsa-pss", b64(pss), keypair.ReasonUnsupportedType},
		{"record revoked", "v=DKIM1; k=rsa; p=", keypair.ReasonRevoked},
		{"record without a key", "v=DKIM1; k=rsa;", keypair.ReasonBadRecord},
		{"record of something else", "v=spf1; p=", keypair.ReasonBadRecord},
		{"record of two keys", record(rsaKey) + "; p=" + b64(rsaKey.Octets), keypair.ReasonBadRecord},
		{"record of rsa with an ed25519 key", "v=DKIM1; k=rsa; p=" + b64(edKey.Octets), keypair.ReasonAlgorithmMismatch},
		{"record of ed25519 with an rsa key", "v=DKIM1; k=ed25519; p=" + b64(rsaKey.Octets), keypair.ReasonAlgorithmMismatch},
		{"1024 bits", b64(modulus(t, odd(1024), 65537)), keypair.ReasonBadKeySize},
		{"2047 bits", b64(modulus(t, odd(2047), 65537)), keypair.ReasonBadKeySize},
		{"2049 bits", b64(modulus(t, odd(2049), 65537)), keypair.ReasonBadKeySize},
		{"8192 bits", b64(modulus(t, odd(8192), 65537)), keypair.ReasonBadKeySize},
		{"zero modulus", b64(number(new(big.Int), big.NewInt(65537))), keypair.ReasonPrivateKey}, // reads like a version
		{"negative modulus", b64(number(new(big.Int).Neg(good), big.NewInt(65537))), keypair.ReasonBadModulus},
		{"even modulus", b64(number(even, big.NewInt(65537))), keypair.ReasonSmallFactor},
		{"modulus with a small factor", b64(number(new(big.Int).Mul(odd(2037), big.NewInt(4093)), big.NewInt(65537))), keypair.ReasonSmallFactor},
		{"exponent 1", b64(number(good, big.NewInt(1))), keypair.ReasonBadExponent},
		{"exponent 2", b64(number(good, big.NewInt(2))), keypair.ReasonBadExponent},
		{"even exponent", b64(number(good, big.NewInt(65536))), keypair.ReasonBadExponent},
		{"negative exponent", b64(number(good, big.NewInt(-3))), keypair.ReasonBadExponent},
		{"exponent above 2^31", b64(number(good, big.NewInt(1<<31+1))), keypair.ReasonBadExponent},
		{"huge exponent", b64(number(good, huge.SetBit(huge, 0, 1))), keypair.ReasonBadExponent},
		{"point of small order", b64(identity), keypair.ReasonBadPoint},
		{"not a point", "v=DKIM1; k=ed25519; p=" + b64(offCurve), keypair.ReasonBadPoint},
		{"not a point in a SubjectPublicKeyInfo", b64(spki(t, ed25519.PublicKey(offCurve))), keypair.ReasonBadPoint},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := keypair.ParsePublicKey([]byte(tt.in))
			if reason := reasonOf(t, err); reason != tt.want || got.Octets != nil || got.Algorithm != 0 {
				t.Errorf("ParsePublicKey = %v, %q (%v); want %q", got, reason, err, tt.want)
			}
		})
	}
}

func TestExponents(t *testing.T) {
	for _, e := range []int{3, 17, 65537, 1<<31 - 1} {
		if _, err := keypair.ParsePublicKey([]byte(b64(modulus(t, odd(2048), e)))); err != nil {
			t.Errorf("exponent %d: %v", e, err)
		}
	}
}

func TestInvalidErrorText(t *testing.T) {
	_, err := keypair.ParsePublicKey([]byte(b64(modulus(t, odd(1024), 65537))))
	if want := "RSA key has 1024 bits; use 2048, 3072 or 4096"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	_, err = keypair.ParsePublicKey([]byte("v=DKIM1; p=*"))
	if want := "public key is not a DKIM key record: p= is not base64"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	var invalid *dkimrecord.InvalidError
	if !errors.As(err, &invalid) || invalid.Reason != dkimrecord.ReasonBadBase64 {
		t.Errorf("error does not wrap that of the record: %v", err)
	}
}

func TestPrivateKeysAreRefused(t *testing.T) {
	rsaKey, edKey := private(t, pair(t, keypair.RSA2048)).(*rsa.PrivateKey), private(t, pair(t, keypair.Ed25519)).(ed25519.PrivateKey)
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8 := func(key any) []byte {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	sec1, err := x509.MarshalECPrivateKey(curve)
	if err != nil {
		t.Fatal(err)
	}
	encrypted, err := asn1.Marshal(struct {
		Algorithm struct{ Algorithm asn1.ObjectIdentifier }
		Data      []byte
	}{struct{ Algorithm asn1.ObjectIdentifier }{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 13}}, pkcs8(rsaKey)})
	if err != nil {
		t.Fatal(err)
	}
	public := string(block("PUBLIC KEY", spki(t, rsaKey.Public())))
	whole := string(block("PRIVATE KEY", pkcs8(rsaKey)))
	tests := []struct{ name, in string }{
		{"pkcs 8", whole},
		{"pkcs 1", string(block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey)))},
		{"sec 1", string(block("EC PRIVATE KEY", sec1))},
		{"encrypted", string(block("ENCRYPTED PRIVATE KEY", encrypted))},
		{"openssh", string(block("OPENSSH PRIVATE KEY", pkcs8(edKey)))},
		{"openpgp", string(block("PGP PRIVATE KEY BLOCK", pkcs8(edKey)))},
		{"in lower case", strings.ToLower(whole)},
		{"without an end", whole[:500]},
		{"behind a public key", public + whole},
		{"before a public key", whole + public},
		{"under a wrong label", string(block("PUBLIC KEY", pkcs8(rsaKey)))},
		{"base64 of pkcs 8", b64(pkcs8(rsaKey))},
		{"base64 of pkcs 8, ed25519", b64(pkcs8(edKey))},
		{"base64 of pkcs 1", fold(b64(x509.MarshalPKCS1PrivateKey(rsaKey)), 64, "\n")},
		{"base64 of sec 1", b64(sec1)},
		{"base64 of encrypted pkcs 8", b64(encrypted)},
		{"base64 of an ed25519 key with its seed", b64(edKey)},
		{"base64 of pem", b64([]byte(whole))},
		{"der", string(pkcs8(rsaKey))},
		{"record", "v=DKIM1; k=rsa; p=" + b64(pkcs8(rsaKey))},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := keypair.ParsePublicKey([]byte(tt.in))
			if reason := reasonOf(t, err); reason != keypair.ReasonPrivateKey {
				t.Fatalf("reason %q, want %q", reason, keypair.ReasonPrivateKey)
			}
			const window = 12
			secret := strings.NewReplacer("PRIVATE KEY", "", "private key", "").Replace(tt.in)
			for i := 0; i+window <= len(secret); i++ {
				if piece := secret[i : i+window]; strings.Contains(err.Error(), piece) {
					t.Fatalf("error %q repeats %q", err, piece)
				}
			}
		})
	}
}

func TestFingerprint(t *testing.T) {
	k := pair(t, keypair.RSA2048).Public()
	if got, want := k.Fingerprint(), sha256.Sum256(k.Octets); got != want {
		t.Errorf("Fingerprint() = %x, want %x", got, want)
	}
}

func FuzzParsePublicKey(f *testing.F) {
	for _, a := range []keypair.Algorithm{keypair.RSA2048, keypair.Ed25519} {
		k := pair(f, a)
		der, err := k.PKCS8()
		if err != nil {
			f.Fatal(err)
		}
		info := spki(f, k.Signer().Public())
		f.Add(block("PUBLIC KEY", info))
		f.Add(block("PRIVATE KEY", der))
		f.Add([]byte(b64(info)))
		f.Add([]byte(b64(der)))
		f.Add([]byte(b64(k.Public().Octets)))
		f.Add([]byte(record(k.Public())))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := keypair.ParsePublicKey(data)
		if err != nil {
			reasonOf(t, err)
			return
		}
		for _, form := range []string{record(k), b64(k.Octets), string(block("PUBLIC KEY", k.Octets))} {
			if k.Algorithm == keypair.Ed25519 && strings.HasPrefix(form, "-----") {
				continue // a PEM block holds a SubjectPublicKeyInfo
			}
			again, err := keypair.ParsePublicKey([]byte(form))
			if diff := cmp.Diff(k, again); diff != "" || err != nil {
				t.Errorf("ParsePublicKey(%q): %v; differs (-want +got):\n%s", form, err, diff)
			}
		}
		if k.Algorithm != keypair.Ed25519 {
			key, err := x509.ParsePKIXPublicKey(k.Octets)
			if err != nil || key.(*rsa.PublicKey).N.BitLen() != k.Algorithm.Bits() {
				t.Errorf("x509 reads %v, %v", key, err)
			}
		}
	})
}

// RefusePrivate refuses what ParsePublicKey refuses as a private key, and nothing else.
func TestRefusePrivate(t *testing.T) {
	rsaKey, edKey := pair(t, keypair.RSA2048), pair(t, keypair.Ed25519)
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	rsaPrivate, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rsaDER, err := x509.MarshalPKCS8PrivateKey(rsaPrivate)
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.StdEncoding.EncodeToString
	for _, tt := range []struct {
		name, in string
		private  bool
	}{
		{"ed25519", b64(der), true},
		{"rsa", b64(rsaDER), true},
		{"rsa in lines", b64(rsaDER)[:64] + "\n" + b64(rsaDER)[64:], true},
		{"label", "x -----begin rsa Private Key-----", true},
		{"in a record", "v=DKIM1; k=ed25519; p=" + b64(der), true},
		{"public", b64(rsaKey.Public().Octets), false},
		{"record", record(edKey.Public()), false},
		{"nothing", "", false},
		{"nonsense", "nonsense!", false},
		{"words cut short", "PRIVATE KE", false},
		{"other words", "RIVATE KEY private key", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := keypair.RefusePrivate([]byte(tt.in))
			if got := err != nil; got != tt.private {
				t.Fatalf("%v, want refused: %t", err, tt.private)
			}
			if tt.private && reasonOf(t, err) != keypair.ReasonPrivateKey {
				t.Errorf("reason %q", reasonOf(t, err))
			}
		})
	}
}
