package controller_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/mint"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
)

const lag = 30 * day

func (w *world) setDisclosure(t *testing.T, d keystore.Disclosure) {
	t.Helper()
	b, err := w.store.Brand(t.Context(), "acme")
	if err != nil {
		t.Fatal(err)
	}
	b.Disclosure = d
	if _, err := w.store.UpdateBrand(t.Context(), b); err != nil {
		t.Fatal(err)
	}
}

// apply takes steps with the keys of a domain.
func (w *world) apply(t *testing.T, name dnsname.Domain, steps ...rotation.Step) {
	t.Helper()
	change, err := w.mint.Change(t.Context(), w.domain(t, name), steps, mint.Options{Now: time.Now(), Actor: "test", TTL: 3600, Disclosure: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.store.Apply(t.Context(), change); err != nil {
		t.Fatal(err)
	}
}

// destroy makes the key of a selector one that is retained.
func (w *world) destroy(t *testing.T, name dnsname.Domain, selector dnsname.Selector) keystore.Key {
	t.Helper()
	d := w.domain(t, name)
	k := *d.KeyIn(selector)
	w.apply(t, name, rotation.Step{Kind: rotation.Revoke, KeyID: k.ID, Selector: selector, Reason: rotation.ReasonCompromised})
	w.apply(t, name, rotation.Step{Kind: rotation.Refill, KeyID: k.ID, Selector: selector, Algorithm: k.Algorithm, Reason: rotation.ReasonGapOver})
	if n := len(w.retained(t)); n != 1 {
		t.Fatalf("%d keys are retained", n)
	}
	return k
}

func (w *world) retained(t *testing.T) []keystore.Retained {
	t.Helper()
	retained, _, err := w.store.RetainedKeys(t.Context(), "", keystore.Retained{}, 1000)
	if err != nil {
		t.Fatal(err)
	}
	return retained
}

func (w *world) disclosed(t *testing.T, name dnsname.Domain) []keystore.Disclosed {
	t.Helper()
	keys, err := w.store.Disclosed(t.Context(), "acme", name)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// checkDisclosed says whether what is disclosed is the private half of k.
func checkDisclosed(t *testing.T, k keystore.Key, d keystore.Disclosed) {
	t.Helper()
	private, err := x509.ParsePKCS8PrivateKey(d.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	public := keypair.PublicKey{Algorithm: keypair.Ed25519, Octets: private.(ed25519.PrivateKey).Public().(ed25519.PublicKey)}
	if mint.Fingerprint(public) != k.Fingerprint || d.KeyID != k.ID || d.Selector != k.Selector {
		t.Errorf("disclosed key %s of %s is not key %s of %s", d.KeyID, d.Selector, k.ID, k.Selector)
	}
}

// A key that has lived its life is disclosed once the lag has passed, and says
// when it signed.
func TestDisclosure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.setPolicy(t, rotation.Override{JitterPercent: new(int)})
		w.setDisclosure(t, keystore.Disclosure{Enabled: true, Lag: lag})
		domain := w.provision(t, "spamtrap.dk")
		first := *domain.KeyIn("selector1")
		stop := w.start(t)
		defer stop()
		began := time.Now()
		for len(w.retained(t)) == 0 {
			after(poll)
			if time.Since(began) > 120*day {
				t.Fatal("no key was retained")
			}
		}
		r := w.retained(t)[0]
		after(time.Until(r.DestroyTime.Add(lag)) - time.Second)
		if d := w.disclosed(t, "spamtrap.dk"); len(d) != 0 {
			t.Fatalf("%d keys are disclosed before the lag is over", len(d))
		}
		after(time.Hour + time.Minute)
		d := w.disclosed(t, "spamtrap.dk")
		if len(d) != 1 || len(w.retained(t)) != 0 {
			t.Fatalf("%d keys are disclosed and %d retained, want one and none", len(d), len(w.retained(t)))
		}
		checkDisclosed(t, first, d[0])
		// It signed from the second day until the next switch, and drained and
		// rested for two weeks.
		if signed := d[0].EndTime.Sub(d[0].ActivateTime); signed < 89*day || signed > 91*day ||
			d[0].DestroyTime.Sub(d[0].EndTime) < 14*day || !d[0].DestroyTime.Equal(r.DestroyTime) || d[0].DiscloseTime.Before(d[0].DestroyTime.Add(lag)) {
			t.Errorf("it signed from %s until %s, was destroyed at %s and disclosed at %s", d[0].ActivateTime, d[0].EndTime, d[0].DestroyTime, d[0].DiscloseTime)
		}
	})
}

// A brand that says nothing has nothing retained.
func TestDisclosureIsOffByDefault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.provision(t, "spamtrap.dk")
		stop := w.start(t)
		defer stop()
		for range 30 {
			after(5 * day)
			if n := len(w.retained(t)); n != 0 {
				t.Fatalf("%d keys are retained", n)
			}
		}
		if got := history(t, w, "spamtrap.dk"); !strings.Contains(got, "REFILL selector1 GAP_OVER") {
			t.Errorf("no key was destroyed:\n%s", got)
		}
	})
}

