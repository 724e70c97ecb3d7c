package signview

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/evidence"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/rotation"
)

const spamtrap = dnsname.Domain("spamtrap.dk")

func (f *fixture) resolve(t testing.TB, brand string, name dnsname.Domain) Answer {
	t.Helper()
	a, err := f.view.Resolve(brand, name)
	if err != nil {
		t.Fatalf("%s of %q: %v", name, brand, err)
	}
	return a
}

func keyIDs(keys []rotation.SigningKey) (ids []string) {
	for _, k := range keys {
		ids = append(ids, k.KeyID)
	}
	return ids
}

func wantKeys(t testing.TB, what string, got []rotation.SigningKey, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, keyIDs(got)); diff != "" {
		t.Errorf("%s: keys (-want +got):\n%s", what, diff)
	}
}

func TestResolve(t *testing.T) {
	f := newFixture(t)
	f.brand("acme", rotation.ModePerDomain)
	f.brand("calm", rotation.ModeBrandDefault)
	f.brand("both", rotation.ModeBrandShared)
	d, _ := f.customer("acme", spamtrap)
	f.customer("calm", "calm.dk")
	if _, err := f.view.Resolve("acme", spamtrap); !errors.Is(err, ErrNotLoaded) {
		t.Errorf("before it is loaded: %v", err)
	}
	f.run(t)

	wantKeys(t, "own", f.resolve(t, "acme", spamtrap).Keys, d.Keys[0].ID)
	wantKeys(t, "of whatever brand", f.resolve(t, "", spamtrap).Keys, d.Keys[0].ID)
	if a := f.resolve(t, "", "calm.dk"); a.Brand != "calm" || a.Reason != rotation.ReasonDefaultKey || a.Keys[0].Domain != "calm.keys.example.net" {
		t.Errorf("default mode: %v", a)
	}
	if a := f.resolve(t, "acme", "no.example"); !a.Fallback || a.Reason != rotation.ReasonUnknownDomain {
		t.Errorf("unknown domain: %v", a)
	}
	for _, tt := range []struct {
		brand string
		name  dnsname.Domain
		want  error
	}{{"nobody", spamtrap, keystore.ErrBrandNotFound}, {"", "no.example", keystore.ErrDomainNotFound}} {
		if _, err := f.view.Resolve(tt.brand, tt.name); !errors.Is(err, tt.want) {
			t.Errorf("%s of %q: %v, want %v", tt.name, tt.brand, err, tt.want)
		}
	}

	// A shared key signs for those who alias it, since long enough.
	user, st := domain("both", "user.dk", rotation.Customer, "mail")
	user.Keys, user.Selectors, st.Served = nil, nil, nil
	since := st.Aliases["mail1"]
	since.Since = start.Add(-time.Hour).Truncate(time.Second)
	st.Aliases["mail1"] = since
	f.put(user)
	f.putStatus(st)
	if a := f.resolve(t, "both", "user.dk"); !a.Fallback || a.Reason != rotation.ReasonLead {
		t.Errorf("an alias of an hour: %v", a)
	}
	f.setTime(start.Add(24 * time.Hour))
	f.confirm(f.now())
	if a := f.resolve(t, "both", "user.dk"); a.Fallback || a.Keys[0].Domain != "user.dk" || a.Keys[0].Selector != "mail1" {
		t.Errorf("an alias of a day: %v", a)
	}

	// It goes by every change at once.
	d.Keys[0].State, d.Keys[0].RetireTime = rotation.Retiring, start
	d.Keys[1].State, d.Keys[1].ActivateTime = rotation.Active, start
	f.put(d)
	wantKeys(t, "after a rotation", f.resolve(t, "acme", spamtrap).Keys, d.Keys[1].ID)
	f.delete("acme", spamtrap)
	if _, err := f.view.Resolve("", spamtrap); !errors.Is(err, keystore.ErrDomainNotFound) {
		t.Errorf("after its deletion: %v", err)
	}
	f.deleteBrand("acme")
	if _, err := f.view.Resolve("acme", spamtrap); !errors.Is(err, keystore.ErrBrandNotFound) {
		t.Errorf("after the deletion of its brand: %v", err)
	}
}

