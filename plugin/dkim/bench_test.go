package dkim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"

	"github.com/miekg/dns"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// mapPlugin is the least a plugin can do for the same answers: the measure of
// what ours costs.
type mapPlugin struct {
	texts map[string][]string
	soa   dns.SOA
}

func (p *mapPlugin) Name() string { return "map" }

func (p *mapPlugin) ServeDNS(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	m := new(dns.Msg)
	m.SetReply(r)
	m.Authoritative = true
	name := strings.ToLower(r.Question[0].Name)
	switch text, ok := p.texts[name]; {
	case ok:
		m.Answer = []dns.RR{&dns.TXT{Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 1800}, Txt: text}}
	default:
		soa := p.soa
		m.Ns = []dns.RR{&soa}
		if !strings.HasPrefix(name, "_domainkey.") {
			m.Rcode = dns.RcodeNameError
		}
	}
	_ = w.WriteMsg(m)
	return m.Rcode, nil
}

// packer does what a socket would do up to the system call.
type packer struct {
	client
	buf []byte
}

func (p *packer) WriteMsg(m *dns.Msg) error {
	_, err := m.PackBuffer(p.buf)
	return err
}

// BenchmarkServeDNS runs a mix of queries through the server's own code: 90 %
// known names, 7 % unknown ones, 3 % the empty non-terminal.
func BenchmarkServeDNS(b *testing.B) {
	const n = 200_000
	records := make(map[string]schema.PublicRecord, n)
	texts := make(map[string][]string, n)
	names := make([]string, n)
	key := decode(b, goldenKey)
	for i := range n {
		owner := fmt.Sprintf("selector%d-customer%06d-example._domainkey", i%2+1, i/2)
		rec := schema.PublicRecord{PublicKey: append(append([]byte(nil), key[:40]...), append([]byte(fmt.Sprint(1000000+i)), key[47:]...)...), TTL: 1800}
		records[owner] = rec
		names[i] = owner + "." + testZone + "."
		text := rec.Record().String()
		texts[names[i]] = []string{text[:dkimrecord.MaxString], text[dkimrecord.MaxString:]}
	}
	m := newMemory()
	m.put(zoneValues(b, testZone, testApex(), records))
	d := newHandler(b, m, testZone)
	a := d.zones[0].apex.of(d.zones[0].replica.Load(), testZone+".")
	bare := &mapPlugin{texts: texts}
	a.soaFor(&bare.soa, testZone+".", 300)

	rng := rand.New(rand.NewPCG(1, 2))
	queries := make([][]byte, 1<<16)
	for i := range queries {
		name := names[rng.IntN(n)]
		switch p := rng.IntN(100); {
		case p < 7:
			name = "unknown-" + name
		case p < 10:
			name = "_domainkey." + testZone + "."
		}
		wire, err := query(name, dns.TypeTXT, edns(1232, false)).Pack()
		if err != nil {
			b.Fatal(err)
		}
		queries[i] = wire
	}
	for _, h := range []plugin.Handler{d, bare} {
		b.Run(h.Name(), func(b *testing.B) {
			cfg := &dnsserver.Config{Zone: testZone + ".", Port: "53", Transport: "dns", ListenHosts: []string{""}}
			cfg.AddPlugin(func(plugin.Handler) plugin.Handler { return h })
			s, err := dnsserver.NewServer("dns://:53", []*dnsserver.Config{cfg})
			if err != nil {
				b.Fatal(err)
			}
			w := &packer{buf: make([]byte, 4096)}
			ctx := context.Background()
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				r := new(dns.Msg)
				if err := r.Unpack(queries[i%len(queries)]); err != nil {
					b.Fatal(err)
				}
				s.ServeDNS(ctx, w, r)
				i++
			}
		})
	}
}
