package conformance_test

import (
	"testing"

	"github.com/miekg/dns"
)

// A node says who it is if it is asked, and only if it is configured to
// (RFC 5001, RFC 4892). The chaos plugin lets other classes than IN through to
// all plugins; they change nothing there.
func (n *node) testIdentity(t *testing.T) {
	nsid := options(&dns.EDNS0_NSID{Code: dns.EDNS0NSID})
	class := func(c uint16) func(*dns.Msg) { return func(m *dns.Msg) { m.Question[0].Qclass = c } }
	const (
		key     = "ed25519-a._domainkey." + zone + "."
		refused = "QUERY REFUSED 1 0 0 0"
	)
	tests := []struct {
		name string
		q    *dns.Msg
		want string
	}{
		{"NSID", query(key, dns.TypeTXT, edns(1232), nsid), "QUERY NOERROR aa 1 1 0 0 edns0 1232 option3"},
		{"NSID, NXDOMAIN", query("x."+key, dns.TypeTXT, edns(1232), nsid), "QUERY NXDOMAIN aa 1 0 1 0 edns0 1232 option3"},
		{"NSID, outside", query("example.net.", dns.TypeTXT, edns(1232), nsid), refused + " edns0 1232 ede20 option3"},
		{"NSID, AXFR", query(zone+".", dns.TypeAXFR, edns(1232), nsid), refused + " edns0 1232 ede18 option3"},
		{"no NSID", query(key, dns.TypeTXT, edns(1232)), "QUERY NOERROR aa 1 1 0 0 edns0 1232"},
		{"no EDNS", query(key, dns.TypeTXT), "QUERY NOERROR aa 1 1 0 0"},
		{"version.bind", query("version.bind.", dns.TypeTXT, class(dns.ClassCHAOS)), "QUERY NOERROR 1 1 0 0"},
		{"id.server", query("ID.Server.", dns.TypeTXT, class(dns.ClassCHAOS)), "QUERY NOERROR 1 1 0 0"},
		{"key, class CH", query(key, dns.TypeTXT, class(dns.ClassCHAOS)), refused},
		{"key, class CH, EDNS", query(key, dns.TypeTXT, class(dns.ClassCHAOS), edns(4096), ednsFlags(0xffff)), refused + " edns0 1232 0x8000 ede20"},
		{"key, class HS", query(key, dns.TypeTXT, class(dns.ClassHESIOD)), refused},
		{"key, class NONE", query(key, dns.TypeTXT, class(dns.ClassNONE)), refused},
		{"key, class ANY", query(key, dns.TypeTXT, class(dns.ClassANY)), refused},
		{"outside, class CH", query("example.net.", dns.TypeTXT, class(dns.ClassCHAOS)), refused},
	}
	for _, tt := range tests {
		for _, network := range []string{"udp", "tcp"} {
			t.Run(tt.name+" "+network, func(t *testing.T) {
				packet := pack(t, tt.q)
				if got := line(t, packet, ask(t, network, n.named.addr, packet)); got != tt.want {
					t.Errorf("reply %q, want %q", got, tt.want)
				}
			})
		}
	}
}
