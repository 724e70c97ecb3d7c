package dkim

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/fall"
	clog "github.com/coredns/coredns/plugin/pkg/log"
	"github.com/coredns/coredns/plugin/test"
	"github.com/coredns/coredns/request"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
	"github.com/dkimzone/dkimzone/internal/schema"
)

func TestMain(m *testing.M) {
	clog.Discard()
	dnsserver.Quiet = true
	os.Exit(m.Run())
}

// goldenKey is the key of a record in production, whose text has two
// character-strings.
const goldenKey = "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEApLkV7oHRI/lFUN/CfEpbOadRtsFpjJNqSlwlOdJ1tOfOW0j24PRZj0ktGmdo04uHhtXMMu9PGEs/4OnEcycd6sLHpDWjaVueFCD6ykPzcY7iJZPDgJezBDevwb5N+T5UANfGSH+b2nQz/oQTriRpwU0GY7amAbXIXJrB9vdBCYuM52EqcrC/F6wHZzIUYEhlfoSRvi7bs7tpQ2ziLywqw93x0ZPzarHFvRUulb/435J/6EhtxQJgoVcODtHqR9TPe8aVYsO5v2zqvRrRB4MxbabdE1etpv1KX5AV+iFQn7lNMIO93dLZBLxt5iVIjL6iDmiK/D6l7MYJnFb80zV+WwIDAQAB"

const goldenName = "selector1-spamtrap-dk._domainkey"

func decode(t testing.TB, s string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func testRecords(t testing.TB) map[string]schema.PublicRecord {
	return map[string]schema.PublicRecord{
		goldenName:                              {PublicKey: decode(t, goldenKey), TTL: 1800},
		"selector2-spamtrap-dk._domainkey":      {TTL: 1800},
		"ed-spamtrap-dk._domainkey":             {KeyType: dkimrecord.Ed25519, PublicKey: bytes.Repeat([]byte{7}, 32), TTL: 60},
		"2026.s1-spamtrap-dk._domainkey":        {PublicKey: decode(t, goldenKey), TTL: 1800, Testing: true, SameDomain: true},
		"rsa4096-spamtrap-dk._domainkey":        {PublicKey: bytes.Repeat([]byte{0xa5}, 550), TTL: 1800},
		strings.Repeat("l", 63) + "._domainkey": {PublicKey: decode(t, goldenKey), TTL: 1800},
	}
}

// query is a question as it comes off the wire.
func query(name string, qtype uint16, edit ...func(*dns.Msg)) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(name, qtype)
	m.RecursionDesired = false
	for _, fn := range edit {
		fn(m)
	}
	return m
}

func edns(size uint16, do bool) func(*dns.Msg) { return func(m *dns.Msg) { m.SetEdns0(size, do) } }

// client records the reply as it goes out on the wire.
type client struct {
	test.ResponseWriter
	tcp  bool
	wire []byte
}

func (c *client) WriteMsg(m *dns.Msg) error {
	var err error
	if c.wire != nil {
		return fmt.Errorf("second reply: %s", m)
	}
	c.wire, err = m.Pack()
	return err
}

func (c *client) RemoteAddr() net.Addr {
	if c.tcp {
		return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 99), Port: 40000}
	}
	return &net.UDPAddr{IP: net.IPv4(192, 0, 2, 99), Port: 40000}
}

// ask asks d as the server does, and unpacks the reply. It returns nil if d left
// the reply to the server.
func ask(t testing.TB, d plugin.Handler, q *dns.Msg, tcp bool) (*dns.Msg, int) {
	t.Helper()
	wire, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	r := new(dns.Msg)
	if err := r.Unpack(wire); err != nil {
		t.Fatal(err)
	}
	c := &client{tcp: tcp}
	rcode, err := d.ServeDNS(context.Background(), request.NewScrubWriter(r, c), r)
	if err != nil {
		t.Fatalf("ServeDNS: %v", err)
	}
	if (c.wire != nil) != plugin.ClientWrite(rcode) {
		t.Fatalf("rcode %d with a reply of %d octets", rcode, len(c.wire))
	}
	if c.wire == nil {
		return nil, 0
	}
	m := new(dns.Msg)
	if err := m.Unpack(c.wire); err != nil {
		t.Fatal(err)
	}
	return m, len(c.wire)
}

