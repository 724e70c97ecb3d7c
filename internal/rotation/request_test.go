package rotation_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/rotation"
)

func TestRevokeCompromised(t *testing.T) {
	ready := func() *bench {
		return newBench(2).holds(rotation.Active, rotation.Prepared).see(rotation.Proven).after(2 * day)
	}
	for _, tt := range []struct {
		name string
		b    *bench
		key  string
		want string
	}{
		{"active", ready(), "k1", "REVOKE k1 COMPROMISED, ACTIVATE k2 COMPROMISED"},
		{"in the middle of everything", with(ready(), func(b *bench) {
			b.p.Paused, b.p.Freezes = true, []rotation.Freeze{{now, now.Add(9 * day)}}
			b.e.Signers = []rotation.SignerView{{ID: "mx1", LeaseExpiry: at(999)}}
		}), "k1", "REVOKE k1 COMPROMISED, ACTIVATE k2 COMPROMISED"},
		{"active, standby not proven", ready().see(rotation.Contradicted, "alias s2"), "k1", "REVOKE k1 COMPROMISED"},
		{"active, standby too new", newBench(2).holds(rotation.Active, rotation.Prepared).see(rotation.Proven).after(day - 1), "k1", "REVOKE k1 COMPROMISED"},
		{"standby", ready(), "k2", "REVOKE k2 COMPROMISED"},
		{"retiring", newBench(2).holds(rotation.Retiring, rotation.Active), "k1", "REVOKE k1 COMPROMISED"},
		{"revoked", newBench(2).holds(rotation.Revoked, rotation.Active), "k1", ""},
		{"another's", with(ready(), func(b *bench) { b.d.Keys[0].Custody = rotation.PublicOnly }), "k1", "REVOKE k1 COMPROMISED"},
		{"to the one that is proven", newBench(3).holds(rotation.Active, rotation.Prepared, rotation.Prepared).
			see(rotation.Proven).after(2*day).see(rotation.Contradicted, "alias s2"), "k1", "REVOKE k1 COMPROMISED, ACTIVATE k3 COMPROMISED"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			steps, err := rotation.RevokeCompromised(tt.b.p, tt.b.d, tt.b.e, tt.key, tt.b.t)
			if got := show(steps); err != nil || got != tt.want {
				t.Fatalf("%q, %v; want %q", got, err, tt.want)
			}
			keys, err := apply(tt.b.d.Keys, steps, tt.b.t)
			if err != nil {
				t.Fatal(err)
			}
			for _, k := range keys {
				if k.ID == tt.key && (k.State != rotation.Revoked || k.Compromised != (tt.want != "")) {
					t.Errorf("afterwards the key is %+v", k)
				}
			}
		})
	}
	b := ready()
	b.d.Keys[0].State = rotation.Destroyed
	var unknown *rotation.UnknownKeyError
	if _, err := rotation.RevokeCompromised(b.p, b.d, b.e, "k9", b.t); !errors.As(err, &unknown) {
		t.Errorf("no such key: %v", err)
	}
	var refused *rotation.TransitionError
	if _, err := rotation.RevokeCompromised(b.p, b.d, b.e, "k1", b.t); !errors.As(err, &refused) {
		t.Errorf("destroyed key: %v", err)
	}
}

// After a compromise without a standby the group recovers as fast as the gates allow, pause or not.
func TestRecovery(t *testing.T) {
	b := newBench(2).holds(rotation.Active, rotation.Prepared).see(rotation.Proven).after(day / 2)
	b.p.Paused = true
	steps, err := rotation.RevokeCompromised(b.p, b.d, b.e, "k1", b.t)
	if err != nil || show(steps) != "REVOKE k1 COMPROMISED" {
		t.Fatal(show(steps), err)
	}
	if b.d.Keys, err = apply(b.d.Keys, steps, b.t); err != nil {
		t.Fatal(err)
	}
	b.want(t, "", "false PUBLISHED_RECENTLY", "false PUBLISHED_RECENTLY")
	b.after(day / 2).see(rotation.Proven)
	b.want(t, "ACTIVATE k2 FAILOVER", "false READY", "true READY")
}

