package prober

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// kind is what a reply tells about the name that was asked for.
type kind uint8

const (
	failed   kind = iota // nothing: no reply, SERVFAIL, …
	skipped              // nothing, since this host has no route to the server
	lame                 // the server does not speak for the zone
	referral             // ask others
	denied               // no such name
	absent               // the name has nothing of that type
	present              // here it is
)

// settled reports whether k is a server's word on the name.
func (k kind) settled() bool { return k >= denied }

// reply is what one server said, reduced to what it may speak of.
type reply struct {
	kind  kind
	rcode string
	err   string // for failed, skipped and lame: why

	cnames []string // canonical
	txts   []string // joined strings
	addrs  []netip.Addr
	ttl    time.Duration // the least of the records above

	// apex is the owner of the SOA record that came with a denial: the zone that
	// holds, or does not hold, the name. negativeTTL is how long a denial is kept
	// (RFC 2308 §5), in seconds.
	apex        string
	negativeTTL uint32

	next delegation // for referral
}

// server is a name server of a zone.
type server struct {
	host  string // canonical; "" when only addresses are known
	addrs []netip.AddrPort
}

// delegation is a zone and its servers.
type delegation struct {
	zone    string // canonical
	servers []server
	ttl     time.Duration
}

// readReply reads m as the reply of a server of zone to q. Names in it that are
// not q's, or not within zone, are taken for nothing. Both names are canonical.
func readReply(m *dns.Msg, zone string, name string, qtype uint16) reply {
	r := reply{rcode: rcodeName(m.Rcode)}
	switch m.Rcode {
	case dns.RcodeSuccess, dns.RcodeNameError:
	case dns.RcodeRefused, dns.RcodeNotAuth:
		r.kind, r.err = lame, "refuses to speak for "+plain(zone)
		return r
	default:
		r.kind, r.err = failed, "answers "+r.rcode
		return r
	}
	r.readAnswer(m.Answer, name, qtype)
	if len(r.cnames)+len(r.txts)+len(r.addrs) > 0 {
		r.kind = present
		if !m.Authoritative {
			r.kind, r.err = lame, "is not authoritative for "+plain(zone)
		}
		return r
	}
	hasSOA := r.readDenial(m.Ns, zone, name)
	if next, ok := readReferral(m, zone, name); ok && !hasSOA && m.Rcode == dns.RcodeSuccess {
		r.kind, r.next = referral, next
		return r
	}
	switch {
	case !m.Authoritative:
		r.kind, r.err = lame, "is not authoritative for "+plain(zone)
	case m.Rcode == dns.RcodeNameError:
		r.kind = denied
	default:
		r.kind = absent
	}
	return r
}

// readAnswer collects the records of name itself. What a CNAME leads to is
// asked elsewhere.
func (r *reply) readAnswer(answer []dns.RR, name string, qtype uint16) {
	ttl := uint32(maxKeepFor / time.Second)
	for _, rr := range answer {
		h := rr.Header()
		if h.Class != dns.ClassINET || canonical(h.Name) != name {
			continue
		}
		switch rr := rr.(type) {
		case *dns.CNAME:
			r.cnames = append(r.cnames, canonical(rr.Target))
		case *dns.TXT:
			if qtype != dns.TypeTXT {
				continue
			}
			r.txts = append(r.txts, unescape(rr.Txt))
		case *dns.A:
			if a, ok := netip.AddrFromSlice(rr.A.To4()); ok && qtype == dns.TypeA {
				r.addrs = append(r.addrs, a)
			}
		case *dns.AAAA:
			if a, ok := netip.AddrFromSlice(rr.AAAA.To16()); ok && qtype == dns.TypeAAAA {
				r.addrs = append(r.addrs, a.Unmap())
			}
		default:
			continue
		}
		ttl = min(ttl, h.Ttl)
	}
	r.ttl = time.Duration(ttl) * time.Second
	slices.Sort(r.cnames)
	r.cnames = slices.Compact(r.cnames)
	slices.Sort(r.txts)
}

// readDenial takes the SOA record that limits a denial.
func (r *reply) readDenial(authority []dns.RR, zone, name string) bool {
	for _, rr := range authority {
		soa, ok := rr.(*dns.SOA)
		if !ok {
			continue
		}
		apex := canonical(soa.Hdr.Name)
		if below(zone, apex) && below(apex, name) {
			r.apex, r.negativeTTL = apex, min(soa.Hdr.Ttl, soa.Minttl)
			return true
		}
	}
	return false
}

