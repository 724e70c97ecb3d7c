package prober

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

var (
	errBudget = errors.New("gave up: the question needs too many queries")
	errDeep   = errors.New("gave up: names of name servers that need ever more names")
)

// course is the work on one question: what it may still spend, and what servers
// have said to it.
type course struct {
	p      *Prober
	budget atomic.Int32

	mu   sync.Mutex
	memo map[memoKey]reply
}

type memoKey struct {
	addr  netip.AddrPort
	zone  string
	name  string
	qtype uint16
}

func (p *Prober) course() *course {
	c := &course{p: p, memo: map[memoKey]reply{}}
	c.budget.Store(maxQueries)
	return c
}

// sighting is a reply with the server that gave it.
type sighting struct {
	host string
	addr netip.AddrPort
	reply
}

// ask asks one address of one of zone's servers. A proper reply is given again
// to the same question.
func (c *course) ask(ctx context.Context, addr netip.AddrPort, zone, name string, qtype uint16, how patience) reply {
	key := memoKey{addr, zone, name, qtype}
	c.mu.Lock()
	r, ok := c.memo[key]
	c.mu.Unlock()
	if ok {
		return r
	}
	if c.budget.Add(-1) < 0 {
		return reply{err: errBudget.Error()}
	}
	m, err := c.p.exchange(ctx, addr, query{name: name, qtype: qtype, patience: how})
	if err != nil {
		return noReply(addr, err)
	}
	r = readReply(m, zone, name, qtype)
	if r.kind >= lame {
		c.mu.Lock()
		c.memo[key] = r
		c.mu.Unlock()
	}
	return r
}

// noReply is an error of exchange as a reply. That there is no way to IPv6
// servers from here says nothing of them.
func noReply(addr netip.AddrPort, err error) reply {
	if errors.Is(err, errNoRoute) && addr.Addr().Is6() {
		return reply{kind: skipped, err: "not asked: no IPv6 from here"}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = errTimeout
	}
	return reply{err: err.Error()}
}

// permitted reports whether an address that came out of the DNS may be asked.
func (p *Prober) permitted(a netip.Addr) bool {
	if p.private {
		return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast()
	}
	return a.IsValid() && a.IsGlobalUnicast() && !a.IsPrivate() && !slices.ContainsFunc(innerNetworks, func(n netip.Prefix) bool { return n.Contains(a) })
}

// innerNetworks are those besides RFC 1918 and RFC 4193 that are not on the
// Internet: this host, shared address space (RFC 6598), loopback, class E, and
// those that carry an IPv4 address inside.
var innerNetworks = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("240.0.0.0/4"), netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("64:ff9b:1::/48"),
	netip.MustParsePrefix("2002::/16"), netip.MustParsePrefix("::/96"), netip.MustParsePrefix("fec0::/10"),
}

// start is the deepest zone on the way to name whose servers are known.
func (c *course) start(ctx context.Context, name string) (delegation, error) {
	for zone := name; ; {
		if servers, ok := c.p.stubs[zone]; ok {
			return delegation{zone: zone, servers: servers}, nil
		}
		if d, ok := c.p.zones.get(time.Now(), zone); ok {
			c.p.hits.Add(1)
			return d, nil
		}
		if zone == "." {
			break
		}
		zone = parent(zone)
	}
	if c.p.resolver.IsValid() {
		return c.resolve(ctx, name)
	}
	return delegation{zone: ".", servers: c.p.roots}, nil
}

// parent is the name without its first label.
func parent(name string) string {
	if i, end := dns.NextLabel(name, 0); !end {
		return name[i:]
	}
	return "."
}

// resolve asks the resolver which zone name is in and who serves it. It does
// not ask for name itself, where a CNAME would be followed.
func (c *course) resolve(ctx context.Context, name string) (delegation, error) {
	for zone := parent(name); zone != "."; zone = parent(zone) {
		m, err := c.recurse(ctx, query{name: zone, qtype: dns.TypeNS})
		if err != nil {
			return delegation{}, fmt.Errorf("resolver %s: %w", c.p.resolver, err)
		}
		d := delegation{zone: zone, ttl: maxKeepFor}
		for _, rr := range m.Answer {
			if ns, ok := rr.(*dns.NS); ok && canonical(ns.Hdr.Name) == zone && len(d.servers) < maxHosts {
				d.servers = append(d.servers, server{host: canonical(ns.Ns)})
				d.ttl = min(d.ttl, time.Duration(ns.Hdr.Ttl)*time.Second)
			}
		}
		if len(d.servers) > 0 {
			c.p.zones.put(time.Now(), zone, d, d.ttl)
			return d, nil
		}
		if m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
			return delegation{}, fmt.Errorf("resolver %s answers %s for the name servers of %s", c.p.resolver, rcodeName(m.Rcode), plain(zone))
		}
	}
	return delegation{}, fmt.Errorf("resolver %s knows no name servers of %s", c.p.resolver, plain(name))
}

