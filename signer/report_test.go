package signer_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/signer"
)

// later is the time, and as much later as a test says.
type later struct{ by atomic.Int64 }

func (l *later) now() time.Time { return time.Now().Add(time.Duration(l.by.Load())) }

// awaitReports waits until so many reports that had begun to be made by now have come.
func (d *dkimd) awaitReports(t *testing.T, n int) {
	t.Helper()
	before := d.count("ReportUse")
	await(t, "some reports", func() bool { return d.count("ReportUse") > before+n })
}

// A signer that signs nothing is heard of once more after a rotation, late enough to be
// taken to know of it, and not for ever.
func TestReportAgain(t *testing.T) {
	if signer.SettleAfter <= 2*rotation.Margin {
		t.Fatalf("a report %s after a change may not count: two clocks may differ by %s, and it has to be as much later", signer.SettleAfter, rotation.Margin)
	}
	for _, holds := range []bool{false, true} {
		t.Run(fmt.Sprintf("holds=%t", holds), func(t *testing.T) {
			d := newDkimd(t)
			d.rotate(t, spamtrap, "ed1")
			var k keeper
			o := signer.Options{Watch: true, Register: &signer.Registration{Name: "mx"}, ReportInterval: 20 * time.Millisecond}
			if holds {
				o.Holds = k.held
			}
			c := d.client(t, o)
			var clock later
			signer.SetClock(c, clock.now)
			next := d.rotate(t, spamtrap, "ed2")[0].GetKey()
			if holds {
				k.set(map[string]time.Time{next: {}})
				c.Held(spamtrap)
			}
			want := map[string]bool{next: false}
			await(t, "the report after the switch", func() bool { return cmp.Equal(d.heldLast(spamtrap), want) })
			d.awaitReports(t, 2)
			d.forgetReports()
			d.awaitReports(t, 2)
			if got := d.heldLast(spamtrap); got != nil {
				t.Errorf("reported %v although nothing happened", got)
			}
			clock.by.Store(int64(signer.SettleAfter))
			await(t, "one more report", func() bool { return cmp.Equal(d.heldLast(spamtrap), want) })
			d.awaitReports(t, 2)
			d.forgetReports()
			clock.by.Store(int64(10 * signer.SettleAfter))
			d.awaitReports(t, 2)
			if got := d.heldLast(spamtrap); got != nil {
				t.Errorf("reported %v once more again", got)
			}
		})
	}
}

// A key that a brand's domains share is of none of them. It is held, and reported when it
// changes.
func TestSharedKey(t *testing.T) {
	const shared, user = "brands/acme/domains/shared.acme.keys.example.net", "brands/acme/domains/user.dk"
	d := newDkimd(t)
	rotate := func() *dkimv1.SigningKey {
		keys := d.rotate(t, shared, "ed1")
		d.set(func() { d.active[user] = keys }, user)
		return keys[0]
	}
	first := rotate()
	c := d.client(t, signer.Options{Watch: true, Local: true, Register: &signer.Registration{Name: "mx"}, ReportInterval: 20 * time.Millisecond})
	reported := func(key *dkimv1.SigningKey) func() bool {
		return func() bool { _, ok := d.heldLast(shared)[key.GetKey()]; return ok }
	}
	await(t, "the report", reported(first))
	fetches := d.count("Fetch")
	for range 3 { // each is followed by a report of its use
		if err := sign(keysOf(t, c, "user.dk").Keys[0]); err != nil {
			t.Fatal(err)
		}
		d.awaitReports(t, 2)
	}
	if n := d.count("Fetch") - fetches; n != 0 {
		t.Errorf("the key was fetched %d times more", n)
	}
	await(t, "the report of the next one", reported(rotate()))
}
