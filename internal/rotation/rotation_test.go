package rotation_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/rotation"
)

var (
	now    = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	states = []rotation.State{rotation.Prepared, rotation.Active, rotation.Retiring, rotation.Revoked, rotation.Destroyed}
)

func TestStates(t *testing.T) {
	// Stored: neither numbers nor order may change.
	want := map[rotation.State]string{1: "PREPARED", 2: "ACTIVE", 3: "RETIRING", 4: "REVOKED", 5: "DESTROYED"}
	for s, name := range want {
		if !s.Valid() || s.String() != name {
			t.Errorf("state %d: %q, valid %t; want %q", uint8(s), s, s.Valid(), name)
		}
	}
	for _, s := range []rotation.State{0, 6, 255} {
		if s.Valid() || s.String() != fmt.Sprintf("State(%d)", uint8(s)) {
			t.Errorf("state %d: %q, valid %t", uint8(s), s, s.Valid())
		}
	}
	for c, valid := range map[rotation.Custody]bool{0: false, rotation.Service: true, rotation.Signer: true, rotation.PublicOnly: true, 4: false} {
		if c.Valid() != valid {
			t.Errorf("custody %d: valid %t, want %t", c, c.Valid(), valid)
		}
	}
	if rotation.Service != 1 || rotation.Signer != 2 || rotation.PublicOnly != 3 {
		t.Error("the stored numbers of custodies have changed")
	}
}

func TestStep(t *testing.T) {
	legal := map[[2]rotation.State]bool{
		{rotation.Prepared, rotation.Active}:   true,
		{rotation.Prepared, rotation.Revoked}:  true,
		{rotation.Active, rotation.Retiring}:   true,
		{rotation.Active, rotation.Revoked}:    true,
		{rotation.Retiring, rotation.Revoked}:  true,
		{rotation.Revoked, rotation.Destroyed}: true,
	}
	all := append([]rotation.State{0, 6, 255}, states...)
	for _, from := range all {
		for _, to := range all {
			before := rotation.Key{ID: "k", State: from, PrepareTime: now.Add(-time.Hour)}
			k := before
			err := k.Step(to, now)
			if !legal[[2]rotation.State{from, to}] {
				var refused *rotation.TransitionError
				if !errors.As(err, &refused) || *refused != (rotation.TransitionError{KeyID: "k", From: from, To: to}) {
					t.Errorf("%v to %v: error %v, want a TransitionError", from, to, err)
				}
				if k != before {
					t.Errorf("%v to %v: refused, and yet the key is %+v", from, to, k)
				}
				continue
			}
			want := before
			want.State = to
			switch to {
			case rotation.Active:
				want.ActivateTime = now
			case rotation.Retiring:
				want.RetireTime = now
			case rotation.Revoked:
				want.RevokeTime = now
			}
			if err != nil || k != want {
				t.Errorf("%v to %v: %+v, %v; want %+v", from, to, k, err, want)
			}
		}
	}
}

// key is a key of the service in a selector of its id.
func key(id string, a keypair.Algorithm, s rotation.State) rotation.Key {
	return rotation.Key{ID: id, Selector: dnsname.Selector("sel-" + id), Algorithm: a, State: s, Custody: rotation.Service, PrepareTime: now}
}

func elsewhere(k rotation.Key) rotation.Key {
	k.Custody = rotation.PublicOnly
	return k
}

func preparedAt(k rotation.Key, at time.Time) rotation.Key {
	k.PrepareTime = at
	return k
}

