package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"regexp"
	"strconv"
	"time"

	"github.com/dkimzone/dkimzone/test/dataset"
)

const (
	queries  = 500_000
	perCent  = 100
	unknown  = 7 // per cent of the queries
	terminal = 3 // per cent, for the empty non-terminal

	// skew makes the most popular of 100 000 domains a tenth of the hits.
	skew = 1.1
	// stride spreads popular domains over the zone; it is prime.
	stride = 7_368_787
)

// writeQueries writes queries for dnsperf, those for the empty non-terminal
// only if terminals.
func writeQueries(w io.Writer, set dataset.Set, terminals bool) error {
	b := bufio.NewWriter(w)
	random := rand.New(rand.NewPCG(1, 2))
	popular := rand.NewZipf(random, skew, 1, uint64(set.Domains()-1)) //nolint:gosec // never negative
	for range queries {
		switch kind := random.IntN(perCent); {
		case kind < unknown:
			fmt.Fprintf(b, "selector%d-stranger-%07d-example._domainkey.%s TXT\n", 1+random.IntN(2), random.IntN(set.Domains()), dataset.Zone)
		case kind < unknown+terminal:
			if !terminals {
				continue
			}
			fmt.Fprintf(b, "_domainkey.%s TXT\n", dataset.Zone)
		default:
			domain := int(popular.Uint64()) * stride % set.Domains() //nolint:gosec // below the number of domains
			fmt.Fprintf(b, "%s.%s TXT\n", set.Owner(2*domain+random.IntN(2)), dataset.Zone)
		}
	}
	return b.Flush()
}

// answers is what dnsperf has counted.
type answers struct {
	completed float64
	perSecond float64
	latency   time.Duration // mean
	lost      float64
}

var (
	completed = regexp.MustCompile(`Queries completed:\s+([0-9]+)`)
	lost      = regexp.MustCompile(`Queries lost:\s+([0-9]+)`)
	perSecond = regexp.MustCompile(`Queries per second:\s+([0-9.]+)`)
	latency   = regexp.MustCompile(`Average Latency \(s\):\s+([0-9.]+)`)
	noError   = regexp.MustCompile(`NOERROR ([0-9]+) `)
	noName    = regexp.MustCompile(`NXDOMAIN ([0-9]+) `)
)

// dnsperf queries the server for some seconds: 8 clients, 200 queries in
// flight, EDNS.
func dnsperf(ctx context.Context, s *server, seconds int) (answers, error) {
	cmd := exec.CommandContext(ctx, "taskset", "-c", strconv.Itoa(clientCPU), "dnsperf", "-s", "127.0.0.1", "-p", strconv.Itoa(s.port), //nolint:gosec // numbers and our own file
		"-d", s.queries, "-c", "8", "-T", "1", "-q", "200", "-e", "-l", strconv.Itoa(seconds))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return answers{}, fmt.Errorf("%v: %w\n%s", cmd, err, out)
	}
	number := func(re *regexp.Regexp) float64 {
		m := re.FindSubmatch(out)
		if m == nil {
			return 0
		}
		n, perr := strconv.ParseFloat(string(m[1]), 64)
		if perr != nil {
			err = perr
		}
		return n
	}
	a := answers{
		completed: number(completed), perSecond: number(perSecond), lost: number(lost),
		latency: time.Duration(number(latency) * float64(time.Second)),
	}
	// A server that is quick because it answers something else shall not pass.
	denied := number(noName) / a.completed
	if err == nil && (a.completed == 0 || denied < (unknown-1)/float64(perCent) || denied > (unknown+1)/float64(perCent) ||
		number(noError)+number(noName) < a.completed) {
		err = fmt.Errorf("answers are not what the zone holds:\n%s", out)
	}
	return a, err
}