func rrs(section []dns.RR) []string {
	var out []string
	for _, rr := range section {
		if rr.Header().Rrtype != dns.TypeOPT {
			out = append(out, strings.ReplaceAll(rr.String(), "\t", " "))
		}
	}
	return out
}

// answerText is a reply in short: rcode, aa and the records by section.
type answerText struct {
	Rcode      string
	Answer, Ns []string
	Extra      []string
}

func short(m *dns.Msg) answerText {
	return answerText{dns.RcodeToString[m.Rcode], rrs(m.Answer), rrs(m.Ns), rrs(m.Extra)}
}

func TestAnswers(t *testing.T) {
	const (
		golden   = goldenName + "." + testZone + "."
		mixed    = "SeLector1-Spamtrap-DK._DomainKey.KEYS.example.NET."
		soaApex  = testZone + ". 3600 IN SOA ns1." + testZone + ". hostmaster.example.org. 2 7200 900 1209600 300"
		soaOther = testZone + ". 300 IN SOA ns1." + testZone + ". hostmaster.example.org. 2 7200 900 1209600 300"
	)
	text := "v=DKIM1; k=rsa; p=" + goldenKey
	txt := func(name string) []string {
		return []string{fmt.Sprintf("%s 1800 IN TXT %q %q", name, text[:255], text[255:])}
	}
	noData := answerText{Rcode: "NOERROR", Ns: []string{soaOther}}
	nxDomain := answerText{Rcode: "NXDOMAIN", Ns: []string{soaOther}}
	tests := []struct {
		name  string
		qname string
		qtype uint16
		want  answerText
	}{
		{"key", golden, dns.TypeTXT, answerText{Rcode: "NOERROR", Answer: txt(golden)}},
		{"key in mixed case", mixed, dns.TypeTXT, answerText{Rcode: "NOERROR", Answer: txt(mixed)}},
		{"key, any type", golden, dns.TypeANY, answerText{Rcode: "NOERROR", Answer: txt(golden)}},
		{"revoked key", "selector2-spamtrap-dk._domainkey.keys.example.net.", dns.TypeTXT, answerText{Rcode: "NOERROR",
			Answer: []string{`selector2-spamtrap-dk._domainkey.keys.example.net. 1800 IN TXT "v=DKIM1; k=rsa; p="`}}},
		{"Ed25519 key", "ed-spamtrap-dk._domainkey.keys.example.net.", dns.TypeTXT, answerText{Rcode: "NOERROR",
			Answer: []string{`ed-spamtrap-dk._domainkey.keys.example.net. 60 IN TXT "v=DKIM1; k=ed25519; p=BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="`}}},
		{"flags", "2026.s1-spamtrap-dk._domainkey.keys.example.net.", dns.TypeTXT, answerText{Rcode: "NOERROR",
			Answer: []string{fmt.Sprintf("2026.s1-spamtrap-dk._domainkey.keys.example.net. 1800 IN TXT %q %q",
				("v=DKIM1; k=rsa; t=y:s; p=" + goldenKey)[:255], ("v=DKIM1; k=rsa; t=y:s; p=" + goldenKey)[255:])}}},
		{"key, other type", golden, dns.TypeA, noData},
		{"key, DS", golden, dns.TypeDS, noData},
		{"key, CAA", golden, dns.TypeCAA, noData},
		{"key, CNAME", golden, dns.TypeCNAME, noData},
		{"key, unknown type", golden, 1000, noData},
		{"key, RRSIG", golden, dns.TypeRRSIG, noData},
		{"_domainkey", "_domainkey." + testZone + ".", dns.TypeTXT, noData},
		{"_domainkey, any type", "_domainkey." + testZone + ".", dns.TypeANY, noData},
		{"below _domainkey, above a key", "s1-spamtrap-dk._domainkey." + testZone + ".", dns.TypeTXT, noData},
		{"unknown key", "selector3-spamtrap-dk._domainkey." + testZone + ".", dns.TypeTXT, nxDomain},
		{"below a key", "x." + golden, dns.TypeTXT, nxDomain},
		{"wildcard", "*._domainkey." + testZone + ".", dns.TypeTXT, nxDomain},
		{"unknown name", "www." + testZone + ".", dns.TypeANY, nxDomain},
		{"escaped dot in the key's label", `selector1-spamtrap-dk\._domainkey.` + testZone + ".", dns.TypeTXT, nxDomain},
		{"dot at the end of a label", `selector1-spamtrap-dk._domainkey\..` + testZone + ".", dns.TypeTXT, nxDomain},
		{"backslash before the zone", `_domainkey\\.` + testZone + ".", dns.TypeTXT, nxDomain},
		{"apex SOA", testZone + ".", dns.TypeSOA, answerText{Rcode: "NOERROR", Answer: []string{soaApex}}},
		{"apex SOA in mixed case", "KEYS.example.net.", dns.TypeSOA, answerText{Rcode: "NOERROR", Answer: []string{"KEYS" + soaApex[4:]}}},
		{"apex, any type", testZone + ".", dns.TypeANY, answerText{Rcode: "NOERROR", Answer: []string{soaApex}}},
		{"apex NS", testZone + ".", dns.TypeNS, answerText{Rcode: "NOERROR",
			Answer: []string{
				testZone + ". 3600 IN NS ns1." + testZone + ".",
				testZone + ". 3600 IN NS ns2.site." + testZone + ".",
				testZone + ". 3600 IN NS ns3.example.org.",
			},
			Extra: []string{
				"ns1." + testZone + ". 3600 IN A 192.0.2.1",
				"ns1." + testZone + ". 3600 IN AAAA 2001:db8::1",
				"ns2.site." + testZone + ". 3600 IN A 192.0.2.2",
			}}},
		{"apex DS", testZone + ".", dns.TypeDS, noData},
		{"apex TXT", testZone + ".", dns.TypeTXT, noData},
		{"apex A", testZone + ".", dns.TypeA, noData},
		{"name server A", "NS1." + testZone + ".", dns.TypeA, answerText{Rcode: "NOERROR", Answer: []string{"NS1." + testZone + ". 3600 IN A 192.0.2.1"}}},
		{"name server AAAA", "ns1." + testZone + ".", dns.TypeAAAA, answerText{Rcode: "NOERROR", Answer: []string{"ns1." + testZone + ". 3600 IN AAAA 2001:db8::1"}}},
		{"name server, any type", "ns1." + testZone + ".", dns.TypeANY, answerText{Rcode: "NOERROR", Answer: []string{"ns1." + testZone + ". 3600 IN A 192.0.2.1"}}},
		{"name server without AAAA", "ns2.site." + testZone + ".", dns.TypeAAAA, noData},
		{"name server TXT", "ns1." + testZone + ".", dns.TypeTXT, noData},
		{"above a name server", "site." + testZone + ".", dns.TypeA, noData},
		{"below a name server", "x.ns1." + testZone + ".", dns.TypeA, nxDomain},
	}
	m := newMemory()
	m.put(zoneValues(t, testZone, testApex(), testRecords(t)))
	d := newHandler(t, m, testZone)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, tcp := range []bool{false, true} {
				q := query(tt.qname, tt.qtype, edns(1232, false), func(m *dns.Msg) { m.CheckingDisabled, m.AuthenticatedData, m.RecursionDesired = true, true, true })
				got, _ := ask(t, d, q, tcp)
				if got == nil {
					t.Fatal("no reply")
				}
				if diff := cmp.Diff(tt.want, short(got)); diff != "" {
					t.Errorf("tcp %v (-want +got):\n%s", tcp, diff)
				}
				if !got.Authoritative || got.RecursionAvailable || got.AuthenticatedData || got.CheckingDisabled || got.Truncated || got.Zero || !got.Response || !got.RecursionDesired {
					t.Errorf("tcp %v: flags of %v", tcp, got.MsgHdr)
				}
				if len(got.Question) != 1 || got.Question[0] != q.Question[0] || got.Id != q.Id {
					t.Errorf("tcp %v: question %v, id %d; want %v, %d", tcp, got.Question, got.Id, q.Question, q.Id)
				}
			}
		})
	}
}

