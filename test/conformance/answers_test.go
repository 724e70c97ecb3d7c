package conformance_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/dkimzone/dkimzone/internal/schema"
)

// Names and types: RFC 1034 §4.3.2, RFC 2308 §2, RFC 4592 §2.2.2, RFC 8020 §2,
// RFC 8482 §4.1.
func (n *node) testAnswers(t *testing.T) {
	const (
		found    = "QUERY NOERROR aa 1 1 0 0"
		noData   = "QUERY NOERROR aa 1 0 1 0"
		nxDomain = "QUERY NXDOMAIN aa 1 0 1 0"
		refused  = "QUERY REFUSED 1 0 0 0"
		ed       = `ed25519-a._domainkey.keys.example.net. 60 IN TXT "v=DKIM1; k=ed25519; p=paWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaU="`
		soa      = "keys.example.net. 3600 IN SOA ns1.keys.example.net. hostmaster.example.org. 2 7200 900 1209600 300"
		ns1A     = "ns1.keys.example.net. 3600 IN A 192.0.2.1"
		ns1AAAA  = "ns1.keys.example.net. 3600 IN AAAA 2001:db8::1"
		ns2A     = "ns2.site.keys.example.net. 3600 IN A 192.0.2.2"
	)
	ns := []string{
		"keys.example.net. 3600 IN NS ns1.keys.example.net.",
		"keys.example.net. 3600 IN NS ns2.site.keys.example.net.",
		"keys.example.net. 3600 IN NS ns3.example.org.",
	}
	under := func(name, owner, rr string) []string { return []string{strings.Replace(rr, owner, name, 1)} }
	const key = "ed25519-a._domainkey.keys.example.net."
	tests := []struct {
		name          string
		qname         string
		qtype         uint16
		want          string
		answer, extra []string
	}{
		{"key", key, dns.TypeTXT, found, []string{ed}, nil},
		{"key, ANY", key, dns.TypeANY, found, []string{ed}, nil},
		{"key in mixed case", "eD25519-A._DomainKEY.keys.EXAMPLE.net.", dns.TypeTXT, found,
			under("eD25519-A._DomainKEY.keys.EXAMPLE.net.", key, ed), nil},
		{"key, A", key, dns.TypeA, noData, nil, nil},
		{"key, CNAME", key, dns.TypeCNAME, noData, nil, nil},
		{"key, NS", key, dns.TypeNS, noData, nil, nil},
		{"key, SOA", key, dns.TypeSOA, noData, nil, nil},
		{"key, DS", key, dns.TypeDS, noData, nil, nil},
		{"key, CAA", key, dns.TypeCAA, noData, nil, nil},
		{"key, RRSIG", key, dns.TypeRRSIG, noData, nil, nil},
		{"key, TYPE0", key, 0, noData, nil, nil},
		{"key, TYPE1000", key, 1000, noData, nil, nil},
		{"key, TYPE65535", key, 65535, noData, nil, nil},
		{"empty non-terminal", "_domainkey." + zone + ".", dns.TypeTXT, noData, nil, nil},
		{"empty non-terminal, A", "_domainkey." + zone + ".", dns.TypeA, noData, nil, nil},
		{"empty non-terminal, ANY", "_domainkey." + zone + ".", dns.TypeANY, noData, nil, nil},
		{"empty non-terminal, NS", "_domainkey." + zone + ".", dns.TypeNS, noData, nil, nil},
		{"empty non-terminal in mixed case", "_DOMAINkey." + zone + ".", dns.TypeTXT, noData, nil, nil},
		{"selector with a dot", "2026.q1-a._domainkey." + zone + ".", dns.TypeTXT, found,
			under("2026.q1-a._domainkey."+zone+".", key, strings.Replace(ed, " 60 ", " 1800 ", 1)), nil},
		{"under a selector with a dot", "q1-a._domainkey." + zone + ".", dns.TypeTXT, noData, nil, nil},
		{"under a selector with two dots", "b.c-a._domainkey." + zone + ".", dns.TypeTXT, noData, nil, nil},
		{"under it once more", "c-a._domainkey." + zone + ".", dns.TypeA, noData, nil, nil},
		{"beside a selector with a dot", "2027.q1-a._domainkey." + zone + ".", dns.TypeTXT, nxDomain, nil, nil},
		{"no such key", "selector9-a._domainkey." + zone + ".", dns.TypeTXT, nxDomain, nil, nil},
		{"no such key, ANY", "selector9-a._domainkey." + zone + ".", dns.TypeANY, nxDomain, nil, nil},
		{"no such key, DS", "selector9-a._domainkey." + zone + ".", dns.TypeDS, nxDomain, nil, nil},
		{"below a key", "x." + key, dns.TypeTXT, nxDomain, nil, nil},
		{"far below a key", "x.y.z." + key, dns.TypeTXT, nxDomain, nil, nil},
		{"prefix of a key", "ed25519._domainkey." + zone + ".", dns.TypeTXT, nxDomain, nil, nil},
		{"no wildcards", "*._domainkey." + zone + ".", dns.TypeTXT, nxDomain, nil, nil},
		{"_domainkey elsewhere", "_domainkey._domainkey." + zone + ".", dns.TypeTXT, nxDomain, nil, nil},
		{"key without _domainkey", "ed25519-a." + zone + ".", dns.TypeTXT, nxDomain, nil, nil},
		{"label of 63", strings.Repeat("m", 63) + "._domainkey." + zone + ".", dns.TypeTXT, nxDomain, nil, nil},
		{"name of 255 octets", strings.Repeat("abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz01234567890.", 3) + strings.Repeat("x", 255-192-18-1) + "." + zone + ".", dns.TypeTXT, nxDomain, nil, nil},
		{"label that is the zone", "keys.example.net.keys.example.net.", dns.TypeTXT, nxDomain, nil, nil},
		{"dot inside a label", `ed25519-a\._domainkey.` + zone + ".", dns.TypeTXT, nxDomain, nil, nil},
		{"dot at the end of a label", `_domainkey\..` + zone + ".", dns.TypeTXT, nxDomain, nil, nil},
		{"zero octet", `\000._domainkey.` + zone + ".", dns.TypeTXT, nxDomain, nil, nil},
		{"octets above 127", `\195\132._domainkey.` + zone + ".", dns.TypeTXT, nxDomain, nil, nil},

		{"apex SOA", zone + ".", dns.TypeSOA, found, []string{soa}, nil},
		{"apex ANY", zone + ".", dns.TypeANY, found, []string{soa}, nil},
		{"apex SOA in mixed case", "KEYS.example.NET.", dns.TypeSOA, found, under("KEYS.example.NET.", "keys.example.net.", soa), nil},
		{"apex NS", zone + ".", dns.TypeNS, "QUERY NOERROR aa 1 3 0 3", ns, []string{ns1A, ns1AAAA, ns2A}},
		{"apex TXT", zone + ".", dns.TypeTXT, noData, nil, nil},
		{"apex A", zone + ".", dns.TypeA, noData, nil, nil},
		{"apex DS", zone + ".", dns.TypeDS, noData, nil, nil},
		{"apex DNSKEY", zone + ".", dns.TypeDNSKEY, noData, nil, nil},
		{"apex CDS", zone + ".", dns.TypeCDS, noData, nil, nil},
		{"apex MX", zone + ".", dns.TypeMX, noData, nil, nil},
		{"apex TYPE1000", zone + ".", 1000, noData, nil, nil},
		{"name server A", "ns1." + zone + ".", dns.TypeA, found, []string{ns1A}, nil},
		{"name server AAAA", "ns1." + zone + ".", dns.TypeAAAA, found, []string{ns1AAAA}, nil},
		{"name server ANY", "ns1." + zone + ".", dns.TypeANY, found, []string{ns1A}, nil},
		{"name server TXT", "ns1." + zone + ".", dns.TypeTXT, noData, nil, nil},
		{"name server without IPv6", "ns2.site." + zone + ".", dns.TypeAAAA, noData, nil, nil},
		{"below a name server", "x.ns1." + zone + ".", dns.TypeA, nxDomain, nil, nil},
		{"above a name server", "site." + zone + ".", dns.TypeA, noData, nil, nil},
		{"beside a name server", "ns3.site." + zone + ".", dns.TypeA, nxDomain, nil, nil},

		{"parent", "example.net.", dns.TypeSOA, refused, nil, nil},
		{"parent DS", "example.net.", dns.TypeDS, refused, nil, nil},
		{"root NS", ".", dns.TypeNS, refused, nil, nil},
		{"sibling", "xkeys.example.net.", dns.TypeTXT, refused, nil, nil},
		{"name server elsewhere", "ns3.example.org.", dns.TypeA, refused, nil, nil},
		{"customer's name", "selector1._domainkey.spamtrap.dk.", dns.TypeTXT, refused, nil, nil},
		{"zone as a prefix", "keys.example.net.example.org.", dns.TypeTXT, refused, nil, nil},
		{"escaped dot before the zone's name", `x\.keys.example.net.`, dns.TypeTXT, refused, nil, nil},
	}
	// The TTL of a negative answer is the lesser of the SOA's own and its MINIMUM (RFC 2308 §5).
	negative := strings.Replace(soa, " 3600 ", " 300 ", 1)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n.both(t, func(t *testing.T, s server, network string) {
				packet := pack(t, query(tt.qname, tt.qtype))
				reply := ask(t, network, s.addr, packet)
				if got := line(t, packet, reply); got != tt.want {
					t.Fatalf("reply %q, want %q", got, tt.want)
				}
				m := new(dns.Msg)
				if err := m.Unpack(reply); err != nil {
					t.Fatal(err)
				}
				var authority []string
				if tt.want == noData || tt.want == nxDomain {
					authority = []string{negative}
				}
				if diff := cmp.Diff([][]string{tt.answer, authority, tt.extra}, [][]string{records(m.Answer), records(m.Ns), records(m.Extra)}); diff != "" {
					t.Errorf("sections (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// The serial is the revision of the zone's last change in etcd: equal on all
// nodes and stable between changes (RFC 1982, RFC 1996 §3).
func (n *node) testSerial(t *testing.T) {
	serial := func(t *testing.T, s server, network string, name string) uint32 {
		t.Helper()
		m := new(dns.Msg)
		if err := m.Unpack(ask(t, network, s.addr, pack(t, query(name, dns.TypeSOA)))); err != nil {
			t.Fatal(err)
		}
		for _, rr := range append(m.Answer, m.Ns...) {
			if soa, ok := rr.(*dns.SOA); ok {
				return soa.Serial
			}
		}
		t.Fatalf("no SOA in %v", m)
		return 0
	}
	n.both(t, func(t *testing.T, s server, network string) {
		for range 3 {
			for _, name := range []string{zone + ".", "_domainkey." + zone + ".", "x." + zone + "."} {
				if got := serial(t, s, network, name); got != schema.Serial(n.rev) {
					t.Errorf("serial with %s is %d, want %d", name, got, schema.Serial(n.rev))
				}
			}
		}
	})
}
