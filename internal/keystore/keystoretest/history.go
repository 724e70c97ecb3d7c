package keystoretest

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/internal/schema/schemapb"
)

// happen is a change that only adds events.
func happen(d keystore.Domain, actions ...string) keystore.Change {
	c := keystore.Change{Domain: d, Actor: "alice"}
	for _, a := range actions {
		c.Events = append(c.Events, keystore.Event{Action: a})
	}
	return c
}

// actions are those of a domain's history.
func (e *env) actions(t testing.TB, brand string) []string {
	t.Helper()
	var actions []string
	for _, ev := range must(e.History(t.Context(), brand, "spamtrap.dk"))(t) {
		actions = append(actions, ev.Action)
	}
	return actions
}

var historyTests = map[string]func(*testing.T, *env){
	"history: what is kept of an event": func(t *testing.T, e *env) {
		ctx := t.Context()
		e.setup(t, "acme")
		c := newDomain("acme", "spamtrap.dk", "selector1")
		k := c.Domain.Keys[0]
		c.Actor = "alice"
		c.Events = []keystore.Event{
			{Action: "CREATED"},
			{
				Time: later(-5), Actor: "controller", Action: "ODD_ACTION", KeyID: k.ID, Selector: k.Selector, Algorithm: keypair.RSA4096,
				From: rotation.Prepared, To: rotation.Destroyed, Reason: "FAILOVER", Detail: "Because it had to be.",
			},
			{Action: "LONG", Detail: strings.Repeat("ü", 300), Reason: "not\xffUTF-8"},
		}
		d := must(e.Apply(ctx, c))(t)
		want := []keystore.Event{c.Events[0], c.Events[1], c.Events[2]}
		want[0].Time, want[0].Actor = second, "alice"
		want[2].Time, want[2].Actor, want[2].Detail, want[2].Reason = second, "alice", strings.Repeat("ü", 128), "not\uFFFDUTF-8"
		wantEqual(t, "events of the domain", d.Events, want)
		reversed := []keystore.Event{want[2], want[1], want[0]}
		wantEqual(t, "history", must(e.History(ctx, "acme", "spamtrap.dk"))(t), reversed)

		// Of keys that are gone too, and by what is no change of a key.
		d = must(e.Apply(ctx, withdraw(d, "selector1")))(t)
		wantEqual(t, "history without the key", must(e.History(ctx, "acme", "spamtrap.dk"))(t), reversed)
		wantEqual(t, "events as read", must(e.Domain(ctx, "acme", "spamtrap.dk"))(t).Events, want)
		wantEqual(t, "history of nobody", must(e.History(ctx, "acme", "nobody.example"))(t), nil)
	},

	"history: the newest are kept": func(t *testing.T, e *env) {
		e.setup(t, "acme", "other")
		d := must(e.Apply(t.Context(), happen(newDomain("acme", "spamtrap.dk").Domain, "A0")))(t)
		size := len(e.dump(t))
		want := []string{"A0"}
		for i := 1; i <= 200; i++ {
			c := happen(d, fmt.Sprintf("A%d", i))
			if i%50 == 0 { // more at a time than a block has
				for n := range 20 {
					c.Events = append(c.Events, keystore.Event{Action: fmt.Sprintf("A%d-%d", i, n)})
				}
			}
			for _, ev := range c.Events {
				want = append([]string{ev.Action}, want...)
			}
			d = must(e.Apply(t.Context(), c))(t)
			got := e.actions(t, "acme")
			if len(got) < min(len(want), 48) || len(got) > 120 {
				t.Fatalf("%d events are kept of %d", len(got), len(want))
			}
			wantEqual(t, "history", got, want[:len(got)])
		}
		if n := len(e.dump(t)) - size; n != 4 {
			t.Errorf("the history takes %d keys, want 4", n)
		}

		// It outlives the domain, goes on with it, and is the brand's own.
		must(e.DeleteDomain(t.Context(), d, now, keystore.Event{Action: "DELETED"}))(t)
		want = append([]string{"DELETED"}, want...)
		got := e.actions(t, "acme")
		wantEqual(t, "history of the deleted domain", got, want[:len(got)])
		d = must(e.Apply(t.Context(), happen(newDomain("acme", "spamtrap.dk").Domain, "BACK")))(t)
		for range 16 {
			d = must(e.Apply(t.Context(), happen(d, "AGAIN")))(t)
		}
		got = e.actions(t, "acme")
		for range 16 {
			want = append([]string{"AGAIN"}, append([]string{}, want...)...)
		}
		want = append(want[:16:16], append([]string{"BACK"}, want[16:]...)...)
		wantEqual(t, "history of the domain made again", got, want[:len(got)])
		if len(got) < 48 {
			t.Errorf("%d events are kept", len(got))
		}
		must(e.DeleteDomain(t.Context(), d, now))(t)
		c := happen(newDomain("other", "spamtrap.dk").Domain, "TAKEN")
		c.TakeOver = true
		must(e.Apply(t.Context(), c))(t)
		wantEqual(t, "history with another brand", e.actions(t, "other"), []string{"TAKEN"})
	},

	"history: a change that is refused leaves none": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		d := must(e.Apply(t.Context(), happen(newDomain("acme", "spamtrap.dk").Domain, "A")))(t)
		must(e.Apply(t.Context(), happen(d, "B")))(t)
		wantErr(t, e.unchanged(t, func() error { _, err := e.Apply(t.Context(), happen(d, "C")); return err }), keystore.ErrConflict)
		wantEqual(t, "history", e.actions(t, "acme"), []string{"B", "A"})
	},

	"history: in a batch it costs no key": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		var plain, told []keystore.Change
		for i := range 40 {
			c := newDomain("acme", "spamtrap.dk", "s1")
			c.Domain.Name = publicationName(i)
			plain = append(plain, c)
			c = addKeys(keystore.Domain{Brand: "acme", Name: publicationName(1000 + i), Zone: zoneName}, "s1")
			c.Actor, c.Events = "alice", []keystore.Event{{Action: "PUBLISHED", KeyID: c.Domain.Keys[0].ID, Selector: "s1"}}
			told = append(told, c)
		}
		var keys, revisions [2]int64
		for i, changes := range [][]keystore.Change{plain, told} {
			before, from := len(e.dump(t)), e.revision(t)
			for _, r := range e.ApplyBatch(t.Context(), changes) {
				if r.Err != nil {
					t.Fatal(r.Err)
				}
			}
			keys[i], revisions[i] = int64(len(e.dump(t))-before), e.revision(t)-from
		}
		if keys[0] != keys[1] || revisions[0] != revisions[1] {
			t.Errorf("%d keys in %d transactions with events, %d in %d without", keys[1], revisions[1], keys[0], revisions[0])
		}
		got := must(e.History(t.Context(), "acme", publicationName(1007)))(t)
		if len(got) != 1 || got[0].Actor != "alice" || got[0].KeyID != told[7].Domain.Keys[0].ID {
			t.Errorf("history %+v", got)
		}
	},

	"history: values that do not decode": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		for name, v := range map[string]*schemapb.Events{
			"numbers":            {Numbers: []uint64{1}},
			"unknown word":       {Numbers: []uint64{0, 9999, 0, 0, 0, 0, 0, 0, 0}},
			"word that is gone":  {Numbers: []uint64{0, 0, 0, 4, 0, 0, 0, 0, 0}, Words: []string{"one"}},
			"algorithm":          {Numbers: []uint64{0, 0, 0, 0, 0, 5, 0, 0, 0}},
			"algorithm of bits":  {Numbers: []uint64{0, 0, 0, 0, 0, 256 + 1, 0, 0, 0}},
			"state":              {Numbers: []uint64{0, 0, 0, 0, 0, 0, 8*1 + 6, 0, 0}},
			"state before":       {Numbers: []uint64{0, 0, 0, 0, 0, 0, 8*6 + 1, 0, 0}},
			"states of many bit": {Numbers: []uint64{0, 0, 0, 0, 0, 0, 64, 0, 0}},
		} {
			e.put(t, schema.HistoryKey("acme", "odd.dk", 0), string(must(proto.Marshal(v))(t)))
			if _, err := e.History(t.Context(), "acme", "odd.dk"); !errors.Is(err, schema.ErrCorrupt) {
				t.Errorf("%s: %v, want %v", name, err, schema.ErrCorrupt)
			}
			e.put(t, schema.DomainKey("acme", "odd2.dk"), string(must(proto.Marshal(&schemapb.Domain{Events: v}))(t)))
			if _, err := e.Domain(t.Context(), "acme", "odd2.dk"); !errors.Is(err, schema.ErrCorrupt) {
				t.Errorf("%s in a domain: %v, want %v", name, err, schema.ErrCorrupt)
			}
		}
		e.put(t, schema.HistoryKey("acme", "odd.dk", 0), "\x0a\xff")
		_, err := e.History(t.Context(), "acme", "odd.dk")
		wantErr(t, err, schema.ErrCorrupt)
		e.put(t, schema.DomainKey("acme", "odd3.dk"), string(must(proto.Marshal(&schemapb.Domain{Kind: 3}))(t)))
		_, err = e.Domain(t.Context(), "acme", "odd3.dk")
		wantErr(t, err, schema.ErrCorrupt)
		e.put(t, schema.BrandKey("acme"), string(must(proto.Marshal(&schemapb.Brand{Mode: 3}))(t)))
		_, err = e.Brand(t.Context(), "acme")
		wantErr(t, err, schema.ErrCorrupt)
	},
}
