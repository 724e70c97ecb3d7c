package prober

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/dkimzone/dkimzone/internal/rotation"
)

func TestNewRefuses(t *testing.T) {
	one := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53")}
	tests := []struct {
		name string
		cfg  Config
		want string
	}{
		{"empty hints", Config{RootHints: []netip.AddrPort{}}, "RootHints"},
		{"hint without a port", Config{RootHints: []netip.AddrPort{netip.AddrPortFrom(one[0].Addr(), 0)}}, "RootHints"},
		{"resolver by name", Config{Resolver: "resolver.example.net"}, "Resolver"},
		{"stub without servers", Config{Stubs: map[string][]netip.AddrPort{"example.net": nil}}, "Stubs"},
		{"stub without a port", Config{Stubs: map[string][]netip.AddrPort{"example.net": {{}}}}, "Stubs"},
		{"stub of no name", Config{Stubs: map[string][]netip.AddrPort{"a..b": one}}, "Stubs"},
		{"name server without an address", Config{NameServers: map[string]netip.AddrPort{"ns1": {}}}, "NameServers"},
		{"negative timeout", Config{Timeout: -1}, "Timeout"},
		{"negative rate", Config{ServerRate: -1}, "ServerRate"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := New(tt.cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error that names %s", err, tt.want)
			}
		})
	}
	p, err := New(Config{Resolver: "2001:db8::1"})
	if err != nil || p.resolver != netip.MustParseAddrPort("[2001:db8::1]:53") || len(p.roots) != 13 {
		t.Errorf("got %v, %v", p, err)
	}
}

// TestDelegationsAreKept asks about two selectors; only the first question
// climbs down from the root.
func TestDelegationsAreKept(t *testing.T) {
	w, first, _ := internet(t, good)
	p := w.prober(Config{})
	root := w.sites[netip.MustParseAddrPort("198.51.100.1:53")]
	if r := ask(t, p); r.Class != OK {
		t.Fatalf("%+v", r)
	}
	before := len(root.questions())
	if r := p.Alias(within(t), AliasQuestion{Owner: "selector2._domainkey.spamtrap.dk", Target: target, Zone: zone}); r.Class != Missing {
		t.Fatalf("%+v", r)
	}
	if after := len(root.questions()); before == 0 || after != before {
		t.Errorf("%d questions at the root before the second, %d after", before, after)
	}
	if s := p.Stats(); s.CacheHits == 0 || s.Queries == 0 {
		t.Errorf("%+v", s)
	}
	// Servers that are no good any more are not kept.
	first.misbehave(func(string, *dns.Msg, *dns.Msg) *dns.Msg { return nil }, nil)
	w.mu.Lock()
	delete(w.sites, netip.MustParseAddrPort("192.0.2.3:53"))
	w.mu.Unlock()
	p.timeout = func(netip.AddrPort) time.Duration { return 100 * time.Millisecond }
	if r := ask(t, p); r.Class != Unreachable {
		t.Fatalf("%+v", r)
	}
	if _, ok := p.zones.get(time.Now(), "spamtrap.dk."); ok {
		t.Error("the delegation to servers that do not answer is kept")
	}
}

func TestStubs(t *testing.T) {
	w, _, _ := internet(t, good)
	p := w.prober(Config{Stubs: map[string][]netip.AddrPort{
		"SpamTrap.dk": {netip.MustParseAddrPort("192.0.2.1:53"), netip.MustParseAddrPort("192.0.2.3:53")},
	}})
	r := ask(t, p)
	if r.Class != OK || len(r.Servers) != 2 {
		t.Errorf("%+v", r)
	}
	for addr, s := range w.sites {
		if n := len(s.questions()); (n > 0) != (addr.Addr().String() == "192.0.2.1" || addr.Addr().String() == "192.0.2.3") {
			t.Errorf("%s got %d questions", addr, n)
		}
	}
}

// TestInnerAddresses has a split horizon, whose servers may stand where those of
// strangers may not.
func TestInnerAddresses(t *testing.T) {
	w, _, _ := internet(t, "")
	for _, addr := range []string{"127.0.0.1", "10.1.2.3"} {
		w.site(addr, strings.ReplaceAll(customer(""), "spamtrap", "inner"))
	}
	q := AliasQuestion{Owner: "selector1._domainkey.inner.dk", Target: target, Zone: zone}
	if r := w.prober(Config{}).Alias(within(t), q); r.Class != Unreachable {
		t.Errorf("without leave: %+v", r)
	}
	for addr, s := range w.sites {
		if addr.Addr().IsLoopback() || addr.Addr().IsPrivate() {
			if asked := s.questions(); len(asked) > 0 {
				t.Errorf("%s was asked %q", addr, asked)
			}
		}
	}
	if r := w.prober(Config{PrivateAddresses: true}).Alias(within(t), q); r.Class != Missing {
		t.Errorf("with leave: %+v", r)
	}
	p := w.prober(Config{})
	for _, addr := range []string{"0.0.0.0", "0.1.2.3", "100.64.0.1", "127.1.1.1", "169.254.169.254", "192.168.1.1", "224.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fd00::1", "ff02::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::"} {
		if p.permitted(netip.MustParseAddr(addr).Unmap()) {
			t.Errorf("%s may be asked", addr)
		}
	}
}

