package prober

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// world is a small Internet: name servers on loopback that stand at addresses
// of their own, with zones in master files.
type world struct {
	t     testing.TB
	mu    sync.Mutex
	sites map[netip.AddrPort]*site
}

// site is a name server.
type site struct {
	zones map[string][]dns.RR // by apex
	// meddle changes, replaces or drops (nil) an answer before it is sent.
	meddle func(network string, r, answer *dns.Msg) *dns.Msg
	// raw, if not nil, sends packets of its own before the answer.
	raw func(w dns.ResponseWriter, answer *dns.Msg)

	place netip.AddrPort // on loopback
	mu    sync.Mutex
	asked []string
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return &world{t: t, sites: map[netip.AddrPort]*site{}}
}

// nothing listens at this port of loopback while the test runs, since the test
// has it.
func deadPlace(t testing.TB) netip.AddrPort {
	t.Helper()
	l, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.LocalAddr().(*net.UDPAddr).AddrPort()
}

// listen opens UDP and TCP at one port of loopback.
func listen(t testing.TB) (net.PacketConn, net.Listener) {
	t.Helper()
	var last error
	for range 50 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		pc, err := net.ListenPacket("udp", l.Addr().String())
		if err == nil {
			return pc, l
		}
		last = err
		l.Close()
	}
	t.Fatal(last)
	return nil, nil
}

// site puts a server at addr, of IPv4 or IPv6. Each text is a master file that
// begins with $ORIGIN and has a SOA record.
func (w *world) site(addr string, masters ...string) *site {
	w.t.Helper()
	s := &site{zones: map[string][]dns.RR{}}
	for _, text := range masters {
		s.load(w.t, text)
	}
	pc, l := listen(w.t)
	s.place = netip.MustParseAddrPort(l.Addr().String())
	for network, server := range map[string]*dns.Server{"udp": {PacketConn: pc}, "tcp": {Listener: l}} {
		server.Handler = dns.HandlerFunc(func(rw dns.ResponseWriter, r *dns.Msg) { s.serve(network, rw, r) })
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		ended := make(chan struct{})
		go func() { _ = server.ActivateAndServe(); close(ended) }()
		<-started
		w.t.Cleanup(func() { _ = server.Shutdown(); <-ended })
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sites[netip.AddrPortFrom(netip.MustParseAddr(addr), 53)] = s
	return s
}

func (s *site) load(t testing.TB, text string) {
	t.Helper()
	parser := dns.NewZoneParser(strings.NewReader("$TTL 300\n"+text), "", "")
	var all []dns.RR
	apex := ""
	for rr, ok := parser.Next(); ok; rr, ok = parser.Next() {
		if soa, ok := rr.(*dns.SOA); ok {
			apex = canonical(soa.Hdr.Name)
		}
		all = append(all, rr)
	}
	if err := parser.Err(); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.zones[apex] = all
}

func (s *site) serve(network string, w dns.ResponseWriter, r *dns.Msg) {
	q := r.Question[0]
	s.mu.Lock()
	s.asked = append(s.asked, network+" "+canonical(q.Name)+" "+dns.TypeToString[q.Qtype])
	answer := s.answer(r).Copy() // meddle may change the records
	meddle, raw := s.meddle, s.raw
	s.mu.Unlock()
	if meddle != nil {
		if answer = meddle(network, r, answer); answer == nil {
			return
		}
	}
	if raw != nil {
		raw(w, answer)
	}
	_ = w.WriteMsg(answer)
}

// misbehave sets meddle and raw.
func (s *site) misbehave(meddle func(network string, r, answer *dns.Msg) *dns.Msg, raw func(dns.ResponseWriter, *dns.Msg)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.meddle, s.raw = meddle, raw
}

// questions are those that were asked at s.
func (s *site) questions() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

// answer is what an authoritative server says.
func (s *site) answer(r *dns.Msg) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(r)
	if opt := r.IsEdns0(); opt != nil {
		m.SetEdns0(1232, opt.Do())
	}
	q := r.Question[0]
	name := canonical(q.Name)
	apex, ok := "", false
	for zone := name; ; zone = parent(zone) {
		if _, ok = s.zones[zone]; ok {
			apex = zone
			break
		}
		if zone == "." {
			break
		}
	}
	if !ok {
		m.Rcode = dns.RcodeRefused
		return m
	}
	records := s.zones[apex]
	exists := false
	var soa *dns.SOA
	for _, rr := range records {
		owner := canonical(rr.Header().Name)
		if ns, ok := rr.(*dns.NS); ok && owner != apex && below(owner, name) {
			m.Ns = append(m.Ns, rr)
			for _, glue := range records {
				if t := glue.Header().Rrtype; (t == dns.TypeA || t == dns.TypeAAAA) && canonical(glue.Header().Name) == canonical(ns.Ns) {
					m.Extra = append(m.Extra, glue)
				}
			}
			continue
		}
		if below(name, owner) {
			exists = true
		}
		if s, ok := rr.(*dns.SOA); ok {
			soa = s
		}
		if t := rr.Header().Rrtype; owner == name && (t == q.Qtype || t == dns.TypeCNAME && !hasType(records, name, q.Qtype)) {
			m.Answer = append(m.Answer, rr)
		}
	}
	if len(m.Ns) > 0 {
		m.Answer = nil
		return m
	}
	m.Authoritative = true
	if len(m.Answer) == 0 {
		m.Ns = []dns.RR{soa}
		if !exists {
			m.Rcode = dns.RcodeNameError
		}
	}
	return m
}

