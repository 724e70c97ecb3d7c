package controller_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/prober"
	"github.com/dkimzone/dkimzone/internal/rotation"
)

const day = 24 * time.Hour

// after lets time pass and everything come to rest.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func checkStates(t *testing.T, w *world, name dnsname.Domain, want string) {
	t.Helper()
	if got := states(w.domain(t, name)); got != want {
		t.Errorf("%s at %s: %s, want %s", name, time.Now().UTC().Format(time.DateTime), got, want)
	}
}

// Many domains that are due at once are begun at the rate that is allowed.
func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const seconds, questions = 3, 4 // a domain of two selectors
		w := newWorld(t)
		for i := range testRate * (seconds + 2) {
			w.provision(t, dnsname.Domain(fmt.Sprintf("d%04d.example", i)))
		}
		defer w.start(t)()
		for i := range seconds {
			after(time.Second)
			w.dns.mu.Lock()
			looks := w.dns.asked / questions
			w.dns.mu.Unlock()
			if most := testRate * (i + 2); looks > most || looks < most-testRate {
				t.Errorf("%d domains were looked at after %d s, want %d to %d", looks, i+1, most-testRate, most)
			}
		}
	})
}

// A year of a domain whose customer does everything right: the keys take turns,
// and no selector shows a new key without having shown none.
func TestYear(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.provision(t, "spamtrap.dk")
		stop := w.start(t)
		defer stop()

		after(23 * time.Hour)
		checkStates(t, w, "spamtrap.dk", "selector1 PREPARED, selector2 PREPARED")
		after(2 * time.Hour)
		checkStates(t, w, "spamtrap.dk", "selector1 ACTIVE, selector2 PREPARED")

		seen := []string{states(w.domain(t, "spamtrap.dk"))}
		for range 365 * 24 / 3 {
			after(3 * time.Hour)
			if s := states(w.domain(t, "spamtrap.dk")); s != seen[len(seen)-1] {
				seen = append(seen, s)
			}
		}
		turn := []string{
			"selector1 ACTIVE, selector2 PREPARED",
			"selector1 RETIRING, selector2 ACTIVE",
			"selector1 REVOKED, selector2 ACTIVE",
			"selector1 PREPARED, selector2 ACTIVE",
			"selector1 ACTIVE, selector2 RETIRING",
			"selector1 ACTIVE, selector2 REVOKED",
		}
		var want []string
		for i := range seen {
			want = append(want, turn[i%len(turn)])
		}
		if diff := cmp.Diff(want, seen); diff != "" || len(seen) < 10 {
			t.Errorf("a year went through %d states (-want +got):\n%s", len(seen), diff)
		}
		if lag := time.Until(w.status(t, "spamtrap.dk").Due); lag < 0 || lag > 6*time.Hour {
			t.Errorf("the domain is due in %s", lag)
		}
	})
}

func TestCustomerWithoutAlias(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.dns.set("selector1._domainkey.spamtrap.dk", prober.Missing)
		w.dns.set("selector2._domainkey.spamtrap.dk", prober.WrongTarget)
		w.provision(t, "spamtrap.dk")
		stop := w.start(t)
		defer stop()

		after(30 * day)
		checkStates(t, w, "spamtrap.dk", "selector1 PREPARED, selector2 PREPARED")
		var signing *rotation.Condition
		for _, c := range w.status(t, "spamtrap.dk").Conditions {
			if c.Type == rotation.ConditionSigning {
				signing = &c
			}
		}
		if signing == nil || signing.OK || time.Since(signing.Since) < 29*day {
			t.Errorf("condition %+v, want one that says since when nothing signs", signing)
		}

		// The second CNAME is mended: its key signs.
		w.dns.set("selector2._domainkey.spamtrap.dk", prober.OK)
		after(32 * time.Hour)
		checkStates(t, w, "spamtrap.dk", "selector1 PREPARED, selector2 ACTIVE")
	})
}

// When the CNAME of the key that signs disappears, the standby takes over, at
// the next check at the latest.
func TestFailover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.provision(t, "spamtrap.dk")
		stop := w.start(t)
		defer stop()
		after(3 * day)
		checkStates(t, w, "spamtrap.dk", "selector1 ACTIVE, selector2 PREPARED")

		w.dns.set("selector1._domainkey.spamtrap.dk", prober.Missing)
		after(6*time.Hour + 2*poll)
		checkStates(t, w, "spamtrap.dk", "selector1 RETIRING, selector2 ACTIVE")
		events := history(t, w, "spamtrap.dk")
		if !strings.Contains(events, "controller ACTIVATE selector2 FAILOVER") {
			t.Errorf("history:\n%s", events)
		}
	})
}

