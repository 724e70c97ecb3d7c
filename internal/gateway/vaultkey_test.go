package gateway

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"testing"
)

// rspamd does not decode a key that begins with a slash.
func TestVaultSeed(t *testing.T) {
	for first, want := range map[byte]string{
		0x00: "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
		0xfb: "+wAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
		0xfc: " /AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
		0xff: " /wAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
	} {
		seed := make([]byte, ed25519.SeedSize)
		seed[0] = first
		der, err := x509.MarshalPKCS8PrivateKey(ed25519.NewKeyFromSeed(seed))
		if err != nil {
			t.Fatal(err)
		}
		var s vaultSelector
		if err := s.set(der); err != nil || s.Key != want {
			t.Errorf("%#x: %q, %v, want %q", first, s.Key, err, want)
		}
	}
}

// What is said of a key is what crypto/x509 makes of it.
func TestVaultKey(t *testing.T) {
	pair, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&pair.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		key  any
		want vaultSelector
	}{
		{pair, vaultSelector{Algorithm: "rsa", Bits: 2048, PublicKey: base64.StdEncoding.EncodeToString(spki)}},
		{ed, vaultSelector{
			Algorithm: "ed25519", Bits: 256, PublicKey: base64.StdEncoding.EncodeToString(ed[ed25519.SeedSize:]), Key: seedText(ed.Seed()),
		}},
	} {
		der, err := x509.MarshalPKCS8PrivateKey(tt.key)
		if err != nil {
			t.Fatal(err)
		}
		if tt.want.Key == "" {
			tt.want.Key = toPEM(der)
		}
		var s vaultSelector
		if err := s.set(der); err != nil || s != tt.want {
			t.Errorf("%s: another key or form: %v", tt.want.Algorithm, err)
		}
		for n := range der {
			if s.set(der[:n]) == nil {
				t.Errorf("%s: %d octets of it pass for a key", tt.want.Algorithm, n)
			}
		}
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	var s vaultSelector
	if s.set(der) == nil {
		t.Error("a key of a kind that does not sign mail is shown")
	}
}

func BenchmarkVaultKey(b *testing.B) {
	pair, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		b.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	for name, key := range map[string]any{"rsa2048": pair, "ed25519": ed} {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				var s vaultSelector
				if err := s.set(der); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