// Questions that get an error whatever the zone holds.
func TestRefusals(t *testing.T) {
	const golden = goldenName + "." + testZone + "."
	opcode := func(op int) func(*dns.Msg) { return func(m *dns.Msg) { m.Opcode = op } }
	class := func(c uint16) func(*dns.Msg) { return func(m *dns.Msg) { m.Question[0].Qclass = c } }
	tests := []struct {
		name  string
		q     *dns.Msg
		rcode int
		ede   uint16
	}{
		{"out of zone", query("example.org.", dns.TypeTXT, edns(1232, false)), dns.RcodeRefused, dns.ExtendedErrorCodeNotAuthoritative},
		{"parent", query("example.net.", dns.TypeSOA, edns(1232, false)), dns.RcodeRefused, dns.ExtendedErrorCodeNotAuthoritative},
		{"root", query(".", dns.TypeNS, edns(1232, false)), dns.RcodeRefused, dns.ExtendedErrorCodeNotAuthoritative},
		{"name that ends like the zone", query("x"+testZone+".", dns.TypeTXT, edns(1232, false)), dns.RcodeRefused, dns.ExtendedErrorCodeNotAuthoritative},
		{"label with a dot that ends like the zone", query(`x\.keys.example.net.`, dns.TypeTXT, edns(1232, false)), dns.RcodeRefused, dns.ExtendedErrorCodeNotAuthoritative},
		{"out of zone, without EDNS", query("example.org.", dns.TypeTXT), dns.RcodeRefused, noEDE},
		{"AXFR", query(testZone+".", dns.TypeAXFR, edns(1232, false)), dns.RcodeRefused, dns.ExtendedErrorCodeProhibited},
		{"IXFR", query(testZone+".", dns.TypeIXFR, edns(1232, false)), dns.RcodeRefused, dns.ExtendedErrorCodeProhibited},
		{"NOTIFY", query(testZone+".", dns.TypeSOA, opcode(dns.OpcodeNotify)), dns.RcodeRefused, noEDE},
		{"UPDATE", query(testZone+".", dns.TypeSOA, opcode(dns.OpcodeUpdate), edns(1232, false)), dns.RcodeNotImplemented, dns.ExtendedErrorCodeNotSupported},
		{"STATUS", query(testZone+".", dns.TypeSOA, opcode(dns.OpcodeStatus)), dns.RcodeNotImplemented, noEDE},
		{"class CH", query(golden, dns.TypeTXT, class(dns.ClassCHAOS)), dns.RcodeRefused, noEDE},
		{"class ANY", query(golden, dns.TypeTXT, class(dns.ClassANY)), dns.RcodeRefused, noEDE},
		{"class NONE", query(golden, dns.TypeTXT, class(dns.ClassNONE)), dns.RcodeRefused, noEDE},
		{"type MAILA", query(golden, dns.TypeMAILA, edns(1232, false)), dns.RcodeNotImplemented, dns.ExtendedErrorCodeNotSupported},
		{"type MAILB", query(golden, dns.TypeMAILB), dns.RcodeNotImplemented, noEDE},
		{"type OPT", query(golden, dns.TypeOPT, edns(1232, false)), dns.RcodeFormatError, noEDE},
		{"type TSIG", query(golden, dns.TypeTSIG), dns.RcodeFormatError, noEDE},
		{"type TKEY", query(golden, dns.TypeTKEY), dns.RcodeFormatError, noEDE},
		{"type NXNAME", query(golden, dns.TypeNXNAME, edns(1232, false)), dns.RcodeFormatError, dns.ExtendedErrorCodeInvalidQueryType},
		{"two OPT", query(golden, dns.TypeTXT, edns(1232, false), func(m *dns.Msg) { m.Extra = append(m.Extra, m.Extra[0]) }), dns.RcodeFormatError, noEDE},
		{"OPT with a name", query(golden, dns.TypeTXT, edns(1232, false), func(m *dns.Msg) { m.Extra[0].Header().Name = "x." }), dns.RcodeFormatError, noEDE},
	}
	m := newMemory()
	m.put(zoneValues(t, testZone, testApex(), testRecords(t)))
	d := newHandler(t, m, testZone)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, _ := ask(t, d, tt.q, false)
			if got == nil {
				t.Fatal("no reply")
			}
			if got.Rcode != tt.rcode || got.Authoritative || len(got.Answer)+len(got.Ns) != 0 {
				t.Errorf("reply %v; want %s, not authoritative and empty", got, dns.RcodeToString[tt.rcode])
			}
			checkEDE(t, tt.q, got, tt.ede)
		})
	}
	if rcode, err := d.ServeDNS(t.Context(), &client{}, new(dns.Msg)); rcode != dns.RcodeFormatError || err != nil {
		t.Errorf("without a question: %d, %v", rcode, err)
	}
}

