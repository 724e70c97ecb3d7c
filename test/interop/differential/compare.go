package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// part is what is compared of two replies.
type part string

// The parts.
const (
	rcode      part = "rcode"
	flags      part = "flags"
	question   part = "question"
	answer     part = "answer"
	authority  part = "authority"
	additional part = "additional"
	edns       part = "edns"
)

var parts = []part{rcode, flags, question, answer, authority, additional, edns}

// ofRecords reports whether the part is a section.
func (p part) ofRecords() bool { return p == answer || p == authority || p == additional }

// reply is the parts of a reply as text, and the sections once more with names
// in lower case.
type reply struct {
	text, folded map[part]string
}

func read(m *dns.Msg) reply {
	text := map[part]string{
		rcode: dns.RcodeToString[m.Rcode],
		flags: fmt.Sprintf("qr=%t op=%d aa=%t tc=%t rd=%t ra=%t ad=%t cd=%t z=%t", m.Response, m.Opcode, m.Authoritative,
			m.Truncated, m.RecursionDesired, m.RecursionAvailable, m.AuthenticatedData, m.CheckingDisabled, m.Zero),
		edns: "none",
	}
	folded := make(map[part]string)
	for p, rrs := range map[part][]dns.RR{answer: m.Answer, authority: m.Ns, additional: m.Extra} {
		text[p], folded[p] = section(rrs)
	}
	if len(m.Question) == 1 {
		text[question] = m.Question[0].String()
	}
	if opt := m.IsEdns0(); opt != nil {
		text[edns] = fmt.Sprintf("version=%d do=%t options=%d", opt.Version(), opt.Do(), len(opt.Option))
	}
	return reply{text, folded}
}

// section is its records in order, as they are and with names in lower case.
func section(rrs []dns.RR) (text, folded string) {
	var lines, low []string
	for _, rr := range rrs {
		if rr.Header().Rrtype == dns.TypeOPT {
			continue
		}
		line := rr.String()
		lines = append(lines, line)
		if rr.Header().Rrtype == dns.TypeTXT { // its text is no name
			head := rr.Header().String()
			low = append(low, strings.ToLower(head)+strings.TrimPrefix(line, head))
		} else {
			low = append(low, strings.ToLower(line))
		}
	}
	slices.Sort(lines)
	slices.Sort(low)
	return strings.Join(lines, " | "), strings.Join(low, " | ")
}