func TestNoIPv6(t *testing.T) {
	w, _, _ := internet(t, good)
	w.sites[netip.MustParseAddrPort("198.51.100.2:53")].load(t, "$ORIGIN dk.\ndk."+soa+"spamtrap NS ns1.spamtrap\nspamtrap NS ns6.spamtrap\nns1.spamtrap A 192.0.2.1\nns6.spamtrap AAAA 2001:db8::6\n")
	p := w.prober(Config{})
	p.noRoute = func(a netip.AddrPort) bool { return a.Addr().Is6() }
	r := ask(t, p)
	if r.Class != OK || len(r.Servers) != 2 || !slices.ContainsFunc(r.Servers, func(a ServerAnswer) bool {
		return a.Addr == "[2001:db8::6]:53" && strings.Contains(a.Err, "no IPv6")
	}) {
		t.Errorf("%+v", r)
	}
	w.site("2001:db8::6", customer(""))
	p.noRoute = nil
	if r = ask(t, p); r.Class != ServersDisagree {
		t.Errorf("with a route: %+v", r)
	}
}

// resolver puts a recursive resolver into w. It knows the records of all sites,
// and says SERVFAIL for the names that are bogus when it is to validate.
func (w *world) resolver(secure bool, bogus ...string) string {
	const addr = "192.0.2.200"
	var all []dns.RR
	for _, s := range w.sites {
		for _, zone := range s.zones {
			all = append(all, zone...)
		}
	}
	w.site(addr).misbehave(func(_ string, r, _ *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetReply(r)
		m.RecursionAvailable = true
		q := r.Question[0]
		if slices.Contains(bogus, canonical(q.Name)) && !r.CheckingDisabled {
			m.Rcode = dns.RcodeServerFailure
			m.SetEdns0(1232, true)
			m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeSignatureExpired}}
			return m
		}
		for _, rr := range all {
			if canonical(rr.Header().Name) == canonical(q.Name) && rr.Header().Rrtype == q.Qtype {
				m.Answer = append(m.Answer, rr)
			}
		}
		m.AuthenticatedData = secure && len(m.Answer) > 0
		return m
	}, nil)
	return addr
}

func TestResolver(t *testing.T) {
	tests := []struct {
		name    string
		records string
		secure  bool
		bogus   []string
		want    Class
		dnssec  Validation
		hint    string
	}{
		{name: "unsigned", records: good, want: OK, dnssec: Unsigned},
		{name: "secure", records: good, secure: true, want: OK, dnssec: Secure},
		{name: "bogus", records: good, secure: true, bogus: []string{owner + "."}, want: DNSSECBogus, dnssec: Bogus, hint: "Signature Expired"},
		{
			name: "bogus link", records: "selector1._domainkey CNAME alias.hoster.net.", secure: true,
			bogus: []string{"alias.hoster.net."}, want: DNSSECBogus, dnssec: Bogus, hint: "DS record",
		},
		{name: "resolver that does not work", records: good, secure: true, bogus: []string{owner + ".", "."}, want: OK, dnssec: NotChecked},
		{name: "missing", want: Missing, dnssec: NotChecked},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w, _, _ := internet(t, tt.records)
			resolver := w.resolver(tt.secure, tt.bogus...)
			got := ask(t, w.prober(Config{Resolver: resolver}))
			if got.Class != tt.want || got.DNSSEC != tt.dnssec || !strings.Contains(got.Hint, tt.hint) {
				t.Errorf("got %+v, want %s, %s and a hint with %q", got, tt.want, tt.dnssec, tt.hint)
			}
			if n := len(w.sites[netip.MustParseAddrPort("198.51.100.1:53")].questions()); n > 0 {
				t.Errorf("the root got %d questions", n)
			}
		})
	}
	t.Run("silent", func(t *testing.T) {
		w, _, _ := internet(t, good)
		got := ask(t, w.prober(Config{Resolver: "192.0.2.222", Timeout: 100 * time.Millisecond}))
		if got.Class != Unreachable || !strings.Contains(got.Hint, "resolver 192.0.2.222:53") {
			t.Errorf("got %+v", got)
		}
	})
}

// joined tells when somebody waits for its end.
type joined struct {
	context.Context //nolint:containedctx // it is a context
	once            *sync.Once
	waits           chan struct{}
}