func checkEDE(t *testing.T, q, reply *dns.Msg, want uint16) {
	t.Helper()
	opt := reply.IsEdns0()
	if (opt != nil) != (q.IsEdns0() != nil) {
		t.Fatalf("OPT in reply: %v, in query: %v", opt != nil, q.IsEdns0() != nil)
	}
	var got []string
	if opt != nil {
		for _, o := range opt.Option {
			got = append(got, o.String())
		}
	}
	switch {
	case want == noEDE && len(got) != 0:
		t.Errorf("options %q, want none", got)
	case want != noEDE && (len(got) != 1 || ede(opt) != want):
		t.Errorf("options %q, want EDE %d", got, want)
	}
}

func TestNotLoaded(t *testing.T) {
	m := newMemory()
	d := newHandler(t, m, testZone)
	d.zones[0].fall = fall.Root
	d.Next = test.NextHandler(dns.RcodeSuccess, nil)
	if d.Ready() {
		t.Error("ready without a zone")
	}
	for _, name := range []string{testZone + ".", goldenName + "." + testZone + ".", "x." + testZone + "."} {
		q := query(name, dns.TypeTXT, edns(1232, false))
		got, _ := ask(t, d, q, false)
		if got == nil || got.Rcode != dns.RcodeServerFailure || got.Authoritative {
			t.Fatalf("%s: reply %v, want SERVFAIL", name, got)
		}
		checkEDE(t, q, got, dns.ExtendedErrorCodeNotReady)
		if got, _ := ask(t, d, query(name, dns.TypeTXT), false); got.Rcode != dns.RcodeServerFailure || got.IsEdns0() != nil {
			t.Errorf("%s without EDNS: reply %v, want SERVFAIL", name, got)
		}
	}

	rev := m.put(zoneValues(t, testZone, testApex(), testRecords(t)))
	if err := d.zones[0].replica.Load().WaitRevision(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
	if !d.Ready() {
		t.Error("not ready with the zone loaded")
	}
	if got, _ := ask(t, d, query(goldenName+"."+testZone+".", dns.TypeTXT), false); got.Rcode != dns.RcodeSuccess {
		t.Errorf("reply %v, want NOERROR", got)
	}
	if err := d.release(); err != nil {
		t.Fatal(err)
	}
	if got, _ := ask(t, d, query(goldenName+"."+testZone+".", dns.TypeTXT), false); got.Rcode != dns.RcodeServerFailure {
		t.Errorf("after release: reply %v, want SERVFAIL", got)
	}
}

func TestFallthrough(t *testing.T) {
	m := newMemory()
	m.put(zoneValues(t, testZone, testApex(), testRecords(t)))
	d := newHandler(t, m, testZone)
	d.Next = test.NextHandler(dns.RcodeServerFailure, nil) // leaves the reply to the server
	tests := []struct {
		name, qname string
		fall        fall.F
		through     bool
	}{
		{"off", "www." + testZone + ".", fall.Zero, false},
		{"on, no such name", "www." + testZone + ".", fall.Root, true},
		{"on, no such name in mixed case", "WWW.KEYS.example.net.", fall.F{Zones: []string{testZone + "."}}, true},
		{"on, another zone", "www." + testZone + ".", fall.F{Zones: []string{"example.org."}}, false},
		{"on, name without data", "_domainkey." + testZone + ".", fall.Root, false},
		{"out of zone", "example.org.", fall.Zero, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d.zones[0].fall = tt.fall
			if got, _ := ask(t, d, query(tt.qname, dns.TypeTXT), false); (got == nil) != tt.through {
				t.Errorf("reply %v, want the next plugin asked: %v", got, tt.through)
			}
		})
	}
}

