package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/dkimzone/dkimzone/test/peers"
)

// result is what was measured of one server, once for each round.
type result struct {
	name                    string
	start                   []float64 // s
	cpu, perSecond, latency []float64 // µs for each answer; answers; ms
	rss, peak               []float64 // MiB
	lost                    float64   // share of the queries, over all rounds
	asked                   float64
}

const mib = 1 << 20

func (r *result) add(start, cpu time.Duration, a answers, u peers.Usage) {
	r.start = append(r.start, start.Seconds())
	r.cpu = append(r.cpu, cpu.Seconds()*1e6/a.completed)
	r.perSecond = append(r.perSecond, a.perSecond)
	r.latency = append(r.latency, float64(a.latency)/float64(time.Millisecond))
	r.rss = append(r.rss, float64(u.RSS)/mib)
	r.peak = append(r.peak, float64(u.Peak)/mib)
	r.lost += a.lost
	r.asked += a.completed + a.lost
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// spread is the median with the least and the greatest value, where there are
// several.
func spread(v []float64, format string) string {
	text := fmt.Sprintf(format, median(v))
	if len(v) > 1 {
		text += fmt.Sprintf(" ("+format+"–"+format+")", slices.Min(v), slices.Max(v))
	}
	return text
}

// table is the results in Markdown.
func table(records int, o options, results []result, l listing) string {
	var b strings.Builder
	base := make(map[string]float64)
	for _, r := range results {
		base[r.name] = median(r.cpu)
	}
	ratio := func(cpu float64, name string) string {
		if base[name] == 0 {
			return "–"
		}
		return fmt.Sprintf("%.2f", cpu/base[name])
	}
	rounds := "one round"
	if o.rounds > 1 {
		rounds = fmt.Sprintf("%d rounds", o.rounds)
	}
	fmt.Fprintf(&b, "%d records, %s of %d s; medians, with the least and the greatest value if there are several.\n\n", records, rounds, o.seconds)
	b.WriteString("| server | CPU µs/query | ÷ CoreDNS file | ÷ bare map | queries/s | latency ms | resident MiB | peak MiB | first answer s |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|---|\n")
	for _, r := range results {
		cpu := median(r.cpu)
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %.2f | %.0f | %.0f | %s |\n", r.name, spread(r.cpu, "%.1f"),
			ratio(cpu, file), ratio(cpu, bareMap), spread(r.perSecond, "%.0f"), median(r.latency), median(r.rss), median(r.peak), spread(r.start, "%.2f"))
	}
	b.WriteByte('\n')
	for _, r := range results {
		const worthTelling = 0.0001
		if r.asked > 0 && r.lost/r.asked > worthTelling {
			fmt.Fprintf(&b, "%s left %.2f %% of the queries unanswered.\n", r.name, 100*r.lost/r.asked)
		}
	}
	fmt.Fprintf(&b, "Loading etcd took %.1f s (%.0f records/s). A DNS node without a file gave its first answer %.2f s after its start, "+
		"having read the zone from etcd, and took at most %.0f MiB until then.\n",
		l.load.Seconds(), float64(records)/l.load.Seconds(), l.first.Seconds(), float64(l.usage.Peak)/mib)
	return b.String()
}

// replaceSection puts text between the marks for this number of records.
func replaceSection(name string, records int, text string) error {
	old, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	first, last := fmt.Sprintf("<!-- peers %d -->\n", records), fmt.Sprintf("<!-- end of peers %d -->\n", records)
	before, rest, ok := strings.Cut(string(old), first)
	_, after, ok2 := strings.Cut(rest, last)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no lines %q and %q", name, first, last)
	}
	return os.WriteFile(name, []byte(before+first+text+last+after), 0o644) //nolint:gosec // a document
}