// Until all was listed once it is not ready, says how far it is or why it gets no
// further, and counts nothing; when the store goes away later it stays ready.
func TestReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.brand("acme", rotation.ModePerDomain)
		f.customer("acme", spamtrap)
		listed, rest := make(chan struct{}), make(chan struct{})
		f.generate = func(func(keystore.SigningChange) error) error {
			close(listed)
			<-rest
			return nil
		}
		notReady := func(why string) {
			t.Helper()
			if err := f.view.Ready(); !errors.Is(err, ErrNotLoaded) || err.Error() != ErrNotLoaded.Error()+": "+why {
				t.Errorf("ready: %v, want that it is not: %s", err, why)
			}
			if n := f.view.Stats().Domains; n != 0 || f.view.Loaded() {
				t.Errorf("it counts %d domains before it is loaded", n)
			}
		}
		notReady("0 domains so far")
		f.down = errors.New("etcd is away")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = f.view.Run(ctx) }()
		time.Sleep(time.Minute)
		notReady("etcd is away")

		f.source.mu.Lock()
		f.down = nil
		f.source.mu.Unlock()
		<-listed
		notReady("2 domains so far") // that of the brand's default key, and the customer's
		close(rest)
		<-f.watched
		f.source.mu.Lock()
		f.down = errors.New("etcd is away")
		f.source.mu.Unlock()
		f.broken <- keystore.ErrCompacted
		time.Sleep(time.Minute)
		if err := f.view.Ready(); err != nil || f.view.Stats().Domains != 2 {
			t.Errorf("loaded, and the store went away: %v, %d domains", err, f.view.Stats().Domains)
		}
		cancel()
		<-done
	})
}

// What the View answers is what rotation says of what is stored.
func TestResolveIsRotation(t *testing.T) {
	f := newFixture(t)
	hours := func(n int) *time.Duration { d := time.Duration(n) * time.Hour; return &d }
	f.zones[0].Policy = rotation.Override{Lead: hours(30)}
	b := f.brand("acme", rotation.ModePerDomain)
	b.Policy = rotation.Override{Drain: hours(10)}
	f.putBrand(b)
	states := []rotation.State{rotation.Prepared, rotation.Active, rotation.Retiring, rotation.Revoked}
	findings := []rotation.Finding{rotation.Unknown, rotation.Proven, rotation.Contradicted, rotation.Unreachable}
	var names []dnsname.Domain
	for i, first := range states {
		for j, second := range states {
			for k, finding := range findings {
				d, st := domain("acme", dnsname.Domain(fmt.Sprintf("d%d-%d-%d.example", i, j, k)), rotation.Customer, []string{"selector", "odd-one"}[k%2])
				d.Keys[0].State, d.Keys[1].State = first, second
				d.Keys[1].ActivateTime = start.Add(-time.Hour)
				if k%2 == 1 {
					d.Policy = rotation.Override{Drain: hours(3 + j), CheckInterval: hours(1)}
					d.RotateRequested, d.Keys[0].Compromised, d.Keys[1].ID = start, true, "short"
					st.Served["short"] = st.Served[d.Keys[0].ID]
				}
				for sel, o := range st.Aliases {
					st.Aliases[sel] = o.Observe(finding, []string{"MISSING", "SOMETHING_NEW"}[k%2], start.Add(-time.Minute).Truncate(time.Second))
				}
				f.put(d)
				f.putStatus(st)
				names = append(names, d.Name)
			}
		}
	}
	f.run(t)
	def := f.domains["acme/acme.keys.example.net"]
	zone := f.zones[0]
	view := func(d keystore.Domain) *rotation.View {
		return &rotation.View{Domain: evidence.Domain(d, zone, nil), Evidence: evidence.Of(f.status["acme/"+string(d.Name)], nil, nil)}
	}
	for _, at := range []time.Time{start, start.Add(29 * time.Hour), start.Add(40 * time.Hour)} {
		f.setTime(at)
		f.confirm(at)
		for _, name := range names {
			d := f.domains["acme/"+string(name)]
			want := rotation.Resolve(b.Mode, evidence.Policy(zone, b, d), view(d), nil, view(def), at)
			if diff := cmp.Diff(want, f.resolve(t, "acme", name).Resolution); diff != "" {
				t.Fatalf("%s at %s (-want +got):\n%s", name, at, diff)
			}
		}
	}
}

