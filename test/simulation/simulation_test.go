package simulation_test

import (
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/dkimzone/dkimzone/internal/rotation"
)

var (
	domains = flag.Int("domains", 400, "how many customers' domains there are")
	days    = flag.Int("days", 730, "how long they live")
	check   = flag.Duration("check", day, "how often domains are looked at")
	seed    = flag.Uint64("seed", 1, "of what happens")
	table   = flag.Bool("print", false, "print what happened")
)

const zones = 2

// TestSimulation runs two zones side by side. No message may fail that could have been saved.
func TestSimulation(t *testing.T) {
	began := time.Now()
	total := newTally()
	shards := make([]*shard, zones)
	var wg sync.WaitGroup
	for i := range shards {
		wg.Go(func() {
			shards[i] = newShard(*seed, uint64(i), *domains/zones, start.Add(time.Duration(*days)*day), policy(*domains/zones))
			shards[i].run()
		})
	}
	wg.Wait()
	for _, s := range shards {
		total.add(&s.tally)
	}
	if *table {
		total.print(os.Stdout)
		fmt.Printf("\nseed %d, %.0f s\n", *seed, time.Since(began).Seconds())
	}
	if n := total.failed[classOurs]; n > 0 {
		t.Errorf("%d messages failed by our fault, such as\n%s", n, total.examples[0])
	}
	p := policy(*domains / zones)
	if most := p.CheckInterval + outage.End.Sub(outage.Start) + 2*time.Hour; total.unnoticed > most {
		t.Errorf("a removed alias went unnoticed for %v, more than %v", total.unnoticed, most)
	}
	if want := *domains * (*days - 300) / 90; total.activated["SCHEDULED"] < want/3 {
		t.Errorf("%d rotations: too few to prove anything", total.activated["SCHEDULED"])
	}
	if total.own == 0 || total.shared == 0 || total.fallback == 0 || total.failed[classCustomer] == 0 || total.failed[classCompromised] == 0 {
		t.Errorf("something never happened: %+v", total)
	}
}

// A policy that is too hasty for the mail and the caches of this world is found out.
func TestHaste(t *testing.T) {
	for name, hurry := range map[string]func(*rotation.Policy){
		"drain": func(p *rotation.Policy) { p.Drain = time.Hour },
		"lead":  func(p *rotation.Policy) { p.Lead = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			p := policy(100)
			hurry(&p)
			s := newShard(*seed, 0, 100, start.Add(300*day), p)
			s.run()
			if s.failed[classOurs] == 0 {
				t.Errorf("of %d messages none failed", s.received)
			}
		})
	}
}

func (t *tally) print(w io.Writer) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "| %s | %s |\n", name, fmt.Sprintf(format, args...))
	}
	fmt.Fprintf(w, "| %d domains, %d days, a look each %s | |\n|---|---|\n", *domains, *days, *check)
	line("looks at the DNS", "%d", t.looks)
	for _, reason := range slices.Sorted(maps.Keys(t.activated)) {
		line("keys that became ACTIVE, "+reason, "%d", t.activated[reason])
	}
	line("switches put off to another hour", "%d", t.paced)
	line("largest burst", "%d scheduled switches of a zone in an hour; %d keys of a zone that became ACTIVE, first ones too, in that from %s", t.waited, t.largest, t.largestAt.Format("2006-01-02 15:04"))
	for _, reason := range slices.Sorted(maps.Keys(t.blockedDays)) {
		line("blocked, "+reason, "%.0f days of domains, %d groups at the end", t.blockedDays[reason], t.blockedNow[reason])
	}
	line("oldest ACTIVE key", "%.1f days; %.1f where rotation is blocked", t.oldest.Hours()/24, t.oldestBlocked.Hours()/24)
	line("signatures", "%d with the domain's key, %d with a shared one, %d with the brand's default", t.own, t.shared, t.fallback)
	line("messages not signed", "%d", t.unsigned)
	line("signatures verified", "%d", t.received)
	line("failed, ours", "%d", t.failed[classOurs])
	line("failed, alias removed before we could know", "%d; signed at most %s after the removal", t.failed[classCustomer], t.unnoticed.Round(time.Minute))
	line("failed, key revoked as compromised", "%d", t.failed[classCompromised])
}