func TestStart(t *testing.T) {
	fresh := []rotation.Key{key("a", keypair.RSA2048, 0), key("b", keypair.RSA2048, 0), key("c", keypair.Ed25519, 0), key("d", keypair.Ed25519, 0)}
	tests := []struct {
		name    string
		present []rotation.Key
		want    []rotation.State
	}{
		{"nothing present", nil, []rotation.State{rotation.Active, rotation.Prepared, rotation.Active, rotation.Prepared}},
		{"one algorithm active", []rotation.Key{key("x", keypair.RSA2048, rotation.Active)},
			[]rotation.State{rotation.Prepared, rotation.Prepared, rotation.Active, rotation.Prepared}},
		{"only others' keys active", []rotation.Key{elsewhere(key("x", keypair.RSA2048, rotation.Active))},
			[]rotation.State{rotation.Active, rotation.Prepared, rotation.Active, rotation.Prepared}},
		{"no longer active", []rotation.Key{key("x", keypair.RSA2048, rotation.Retiring), key("y", keypair.Ed25519, rotation.Revoked)},
			[]rotation.State{rotation.Active, rotation.Prepared, rotation.Active, rotation.Prepared}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := rotation.Start(fresh, tt.present, now)
			for i, k := range got {
				want := fresh[i]
				want.State, want.PrepareTime = tt.want[i], now
				if want.State == rotation.Active {
					want.ActivateTime = now
				}
				if k != want {
					t.Errorf("key %d: %+v, want %+v", i, k, want)
				}
			}
			if fresh[0].State != 0 {
				t.Error("Start changed what it was given")
			}
		})
	}
}

