package conformance_test

import (
	"fmt"
	"testing"

	"github.com/miekg/dns"
)

// version1, ednsFlags and options change the OPT record of a query.
func version1(m *dns.Msg) { m.IsEdns0().SetVersion(1) }

func ednsFlags(flags uint32) func(*dns.Msg) {
	return func(m *dns.Msg) { m.IsEdns0().Hdr.Ttl |= flags }
}

func options(opts ...dns.EDNS0) func(*dns.Msg) {
	return func(m *dns.Msg) { m.IsEdns0().Option = opts }
}

func local(code uint16, n int) *dns.EDNS0_LOCAL {
	return &dns.EDNS0_LOCAL{Code: code, Data: make([]byte, n)}
}

// opt is an OPT record in wire format.
func opt(owner string, size uint16) []byte {
	b := append([]byte(owner), 0, 41, byte(size>>8), byte(size), 0, 0, 0, 0, 0, 0)
	return b
}

// ednsCase is a query with EDNS for the zone's SOA record.
type ednsCase struct {
	name       string
	edit       []func(*dns.Msg)
	opt        string // what the reply has of EDNS
	overUDP    string // the same over UDP, if it differs
	divergence string // row of docs/divergences.md
}

func ednsCases() []ednsCase {
	with := func(size uint16, more ...func(*dns.Msg)) []func(*dns.Msg) {
		return append([]func(*dns.Msg){edns(size)}, more...)
	}
	cookie := func(hex string) dns.EDNS0 { return &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: hex} }
	const ours = " edns0 1232"
	cases := []ednsCase{
		{name: "size 0", edit: with(0), opt: ours},
		{name: "size 511", edit: with(511), opt: ours},
		{name: "size 512", edit: with(512), opt: ours},
		{name: "size 1232", edit: with(1232), opt: ours},
		{name: "size 4096", edit: with(4096), opt: ours},
		{name: "size 65535", edit: with(65535), opt: ours},
		{name: "DO", edit: with(1232, ednsFlags(0x8000)), opt: ours + " 0x8000"},
		{name: "DO, size 4096", edit: with(4096, ednsFlags(0x8000)), opt: ours + " 0x8000"},
		{name: "DO, size 600", edit: with(600, ednsFlags(0x8000)), opt: ours + " 0x8000", overUDP: " edns0 600 0x8000", divergence: "opt-size"},
		{name: "all flags", edit: with(1232, ednsFlags(0xffff)), opt: ours + " 0x8000"},
		{name: "option 100", edit: with(1232, options(local(100, 3))), opt: ours},
		{name: "same option twice", edit: with(1232, options(local(65001, 0), local(65001, 9))), opt: ours},
		{name: "cookie", edit: with(1232, options(cookie("0102030405060708"))), opt: ours, divergence: "cookies"},
		{name: "cookie that is too short", edit: with(1232, options(cookie("0102"))), opt: ours, divergence: "cookies"},
		{name: "keepalive", edit: with(1232, options(&dns.EDNS0_TCP_KEEPALIVE{Code: dns.EDNS0TCPKEEPALIVE})), opt: ours, divergence: "keepalive"},
		{name: "NSID without the plugin", edit: with(1232, options(&dns.EDNS0_NSID{Code: dns.EDNS0NSID})), opt: ours},
		{name: "padding", edit: with(1232, options(&dns.EDNS0_PADDING{Padding: make([]byte, 64)})), opt: ours},
		{name: "client subnet", edit: with(1232, options(&dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: []byte{192, 0, 2, 0}})), opt: ours},
		{name: "extended error from a client", edit: with(1232, options(&dns.EDNS0_EDE{InfoCode: 1})), opt: ours},
	}
	for bit := range 15 {
		cases = append(cases, ednsCase{name: fmt.Sprintf("flag %#04x", 1<<bit), edit: with(1232, ednsFlags(1<<bit)), opt: ours})
	}
	return cases
}

