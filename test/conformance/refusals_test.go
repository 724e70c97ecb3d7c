package conformance_test

import (
	"net/http"
	"testing"

	"github.com/miekg/dns"

	"github.com/dkimzone/dkimzone/test/harness"
)

// refusalCase is a query that is refused, and the reply.
type refusalCase struct {
	name       string
	q          *dns.Msg
	want       string
	root       string // the reply where the server block is for all names, if it is another
	divergence string // row of docs/divergences.md
}

func refusalCases() []refusalCase {
	return []refusalCase{
		{"outside", query("example.net.", dns.TypeSOA, edns(4096)), "QUERY REFUSED 1 0 0 0 edns0 4096", "QUERY REFUSED 1 0 0 0 edns0 1232 ede20", "core-errors"},
		{"outside, all flags", query("example.net.", dns.TypeSOA, edns(1232), ednsFlags(0xffff)), "QUERY REFUSED 1 0 0 0 edns0 1232 0xff00", "QUERY REFUSED 1 0 0 0 edns0 1232 0x8000 ede20", "core-errors"},
		{"outside, CD", query("example.net.", dns.TypeSOA, func(m *dns.Msg) { m.CheckingDisabled = true }), "QUERY REFUSED cd 1 0 0 0", "QUERY REFUSED 1 0 0 0", "core-errors"},
		{"AXFR", query(zone+".", dns.TypeAXFR, edns(1232)), "QUERY REFUSED 1 0 0 0 edns0 1232 ede18", "", ""},
		{"IXFR", query(zone+".", dns.TypeIXFR, edns(1232)), "QUERY REFUSED 1 0 0 0 edns0 1232 ede18", "", ""},
		{"NOTIFY", query(zone+".", dns.TypeSOA, edns(1232), func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }), "NOTIFY REFUSED 1 0 0 0 edns0 1232 ede21", "", ""},
		{"MAILB", query(zone+".", dns.TypeMAILB, edns(1232)), "QUERY NOTIMP 1 0 0 0 edns0 1232 ede21", "", ""},
	}
}

// What is refused, and why: RFC 8914 §4.
func (n *node) testRefusals(t *testing.T) {
	for _, tt := range refusalCases() {
		t.Run(tt.name, func(t *testing.T) {
			n.both(t, func(t *testing.T, s server, network string) {
				want := tt.want
				if s.root && tt.root != "" {
					want = tt.root
				}
				packet := pack(t, tt.q)
				if got := line(t, packet, ask(t, network, s.addr, packet)); got != want {
					t.Errorf("reply %q, want %q", got, want)
				}
			})
		})
	}
}

// A node that has never seen its zone denies nothing: SERVFAIL, with the reason,
// at once.
func TestNotReady(t *testing.T) {
	n := &node{}
	n.listen(t, "http://"+harness.Addr(t), http.StatusServiceUnavailable)
	const servFail = "QUERY SERVFAIL 1 0 0 0"
	tests := []struct {
		name string
		q    *dns.Msg
		want string
	}{
		{"key", query("ed25519-a._domainkey."+zone+".", dns.TypeTXT), servFail},
		{"key, EDNS", query("ed25519-a._domainkey."+zone+".", dns.TypeTXT, edns(1232)), servFail + " edns0 1232 ede14"},
		{"key, DO", query("ed25519-a._domainkey."+zone+".", dns.TypeTXT, edns(1232), ednsFlags(0x8000)), servFail + " edns0 1232 0x8000 ede14"},
		{"apex", query(zone+".", dns.TypeSOA, edns(1232)), servFail + " edns0 1232 ede14"},
		{"name server", query("ns1."+zone+".", dns.TypeA, edns(1232)), servFail + " edns0 1232 ede14"},
		{"AXFR", query(zone+".", dns.TypeAXFR, edns(1232)), "QUERY REFUSED 1 0 0 0 edns0 1232 ede18"},
		{"outside", query("example.net.", dns.TypeSOA), "QUERY REFUSED 1 0 0 0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n.both(t, func(t *testing.T, s server, network string) {
				packet := pack(t, tt.q)
				if got := line(t, packet, ask(t, network, s.addr, packet)); got != tt.want {
					t.Errorf("reply %q, want %q", got, tt.want)
				}
			})
		})
	}
}
