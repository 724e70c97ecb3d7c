package keystoretest

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/internal/schema/schemapb"
)

// second is now as precise as the due index keeps it.
var second = now.Truncate(time.Second)

// later is a time after second.
func later(s int) time.Time { return second.Add(time.Duration(s) * time.Second) }

// ignoreEntry leaves out what a Status knows of the store.
var ignoreEntry = cmpopts.IgnoreUnexported(keystore.Status{})

// ignoreRevision leaves out when a due entry was written.
var ignoreRevision = cmpopts.IgnoreFields(keystore.DueEntry{}, "Revision")

// due is the whole due index.
func (e *env) due(t testing.TB) []keystore.DueEntry {
	t.Helper()
	return must(e.DueBefore(t.Context(), later(1_000_000_000), 1000))(t)
}

// put writes a key behind the Store's back, as a hand in etcd does.
func (e *env) put(t testing.TB, key, value string) {
	t.Helper()
	must(e.client.Put(t.Context(), key, value))(t)
}

// lead makes a fence that holds.
func (e *env) lead(t testing.TB) *keystore.Fence {
	t.Helper()
	e.put(t, schema.LeaderPrefix()+"/1", "")
	return &keystore.Fence{Key: schema.LeaderPrefix() + "/1", CreateRevision: e.revision(t)}
}

// aStatus is a status with all that one can hold.
func aStatus(d keystore.Domain, due time.Time) keystore.Status {
	return keystore.Status{
		Brand: d.Brand, Domain: d.Name, Due: due,
		Aliases: map[dnsname.Selector]rotation.Observation{
			"selector1": {Finding: rotation.Proven, Since: later(-1_000_000), CheckTime: later(-2)},
			"odd":       {Finding: rotation.Contradicted, CheckTime: later(-1), DenyTime: later(-3600), Reason: "MISSING"},
			"none":      {},
		},
		Served: map[string]rotation.Observation{
			"key1": {Finding: rotation.Unreachable, Since: later(-5), CheckTime: later(5), Reason: "NOT_ON_THE_LIST"},
		},
		Conditions: []rotation.Condition{
			{Group: keypair.RSA2048, Type: rotation.ConditionSigning, Reason: "NO_PROVEN_KEY", Message: "No key is proven.", Since: later(-7)},
			{Group: keypair.Ed25519, Type: rotation.ConditionRotation, OK: true, Reason: "WAITING", Since: later(-8)},
			{Type: "OTHER", Reason: "NO_PROVEN_KEY"},
		},
	}
}