func TestStale(t *testing.T) {
	f := newFixture(t)
	f.brand("acme", rotation.ModePerDomain)
	d, _ := f.customer("acme", spamtrap)
	short, st := domain("acme", "short.dk", rotation.Customer, "selector")
	hour := time.Hour
	short.Policy.Drain = &hour
	f.put(short)
	f.putStatus(st)
	f.run(t)

	// The store goes away, and the watch with it.
	f.source.mu.Lock()
	f.down = keystore.ErrUnavailable
	f.source.mu.Unlock()
	f.broken <- keystore.ErrUnavailable
	hold := 7 * 24 * time.Hour / 2
	f.setTime(start.Add(29 * time.Minute))
	if a := f.resolve(t, "acme", "short.dk"); a.Hold != time.Minute || !a.ValidUntil.Equal(start.Add(30*time.Minute)) {
		t.Errorf("held for %s, asks again at %s", a.Hold, a.ValidUntil)
	}
	f.setTime(start.Add(30 * time.Minute))
	if _, err := f.view.Resolve("acme", "short.dk"); !errors.Is(err, ErrStale) {
		t.Errorf("after half its drain: %v", err)
	}
	f.setTime(start.Add(hold - time.Second))
	if a := f.resolve(t, "acme", spamtrap); a.Hold != time.Second {
		t.Errorf("held for %s", a.Hold)
	}
	if _, err := f.view.SigningKey("acme", spamtrap, d.Keys[0].ID); err != nil {
		t.Errorf("signing shortly before: %v", err)
	}
	f.setTime(start.Add(hold))
	if _, err := f.view.Resolve("acme", spamtrap); !errors.Is(err, ErrStale) {
		t.Errorf("after half the drain: %v", err)
	}
	if _, err := f.view.SigningKey("acme", spamtrap, d.Keys[0].ID); !errors.Is(err, ErrStale) {
		t.Errorf("signing then: %v", err)
	}

	f.source.mu.Lock()
	f.down = nil
	f.source.mu.Unlock()
	<-f.watched
	f.confirm(f.now())
	if a := f.resolve(t, "acme", spamtrap); a.Hold != hold {
		t.Errorf("held for %s when the store is back, want %s", a.Hold, hold)
	}
}