// What may not be disclosed is not, however long the lag is over.
func TestDisclosureInterlocks(t *testing.T) {
	on := keystore.Disclosure{Enabled: true, Lag: lag}
	// prevent is what happens to key k before its lag is over; mend, if it can be
	// mended, undoes it.
	tests := map[string]struct {
		prevent func(t *testing.T, w *world, k keystore.Key)
		mend    func(t *testing.T, w *world, k keystore.Key)
	}{
		"nothing": {nil, func(*testing.T, *world, keystore.Key) {}},
		"switched off": {func(t *testing.T, w *world, _ keystore.Key) {
			w.setDisclosure(t, keystore.Disclosure{Lag: lag})
			if n := len(w.retained(t)); n != 0 {
				t.Errorf("%d keys are still retained", n)
			}
			w.setDisclosure(t, on)
		}, nil},
		"switched off, unknown to who retained it": {func(t *testing.T, w *world, _ keystore.Key) {
			kept, err := w.fake.Get(t.Context(), schema.RetainedKey("acme", "spamtrap.dk", w.retained(t)[0].KeyID))
			if err != nil {
				t.Fatal(err)
			}
			w.setDisclosure(t, keystore.Disclosure{})
			if _, err := w.fake.Put(t.Context(), string(kept.Kvs[0].Key), string(kept.Kvs[0].Value)); err != nil {
				t.Fatal(err)
			}
			after(2 * time.Hour)
			if n := len(w.retained(t)); n != 0 {
				t.Errorf("%d keys are still retained", n)
			}
			w.setDisclosure(t, on)
		}, nil},
		"longer lag": {func(t *testing.T, w *world, _ keystore.Key) {
			w.setDisclosure(t, keystore.Disclosure{Enabled: true, Lag: 2 * lag})
		}, func(*testing.T, *world, keystore.Key) { after(lag) }},
		"public half stands elsewhere": {func(t *testing.T, w *world, k keystore.Key) {
			if _, err := w.fake.Put(t.Context(), schema.FingerprintKey(zoneName, k.Fingerprint[:]), "selector9.other.example"); err != nil {
				t.Fatal(err)
			}
		}, func(t *testing.T, w *world, k keystore.Key) {
			if _, err := w.fake.Delete(t.Context(), schema.FingerprintKey(zoneName, k.Fingerprint[:])); err != nil {
				t.Fatal(err)
			}
		}},
		"domain deleted": {func(t *testing.T, w *world, _ keystore.Key) {
			if _, err := w.store.DeleteDomain(t.Context(), w.domain(t, "spamtrap.dk"), time.Now()); err != nil {
				t.Fatal(err)
			}
		}, nil},
		"private half of another key": {func(t *testing.T, w *world, k keystore.Key) {
			r := w.retained(t)[0]
			other, err := keypair.Generate(keypair.Ed25519)
			if err != nil {
				t.Fatal(err)
			}
			sealed, err := plainSealer{}.Seal(t.Context(), "acme", "brands/acme/domains/spamtrap.dk/keys/"+k.ID, other.Marshal())
			if err != nil {
				t.Fatal(err)
			}
			w.replace(t, schema.RetainedKey("acme", "spamtrap.dk", k.ID), r.Sealed, sealed)
		}, nil},
		"sealed for another key": {func(t *testing.T, w *world, k keystore.Key) {
			w.replace(t, schema.RetainedKey("acme", "spamtrap.dk", k.ID), []byte("keys/"+k.ID), []byte("keys/"+strings.Repeat("z", len(k.ID))))
		}, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.setPolicy(t, rotation.Override{Paused: new(true)})
				w.setDisclosure(t, on)
				w.provision(t, "spamtrap.dk")
				k := w.destroy(t, "spamtrap.dk", "selector1")
				stop := w.start(t)
				defer stop()
				after(day)
				if tt.prevent != nil {
					tt.prevent(t, w, k)
					after(lag + time.Hour)
					if n := len(w.disclosed(t, "spamtrap.dk")); n != 0 {
						t.Fatalf("%d keys are disclosed", n)
					}
				}
				if tt.mend == nil {
					return
				}
				tt.mend(t, w, k)
				after(lag)
				d := w.disclosed(t, "spamtrap.dk")
				if len(d) != 1 {
					t.Fatalf("%d keys are disclosed, want one", len(d))
				}
				// This one was revoked as compromised, and never signed.
				checkDisclosed(t, k, d[0])
				if !d[0].ActivateTime.IsZero() || !d[0].EndTime.IsZero() {
					t.Errorf("it signed from %s until %s", d[0].ActivateTime, d[0].EndTime)
				}
			})
		})
	}
}