var dueTests = map[string]func(*testing.T, *env){
	"due: a domain is due from its creation to its deletion": func(t *testing.T, e *env) {
		ctx := t.Context()
		e.setup(t, "acme")
		d := e.provision(t, "acme", "spamtrap.dk", "s1")
		fresh := []keystore.DueEntry{{Time: second, Brand: "acme", Domain: "spamtrap.dk", Revision: d.Revision}}
		wantEqual(t, "after the creation", e.due(t), fresh)
		c := keystore.Change{Domain: d, Due: later(60)}
		d = must(e.Apply(ctx, c))(t)
		wantEqual(t, "after a change", e.due(t), append(fresh, keystore.DueEntry{Time: later(60), Brand: "acme", Domain: "spamtrap.dk", Revision: d.Revision}))

		st := must(e.SaveStatus(ctx, aStatus(d, later(100)), nil, e.due(t)...))(t)
		wantEqual(t, "after a look", e.due(t), []keystore.DueEntry{{Time: later(100), Brand: "acme", Domain: "spamtrap.dk"}}, ignoreRevision)
		st.Due = later(50)
		must(e.SaveStatus(ctx, st, nil))(t)
		wantEqual(t, "after another", e.due(t), []keystore.DueEntry{{Time: later(50), Brand: "acme", Domain: "spamtrap.dk"}}, ignoreRevision)
		e.delete(t, d)
		wantEqual(t, "after the deletion", e.due(t), []keystore.DueEntry{})
	},

	"due: in order of time, with a limit, and not before": func(t *testing.T, e *env) {
		ctx := t.Context()
		e.setup(t, "acme")
		var want []keystore.DueEntry
		for i, at := range []time.Time{time.Unix(5, 0), later(-1000), later(0), later(1), time.Unix(9_999_999_998, 0)} {
			name := dnsname.Domain(fmt.Sprintf("d%d.example", 9-i))
			c := newDomain("acme", name, "s1")
			c.Due = at
			must(e.Apply(ctx, c))(t)
			want = append(want, keystore.DueEntry{Time: at.UTC(), Brand: "acme", Domain: name})
		}
		for n, at := range map[int]time.Time{1: later(-1001), 2: later(-1000), 3: now, 4: later(1), 5: time.Unix(9_999_999_998, 0)} {
			wantEqual(t, fmt.Sprintf("due at %s", at), must(e.DueBefore(ctx, at, 10))(t), want[:n], ignoreRevision)
			wantEqual(t, "the first", must(e.DueBefore(ctx, at, 1))(t), want[:1], ignoreRevision)
			next := time.Time{}
			if n < len(want) {
				next = want[n].Time
			}
			wantEqual(t, fmt.Sprintf("next after %s", at), must(e.NextDue(ctx, at))(t), next)
		}
		e.put(t, schema.DuePrefix()+"soon", "")
		_, err := e.NextDue(ctx, time.Unix(9_999_999_999, 0))
		wantErr(t, err, schema.ErrCorrupt)
		e.put(t, schema.DuePrefix()+"0", "")
		_, err = e.DueBefore(ctx, now, 10)
		wantErr(t, err, schema.ErrCorrupt)
	},

	"due: only what does not matter is dropped": func(t *testing.T, e *env) {
		ctx := t.Context()
		e.setup(t, "acme")
		d := e.provision(t, "acme", "spamtrap.dk", "s1")
		// The only entry of a domain stays, whether it has a status or not.
		only := e.due(t)
		if err := e.unchanged(t, func() error { return e.DropDue(ctx, nil, only...) }); err != nil {
			t.Fatal(err)
		}
		must(e.SaveStatus(ctx, aStatus(d, later(9)), nil, only...))(t)
		if err := e.unchanged(t, func() error { return e.DropDue(ctx, nil, e.due(t)...) }); err != nil {
			t.Fatal(err)
		}
		// One beside that of the status goes, unless it was written anew.
		must(e.Apply(ctx, keystore.Change{Domain: d}))(t)
		all := e.due(t)
		stale := all[0]
		stale.Revision--
		if err := e.unchanged(t, func() error { return e.DropDue(ctx, nil, stale) }); err != nil {
			t.Fatal(err)
		}
		if err := e.DropDue(ctx, nil, append(all, all...)...); err != nil {
			t.Fatal(err)
		}
		wantEqual(t, "left", e.due(t), all[1:])
		// A status without its entry protects the others.
		must(e.client.Delete(ctx, schema.DueKey(later(9), "acme", "spamtrap.dk")))(t)
		e.put(t, schema.DueKey(later(3), "acme", "spamtrap.dk"), "")
		if err := e.unchanged(t, func() error { return e.DropDue(ctx, nil, e.due(t)...) }); err != nil {
			t.Fatal(err)
		}
		// Those of domains that are not there go, however many.
		for i := range 100 {
			e.put(t, schema.DueKey(later(i), "acme", fmt.Sprintf("gone%d.example", i)), "")
		}
		if err := e.DropDue(ctx, nil, e.due(t)...); err != nil {
			t.Fatal(err)
		}
		wantEqual(t, "left", e.due(t), []keystore.DueEntry{{Time: later(3), Brand: "acme", Domain: "spamtrap.dk"}}, ignoreRevision)
	},

	"due: lost entries are found": func(t *testing.T, e *env) {
		ctx := t.Context()
		e.setup(t, "acme", "brand")
		var lost []keystore.DueEntry
		for i := range 150 {
			brand, name := "acme", dnsname.Domain(fmt.Sprintf("d%03d.example", i))
			if i >= 100 {
				brand = "brand"
			}
			d := e.provision(t, brand, name, "s1")
			entry := keystore.DueEntry{Time: later(100), Brand: brand, Domain: name}
			switch {
			case i%5 != 0: // the others have no status yet
				must(e.SaveStatus(ctx, aStatus(d, later(7)), nil, keystore.DueEntry{Time: second, Brand: brand, Domain: name}))(t)
			case i%2 == 0: // as a batch of published keys leaves it
				must(e.client.Delete(ctx, schema.DueKey(second, brand, string(name))))(t)
				e.put(t, schema.DueKey(keystore.LaterLook(d), brand, string(name)), "")
			}
			if i%3 == 0 {
				for _, at := range []time.Time{second, later(7), keystore.LaterLook(d)} {
					must(e.client.Delete(ctx, schema.DueKey(at, brand, string(name))))(t)
				}
			}
			if i%3 == 0 {
				lost = append(lost, entry)
			}
		}
		for _, limit := range []int{1000, 7} {
			added, pages := 0, 0
			for more, at := true, (keystore.Cursor{}); more; pages++ {
				var n int
				var err error
				if n, at, more, err = e.Reindex(ctx, nil, later(100), at, limit); err != nil {
					t.Fatal(err)
				}
				added += n
			}
			var got []keystore.DueEntry
			for _, entry := range e.due(t) {
				if entry.Time.Equal(later(100)) {
					got = append(got, entry)
				}
			}
			wantEqual(t, "entries added", got, lost, ignoreRevision)
			if want := (150 + limit - 1) / limit; pages != want {
				t.Errorf("%d pages of %d, want %d", pages, limit, want)
			}
			if added != len(lost) {
				t.Errorf("%d added, want %d", added, len(lost))
			}
			for _, entry := range got {
				must(e.client.Delete(ctx, schema.DueKey(entry.Time, entry.Brand, string(entry.Domain))))(t)
			}
		}
		if _, _, more, err := e.Reindex(ctx, nil, now, keystore.Cursor{Brand: "zzz"}, 10); more || err != nil {
			t.Errorf("after the last: more %t, %v", more, err)
		}
	},

	"status: life": func(t *testing.T, e *env) {
		ctx := t.Context()
		e.setup(t, "acme")
		d := e.provision(t, "acme", "spamtrap.dk", "s1")
		wantEqual(t, "no status", must(e.Status(ctx, "acme", "spamtrap.dk"))(t), keystore.Status{Brand: "acme", Domain: "spamtrap.dk"}, ignoreEntry)
		want := aStatus(d, later(60))
		serial := must(e.Zone(ctx, zoneName))(t).Revision
		saved := must(e.SaveStatus(ctx, want, nil))(t)
		want.Revision = e.revision(t)
		wantEqual(t, "as saved", saved, want, ignoreEntry)
		wantEqual(t, "as read", must(e.Status(ctx, "acme", "spamtrap.dk"))(t), want, ignoreEntry)
		if got := must(e.Zone(ctx, zoneName))(t).Revision; got != serial {
			t.Errorf("the zone went from %d to %d by a status", serial, got)
		}
		// The message of a condition that is well is not kept; nothing else changes.
		chatty := saved
		chatty.Conditions = append([]rotation.Condition{}, saved.Conditions...)
		chatty.Conditions[1].Message = "All is well."
		saved = must(e.SaveStatus(ctx, chatty, nil))(t)
		want.Revision = saved.Revision
		wantEqual(t, "of a chatty one", saved, want, ignoreEntry)

		wantErr(t, e.unchanged(t, func() error { _, err := e.SaveStatus(ctx, aStatus(d, later(1)), nil); return err }), keystore.ErrConflict)
		wantErr(t, e.unchanged(t, func() error { _, err := e.SaveStatus(ctx, chatty, nil); return err }), keystore.ErrConflict)
		wantErr(t, e.unchanged(t, func() error { _, err := e.SaveStatus(ctx, aStatus(d, time.Time{}), nil); return err }), keystore.ErrNoDue)
		d.Name = "other.dk"
		wantErr(t, e.unchanged(t, func() error { _, err := e.SaveStatus(ctx, aStatus(d, later(1)), nil); return err }), keystore.ErrDomainNotFound)

		names := make([]dnsname.Domain, 0, 150)
		for range 149 {
			names = append(names, "nobody.example")
		}
		all := must(e.StatusesOf(ctx, "acme", append(names, "spamtrap.dk")))(t)
		wantEqual(t, "the last of many", all[149], want, ignoreEntry)
		wantEqual(t, "the first of many", all[0], keystore.Status{Brand: "acme", Domain: "nobody.example"}, ignoreEntry)
	},

	"status: a domain that became due again meanwhile stays so": func(t *testing.T, e *env) {
		ctx := t.Context()
		e.setup(t, "acme")
		d := e.provision(t, "acme", "spamtrap.dk", "s1")
		handled := e.due(t)
		must(e.Apply(ctx, addKeys(d, "s2")))(t) // in the same second
		wantErr(t, e.unchanged(t, func() error { _, err := e.SaveStatus(ctx, aStatus(d, later(60)), nil, handled...); return err }), keystore.ErrConflict)
		d = must(e.Domain(ctx, "acme", "spamtrap.dk"))(t)
		c := addKeys(d, "s3")
		st := aStatus(d, time.Time{})
		c.Status, c.Due, c.Handled = &st, later(60), handled
		wantErr(t, e.unchanged(t, func() error { _, err := e.Apply(ctx, c); return err }), keystore.ErrConflict)
		c.Handled = e.due(t)
		d = must(e.Apply(ctx, c))(t)
		wantEqual(t, "due", e.due(t), []keystore.DueEntry{{Time: later(60), Brand: "acme", Domain: "spamtrap.dk", Revision: d.Revision}})
	},

	"status: with a change, or neither": func(t *testing.T, e *env) {
		ctx := t.Context()
		e.setup(t, "acme")
		c := newDomain("acme", "spamtrap.dk", "s1")
		st := aStatus(c.Domain, time.Time{})
		c.Status, c.Due = &st, later(10)
		d := must(e.Apply(ctx, c))(t)
		saved := must(e.Status(ctx, "acme", "spamtrap.dk"))(t)
		st.Due, st.Revision = later(10), d.Revision
		wantEqual(t, "status", saved, st, ignoreEntry)

		// The same second again: one entry, no error.
		c = addKeys(d, "s2")
		c.Status, c.Due, c.Handled = &saved, later(10), e.due(t)
		d = must(e.Apply(ctx, c))(t)
		wantEqual(t, "due", e.due(t), []keystore.DueEntry{{Time: later(10), Brand: "acme", Domain: "spamtrap.dk", Revision: d.Revision}})

		c = addKeys(d, "s3")
		c.Status = &saved // no longer the one that stands
		wantErr(t, e.unchanged(t, func() error { _, err := e.Apply(ctx, c); return err }), keystore.ErrConflict)
		saved = must(e.Status(ctx, "acme", "spamtrap.dk"))(t)
		c.Status, c.Due = &saved, later(20)
		d = must(e.Apply(ctx, c))(t)
		wantEqual(t, "due", e.due(t), []keystore.DueEntry{{Time: later(20), Brand: "acme", Domain: "spamtrap.dk", Revision: d.Revision}})
	},

	"fence: who no longer leads writes nothing": func(t *testing.T, e *env) {
		ctx := t.Context()
		e.setup(t, "acme")
		d := e.provision(t, "acme", "spamtrap.dk", "s1")
		e.provision(t, "acme", "lost.dk", "s9")
		must(e.client.Delete(ctx, schema.DueKey(second, "acme", "lost.dk")))(t)
		orphan := keystore.DueEntry{Time: later(1), Brand: "acme", Domain: "gone.dk"}
		e.put(t, schema.DueKey(orphan.Time, orphan.Brand, string(orphan.Domain)), "")
		writes := func(f *keystore.Fence) map[string]func() error {
			c := addKeys(d, "s2")
			c.Fence = f
			alone := keystore.Change{Domain: keystore.Domain{Brand: "acme", Name: "new.dk", Zone: zoneName}, Fence: f}
			return map[string]func() error{
				"Apply":      func() error { _, err := e.Apply(ctx, c); return err },
				"Apply new":  func() error { _, err := e.Apply(ctx, alone); return err },
				"ApplyBatch": func() error { return e.ApplyBatch(ctx, []keystore.Change{c})[0].Err },
				"SaveStatus": func() error { _, err := e.SaveStatus(ctx, aStatus(d, later(5)), f); return err },
				"DropDue":    func() error { return e.DropDue(ctx, f, orphan) },
				"Reindex":    func() error { _, _, _, err := e.Reindex(ctx, f, later(3), keystore.Cursor{}, 10); return err },
			}
		}
		fence := e.lead(t)
		must(e.client.Delete(ctx, fence.Key))(t)
		for name, write := range writes(fence) {
			if err := e.unchanged(t, write); !errors.Is(err, keystore.ErrFenced) {
				t.Errorf("%s after the term: %v, want %v", name, err, keystore.ErrFenced)
			}
		}
		// Somebody else's term under the same key is another one.
		next := e.lead(t)
		for name, write := range writes(fence) {
			if err := e.unchanged(t, write); !errors.Is(err, keystore.ErrFenced) {
				t.Errorf("%s in another's term: %v, want %v", name, err, keystore.ErrFenced)
			}
		}
		// Under a fence that holds, errors are what they are without one.
		stale := addKeys(d, "s2")
		stale.Domain.Revision--
		stale.Fence = next
		wantErr(t, e.unchanged(t, func() error { _, err := e.Apply(ctx, stale); return err }), keystore.ErrConflict)
		for name, write := range writes(next) {
			if name == "ApplyBatch" {
				continue // the same change as Apply
			}
			if err := write(); err != nil {
				t.Errorf("%s of the leader: %v", name, err)
			}
		}
	},

	"due: values that do not decode": func(t *testing.T, e *env) {
		ctx := t.Context()
		e.setup(t, "acme")
		e.provision(t, "acme", "spamtrap.dk", "s1")
		for name, v := range map[string]*schemapb.Status{
			"numbers of aliases":    {Aliases: []uint64{0, 0, 0}},
			"numbers of served":     {Served: []uint64{0}},
			"numbers of conditions": {Conditions: []uint64{0}},
			"finding":               {Served: []uint64{0, 4, 0, 0, 0, 0}},
			"finding of many bits":  {Served: []uint64{0, 256 + 1, 0, 0, 0, 0}},
			"algorithm":             {Conditions: []uint64{5, 0, 0, 0, 0, 0}},
			"algorithm of bits":     {Conditions: []uint64{256 + 1, 0, 0, 0, 0, 0}},
			"unknown word":          {Conditions: []uint64{1, 9999, 0, 0, 0, 0}},
			"word that is missing":  {Aliases: []uint64{2, 0, 0, 0, 0, 0}},
			"reason missing":        {Served: []uint64{0, 1, 0, 0, 0, 2}},
			"message missing":       {Conditions: []uint64{1, 0, 0, 0, 2, 0}},
			"reason of a condition": {Conditions: []uint64{1, 0, 0, 2, 0, 0}},
		} {
			e.put(t, schema.StatusKey("acme", "spamtrap.dk"), string(must(proto.Marshal(v))(t)))
			got, err := e.Status(ctx, "acme", "spamtrap.dk")
			if !errors.Is(err, schema.ErrCorrupt) || !cmp.Equal(got, keystore.Status{}, ignoreEntry) {
				t.Errorf("%s: got %+v, %v; want %v", name, got, err, schema.ErrCorrupt)
			}
			_, err = e.StatusesOf(ctx, "acme", []dnsname.Domain{"spamtrap.dk"})
			wantErr(t, err, schema.ErrCorrupt)
			wantErr(t, e.DropDue(ctx, nil, e.due(t)...), schema.ErrCorrupt)
		}
		// One that does not decode is no reason never to look at the domain again.
		added, _, _, err := e.Reindex(ctx, nil, later(5), keystore.Cursor{}, 10)
		if added != 1 || err != nil {
			t.Errorf("%d added, %v; want 1", added, err)
		}
		e.put(t, schema.DomainPrefix("acme")+"a/b", "")
		_, _, _, err = e.Reindex(ctx, nil, later(5), keystore.Cursor{}, 10)
		wantErr(t, err, schema.ErrCorrupt)
	},
}
