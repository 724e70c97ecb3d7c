package dkim

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/fall"
	"github.com/coredns/coredns/request"

	"github.com/miekg/dns"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
	"github.com/dkimzone/dkimzone/internal/replica"
	"github.com/dkimzone/dkimzone/internal/schema"
)

const (
	// maxUDP is the largest reply over UDP, whatever the client takes (RFC 9715).
	maxUDP = 1232
	// keyRoom is enough for an RSA-4096 key; the text of it in a record takes
	// textRoom.
	keyRoom  = 576
	textRoom = 1024
	// spare is room for what other plugins add to a reply, such as NSID.
	spare = 128
)

// scratch is room for one answer. It is not on the stack, which would have to
// grow for it.
type scratch struct {
	name [256]byte
	rec  schema.PublicRecord
	key  [keyRoom]byte // of rec
	text [textRoom]byte
}

var pool = sync.Pool{New: func() any { return new(scratch) }}

// DKIM answers for the zones of dkimzone.
type DKIM struct {
	Next  plugin.Handler
	zones []*zone // longest name first

	stopNotifiers func() // nil without the transfer plugin

	deaf atomic.Bool // the server starts, and does not listen yet
}

// zone is one zone with its records.
type zone struct {
	name    string // lower case, with the trailing dot
	fall    fall.F
	replica atomic.Pointer[replica.Handle] // set when the server starts
	apex    apexCache
	counts  counters
	sending atomic.Int32 // full transfers that are on their way
}

// Name implements plugin.Handler.
func (d *DKIM) Name() string { return pluginName }

// CacheBypassZones keeps the cache plugin from storing our answers, which it
// would serve after a key was revoked.
func (d *DKIM) CacheBypassZones() []string {
	names := make([]string, len(d.zones))
	for i, z := range d.zones {
		names[i] = z.name
	}
	return names
}

// passOn stands for a response code where the next plugin is to answer.
const passOn = -1

// ServeDNS implements plugin.Handler. It has a small frame and leaves nothing of
// the way to the reply on the stack: each query over UDP has a goroutine of its
// own, whose stack would have to grow, and be copied, while the reply is sent.
func (d *DKIM) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	m, rcode, err := d.reply(w, r)
	if m != nil {
		// An error here is of a client that is gone.
		_ = w.WriteMsg(m)
	} else if rcode == passOn {
		return plugin.NextOrFailure(d.Name(), d.Next, ctx, w, r)
	}
	return rcode, err
}

// reply makes the message to send, and what ServeDNS returns then. Without a
// message that is for the server to send, or passOn.
func (d *DKIM) reply(w dns.ResponseWriter, r *dns.Msg) (*dns.Msg, int, error) {
	if len(r.Question) != 1 {
		return nil, dns.RcodeFormatError, nil
	}
	s := pool.Get().(*scratch) //nolint:errcheck,forcetypeassert // nothing else is in it
	defer pool.Put(s)
	z, owner := d.match(appendLower(s.name[:0], r.Question[0].Name))
	if z == nil {
		if d.Next != nil {
			return nil, passOn, nil
		}
		return fail(w, r, dns.RcodeRefused, dns.ExtendedErrorCodeNotAuthoritative)
	}
	if rcode, code, bad := refuse(r); bad {
		z.counts.rcode(rcode)
		return fail(w, r, rcode, code)
	}

	rep := z.replica.Load()
	apex := z.apex.of(rep, z.name)
	if apex == nil {
		// Before any fallthrough: that a name is not known yet says nothing
		// about whether it exists.
		z.counts.rcode(dns.RcodeServerFailure)
		return fail(w, r, dns.RcodeServerFailure, dns.ExtendedErrorCodeNotReady)
	}
	m, res, err := z.answer(rep, apex, s, owner, d.Next != nil, r)
	if err != nil {
		return nil, dns.RcodeServerFailure, plugin.Error(pluginName, err)
	}
	z.counts.count(res)
	switch res {
	case resultFallthrough:
		return nil, passOn, nil
	case resultServFail:
		return fail(w, r, dns.RcodeServerFailure, dns.ExtendedErrorCodeNotReady)
	}
	fit(w, r, &m.Msg)
	return &m.Msg, m.Rcode, nil
}

