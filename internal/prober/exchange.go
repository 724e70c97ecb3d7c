package prober

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

const (
	ednsSize   = 1232
	maxUDP     = 4096
	maxStrange = 32 // packets that are no reply to the query
)

var (
	// errNoRoute means that this host cannot send to the address at all.
	errNoRoute = errors.New("no route")
	errTimeout = errors.New("no reply in time")
	errStrange = errors.New("too many packets that are no reply to the query")
	errReply   = errors.New("not a proper reply")
)

// patience says how much is tried to get a reply.
type patience uint8

const (
	brief    patience = iota // UDP once
	thorough                 // UDP, UDP without EDNS, TCP
	overUDP                  // UDP twice
	overTCP                  // TCP once
)

// query is what is sent to one address.
type query struct {
	name     string // canonical
	qtype    uint16
	patience patience
	own      bool // to a server of ours: no pacing
	recurse  bool
	noCheck  bool // CD: validation off
}

func (q query) network() string {
	if q.patience == overTCP {
		return "tcp"
	}
	return "udp"
}

// exchange sends q and returns the reply, which callers share and must not
// change. Queries that are the same at the same time are sent once. The errors
// wrap errNoRoute or errTimeout, or say what else went wrong.
func (p *Prober) exchange(ctx context.Context, to netip.AddrPort, q query) (*dns.Msg, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	leads := false
	ch := p.flights.DoChan(fmt.Sprint(to, q), func() (any, error) {
		leads = true
		// Others may wait for this reply when the one who asked first has gone.
		shared, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.limit)
		defer cancel()
		return p.converse(shared, to, q)
	})
	select {
	case r := <-ch:
		if !leads {
			p.coalesced.Add(1)
		}
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*dns.Msg), nil //nolint:errcheck,forcetypeassert // converse returns nothing else
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// converse sends as often and in as many ways as q's patience allows.
func (p *Prober) converse(ctx context.Context, to netip.AddrPort, q query) (*dns.Msg, error) {
	tries := []struct {
		network string
		edns    bool
	}{{"udp", true}}
	switch q.patience {
	case brief:
	case thorough:
		tries = append(tries, tries[0], tries[0])
		tries[1].edns, tries[2].edns, tries[2].network = false, false, "tcp"
	case overUDP:
		tries = append(tries, tries[0])
		tries[1].edns = false
	case overTCP:
		tries[0].network = "tcp"
	}
	var tried attemptErrors
	for _, try := range tries {
		m, err := p.attempt(ctx, to, q, try.network, try.edns)
		if err == nil && try.edns && refusesEDNS(m) {
			m, err = p.attempt(ctx, to, q, try.network, false)
			try.edns = false
		}
		if err == nil && m.Truncated && try.network == "udp" {
			m, err = p.attempt(ctx, to, q, "tcp", try.edns)
		}
		if err == nil {
			return m, nil
		}
		tried = append(tried, err)
		if ctx.Err() != nil || errors.Is(err, errNoRoute) {
			break
		}
	}
	return nil, tried
}

// attemptErrors are those of all attempts at one exchange.
type attemptErrors []error

func (e attemptErrors) Error() string {
	var texts []string
	for _, err := range e {
		if text := err.Error(); !slices.Contains(texts, text) {
			texts = append(texts, text)
		}
	}
	return strings.Join(texts, ", ")
}

func (e attemptErrors) Unwrap() []error { return e }

// refusesEDNS reports whether m is what servers say that do not know EDNS
// (RFC 6891 §7), or know it badly.
func refusesEDNS(m *dns.Msg) bool {
	return m.Rcode == dns.RcodeFormatError || m.Rcode == dns.RcodeNotImplemented || m.Rcode == dns.RcodeBadVers
}

// attempt sends one message and waits for its reply.
func (p *Prober) attempt(ctx context.Context, to netip.AddrPort, q query, network string, edns bool) (*dns.Msg, error) {
	if !q.own {
		if err := p.paces.wait(ctx, to); err != nil {
			return nil, err
		}
	}
	m := &dns.Msg{
		MsgHdr:   dns.MsgHdr{Id: uint16(rand.Uint32()), RecursionDesired: q.recurse, CheckingDisabled: q.noCheck}, //nolint:gosec // half of it is enough
		Question: []dns.Question{{Name: q.name, Qtype: q.qtype, Qclass: dns.ClassINET}},
	}
	if edns {
		m.SetEdns0(ednsSize, q.recurse) // DO brings AD and, from a resolver, the reason of a failure
	}
	packet, err := m.Pack()
	if err != nil {
		return nil, err
	}
	if p.noRoute != nil && p.noRoute(to) {
		return nil, errNoRoute
	}
	p.queries.Add(1)
	reply, err := p.send(ctx, p.route(to), network, packet, m)
	if err != nil {
		p.failures.Add(1)
		return nil, fmt.Errorf("%s: %w", network, err)
	}
	return reply, nil
}

// send has its own time out of ctx's. Every query has a socket, and so a port,
// of its own.
func (p *Prober) send(ctx context.Context, to netip.AddrPort, network string, packet []byte, m *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, p.timeout(to))
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, network, to.String())
	if err != nil {
		return nil, reason(ctx, err, network == "udp")
	}
	defer conn.Close()                                                               //nolint:errcheck // all has been read that will be
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // its error: the connection is closed
	defer stop()

	c := dns.Conn{Conn: conn}
	if _, err := c.Write(packet); err != nil {
		return nil, reason(ctx, err, network == "udp")
	}
	if network == "tcp" {
		buf := make([]byte, dns.MaxMsgSize)
		n, err := c.Read(buf)
		if err != nil {
			return nil, reason(ctx, err, false)
		}
		reply, err := accept(buf[:n], m)
		if err != nil {
			return nil, err
		}
		return reply, nil
	}
	buf := make([]byte, maxUDP)
	for range maxStrange {
		n, err := c.Read(buf)
		if err != nil {
			return nil, reason(ctx, err, true)
		}
		if reply, err := accept(buf[:n], m); err == nil {
			return reply, nil
		}
	}
	return nil, errStrange
}

// reason says in our words why a socket failed.
func reason(ctx context.Context, err error, udp bool) error {
	var timeout net.Error
	switch {
	case ctx.Err() != nil, errors.As(err, &timeout) && timeout.Timeout():
		return errTimeout
	case udp && (errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EHOSTUNREACH) ||
		errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT)):
		return errNoRoute
	case errors.Is(err, syscall.ECONNREFUSED):
		return errors.New("nothing listens there")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return errors.New("connection closed without a reply")
	}
	return err
}

// accept unpacks a packet and checks that it is a reply to m: same identifier,
// same question. Replies that say that the query was not understood may be
// without a question.
func accept(packet []byte, m *dns.Msg) (*dns.Msg, error) {
	reply := new(dns.Msg)
	if err := reply.Unpack(packet); err != nil {
		return nil, errors.Join(errReply, err)
	}
	if reply.Id != m.Id || !reply.Response || reply.Opcode != dns.OpcodeQuery {
		return nil, errReply
	}
	want := m.Question[0]
	switch len(reply.Question) {
	case 0:
		if reply.Rcode == dns.RcodeSuccess || reply.Rcode == dns.RcodeNameError || len(reply.Answer)+len(reply.Ns) > 0 {
			return nil, errReply
		}
	case 1:
		got := reply.Question[0]
		if canonical(got.Name) != want.Name || got.Qtype != want.Qtype || got.Qclass != want.Qclass {
			return nil, errReply
		}
	default:
		return nil, errReply
	}
	return reply, nil
}