// readReferral takes a delegation below zone on the way to name, and the glue
// that zone's servers may give: addresses of hosts within the zone.
func readReferral(m *dns.Msg, zone, name string) (delegation, bool) {
	d := delegation{}
	ttl := uint32(maxKeepFor / time.Second)
	for _, rr := range m.Ns {
		ns, ok := rr.(*dns.NS)
		if !ok || ns.Hdr.Class != dns.ClassINET {
			continue
		}
		cut := canonical(ns.Hdr.Name)
		if cut == zone || !below(zone, cut) || !below(cut, name) || (d.zone != "" && cut != d.zone) {
			continue
		}
		d.zone = cut
		ttl = min(ttl, ns.Hdr.Ttl)
		host := canonical(ns.Ns)
		if len(d.servers) < maxHosts && !slices.ContainsFunc(d.servers, func(s server) bool { return s.host == host }) {
			d.servers = append(d.servers, server{host: host})
		}
	}
	if d.zone == "" {
		return d, false
	}
	for _, rr := range m.Extra {
		host := canonical(rr.Header().Name)
		i := slices.IndexFunc(d.servers, func(s server) bool { return s.host == host })
		if i < 0 || rr.Header().Class != dns.ClassINET || !below(zone, host) {
			continue
		}
		var a netip.Addr
		switch rr := rr.(type) {
		case *dns.A:
			a, _ = netip.AddrFromSlice(rr.A.To4())
		case *dns.AAAA:
			a, _ = netip.AddrFromSlice(rr.AAAA.To16())
		}
		addr := netip.AddrPortFrom(a.Unmap(), 53)
		if a.IsValid() && len(d.servers[i].addrs) < maxServers && !slices.Contains(d.servers[i].addrs, addr) {
			d.servers[i].addrs = append(d.servers[i].addrs, addr)
		}
	}
	d.ttl = time.Duration(ttl) * time.Second
	return d, true
}

// got is what r holds, for people.
func (r reply) got() string {
	var parts []string
	for _, c := range r.cnames {
		parts = append(parts, "CNAME "+c)
	}
	for _, t := range r.txts {
		parts = append(parts, "TXT "+quoted(t))
	}
	for _, a := range r.addrs {
		parts = append(parts, addressType(a)+" "+a.String())
	}
	switch {
	case len(parts) > maxGot:
		parts = append(parts[:maxGot], "…")
	case len(parts) > 0:
	case r.kind == denied:
		return "no such name"
	case r.kind == absent:
		return "no such record"
	case r.kind == referral:
		return "referral to the servers of " + plain(r.next.zone)
	}
	return strings.Join(parts, ", ")
}

const (
	maxGot  = 8    // records shown of one reply
	maxText = 1024 // octets shown of a TXT record
)

// quoted is text in quotes, with what is not printable ASCII as \DDD.
func quoted(text string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i := range min(len(text), maxText) {
		switch c := text[i]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < ' ' || c > '~':
			fmt.Fprintf(&b, "\\%03d", c)
		default:
			b.WriteByte(c)
		}
	}
	if len(text) > maxText {
		b.WriteString("…")
	}
	b.WriteByte('"')
	return b.String()
}

// unescape joins the strings of a TXT record as octets; the library keeps them
// in the form of master files.
func unescape(txt []string) string {
	var b strings.Builder
	for _, s := range txt {
		for i := 0; i < len(s); i++ {
			switch {
			case s[i] != '\\' || i+1 == len(s):
				b.WriteByte(s[i])
			case i+3 < len(s) && isDigit(s[i+1]) && isDigit(s[i+2]) && isDigit(s[i+3]):
				b.WriteByte((s[i+1]-'0')*100 + (s[i+2]-'0')*10 + s[i+3] - '0')
				i += 3
			default:
				i++
				b.WriteByte(s[i])
			}
		}
	}
	return b.String()
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func addressType(a netip.Addr) string {
	if a.Is4() {
		return "A"
	}
	return "AAAA"
}

func rcodeName(rcode int) string {
	if name, ok := dns.RcodeToString[rcode]; ok {
		return name
	}
	return fmt.Sprintf("RCODE%d", rcode)
}

// extendedError is the first extended DNS error of m (RFC 8914), "" for none.
func extendedError(m *dns.Msg) string {
	opt := m.IsEdns0()
	if opt == nil {
		return ""
	}
	for _, o := range opt.Option {
		if ede, ok := o.(*dns.EDNS0_EDE); ok {
			if name, ok := dns.ExtendedErrorCodeToString[ede.InfoCode]; ok {
				return name
			}
			return fmt.Sprintf("extended error %d", ede.InfoCode)
		}
	}
	return ""
}
