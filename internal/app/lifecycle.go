package app

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/dkimzone/dkimzone/internal/controller"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/leader"
	"github.com/dkimzone/dkimzone/internal/prober"
)

const (
	// leaseTTL is how long the others wait for a leader that is gone without a
	// word.
	leaseTTL = 10 * time.Second
	// controllerWorkers is how many domains are checked at a time.
	controllerWorkers = 64
	// defaultCheckRate takes one to two hours for the first look at a million new
	// domains, and allows for four million that are looked at each six hours.
	defaultCheckRate = 200
	maxCheckRate     = 100_000
	// controllerPoll is how often the controller looks for what is due.
	controllerPoll = time.Second
)

// Checks says how DNS is asked for the evidence that keys rotate on.
type Checks struct {
	Resolver         string   // a validating recursive resolver; "": walk from the root
	Stubs            []string // zone=address:port
	NameServers      []string // host=address:port, for name servers of our own zones
	PrivateAddresses bool
	Rate             int // domains a second
}

func (c *Checks) add(f *pflag.FlagSet) {
	f.IntVar(&c.Rate, "check-rate", defaultCheckRate, "`number` of domains that the leader looks at in a second at most, 1 to 100000")
	f.StringVar(&c.Resolver, "check-resolver", "", "`address` of a validating resolver that says which servers a customer's zone has; without it they are found from the root servers")
	f.StringArrayVar(&c.Stubs, "check-stub", nil, "`zone=address:port` of a server to ask about a customer's zone, in place of those it is delegated to; repeat for each")
	f.StringArrayVar(&c.NameServers, "check-name-server", nil, "`host=address:port` where to ask a name server of a hosting zone, in place of its addresses; repeat for each")
	f.BoolVar(&c.PrivateAddresses, "check-private-addresses", false, "also ask servers that a delegation puts at private and loopback addresses")
}

// prober is one that asks as c says. own are further servers of hosting zones.
func (c *Checks) prober(own map[string]netip.AddrPort) (*prober.Prober, error) {
	if c.Rate < 1 || c.Rate > maxCheckRate {
		return nil, fmt.Errorf("--check-rate %d: it takes 1 to %d", c.Rate, maxCheckRate)
	}
	cfg := prober.Config{
		Resolver: c.Resolver, PrivateAddresses: c.PrivateAddresses,
		Stubs: make(map[string][]netip.AddrPort), NameServers: make(map[string]netip.AddrPort),
	}
	maps.Copy(cfg.NameServers, own)
	for _, s := range c.Stubs {
		zone, addr, err := parsePair(s)
		if err != nil {
			return nil, fmt.Errorf("--check-stub: %w", err)
		}
		cfg.Stubs[zone] = append(cfg.Stubs[zone], addr)
	}
	for _, s := range c.NameServers {
		host, addr, err := parsePair(s)
		if err != nil {
			return nil, fmt.Errorf("--check-name-server: %w", err)
		}
		cfg.NameServers[host] = addr
	}
	p, err := prober.New(cfg)
	if err != nil {
		return nil, fmt.Errorf("checks: %w", err)
	}
	return p, nil
}

// parsePair parses "name=address:port".
func parsePair(s string) (name string, addr netip.AddrPort, err error) {
	name, text, ok := strings.Cut(s, "=")
	if !ok || name == "" {
		return "", netip.AddrPort{}, fmt.Errorf("%q is not of the form name=address:port", s)
	}
	if addr, err = netip.ParseAddrPort(text); err != nil {
		return "", netip.AddrPort{}, fmt.Errorf("%q: %w", s, err)
	}
	return strings.ToLower(strings.TrimSuffix(name, ".")), addr, nil
}

// candidate is the name under which this process stands for the lead.
func candidate() string {
	host, err := os.Hostname()
	if err != nil {
		host = "dkimd"
	}
	return fmt.Sprintf("%s/%d", host, os.Getpid())
}

// elections gives the controller its terms.
type elections struct{ *leader.Candidate }

// Campaign implements controller.Elector.
func (e elections) Campaign(ctx context.Context) (controller.Term, error) {
	t, err := e.Candidate.Campaign(ctx)
	if err != nil {
		return nil, err
	}
	return term{t}, nil
}

type term struct{ *leader.Term }

// Fence implements controller.Term.
func (t term) Fence() *keystore.Fence {
	f := keystore.Fence(t.Term.Fence())
	return &f
}

// startRotation runs the controller until the returned function is called or ctx
// ends. The function returns when nothing of it is at work any more.
func (b *backend) startRotation(ctx context.Context, c *leader.Candidate, rate int, logger *slog.Logger) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	control := controller.New(controller.Options{
		Store: b.store, Mint: b.mint, Opener: b.sealer, Prober: b.prober, Elector: elections{c}, Now: time.Now, Logger: logger,
		Workers: controllerWorkers, Rate: rate, Poll: controllerPoll,
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = control.Run(ctx) // returns when ctx ends, only
	}()
	return func() {
		cancel()
		<-done
	}
}