func TestRequest(t *testing.T) {
	// s1, s2 of RSA and s3, s4 of Ed25519, all proven for two days.
	two := func() *bench {
		b := newBench(4)
		b.d.Selectors[2].Algorithm, b.d.Selectors[3].Algorithm = keypair.Ed25519, keypair.Ed25519
		return b.holds(rotation.Active, rotation.Prepared, rotation.Active, rotation.Prepared).see(rotation.Proven).after(2 * day).see(rotation.Proven)
	}
	for _, tt := range []struct {
		name, want string
		b          *bench
		reasons    []string
	}{
		{
			name: "both groups", b: two(),
			want: "RETIRE k1 REQUESTED, ACTIVATE k2 REQUESTED, RETIRE k3 REQUESTED, ACTIVATE k4 REQUESTED",
		},
		{name: "one gate", b: two().see(rotation.Contradicted, "alias s4"), reasons: []string{"ALIAS_MISSING", "EVIDENCE_OLD"}},
		{name: "no standby", b: newBench(1).holds(rotation.Active).see(rotation.Proven), reasons: []string{"NO_STANDBY"}},
		{name: "resting", b: newBench(2).holds(rotation.Active, rotation.Revoked).see(rotation.Proven), reasons: []string{"RESTING"}},
		{
			name: "all gates", reasons: []string{"NOT_SERVED", "ALIAS_MISSING", "SIGNER_LACKS_KEY", "PAUSED", "FROZEN", "EVIDENCE_OLD"},
			b: with(newBench(2).holds(rotation.Active, rotation.Prepared).see(rotation.Contradicted, "alias s2", "served k2"), func(b *bench) {
				b.p.Paused, b.p.Freezes = true, []rotation.Freeze{{now, now.Add(day)}}
				b.e.Signers = []rotation.SignerView{{ID: "mx1", LeaseExpiry: at(99)}}
			}),
		},
		{
			name: "signing key not proven", want: "RETIRE k1 FAILOVER, ACTIVATE k2 FAILOVER",
			b: newBench(2).holds(rotation.Active, rotation.Prepared).see(rotation.Proven).after(2*day).see(rotation.Proven).see(rotation.Contradicted, "alias s1"),
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			steps, err := rotation.Request(tt.b.p, tt.b.d, tt.b.e, tt.b.t)
			if got := show(steps); got != tt.want {
				t.Errorf("steps %q, want %q", got, tt.want)
			}
			var closed *rotation.GateError
			if (tt.reasons != nil) != errors.As(err, &closed) {
				t.Fatalf("error %v", err)
			}
			if closed == nil {
				return
			}
			var reasons []string
			for _, c := range closed.Conditions {
				reasons = append(reasons, c.Reason)
				if c.Message == "" || c.OK {
					t.Errorf("condition %+v", c)
				}
			}
			if diff := cmp.Diff(tt.reasons, reasons); diff != "" {
				t.Errorf("reasons (-want +got):\n%s", diff)
			}
		})
	}
	if _, err := rotation.Request(rotation.DefaultPolicy(), rotation.Domain{}, rotation.Evidence{}, now); !errors.Is(err, rotation.ErrNoGroups) {
		t.Errorf("without selectors: %v", err)
	}
}

func TestForecast(t *testing.T) {
	active := func(others ...rotation.State) *bench {
		return newBench(1 + len(others)).holds(rotation.Active).holds(others...).see(rotation.Proven)
	}
	paused := func(p *rotation.Policy) { p.Paused = true }
	frozen := func(p *rotation.Policy) { p.Freezes = []rotation.Freeze{{now.Add(89 * day), now.Add(95 * day)}} }
	rest := 7*day + 5*time.Minute // the drain
	for _, tt := range []struct {
		name    string
		b       *bench
		policy  func(*rotation.Policy)
		in      time.Duration // after the beginning; 0: never by itself
		blocked string
	}{
		{"in time", active(rotation.Prepared), nil, 90 * day, ""},
		{"overdue, evidence old", active(rotation.Prepared).after(99 * day), nil, 99 * day, ""},
		{"a freeze then", active(rotation.Prepared), frozen, 95 * day, ""},
		{"paused", active(rotation.Prepared), paused, 0, "PAUSED"},
		{"asked for, standby too new", with(active(rotation.Prepared), func(b *bench) { b.d.RotateRequested = b.t.Add(1) }), nil, day, ""},
		{"alias denied", active(rotation.Prepared).see(rotation.Contradicted, "alias s2"), nil, 0, "ALIAS_MISSING"},
		{"drains", with(active(rotation.Retiring), func(b *bench) { b.p.Interval = day }), nil, rest + 7*day + day, ""},
		{"drains, paused", active(rotation.Retiring), paused, 0, "PAUSED"},
		{"rests", with(active(rotation.Revoked), func(b *bench) { b.p.Interval = day }), nil, 8 * day, ""},
		{"rests long before", active(rotation.Revoked), nil, 90 * day, ""},
		{"single", active(), nil, 0, "NO_STANDBY"},
		{"first", newBench(2).holds(rotation.Prepared, rotation.Prepared).see(rotation.Proven), nil, day, ""},
		{"failover, paused", active(rotation.Prepared).see(rotation.Contradicted, "alias s1"), paused, day, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.policy != nil {
				tt.policy(&tt.b.p)
			}
			at, blocked := rotation.Forecast(tt.b.p, tt.b.d, tt.b.e, tt.b.t)
			want, reason := time.Time{}, ""
			if tt.in > 0 {
				want = now.Add(tt.in)
			}
			if len(blocked) > 0 {
				reason = blocked[0].Reason
			}
			if !at.Equal(want) || reason != tt.blocked {
				t.Errorf("%v (in %v), %q; want in %v, %q", at, at.Sub(now), reason, tt.in, tt.blocked)
			}
		})
	}
}

