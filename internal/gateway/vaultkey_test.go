package gateway

import (
	"crypto/ed25519"
	"crypto/x509"
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