func TestZonesInZones(t *testing.T) {
	m := newMemory()
	m.put(zoneValues(t, testZone, testApex(), nil))
	m.put(zoneValues(t, "sub."+testZone, testApex(), testRecords(t)))
	d := newHandler(t, m, "sub."+testZone, testZone)
	for zone, want := range map[string]int{testZone: dns.RcodeNameError, "sub." + testZone: dns.RcodeSuccess} {
		if got, _ := ask(t, d, query(goldenName+"."+zone+".", dns.TypeTXT), false); got.Rcode != want {
			t.Errorf("%s: %s, want %s", zone, dns.RcodeToString[got.Rcode], dns.RcodeToString[want])
		}
	}
	if diff := cmp.Diff([]string{"sub." + testZone + ".", testZone + "."}, d.CacheBypassZones()); diff != "" {
		t.Errorf("CacheBypassZones (-want +got):\n%s", diff)
	}
}

func TestSizes(t *testing.T) {
	m := newMemory()
	apex := testApex(func(a *schema.Apex) {
		for i := range 40 {
			a.NameServers = append(a.NameServers, schema.NameServer{Name: fmt.Sprintf("name-server-%02d.example.org", i)})
		}
	})
	m.put(zoneValues(t, testZone, apex, testRecords(t)))
	d := newHandler(t, m, testZone)
	rsa4096 := "rsa4096-spamtrap-dk._domainkey." + testZone + "."
	long := strings.Repeat("l", 63) + "._domainkey." + testZone + "."
	tests := []struct {
		name      string
		q         *dns.Msg
		tcp       bool
		truncated bool
		limit     int
		opt       uint16 // size in the reply, 0: no OPT
	}{
		{"RSA-2048, no EDNS", query(goldenName+"."+testZone+".", dns.TypeTXT), false, false, 512, 0},
		{"RSA-2048, no EDNS, long name", query(long, dns.TypeTXT), false, true, 512, 0},
		{"RSA-2048, EDNS", query(goldenName+"."+testZone+".", dns.TypeTXT, edns(4096, false)), false, false, 1232, 1232},
		{"RSA-2048, small EDNS", query(long, dns.TypeTXT, edns(100, false)), false, true, 512, 1232},
		{"RSA-4096, no EDNS", query(rsa4096, dns.TypeTXT), false, true, 512, 0},
		{"RSA-4096, EDNS 512", query(rsa4096, dns.TypeTXT, edns(512, true)), false, true, 512, 512},
		{"RSA-4096, EDNS 1232", query(rsa4096, dns.TypeTXT, edns(1232, true)), false, false, 1232, 1232},
		{"RSA-4096, TCP", query(rsa4096, dns.TypeTXT), true, false, dns.MaxMsgSize, 0},
		{"RSA-4096, TCP, EDNS 512", query(rsa4096, dns.TypeTXT, edns(512, false)), true, false, dns.MaxMsgSize, 1232},
		{"many name servers, EDNS 65535", query(testZone+".", dns.TypeNS, edns(65535, false)), false, true, 1232, 1232},
		{"many name servers, TCP", query(testZone+".", dns.TypeNS, edns(1232, false)), true, false, dns.MaxMsgSize, 1232},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, size := ask(t, d, tt.q, tt.tcp)
			if got.Truncated != tt.truncated || size > tt.limit {
				t.Errorf("truncated %v, %d octets; want %v, at most %d", got.Truncated, size, tt.truncated, tt.limit)
			}
			opt := got.IsEdns0()
			switch {
			case (opt != nil) != (tt.opt != 0):
				t.Errorf("OPT %v", opt)
			case opt != nil && (opt.UDPSize() != tt.opt || opt.Do() != tt.q.IsEdns0().Do()):
				t.Errorf("OPT %v, want size %d", opt, tt.opt)
			}
		})
	}
}

