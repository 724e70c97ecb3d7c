package keypair

import (
	"crypto/ed25519"
	"crypto/sha256"
	"slices"
	"testing"
)

// TestIsPoint compares with a Python program that solves the curve equation for x. Bit i is for the SHA-256 of the
// octet i.
func TestIsPoint(t *testing.T) {
	const want = uint64(0x6d8e36737d69fdca)
	var got uint64
	for i := range 64 {
		sum := sha256.Sum256([]byte{byte(i)})
		if isPoint(sum[:]) {
			got |= 1 << i
		}
	}
	if got != want {
		t.Errorf("points %#x, want %#x", got, want)
	}
}

// TestSmallOrder forges a signature for every key of the list, which shows that it belongs there.
func TestSmallOrder(t *testing.T) {
	for _, y := range smallOrder {
		key := make([]byte, pointSize)
		y.FillBytes(key)
		slices.Reverse(key)
		// With the neutral point for R and 0 for S, the signature verifies if the order of the key divides the hash of
		// the message, which happens for one message in eight.
		signature := make([]byte, ed25519.SignatureSize)
		signature[0] = 1
		forged := false
		for i := range 250 {
			forged = forged || ed25519.Verify(key, []byte{byte(i)}, signature)
		}
		if !forged {
			t.Errorf("y = %x: no forgery", y)
		}
		for _, sign := range []byte{0, 0x80} {
			key[pointSize-1] |= sign
			if isPoint(key) {
				t.Errorf("%x passes", key)
			}
		}
	}
}

func TestIsPointNotCanonical(t *testing.T) {
	for low := range 256 {
		key := slices.Repeat([]byte{0xff}, pointSize)
		key[0] = byte(low)
		key[pointSize-1] = 0x7f
		if low >= 0xed && isPoint(key) {
			t.Errorf("%x passes, it is not smaller than the field prime", key)
		}
	}
}
