package rotation_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

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
