package prober

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/dkimzone/dkimzone/internal/rotation"
)

func ours(records string) string {
	return "$ORIGIN " + zone + ".\n@" + soa + "@ NS ns1\n@ NS ns2\nns1 A 192.0.2.53\nns2 A 192.0.2.54\n" + records + "\n"
}

func TestServed(t *testing.T) {
	const relative = "selector1-spamtrap-dk._domainkey"
	right := relative + ` TXT "` + record[:9] + `" "` + record[9:] + `"`
	tests := []struct {
		name    string
		records string // of the second server; the first is always right
		meddle  func(network string, r, answer *dns.Msg) *dns.Msg
		finding rotation.Finding
		reason  string
		err     string // in the report of the second server
	}{
		{name: "right", records: right, finding: rotation.Proven},
		{name: "missing", finding: rotation.Contradicted, reason: ReasonNotServed, err: ReasonNotServed},
		{name: "other type", records: relative + " A 192.0.2.9", finding: rotation.Contradicted, reason: ReasonNotServed},
		{name: "other content", records: relative + ` TXT "v=DKIM1; p="`, finding: rotation.Contradicted, reason: ReasonOtherContent, err: ReasonOtherContent},
		{name: "longer", records: relative + ` TXT "` + record + `" "x"`, finding: rotation.Contradicted, reason: ReasonOtherContent},
		{name: "two records", records: right + "\n" + relative + ` TXT "v=DKIM1; p="`, finding: rotation.Contradicted, reason: ReasonOtherContent},
		{name: "CNAME", records: relative + " CNAME other", finding: rotation.Contradicted, reason: ReasonOtherContent},
		{name: "not authoritative", records: right, meddle: func(_ string, _, m *dns.Msg) *dns.Msg { m.Authoritative = false; return m }, finding: rotation.Unreachable, reason: ReasonNoProof, err: "is not authoritative"},
		{name: "record with NXDOMAIN", records: right, meddle: func(_ string, _, m *dns.Msg) *dns.Msg { m.Rcode = dns.RcodeNameError; return m }, finding: rotation.Contradicted, reason: ReasonOtherContent},
		{name: "REFUSED", meddle: func(_ string, r, _ *dns.Msg) *dns.Msg { return new(dns.Msg).SetRcode(r, dns.RcodeRefused) }, finding: rotation.Unreachable, reason: ReasonNoProof, err: "refuses"},
		{name: "SERVFAIL", meddle: func(_ string, r, _ *dns.Msg) *dns.Msg { return new(dns.Msg).SetRcode(r, dns.RcodeServerFailure) }, finding: rotation.Unreachable, reason: ReasonNoProof, err: "SERVFAIL"},
		{name: "silent", meddle: func(string, *dns.Msg, *dns.Msg) *dns.Msg { return nil }, finding: rotation.Unreachable, reason: ReasonNoProof, err: "no reply in time"},
		{name: "no UDP", records: right, meddle: over("tcp"), finding: rotation.Unreachable, reason: ReasonNoProof, err: "udp: no reply in time"},
		{name: "no TCP", records: right, meddle: over("udp"), finding: rotation.Unreachable, reason: ReasonNoProof, err: "tcp: no reply in time"},
		{name: "missing, and no TCP", meddle: over("udp"), finding: rotation.Contradicted, reason: ReasonNotServed, err: "tcp: no reply in time"},
		{name: "truncated", records: right, meddle: func(network string, _, m *dns.Msg) *dns.Msg {
			if network == "udp" {
				m.Answer, m.Truncated = nil, true
			}
			return m
		}, finding: rotation.Proven},
		{name: "TCP says another thing", records: right, meddle: func(network string, _, m *dns.Msg) *dns.Msg {
			if network == "tcp" {
				m.Answer = nil
			}
			return m
		}, finding: rotation.Contradicted, reason: ReasonNotServed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			first, second := w.site("192.0.2.53", ours(right)), w.site("192.0.2.54", ours(tt.records))
			second.misbehave(tt.meddle, nil)
			p := w.prober(Config{Timeout: time.Second})
			servers := []NameServer{
				{Host: "ns1." + zone, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.53")}},
				{Host: "ns2." + zone, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.54")}},
			}
			got := p.Served(within(t), zone, servers, target, record)
			if got.Finding != tt.finding || got.Reason != tt.reason {
				t.Errorf("got %v %q, want %v %q", got.Finding, got.Reason, tt.finding, tt.reason)
			}
			if len(got.Servers) != 4 || tt.err != "" && !slices.ContainsFunc(got.Servers, func(a ServerAnswer) bool {
				return a.Host == "ns2."+zone && strings.Contains(a.Err, tt.err)
			}) {
				t.Errorf("servers %+v, want four, and the error %q", got.Servers, tt.err)
			}
			if got.Servers[0].Err != "" || got.Servers[1].Err != "" {
				t.Errorf("the first server is right: %+v", got.Servers[:2])
			}
			asked := strings.Join(first.questions(), "\n")
			for _, network := range []string{"udp", "tcp"} {
				if !strings.Contains(asked, network+" "+target+". TXT") {
					t.Errorf("not asked over %s: %s", network, asked)
				}
			}
		})
	}
}

// over drops what does not come over network.
func over(network string) func(string, *dns.Msg, *dns.Msg) *dns.Msg {
	return func(n string, _, m *dns.Msg) *dns.Msg {
		if n == network {
			return m
		}
		return nil
	}
}

func TestServedAddresses(t *testing.T) {
	right := `selector1-spamtrap-dk._domainkey TXT "` + record + `"`
	w := newWorld(t)
	w.site("192.0.2.53", ours(right))
	elsewhere := w.site("203.0.113.53", ours(right))
	six := netip.MustParseAddr("2001:db8::53")
	v4 := netip.MustParseAddr("192.0.2.53")
	override := map[string]netip.AddrPort{"NS9." + zone + ".": netip.MustParseAddrPort("203.0.113.53:53"), "192.0.2.99": netip.MustParseAddrPort("203.0.113.53:53")}
	tests := []struct {
		name    string
		servers []NameServer
		want    rotation.Finding
		reason  string
	}{
		{"none", nil, rotation.Unreachable, ReasonNoServers},
		{"without an address", []NameServer{{Host: "ns1." + zone}}, rotation.Unreachable, ReasonNoProof},
		{"IPv6 too", []NameServer{{Host: "ns1." + zone, Addrs: []netip.Addr{v4, six}}}, rotation.Proven, ""},
		{"IPv6 only", []NameServer{{Host: "ns1." + zone, Addrs: []netip.Addr{v4}}, {Host: "ns2." + zone, Addrs: []netip.Addr{six}}}, rotation.Unreachable, ReasonNoProof},
		{"configured place of an address", []NameServer{{Host: "ns1." + zone, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.99")}}}, rotation.Proven, ""},
		{"configured place", []NameServer{{Host: "ns9." + zone, Addrs: []netip.Addr{six}}}, rotation.Proven, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := w.prober(Config{NameServers: override})
			p.noRoute = func(a netip.AddrPort) bool { return a.Addr().Is6() }
			got := p.Served(within(t), zone, tt.servers, target, record)
			if got.Finding != tt.want || got.Reason != tt.reason {
				t.Errorf("got %+v, want %v %q", got, tt.want, tt.reason)
			}
		})
	}
	if len(elsewhere.questions()) == 0 {
		t.Error("the configured place was not asked")
	}
}

// A name server outside the zone has no addresses in it.
func TestServedOutside(t *testing.T) {
	w, _, second := internet(t, "")
	second.load(t, ours(`selector1-spamtrap-dk._domainkey TXT "`+record+`"`))
	for host, want := range map[string]rotation.Finding{"ns2.hoster.net": rotation.Proven, "gone.hoster.net": rotation.Unreachable} {
		got := w.prober(Config{}).Served(within(t), zone, []NameServer{{Host: host}}, target, record)
		if got.Finding != want {
			t.Errorf("%s: %+v, want %v", host, got, want)
		}
	}
}

func TestChallenge(t *testing.T) {
	const name = "_dkimzone-challenge"
	tests := []struct {
		name          string
		first, second string
		token         string
		want          bool
	}{
		{name: "there", first: name + " TXT token", second: name + " TXT token", token: "token", want: true},
		{name: "among others", first: name + " TXT other\n" + name + " TXT token", second: name + " TXT token", token: "token", want: true},
		{name: "by CNAME", first: name + " CNAME show.hoster.net.", second: name + " CNAME show.hoster.net.", token: "token", want: true},
		{name: "missing", token: "token"},
		{name: "at one server only", first: name + " TXT token", token: "token"},
		{name: "another", first: name + " TXT token2", second: name + " TXT token2", token: "token"},
		{name: "no token", first: name + ` TXT ""`, second: name + ` TXT ""`},
		{name: "CNAME to itself", first: name + " CNAME " + name, second: name + " CNAME " + name, token: "token"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w, _, second := internet(t, tt.first)
			second.load(t, customer(tt.second))
			w.sites[netip.MustParseAddrPort("192.0.2.2:53")].load(t, hosterZone+"show TXT token\n")
			got, servers := w.prober(Config{}).Challenge(within(t), "spamtrap.dk", tt.token)
			if got != tt.want || len(servers) < 2 {
				t.Errorf("got %v, %+v", got, servers)
			}
		})
	}
	t.Run("unreachable", func(t *testing.T) {
		w, _, _ := internet(t, "")
		got, servers := w.prober(Config{Timeout: 100 * time.Millisecond}).Challenge(within(t), "silent.dk", "token")
		if got || len(servers) == 0 {
			t.Errorf("got %v, %+v", got, servers)
		}
	})
}
