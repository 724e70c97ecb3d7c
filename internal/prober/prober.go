// Package prober gathers evidence by asking name servers: whether a customer's
// CNAME points at our owner name, as the customer's own authoritative servers
// say, and whether the servers of our zone serve a key's record.
//
// It reads what strangers send. A reply counts only if it has the question and
// the random identifier of a query from a random port; of its records, only
// those that its sender may speak for; and each question is bounded in queries,
// links, delegations and time. It has no DNSSEC validator of its own: signatures
// are judged by a validating resolver, if one is configured, and not at all
// otherwise.
package prober

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/singleflight"
)

// Bounds of one question.
const (
	maxQueries = 200 // queries sent
	maxLinks   = 8   // CNAMEs in a chain
	maxCuts    = 24  // delegations on the way to a name
	maxDepth   = 5   // names of name servers that need others to be found
	maxHosts   = 13  // name servers of a zone that are asked
	maxServers = 20  // and their addresses
)

// Bounds of what is kept between questions.
const (
	maxCached  = 1 << 15
	maxPaced   = 1 << 16
	maxKeepFor = time.Hour
)

// Config says where a Prober begins and how hard it may ask. The zero value
// walks from the root servers.
type Config struct {
	// RootHints are the root servers to begin with. Empty: those of the Internet.
	RootHints []netip.AddrPort
	// Resolver is the address of a recursive resolver, "192.0.2.1" or
	// "192.0.2.1:53". If it is set, it says which servers a zone has, instead of
	// a walk from the root; the servers themselves are still asked directly. It
	// is also asked whether answers validate, so it should be a validating one.
	Resolver string
	// Stubs are the servers of zones that are not found by delegation: split
	// horizons, tests. The key is the zone, "example.net". What they delegate is
	// followed from there.
	Stubs map[string][]netip.AddrPort
	// NameServers says where to ask a name server of our own zone, by host name or
	// by address, instead of at its addresses.
	NameServers map[string]netip.AddrPort
	// PrivateAddresses allows to ask servers that a delegation puts at private
	// and loopback addresses, which is else refused: customers choose what their
	// delegations say, and must not choose which inner hosts are asked.
	PrivateAddresses bool
	// Timeout is how long one server has for one query: 2 s if zero.
	Timeout time.Duration
	// Limit is how long one question may take in all: 20 s if zero.
	Limit time.Duration
	// Concurrency is how many questions are worked on at a time: 64 if zero.
	Concurrency int
	// ServerRate is how many queries a second one address gets at most: 100 if
	// zero. The servers of our own zone are exempt.
	ServerRate int
}

// NameServer is a server of our own zone.
type NameServer struct {
	Host  string
	Addrs []netip.Addr
}

// ServerAnswer is what one address said to one question. The texts are for
// people; nothing in them is longer than a DNS record or needs escaping.
type ServerAnswer struct {
	Name    string // what was asked for, without a trailing dot
	Host    string // "" when only the address is known
	Addr    string // "192.0.2.53:53"; "" when no address of Host was found
	Network string // "udp" or "tcp": what the question began with
	Rcode   string // "NOERROR"; "" without a reply
	Got     string // the records of the answer, or what their absence means
	Err     string // why it does not count; "" when it does
}

// Stats counts since New.
type Stats struct {
	Questions uint64 // calls of Alias, Served and Challenge
	InFlight  uint64 // of them, not finished
	Queries   uint64 // messages sent
	Failures  uint64 // of them, without a proper reply
	Coalesced uint64 // queries that shared the reply to another one
	CacheHits uint64 // delegations and addresses that needed no query
}

// Prober asks. It is safe for concurrent use and needs no closing.
type Prober struct {
	limit    time.Duration
	roots    []server
	resolver netip.AddrPort // invalid without one
	stubs    map[string][]server
	own      map[string]netip.AddrPort
	private  bool

	slots   chan struct{}
	paces   *pacer
	zones   *cache[delegation]
	hosts   *cache[[]netip.AddrPort]
	flights singleflight.Group

	// route changes where a packet goes; tests give addresses of the Internet
	// a place on loopback.
	route func(netip.AddrPort) netip.AddrPort
	// timeout is how long a place has for one query, Config.Timeout for all; tests
	// are patient with those that do answer.
	timeout func(place netip.AddrPort) time.Duration
	// noRoute pretends that an address cannot be sent to; nil in earnest.
	noRoute func(netip.AddrPort) bool

	questions, inFlight, queries, failures, coalesced, hits atomic.Uint64
}

