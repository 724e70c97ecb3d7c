package rotation_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/rotation"
)

// bench is a domain whose evidence a test sets by hand.
type bench struct {
	p rotation.Policy
	d rotation.Domain
	e rotation.Evidence
	t time.Time
}

// newBench is a domain of n RSA selectors s1… that holds nothing yet.
func newBench(n int) *bench {
	b := &bench{
		p: rotation.DefaultPolicy(), t: now,
		d: rotation.Domain{Name: "spamtrap.dk", Brand: "acme", CreateTime: now, NegativeTTL: 300},
		e: rotation.Evidence{Aliases: map[dnsname.Selector]rotation.Observation{}, Served: map[string]rotation.Observation{}},
	}
	b.p.JitterPercent = 0
	for i := range n {
		b.d.Selectors = append(b.d.Selectors, rotation.Selector{Selector: dnsname.Selector(fmt.Sprintf("s%d", i+1)), Algorithm: keypair.RSA2048})
	}
	return b
}

// holds puts a key into the next selector. Its times are those of a key that did each step a hundred days ago, or when it
// says.
func (b *bench) holds(states ...rotation.State) *bench {
	for _, s := range states {
		i := len(b.d.Keys)
		k := rotation.Key{
			ID: fmt.Sprintf("k%d", i+1), Selector: b.d.Selectors[i].Selector, Algorithm: b.d.Selectors[i].Algorithm,
			Custody: rotation.Service, TTL: 3600, PrepareTime: b.t, State: rotation.Prepared,
		}
		if s >= rotation.Active && s < rotation.Revoked {
			k.ActivateTime = b.t
		}
		if s == rotation.Retiring {
			k.RetireTime = b.t
		}
		if s == rotation.Revoked {
			k.RevokeTime = b.t
		}
		k.State = s
		b.d.Keys = append(b.d.Keys, k)
	}
	return b
}

// see observes the facts, all if none is named: "alias s1", "served k1".
func (b *bench) see(f rotation.Finding, facts ...string) *bench {
	for _, s := range b.d.Selectors {
		if name := "alias " + string(s.Selector); len(facts) == 0 || slices.Contains(facts, name) {
			b.e.Aliases[s.Selector] = b.e.Aliases[s.Selector].Observe(f, "MISSING", b.t)
		}
	}
	for _, k := range b.d.Keys {
		if len(facts) == 0 || slices.Contains(facts, "served "+k.ID) {
			b.e.Served[k.ID] = b.e.Served[k.ID].Observe(f, "NXDOMAIN", b.t)
		}
	}
	return b
}

func (b *bench) after(d time.Duration) *bench { b.t = b.t.Add(d); return b }

func (b *bench) next() rotation.Decision { return rotation.Next(b.p, b.d, b.e, b.t) }

// do applies the steps of the decision, and gives the selectors that are refilled new keys.
func (b *bench) do(t *testing.T) string {
	t.Helper()
	steps := b.next().Steps
	keys, err := apply(b.d.Keys, steps, b.t)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range steps {
		if s.Kind == rotation.Refill {
			keys = append(keys, rotation.Key{
				ID: fmt.Sprintf("%s@%d", s.Selector, int(b.t.Sub(now)/day)), Selector: s.Selector, Algorithm: s.Algorithm,
				State: rotation.Prepared, Custody: rotation.Service, TTL: 3600, PrepareTime: b.t,
			})
		}
	}
	b.d.Keys = keys
	return show(steps)
}

// show writes steps as "REVOKE k1 DRAINED".
func show(steps []rotation.Step) string {
	lines := make([]string, len(steps))
	for i, s := range steps {
		lines[i] = strings.TrimSpace(fmt.Sprintf("%s %s %s", s.Kind, s.KeyID, s.Reason))
	}
	return strings.Join(lines, ", ")
}