func TestRotate(t *testing.T) {
	type plan = []rotation.Transition
	tests := []struct {
		name string
		keys []rotation.Key
		want plan
	}{
		{
			"standby takes over",
			[]rotation.Key{key("a", keypair.RSA2048, rotation.Active), key("b", keypair.RSA2048, rotation.Prepared)},
			plan{{"b", rotation.Active}, {"a", rotation.Retiring}},
		},
		{
			"each algorithm for itself",
			[]rotation.Key{
				key("a", keypair.RSA2048, rotation.Active), key("c", keypair.Ed25519, rotation.Prepared),
				key("b", keypair.RSA2048, rotation.Prepared), key("d", keypair.Ed25519, rotation.Active),
			},
			plan{{"b", rotation.Active}, {"a", rotation.Retiring}, {"c", rotation.Active}, {"d", rotation.Retiring}},
		},
		{
			"the oldest of two standbys",
			[]rotation.Key{
				key("a", keypair.RSA2048, rotation.Active), key("b", keypair.RSA2048, rotation.Prepared),
				preparedAt(key("c", keypair.RSA2048, rotation.Prepared), now.Add(-time.Hour)),
			},
			plan{{"c", rotation.Active}, {"a", rotation.Retiring}},
		},
		{
			"the first of two standbys of one time",
			[]rotation.Key{key("b", keypair.RSA2048, rotation.Prepared), key("c", keypair.RSA2048, rotation.Prepared), key("a", keypair.RSA2048, rotation.Active)},
			plan{{"b", rotation.Active}, {"a", rotation.Retiring}},
		},
		{
			"nothing was active",
			[]rotation.Key{key("a", keypair.RSA2048, rotation.Revoked), key("b", keypair.RSA2048, rotation.Prepared)},
			plan{{"b", rotation.Active}},
		},
		{
			"others' keys and destroyed ones take no part",
			[]rotation.Key{
				elsewhere(key("x", keypair.RSA2048, rotation.Active)), elsewhere(key("y", keypair.Ed25519, rotation.Active)),
				key("z", keypair.RSA4096, rotation.Destroyed),
				key("a", keypair.RSA2048, rotation.Active), key("b", keypair.RSA2048, rotation.Prepared),
			},
			plan{{"b", rotation.Active}, {"a", rotation.Retiring}},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := rotation.Rotate(tt.keys)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRotateRefuses(t *testing.T) {
	t.Run("no standby", func(t *testing.T) {
		held := []rotation.Key{key("c", keypair.Ed25519, rotation.Active), key("d", keypair.Ed25519, rotation.Retiring)}
		keys := append([]rotation.Key{
			key("a", keypair.RSA2048, rotation.Active), key("b", keypair.RSA2048, rotation.Prepared),
			elsewhere(key("x", keypair.Ed25519, rotation.Prepared)), key("y", keypair.Ed25519, rotation.Destroyed),
		}, held...)
		got, err := rotation.Rotate(keys)
		var refused *rotation.NoStandbyError
		if !errors.As(err, &refused) || got != nil {
			t.Fatalf("got %v, %v; want nothing and a NoStandbyError", got, err)
		}
		if diff := cmp.Diff(&rotation.NoStandbyError{Algorithm: keypair.Ed25519, Held: held}, refused); diff != "" {
			t.Errorf("error (-want +got):\n%s", diff)
		}
		if want := "no standby key of algorithm ed25519: sel-c is ACTIVE, sel-d is RETIRING"; err.Error() != want {
			t.Errorf("message %q, want %q", err, want)
		}
	})
	for name, keys := range map[string][]rotation.Key{
		"no keys":           nil,
		"only others' keys": {elsewhere(key("a", keypair.RSA2048, rotation.Active)), elsewhere(key("b", keypair.RSA2048, rotation.Prepared))},
		"only destroyed":    {key("a", keypair.RSA2048, rotation.Destroyed)},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := rotation.Rotate(keys); !errors.Is(err, rotation.ErrNothingToRotate) || got != nil {
				t.Errorf("got %v, %v; want nothing and %v", got, err, rotation.ErrNothingToRotate)
			}
		})
	}
}

// Whatever keys are started, rotated and moved on: of each algorithm at most one
// key of the service's is ACTIVE, a rotation leaves others' keys alone and
// happens as a whole, and every key goes through its states in order.
func TestLife(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var keys []rotation.Key
		clock := now
		index := func(id string) int {
			for i := range keys {
				if keys[i].ID == id {
					return i
				}
			}
			t.Fatalf("no key %s", id)
			return -1
		}
		t.Repeat(map[string]func(*rapid.T){
			"start": func(t *rapid.T) {
				var fresh []rotation.Key
				for range rapid.IntRange(1, 4).Draw(t, "keys") {
					a := rapid.SampledFrom([]keypair.Algorithm{keypair.RSA2048, keypair.Ed25519}).Draw(t, "algorithm")
					fresh = append(fresh, key(fmt.Sprint(len(keys)+len(fresh)), a, 0))
				}
				keys = append(keys, rotation.Start(fresh, keys, clock)...)
			},
			"import": func(t *rapid.T) {
				a := rapid.SampledFrom([]keypair.Algorithm{keypair.RSA2048, keypair.Ed25519}).Draw(t, "algorithm")
				keys = append(keys, elsewhere(key(fmt.Sprint(len(keys)), a, rapid.SampledFrom(states).Draw(t, "state"))))
			},
			"rotate": func(t *rapid.T) {
				plan, err := rotation.Rotate(keys)
				var none *rotation.NoStandbyError
				if err != nil {
					if plan != nil || !errors.As(err, &none) && !errors.Is(err, rotation.ErrNothingToRotate) {
						t.Fatalf("plan %v, error %v", plan, err)
					}
					return
				}
				activated := make(map[keypair.Algorithm]int)
				for _, step := range plan {
					k := &keys[index(step.KeyID)]
					if k.Custody == rotation.PublicOnly {
						t.Fatalf("the rotation moves key %s, which is another's", k.ID)
					}
					if err := k.Step(step.To, clock); err != nil {
						t.Fatalf("the plan holds an illegal step: %v", err)
					}
					if step.To == rotation.Active {
						activated[k.Algorithm]++
					}
				}
				for _, k := range keys {
					if k.Custody != rotation.PublicOnly && k.State != rotation.Destroyed && activated[k.Algorithm] != 1 {
						t.Fatalf("%d keys of %s were activated, want one of each algorithm", activated[k.Algorithm], k.Algorithm)
					}
				}
			},
			"move on": func(t *rapid.T) {
				if len(keys) == 0 {
					t.Skip("no keys")
				}
				k := &keys[rapid.IntRange(0, len(keys)-1).Draw(t, "key")]
				to := rapid.SampledFrom(states).Draw(t, "to")
				if to == rotation.Active {
					t.Skip("only a rotation activates")
				}
				before := *k
				if err := k.Step(to, clock); err != nil && *k != before {
					t.Fatalf("a refused step changed %+v to %+v", before, *k)
				} else if err == nil && k.State <= before.State {
					t.Fatalf("%v went back to %v", before.State, k.State)
				}
			},
			"": func(t *rapid.T) {
				clock = clock.Add(time.Minute)
				active := make(map[keypair.Algorithm]string)
				for _, k := range keys {
					if k.Custody == rotation.PublicOnly || k.State != rotation.Active {
						continue
					}
					if other, ok := active[k.Algorithm]; ok {
						t.Fatalf("%s and %s of %s are both ACTIVE", other, k.ID, k.Algorithm)
					}
					active[k.Algorithm] = k.ID
				}
			},
		})
	})
}