func TestAlgorithmChange(t *testing.T) {
	change := func(b *bench) *bench {
		for i := range b.d.Selectors {
			b.d.Selectors[i].Algorithm = keypair.RSA4096
		}
		return b
	}
	t.Run("two selectors", func(t *testing.T) {
		b := newBench(2).holds(rotation.Active, rotation.Prepared).see(rotation.Proven).after(2 * day).see(rotation.Proven)
		change(b)
		b.want(t, "REVOKE k2 ALGORITHM_CHANGED", "true SIGNING", "false ALGORITHM_CHANGED")
		b.do(t)
		b.after(7 * day)
		b.want(t, "REFILL k2 GAP_OVER", "true SIGNING", "false RESTING")
		b.do(t)
		b.see(rotation.Proven)
		b.want(t, "", "true SIGNING", "false PUBLISHED_RECENTLY")
		b.after(day).see(rotation.Proven)
		b.want(t, "RETIRE k1 ALGORITHM_CHANGED, ACTIVATE s2@9 ALGORITHM_CHANGED", "true SIGNING", "true READY")
		b.do(t)
		b.want(t, "", "true SIGNING", "true NOT_DUE")
	})
	// With three, a standby stays all the while.
	t.Run("three selectors", func(t *testing.T) {
		b := newBench(3).holds(rotation.Active, rotation.Prepared, rotation.Prepared).see(rotation.Proven).after(2 * day).see(rotation.Proven)
		change(b)
		var got []string
		for range 60 * 24 {
			b.see(rotation.Proven)
			for s := b.do(t); s != ""; s = b.do(t) {
				got = append(got, s)
			}
			standby := 0
			for _, k := range b.d.Keys {
				if k.State == rotation.Prepared {
					standby++
				}
			}
			if standby == 0 {
				t.Fatalf("no standby after %v", got)
			}
			b.after(time.Hour)
		}
		want := []string{
			"REVOKE k3 ALGORITHM_CHANGED", "REFILL k3 GAP_OVER", "RETIRE k1 ALGORITHM_CHANGED, ACTIVATE s3@9 ALGORITHM_CHANGED",
			"REVOKE k1 DRAINED", "REFILL k1 GAP_OVER", "REVOKE k2 ALGORITHM_CHANGED", "REFILL k2 GAP_OVER",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("steps (-want +got):\n%s", diff)
		}
	})
	t.Run("three selectors, one alias", func(t *testing.T) {
		b := newBench(3).holds(rotation.Active, rotation.Prepared, rotation.Prepared).see(rotation.Proven).after(2*day).see(rotation.Contradicted, "alias s3")
		change(b)
		for range 60 * 24 {
			b.see(rotation.Proven, "alias s1", "alias s2", "served k1")
			for _, k := range b.d.Keys {
				b.see(rotation.Proven, "served "+k.ID)
			}
			for b.do(t) != "" {
				continue
			}
			b.after(time.Hour)
		}
		for _, k := range b.d.Keys {
			if k.Algorithm != keypair.RSA4096 {
				t.Errorf("after sixty days there is %+v", k)
			}
		}
	})
	t.Run("never signed", func(t *testing.T) {
		b := newBench(2).holds(rotation.Prepared, rotation.Prepared).see(rotation.Contradicted, "alias s1", "alias s2").see(rotation.Proven, "served k1", "served k2")
		change(b)
		b.want(t, "REVOKE k2 ALGORITHM_CHANGED", "false ALIAS_MISSING", "false ALIAS_MISSING")
		b.do(t)
		b.want(t, "", "false ALIAS_MISSING", "false ALIAS_MISSING")
	})
	// One that may have to take over is not withdrawn.
	t.Run("alias of the signing key gone", func(t *testing.T) {
		b := newBench(2).holds(rotation.Active, rotation.Prepared).see(rotation.Proven).after(time.Hour).see(rotation.Contradicted, "alias s1")
		change(b)
		b.want(t, "", "false ALIAS_MISSING", "false PUBLISHED_RECENTLY")
		b.after(day).see(rotation.Proven, "alias s2", "served k2")
		b.want(t, "RETIRE k1 FAILOVER, ACTIVATE k2 FAILOVER", "false ALIAS_MISSING", "true READY")
	})
}

