package dkim

import (
	"bytes"
	"context"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"

	"github.com/miekg/dns"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// wire takes packets the way CoreDNS' listener does, up to the packed reply.
type wire struct {
	server *dnsserver.Server
}

func newWire(t testing.TB, h plugin.Handler) *wire {
	t.Helper()
	// With Debug a panic is not recovered from.
	cfg := &dnsserver.Config{Zone: ".", Port: "53", Transport: "dns", ListenHosts: []string{""}, Debug: true}
	cfg.AddPlugin(func(plugin.Handler) plugin.Handler { return h })
	s, err := dnsserver.NewServer("dns://:53", []*dnsserver.Config{cfg})
	if err != nil {
		t.Fatal(err)
	}
	return &wire{s}
}

// query unpacks a packet that gets as far as the plugins, or returns nil.
func (*wire) query(packet []byte) *dns.Msg {
	if len(packet) < 12 {
		return nil
	}
	n := func(at int) uint16 { return binary.BigEndian.Uint16(packet[at:]) }
	h := dns.Header{Id: n(0), Bits: n(2), Qdcount: n(4), Ancount: n(6), Nscount: n(8), Arcount: n(10)}
	if dns.DefaultMsgAcceptFunc(h) != dns.MsgAccept {
		return nil
	}
	m := new(dns.Msg)
	if m.Unpack(packet) != nil {
		return nil
	}
	return m
}

func (w *wire) ask(t *testing.T, r *dns.Msg, tcp bool) []byte {
	t.Helper()
	c := &strict{client: client{tcp: tcp}, t: t}
	w.server.ServeDNS(context.Background(), c, r)
	return c.wire
}

// strict fails the test for a reply that cannot be sent.
type strict struct {
	client
	t *testing.T
}

func (s *strict) WriteMsg(m *dns.Msg) error {
	err := s.client.WriteMsg(m)
	if err != nil {
		s.t.Errorf("reply: %v\n%v", err, m)
	}
	return err
}

// FuzzWire sends any octets through the server and the plugin.
func FuzzWire(f *testing.F) {
	m := newMemory()
	m.put(zoneValues(f, testZone, testApex(), testRecords(f)))
	w := newWire(f, newHandler(f, m, testZone))
	golden := goldenName + "." + testZone + "."
	for _, q := range []*dns.Msg{
		query(golden, dns.TypeTXT), query(golden, dns.TypeTXT, edns(1232, true)), query("rsa4096-spamtrap-dk._domainkey."+testZone+".", dns.TypeTXT, edns(512, false)),
		query("_domainkey."+testZone+".", dns.TypeANY), query(testZone+".", dns.TypeSOA), query(testZone+".", dns.TypeNS, edns(0, false)),
		query("ns2.site."+testZone+".", dns.TypeA), query("example.net.", dns.TypeDS), query(testZone+".", dns.TypeIXFR),
		query(golden, dns.TypeTXT, func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }),
		query(golden, dns.TypeTXT, func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }),
		query(golden, dns.TypeTXT, edns(4096, false), func(m *dns.Msg) { m.IsEdns0().SetVersion(1) }),
		query(golden, dns.TypeTXT, edns(4096, false), func(m *dns.Msg) { m.Extra = append(m.Extra, m.Extra[0]) }),
		query(`x\.y\000.`+testZone+".", dns.TypeTXT),
	} {
		packet, err := q.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packet, false)
		f.Add(packet, true)
	}
	f.Fuzz(func(t *testing.T, packet []byte, tcp bool) {
		r := w.query(packet)
		if r == nil {
			return
		}
		asked := r.Copy() // the server changes r
		reply := w.ask(t, r, tcp)
		if reply == nil {
			t.Fatalf("no reply to %v", asked)
		}
		got := new(dns.Msg)
		if err := got.Unpack(reply); err != nil {
			t.Fatalf("reply %x: %v", reply, err)
		}
		checkReply(t, asked, got, len(reply), tcp)
	})
}

// checkReply checks what is true of every reply.
func checkReply(t *testing.T, asked, got *dns.Msg, size int, tcp bool) {
	t.Helper()
	if got.Id != asked.Id || !got.Response || got.Opcode != asked.Opcode {
		t.Errorf("reply %v to %v", got.MsgHdr, asked.MsgHdr)
	}
	if got.RecursionAvailable || got.AuthenticatedData || got.Zero {
		t.Errorf("flags of %v", got.MsgHdr)
	}
	if len(asked.Question) == 0 { // a header that promised one
		if got.Rcode != dns.RcodeServerFailure || len(got.Answer)+len(got.Ns) > 0 {
			t.Errorf("reply to no question: %v", got)
		}
		return
	}
	q := asked.Question[0]
	if len(got.Question) != 1 || got.Question[0] != q {
		t.Errorf("question %v, asked %v", got.Question, q)
	}
	lower := strings.ToLower(q.Name)
	inZone := lower == testZone+"." || strings.HasSuffix(lower, "."+testZone+".") &&
		!escaped([]byte(strings.TrimSuffix(lower, "."+testZone+".")))
	answered := got.Rcode == dns.RcodeSuccess || got.Rcode == dns.RcodeNameError
	if got.Authoritative != answered || answered && (!inZone || q.Qclass != dns.ClassINET || asked.Opcode != dns.OpcodeQuery) {
		t.Errorf("reply %v to %v", got, asked)
	}
	if !answered && len(got.Answer)+len(got.Ns) > 0 {
		t.Errorf("an error with records: %v", got)
	}
	opt := asked.IsEdns0()
	limit := dns.MinMsgSize
	if opt != nil {
		limit = max(limit, min(int(opt.UDPSize()), maxUDP))
	}
	if !tcp && size > limit || tcp && got.Truncated {
		t.Errorf("%d octets of %d, over TCP %v: %v", size, limit, tcp, got)
	}
	if reply := got.IsEdns0(); (reply == nil) != (opt == nil) || reply != nil && reply.Version() != 0 {
		t.Errorf("OPT %v in reply to %v", reply, opt)
	}
	for _, rr := range got.Answer {
		if rr.Header().Name != q.Name {
			t.Errorf("answer %v to %v", rr, q)
		}
	}
}