func (b *bench) conditions() map[string]string {
	all := make(map[string]string)
	for _, c := range b.next().Conditions {
		all[c.Type] = fmt.Sprintf("%t %s", c.OK, c.Reason)
	}
	return all
}

func (b *bench) want(t *testing.T, steps, signing, rotating string) {
	t.Helper()
	got := b.conditions()
	if s := show(b.next().Steps); s != steps || got["SIGNING"] != signing || got["ROTATION"] != rotating {
		t.Errorf("after %v: steps %q, SIGNING %q, ROTATION %q\nwant %q, %q, %q", b.t.Sub(now), s, got["SIGNING"], got["ROTATION"], steps, signing, rotating)
	}
}

// A domain of two selectors, from its first keys to the second rotation.
func TestTwoSelectors(t *testing.T) {
	b := newBench(2).holds(rotation.Prepared, rotation.Prepared)
	b.want(t, "", "false SERVING_UNKNOWN", "false SERVING_UNKNOWN")
	b.see(rotation.Contradicted, "alias s1", "alias s2").see(rotation.Proven, "served k1", "served k2")
	b.want(t, "", "false ALIAS_MISSING", "false ALIAS_MISSING")
	// The customer adds one CNAME, a day later the other.
	b.after(3*day).see(rotation.Proven, "alias s2")
	b.want(t, "", "false PUBLISHED_RECENTLY", "false PUBLISHED_RECENTLY")
	b.after(day - time.Second)
	b.want(t, "", "false PUBLISHED_RECENTLY", "false PUBLISHED_RECENTLY")
	b.after(time.Second)
	b.want(t, "", "false EVIDENCE_OLD", "false EVIDENCE_OLD")
	b.see(rotation.Unreachable)
	b.want(t, "", "false EVIDENCE_OLD", "false EVIDENCE_OLD")
	b.after(time.Hour).see(rotation.Proven)
	b.want(t, "ACTIVATE k2 FIRST_KEY", "false READY", "true READY")
	b.do(t)
	start := b.t
	b.want(t, "", "true SIGNING", "true NOT_DUE")
	b.after(90*day - 1).see(rotation.Proven)
	b.want(t, "", "true SIGNING", "true NOT_DUE")
	b.after(1)
	b.want(t, "RETIRE k2 SCHEDULED, ACTIVATE k1 SCHEDULED", "true SIGNING", "true READY")
	if !b.next().Voluntary {
		t.Error("a scheduled switch is not voluntary")
	}
	if b.t != start.Add(90*day) {
		t.Fatal("lost track of time")
	}
	b.do(t)
	b.after(7 * day).see(rotation.Proven)
	b.want(t, "", "true SIGNING", "true NOT_DUE")
	b.after(5 * time.Minute) // what an answer to a signer is valid for
	b.want(t, "REVOKE k2 DRAINED", "true SIGNING", "true NOT_DUE")
	if b.next().Voluntary {
		t.Error("housekeeping is voluntary")
	}
	b.do(t)
	b.after(7*day - 1)
	b.want(t, "", "true SIGNING", "true NOT_DUE")
	b.after(1)
	b.want(t, "REFILL k2 GAP_OVER", "true SIGNING", "true NOT_DUE")
	b.do(t)
	b.after(time.Hour).see(rotation.Proven)
	b.after(76*day - 6*time.Minute).see(rotation.Proven)
	b.after(time.Minute)
	b.do(t)
	if got := b.d.Keys[0].State; got != rotation.Retiring {
		t.Errorf("after two intervals the second key is %v", got)
	}
}

