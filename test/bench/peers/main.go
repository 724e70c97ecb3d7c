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
	"slices"
	"syscall"
	"time"

	"github.com/dkimzone/dkimzone/test/dataset"
	"github.com/dkimzone/dkimzone/test/peers"
)

type options struct {
	records int
	rounds  int
	seconds int
	only    string
	doc     string
	dir     string
}

const (
	serverCPU = 0
	clientCPU = 1
)

func main() {
	var o options
	flag.IntVar(&o.records, "records", 200_000, "records in the zone")
	flag.IntVar(&o.rounds, "rounds", 3, "how often each server is started and measured")
	flag.IntVar(&o.seconds, "seconds", 5, "length of a measurement")
	flag.StringVar(&o.only, "only", "", "measure only servers whose name matches this regular expression")
	flag.StringVar(&o.doc, "doc", "", "Markdown file whose table for this number of records is replaced")
	flag.StringVar(&o.dir, "dir", "build/peers", "working directory, emptied first")
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
	only, err := regexp.Compile(o.only)
	if err != nil {
		return err
	}
	if err := peers.Install(ctx, os.Stderr, "nsd", "knotd", "named", "pdns_server", "dnsperf"); err != nil {
		return err
	}
	if o.dir, err = filepath.Abs(o.dir); err != nil {
		return err
	}
	if err := os.RemoveAll(o.dir); err != nil {
		return err
	}
	b := &bench{options: o, set: dataset.New(o.records)}
	if err := b.build(ctx); err != nil {
		return err
	}
	report("writing %d records and the queries", b.set.Len())
	if err := b.write(); err != nil {
		return err
	}
	listed, err := b.fill(ctx)
	if err != nil {
		return err
	}
	servers := slices.DeleteFunc(b.servers(ctx), func(s peers.Server) bool { return !only.MatchString(s.Name) })
	results := make([]result, len(servers))
	for i, s := range servers {
		results[i].name = s.Name
		if err := b.prepare(ctx, i, s); err != nil {
			return err
		}
	}
	for round := range o.rounds {
		for i, s := range servers {
			report("round %d: %s", round+1, s.Name)
			if err := b.measure(ctx, i, s, &results[i]); err != nil {
				return err
			}
		}
	}
	text := table(b.set.Len(), o, results, listed)
	fmt.Print(text)
	if o.doc != "" {
		return replaceSection(o.doc, b.set.Len(), text)
	}
	return nil
}

func report(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

type bench struct {
	options
	set dataset.Set
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

// build builds our programs, and etcd.
func (b *bench) build(ctx context.Context) error {
	for name, pkg := range map[string]string{
		"coredns": "./cmd/coredns", "mapdns": "./test/bench/mapdns", "etcd": "go.etcd.io/etcd/server/v3",
	} {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", b.path(name), pkg) //nolint:gosec // of the list above
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w\n%s", cmd, err, out)
		}
	}
	return nil
}

// write writes the master file and the queries.
func (b *bench) write() error {
	zone, err := os.Create(b.path("zone"))
	if err != nil {
		return err
	}
	if err := errors.Join(b.set.WriteMaster(zone, 1, false), zone.Close()); err != nil {
		return err
	}
	queries, err := os.Create(b.path("queries"))
	if err != nil {
		return err
	}
	return errors.Join(writeQueries(queries, b.set), queries.Close())
}

// listing is what it took to bring the zone from etcd to a DNS node.
type listing struct {
	load  time.Duration // all records into etcd
	first time.Duration // from the start of the node to its first answer
	usage peers.Usage
}

// fill loads the zone into an etcd and lets our server read it from there and
// write its file, with which it starts when it is measured: without etcd.
func (b *bench) fill(ctx context.Context) (l listing, err error) {
	report("loading etcd")
	etcd, err := peers.StartEtcd(ctx, b.path("etcd"), b.path("etcd.data"))
	if err != nil {
		return l, err
	}
	defer func() { err = errors.Join(err, etcd.Stop(), os.RemoveAll(b.path("etcd.data"))) }()
	began := time.Now()
	if _, err := b.set.Load(ctx, etcd.Client, false); err != nil {
		return l, err
	}
	l.load = time.Since(began)
	report("reading the zone from etcd")
	s := peers.CoreDNS("from etcd", b.path("coredns"), b.dkim(etcd.URL))
	dir := b.path("from-etcd")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return l, err
	}
	port, err := peers.FreePort()
	if err != nil {
		return l, err
	}
	if err := s.Prepare(ctx, dir, port, b.source()); err != nil {
		return l, err
	}
	p, err := s.Run(ctx, dir, port, serverCPU, b.first())
	if err != nil {
		return l, err
	}
	l.first = p.Start
	l.usage, err = p.Usage(true)
	return l, errors.Join(err, p.Stop())
}

// dkim is the plugin's block.
func (b *bench) dkim(endpoint string) string {
	return fmt.Sprintf("dkim {\nendpoint %s\ndata_dir %s\n}\n", endpoint, b.path("replica"))
}

func (b *bench) source() peers.Source {
	return peers.Source{Zone: dataset.Zone, Master: b.path("zone")}
}

// first is a name to ask for first: the last one, since a server might answer
// before it has read all.
func (b *bench) first() string { return b.set.Owner(b.set.Len()-1) + "." + dataset.Zone }

// nowhere is an endpoint that refuses connections.
const nowhere = "http://127.0.0.1:1"

// Names of servers that others are compared with.
const (
	ours    = "**dkimzone**, as in operation"
	lean    = "dkimzone, only bind and errors with it"
	bareMap = "bare CoreDNS plugin over a Go map"
	file    = "CoreDNS 1.15.0 file"
)

func (b *bench) servers(ctx context.Context) []peers.Server {
	dkim := b.dkim(nowhere)
	metrics := "prometheus 127.0.0.1:0\nready 127.0.0.1:0\nhealth 127.0.0.1:0\nreload\n"
	return append([]peers.Server{
		peers.CoreDNS(ours, b.path("coredns"), dkim+metrics),
		peers.CoreDNS(lean, b.path("mapdns"), dkim),
		peers.CoreDNS(bareMap, b.path("mapdns"), "map MASTER\n"),
		peers.CoreDNS(file, b.path("coredns"), "file MASTER {\nreload 0\n}\n"),
	}, peers.Peers(ctx)...)
}

func (b *bench) serverDir(i int) string { return b.path(fmt.Sprintf("server%d", i)) }

func (b *bench) prepare(ctx context.Context, i int, s peers.Server) error {
	dir := b.serverDir(i)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, "db"), 0o700); err != nil {
		return err
	}
	report("preparing %s", s.Name)
	return s.Prepare(ctx, dir, basePort+i, b.source())
}

// basePort is that of the first server.
const basePort = 25300

// measure starts a server, measures it and stops it.
func (b *bench) measure(ctx context.Context, i int, s peers.Server, r *result) (err error) {
	p, err := s.Run(ctx, b.serverDir(i), basePort+i, serverCPU, b.first())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Stop()) }()
	const warmUp = 2
	if _, err := dnsperf(ctx, basePort+i, b.path("queries"), warmUp); err != nil {
		return fmt.Errorf("%s: %w", s.Name, err)
	}
	before, err := p.Usage(false)
	if err != nil {
		return err
	}
	answers, err := dnsperf(ctx, basePort+i, b.path("queries"), b.seconds)
	if err != nil {
		return fmt.Errorf("%s: %w", s.Name, err)
	}
	after, err := p.Usage(true)
	if err != nil {
		return err
	}
	r.add(p.Start, after.CPU-before.CPU, answers, after)
	return nil
}