// What vanished while nobody watched is gone after the next listing, and told.
func TestListAgain(t *testing.T) {
	f := newFixture(t)
	f.brand("acme", rotation.ModePerDomain)
	f.brand("gone", rotation.ModePerDomain)
	f.customer("acme", spamtrap)
	kept, _ := f.customer("acme", "kept.dk")
	f.customer("gone", "other.dk")
	f.run(t)
	c, err := f.view.Snapshot(t.Context(), "", func(Entry) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	f.source.mu.Lock()
	w := f.watcher
	f.watcher = nil
	f.source.mu.Unlock()
	f.delete("acme", spamtrap)
	f.deleteBrand("gone")
	for name := range maps.Clone(f.domains) {
		if f.domains[name].Brand == "gone" {
			f.delete("gone", f.domains[name].Name)
		}
	}
	kept.Keys[0].State = rotation.Revoked
	f.put(kept)
	added, _ := f.customer("acme", "added.dk")
	f.source.mu.Lock()
	f.watcher = w
	f.source.mu.Unlock()
	f.broken <- fmt.Errorf("%w: 5", keystore.ErrCompacted)
	<-f.watched

	if _, err := f.view.Resolve("", spamtrap); !errors.Is(err, keystore.ErrDomainNotFound) {
		t.Errorf("a domain that is gone: %v", err)
	}
	if _, err := f.view.Resolve("gone", "other.dk"); !errors.Is(err, keystore.ErrBrandNotFound) {
		t.Errorf("a brand that is gone: %v", err)
	}
	wantKeys(t, "added", f.resolve(t, "acme", "added.dk").Keys, added.Keys[0].ID)
	if n := f.view.Stats().Domains; n != int64(len(f.domains)) {
		t.Errorf("%d domains, want %d", n, len(f.domains))
	}
	got := make(map[string]string)
	for _, e := range f.changes(t, &c, "") {
		switch {
		case e.Brand != nil:
			got[e.Brand.Name] = fmt.Sprint(e.Brand.Deleted)
		case e.Domain.Deleted:
			got[string(e.Domain.Name)] = "deleted"
		default:
			got[string(e.Domain.Name)] = fmt.Sprint(keyIDs(e.Domain.Keys), e.Domain.Default)
		}
	}
	want := map[string]string{
		"gone": "true", "spamtrap.dk": "deleted", "other.dk": "deleted", "kept.dk": "[] true", "added.dk": fmt.Sprint([]string{added.Keys[0].ID}, false),
	}
	delete(got, "gone.keys.example.net")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
}

// changes are those since c, which goes on.
func (f *fixture) changes(t testing.TB, c *Cursor, brand string) []Entry {
	t.Helper()
	var all []Entry
	ready := make(chan time.Time)
	close(ready)
	for {
		entries, next, err := f.view.Changes(t.Context(), *c, brand, 2, ready)
		if err != nil {
			t.Fatal(err)
		}
		*c = next
		if entries == nil {
			return all
		}
		all = append(all, entries...)
	}
}

func TestChanges(t *testing.T) {
	f := newFixture(t)
	f.brand("acme", rotation.ModePerDomain)
	f.brand("other", rotation.ModePerDomain)
	d, st := f.customer("acme", spamtrap)
	f.run(t)
	var first []Entry
	c, err := f.view.Snapshot(t.Context(), "acme", func(e Entry) error { first = append(first, e); return nil })
	if err != nil || len(first) != 2 || first[0].Brand.Name != "acme" || first[1].Domain.Name != spamtrap {
		t.Fatalf("snapshot %v, %v", first, err)
	}
	wantKeys(t, "default keys", first[0].Brand.Keys, f.domains["acme/acme.keys.example.net"].Keys[0].ID)
	wantKeys(t, "own keys", first[1].Domain.Keys, d.Keys[0].ID)
	wantKeys(t, "standby", first[1].Domain.Standby, d.Keys[1].ID)

	// A new look at the DNS that finds what was known changes nothing.
	for id, o := range st.Served {
		o.CheckTime = o.CheckTime.Add(time.Hour)
		st.Served[id] = o
	}
	f.putStatus(st)
	f.customer("other", "other.dk")
	if got := f.changes(t, &c, "acme"); len(got) != 0 {
		t.Errorf("told %v of nothing", got)
	}

	// Of several changes the last state is told, once.
	d.Keys[0].State = rotation.Retiring
	f.put(d)
	d.Keys[1].State, d.Keys[1].ActivateTime = rotation.Active, start
	f.put(d)
	got := f.changes(t, &c, "acme")
	if len(got) != 1 {
		t.Fatalf("told %v, want one entry", got)
	}
	wantKeys(t, "after a rotation", got[0].Domain.Keys, d.Keys[1].ID)

	// The brand's default keys rotate: that is one change.
	def := f.domains["acme/acme.keys.example.net"]
	def.Keys = slices.Clone(def.Keys)
	def.Keys[0].State, def.Keys[1].State, def.Keys[1].ActivateTime = rotation.Retiring, rotation.Active, start
	f.put(def)
	if got = f.changes(t, &c, ""); len(got) != 1 || got[0].Brand == nil {
		t.Fatalf("told %v, want the brand", got)
	}
	wantKeys(t, "default keys", got[0].Brand.Keys, def.Keys[1].ID)

	// The brand signs otherwise: so do its domains.
	b := f.brands["acme"]
	b.Mode = rotation.ModeBrandDefault
	f.putBrand(b)
	if got = f.changes(t, &c, "acme"); len(got) != 2 || !got[0].Brand.DefaultOnly || !got[1].Domain.Default || got[1].Domain.Fallback {
		t.Fatalf("told %v, want brand and domain", got)
	}

	// Who is too far behind begins anew, as does who comes from another process.
	for i := range maxChanges {
		f.view.log.add(change{0, fmt.Sprint(i)})
	}
	if _, _, err := f.view.Changes(t.Context(), Cursor{c.Epoch, c.Next - 1}, "", 1, nil); !errors.Is(err, ErrBehind) {
		t.Errorf("far behind: %v", err)
	}
	if _, _, err := f.view.Changes(t.Context(), Cursor{c.Epoch + 1, c.Next}, "", 1, nil); !errors.Is(err, ErrBehind) {
		t.Errorf("of another process: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := f.view.Changes(ctx, f.view.log.end(), "", 1, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("at the end of the caller: %v", err)
	}
}

// Time alone lets a key sign, and that is told too.
func TestOpening(t *testing.T) {
	f := newFixture(t)
	f.brand("acme", rotation.ModePerDomain)
	d, st := f.customer("acme", spamtrap)
	o := st.Aliases["selector1"].Observe(rotation.Contradicted, "MISSING", start.Add(-time.Hour).Truncate(time.Second))
	st.Aliases["selector1"] = o.Observe(rotation.Proven, "", start.Truncate(time.Second))
	f.putStatus(st)
	f.run(t)
	c := f.view.log.end()
	f.setTime(start.Add(24*time.Hour - time.Second))
	f.view.open()
	if got := f.changes(t, &c, ""); len(got) != 0 {
		t.Errorf("told %v too early", got)
	}
	f.setTime(start.Add(24 * time.Hour))
	f.view.open()
	got := f.changes(t, &c, "")
	if len(got) != 1 || got[0].Domain == nil {
		t.Fatalf("told %v, want the domain", got)
	}
	wantKeys(t, "then", got[0].Domain.Keys, d.Keys[0].ID)
}

func TestSigningKey(t *testing.T) {
	f := newFixture(t)
	f.brand("acme", rotation.ModePerDomain)
	d, _ := f.customer("acme", spamtrap)
	lost, st := f.customer("acme", "lost.dk")
	for id, o := range st.Served {
		st.Served[id] = o.Observe(rotation.Contradicted, "MISSING", start.Truncate(time.Second))
	}
	f.putStatus(st)
	f.run(t)
	def := f.domains["acme/acme.keys.example.net"]
	for _, tt := range []struct {
		name    string
		brand   string
		domain  dnsname.Domain
		id      string
		standby bool
		want    error
		state   rotation.State
	}{
		{name: "its own", brand: "acme", domain: spamtrap, id: d.Keys[0].ID},
		{name: "the brand's default", brand: "acme", domain: def.Name, id: def.Keys[0].ID},
		{name: "a standby", brand: "acme", domain: spamtrap, id: d.Keys[1].ID, state: rotation.Prepared},
		{name: "a standby to hold", brand: "acme", domain: spamtrap, id: d.Keys[1].ID, standby: true},
		{name: "one that is not served", brand: "acme", domain: "lost.dk", id: lost.Keys[0].ID, state: rotation.Active},
		{name: "nobody's", brand: "acme", domain: spamtrap, id: "no", want: keystore.ErrKeyNotFound},
		{name: "of no domain", brand: "acme", domain: "no.example", id: "no", want: keystore.ErrDomainNotFound},
		{name: "of no brand", brand: "nobody", domain: spamtrap, id: d.Keys[0].ID, want: keystore.ErrBrandNotFound},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k, err := f.view.key(tt.brand, tt.domain, tt.id, tt.standby)
			if no, ok := errors.AsType[*NotSigningError](err); ok != (tt.state != 0) || ok && no.State != tt.state {
				t.Fatalf("got %v", err)
			}
			if tt.state == 0 && !errors.Is(err, tt.want) || err == nil && k.KeyID != tt.id {
				t.Errorf("got %v, %v", k, err)
			}
		})
	}
}