// recurse asks the resolver.
func (c *course) recurse(ctx context.Context, q query) (*dns.Msg, error) {
	if c.budget.Add(-1) < 0 {
		return nil, errBudget
	}
	q.recurse, q.own, q.patience = true, true, thorough
	return c.p.exchange(ctx, c.p.resolver, q)
}

// descend follows delegations from the deepest known zone to the servers that
// speak for name. It returns their zone, and what has been asked in that zone:
// one settled sighting, or the failures of all that were tried.
func (c *course) descend(ctx context.Context, name string, qtype uint16, depth int) (delegation, []sighting) {
	d, err := c.start(ctx, name)
	if err != nil {
		return d, []sighting{{reply: reply{err: err.Error()}}}
	}
	for range maxCuts {
		seen := c.askAny(ctx, d, name, qtype, depth)
		last := seen[len(seen)-1]
		if last.kind != referral {
			if !last.kind.settled() {
				c.p.zones.drop(d.zone) // its servers may be others by now
			}
			return d, seen
		}
		d = last.next
		c.p.zones.put(time.Now(), d.zone, d, d.ttl)
	}
	return d, []sighting{{reply: reply{err: "gave up: too many delegations on the way"}}}
}

// askAny asks one server of d, and if it has nothing useful to say, several
// others at once. The last of the sightings is the useful one if there is one;
// there is always one at least.
func (c *course) askAny(ctx context.Context, d delegation, name string, qtype uint16, depth int) []sighting {
	const first, others = 1, 6
	useful := func(s sighting) bool { return s.kind >= referral }
	targets, seen := c.targets(ctx, d, first+others, true, depth)
	if len(targets) == 0 {
		return seen
	}
	s := c.askOne(ctx, targets[0], d.zone, name, qtype, brief)
	if useful(s) {
		return append(seen, s)
	}
	if len(targets) < first+others { // the known addresses do not do; find all
		targets, seen = c.targets(ctx, d, first+others, false, depth)
	}
	all := make(chan sighting, len(targets))
	for _, t := range targets {
		go func() { all <- c.askOne(ctx, t, d.zone, name, qtype, thorough) }()
	}
	for range targets {
		s := <-all
		seen = append(seen, s)
		if useful(s) {
			return seen
		}
	}
	slices.SortStableFunc(seen, bySender)
	return seen
}

// peer is an address to ask and the host it belongs to.
type peer struct {
	host string
	addr netip.AddrPort
}

func (c *course) askOne(ctx context.Context, t peer, zone, name string, qtype uint16, how patience) sighting {
	return sighting{host: t.host, addr: t.addr, reply: c.ask(ctx, t.addr, zone, name, qtype, how)}
}

// targets finds up to limit addresses of d's servers, in random order, those of
// IPv4 first. If enough is true one that is known does, without a search for
// the addresses of the others. The sightings say for which hosts there are none.
func (c *course) targets(ctx context.Context, d delegation, limit int, enough bool, depth int) ([]peer, []sighting) {
	var v4, v6 []peer
	var missing []sighting
	unknown := make([]server, 0, len(d.servers))
	add := func(host string, addrs []netip.AddrPort) {
		for _, a := range addrs {
			if a.Addr().Is4() {
				v4 = append(v4, peer{host, a})
			} else {
				v6 = append(v6, peer{host, a})
			}
		}
	}
	_, stub := c.p.stubs[d.zone]
	stub = stub || d.zone == "."
	for _, s := range shuffled(d.servers) {
		addrs := s.addrs
		if !stub {
			addrs = slices.DeleteFunc(slices.Clone(addrs), func(a netip.AddrPort) bool { return !c.p.permitted(a.Addr()) })
		}
		switch {
		case len(addrs) > 0:
			add(s.host, addrs)
		case len(s.addrs) > 0:
			missing = append(missing, sighting{host: s.host, addr: s.addrs[0], reply: reply{err: "not asked: not an address of the Internet"}})
		default:
			unknown = append(unknown, s)
		}
	}
	switch {
	case enough && len(v4)+len(v6) > 0:
	case enough: // one after the other until one is found
		for _, s := range unknown {
			addrs, err := c.addresses(ctx, s.host, depth)
			if err == nil {
				add(s.host, addrs)
				break
			}
			missing = append(missing, sighting{host: s.host, reply: reply{err: err.Error()}})
		}
	default:
		found := make([]struct {
			addrs []netip.AddrPort
			err   error
		}, len(unknown))
		var wg sync.WaitGroup
		for i, s := range unknown {
			wg.Go(func() { found[i].addrs, found[i].err = c.addresses(ctx, s.host, depth) })
		}
		wg.Wait()
		for i, s := range unknown {
			if found[i].err != nil {
				missing = append(missing, sighting{host: s.host, reply: reply{err: found[i].err.Error()}})
			}
			add(s.host, found[i].addrs)
		}
	}
	all := append(shuffled(v4), shuffled(v6)...)
	if len(all)+len(missing) == 0 {
		missing = append(missing, sighting{reply: reply{err: "has no name servers"}})
	}
	return all[:min(len(all), limit)], missing
}

