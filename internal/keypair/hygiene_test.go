package keypair_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"math/big"
	"strings"
	"testing"

	"github.com/dkimzone/dkimzone/internal/keypair"
)

// randomPrime returns a prime of bits whose first two are set, so that two make a modulus of twice as many.
func randomPrime(tb testing.TB, bits int) *big.Int {
	tb.Helper()
	p, err := rand.Prime(rand.Reader, bits)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// rocaPrime returns a prime of the form of CVE-2017-15361, k·M + (65537^a mod M), with the M that the generator takes for
// moduli of 2 048 bits.
func rocaPrime(tb testing.TB, bits int) *big.Int {
	tb.Helper()
	m := primorial(702)
	for {
		a, err := rand.Int(rand.Reader, m)
		if err != nil {
			tb.Fatal(err)
		}
		p := new(big.Int).Exp(big.NewInt(65537), a, m)
		low := new(big.Int).Lsh(big.NewInt(3), uint(bits-2))
		k, err := rand.Int(rand.Reader, new(big.Int).Div(new(big.Int).Lsh(big.NewInt(1), uint(bits-2)), m))
		if err != nil {
			tb.Fatal(err)
		}
		low.Div(low, m).Add(low, big.NewInt(1)).Add(low, k)
		p.Add(p, low.Mul(low, m))
		if p.BitLen() == bits && p.ProbablyPrime(0) {
			return p
		}
	}
}

func product(p, q *big.Int) *big.Int { return new(big.Int).Mul(p, q) }

// closePrimes returns two primes next to each other.
func closePrimes(tb testing.TB, bits int) (p, q *big.Int) {
	tb.Helper()
	p, two := randomPrime(tb, bits), big.NewInt(2)
	return p, prime(new(big.Int).Add(p, two), two)
}

func TestWeakModuli(t *testing.T) {
	p, q := closePrimes(t, 1024)
	square := randomPrime(t, 1024)
	tests := []struct {
		name    string
		modulus *big.Int
		want    keypair.Reason
	}{
		{"multiple of 3", product(odd(2047), big.NewInt(3)), keypair.ReasonSmallFactor},
		{"multiple of 4093", product(odd(2037), big.NewInt(4093)), keypair.ReasonSmallFactor},
		{"roca, 2048 bits", product(rocaPrime(t, 1024), rocaPrime(t, 1024)), keypair.ReasonROCA},
		{"roca, 3072 bits", product(rocaPrime(t, 1536), rocaPrime(t, 1536)), keypair.ReasonROCA},
		{"one prime of that kind", product(rocaPrime(t, 1024), randomPrime(t, 1024)), ""},
		{"neighbours", product(p, q), keypair.ReasonClosePrimes},
		{"a square", product(square, square), keypair.ReasonClosePrimes},
		{"primes apart", product(randomPrime(t, 1024), randomPrime(t, 1024)), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for name, octets := range map[string][]byte{
				"of the usual form":  modulus(t, tt.modulus, 65537),
				"with an exponent 3": modulus(t, tt.modulus, 3),
			} {
				if _, err := keypair.ParsePublicKey([]byte(b64(octets))); reasonOf(t, err) != tt.want {
					t.Errorf("%s: %v, want %q", name, err, tt.want)
				}
			}
		})
	}
}

// TestGoodKeysPass looks for false alarms: none in keys as they are made.
func TestGoodKeysPass(t *testing.T) {
	keys := 8
	if testing.Short() {
		keys = 2
	}
	for range keys {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		text := block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key))
		k, err := keypair.ParsePrivateKey(text)
		if err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		if _, err := keypair.ParsePublicKey([]byte(record(k.Public()))); err != nil {
			t.Errorf("%v: %s", err, text)
		}
	}
}

func TestWellKnownKeys(t *testing.T) {
	decode := func(text string) *big.Int {
		octets, err := base64.RawURLEncoding.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		return new(big.Int).SetBytes(octets)
	}
	tests := []struct{ name, key string }{
		{"RFC 6376", "v=DKIM1; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDwIRP/UC3SBsEmGqZ9ZJW3/DkMoGeLnQg1fWn7/zYtIxN2SnFCjxOCKG9v3b4jYfcTNh5ijSsq631uBItLa7od+v/RtdC2UzJ1lWT947qR+Rcac2gbto/NMqJ0fzfVjH4OuKhitdY9tf6mcwGjaNBcWToIMmPSPDdQPNUYckcQ2QIDAQAB"},
		{"RFC 8463", "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="},
		{"RFC 8463", "v=DKIM1; k=rsa; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDkHlOQoBTzWRiGs5V6NpP3idY6Wk08a5qhdR6wy5bdOKb2jLQiY/J16JYi0Qvx/byYzCNb3W91y3FutACDfzwQ/BC/e/8uBsCR+yz1Lxj+PL6lHvqMKrM3rG4hstT5QjvHO9PzoxZyVYLzBfO2EeC3Ip3G+2kryOTIKT+l/K4w3QIDAQAB"},
		{"OpenDKIM", "MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQC4GUGr+d/6SFNzVLYpphnRd0QPGKz2uWnV65RAxa1Pw352BqizqiKOBjgYGzj8pJQSs8tOvv/2k6jpI809RnESqOFgF0gu3UJbNnu3+cd8k/kiQj+q4cKKRpAT92ccxc7svhCNgN1sBGmROYZuysG3Vu3Dyc079gSLtnSrgXb+gQIDAQAB"},
		{"RFC 8032", "PUAXw+hDiVqStwqnTRt+vJyYLM8uxJaMwM1V8Sr0Zgw="},
		{"RFC 8032", "/FHNjmIYoaONpH7QAjDwWAgW7RO6MwOsXeuRFUiQgCU="},
		{"RFC 8032", "J4EX/BRMcjQPZ9DyMW6Dhs7/vyskKMnFH+98WX8dQm4="},
		{"RFC 8410", "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE="},
		{"RFC 9500", "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAsPnoGUOnrpiSqt4XynxA+HRP7S+BSObI6qJ7fQAVSPtRkqsotWxQYLEYzNEx5ZSHTGypibVsJylvCfuToDTfMul8b/CZjP2Ob0LdpYrNH6l5hvFE89FU1nZQF15oVLOpUgA7wGiHuEVawrGfey92UE68mOyUVXGweJIVDdxqdMoPvNNUl86BU02vlBiESxOuox+dWmuVV7vfYZ79Toh/LUK43YvJh+rhv4nKuF7iHjVjBd9sB6iDjj70HFldzOQ9r8SRI+9NirupPTkF5AKNe6kUhKJ1luB7S27ZkvB3tSTT3P593VVJvnzOjaA1z6Cz+4+eRvcysqhrRgFlwI9TEwIDAQAB"},
		{"RFC 7515", b64(modulus(t, decode("ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ"), 65537))},
	}
	for _, tt := range tests {
		_, err := keypair.ParsePublicKey([]byte(tt.key))
		if reasonOf(t, err) != keypair.ReasonWellKnown || !strings.Contains(err.Error(), tt.name) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}
