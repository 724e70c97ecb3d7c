package mint_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/mint"
	"github.com/dkimzone/dkimzone/internal/rotation"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

type source struct {
	fail error
	made int
}

func (s *source) Get(_ context.Context, a keypair.Algorithm) (*keypair.KeyPair, error) {
	s.made++
	if s.fail != nil {
		return nil, s.fail
	}
	return keypair.Generate(a)
}

type sealer struct{ fail error }

func (s sealer) Seal(_ context.Context, brand, name string, _ []byte) ([]byte, error) {
	return []byte(brand + " " + name), s.fail
}

func revoked() keystore.Domain {
	return keystore.Domain{
		Brand: "acme", Name: "spamtrap.dk", Zone: "keys.example.net", HostLabel: "spamtrap-dk", Revision: 7,
		Selectors: []keystore.Selector{{Selector: "s1", Algorithm: keypair.Ed25519}, {Selector: "s2", Algorithm: keypair.Ed25519}},
		Keys: []keystore.Key{
			{Key: rotation.Key{ID: "old", Selector: "s1", Algorithm: keypair.Ed25519, State: rotation.Revoked, Custody: rotation.Service, TTL: 60}, Testing: true},
			{Key: rotation.Key{ID: "on", Selector: "s2", Algorithm: keypair.Ed25519, State: rotation.Active, Custody: rotation.Service, TTL: 900}},
		},
	}
}

func TestRefill(t *testing.T) {
	d := revoked()
	refill := []rotation.Step{{Kind: rotation.Refill, KeyID: "old", Selector: "s1", Algorithm: keypair.Ed25519, Reason: rotation.ReasonGapOver}}
	pairs := make(mint.Pairs)
	keys := &source{}
	m := mint.New(keys, sealer{})
	c, err := m.Change(t.Context(), d, refill, mint.Options{Now: now, Actor: "controller", TTL: 3600, Disclosure: true, Pairs: pairs})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(revoked(), d, cmp.AllowUnexported(keystore.Domain{})); diff != "" {
		t.Errorf("the domain that was given has changed (-before +after):\n%s", diff)
	}
	if len(c.Publish) != 1 || c.Domain.Key("old") != nil || len(c.Domain.Keys) != 2 {
		t.Fatalf("change %+v", c)
	}
	pub := c.Publish[0]
	if !pub.New || pub.Replaces == nil || pub.Replaces.ID != "old" || !pub.Retain || pub.Record.TTL != 60 || !pub.Record.Testing || len(pub.Record.PublicKey) != 32 {
		t.Errorf("publication %+v", pub)
	}
	if k := c.Domain.KeyIn("s1"); k == nil || k.ID != pub.Key.ID || k.State != rotation.Prepared || !k.PrepareTime.Equal(now) || k.TTL != 60 || !k.Testing {
		t.Errorf("the new key is %+v", k)
	}
	if got, want := string(pub.Sealed), "acme brands/acme/domains/spamtrap.dk/keys/"+pub.Key.ID; got != want {
		t.Errorf("sealed for %q, want %q", got, want)
	}
	want := []keystore.Event{{
		Time: now, Actor: "controller", Action: "REFILL", KeyID: pub.Key.ID, Selector: "s1", Algorithm: keypair.Ed25519,
		To: rotation.Prepared, Reason: rotation.ReasonGapOver,
	}}
	if diff := cmp.Diff(want, c.Events); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}

	// Computed anew, the change is of the same key pair.
	again, err := m.Change(t.Context(), d, refill, mint.Options{Now: now, Pairs: pairs})
	if err != nil {
		t.Fatal(err)
	}
	if keys.made != 1 || again.Publish[0].Key.Fingerprint != pub.Key.Fingerprint || again.Publish[0].Retain {
		t.Errorf("%d pairs were made", keys.made)
	}
}

// A key that was imported may verify mail under names that are not ours: it is never kept to be disclosed.
func TestRefillAfterImported(t *testing.T) {
	d := revoked()
	d.Keys[0].Imported = true
	refill := []rotation.Step{{Kind: rotation.Refill, KeyID: "old", Selector: "s1", Algorithm: keypair.Ed25519, Reason: rotation.ReasonGapOver}}
	c, err := mint.New(&source{}, sealer{}).Change(t.Context(), d, refill, mint.Options{Now: now, Disclosure: true})
	if err != nil {
		t.Fatal(err)
	}
	if pub := c.Publish[0]; pub.Retain || pub.Replaces == nil || pub.Key.Imported {
		t.Errorf("publication %+v", pub)
	}
}

func TestRevoke(t *testing.T) {
	steps := []rotation.Step{{Kind: rotation.Revoke, KeyID: "on", Selector: "s2", Algorithm: keypair.Ed25519, Reason: rotation.ReasonCompromised}}
	c, err := mint.New(&source{}, sealer{}).Change(t.Context(), revoked(), steps, mint.Options{Now: now, Actor: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Publish) != 1 || c.Publish[0].New || !c.Publish[0].Record.Revoked() || c.Publish[0].Record.TTL != 900 {
		t.Errorf("published %+v, want an empty p= with the key's TTL", c.Publish)
	}
	if k := c.Domain.Key("on"); k.State != rotation.Revoked || !k.Compromised || !k.RevokeTime.Equal(now) {
		t.Errorf("key %+v", k)
	}
	if e := c.Events[0]; e.From != rotation.Active || e.To != rotation.Revoked || e.Actor != "alice" {
		t.Errorf("event %+v", e)
	}
}

func TestFailures(t *testing.T) {
	noKeys, noSeal := errors.New("no entropy"), errors.New("no data key")
	fill := []rotation.Step{{Kind: rotation.Refill, Selector: "s3", Algorithm: keypair.Ed25519}}
	tests := []struct {
		name   string
		source *source
		sealer sealer
		steps  []rotation.Step
		want   error  // or
		text   string // part of the message
	}{
		{"no key", &source{fail: noKeys}, sealer{}, fill, noKeys, "ed25519"},
		{"not sealed", &source{}, sealer{noSeal}, fill, noSeal, "brands/acme/domains/spamtrap.dk/keys/"},
		{"no such key", &source{}, sealer{}, []rotation.Step{{Kind: rotation.Revoke, KeyID: "gone"}}, nil, "there is no key gone"},
		{"state does not allow it", &source{}, sealer{}, []rotation.Step{{Kind: rotation.Activate, KeyID: "old"}}, nil, "REVOKED"},
		{"in the place of a key that signs", &source{}, sealer{}, []rotation.Step{{Kind: rotation.Refill, KeyID: "on", Selector: "s2", Algorithm: keypair.Ed25519}}, nil, "ACTIVE"},
		{"in the place of no key", &source{}, sealer{}, []rotation.Step{{Kind: rotation.Refill, KeyID: "gone", Selector: "s2", Algorithm: keypair.Ed25519}}, nil, "there is no key gone"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := mint.New(tt.source, tt.sealer).Change(t.Context(), revoked(), tt.steps, mint.Options{Now: now})
			if err == nil || (tt.want != nil && !errors.Is(err, tt.want)) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got error %v, want %v with %q", err, tt.want, tt.text)
			}
			if c.Publish != nil || c.Domain.Keys != nil {
				t.Errorf("a change came with the error: %+v", c)
			}
		})
	}
}