// New checks cfg. Its errors name the field.
func New(cfg Config) (*Prober, error) {
	p := &Prober{
		limit:   orDefault(cfg.Limit, 20*time.Second),
		stubs:   map[string][]server{},
		own:     map[string]netip.AddrPort{},
		private: cfg.PrivateAddresses,
		slots:   make(chan struct{}, orDefault(cfg.Concurrency, 64)),
		zones:   newCache[delegation](maxCached),
		hosts:   newCache[[]netip.AddrPort](maxCached),
		route:   func(a netip.AddrPort) netip.AddrPort { return a },
		timeout: func(netip.AddrPort) time.Duration { return orDefault(cfg.Timeout, 2*time.Second) },
	}
	switch {
	case cfg.Timeout < 0 || cfg.Limit < 0:
		return nil, errors.New("prober: Timeout and Limit must not be negative")
	case cfg.Concurrency < 0 || cfg.ServerRate < 0:
		return nil, errors.New("prober: Concurrency and ServerRate must not be negative")
	}
	p.paces = newPacer(orDefault(cfg.ServerRate, 100), maxPaced)

	if cfg.RootHints == nil {
		p.roots = rootServers()
	} else if len(cfg.RootHints) == 0 {
		return nil, errors.New("prober: RootHints has no address")
	}
	for _, a := range cfg.RootHints {
		if !a.IsValid() || a.Port() == 0 {
			return nil, fmt.Errorf("prober: RootHints: %q is no address with a port", a)
		}
		p.roots = append(p.roots, server{addrs: []netip.AddrPort{a}})
	}
	if cfg.Resolver != "" {
		var err error
		if p.resolver, err = parseServer(cfg.Resolver); err != nil {
			return nil, fmt.Errorf("prober: Resolver: %w", err)
		}
	}
	for zone, addrs := range cfg.Stubs {
		if _, ok := dns.IsDomainName(zone); !ok || len(addrs) == 0 {
			return nil, fmt.Errorf("prober: Stubs: zone %q needs a proper name and at least one address", zone)
		}
		for _, a := range addrs {
			if !a.IsValid() || a.Port() == 0 {
				return nil, fmt.Errorf("prober: Stubs: zone %q: %q is no address with a port", zone, a)
			}
			name := canonical(zone)
			p.stubs[name] = append(p.stubs[name], server{addrs: []netip.AddrPort{a}})
		}
	}
	for host, a := range cfg.NameServers {
		if !a.IsValid() || a.Port() == 0 {
			return nil, fmt.Errorf("prober: NameServers: %q: %q is no address with a port", host, a)
		}
		p.own[canonical(host)] = a
	}
	return p, nil
}

// Stats is a snapshot.
func (p *Prober) Stats() Stats {
	return Stats{
		Questions: p.questions.Load(), InFlight: p.inFlight.Load(), Queries: p.queries.Load(),
		Failures: p.failures.Load(), Coalesced: p.coalesced.Load(), CacheHits: p.hits.Load(),
	}
}

// begin waits for a slot and starts the time of a question. The slot is given
// back by the returned function, which must be called if the error is nil.
func (p *Prober) begin(ctx context.Context) (context.Context, func(), error) {
	p.questions.Add(1)
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	p.inFlight.Add(1)
	ctx, cancel := context.WithTimeout(ctx, p.limit)
	return ctx, func() {
		cancel()
		p.inFlight.Add(^uint64(0))
		<-p.slots
	}, nil
}

func orDefault[T time.Duration | int](v, byDefault T) T {
	if v == 0 {
		return byDefault
	}
	return max(v, 0)
}

// parseServer takes an address with or without a port.
func parseServer(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a, 53), nil
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is neither an IP address nor one with a port", s)
	}
	return a, nil
}

// canonical is the form in which names are compared: lower case, with a
// trailing dot.
func canonical(name string) string { return dns.CanonicalName(name) }

// plain is a name as people write it.
func plain(name string) string {
	if name == "." {
		return name
	}
	return strings.TrimSuffix(name, ".")
}

// below reports whether name is zone or below it. Both are canonical.
func below(zone, name string) bool { return dns.IsSubDomain(zone, name) }

// rootServers are those of the Internet, as IANA's root hints list them.
func rootServers() []server {
	hints := [...][2]string{
		{"198.41.0.4", "2001:503:ba3e::2:30"},
		{"170.247.170.2", "2801:1b8:10::b"},
		{"192.33.4.12", "2001:500:2::c"},
		{"199.7.91.13", "2001:500:2d::d"},
		{"192.203.230.10", "2001:500:a8::e"},
		{"192.5.5.241", "2001:500:2f::f"},
		{"192.112.36.4", "2001:500:12::d0d"},
		{"198.97.190.53", "2001:500:1::53"},
		{"192.36.148.17", "2001:7fe::53"},
		{"192.58.128.30", "2001:503:c27::2:30"},
		{"193.0.14.129", "2001:7fd::1"},
		{"199.7.83.42", "2001:500:9f::42"},
		{"202.12.27.33", "2001:dc3::35"},
	}
	roots := make([]server, len(hints))
	for i, pair := range hints {
		roots[i].host = string(rune('a'+i)) + ".root-servers.net."
		for _, text := range pair {
			roots[i].addrs = append(roots[i].addrs, netip.AddrPortFrom(netip.MustParseAddr(text), 53))
		}
	}
	return roots
}