// replace changes octets of a stored value to as many others.
func (w *world) replace(t *testing.T, key string, from, to []byte) {
	t.Helper()
	resp, err := w.fake.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	value := bytes.Replace(resp.Kvs[0].Value, from, to, 1)
	if bytes.Equal(value, resp.Kvs[0].Value) || len(from) != len(to) {
		t.Fatalf("%q cannot be replaced", from)
	}
	if _, err := w.fake.Put(t.Context(), key, string(value)); err != nil {
		t.Fatal(err)
	}
}

// Who lost the lead discloses nothing, and no private key is in a log.
func TestDisclosureDeposed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.setPolicy(t, rotation.Override{Paused: new(true)})
		w.setDisclosure(t, keystore.Disclosure{Enabled: true, Lag: lag})
		w.provision(t, "spamtrap.dk")
		w.destroy(t, "spamtrap.dk", "selector1")
		after(lag)
		opener := &hookedOpener{hook: sync.OnceFunc(func() {
			w.terms.mu.Lock()
			defer w.terms.mu.Unlock()
			if _, err := w.fake.Delete(t.Context(), w.terms.last.fence.Key); err != nil {
				t.Error(err)
			}
			<-w.terms.hold // nobody wins the next election
		})}
		var log bytes.Buffer
		stop := w.startWith(t, opener, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
		after(2 * time.Hour)
		if n := len(w.disclosed(t, "spamtrap.dk")); n != 0 || opener.plaintext == nil {
			t.Errorf("%d keys were disclosed by a leader that was deposed; it opened %d octets", n, len(opener.plaintext))
		}
		w.terms.hold <- struct{}{}
		after(2 * time.Hour)
		stop()
		d := w.disclosed(t, "spamtrap.dk")
		if len(d) != 1 {
			t.Fatalf("%d keys are disclosed, want one", len(d))
		}
		for _, secret := range [][]byte{opener.plaintext[1:], d[0].PrivateKey} {
			for _, form := range keyForms(secret) {
				if strings.Contains(log.String(), form) {
					t.Errorf("a private key is in the log:\n%s", &log)
				}
			}
		}
		if !strings.Contains(log.String(), `msg="private key disclosed" brand=acme domain=spamtrap.dk selector=selector1 key=`) {
			t.Errorf("the log says nothing of the disclosure:\n%s", &log)
		}
	})
}

// hookedOpener does something at each key.
type hookedOpener struct {
	plainSealer

	hook      func()
	plaintext []byte // of the last one
}

func (o *hookedOpener) Open(ctx context.Context, brand, name string, sealed []byte) ([]byte, error) {
	o.hook()
	plaintext, err := o.plainSealer.Open(ctx, brand, name, sealed)
	o.plaintext = bytes.Clone(plaintext)
	return plaintext, err
}

// keyForms are octets as they are, and as a log may show them.
func keyForms(b []byte) []string {
	return []string{string(b), hex.EncodeToString(b), base64.StdEncoding.EncodeToString(b), strings.Trim(fmt.Sprint(b), "[]")}
}