func hasType(records []dns.RR, name string, qtype uint16) bool {
	return slices.ContainsFunc(records, func(rr dns.RR) bool {
		return canonical(rr.Header().Name) == name && rr.Header().Rrtype == qtype
	})
}

// prober asks in w. Addresses without a site are silent.
func (w *world) prober(cfg Config) *Prober {
	w.t.Helper()
	if cfg.Timeout == 0 {
		cfg.Timeout = 2 * time.Second
	}
	if cfg.ServerRate == 0 {
		cfg.ServerRate = 100000
	}
	if cfg.RootHints == nil && cfg.Stubs == nil {
		cfg.RootHints = []netip.AddrPort{netip.MustParseAddrPort("198.51.100.1:53")}
	}
	p, err := New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	silent := deadPlace(w.t)
	p.route = func(a netip.AddrPort) netip.AddrPort {
		w.mu.Lock()
		defer w.mu.Unlock()
		if s, ok := w.sites[a]; ok {
			return s.place
		}
		return silent
	}
	// On a busy machine even loopback is slow: who does answer has time for it.
	short := p.timeout
	p.timeout = func(place netip.AddrPort) time.Duration {
		if w.answers(place) {
			return 20 * time.Second
		}
		return short(place)
	}
	return p
}

// answers reports whether a site is at a place of loopback, and does not meddle
// with answers.
func (w *world) answers(place netip.AddrPort) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.sites {
		if s.place == place {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.meddle == nil
		}
	}
	return false
}

const soa = " IN SOA ns.example. hostmaster.example. 1 3600 600 86400 60\n"

// The fixed parts of the world: the root, two top-level domains, our zone and
// some hosters'.
const (
	rootZone = `$ORIGIN .
.` + soa + `
. NS a.root.
a.root. A 198.51.100.1
dk. NS a.nic.dk.
a.nic.dk. A 198.51.100.2
net. NS a.nic.net.
a.nic.net. A 198.51.100.3
`
	dkZone = `$ORIGIN dk.
dk.` + soa + `
dk. NS a.nic.dk.
spamtrap NS ns1.spamtrap
spamtrap NS ns2.hoster.net.
ns1.spamtrap A 192.0.2.1
glueless NS ns2.hoster.net.
silent NS ns.silent
ns.silent A 192.0.2.250
inner NS ns.inner
ns.inner A 127.0.0.1
ns.inner A 10.1.2.3
circle NS ns.circle.net.
nobody NS ns.nowhere.net.
`
	netZone = `$ORIGIN net.
net.` + soa + `
net. NS a.nic.net.
hoster NS ns1.hoster
ns1.hoster A 192.0.2.2
circle NS ns.circle.dk.
keys.example NS ns1.keys.example
ns1.keys.example A 192.0.2.53
`
	hosterZone = `$ORIGIN hoster.net.
@` + soa + `
@ NS ns1
ns1 A 192.0.2.2
ns2 A 192.0.2.3
alias CNAME selector1-spamtrap-dk._domainkey.keys.example.net.
dangling CNAME gone.hoster.net.
back CNAME loop._domainkey.spamtrap.dk.
web A 203.0.113.9
toalias CNAME alias
`
)

const (
	owner  = "selector1._domainkey.spamtrap.dk"
	target = "selector1-spamtrap-dk._domainkey.keys.example.net"
	zone   = "keys.example.net"
	record = "v=DKIM1; k=ed25519; p=fPN/+Ey6JPpbiVAZ6Xv/s0nUsGeMVXQDWf4LpNw/HqY="
)

// internet is the world with a customer's zone at 192.0.2.1 and 192.0.2.3, with
// records added to it.
func internet(t testing.TB, records string) (w *world, first, second *site) {
	t.Helper()
	w = newWorld(t)
	w.site("198.51.100.1", rootZone)
	w.site("198.51.100.2", dkZone)
	w.site("198.51.100.3", netZone)
	w.site("192.0.2.2", hosterZone)
	first = w.site("192.0.2.1", customer(records))
	second = w.site("192.0.2.3", customer(records), strings.ReplaceAll(customer(""), "spamtrap", "glueless"))
	return w, first, second
}

// customer is the zone spamtrap.dk with records added.
func customer(records string) string {
	return "$ORIGIN spamtrap.dk.\n@" + soa + "@ NS ns1\n@ NS ns2.hoster.net.\nns1 A 192.0.2.1\n@ TXT \"v=spf1 -all\"\n" + records + "\n"
}

func ask(t testing.TB, p *Prober) AliasReport {
	t.Helper()
	return p.Alias(within(t), AliasQuestion{Owner: owner, Target: target, Zone: zone, Record: record})
}

// within is a context that ends long before the test does.
func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}
