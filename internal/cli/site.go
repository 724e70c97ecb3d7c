package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	// answerTime is how long a name server has for an answer.
	answerTime = 2 * time.Second
	// udpSize avoids fragments (RFC 9715).
	udpSize = 1232
)

// site is one address of a name server.
type site struct {
	host string
	addr netip.AddrPort
}

// await asks until the site serves what it is to, which returns "", or until ctx
// ends, which returns what is missing.
func (s site) await(ctx context.Context, zone string, want served) string {
	pause := 10 * time.Millisecond
	missing := "has not been asked in time"
	for {
		problem := s.check(ctx, zone, want)
		if problem == nil {
			return ""
		}
		if ctx.Err() == nil { // else it only says that time is up
			missing = problem.Error()
		}
		select {
		case <-ctx.Done():
			return fmt.Sprintf("%s at %s %s", s.host, s.addr, missing)
		case <-time.After(pause):
			pause = min(2*pause, time.Second)
		}
	}
}

// check asks once. Its error goes on where the name of the site ends.
func (s site) check(ctx context.Context, zone string, want served) error {
	reply, err := s.ask(ctx, zone, dns.TypeSOA)
	if err != nil {
		return err
	}
	var soa *dns.SOA
	for _, rr := range reply.Answer {
		if found, ok := rr.(*dns.SOA); ok {
			soa = found
		}
	}
	switch {
	case soa == nil:
		return fmt.Errorf("has no SOA record of %s", zone)
	case !reached(soa.Serial, want.serial()):
		return fmt.Errorf("is at serial %d, %d is wanted", soa.Serial, want.serial())
	}
	for _, owner := range slices.Sorted(maps.Keys(want.records)) {
		reply, err := s.ask(ctx, owner, dns.TypeTXT)
		if err != nil {
			return err
		}
		var texts []string
		for _, rr := range reply.Answer {
			if txt, ok := rr.(*dns.TXT); ok {
				texts = append(texts, strings.Join(txt.Txt, ""))
			}
		}
		switch {
		case len(texts) == 0:
			return fmt.Errorf("has no TXT record at %s", owner)
		case len(texts) > 1 || texts[0] != want.records[owner]:
			return fmt.Errorf("has another TXT record at %s than the key's", owner)
		}
	}
	return nil
}

// ask sends a question over UDP and, when the answer does not fit, over TCP. It
// accepts only authoritative answers without an error.
func (s site) ask(ctx context.Context, name string, qtype uint16) (*dns.Msg, error) {
	question := dns.TypeToString[qtype] + " " + name
	reply, err := s.exchange(ctx, "udp", name, qtype)
	if err == nil && reply.Truncated {
		reply, err = s.exchange(ctx, "tcp", name, qtype)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("does not answer %s (%w)", question, err)
	case reply.Rcode != dns.RcodeSuccess:
		return nil, fmt.Errorf("answers %s to %s", dns.RcodeToString[reply.Rcode], question)
	case !reply.Authoritative:
		return nil, fmt.Errorf("has no authority to answer %s", question)
	}
	return reply, nil
}

func (s site) exchange(ctx context.Context, network, name string, qtype uint16) (*dns.Msg, error) {
	query := new(dns.Msg)
	query.SetQuestion(dns.Fqdn(name), qtype)
	query.RecursionDesired = false
	query.SetEdns0(udpSize, false)
	client := dns.Client{Net: network, Timeout: answerTime}
	conn, err := client.DialContext(ctx, s.addr.String())
	if err != nil {
		return nil, plain(err)
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })() // so that an interrupt need not wait
	reply, _, err := client.ExchangeWithConnContext(ctx, query, conn)
	if err != nil {
		return nil, plain(err)
	}
	return reply, nil
}

// plain takes addresses off, which the message has already.
func plain(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err
	}
	return err
}