func TestGates(t *testing.T) {
	// A domain that is due: s1 signs, s2 stands by.
	ready := func() *bench {
		b := newBench(2).holds(rotation.Active, rotation.Prepared).see(rotation.Proven)
		return b.after(90 * day).see(rotation.Proven)
	}
	switched := "RETIRE k1 SCHEDULED, ACTIVATE k2 SCHEDULED"
	signer := func(b *bench, lease time.Duration, holds ...string) *bench {
		view := rotation.SignerView{ID: "mx1", LeaseExpiry: b.t.Add(lease), Holds: map[string]time.Time{}}
		for _, id := range holds {
			view.Holds[id] = time.Time{}
		}
		b.e.Signers = append(b.e.Signers, view)
		return b
	}
	for name, tt := range map[string]struct {
		b                        *bench
		steps, signing, rotating string
	}{
		"ready":                {ready(), switched, "true SIGNING", "true READY"},
		"served denied":        {ready().see(rotation.Contradicted, "served k2"), "", "true SIGNING", "false NOT_SERVED"},
		"served denied, later": {ready().see(rotation.Contradicted, "served k2").see(rotation.Proven), "", "true SIGNING", "false PUBLISHED_RECENTLY"},
		"alias denied":         {ready().see(rotation.Contradicted, "alias s2"), "", "true SIGNING", "false ALIAS_MISSING"},
		"alias unreachable":    {ready().see(rotation.Unreachable, "alias s2"), "", "true SIGNING", "false EVIDENCE_OLD"},
		"evidence of an hour":  {ready().after(time.Hour), switched, "true SIGNING", "true READY"},
		"evidence too old":     {ready().after(time.Hour + 1), "", "true SIGNING", "false EVIDENCE_OLD"},
		"signer lacks the key": {signer(ready(), time.Hour, "k1"), "", "true SIGNING", "false SIGNER_LACKS_KEY"},
		"signer holds the key": {signer(ready(), time.Hour, "k1", "k2"), switched, "true SIGNING", "true READY"},
		"signer is gone":       {signer(ready(), -rotation.Margin, "k1"), switched, "true SIGNING", "true READY"},
		"paused":               {with(ready(), func(b *bench) { b.p.Paused = true }), "", "true SIGNING", "false PAUSED"},
		"frozen": {with(ready(), func(b *bench) {
			b.p.Freezes = []rotation.Freeze{{b.t.Add(-day), b.t.Add(1)}}
		}), "", "true SIGNING", "false FROZEN"},
		"a freeze is over": {with(ready(), func(b *bench) {
			b.p.Freezes = []rotation.Freeze{{b.t.Add(-day), b.t}, {b.t.Add(1), b.t.Add(day)}}
		}), switched, "true SIGNING", "true READY"},
		"asked for": {
			with(newBench(2).holds(rotation.Active, rotation.Prepared).see(rotation.Proven).after(2*day).see(rotation.Proven), func(b *bench) {
				b.d.RotateRequested = b.t
			}),
			"RETIRE k1 REQUESTED, ACTIVATE k2 REQUESTED", "true SIGNING", "true READY",
		},
		"answered": {
			with(newBench(2).holds(rotation.Active, rotation.Prepared).see(rotation.Proven).after(2*day).see(rotation.Proven), func(b *bench) {
				b.d.RotateRequested = b.d.Keys[0].ActivateTime
			}),
			"", "true SIGNING", "true NOT_DUE",
		},
	} {
		t.Run(name, func(t *testing.T) { tt.b.want(t, tt.steps, tt.signing, tt.rotating) })
	}
}

func with(b *bench, change func(*bench)) *bench {
	change(b)
	return b
}

