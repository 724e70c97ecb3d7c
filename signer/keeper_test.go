package signer_test

import (
	"context"
	"crypto/x509"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/signer"
)

// keeper says what another signer holds.
type keeper struct {
	mu    sync.Mutex
	holds map[string]time.Time
}

func (k *keeper) held(string) map[string]time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.holds
}

func (k *keeper) set(holds map[string]time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.holds = holds
}

func TestEverything(t *testing.T) {
	d := newDkimd(t)
	keys := d.rotate(t, spamtrap, "rsa1", "ed1")
	d.rotate(t, "brands/acme/domains/none.dk")
	standby := d.newKey(t, spamtrap, "ed2")
	d.set(func() { d.standby[spamtrap] = []*dkimv1.SigningKey{standby} }, spamtrap)
	k := &keeper{}
	c := d.client(t, signer.Options{Watch: true, Brand: "acme", Register: &signer.Registration{}, Holds: k.held, ReportInterval: time.Hour})

	e, err := c.Everything()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string][]string)
	for _, s := range append(e.Domains, e.Default) {
		if s.Hold != time.Hour {
			t.Errorf("%s: hold %s", s.Domain, s.Hold)
		}
		if want := s.Domain != "spamtrap.dk"; s.Fallback != want {
			t.Errorf("%s: fallback %t, want %t", s.Domain, s.Fallback, want)
		}
		for _, k := range s.Keys {
			got[s.Domain] = append(got[s.Domain], k.Selector)
		}
	}
	if diff := cmp.Diff(map[string][]string{"spamtrap.dk": {"rsa1", "ed1"}, "none.dk": {"default1"}, "": {"default1"}}, got); diff != "" {
		t.Errorf("what signs (-want +got):\n%s", diff)
	}
	if len(e.Standby) != 1 || e.Standby[0].Name != standby.GetKey() || e.Standby[0].Owner() != spamtrap {
		t.Errorf("standby keys %+v", e.Standby)
	}
	if !c.Confirmed().Equal(e.Confirmed) || time.Since(e.Confirmed) > time.Minute {
		t.Errorf("confirmed %s, %s", c.Confirmed(), e.Confirmed)
	}

	// Keys are handed out, each for itself.
	private, err := c.PrivateKeys(t.Context(), keys[0].GetKey(), "brands/acme/domains/spamtrap.dk/keys/none", standby.GetKey())
	if err != nil || len(private) != 3 {
		t.Fatalf("%d keys: %v", len(private), err)
	}
	for i, want := range []error{nil, signer.ErrNotSigning, nil} {
		if !errors.Is(private[i].Err, want) {
			t.Errorf("key %d: %v, want %v", i, private[i].Err, want)
		}
		if _, err := x509.ParsePKCS8PrivateKey(private[i].PKCS8); (err == nil) != (want == nil) {
			t.Errorf("key %d: %v", i, err)
		}
	}

	// A change is told of.
	d.rotate(t, spamtrap, "rsa2")
	select {
	case <-e.Changed:
	case <-time.After(30 * time.Second):
		t.Fatal("nobody tells of the change")
	}

	d.setDown(true)
	if _, err := c.PrivateKeys(t.Context(), keys[0].GetKey()); !errors.Is(err, signer.ErrUnavailable) {
		t.Errorf("while dkimd is away: %v", err)
	}
	if _, err := c.Everything(); err != nil {
		t.Errorf("what is known is not told while dkimd is away: %v", err)
	}
}

// One who signs with files is believed when it says that it holds a key, and not
// when the watch names one.
func TestHolds(t *testing.T) {
	d := newDkimd(t)
	keys := d.rotate(t, spamtrap, "ed1", "ed2")
	k := &keeper{}
	c := d.client(t, signer.Options{Watch: true, Register: &signer.Registration{}, Holds: k.held, ReportInterval: time.Hour})
	reports := func() (held []map[string]bool) {
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, u := range d.uses {
			for _, domain := range u.GetDomains() {
				names := make(map[string]bool)
				for _, k := range domain.GetKeys() {
					names[k.GetKey()] = k.GetLastUseTime() != nil
				}
				held = append(held, names)
			}
		}
		return held
	}
	await(t, "the first report", func() bool { return d.count("ReportUse") > 0 })
	if r := reports(); len(r) > 0 {
		t.Errorf("reported %v before anything is held", r)
	}
	k.set(map[string]time.Time{keys[0].GetKey(): time.Now(), keys[1].GetKey(): {}})
	c.Held(spamtrap)
	await(t, "a report", func() bool { return len(reports()) == 1 })
	if diff := cmp.Diff(map[string]bool{keys[0].GetKey(): true, keys[1].GetKey(): false}, reports()[0]); diff != "" {
		t.Errorf("last use by key (-want +got):\n%s", diff)
	}
	k.set(nil)
	c.Held(spamtrap)
	await(t, "a report", func() bool { return len(reports()) == 2 })
	if got := reports()[1]; len(got) > 0 {
		t.Errorf("reported %v when nothing is held", got)
	}
}

func TestHoldsNeedsRegister(t *testing.T) {
	for name, o := range map[string]signer.Options{
		"not registered": {Watch: true},
		"local":          {Watch: true, Local: true, Register: &signer.Registration{}},
	} {
		o.Addresses, o.TLS, o.Holds = []string{"localhost:1"}, nil, func(string) map[string]time.Time { return nil }
		if _, err := signer.New(o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	d := newDkimd(t)
	c := d.client(t, signer.Options{})
	if _, err := c.Everything(); err == nil || errors.Is(err, signer.ErrUnavailable) {
		t.Errorf("without a watch: %v", err)
	}
	if _, err := c.PrivateKeys(context.Background(), "x"); err == nil {
		t.Error("keys without being registered")
	}
}
