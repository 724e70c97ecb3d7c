package prober

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/miekg/dns"

	"github.com/dkimzone/dkimzone/internal/rotation"
)

// Reasons of a ServedReport that is no proof.
const (
	ReasonNotServed    = "NOT_SERVED"    // a server says that there is no such record
	ReasonOtherContent = "OTHER_CONTENT" // a server serves something else, or more than one record
	ReasonNoProof      = "NO_PROOF"      // a server did not answer, refused, failed or is not authoritative
	ReasonNoServers    = "NO_SERVERS"    // there is nobody to ask
)

// ServedReport is what the name servers of our zone say of one record.
type ServedReport struct {
	Finding rotation.Finding
	Reason  string         // one of the reasons above; "" when proven
	Servers []ServerAnswer // one for each address and transport
}

// Served asks each address of each server over UDP and over TCP for the TXT
// record at owner. It is proven if each serves want, the joined strings, and
// nothing else, authoritatively. Addresses of IPv6 are passed over when there
// is no route, as long as the server has another one. A server that serves
// something else outweighs one that does not answer.
func (p *Prober) Served(ctx context.Context, zone string, servers []NameServer, owner, want string) ServedReport {
	if len(servers) == 0 {
		return ServedReport{Finding: rotation.Unreachable, Reason: ReasonNoServers}
	}
	ctx, done, err := p.begin(ctx)
	if err != nil {
		return ServedReport{Finding: rotation.Unreachable, Reason: ReasonNoProof, Servers: []ServerAnswer{{Name: owner, Err: err.Error()}}}
	}
	defer done()

	checks := make([][]check, len(servers))
	var wg sync.WaitGroup
	c := p.course()
	for i, s := range servers {
		for _, addr := range c.addressesOf(ctx, s) {
			for _, how := range []patience{overUDP, overTCP} {
				checks[i] = append(checks[i], check{host: s.Host, addr: addr, how: how})
			}
		}
		for j := range checks[i] {
			wg.Go(func() { p.check(ctx, &checks[i][j], canonical(zone), canonical(owner), want) })
		}
	}
	wg.Wait()
	return report(servers, checks, owner)
}

// addressesOf are those that s is asked at. A host without addresses, which
// lies outside our zone, is looked up.
func (c *course) addressesOf(ctx context.Context, s NameServer) []netip.AddrPort {
	if a, ok := c.p.own[canonical(s.Host)]; ok {
		return []netip.AddrPort{a}
	}
	if len(s.Addrs) == 0 {
		found, _ := c.addresses(ctx, canonical(s.Host), 0) // the report names a host that has none
		return found
	}
	addrs := make([]netip.AddrPort, len(s.Addrs))
	for i, a := range s.Addrs {
		var ok bool
		if addrs[i], ok = c.p.own[canonical(a.String())]; !ok {
			addrs[i] = netip.AddrPortFrom(a, 53)
		}
	}
	return addrs
}

// check is one address over one transport.
type check struct {
	host   string
	addr   netip.AddrPort
	how    patience
	reply  reply
	reason string // why it is no proof
}

func (p *Prober) check(ctx context.Context, k *check, zone, owner, want string) {
	m, err := p.exchange(ctx, k.addr, query{name: owner, qtype: dns.TypeTXT, patience: k.how, own: true})
	if err != nil {
		k.reply, k.reason = noReply(k.addr, err), ReasonNoProof
		return
	}
	k.reply = readReply(m, zone, owner, dns.TypeTXT)
	switch r := k.reply; {
	case r.kind == denied || r.kind == absent:
		k.reason = ReasonNotServed
	case r.kind != present:
		k.reason = ReasonNoProof
	case m.Rcode != dns.RcodeSuccess || len(r.cnames) > 0 || !slices.Equal(r.txts, []string{want}):
		k.reason = ReasonOtherContent
	}
}

func report(servers []NameServer, checks [][]check, owner string) ServedReport {
	out := ServedReport{Finding: rotation.Proven}
	worsen := func(f rotation.Finding, reason string) {
		if out.Finding != rotation.Contradicted && out.Finding != f {
			out.Finding, out.Reason = f, reason
		}
	}
	for i, s := range servers {
		asked := false
		for _, k := range checks[i] {
			if k.reply.kind == skipped {
				k.reason = ""
			} else {
				asked = true
			}
			switch k.reason {
			case ReasonNotServed, ReasonOtherContent:
				worsen(rotation.Contradicted, k.reason)
			case ReasonNoProof:
				worsen(rotation.Unreachable, k.reason)
			}
			answer := answers(owner, []sighting{{host: k.host, addr: k.addr, reply: k.reply}})[0]
			answer.Network = query{patience: k.how}.network()
			if answer.Err == "" && k.reason != "" {
				answer.Err = k.reason
			}
			out.Servers = append(out.Servers, answer)
		}
		if !asked {
			worsen(rotation.Unreachable, ReasonNoProof)
			if len(checks[i]) == 0 {
				out.Servers = append(out.Servers, ServerAnswer{Name: strings.TrimSuffix(owner, "."), Host: s.Host, Err: "has no address"})
			}
		}
	}
	return out
}

// ChallengeLabel is the label in front of a domain at which its owner shows a
// token.
const ChallengeLabel = "_dkimzone-challenge"

// Challenge reports whether a TXT record at _dkimzone-challenge.<domain> is
// token, which must not be empty: all of the domain's authoritative servers that
// answer must have it, and at least one must answer. CNAMEs are followed, each
// asked at its own servers.
func (p *Prober) Challenge(ctx context.Context, domain, token string) (bool, []ServerAnswer) {
	name := canonical(ChallengeLabel + "." + domain)
	ctx, done, err := p.begin(ctx)
	if err != nil {
		return false, []ServerAnswer{{Name: plain(name), Err: err.Error()}}
	}
	defer done()

	c := p.course()
	var all []ServerAnswer
	for links := 0; links <= maxLinks; links++ {
		zone, sightings := c.survey(ctx, name, func(t peer, zone string) reply {
			return c.ask(ctx, t.addr, zone, name, dns.TypeTXT, thorough)
		})
		all = append(all, answers(name, sightings)...)
		v := settle(name, zone, sightings)
		switch {
		case len(v.cnames) == 1 && v.kind == present && len(v.txts) == 0:
			name = v.cnames[0]
			continue
		case len(v.cnames) > 0 || token == "":
			return false, all
		}
		answered := false
		for _, s := range sightings {
			if !s.kind.settled() {
				continue
			}
			answered = true
			if !slices.Contains(s.txts, token) {
				return false, all
			}
		}
		return answered, all
	}
	return false, all
}
