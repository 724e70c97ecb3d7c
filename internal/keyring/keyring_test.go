package keyring_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keyring"
)

// store has keys that are sealed with nothing.
type store struct {
	mu     sync.Mutex
	sealed map[string][]byte
	opened int
	err    error
	hold   chan struct{} // a call waits for it, if not nil
}

var errNone = errors.New("no such key")

func (s *store) SealedKey(ctx context.Context, brand string, domain dnsname.Domain, keyID string) ([]byte, error) {
	if s.hold != nil {
		select {
		case <-s.hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	b, ok := s.sealed[keyring.Name{Brand: brand, Domain: domain, ID: keyID}.String()]
	if !ok {
		return nil, errNone
	}
	return b, nil
}

func (s *store) Open(_ context.Context, _, name string, sealed []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opened++
	if string(s.sealed[name]) != string(sealed) {
		return nil, errNone
	}
	return append([]byte(nil), sealed...), nil
}

func (s *store) add(t testing.TB, id string, a keypair.Algorithm) (keyring.Name, *keypair.KeyPair) {
	t.Helper()
	k, err := keypair.Generate(a)
	if err != nil {
		t.Fatal(err)
	}
	n := keyring.Name{Brand: "acme", Domain: "spamtrap.dk", ID: id}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sealed == nil {
		s.sealed = make(map[string][]byte)
	}
	s.sealed[n.String()] = k.Marshal()
	return n, k
}

func newRing(s *store, size int) *keyring.Ring {
	return keyring.New(keyring.Options{Store: s, Opener: s, Now: time.Now, Size: size})
}

func TestSign(t *testing.T) {
	s := &store{}
	r := newRing(s, 0)
	digest := sha256.Sum256([]byte("a message"))
	for _, a := range []keypair.Algorithm{keypair.RSA2048, keypair.Ed25519} {
		n, k := s.add(t, a.String(), a)
		signature, public, err := r.Sign(t.Context(), n, &digest)
		if err != nil {
			t.Fatal(err)
		}
		switch p := k.Signer().Public().(type) {
		case *rsa.PublicKey:
			if err := rsa.VerifyPKCS1v15(p, 5, digest[:], signature); err != nil {
				t.Error(err)
			}
		case ed25519.PublicKey:
			if !ed25519.Verify(p, digest[:], signature) {
				t.Error("the signature does not verify")
			}
		}
		if want, _ := x509.MarshalPKIXPublicKey(k.Signer().Public()); string(public) != string(want) {
			t.Errorf("%v: another public half", a)
		}
		der, got, err := r.PKCS8(t.Context(), n)
		if want, _ := k.PKCS8(); err != nil || got != a || string(der) != string(want) {
			t.Errorf("%v: PKCS8: %v, %v", a, got, err)
		}
		if signature, _, err := r.Sign(t.Context(), n, nil); err != nil || signature != nil {
			t.Errorf("no digest: %x, %v", signature, err)
		}
	}
	if s.opened != 2 || r.Len() != 2 {
		t.Errorf("opened %d times, %d open", s.opened, r.Len())
	}
	n := keyring.Name{Brand: "acme", Domain: "spamtrap.dk", ID: "no"}
	if _, _, err := r.Sign(t.Context(), n, &digest); !errors.Is(err, errNone) || r.Len() != 2 {
		t.Errorf("of no key: %v, %d open", err, r.Len())
	}
	r.Close()
	if _, _, err := r.Sign(t.Context(), n, &digest); !errors.Is(err, keyring.ErrClosed) || r.Len() != 0 {
		t.Errorf("after Close: %v, %d open", err, r.Len())
	}
}

func TestBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &store{}
		r := newRing(s, 3)
		digest := sha256.Sum256(nil)
		var names []keyring.Name
		for i := range 5 {
			n, _ := s.add(t, fmt.Sprint(i), keypair.Ed25519)
			names = append(names, n)
		}
		sign := func(i int) {
			t.Helper()
			if _, _, err := r.Sign(t.Context(), names[i], &digest); err != nil {
				t.Error(err)
			}
		}
		for i := range names {
			sign(i)
		}
		if r.Len() != 3 {
			t.Errorf("%d open, want 3", r.Len())
		}
		before := s.opened
		sign(2) // still open
		sign(0) // closed long ago
		if s.opened != before+1 {
			t.Errorf("opened %d more, want 1", s.opened-before)
		}
		time.Sleep(9 * time.Minute)
		sign(0)
		time.Sleep(2 * time.Minute)
		r.Sweep(func(keyring.Name) bool { return true })
		if r.Len() != 1 {
			t.Errorf("%d open after 10 minutes without use, want 1", r.Len())
		}
		r.Sweep(func(keyring.Name) bool { return false })
		if r.Len() != 0 {
			t.Errorf("%d open that are of no use", r.Len())
		}
	})
}

// A key that one caller opens is there for others, and one who gives up does not
// make others fail.
func TestShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &store{hold: make(chan struct{})}
		n, _ := s.add(t, "k", keypair.Ed25519)
		r := newRing(s, 1)
		digest := sha256.Sum256(nil)
		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan error)
		go func() {
			_, _, err := r.Sign(ctx, n, &digest)
			gone <- err
		}()
		synctest.Wait()
		done := make(chan error)
		for range 10 {
			go func() {
				_, _, err := r.Sign(t.Context(), n, &digest)
				done <- err
			}()
		}
		synctest.Wait()
		cancel()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Errorf("the one who gave up: %v", err)
		}
		synctest.Wait()
		close(s.hold)
		for range 10 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if s.opened != 1 {
			t.Errorf("opened %d times", s.opened)
		}
	})
}

// Keys are cleared under those who use them never.
func TestConcurrent(t *testing.T) {
	s := &store{}
	var names []keyring.Name
	var keys []*keypair.KeyPair
	for i := range 8 {
		n, k := s.add(t, fmt.Sprint(i), keypair.Ed25519)
		names, keys = append(names, n), append(keys, k)
	}
	r := newRing(s, 2)
	digest := sha256.Sum256([]byte("x"))
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 200 {
				j := (g + i) % len(names)
				signature, _, err := r.Sign(context.Background(), names[j], &digest)
				if err != nil || !ed25519.Verify(keys[j].Public().Octets, digest[:], signature) {
					t.Errorf("key %d: %v", j, err)
				}
				if i%10 == 0 {
					r.Drop(names[j])
				}
			}
		})
	}
	wg.Wait()
}