// Flags and options of the query's OPT that we do not know do not come back
// (RFC 6891 §6.1.2, §6.1.4).
func TestEDNSNotEchoed(t *testing.T) {
	m := newMemory()
	m.put(zoneValues(t, testZone, testApex(), testRecords(t)))
	d := newHandler(t, m, testZone)
	for _, name := range []string{goldenName + "." + testZone + ".", "x." + testZone + ".", "example.org."} {
		for bit := range 16 {
			q := query(name, dns.TypeTXT, edns(1232, false))
			opt := q.IsEdns0()
			opt.Hdr.Ttl = 1 << bit
			opt.Option = []dns.EDNS0{
				&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0123456789abcdef"},
				&dns.EDNS0_NSID{Code: dns.EDNS0NSID},
				&dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: net.IPv4(192, 0, 2, 0)},
				&dns.EDNS0_EXPIRE{Code: dns.EDNS0EXPIRE},
				&dns.EDNS0_LOCAL{Code: 65001, Data: []byte{1}},
			}
			got, _ := ask(t, d, q, false)
			reply := got.IsEdns0()
			want := uint32(0)
			if bit == 15 {
				want = 1 << 15 // DO
			}
			if reply == nil || reply.Hdr.Ttl != want {
				t.Fatalf("%s, flag bit %d: OPT %v", name, bit, reply)
			}
			for _, o := range reply.Option {
				if o.Option() != dns.EDNS0EDE {
					t.Errorf("%s: option %d came back", name, o.Option())
				}
			}
		}
	}
}

