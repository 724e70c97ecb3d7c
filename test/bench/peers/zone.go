package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/miekg/dns"

	"github.com/dkimzone/dkimzone/test/dataset"
	"github.com/dkimzone/dkimzone/test/peers"
)

const (
	serverCPU = 0
	clientCPU = 1
	anyCPU    = -1

	// basePort is that of the first server.
	basePort = 25300

	// nowhere is an endpoint that refuses connections.
	nowhere = "http://127.0.0.1:1"
)

// Names of servers.
const (
	ours    = "**dkimzone**, as in operation"
	lean    = "dkimzone, only bind and errors with it"
	bareMap = "bare CoreDNS plugin over a Go map"
	file    = "CoreDNS 1.15.0 file"
	etcd    = "CoreDNS 1.15.0 etcd, with its etcd"
)

// zone is a zone of some size with the servers that have it.
type zone struct {
	options
	set     dataset.Set
	servers []*server
	listed  listing
}

// server is one of the servers with what was measured of it.
type server struct {
	peers.Server
	result
	port    int
	dir     string
	queries string // file of its queries
}

// listing is what it took to bring the zone from etcd to a DNS node.
type listing struct {
	Load  time.Duration // all records into etcd
	First time.Duration // from the start of the node to its first answer
	Peak  int64         // octets, of the node until then
}

func newZone(ctx context.Context, o options, records int) *zone {
	z := &zone{options: o, set: dataset.New(records)}
	metrics := "prometheus 127.0.0.1:0\nready 127.0.0.1:0\nhealth 127.0.0.1:0\nreload\n"
	for i, s := range append([]peers.Server{
		peers.CoreDNS(ours, z.program("coredns"), z.dkim(nowhere)+metrics),
		peers.CoreDNS(lean, z.program("mapdns"), z.dkim(nowhere)),
		peers.CoreDNS(bareMap, z.program("mapdns"), "map MASTER\n"),
		peers.CoreDNS(file, z.program("coredns"), "file MASTER {\nreload 0\n}\n"),
		peers.CoreDNSEtcd(etcd, z.program("mapdns"), z.program("etcd"), z.path("skydns")),
	}, peers.Peers(ctx)...) {
		if o.only.MatchString(s.Name) {
			queries := "queries"
			if s.Name == etcd {
				queries = "queries-etcd"
			}
			z.servers = append(z.servers, &server{Server: s, port: basePort + i, dir: z.path(fmt.Sprintf("server%d", i)), queries: z.path(queries)})
		}
	}
	return z
}

func (z *zone) program(name string) string { return filepath.Join(z.dir, name) }

func (z *zone) path(name string) string { return filepath.Join(z.dir, strconv.Itoa(z.set.Len()), name) }

// dkim is the plugin's block.
func (z *zone) dkim(endpoint string) string {
	return fmt.Sprintf("dkim {\nendpoint %s\ndata_dir %s\n}\n", endpoint, z.path("replica"))
}

func (z *zone) source() peers.Source {
	return peers.Source{Zone: dataset.Zone, Master: z.path("zone")}
}

// first is a name to ask for first: the last one, since a server might answer
// before it has read all.
func (z *zone) first() string { return z.set.Owner(z.set.Len()-1) + "." + dataset.Zone }

// prepare makes what the servers read, unless an earlier run has.
func (z *zone) prepare(ctx context.Context) error {
	if err := os.MkdirAll(z.path("."), 0o700); err != nil {
		return err
	}
	if err := z.once(z.path("zone"), "writing the master file", func() error {
		f, err := os.Create(z.path("zone"))
		if err != nil {
			return err
		}
		return errors.Join(z.set.WriteMaster(f, 1, false), f.Close())
	}); err != nil {
		return err
	}
	for _, s := range z.servers {
		if err := z.once(s.queries, "writing queries", func() error {
			f, err := os.Create(s.queries)
			if err != nil {
				return err
			}
			return errors.Join(writeQueries(f, z.set, s.Name != etcd), f.Close())
		}); err != nil {
			return err
		}
	}
	if err := z.once(z.path("replica"), "loading etcd and reading the zone from it", func() error { return z.list(ctx) }); err != nil {
		return err
	}
	b, err := os.ReadFile(z.path("listing.json"))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &z.listed); err != nil {
		return err
	}
	for _, s := range z.servers {
		if err := z.once(s.dir, "preparing "+s.Name, func() error { return z.prepareServer(ctx, s) }); err != nil {
			return err
		}
	}
	return nil
}

