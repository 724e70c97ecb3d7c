package dkim

import (
	"strings"
	"sync/atomic"

	"github.com/miekg/dns"

	"github.com/dkimzone/dkimzone/internal/replica"
)

// apex is the zone object in the form that answers need.
type apex struct {
	*replica.Apex
	ns          []string // with trailing dots
	mailbox     string
	negativeTTL uint32 // RFC 2308 §5
	// hosts are the in-zone names of name servers and the names above them,
	// without the zone; the latter have no addresses.
	hosts map[string]*host
	glue  []*host // of the in-zone name servers
}

// host is a name with addresses.
type host struct {
	name string // with the trailing dot
	a    []dns.A
	aaaa []dns.AAAA
}

// apexCache makes an apex once for each change of the zone.
type apexCache struct{ last atomic.Pointer[apex] }

// of returns the zone's apex, or nil as long as the zone is not loaded.
func (c *apexCache) of(rep *replica.Handle, zone string) *apex {
	if rep == nil {
		return nil
	}
	now := rep.Apex()
	if now == nil {
		return nil
	}
	if last := c.last.Load(); last != nil && last.Apex == now {
		return last
	}
	fresh := newApex(now, zone)
	c.last.Store(fresh)
	return fresh
}

func newApex(src *replica.Apex, zone string) *apex {
	a := &apex{
		Apex: src, mailbox: dns.Fqdn(src.Mailbox),
		negativeTTL: min(src.ApexTTL, src.NegativeTTL),
		hosts:       make(map[string]*host),
	}
	for _, ns := range src.NameServers {
		name := dns.Fqdn(ns.Name)
		a.ns = append(a.ns, name)
		relative, inZone := strings.CutSuffix(name, "."+zone)
		if name == zone {
			relative, inZone = "", true
		}
		if !inZone {
			continue
		}
		h := &host{name: name}
		for _, addr := range ns.Addresses {
			if addr = addr.Unmap(); addr.Is4() {
				h.a = append(h.a, dns.A{Hdr: header(name, dns.TypeA, src.ApexTTL), A: addr.AsSlice()})
			} else {
				h.aaaa = append(h.aaaa, dns.AAAA{Hdr: header(name, dns.TypeAAAA, src.ApexTTL), AAAA: addr.AsSlice()})
			}
		}
		a.hosts[relative] = h
		a.glue = append(a.glue, h)
	}
	for relative := range a.hosts {
		for {
			_, rest, found := strings.Cut(relative, ".")
			if !found {
				break
			}
			if a.hosts[rest] == nil {
				a.hosts[rest] = &host{}
			}
			relative = rest
		}
	}
	return a
}

// soaFor fills in soa and returns it. The primary is the first name server.
func (a *apex) soaFor(soa *dns.SOA, name string, ttl uint32) dns.RR {
	soa.Hdr = header(name, dns.TypeSOA, ttl)
	soa.Ns, soa.Mbox, soa.Serial = a.ns[0], a.mailbox, a.Serial
	soa.Refresh, soa.Retry, soa.Expire, soa.Minttl = a.Refresh, a.Retry, a.Expire, a.NegativeTTL
	return soa
}

func (a *apex) nameServers(name string) []dns.RR {
	rrs := make([]dns.RR, len(a.ns))
	for i, ns := range a.ns {
		rrs[i] = &dns.NS{Hdr: header(name, dns.TypeNS, a.ApexTTL), Ns: ns}
	}
	return rrs
}

// addresses returns the RRset of h that answers qtype. ANY gets one of them
// (RFC 8482 §4.1).
func (h *host) addresses(name string, qtype uint16) []dns.RR {
	var rrs []dns.RR
	if qtype == dns.TypeA || qtype == dns.TypeANY {
		for _, rr := range h.a {
			rr.Hdr.Name = name
			rrs = append(rrs, &rr)
		}
	}
	if qtype == dns.TypeAAAA || qtype == dns.TypeANY && len(rrs) == 0 {
		for _, rr := range h.aaaa {
			rr.Hdr.Name = name
			rrs = append(rrs, &rr)
		}
	}
	return rrs
}
