package signer_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-msgauth/dkim"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/signer"
)

const spamtrap = "brands/acme/domains/spamtrap.dk"

func keysOf(t testing.TB, c *signer.Client, domain string) signer.Answer {
	t.Helper()
	a, err := c.Keys(context.Background(), domain)
	if err != nil {
		t.Fatalf("%s: %v", domain, err)
	}
	return a
}

// sign signs something with a key, and says whether that verifies.
func sign(k *signer.Key) error {
	digest := sha256.Sum256([]byte("a message"))
	switch public := k.Public().(type) {
	case *rsa.PublicKey:
		signature, err := k.Sign(nil, digest[:], crypto.SHA256)
		if err != nil {
			return err
		}
		return rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:], signature)
	case ed25519.PublicKey:
		signature, err := k.Sign(nil, digest[:], crypto.Hash(0))
		if err != nil {
			return err
		}
		if !ed25519.Verify(public, digest[:], signature) {
			return errors.New("the signature does not verify")
		}
	}
	return nil
}

// ways are the ways to use a Client.
var ways = map[string]signer.Options{
	"asking, remote":   {},
	"asking, local":    {Local: true},
	"watching, remote": {Watch: true},
	"watching, local":  {Watch: true, Local: true, Register: &signer.Registration{Name: "mx"}, ReportInterval: time.Hour},
}

func TestWays(t *testing.T) {
	for name, o := range ways {
		t.Run(name, func(t *testing.T) {
			d := newDkimd(t)
			d.rotate(t, spamtrap, "rsa1", "ed1")
			c := d.client(t, o)
			a := keysOf(t, c, "SPAMTRAP.dk.")
			if len(a.Keys) != 2 || a.Fallback || a.Reason != "OWN_KEY" || time.Until(a.ValidUntil) < 50*time.Minute {
				t.Fatalf("%+v", a)
			}
			for i, k := range a.Keys {
				if want := []string{"rsa-sha256", "ed25519-sha256"}[i]; k.Algorithm() != want || k.Domain != "spamtrap.dk" || k.Selector != []string{"rsa1", "ed1"}[i] {
					t.Errorf("%+v, want %s", k, want)
				}
				if err := sign(k); err != nil {
					t.Error(err)
				}
			}
			if _, err := c.Keys(t.Context(), "no.example"); !errors.Is(err, signer.ErrUnknownDomain) {
				t.Errorf("nobody's domain: %v", err)
			}
			if _, err := c.Keys(t.Context(), "not a domain"); !errors.Is(err, signer.ErrRefused) {
				t.Errorf("no domain: %v", err)
			}

			// dkimd is away: what is known goes on, and signs where the key is here.
			d.setDown(true)
			again := keysOf(t, c, "spamtrap.dk")
			err := sign(again.Keys[0])
			if o.Local && err != nil || !o.Local && !errors.Is(err, signer.ErrUnavailable) {
				t.Errorf("signing while dkimd is away: %v", err)
			}
			d.setDown(false)
			await(t, "a signature", func() bool { return sign(keysOf(t, c, "spamtrap.dk").Keys[0]) == nil })
		})
	}
}