// FuzzCorefile reads any text as the block of a dkim directive.
func FuzzCorefile(f *testing.F) {
	f.Add("keys.example.net {\n endpoint http://127.0.0.1:2379\n}")
	f.Add("keys.example.net keys.example.org. {\n endpoint https://a:1 https://b:2\n tls x y z\n data_dir /d\n reconcile 5m\n max_deletion 7%\n fallthrough\n}")
	f.Add("{\n endpoint {$E}\n max_deletion 100\n fallthrough a b\n}\ndkim B. {\n endpoint x\n}")
	f.Add("10.0.0.0/8 {\n reconcile 1s\n}")
	f.Add("\"a b\" {\n endpoint `x`\n")
	f.Fuzz(func(t *testing.T, text string) {
		c := caddy.NewTestController("dns", "dkim "+text)
		c.ServerBlockKeys = []string{"dns://example.org.:1053"}
		blocks, err := parse(c)
		if err != nil {
			if blocks != nil {
				t.Errorf("%d blocks with error %v", len(blocks), err)
			}
			return
		}
		var zones []string
		for _, b := range blocks {
			if len(b.config.Etcd.Endpoints) == 0 || len(b.zones) == 0 {
				t.Errorf("block %+v was accepted", b)
			}
			if b.config.MaxDeletion < 0 || b.config.MaxDeletion > 1 || b.config.ReconcileInterval < 0 {
				t.Errorf("block %+v was accepted", b)
			}
			zones = append(zones, b.zones...)
		}
		for i, z := range zones {
			if got, err := dnsname.ParseZone(z); err != nil || string(got) != z || slices.Contains(zones[:i], z) {
				t.Errorf("zone %q of %q: %v", z, zones, err)
			}
		}
	})
}

// A cut reply is cut to what the client takes, also where some of its records
// would fit, and also if a plugin before us adds to it.
func TestCutReplies(t *testing.T) {
	m := newMemory()
	m.put(zoneValues(t, testZone, testApex(func(a *schema.Apex) {
		a.NameServers = nil
		for i := range 13 {
			a.NameServers = append(a.NameServers, schema.NameServer{
				Name:      strings.Repeat(string(rune('a'+i)), 40) + "." + testZone,
				Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
			})
		}
	}), testRecords(t)))
	d := newHandler(t, m, testZone)
	signing := plugin.HandlerFunc(func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
		if r.IsEdns0().Do() {
			w = signer{w}
		}
		return d.ServeDNS(ctx, w, r)
	})
	cut := 0
	for size := uint16(0); size < 1400; size += 7 {
		for _, do := range []bool{false, true} {
			for _, q := range []*dns.Msg{
				query(testZone+".", dns.TypeNS, edns(size, do)), query(goldenName+"."+testZone+".", dns.TypeTXT, edns(size, do)),
				query("x."+testZone+".", dns.TypeTXT, edns(size, do)),
			} {
				got, n := ask(t, signing, q, false)
				if limit := max(dns.MinMsgSize, min(int(size), maxUDP)); n > limit {
					t.Errorf("%v, DO %v: %d octets, want at most %d", q.Question[0], do, n, limit)
				}
				if got.Truncated {
					cut++
					if opt := got.IsEdns0(); !do && (len(got.Answer)+len(got.Ns) > 0 || opt == nil || opt.UDPSize() != maxUDP) {
						t.Errorf("cut reply %v, want the question and our OPT record alone", got)
					}
				}
			}
		}
	}
	if cut == 0 {
		t.Error("no reply was cut")
	}
}

// signer adds to a reply as the dnssec plugin does.
type signer struct{ dns.ResponseWriter }

func (s signer) WriteMsg(m *dns.Msg) error {
	sig := &dns.TXT{Hdr: header("signature."+testZone+".", dns.TypeTXT, 1), Txt: []string{string(bytes.Repeat([]byte{'s'}, 200))}}
	if len(m.Answer) > 0 {
		m.Answer = append(m.Answer, sig)
	} else {
		m.Ns = append(m.Ns, sig)
	}
	return s.ResponseWriter.WriteMsg(m)
}