// answer makes the answer to a well-formed question about owner, a name without
// the zone. There is none with resultServFail and with resultFallthrough, which
// is only if there is a next plugin.
func (z *zone) answer(rep *replica.Handle, apex *apex, s *scratch, owner []byte, next bool, r *dns.Msg) (*reply, result, error) {
	if len(owner) == 0 {
		m, res := z.atApex(apex, r)
		return m, res, nil
	}
	var found replica.Result
	s.rec, found = rep.Lookup(owner, s.key[:])
	switch qtype := r.Question[0].Qtype; {
	case found == replica.Unavailable:
		return nil, resultServFail, nil
	case found == replica.Found && (qtype == dns.TypeTXT || qtype == dns.TypeANY):
		m, err := newReply(r).withRecord(s)
		return m, resultSuccess, err
	}
	m, res := z.withoutRecord(apex, owner, found, next, r)
	return m, res, nil
}

// withoutRecord makes the answer where there is no TXT record to give.
func (z *zone) withoutRecord(apex *apex, owner []byte, found replica.Result, next bool, r *dns.Msg) (*reply, result) {
	q := &r.Question[0]
	if host, ok := apex.hosts[string(owner)]; ok {
		if rrs := host.addresses(q.Name, q.Qtype); len(rrs) > 0 {
			m := newReply(r)
			m.Answer = rrs
			return m, resultSuccess
		}
		found = replica.Empty
	}
	if found == replica.Absent && next && z.fall.Through(q.Name) {
		return nil, resultFallthrough
	}
	m := newReply(r)
	m.Ns = append(m.rrs[:0], apex.soaFor(&m.soa, z.name, apex.negativeTTL))
	if found != replica.Absent {
		return m, resultNoData
	}
	m.Rcode = dns.RcodeNameError
	return m, resultNXDomain
}

// atApex makes the answer to a question about the zone's own name.
func (z *zone) atApex(apex *apex, r *dns.Msg) (*reply, result) {
	q := r.Question[0]
	m := newReply(r)
	switch q.Qtype {
	case dns.TypeSOA, dns.TypeANY:
		m.Answer = append(m.rrs[:0], apex.soaFor(&m.soa, q.Name, apex.ApexTTL))
		return m, resultSuccess
	case dns.TypeNS:
		m.Answer = apex.nameServers(q.Name)
		for _, h := range apex.glue {
			m.Extra = append(m.Extra, h.addresses(h.name, dns.TypeA)...)
			m.Extra = append(m.Extra, h.addresses(h.name, dns.TypeAAAA)...)
		}
		return m, resultSuccess
	}
	if host, ok := apex.hosts[""]; ok {
		if m.Answer = host.addresses(q.Name, q.Qtype); len(m.Answer) > 0 {
			return m, resultSuccess
		}
	}
	m.Ns = append(m.rrs[:0], apex.soaFor(&m.soa, z.name, apex.negativeTTL))
	return m, resultNoData
}

// match returns the zone that name is in, and name without it. name is in lower
// case and has a trailing dot.
func (d *DKIM) match(name []byte) (*zone, []byte) {
	for _, z := range d.zones {
		n := len(name) - len(z.name)
		if n < 0 || string(name[n:]) != z.name {
			continue
		}
		if n == 0 {
			return z, nil
		}
		if name[n-1] == '.' && !escaped(name[:n-1]) {
			return z, name[:n-1]
		}
	}
	return nil, nil
}

