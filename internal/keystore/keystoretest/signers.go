package keystoretest

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/internal/schema/schemapb"
)

type uses = map[string]time.Time

var signerTests = map[string]func(*testing.T, *env){
	"signer: life": func(t *testing.T, e *env) {
		ctx := t.Context()
		_, err := e.Signer(ctx, "mta1")
		wantErr(t, err, keystore.ErrSignerNotFound)
		want := keystore.Signer{ID: "mta1", Brand: "acme", Description: "first", RegisterTime: now, LeaseExpiry: now.Add(time.Hour)}
		sg := must(e.PutSigner(ctx, want))(t)
		want.Revision = e.revision(t)
		wantEqual(t, "as registered", sg, want)
		wantErr(t, e.unchanged(t, func() error { _, err := e.PutSigner(ctx, keystore.Signer{ID: "mta1"}); return err }), keystore.ErrConflict)
		renewed := sg
		renewed.LeaseExpiry = now.Add(2 * time.Hour)
		renewed = must(e.PutSigner(ctx, renewed))(t)
		wantErr(t, e.unchanged(t, func() error { _, err := e.PutSigner(ctx, sg); return err }), keystore.ErrConflict)
		wantErr(t, e.unchanged(t, func() error { return e.DeleteSigner(ctx, sg) }), keystore.ErrConflict)
		wantEqual(t, "as read", must(e.Signer(ctx, "mta1"))(t), renewed)

		everybodys := must(e.PutSigner(ctx, keystore.Signer{ID: "mta0"}))(t)
		others := must(e.PutSigner(ctx, keystore.Signer{ID: "mta2", Brand: "other"}))(t)
		wantEqual(t, "of acme", must(e.Signers(ctx, "acme"))(t), []keystore.Signer{everybodys, renewed})
		wantEqual(t, "all", must(e.Signers(ctx, ""))(t), []keystore.Signer{everybodys, renewed, others})

		if err := e.DeleteSigner(ctx, renewed); err != nil {
			t.Fatal(err)
		}
		wantErr(t, e.DeleteSigner(ctx, renewed), keystore.ErrSignerNotFound)
		wantErr(t, e.unchanged(t, func() error { return e.DeleteSigner(ctx, keystore.Signer{ID: "nobody"}) }), keystore.ErrSignerNotFound)
		_, err = e.PutSigner(ctx, renewed)
		wantErr(t, err, keystore.ErrSignerNotFound)

		e.put(t, schema.SignerKey("mta0"), "\x0a\xff")
		_, err = e.Signer(ctx, "mta0")
		wantErr(t, err, schema.ErrCorrupt)
		_, err = e.Signers(ctx, "acme")
		wantErr(t, err, schema.ErrCorrupt)
	},

	"report: what is known only grows": func(t *testing.T, e *env) {
		ctx := t.Context()
		e.setup(t, "acme")
		d := e.provision(t, "acme", "spamtrap.dk", "s1")
		report := func(at int, holds uses) keystore.Report {
			return keystore.Report{Signer: "mta1", Brand: "acme", Domain: "spamtrap.dk", Time: later(at), Holds: holds}
		}
		put := func(r keystore.Report) {
			t.Helper()
			if unknown := must(e.PutReports(ctx, []keystore.Report{r}))(t); len(unknown) != 0 {
				t.Errorf("unknown: %v", unknown)
			}
		}
		want := func(what string, at int, holds, seen uses) {
			t.Helper()
			r := report(at, holds)
			r.FirstSeen = seen
			wantEqual(t, what, must(e.Reports(ctx, "acme", "spamtrap.dk"))(t), []keystore.Report{r})
		}
		put(report(1, uses{"key1": {}}))
		want("first", 1, uses{"key1": {}}, uses{"key1": later(1)})
		put(report(5, uses{"key1": later(4), "key2": {}}))
		want("second", 5, uses{"key1": later(4), "key2": {}}, uses{"key1": later(1), "key2": later(5)})
		// Twice, late, or with a last use that was known to be later.
		put(report(5, uses{"key1": later(4), "key2": {}}))
		if err := e.unchanged(t, func() error { _, err := e.PutReports(ctx, []keystore.Report{report(3, uses{"key3": {}})}); return err }); err != nil {
			t.Fatal(err)
		}
		put(report(9, uses{"key1": later(2), "key2": later(20)}))
		want("last", 9, uses{"key1": later(4), "key2": later(20)}, uses{"key1": later(1), "key2": later(5)})
		// A key that it no longer holds is held anew later.
		put(report(10, nil))
		want("of nothing", 10, uses{}, uses{})
		put(report(11, uses{"key1": {}}))
		want("again", 11, uses{"key1": {}}, uses{"key1": later(11)})

		must(e.PutReports(ctx, []keystore.Report{{Signer: "mta0", Brand: "acme", Domain: "spamtrap.dk", Time: later(1)}}))(t)
		all := must(e.Reports(ctx, "acme", "spamtrap.dk"))(t)
		if len(all) != 2 || all[0].Signer != "mta0" || all[1].Signer != "mta1" {
			t.Errorf("reports %+v", all)
		}
		e.delete(t, d)
		wantEqual(t, "after the deletion", must(e.Reports(ctx, "acme", "spamtrap.dk"))(t), []keystore.Report{})
	},

	"report: many at once": func(t *testing.T, e *env) {
		ctx := t.Context()
		e.setup(t, "acme")
		var reports []keystore.Report
		var missing []dnsname.Domain
		for i := range 150 {
			name := dnsname.Domain(fmt.Sprintf("d%d.example", i))
			if i%10 == 0 {
				missing = append(missing, name)
			} else {
				e.provision(t, "acme", name, "s1")
			}
			reports = append(reports, keystore.Report{Signer: "mta1", Brand: "acme", Domain: name, Time: second, Holds: uses{"k": {}}})
		}
		wantEqual(t, "unknown domains", must(e.PutReports(ctx, reports))(t), missing)
		wantEqual(t, "report on one that is not there", must(e.Reports(ctx, "acme", "d10.example"))(t), []keystore.Report{})
		if got := must(e.Reports(ctx, "acme", "d149.example"))(t); len(got) != 1 || len(got[0].Holds) != 1 {
			t.Errorf("report %+v", got)
		}
	},

	"report: races": func(t *testing.T, e *env) {
		ctx := t.Context()
		e.setup(t, "acme")
		d := e.provision(t, "acme", "spamtrap.dk", "s1")
		report := keystore.Report{Signer: "mta1", Brand: "acme", Domain: "spamtrap.dk", Time: later(2), Holds: uses{"k": later(1)}}
		s := e.before(2, func() {
			earlier := report
			earlier.Time, earlier.Holds = later(1), uses{"k": {}}
			must(e.PutReports(ctx, []keystore.Report{earlier}))(t)
		})
		must(s.PutReports(ctx, []keystore.Report{report}))(t)
		got := must(e.Reports(ctx, "acme", "spamtrap.dk"))(t)
		wantEqual(t, "first seen", got[0].FirstSeen, uses{"k": later(1)})
		wantEqual(t, "last use", got[0].Holds, uses{"k": later(1)})
		s = e.before(2, func() { e.delete(t, d) })
		wantEqual(t, "unknown", must(s.PutReports(ctx, []keystore.Report{report}))(t), []dnsname.Domain{"spamtrap.dk"})

		e.put(t, schema.ReportKey("acme", "spamtrap.dk", "mta1"), string(must(proto.Marshal(&schemapb.Report{KeyIds: []string{"k"}, Numbers: []uint64{1}}))(t)))
		_, err := e.Reports(ctx, "acme", "spamtrap.dk")
		wantErr(t, err, schema.ErrCorrupt)
		e.provision(t, "acme", "spamtrap.dk", "s1")
		_, err = e.PutReports(ctx, []keystore.Report{report})
		wantErr(t, err, schema.ErrCorrupt)
	},
}