func (j joined) Done() <-chan struct{} {
	j.once.Do(func() { close(j.waits) })
	return j.Context.Done()
}

// TestSameQueriesAreSentOnce holds one query back until a second one waits for
// its reply.
func TestSameQueriesAreSentOnce(t *testing.T) {
	w, first, _ := internet(t, good)
	p := w.prober(Config{})
	sending, release := make(chan struct{}), make(chan struct{})
	route := p.route
	p.route = func(a netip.AddrPort) netip.AddrPort {
		close(sending)
		<-release
		return route(a)
	}
	q := query{name: owner + ".", qtype: dns.TypeTXT}
	leaving, leave := context.WithCancel(t.Context())
	errs := make(chan error, 2)
	go func() {
		_, err := p.exchange(leaving, netip.MustParseAddrPort("192.0.2.1:53"), q)
		errs <- err
	}()
	<-sending
	second := joined{within(t), new(sync.Once), make(chan struct{})}
	go func() {
		m, err := p.exchange(second, netip.MustParseAddrPort("192.0.2.1:53"), q)
		if err == nil && len(m.Answer) != 1 {
			err = fmt.Errorf("got %v", m)
		}
		errs <- err
	}()
	<-second.waits
	leave() // the first does not wait; the second has its reply all the same
	if err := <-errs; err == nil {
		t.Error("no error for the one who left")
	}
	close(release)
	if err := <-errs; err != nil {
		t.Error(err)
	}
	if n := len(first.questions()); n != 1 {
		t.Errorf("sent %d times", n)
	}
	if s := p.Stats(); s.Coalesced != 1 || s.Queries != 1 {
		t.Errorf("%+v", s)
	}
}

func TestPacer(t *testing.T) {
	now := time.Unix(1000, 0)
	p := newPacer(100, 2)
	a, b, c := netip.MustParseAddrPort("192.0.2.1:53"), netip.MustParseAddrPort("192.0.2.2:53"), netip.MustParseAddrPort("192.0.2.3:53")
	for i := range 200 {
		want := max(0, time.Duration(i-10)*10*time.Millisecond)
		if got := p.reserve(now, a); got != want {
			t.Fatalf("query %d waits %v, want %v", i, got, want)
		}
	}
	if got := p.reserve(now, b); got != 0 {
		t.Errorf("another address waits %v", got)
	}
	if got := p.reserve(now.Add(time.Hour), a); got != 0 {
		t.Errorf("waits %v after an hour", got)
	}
	p.reserve(now.Add(time.Hour), c)
	if len(p.next) > 2 {
		t.Errorf("%d addresses are remembered", len(p.next))
	}
	p.reserve(now, a)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 100 {
		p.reserve(time.Now(), a)
	}
	if err := p.wait(ctx, a); err == nil {
		t.Error("no error when the context has ended")
	}
}

func TestCache(t *testing.T) {
	now := time.Unix(1000, 0)
	c := newCache[int](3)
	c.put(now, "never", 1, 0)
	c.put(now, "short", 1, time.Second)
	c.put(now, "long", 2, 1000*time.Hour)
	get := func(at time.Time, key string, want bool) {
		t.Helper()
		if _, ok := c.get(at, key); ok != want {
			t.Errorf("%s at %v: %v", key, at.Sub(now), ok)
		}
	}
	get(now, "never", false)
	get(now, "short", true)
	get(now.Add(time.Second), "short", false)
	get(now.Add(maxKeepFor-1), "long", true)
	get(now.Add(maxKeepFor), "long", false)
	c.put(now, "third", 3, time.Minute)
	c.put(now.Add(2*time.Second), "fourth", 4, time.Minute) // in place of the one that has expired
	get(now.Add(2*time.Second), "long", true)
	get(now.Add(2*time.Second), "third", true)
	get(now.Add(2*time.Second), "fourth", true)
	c.put(now.Add(2*time.Second), "fifth", 5, time.Minute)
	if len(c.entries) != 3 {
		t.Errorf("%d entries", len(c.entries))
	}
	c.drop("fifth")
	get(now, "fifth", false)
}

func TestQuoted(t *testing.T) {
	for text, want := range map[string]string{
		"v=DKIM1; p=": `"v=DKIM1; p="`, `a"b\`: `"a\"b\\"`, "\x00\x1b[31m\xff": `"\000\027[31m\255"`,
		strings.Repeat("a", maxText+1): `"` + strings.Repeat("a", maxText) + `…"`,
	} {
		if got := quoted(text); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
	for _, tt := range []struct {
		in   []string
		want string
	}{{[]string{"a", "b"}, "ab"}, {[]string{`\000\255`, `\"\\`, `\`}, "\x00\xff\"\\\\"}, {nil, ""}} {
		if got := unescape(tt.in); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.in, got, tt.want)
		}
	}
}