func TestBrandsOwn(t *testing.T) {
	b := newBench(3).holds(rotation.Prepared, rotation.Prepared, rotation.Prepared).see(rotation.Proven, "served k1", "served k2", "served k3")
	b.d.Kind = rotation.BrandDefault
	b.after(6*time.Minute - 1)
	b.want(t, "", "false PUBLISHED_RECENTLY", "false PUBLISHED_RECENTLY")
	b.after(1)
	b.want(t, "ACTIVATE k1 FIRST_KEY", "false READY", "true READY")
	b.do(t)
	b.want(t, "", "true SIGNING", "true NOT_DUE")
	// The others follow something, and so does a key that is made later.
	steps, err := rotation.RevokeCompromised(b.p, b.d, b.e, "k1", b.t)
	if show(steps) != "REVOKE k1 COMPROMISED" || err != nil {
		t.Errorf("compromised at once: %s, %v", show(steps), err)
	}
}

func TestCheckTime(t *testing.T) {
	waits := func(b *bench, f rotation.Finding, n int) []time.Duration {
		var all []time.Duration
		for range n {
			b.see(f)
			next := b.next().CheckAt
			all = append(all, next.Sub(b.t).Round(time.Second))
			b.t = next
		}
		return all
	}
	fresh := newBench(2).holds(rotation.Prepared, rotation.Prepared)
	if at := fresh.next().CheckAt; !at.Equal(fresh.t) {
		t.Errorf("the first look is %v after the beginning", at.Sub(fresh.t))
	}
	w := waits(fresh, rotation.Contradicted, 16)
	for i, d := range w {
		if d < 4*time.Minute-time.Second || d > 6*time.Hour || i > 0 && d < w[i-1] {
			t.Errorf("look %d comes after %v", i, d)
		}
	}
	if last := w[len(w)-1]; last < 6*time.Hour*8/10-time.Second {
		t.Errorf("after so long it is looked at each %v", last)
	}
	signing := newBench(2).holds(rotation.Active, rotation.Prepared)
	for i, d := range waits(signing, rotation.Proven, 20) {
		if d < 6*time.Hour*8/10-time.Second || d > 6*time.Hour {
			t.Errorf("quiet: look %d comes after %v", i, d)
		}
	}
	signing.t = now.Add(89 * day)
	for i, d := range waits(signing, rotation.Proven, 5) {
		if d < time.Hour*8/10-time.Second || d > time.Hour {
			t.Errorf("before a switch: look %d comes after %v", i, d)
		}
	}
	signing.t = now.Add(90 * day)
	if d := waits(signing, rotation.Unreachable, 1)[0]; d < time.Hour*8/10-time.Second || d > time.Hour {
		t.Errorf("due, and no proof: the next look comes after %v", d)
	}
	for name, d := range map[string]rotation.Domain{
		"no keys":        {Name: "spamtrap.dk"},
		"others' keys":   {Name: "spamtrap.dk", Keys: []rotation.Key{{ID: "x", Selector: "x", State: rotation.Active, Custody: rotation.PublicOnly}}},
		"keys destroyed": {Name: "spamtrap.dk", Keys: []rotation.Key{{ID: "x", Selector: "x", State: rotation.Destroyed, Custody: rotation.Service}}},
	} {
		if got := rotation.Next(rotation.DefaultPolicy(), d, rotation.Evidence{}, now); !cmp.Equal(got, rotation.Decision{}) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestSharedAliases(t *testing.T) {
	b := newBench(0)
	b.d.Shared = []dnsname.Selector{"mail1", "mail2"}
	if got := b.next(); len(got.Conditions) != 1 || got.Conditions[0].Reason != "ALIAS_UNKNOWN" || !got.CheckAt.Equal(b.t) {
		t.Errorf("never looked at: %+v", got)
	}
	b.e.Aliases["mail1"] = rotation.Observation{}.Observe(rotation.Proven, "", b.t)
	b.e.Aliases["mail2"] = rotation.Observation{}.Observe(rotation.Contradicted, "WRONG_TARGET", b.t)
	got := b.next()
	if c := got.Conditions[0]; c.OK || c.Reason != "ALIAS_WRONG_TARGET" || c.Message != "mail2._domainkey.spamtrap.dk does not point at us" || len(got.Steps) > 0 {
		t.Errorf("one is wrong: %+v", got)
	}
	b.e.Aliases["mail2"] = b.e.Aliases["mail2"].Observe(rotation.Proven, "", at(1))
	if got := b.after(time.Hour).next(); !got.Conditions[0].OK || got.CheckAt.IsZero() || got.Due.IsZero() {
		t.Errorf("both are there: %+v", got)
	}
}
