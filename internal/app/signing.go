package app

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"github.com/dkimzone/dkimzone/internal/keyring"
	"github.com/dkimzone/dkimzone/internal/service"
	"github.com/dkimzone/dkimzone/internal/signview"
	"github.com/dkimzone/dkimzone/internal/telemetry"
)

// Signing says what signers may do.
type Signing struct {
	// Rate is how many signatures a second each signer may have made; 0: no limit.
	Rate float64
	// OpenKeys is how many private keys stay open in memory at most.
	OpenKeys int
	// KeyFetchers are the signers that may fetch private keys; "*" is all.
	KeyFetchers []string
}

func (s *Signing) add(f *pflag.FlagSet) {
	f.Float64Var(&s.Rate, "sign-rate", 2000, "`number` of signatures a second that each signer may have made by Sign; 0: no limit")
	f.IntVar(&s.OpenKeys, "sign-open-keys", 10_000, "`number` of private keys that stay open in memory for Sign, each for 10 minutes after its last use; an RSA-2048 key takes some 4 KiB")
	f.StringArrayVar(&s.KeyFetchers, "allow-key-fetch", nil, "`name` of a signer that may fetch private keys to sign by itself, * for all; repeat for each (default none)")
}

// startSigning fills the view of what signs, and lets the API use it, until the
// returned function is called.
func (b *backend) startSigning(ctx context.Context, o Signing, logger *slog.Logger) (stop func(), err error) {
	if o.Rate < 0 || o.OpenKeys < 0 {
		return nil, fmt.Errorf("--sign-rate is %g and --sign-open-keys %d: neither may be negative", o.Rate, o.OpenKeys)
	}
	b.view = signview.New(signview.Options{Source: b.store, Now: time.Now, Logger: logger})
	ring := keyring.New(keyring.Options{Store: b.store, Opener: b.sealer, Now: time.Now, Size: o.OpenKeys})
	b.api.UseSigning(service.SigningOptions{View: b.view, Ring: ring, Rate: o.Rate, KeyFetchers: o.KeyFetchers})
	shown := &signingCollector{b.view, ring}
	signings.add(shown)
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { _ = b.view.Run(ctx) }) // returns when ctx ends, only
	running.Go(func() { b.api.Sweep(ctx) })
	return func() {
		cancel()
		running.Wait()
		signings.remove(shown)
	}, nil
}

// signingCheck is the name of the check that dkimd has listed what signs.
const signingCheck = "signing"

// signingReadiness holds as soon as signers can be answered, and then for good.
func (b *backend) signingReadiness() telemetry.Check {
	return telemetry.Check{Name: signingCheck, Func: func(context.Context) error { return b.view.Ready() }}
}

// signingCollector shows what signs.
type signingCollector struct {
	view *signview.View
	ring *keyring.Ring
}

var signings = newSigningCollectors()

// signingCollectors shows the views of the process.
type signingCollectors struct {
	mu  sync.Mutex
	all map[*signingCollector]struct{}

	domains, octets, age, keys *prometheus.Desc
}

func newSigningCollectors() *signingCollectors {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("dkimd_signing_"+name, help, nil, nil)
	}
	c := &signingCollectors{
		all:     make(map[*signingCollector]struct{}),
		domains: desc("view_domains", "Domains in the view of what signs; 0 until all were listed once."),
		octets:  desc("view_bytes", "Memory that their records take."),
		age:     desc("view_age_seconds", "Time since the view was last known to be what the store holds; not shown before it was loaded."),
		keys:    desc("open_keys", "Private keys that are open in memory."),
	}
	prometheus.MustRegister(c)
	return c
}

func (c *signingCollectors) add(s *signingCollector) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all[s] = struct{}{}
}

func (c *signingCollectors) remove(s *signingCollector) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.all, s)
}

// Describe implements prometheus.Collector.
func (c *signingCollectors) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.domains, c.octets, c.age, c.keys} {
		descs <- d
	}
}

// Collect implements prometheus.Collector. There is one view in a process, but for
// tests.
func (c *signingCollectors) Collect(metrics chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var domains, octets, keys int64
	var age time.Duration
	loaded := false
	for s := range c.all {
		stats := s.view.Stats()
		domains, octets, keys = domains+stats.Domains, octets+stats.Octets, keys+int64(s.ring.Len())
		if at := s.view.Confirmed(); !at.IsZero() {
			age, loaded = max(age, time.Since(at)), true
		}
	}
	gauge := func(d *prometheus.Desc, v float64) {
		metrics <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
	}
	gauge(c.domains, float64(domains))
	gauge(c.octets, float64(octets))
	gauge(c.keys, float64(keys))
	if loaded {
		gauge(c.age, age.Seconds())
	}
}