// EDNS: RFC 6891 §6, RFC 3225 §3. Whatever else the query has, a version other
// than 0 gets BADVERS.
func (n *node) testEDNS(t *testing.T) {
	for _, tt := range ednsCases() {
		for _, version := range []uint8{0, 1, 255} {
			t.Run(fmt.Sprintf("%s, version %d", tt.name, version), func(t *testing.T) {
				n.both(t, func(t *testing.T, s server, network string) {
					want := "QUERY NOERROR aa 1 1 0 0" + tt.opt
					switch {
					case version > 0:
						want = badVersion
					case network == "udp" && tt.overUDP != "":
						want = "QUERY NOERROR aa 1 1 0 0" + tt.overUDP
					}
					packet := pack(t, query(zone+".", dns.TypeSOA, append(tt.edit, func(m *dns.Msg) { m.IsEdns0().SetVersion(version) })...))
					if got := line(t, packet, ask(t, network, s.addr, packet)); got != want {
						t.Errorf("reply %q, want %q", got, want)
					}
				})
			})
		}
	}
}

// badVersion is CoreDNS' own reply to EDNS version 1.
const (
	badVersion    = "QUERY BADVERS 1 0 0 0 edns0 0"
	badVersionRow = "badvers-size" // of docs/divergences.md
)

// The probes of RFC 8906 §8, as one gives them to dig. That opcode 15 is not
// implemented is among the packets.
func (n *node) testCompliance(t *testing.T) {
	const found = "QUERY NOERROR aa 1 1 0 0"
	soa := func(edit ...func(*dns.Msg)) *dns.Msg { return query(zone+".", dns.TypeSOA, edit...) }
	tests := []struct {
		name string
		q    *dns.Msg
		want string
	}{
		{"+noedns SOA", soa(), found},
		{"TYPE1000", query(zone+".", 1000), "QUERY NOERROR aa 1 0 1 0"},
		{"+cd", soa(func(m *dns.Msg) { m.CheckingDisabled = true }), found},
		{"+ad", soa(func(m *dns.Msg) { m.AuthenticatedData = true }), found},
		{"+zflag", soa(func(m *dns.Msg) { m.Zero = true }), found},
		{"+rd", soa(func(m *dns.Msg) { m.RecursionDesired = true }), "QUERY NOERROR aa rd 1 1 0 0"},
		{"+edns=0", soa(edns(1232)), found + " edns0 1232"},
		{"+edns=1", soa(edns(1232), version1), badVersion},
		{"+ednsopt=100", soa(edns(1232), options(local(100, 0))), found + " edns0 1232"},
		{"+ednsflags=0x40", soa(edns(1232), ednsFlags(0x40)), found + " edns0 1232"},
		{"+ednsflags=0x80", soa(edns(1232), ednsFlags(0x80)), found + " edns0 1232"},
		{"+edns=1 +ednsflags=0x80", soa(edns(1232), version1, ednsFlags(0x80)), badVersion},
		{"+edns=1 +ednsopt=100", soa(edns(1232), version1, options(local(100, 0))), badVersion},
		{"+bufsize=512", query("rsa3072-a._domainkey."+zone+".", dns.TypeTXT, edns(512)), ""},
		{"+dnssec", soa(edns(1232), ednsFlags(0x8000)), found + " edns0 1232 0x8000"},
		{"+cookie +nsid +expire +subnet=0.0.0.0/0", soa(edns(1232), options(
			&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"}, &dns.EDNS0_NSID{Code: dns.EDNS0NSID},
			&dns.EDNS0_EXPIRE{Code: dns.EDNS0EXPIRE, Empty: true}, &dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, Address: make([]byte, 4)})), found + " edns0 1232"},
		{"+dnssec +edns=1", soa(edns(1232), version1, ednsFlags(0x8000)), badVersion},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n.both(t, func(t *testing.T, s server, network string) {
				want := tt.want
				if want == "" {
					want = map[string]string{"udp": "QUERY NOERROR aa tc 1 0 0 0 edns0 1232", "tcp": "QUERY NOERROR aa 1 1 0 0 edns0 1232"}[network]
				}
				packet := pack(t, tt.q)
				if got := line(t, packet, ask(t, network, s.addr, packet)); got != want {
					t.Errorf("reply %q, want %q", got, want)
				}
			})
		})
	}
}