// addresses finds those of a name server. There is at least one if the error is
// nil.
func (c *course) addresses(ctx context.Context, host string, depth int) ([]netip.AddrPort, error) {
	if addrs, ok := c.p.hosts.get(time.Now(), host); ok {
		c.p.hits.Add(1)
		return addrs, nil
	}
	if depth >= maxDepth {
		return nil, errDeep
	}
	if c.budget.Add(-1) < 0 { // circles of names cost nothing else
		return nil, errBudget
	}
	var found []netip.AddrPort
	var last string
	ttl, refused := maxKeepFor, false
	for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
		r := c.hostRecords(ctx, host, qtype, depth+1)
		if r.err != "" {
			last = r.err
		}
		for _, a := range r.addrs {
			if !c.p.permitted(a) {
				refused = true
				continue
			}
			ttl = min(ttl, r.ttl)
			found = append(found, netip.AddrPortFrom(a, 53))
		}
	}
	switch {
	case len(found) > 0:
		c.p.hosts.put(time.Now(), host, found, ttl)
		return found, nil
	case refused:
		return nil, errors.New("not asked: not an address of the Internet")
	case last != "":
		return nil, fmt.Errorf("its address was not found: %s", last)
	}
	return nil, errors.New("has no address")
}

// hostRecords asks for the addresses of one type.
func (c *course) hostRecords(ctx context.Context, host string, qtype uint16, depth int) reply {
	if _, stub := c.p.stubOf(host); c.p.resolver.IsValid() && !stub {
		m, err := c.recurse(ctx, query{name: host, qtype: qtype})
		if err != nil {
			return reply{err: err.Error()}
		}
		var r reply
		r.readAnswer(m.Answer, host, qtype)
		return r
	}
	_, seen := c.descend(ctx, host, qtype, depth)
	return seen[len(seen)-1].reply
}

// stubOf is the deepest stub zone that name is in.
func (p *Prober) stubOf(name string) (string, bool) {
	for zone := name; ; zone = parent(zone) {
		if _, ok := p.stubs[zone]; ok {
			return zone, true
		}
		if zone == "." {
			return "", false
		}
	}
}

// survey asks all servers of the zone that name is in for its records of
// qtype, and lets look go on with each. Registries are spared: of a zone that
// is the root or a top-level domain one server is asked.
func (c *course) survey(ctx context.Context, name string, look func(peer, string) reply) (string, []sighting) {
	d, seen := c.descend(ctx, name, dns.TypeTXT, 0)
	last := seen[len(seen)-1]
	if !last.kind.settled() {
		return d.zone, seen
	}
	if _, stub := c.p.stubs[d.zone]; dns.CountLabel(d.zone) <= 1 && !stub {
		return d.zone, []sighting{{last.host, last.addr, look(peer{last.host, last.addr}, d.zone)}}
	}
	targets, seen := c.targets(ctx, d, maxServers, false, 0)
	answers := make([]sighting, len(targets))
	var wg sync.WaitGroup
	for i, t := range targets {
		wg.Go(func() { answers[i] = sighting{t.host, t.addr, look(t, d.zone)} })
	}
	wg.Wait()
	seen = append(seen, answers...)
	slices.SortStableFunc(seen, bySender)
	return d.zone, seen
}

func bySender(a, b sighting) int {
	if byHost := strings.Compare(a.host, b.host); byHost != 0 {
		return byHost
	}
	return a.addr.Compare(b.addr)
}