func history(t *testing.T, w *world, name dnsname.Domain) string {
	t.Helper()
	events, err := w.store.History(t.Context(), "acme", name)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, e := range events {
		fmt.Fprintf(&text, "%s %s %s %s\n", e.Actor, e.Action, e.Selector, e.Reason)
	}
	return text.String()
}

// A day without etcd delays what is due and loses nothing.
func TestStoreAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.provision(t, "spamtrap.dk")
		stop := w.start(t)
		defer stop()
		after(12 * time.Hour)
		w.fake.SetError(keystore.ErrUnavailable)
		after(day)
		w.fake.SetError(nil)
		checkStates(t, w, "spamtrap.dk", "selector1 PREPARED, selector2 PREPARED")
		after(2 * time.Hour)
		checkStates(t, w, "spamtrap.dk", "selector1 ACTIVE, selector2 PREPARED")
	})
}

// Who lost the lead while it asked DNS cannot write any more.
func TestDeposed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.provision(t, "spamtrap.dk")
		w.dns.hook = sync.OnceFunc(func() {
			w.terms.mu.Lock()
			defer w.terms.mu.Unlock()
			if _, err := w.fake.Delete(t.Context(), w.terms.last.fence.Key); err != nil {
				t.Error(err)
			}
			<-w.terms.hold // nobody wins the next election
		})
		before := w.status(t, "spamtrap.dk").Revision
		stop := w.start(t)
		after(2 * poll)
		if got := w.status(t, "spamtrap.dk").Revision; got != before || w.dns.asked == 0 {
			t.Errorf("status was written at revision %d by a leader that was deposed while it asked %d questions", got, w.dns.asked)
		}
		w.terms.hold <- struct{}{}
		defer stop()
		after(25 * time.Hour)
		checkStates(t, w, "spamtrap.dk", "selector1 ACTIVE, selector2 PREPARED")
	})
}

// Two controllers, and a leader that ends and comes back at any moment, make
// the same life of a domain as one that never ends.
func TestRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.provision(t, "spamtrap.dk")
		second := w.start(t)
		defer second()
		for i := range 500 {
			stop := w.start(t)
			after(time.Duration(i%7)*5*time.Hour + time.Duration(i%13)*time.Minute)
			stop()
		}
		active := 0
		for _, k := range w.domain(t, "spamtrap.dk").Keys {
			if k.State == rotation.Active {
				active++
			}
		}
		if n := strings.Count(history(t, w, "spamtrap.dk"), "ACTIVATE"); active != 1 || n < 4 || n > 5 {
			t.Errorf("%d active keys after %d switches in 310 days", active, n)
		}
	})
}

// A domain for which no key can be made does not hold up others.
func TestFailingDomain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.setPolicy(t, rotation.Override{JitterPercent: new(int)})
		w.provision(t, "spamtrap.dk")
		stop := w.start(t)
		defer stop()
		after(100 * day)
		w.keys.set(errors.New("no entropy"))
		after(14 * day) // the refill falls into this time
		checkStates(t, w, "spamtrap.dk", "selector1 REVOKED, selector2 ACTIVE")
		for i := range 20 {
			w.keys.set(nil)
			w.provision(t, dnsname.Domain(fmt.Sprintf("d%d.example", i)))
			w.keys.set(errors.New("no entropy"))
		}
		after(25 * time.Hour)
		for i := range 20 {
			checkStates(t, w, dnsname.Domain(fmt.Sprintf("d%d.example", i)), "selector1 ACTIVE, selector2 PREPARED")
		}
		w.keys.set(nil)
		after(time.Hour)
		checkStates(t, w, "spamtrap.dk", "selector1 PREPARED, selector2 ACTIVE")
	})
}

// A limit of a brand spreads the switches that are due at the same time.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		perHour := 10
		w.setPolicy(t, rotation.Override{MaxPerHour: &perHour, JitterPercent: new(int)})
		const total = 30
		for i := range total {
			w.provision(t, dnsname.Domain(fmt.Sprintf("d%d.example", i)))
		}
		stop := w.start(t)
		defer stop()
		switched := func() int {
			n := 0
			for i := range total {
				if strings.Contains(states(w.domain(t, dnsname.Domain(fmt.Sprintf("d%d.example", i)))), "RETIRING") {
					n++
				}
			}
			return n
		}
		// First keys do not wait; they signed from the second day on.
		after(2 * day)
		if n := switched(); n != 0 {
			t.Fatalf("%d domains have rotated already", n)
		}
		after(88 * day)
		last := switched()
		most := 0
		for range 72 {
			after(time.Hour)
			n := switched()
			most = max(most, n-last)
			last = n
		}
		if last != total || most > perHour+1 {
			t.Errorf("%d of %d domains have rotated, at most %d in an hour; the limit is %d", last, total, most, perHour)
		}
	})
}