// escaped reports whether what follows b in a name is escaped.
func escaped(b []byte) bool {
	return (len(b)-len(bytes.TrimRight(b, `\`)))%2 == 1
}

// appendLower appends name with ASCII letters in lower case (RFC 4343).
func appendLower(dst []byte, name string) []byte {
	for i := range len(name) {
		c := name[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		dst = append(dst, c)
	}
	return dst
}

// refuse reports whether the question gets an error whatever the zone holds.
func refuse(r *dns.Msg) (rcode int, ede uint16, bad bool) {
	opts := 0
	for _, rr := range r.Extra {
		if rr.Header().Rrtype == dns.TypeOPT {
			if opts++; opts > 1 || rr.Header().Name != "." {
				return dns.RcodeFormatError, noEDE, true // RFC 6891 §6.1.1
			}
		}
	}
	switch r.Opcode {
	case dns.OpcodeQuery:
	case dns.OpcodeNotify: // etcd is our primary, nobody else
		return dns.RcodeRefused, dns.ExtendedErrorCodeNotSupported, true
	default:
		return dns.RcodeNotImplemented, dns.ExtendedErrorCodeNotSupported, true
	}
	if r.Question[0].Qclass != dns.ClassINET {
		return dns.RcodeRefused, dns.ExtendedErrorCodeNotAuthoritative, true
	}
	switch r.Question[0].Qtype {
	case dns.TypeAXFR, dns.TypeIXFR:
		return dns.RcodeRefused, dns.ExtendedErrorCodeProhibited, true
	case dns.TypeMAILA, dns.TypeMAILB:
		return dns.RcodeNotImplemented, dns.ExtendedErrorCodeNotSupported, true
	case dns.TypeOPT, dns.TypeTSIG, dns.TypeTKEY:
		return dns.RcodeFormatError, noEDE, true
	case dns.TypeNXNAME: // RFC 9824 §3.4
		return dns.RcodeFormatError, dns.ExtendedErrorCodeInvalidQueryType, true
	}
	return dns.RcodeSuccess, noEDE, false
}

// reply is a message with the room for a usual answer in one piece of memory.
type reply struct {
	dns.Msg
	question [1]dns.Question
	rrs      [1]dns.RR
	extra    [1]dns.RR
	opt      dns.OPT
	txt      dns.TXT
	soa      dns.SOA
}

// newReply returns an authoritative reply to r. It does not copy CD, which only
// means something to a resolver (RFC 4035 §3.1.6).
func newReply(r *dns.Msg) *reply {
	m := new(reply)
	m.Id, m.Response, m.Opcode, m.RecursionDesired = r.Id, true, r.Opcode, r.RecursionDesired
	m.Authoritative = true
	m.question[0] = r.Question[0]
	m.Question = m.question[:]
	if r.IsEdns0() != nil {
		m.opt.Hdr.Name, m.opt.Hdr.Rrtype = ".", dns.TypeOPT
		m.extra[0] = &m.opt
		m.Extra = m.extra[:]
	}
	return m
}

// withRecord adds the TXT record of the key in s.
func (m *reply) withRecord(s *scratch) (*reply, error) {
	strings, err := dkimrecord.Split(string(s.rec.Record().AppendText(s.text[:0])))
	if err != nil {
		return nil, err
	}
	m.txt.Hdr, m.txt.Txt = header(m.question[0].Name, dns.TypeTXT, s.rec.TTL), strings
	m.rrs[0] = &m.txt
	m.Answer = m.rrs[:]
	return m, nil
}

func header(name string, rrtype uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

// fit prepares m and r for the server's writer. That cuts m to the size it finds
// in the OPT record of the request, and sends that size back: it is made ours
// where there is no danger of a reply longer than the client takes.
func fit(w dns.ResponseWriter, r *dns.Msg, m *dns.Msg) {
	o := r.IsEdns0()
	if o == nil {
		return
	}
	state := request.Request{W: w, Req: r}
	size := min(o.UDPSize(), maxUDP)
	switch limit := max(int(size), dns.MinMsgSize); {
	case state.Proto() == "tcp":
		size = maxUDP
	case o.Do(): // signatures may be added
	case m.Len()+spare <= limit:
		size = maxUDP
	default:
		if m.Truncate(limit); m.Truncated {
			// The server's writer must find nothing that it could
			// write longer than this.
			m.Answer, m.Ns, m.Extra = nil, nil, onlyOPT(m.Extra)
			size = maxUDP
		}
	}
	o.SetUDPSize(size)
}

// onlyOPT is what is left of the additional section of a reply that is cut.
func onlyOPT(extra []dns.RR) []dns.RR {
	return slices.DeleteFunc(extra, func(rr dns.RR) bool { return rr.Header().Rrtype != dns.TypeOPT })
}

const noEDE = 0xffff

// fail makes an error reply, with the reason if the client knows of reasons
// (RFC 8914).
func fail(w dns.ResponseWriter, r *dns.Msg, rcode int, ede uint16) (*dns.Msg, int, error) {
	m := newReply(r)
	m.Authoritative = false
	m.Rcode = rcode
	if ede != noEDE {
		m.opt.Option = []dns.EDNS0{&dns.EDNS0_EDE{InfoCode: ede}}
	}
	fit(w, r, &m.Msg)
	return &m.Msg, dns.RcodeSuccess, nil // an error would be written once more
}