// ede is the extended error of a reply, or noEDE.
func ede(opt *dns.OPT) uint16 {
	for _, o := range opt.Option {
		if e, ok := o.(*dns.EDNS0_EDE); ok {
			return e.InfoCode
		}
	}
	return noEDE
}

// text is the character-strings of the only record of a reply.
func text(t *testing.T, reply *dns.Msg) []string {
	t.Helper()
	if len(reply.Answer) == 1 {
		if txt, ok := reply.Answer[0].(*dns.TXT); ok {
			return txt.Txt
		}
	}
	t.Fatalf("reply %v, want one TXT record", reply)
	return nil
}

// A change of the zone shows in the next answer, with its serial.
func TestSerialMoves(t *testing.T) {
	m := newMemory()
	m.put(zoneValues(t, testZone, testApex(), testRecords(t)))
	d := newHandler(t, m, testZone)
	rec := schema.PublicRecord{PublicKey: bytes.Repeat([]byte{1}, 32), KeyType: dkimrecord.Ed25519, TTL: 5}
	rev := m.put(zoneValues(t, testZone, testApex(), map[string]schema.PublicRecord{goldenName: rec}))
	if err := d.zones[0].replica.Load().WaitRevision(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
	got, _ := ask(t, d, query(goldenName+"."+testZone+".", dns.TypeTXT), false)
	if joined := strings.Join(text(t, got), ""); joined != rec.Record().String() {
		t.Errorf("text = %q, want %q", joined, rec.Record())
	}
	got, _ = ask(t, d, query(testZone+".", dns.TypeSOA), false)
	if soa, ok := got.Answer[0].(*dns.SOA); !ok || soa.Serial != schema.Serial(rev) {
		t.Errorf("SOA = %v, want serial %d", got.Answer[0], schema.Serial(rev))
	}
}

// Replies share nothing that a plugin before us might change.
func TestRepliesAreSeparate(t *testing.T) {
	m := newMemory()
	m.put(zoneValues(t, testZone, testApex(), testRecords(t)))
	d := newHandler(t, m, testZone)
	spoil := plugin.HandlerFunc(func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
		return d.ServeDNS(ctx, spoiler{w}, r)
	})
	for _, q := range []*dns.Msg{
		query(goldenName+"."+testZone+".", dns.TypeTXT), query(testZone+".", dns.TypeSOA), query(testZone+".", dns.TypeNS),
		query("ns1."+testZone+".", dns.TypeA), query("ns1."+testZone+".", dns.TypeAAAA), query("x."+testZone+".", dns.TypeTXT),
	} {
		want, _ := ask(t, d, q, false)
		ask(t, spoil, q, false)
		got, _ := ask(t, d, q, false)
		if diff := cmp.Diff(short(want), short(got)); diff != "" {
			t.Errorf("after another reply was changed (-before +after):\n%s", diff)
		}
	}
}

type spoiler struct{ dns.ResponseWriter }

func (s spoiler) WriteMsg(m *dns.Msg) error {
	for _, rr := range slices.Concat(m.Answer, m.Ns, m.Extra) {
		rr.Header().Ttl = 1
		switch rr := rr.(type) {
		case *dns.SOA:
			rr.Serial = 1
		case *dns.NS:
			rr.Ns = "spoiled."
		case *dns.TXT:
			rr.Txt[0] = "spoiled"
		}
	}
	return s.ResponseWriter.WriteMsg(m)
}
