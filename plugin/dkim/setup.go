// Package dkim is a CoreDNS plugin that answers for the zones of dkimzone from
// a replica of the public records in etcd.
package dkim

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/fall"
	"github.com/coredns/coredns/plugin/transfer"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/replica"
)

const pluginName = "dkim"

func init() {
	plugin.Register(pluginName, setup)
	caddy.RegisterEventHook(pluginName, func(event caddy.EventName, _ any) error {
		if event == caddy.InstanceStartupEvent {
			started.listen()
		}
		return nil
	})
}

func setup(c *caddy.Controller) error {
	blocks, err := parse(c)
	if err != nil {
		return plugin.Error(pluginName, err)
	}
	d := &DKIM{}
	var configs []replica.Config
	var where []string
	for _, b := range blocks {
		for _, name := range b.zones {
			d.zones = append(d.zones, &zone{name: name + ".", fall: b.fall, counts: newCounters(name + ".")})
			cfg := b.config
			cfg.Zone = name
			observer := writeToServed.WithLabelValues(name + ".")
			cfg.Served = func(t time.Duration) { observer.Observe(t.Seconds()) }
			configs = append(configs, cfg)
			where = append(where, b.where)
		}
	}
	zones := slices.Clone(d.zones) // in the order of configs
	slices.SortStableFunc(d.zones, func(a, b *zone) int { return len(b.name) - len(a.name) })

	// A restart takes over the sockets, which answer all the time.
	c.OnFirstStartup(func() error { d.deaf.Store(true); return nil })
	c.OnStartup(func() error {
		for i, z := range zones {
			h, err := replica.Acquire(configs[i])
			if err != nil {
				return plugin.Error(pluginName, errors.Join(fmt.Errorf("%s - %w", where[i], err), d.release()))
			}
			z.replica.Store(h)
		}
		if t, ok := dnsserver.GetConfig(c).Handler("transfer").(*transfer.Transfer); ok {
			d.stopNotifiers = d.startNotifiers(t)
		}
		started.add(d)
		return nil
	})
	c.OnShutdown(func() error {
		started.remove(d)
		return d.release()
	})
	// A new instance that does not come up is not shut down by anybody.
	c.OnRestart(func() error { started.mark(); return nil })
	c.OnRestartFailed(started.abandon)

	dnsserver.GetConfig(c).AddPlugin(func(next plugin.Handler) plugin.Handler {
		d.Next = next
		return d
	})
	return nil
}

// release gives all replicas back. Queries that still come in find zones that
// are not loaded.
func (d *DKIM) release() error {
	if d.stopNotifiers != nil {
		d.stopNotifiers()
	}
	var errs []error
	for _, z := range d.zones {
		if rep := z.replica.Load(); rep != nil {
			errs = append(errs, rep.Release())
		}
	}
	return errors.Join(errs...)
}

// started is the instances that hold replicas, in the order of their start.
var started instances

type instances struct {
	mu     sync.Mutex
	all    []*DKIM
	before []*DKIM // all when the last restart began
}

func (s *instances) add(d *DKIM) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, d)
}

func (s *instances) remove(d *DKIM) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = slices.DeleteFunc(s.all, func(o *DKIM) bool { return o == d })
}

// listen notes that the sockets of all that started are open.
func (s *instances) listen() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.all {
		d.deaf.Store(false)
	}
}

func (s *instances) mark() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = slices.Clone(s.all)
}

// abandon releases what was started since the last mark.
func (s *instances) abandon() error {
	s.mu.Lock()
	var errs []error
	for _, d := range s.all {
		if !slices.Contains(s.before, d) {
			errs = append(errs, d.release())
		}
	}
	s.all = slices.Clone(s.before)
	s.mu.Unlock()
	return errors.Join(errs...)
}

// block is one dkim directive.
type block struct {
	zones  []string // stored form
	fall   fall.F
	config replica.Config
	where  string // in the Corefile
}

func parse(c *caddy.Controller) ([]block, error) {
	var blocks []block
	seen := make(map[string]bool)
	for c.Next() {
		b := block{where: fmt.Sprintf("%s:%d", c.File(), c.Line())}
		b.config.Logger = slog.New(logHandler{})
		args := c.RemainingArgs()
		for _, origin := range plugin.OriginsFromArgsOrServerBlock(args, c.ServerBlockKeys) {
			zone, err := dnsname.ParseZone(strings.TrimSuffix(origin, "."))
			if origin == "." {
				return nil, c.Err("name the zones, the root is not one")
			}
			if err != nil {
				return nil, c.Errf("%v", err)
			}
			if seen[string(zone)] {
				return nil, c.Errf("zone %q is there twice", zone)
			}
			seen[string(zone)] = true
			b.zones = append(b.zones, string(zone))
		}
		if len(b.zones) == 0 || len(args) > 0 && len(b.zones) < len(args) {
			return nil, c.Errf("not all zones are names: %q", args)
		}
		if err := b.parse(c); err != nil {
			return nil, err
		}
		blocks = append(blocks, b)
	}
	return blocks, nil
}

func (b *block) parse(c *caddy.Controller) error {
	seen := make(map[string]bool)
	for c.NextBlock() {
		property := c.Val()
		if seen[property] {
			return c.Errf("%s is there twice", property)
		}
		seen[property] = true
		args := c.RemainingArgs()
		var err error
		switch property {
		case "endpoint":
			if len(args) == 0 {
				return c.ArgErr()
			}
			b.config.Etcd.Endpoints = args
		case "tls":
			if len(args) != 3 {
				return c.ArgErr()
			}
			b.config.Etcd.CertFile, b.config.Etcd.KeyFile, b.config.Etcd.CAFile = inRoot(c, args[0]), inRoot(c, args[1]), inRoot(c, args[2])
		case "data_dir":
			if len(args) != 1 || args[0] == "" {
				return c.ArgErr()
			}
			b.config.Dir = inRoot(c, args[0])
		case "reconcile":
			if len(args) != 1 {
				return c.ArgErr()
			}
			b.config.ReconcileInterval, err = time.ParseDuration(args[0])
			if err != nil || b.config.ReconcileInterval < replica.MinReconcileInterval {
				return c.Errf("reconcile must be a duration of at least %s, not %q", replica.MinReconcileInterval, args[0])
			}
		case "max_deletion":
			if len(args) != 1 {
				return c.ArgErr()
			}
			percent, err := strconv.Atoi(strings.TrimSuffix(args[0], "%"))
			if err != nil || percent < 1 || percent > 100 {
				return c.Errf("max_deletion must be a percentage from 1 to 100, not %q", args[0])
			}
			b.config.MaxDeletion = float64(percent) / 100
		case "fallthrough":
			b.fall.SetZonesFromArgs(args)
		default:
			return c.Errf("unknown property %q", property)
		}
	}
	if len(b.config.Etcd.Endpoints) == 0 {
		return c.Err("endpoint is missing")
	}
	return nil
}

// inRoot is file as the root plugin has it.
func inRoot(c *caddy.Controller, file string) string {
	if root := dnsserver.GetConfig(c).Root; root != "" && !filepath.IsAbs(file) {
		return filepath.Join(root, file)
	}
	return file
}