func TestFailover(t *testing.T) {
	signing := func(n int) *bench {
		b := newBench(n).holds(append([]rotation.State{rotation.Active}, slices.Repeat([]rotation.State{rotation.Prepared}, n-1)...)...)
		return b.see(rotation.Proven).after(2 * day).see(rotation.Proven)
	}
	const over = "RETIRE k1 FAILOVER, ACTIVATE k2 FAILOVER"
	t.Run("alias", func(t *testing.T) {
		signing(2).see(rotation.Contradicted, "alias s1").want(t, over, "false ALIAS_MISSING", "true READY")
	})
	t.Run("served", func(t *testing.T) {
		signing(2).see(rotation.Contradicted, "served k1").want(t, over, "false NOT_SERVED", "true READY")
	})
	t.Run("paused and frozen", func(t *testing.T) {
		b := signing(2).see(rotation.Contradicted, "alias s1")
		b.p.Paused, b.p.Freezes = true, []rotation.Freeze{{now, now.Add(99 * day)}}
		b.want(t, over, "false ALIAS_MISSING", "true READY")
		if b.next().Voluntary {
			t.Error("a failover is voluntary")
		}
	})
	t.Run("to the one that is proven", func(t *testing.T) {
		signing(3).see(rotation.Contradicted, "alias s1", "alias s2").want(t, "RETIRE k1 FAILOVER, ACTIVATE k3 FAILOVER", "false ALIAS_MISSING", "true READY")
	})
	t.Run("no way out, and back", func(t *testing.T) {
		b := signing(2).see(rotation.Contradicted, "alias s1", "alias s2")
		b.want(t, "", "false ALIAS_MISSING", "false ALIAS_MISSING")
		b.after(day).see(rotation.Proven)
		b.want(t, "", "false PUBLISHED_RECENTLY", "false PUBLISHED_RECENTLY")
		b.after(day - 1).see(rotation.Proven)
		b.want(t, "", "false PUBLISHED_RECENTLY", "false PUBLISHED_RECENTLY")
		b.after(1)
		b.want(t, "", "true SIGNING", "true NOT_DUE")
	})
	t.Run("after a revocation by hand", func(t *testing.T) {
		b := signing(2)
		b.p.Paused = true
		b.d.Keys[0].State, b.d.Keys[0].RevokeTime = rotation.Revoked, b.t
		b.want(t, "ACTIVATE k2 FAILOVER", "false READY", "true READY")
	})
}

// An ACTIVE key whose status is lost goes on signing, and loses nothing when its proof is gathered anew.
func TestLostStatus(t *testing.T) {
	b := newBench(2).holds(rotation.Active, rotation.Prepared).see(rotation.Proven).after(9 * day)
	clear(b.e.Aliases)
	clear(b.e.Served)
	b.want(t, "", "true UNCHECKED", "false SERVING_UNKNOWN")
	if at := b.next().CheckAt; at.After(b.t) {
		t.Errorf("it is looked at %v, not at once", at)
	}
	proven := *b
	proven.e.Aliases, proven.e.Served = maps.Clone(b.e.Aliases), maps.Clone(b.e.Served)
	proven.see(rotation.Proven)
	proven.want(t, "", "true SIGNING", "true NOT_DUE")
	b.see(rotation.Unreachable)
	b.want(t, "", "true UNCHECKED", "false SERVING_UNKNOWN")
	b.see(rotation.Contradicted, "alias s1")
	b.want(t, "", "false ALIAS_MISSING", "false SERVING_UNKNOWN")
}

