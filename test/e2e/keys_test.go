package e2e_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"testing"
)

func newEd25519(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// publicText is the p= of a DKIM record of the key.
func publicText(key ed25519.PrivateKey) string {
	return base64.StdEncoding.EncodeToString(key[ed25519.SeedSize:])
}

func newRSA(t *testing.T, bits int) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func pemText(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func publicPEM(t *testing.T, public any) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return pemText("PUBLIC KEY", der)
}

func shortRSA(t *testing.T) string {
	t.Helper()
	return publicPEM(t, newRSA(t, 1024).Public())
}

func publicECDSA(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return publicPEM(t, key.Public())
}

// privateKeys are private keys in all forms in which people have them.
func privateKeys(t *testing.T) map[string]string {
	t.Helper()
	pkcs8 := func(key any) []byte {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	key := newRSA(t, 2048)
	return map[string]string{
		"PKCS1 PEM":            pemText("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key)),
		"PKCS8 PEM":            pemText("PRIVATE KEY", pkcs8(key)),
		"PKCS8 base64":         base64.StdEncoding.EncodeToString(pkcs8(key)),
		"Ed25519 PEM":          pemText("PRIVATE KEY", pkcs8(newEd25519(t))),
		"PEM after public PEM": publicPEM(t, key.Public()) + pemText("PRIVATE KEY", pkcs8(key)),
	}
}
