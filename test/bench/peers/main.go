// Command peers measures our name server beside others: each on one CPU, with
// the same zone and the same queries, dnsperf on another CPU. See
// docs/benchmarks.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"

	"github.com/dkimzone/dkimzone/test/peers"
)

type options struct {
	records []int
	rounds  int
	seconds int
	only    *regexp.Regexp
	doc     string
	dir     string
	keep    bool
}

func main() {
	o := options{records: []int{10_000, 200_000, 2_000_000}, only: regexp.MustCompile("")}
	flag.Func("records", "records in the zone; several numbers with commas between them make several zones (default 10000,200000,2000000)", func(s string) error {
		o.records = nil
		for field := range strings.SplitSeq(s, ",") {
			n, err := strconv.Atoi(field)
			if err != nil || n < 2 {
				return errors.New("numbers from 2")
			}
			o.records = append(o.records, n)
		}
		return nil
	})
	flag.IntVar(&o.rounds, "rounds", 3, "how often each server is started and measured; with 0 the zones are only prepared")
	flag.IntVar(&o.seconds, "seconds", 5, "length of a measurement")
	flag.Func("only", "measure only servers whose name matches this regular expression", func(s string) (err error) {
		o.only, err = regexp.Compile(s)
		return err
	})
	flag.StringVar(&o.doc, "doc", "", "Markdown file whose tables for these numbers of records are replaced")
	flag.StringVar(&o.dir, "dir", "build/peers", "working directory")
	flag.BoolVar(&o.keep, "keep", false, "use what an earlier run with -keep has prepared, and leave it for a later one")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	if err := peers.Install(ctx, os.Stderr, "nsd", "knotd", "named", "pdns_server", "dnsperf"); err != nil {
		return err
	}
	if o.dir, err = filepath.Abs(o.dir); err != nil {
		return err
	}
	if !o.keep {
		if err := os.RemoveAll(o.dir); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	}
	if err := build(ctx, o.dir); err != nil {
		return err
	}
	var zones []*zone
	for _, records := range o.records {
		z := newZone(ctx, o, records)
		if err := z.prepare(ctx); err != nil {
			return err
		}
		zones = append(zones, z)
	}
	if o.rounds == 0 {
		return nil
	}
	// All zones in each round, so that a change of the machine hits all alike.
	for round := range o.rounds {
		for _, z := range zones {
			for _, s := range z.servers {
				report("round %d, %d records: %s", round+1, z.set.Len(), s.Name)
				if err := z.measure(ctx, s); err != nil {
					return err
				}
			}
		}
	}
	return write(o, zones)
}

// write writes the tables.
func write(o options, zones []*zone) error {
	texts := make(map[string]string)
	for _, z := range zones {
		text := z.table()
		fmt.Println(text)
		if o.only.String() == "" { // no part takes the place of a whole table
			texts[strconv.Itoa(z.set.Len())] = text
		}
	}
	if len(zones) > 1 {
		text := bySize(o, zones)
		fmt.Println(text)
		texts["by records"] = text
	}
	if o.doc == "" {
		return nil
	}
	for mark, text := range texts {
		if err := replaceSection(o.doc, mark, text); err != nil {
			return err
		}
	}
	return nil
}

func report(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// build builds our programs, and etcd, into dir.
func build(ctx context.Context, dir string) error {
	for name, pkg := range map[string]string{
		"coredns": "./cmd/coredns", "mapdns": "./test/bench/mapdns", "etcd": "go.etcd.io/etcd/server/v3",
	} {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, name), pkg) //nolint:gosec // of the list above
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w\n%s", cmd, err, out)
		}
	}
	return nil
}