func TestDrain(t *testing.T) {
	draining := func(signers ...rotation.SignerView) *bench {
		b := newBench(2).holds(rotation.Retiring, rotation.Active).see(rotation.Proven)
		b.e.Signers = signers
		return b
	}
	const revoked = "REVOKE k1 DRAINED"
	over := 7*day + 5*time.Minute
	last := func(d time.Duration) map[string]time.Time { return map[string]time.Time{"k1": now.Add(d), "k2": now} }
	for _, tt := range []struct {
		name     string
		signer   rotation.SignerView
		end      time.Duration // zero: never, while the signer lives
		rotating string
	}{
		{"never used since", rotation.SignerView{LeaseExpiry: at(9999), ReportTime: at(1), Holds: last(-day)}, over, ""},
		{"used since", rotation.SignerView{LeaseExpiry: at(9999), ReportTime: at(50), Holds: last(2 * day)}, 9 * day, ""},
		{"no longer held", rotation.SignerView{LeaseExpiry: at(9999), ReportTime: at(1)}, over, ""},
		{"silent", rotation.SignerView{ID: "mx1", LeaseExpiry: at(9999), ReportTime: at(0), Holds: last(-day)}, 0, "false SIGNER_SILENT"},
		{"never reported", rotation.SignerView{ID: "mx1", LeaseExpiry: at(9999)}, 0, "false SIGNER_SILENT"},
		{"vanished", rotation.SignerView{LeaseExpiry: at(72), ReportTime: at(-1)}, 10 * day, ""},
		{"vanished long before", rotation.SignerView{LeaseExpiry: at(-72), ReportTime: at(-99)}, over, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := draining(tt.signer)
			if tt.end == 0 {
				b.after(99 * day)
				b.want(t, "", "true SIGNING", "false SIGNER_SILENT")
				return
			}
			b.after(tt.end - 1)
			if s := show(b.next().Steps); s != "" {
				t.Errorf("just before: %s", s)
			}
			if due := b.next().Due; due.After(b.t.Add(1)) {
				t.Errorf("the next look is %v too late", due.Sub(b.t.Add(1)))
			}
			b.after(1)
			if s := show(b.next().Steps); s != revoked {
				t.Errorf("then: %q, want %q", s, revoked)
			}
			for name, stop := range map[string]func(*rotation.Policy){
				"paused": func(p *rotation.Policy) { p.Paused = true },
				"frozen": func(p *rotation.Policy) { p.Freezes = []rotation.Freeze{{now, now.Add(99 * day)}} },
			} {
				stopped := *b
				stop(&stopped.p)
				if s := show(stopped.next().Steps); s != "" {
					t.Errorf("%s: %s", name, s)
				}
			}
		})
	}
}

func TestRefill(t *testing.T) {
	for _, tt := range []struct {
		name    string
		ttl     uint32
		custody rotation.Custody
		end     time.Duration
		want    string
	}{
		{"gap", 3600, rotation.Service, 7 * day, "REFILL k1 GAP_OVER"},
		{"long TTL", 8 * 86400, rotation.Service, 8*day + rotation.Margin, "REFILL k1 GAP_OVER"},
		{"signer's", 3600, rotation.Signer, 7 * day, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(2).holds(rotation.Revoked, rotation.Active).see(rotation.Proven)
			b.d.Keys[0].TTL, b.d.Keys[0].Custody = tt.ttl, tt.custody
			b.after(tt.end - 1)
			b.want(t, "", "true SIGNING", "true NOT_DUE")
			b.after(1)
			if rotation.RefillTime(b.p, b.d.Keys[0]) != b.t {
				t.Errorf("RefillTime is %v", rotation.RefillTime(b.p, b.d.Keys[0]))
			}
			if tt.want == "" {
				b.want(t, "", "true SIGNING", "false AWAITING_SIGNER_KEY")
				return
			}
			b.want(t, tt.want, "true SIGNING", "true NOT_DUE")
			b.p.Paused = true
			if s := show(b.next().Steps); s != "" {
				t.Errorf("paused: %s", s)
			}
		})
	}
	t.Run("empty selector", func(t *testing.T) {
		b := newBench(2).holds(rotation.Active).see(rotation.Proven)
		b.want(t, "REFILL  EMPTY_SELECTOR", "true SIGNING", "true NOT_DUE")
		b.d.Keys[0].Custody = rotation.Signer
		b.want(t, "", "true SIGNING", "false AWAITING_SIGNER_KEY")
		b.d.Keys[0].Custody = rotation.Service
		b.d.Keys = append(b.d.Keys, rotation.Key{ID: "x", Selector: "s2", Algorithm: keypair.RSA2048, State: rotation.Active, Custody: rotation.PublicOnly})
		b.want(t, "", "true SIGNING", "true NOT_DUE")
	})
}