func TestWrongDigests(t *testing.T) {
	d := newDkimd(t)
	d.rotate(t, spamtrap, "rsa1")
	k := keysOf(t, d.client(t, signer.Options{}), "spamtrap.dk").Keys[0]
	digest := make([]byte, 32)
	for name, err := range map[string]error{
		"SHA-1":   second(k.Sign(nil, digest[:20], crypto.SHA1)),
		"too big": second(k.Sign(nil, make([]byte, 33), crypto.SHA256)),
		"PSS":     second(k.Sign(nil, digest, &rsa.PSSOptions{Hash: crypto.SHA256})),
		"no hash": second(k.Sign(nil, digest, crypto.Hash(0))),
	} {
		if !errors.Is(err, signer.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// A rotation that comes between the answer and the signature is seen to by Sign.
func TestRotationMeanwhile(t *testing.T) {
	d := newDkimd(t)
	d.rotate(t, spamtrap, "ed1")
	c := d.client(t, signer.Options{})
	keysOf(t, c, "spamtrap.dk")
	next := d.rotate(t, spamtrap, "ed2")
	if err := sign(keysOf(t, c, "spamtrap.dk").Keys[0]); !errors.Is(err, signer.ErrNotSigning) {
		t.Fatalf("with a retired key: %v", err)
	}
	if a := keysOf(t, c, "spamtrap.dk"); a.Keys[0].Name != next[0].GetKey() {
		t.Errorf("it goes on naming %s", a.Keys[0].Name)
	}
	d.rotate(t, spamtrap, "ed3")
	var used []string
	err := c.Sign(t.Context(), "spamtrap.dk", func(a signer.Answer) error {
		used = append(used, a.Keys[0].Selector)
		return sign(a.Keys[0])
	})
	if err != nil || fmt.Sprint(used) != "[ed2 ed3]" {
		t.Errorf("signed with %v: %v", used, err)
	}
}

// An answer is remembered until it is due, asked again then, and used without dkimd
// as long as it is good.
func TestAsking(t *testing.T) {
	d := newDkimd(t)
	d.rotate(t, spamtrap, "ed1")
	clock := newClock()
	c := d.client(t, signer.Options{})
	signer.SetClock(c, clock.now)
	d.refresh, d.hold = 5*time.Minute, time.Hour
	for range 3 {
		keysOf(t, c, "spamtrap.dk")
	}
	if n := d.count("Resolve"); n != 1 {
		t.Errorf("asked %d times, want once", n)
	}
	next := d.rotate(t, spamtrap, "ed2")
	clock.add(5 * time.Minute)
	if a := keysOf(t, c, "spamtrap.dk"); a.Keys[0].Name != next[0].GetKey() {
		t.Error("the new key is not known when the answer was due")
	}
	d.setDown(true)
	clock.add(59 * time.Minute)
	keysOf(t, c, "spamtrap.dk")
	asked := d.count("Resolve")
	keysOf(t, c, "spamtrap.dk") // while it pauses
	if n := d.count("Resolve"); n != asked {
		t.Errorf("asked %d times more while dkimd is away", n-asked)
	}
	clock.add(time.Minute)
	if _, err := c.Keys(t.Context(), "spamtrap.dk"); !errors.Is(err, signer.ErrUnavailable) {
		t.Errorf("after the end of the answer: %v", err)
	}
	d.setDown(false)
	await(t, "dkimd", func() bool { _, err := c.Keys(t.Context(), "spamtrap.dk"); return err == nil })
	if _, err := c.Keys(t.Context(), "denied.example"); !errors.Is(err, signer.ErrRefused) {
		t.Errorf("a foreign domain: %v", err)
	}

	// A domain that nobody has is not asked about with each message.
	asked = d.count("Resolve")
	for range 3 {
		if _, err := c.Keys(t.Context(), "no.example"); !errors.Is(err, signer.ErrUnknownDomain) {
			t.Error(err)
		}
	}
	if n := d.count("Resolve"); n != asked+1 {
		t.Errorf("asked %d times about nobody's domain", n-asked)
	}
}

func TestWatching(t *testing.T) {
	d := newDkimd(t)
	d.rotate(t, spamtrap, "ed1")
	c := d.client(t, signer.Options{Watch: true, Brand: "acme"})
	clock := newClock()
	signer.SetClock(c, clock.now)
	if a := keysOf(t, c, "nobody.example"); !a.Fallback || a.Reason != "UNKNOWN_DOMAIN" || a.Keys[0].Domain != "acme.keys.example.net" {
		t.Errorf("a domain that the brand does not have: %+v", a)
	}
	current := func() string {
		a, err := c.Keys(t.Context(), "spamtrap.dk")
		if err != nil || len(a.Keys) == 0 {
			return fmt.Sprint(err)
		}
		return a.Keys[0].Selector
	}
	d.rotate(t, spamtrap, "ed2")
	await(t, "the rotation", func() bool { return current() == "ed2" })

	// After an interruption it goes on where it was.
	d.setDown(true)
	await(t, "the end of the watch", func() bool { return d.count("Watch") > 1 })
	if s := current(); s != "ed2" {
		t.Errorf("while dkimd is away: %s", s)
	}
	d.set(func() { d.down, d.active[spamtrap] = false, nil }, spamtrap)
	await(t, "the fallback", func() bool { return current() == "default1" })
	if n := d.count("Snapshot"); n != 1 {
		t.Errorf("%d listings, want one", n)
	}
	d.set(func() { delete(d.active, spamtrap) }, spamtrap)
	await(t, "the deletion", func() bool {
		a, err := c.Keys(t.Context(), "spamtrap.dk")
		return err == nil && a.Reason == "UNKNOWN_DOMAIN"
	})

	d.setDown(true)
	clock.add(2 * time.Hour)
	if _, err := c.Keys(t.Context(), "spamtrap.dk"); !errors.Is(err, signer.ErrUnavailable) {
		t.Errorf("after the end of what is known: %v", err)
	}
}

// A registered signer says that it holds a key before that signs, and when it signed.
func TestReport(t *testing.T) {
	for _, local := range []bool{false, true} {
		t.Run(fmt.Sprintf("local=%t", local), func(t *testing.T) {
			d := newDkimd(t)
			keys := d.rotate(t, spamtrap, "ed1")
			c := d.client(t, signer.Options{Watch: true, Local: local, Register: &signer.Registration{Name: "mx"}, ReportInterval: 100 * time.Millisecond})
			standby := d.newKey(t, spamtrap, "ed2")
			d.set(func() { d.standby[spamtrap] = []*dkimv1.SigningKey{standby} }, spamtrap)
			if err := sign(keysOf(t, c, "spamtrap.dk").Keys[0]); err != nil {
				t.Fatal(err)
			}
			said := func() map[string]bool { return d.heldLast(spamtrap) }
			await(t, "the report", func() bool {
				s := said()
				held, there := s[standby.GetKey()]
				return s[keys[0].GetKey()] && there && !held
			})
			if fetched := d.count("Fetch") > 0; fetched != local {
				t.Errorf("private keys were fetched: %t", fetched)
			}
			// After the switch the old key is no longer held, but when it signed is still said.
			d.set(func() {
				d.active[spamtrap], d.standby[spamtrap] = []*dkimv1.SigningKey{standby}, nil
				d.uses = nil
			}, spamtrap)
			await(t, "the report after the switch", func() bool { return len(said()) == 2 })
			if s := said(); !s[keys[0].GetKey()] {
				t.Errorf("said %v", s)
			}
		})
	}
}

// A registered signer keeps all keys that it said it holds, and no others.
func TestHeld(t *testing.T) {
	d := newDkimd(t)
	const many = 20
	name := func(i int) string { return fmt.Sprintf("d%d.example", i) }
	for i := range many {
		d.rotate(t, "brands/acme/domains/"+name(i), "ed1")
	}
	c := d.client(t, signer.Options{Watch: true, Local: true, CacheSize: 2, Register: &signer.Registration{Name: "mx"}, ReportInterval: 50 * time.Millisecond})
	await(t, "the report of all keys", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		held := make(map[string]bool)
		for _, u := range d.uses {
			for _, domain := range u.GetDomains() {
				held[domain.GetDomain()] = len(domain.GetKeys()) == 1
			}
		}
		return len(held) == many+1 // with that of the default key
	})
	old := keysOf(t, c, name(0)).Keys[0]
	d.setDown(true)
	fetches := d.count("Fetch")
	for i := range many {
		if err := sign(keysOf(t, c, name(i)).Keys[0]); err != nil {
			t.Errorf("%s, while dkimd is away: %v", name(i), err)
		}
	}
	if n := d.count("Fetch"); n != fetches {
		t.Errorf("%d keys were fetched once more", n-fetches)
	}
	d.setDown(false)
	d.rotate(t, "brands/acme/domains/"+name(0), "ed2")
	await(t, "that the old key is gone", func() bool { return errors.Is(sign(old), signer.ErrNotSigning) })
	for i := range many {
		if err := sign(keysOf(t, c, name(i)).Keys[0]); err != nil {
			t.Errorf("%s: %v", name(i), err)
		}
	}
}

// Digests that wait while others are on their way go together.
func TestBatches(t *testing.T) {
	d := newDkimd(t)
	d.rotate(t, spamtrap, "ed1")
	c := d.client(t, signer.Options{})
	k := keysOf(t, c, "spamtrap.dk").Keys[0]
	var wg sync.WaitGroup
	d.mu.Lock() // dkimd is busy
	for range 200 {
		wg.Go(func() {
			if err := sign(k); err != nil {
				t.Error(err)
			}
		})
	}
	signer.AwaitQueued(c)
	d.mu.Unlock()
	wg.Wait()
	if n := d.count("Sign"); n > 101 {
		t.Errorf("%d calls for 200 digests", n)
	}
}

func TestClosed(t *testing.T) {
	d := newDkimd(t)
	d.rotate(t, spamtrap, "ed1")
	for name, o := range ways {
		c := d.client(t, o)
		k := keysOf(t, c, "spamtrap.dk").Keys[0]
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if _, err := c.Keys(t.Context(), "spamtrap.dk"); !errors.Is(err, signer.ErrClosed) {
			t.Errorf("%s: Keys after Close: %v", name, err)
		}
		if err := sign(k); !errors.Is(err, signer.ErrClosed) {
			t.Errorf("%s: a key after Close: %v", name, err)
		}
	}
}

func TestOptions(t *testing.T) {
	for name, o := range map[string]signer.Options{
		"nothing":                     {},
		"no TLS":                      {Addresses: []string{"localhost:9443"}},
		"registered without watching": {Register: &signer.Registration{}, Addresses: []string{"localhost:9443"}},
	} {
		if c, err := signer.New(o); err == nil {
			c.Close()
			t.Errorf("%s: no error", name)
		}
	}
}

// Message signs and verifies with go-msgauth.
func TestMessage(t *testing.T) {
	d := newDkimd(t)
	d.rotate(t, spamtrap, "rsa1", "ed1")
	c := d.client(t, signer.Options{})
	var message bytes.Buffer
	message.WriteString("From: Joe <joe@spamtrap.dk>\r\nTo: Jane <jane@example.com>\r\nSubject: dinner\r\n\r\nTonight?\r\n")
	records := make(map[string]string)
	err := c.Sign(t.Context(), "spamtrap.dk", func(a signer.Answer) error {
		for _, k := range a.Keys {
			records[k.Selector+"._domainkey."+k.Domain] = record(k.Public())
			var signed bytes.Buffer
			if err := dkim.Sign(&signed, bytes.NewReader(message.Bytes()), &dkim.SignOptions{
				Domain: k.Domain, Selector: k.Selector, Signer: k,
				HeaderCanonicalization: dkim.CanonicalizationRelaxed, BodyCanonicalization: dkim.CanonicalizationRelaxed,
			}); err != nil {
				return err
			}
			message = signed
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	verifications, err := dkim.VerifyWithOptions(strings.NewReader(message.String()), &dkim.VerifyOptions{
		LookupTXT: func(name string) ([]string, error) { return []string{records[name]}, nil },
	})
	if err != nil || len(verifications) != 2 {
		t.Fatalf("%d signatures: %v", len(verifications), err)
	}
	for _, v := range verifications {
		if v.Err != nil {
			t.Error(v.Err)
		}
	}
}
