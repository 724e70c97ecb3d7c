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
	start                   []float64 // s
	cpu, perSecond, latency []float64 // µs for each answer; answers; ms
	storeCPU                []float64 // µs for each answer, of cpu
	rss, storeRSS, peak     []float64 // MiB
	lost                    float64   // queries, over all rounds
	asked                   float64
	terminal                *terminalAnswer // nil if it was not asked for
}

// terminalAnswer is what one query for the empty non-terminal led to.
type terminalAnswer struct {
	after time.Duration
	rcode string
	peak  int64 // octets
}

const mib = 1 << 20

// add adds a round, with the CPU time that its answers took.
func (r *result) add(start time.Duration, a answers, u peers.Usage) {
	perAnswer := func(t time.Duration) float64 { return t.Seconds() * 1e6 / a.completed }
	r.start = append(r.start, start.Seconds())
	r.cpu = append(r.cpu, perAnswer(u.CPU))
	r.storeCPU = append(r.storeCPU, perAnswer(u.StoreCPU))
	r.perSecond = append(r.perSecond, a.perSecond)
	r.latency = append(r.latency, float64(a.latency)/float64(time.Millisecond))
	r.rss = append(r.rss, float64(u.RSS)/mib)
	r.storeRSS = append(r.storeRSS, float64(u.StoreRSS)/mib)
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

// cpuOf is the median CPU time for a query that a server takes, or 0 if it was
// not measured.
func (z *zone) cpuOf(name string) float64 {
	for _, s := range z.servers {
		if s.Name == name {
			return median(s.cpu)
		}
	}
	return 0
}

// ratio is a/b, if both were measured.
func ratio(a, b float64) string {
	if a == 0 || b == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f", a/b)
}

func (o options) measurements() string {
	if o.rounds == 1 {
		return fmt.Sprintf("one round of %d s", o.seconds)
	}
	return fmt.Sprintf("%d rounds of %d s; medians, with the least and the greatest value", o.rounds, o.seconds)
}

// table is the results in Markdown.
func (z *zone) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d records, %s.\n\n", z.set.Len(), z.measurements())
	b.WriteString("| server | CPU µs/query | ÷ CoreDNS file | ÷ bare map | queries/s | latency ms | resident MiB | peak MiB | first answer s |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|---|\n")
	for _, s := range z.servers {
		cpu := median(s.cpu)
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %.2f | %.0f | %.0f | %s |\n", s.Name, spread(s.cpu, "%.1f"),
			ratio(cpu, z.cpuOf(file)), ratio(cpu, z.cpuOf(bareMap)), spread(s.perSecond, "%.0f"),
			median(s.latency), median(s.rss), median(s.peak), spread(s.start, "%.2f"))
	}
	b.WriteByte('\n')
	for _, s := range z.servers {
		const worthTelling = 0.0001
		if s.lost/s.asked > worthTelling {
			fmt.Fprintf(&b, "%s left %.2f %% of the queries unanswered.\n", s.Name, 100*s.lost/s.asked)
		}
		if s.Store != nil {
			fmt.Fprintf(&b, "%s: etcd takes %.0f µs of the CPU time and %.0f MiB of the memory.\n", s.Name, median(s.storeCPU), median(s.storeRSS))
		}
		if t := s.terminal; t != nil {
			fmt.Fprintf(&b, "One query for `_domainkey`, the last thing it was asked: %s after %.1f s, peak %d MiB.\n", t.rcode, t.after.Seconds(), t.peak/mib)
		}
	}
	l := z.listed
	fmt.Fprintf(&b, "Loading etcd with our records took %.1f s (%.0f records/s). A DNS node without a file gave its first answer %.2f s after its start, "+
		"having read the zone from etcd, and took at most %d MiB until then.\n",
		l.Load.Seconds(), float64(z.set.Len())/l.Load.Seconds(), l.First.Seconds(), l.Peak/mib)
	return b.String()
}

// bySize is how the cost of a query depends on the number of records.
func bySize(o options, zones []*zone) string {
	var b strings.Builder
	fmt.Fprintf(&b, "CPU µs/query, %s.\n\n", o.measurements())
	fmt.Fprintf(&b, "| records | %s | %s | %s | the second ÷ the map |\n|---|---|---|---|---|\n", ours, lean, bareMap)
	for _, z := range zones {
		fmt.Fprintf(&b, "| %d |", z.set.Len())
		for _, name := range []string{ours, lean, bareMap} {
			cell := "–"
			if i := slices.IndexFunc(z.servers, func(s *server) bool { return s.Name == name }); i >= 0 {
				cell = spread(z.servers[i].cpu, "%.1f")
			}
			fmt.Fprintf(&b, " %s |", cell)
		}
		fmt.Fprintf(&b, " %s |\n", ratio(z.cpuOf(lean), z.cpuOf(bareMap)))
	}
	return b.String()
}

// replaceSection puts text between the marks with this name.
func replaceSection(name, mark, text string) error {
	old, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	first, last := fmt.Sprintf("<!-- peers %s -->\n", mark), fmt.Sprintf("<!-- end of peers %s -->\n", mark)
	before, rest, ok := strings.Cut(string(old), first)
	_, after, ok2 := strings.Cut(rest, last)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no lines %q and %q", name, first, last)
	}
	return os.WriteFile(name, []byte(before+first+text+last+after), 0o644) //nolint:gosec // a document
}