// TestReadReferral reads what a server of dk says, of which it may speak only
// below dk.
func TestReadReferral(t *testing.T) {
	m := new(dns.Msg).SetReply(new(dns.Msg).SetQuestion(owner+".", dns.TypeTXT))
	m.Ns = records(t, "spamtrap.dk. 600 NS ns1.spamtrap.dk.", "spamtrap.dk. 60 NS NS1.hoster.net.", "spamtrap.dk. NS ns1.hoster.net.",
		"dk. NS a.nic.dk.", ". NS a.root.", "other.dk. NS ns.other.dk.", "_domainkey.spamtrap.dk. NS ns.other.dk.")
	m.Extra = records(t, "ns1.spamtrap.dk. A 192.0.2.1", "ns1.spamtrap.dk. A 192.0.2.1", "ns1.spamtrap.dk. AAAA 2001:db8::1",
		"ns1.hoster.net. A 192.0.2.66", "a.nic.dk. A 192.0.2.66", "ns1.spamtrap.dk. CH TXT x")
	r := readReply(m, "dk.", owner+".", dns.TypeTXT)
	want := delegation{zone: "spamtrap.dk.", ttl: time.Minute, servers: []server{
		{"ns1.spamtrap.dk.", []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53"), netip.MustParseAddrPort("[2001:db8::1]:53")}},
		{"ns1.hoster.net.", nil}, // dk does not speak for net
	}}
	if r.kind != referral {
		t.Fatalf("got %+v", r)
	}
	if diff := cmp.Diff(want, r.next, cmp.AllowUnexported(delegation{}, server{}), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	m.Authoritative, m.Ns = true, append(m.Ns, records(t, "spamtrap.dk."+soa)...)
	if r = readReply(m, "dk.", owner+".", dns.TypeTXT); r.kind != absent || r.apex != "spamtrap.dk." || r.negativeTTL != 60 {
		t.Errorf("with a SOA record: %+v", r)
	}
}

// FuzzReadReply reads any packet as a reply, and judges it: only a CNAME of the
// name itself, from a server with authority, may be proof, and no server may
// send the prober out of its own zone.
func FuzzReadReply(f *testing.F) {
	q := new(dns.Msg).SetQuestion(owner+".", dns.TypeTXT)
	q.Id = 7
	add := func(change func(m *dns.Msg)) {
		m := new(dns.Msg).SetReply(q)
		m.Authoritative = true
		change(m)
		packet, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packet)
	}
	add(func(m *dns.Msg) { m.Answer = records(f, owner+". CNAME "+target+".") })
	add(func(m *dns.Msg) { m.Answer = records(f, owner+". TXT \"v=DKIM1; p=\"") })
	add(func(m *dns.Msg) { m.Rcode, m.Ns = dns.RcodeNameError, records(f, "spamtrap.dk."+soa) })
	add(func(m *dns.Msg) {
		m.Authoritative, m.Ns, m.Extra = false, records(f, "_domainkey.spamtrap.dk. NS a.spamtrap.dk."), records(f, "a.spamtrap.dk. A 192.0.2.1", "a.spamtrap.dk. AAAA 2001:db8::1")
	})
	f.Fuzz(func(t *testing.T, packet []byte) {
		m, err := accept(packet, q)
		if (m == nil) != (err != nil) {
			t.Fatalf("%v, %v", m, err)
		}
		if err != nil {
			return
		}
		r := readReply(m, "dk.", owner+".", dns.TypeTXT)
		if r.kind == referral {
			if d := r.next; !below("dk.", d.zone) || d.zone == "dk." || !below(d.zone, owner+".") || len(d.servers) > maxHosts {
				t.Fatalf("referral to %+v", d)
			}
			for _, s := range r.next.servers {
				if len(s.addrs) > 0 && !below("dk.", s.host) {
					t.Fatalf("glue for %s", s.host)
				}
			}
		}
		if r.kind.settled() && !m.Authoritative {
			t.Fatalf("settled without authority: %+v", r)
		}
		v := settle(owner+".", "dk.", []sighting{{reply: r}})
		e := &examination{owner: owner + ".", target: target + ".", zone: zone + ".", domain: "spamtrap.dk.", record: record}
		e.note(v)
		class, next := e.judge(v, []string{owner + "."})
		if (class == "") == (next == "") {
			t.Fatalf("class %q, next %q", class, next)
		}
		got := e.conclude(class, v)
		if proven := class != "" && got.Finding == rotation.Proven; proven != (r.kind == present && slices.Equal(r.cnames, []string{target + "."}) && len(r.txts) == 0) {
			t.Fatalf("%s of %+v", class, r)
		}
		for _, text := range append([]string{got.Hint}, got.Found...) {
			if strings.ContainsFunc(text, func(c rune) bool { return c < ' ' || c == 0x7f }) {
				t.Fatalf("a control character in %q", text)
			}
		}
	})
}
