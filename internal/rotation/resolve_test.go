package rotation_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/rotation"
)

func TestResolve(t *testing.T) {
	view := func(b *bench) *rotation.View { return &rotation.View{Domain: b.d, Evidence: b.e} }
	own := newBench(2).holds(rotation.Active, rotation.Prepared).see(rotation.Proven).after(2 * day)
	// signing is a domain with an ACTIVE key, which a test may change first.
	signing := func(changes ...func(*bench)) *rotation.View {
		b := newBench(2).holds(rotation.Active, rotation.Prepared).see(rotation.Proven).after(2 * day)
		for _, change := range changes {
			change(b)
		}
		return view(b)
	}
	brands := func(kind rotation.Kind, name string, s rotation.State) *rotation.View {
		b := newBench(1).holds(s)
		b.d.Kind, b.d.Name = kind, dnsname.Domain(name)
		b.d.Selectors[0].Selector, b.d.Keys[0].Selector, b.d.Keys[0].ID = "b1", "b1", "kb"
		return view(b.see(rotation.Proven))
	}
	def := brands(rotation.BrandDefault, "acme.keys.example.net", rotation.Active)
	shared := brands(rotation.BrandShared, "shared.acme.keys.example.net", rotation.Active)
	// user is a domain without keys that aliases the shared one, or did for so long.
	user := func(f rotation.Finding, since time.Duration) *rotation.View {
		b := newBench(0)
		b.d.Shared = []dnsname.Selector{"b1"}
		b.e.Aliases["b1"] = rotation.Observation{}.Observe(f, "MISSING", own.t.Add(-since))
		return view(b)
	}
	missing := func(b *bench) { b.see(rotation.Contradicted, "alias s1") }
	type keys = []rotation.SigningKey
	ownKeys := keys{{"spamtrap.dk", "s1", "k1", "spamtrap.dk", keypair.RSA2048}}
	defKeys := keys{{"acme.keys.example.net", "b1", "kb", "acme.keys.example.net", keypair.RSA2048}}
	sharedKeys := keys{{"spamtrap.dk", "b1", "kb", "shared.acme.keys.example.net", keypair.RSA2048}}
	for _, tt := range []struct {
		name             string
		mode             rotation.Mode
		own, shared, def *rotation.View
		keys             keys
		fallback         bool
		reason           string
	}{
		{"own", rotation.ModePerDomain, signing(), nil, def, ownKeys, false, "OWN_KEY"},
		{"own, nobody else there", rotation.ModePerDomain, signing(), nil, nil, ownKeys, false, "OWN_KEY"},
		{"own, status lost", rotation.ModePerDomain, signing(func(b *bench) { clear(b.e.Aliases); clear(b.e.Served) }), nil, def, ownKeys, false, "OWN_KEY"},
		{"own, servers unreachable", rotation.ModePerDomain, signing(func(b *bench) { b.see(rotation.Unreachable) }), nil, def, ownKeys, false, "OWN_KEY"},
		{"alias gone", rotation.ModePerDomain, signing(missing), nil, def, defKeys, true, "ALIAS_MISSING"},
		{"alias back just now", rotation.ModePerDomain, signing(missing, func(b *bench) { b.see(rotation.Proven) }), nil, def, defKeys, true, "PUBLISHED_RECENTLY"},
		{"not served", rotation.ModePerDomain, signing(func(b *bench) { b.see(rotation.Contradicted, "served k1") }), nil, def, defKeys, true, "NOT_SERVED"},
		{"alias gone, no default", rotation.ModePerDomain, signing(missing), nil, nil, nil, false, "ALIAS_MISSING"},
		{"alias gone, default not signing yet", rotation.ModePerDomain, signing(missing), nil, brands(rotation.BrandDefault, "a.example", rotation.Prepared), nil, false, "ALIAS_MISSING"},
		{"never signed", rotation.ModePerDomain, view(newBench(2).holds(rotation.Prepared, rotation.Prepared)), nil, def, defKeys, true, "SERVING_UNKNOWN"},
		{"no keys", rotation.ModePerDomain, view(newBench(0)), nil, def, defKeys, true, "NO_KEYS"},
		{"no such domain", rotation.ModePerDomain, nil, nil, def, defKeys, true, "UNKNOWN_DOMAIN"},
		{"only others' keys", rotation.ModePerDomain, signing(func(b *bench) { b.d.Keys[0].Custody = rotation.PublicOnly }), nil, def, defKeys, true, "EVIDENCE_OLD"},
		{"default mode", rotation.ModeBrandDefault, signing(), nil, def, defKeys, false, "DEFAULT_KEY"},
		{"default mode, nothing there", rotation.ModeBrandDefault, signing(), nil, nil, nil, false, "NO_KEYS"},
		{"shared", rotation.ModeBrandShared, user(rotation.Proven, day), shared, def, sharedKeys, false, "SHARED_KEY"},
		{"shared, alias too new", rotation.ModeBrandShared, user(rotation.Proven, day-1), shared, def, defKeys, true, "PUBLISHED_RECENTLY"},
		{"shared, alias missing", rotation.ModeBrandShared, user(rotation.Contradicted, day), shared, def, defKeys, true, "ALIAS_MISSING"},
		{"shared, status lost", rotation.ModeBrandShared, user(rotation.Unknown, day), shared, def, defKeys, true, "ALIAS_UNKNOWN"},
		{"shared, none yet", rotation.ModeBrandShared, user(rotation.Proven, day), nil, def, defKeys, true, "NO_KEYS"},
		{"shared, no such domain", rotation.ModeBrandShared, nil, shared, def, defKeys, true, "UNKNOWN_DOMAIN"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := rotation.Resolve(tt.mode, own.p, tt.own, tt.shared, tt.def, own.t)
			want := rotation.Resolution{Keys: tt.keys, Fallback: tt.fallback, Reason: tt.reason, Message: got.Message, ValidUntil: own.t.Add(5 * time.Minute)}
			if want.ChangeAt = got.ChangeAt; got.ChangeAt.IsZero() == (tt.reason == rotation.ReasonLead) {
				t.Errorf("changes at %s", got.ChangeAt)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("resolution (-want +got):\n%s", diff)
			}
			if !got.ChangeAt.IsZero() {
				before := rotation.Resolve(tt.mode, own.p, tt.own, tt.shared, tt.def, got.ChangeAt.Add(-1))
				after := rotation.Resolve(tt.mode, own.p, tt.own, tt.shared, tt.def, got.ChangeAt)
				if !before.Fallback || after.Fallback || after.Keys == nil {
					t.Errorf("a nanosecond before the change %v, then %v", before, after)
				}
			}
			if got.Message == "" {
				t.Error("no message")
			}
		})
	}
	t.Run("each algorithm for itself", func(t *testing.T) {
		v := signing(func(b *bench) {
			b.d.Selectors[1].Algorithm = keypair.Ed25519
			b.d.Keys[1].Algorithm, b.d.Keys[1].State = keypair.Ed25519, rotation.Active
		})
		both := append(keys{}, ownKeys...)
		both = append(both, rotation.SigningKey{Domain: "spamtrap.dk", Selector: "s2", KeyID: "k2", Owner: "spamtrap.dk", Algorithm: keypair.Ed25519})
		if diff := cmp.Diff(both, rotation.Resolve(rotation.ModePerDomain, own.p, v, nil, def, own.t).Keys); diff != "" {
			t.Errorf("keys (-want +got):\n%s", diff)
		}
		v.Evidence.Aliases["s1"] = v.Evidence.Aliases["s1"].Observe(rotation.Contradicted, "MISSING", own.t)
		if r := rotation.Resolve(rotation.ModePerDomain, own.p, v, nil, def, own.t); r.Fallback || cmp.Diff(both[1:], r.Keys) != "" {
			t.Errorf("with one alias gone: %+v", r)
		}
	})
}