// once makes something unless it was made before. What is left of an attempt
// that failed is removed.
func (z *zone) once(path, what string, work func() error) error {
	done := path + ".done"
	if _, err := os.Stat(done); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	report("%d records: %s", z.set.Len(), what)
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	if err := work(); err != nil {
		return err
	}
	return os.WriteFile(done, nil, 0o600)
}

func (z *zone) prepareServer(ctx context.Context, s *server) error {
	if err := os.MkdirAll(filepath.Join(s.dir, "db"), 0o700); err != nil {
		return err
	}
	if s.Store != nil {
		if err := z.fillSkyDNS(ctx); err != nil {
			return err
		}
	}
	return s.Prepare(ctx, s.dir, s.port, z.source())
}

// list loads the zone into an etcd and lets our server read it from there and
// write its file, with which it starts when it is measured: without etcd.
func (z *zone) list(ctx context.Context) (err error) {
	store, err := z.newEtcd(ctx, "etcd.data")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Stop(), os.RemoveAll(z.path("etcd.data"))) }()
	var l listing
	began := time.Now()
	if _, err := z.set.Load(ctx, store.Client, false); err != nil {
		return err
	}
	l.Load = time.Since(began)
	s := peers.CoreDNS("from etcd", z.program("coredns"), z.dkim(store.URL))
	dir := z.path("from-etcd")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	port, err := peers.FreePort()
	if err != nil {
		return err
	}
	if err := s.Prepare(ctx, dir, port, z.source()); err != nil {
		return err
	}
	p, err := s.Run(ctx, dir, port, serverCPU, z.first())
	if err != nil {
		return err
	}
	l.First = p.Start
	u, err := p.Usage(true)
	if err := errors.Join(err, p.Stop()); err != nil {
		return err
	}
	l.Peak = u.Peak
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	return os.WriteFile(z.path("listing.json"), b, 0o600)
}

// fillSkyDNS makes the data of the etcd that CoreDNS's plugin etcd reads.
func (z *zone) fillSkyDNS(ctx context.Context) error {
	store, err := z.newEtcd(ctx, "skydns")
	if err != nil {
		return err
	}
	return errors.Join(z.set.LoadSkyDNS(ctx, store.Client), store.Stop())
}

func (z *zone) newEtcd(ctx context.Context, name string) (*peers.Etcd, error) {
	if err := os.RemoveAll(z.path(name)); err != nil {
		return nil, err
	}
	return peers.StartEtcd(ctx, z.program("etcd"), z.path(name), anyCPU)
}

// measure starts a server, measures it and stops it.
func (z *zone) measure(ctx context.Context, s *server) (err error) {
	p, err := s.Run(ctx, s.dir, s.port, serverCPU, z.first())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Stop()) }()
	const warmUp = 2
	if _, err := dnsperf(ctx, s, warmUp); err != nil {
		return fmt.Errorf("%s: %w", s.Name, err)
	}
	before, err := p.Usage(false)
	if err != nil {
		return err
	}
	a, err := dnsperf(ctx, s, z.seconds)
	if err != nil {
		return fmt.Errorf("%s: %w", s.Name, err)
	}
	after, err := p.Usage(true)
	if err != nil {
		return err
	}
	after.CPU -= before.CPU
	after.StoreCPU -= before.StoreCPU
	s.add(p.Start, a, after)
	if s.Name != etcd || z.set.Len() > mostListed {
		return nil
	}
	return s.askTerminal(ctx, p)
}

// mostListed is how many records CoreDNS's plugin etcd may be made to list.
const mostListed = 200_000

// askTerminal asks once for the empty non-terminal, which is not among the
// queries of this server.
func (s *server) askTerminal(ctx context.Context, p *peers.Process) error {
	const longest = 10 * time.Second
	client := dns.Client{Timeout: longest}
	question := new(dns.Msg).SetQuestion("_domainkey."+dataset.Zone+".", dns.TypeTXT)
	began := time.Now()
	reply, _, err := client.ExchangeContext(ctx, question, p.Addr)
	t := terminalAnswer{after: time.Since(began), rcode: "no answer"}
	if err == nil {
		t.rcode = dns.RcodeToString[reply.Rcode]
	}
	u, err := p.Usage(true)
	t.peak = u.Peak
	s.terminal = &t
	return err
}
