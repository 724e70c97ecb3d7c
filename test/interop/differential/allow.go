package main

import (
	"strings"

	"github.com/miekg/dns"

	"github.com/dkimzone/dkimzone/test/dataset"
)

// allow is the reason why a difference is right, or "". docs/interop.md has the
// same list.
func allow(server string, p part, q query, ours, theirs reply) string {
	name, qtype := q.Question[0].Name, q.Question[0].Qtype
	low := strings.ToLower(name)
	if p.ofRecords() && ours.folded[p] == theirs.folded[p] {
		return "letter case of names outside the question"
	}
	if p.ofRecords() && qtype == dns.TypeANY && (low == dataset.Zone+"." || low == "ns1."+dataset.Zone+".") {
		return "one record set for ANY"
	}
	if !strings.HasPrefix(server, "BIND") {
		return ""
	}
	// BIND gives owner names as they stand in the zone, and cannot point to the
	// question with them if that is in another case.
	longer := low != name && limit(q) == dns.MinMsgSize && theirs.text[answer] == "" &&
		strings.Contains(theirs.text[flags], "tc=true") && strings.Contains(ours.text[flags], "tc=false")
	switch p {
	case flags:
		text := theirs.text[p]
		if longer {
			text = strings.Replace(text, "tc=true", "tc=false", 1)
		}
		if text == ours.text[p] {
			return "truncated, since the name is there twice"
		}
		if q.CheckingDisabled && strings.Replace(text, "cd=true", "cd=false", 1) == ours.text[p] {
			return "CD is copied"
		}
	case answer:
		if longer {
			return "truncated, since the name is there twice"
		}
	case authority:
		if qtype == dns.TypeSOA && strings.Replace(theirs.folded[p], "\t0\tin\tsoa\t", "\t300\tin\tsoa\t", 1) == ours.folded[p] {
			return "time to live 0 of the SOA record in a negative answer to a question for SOA"
		}
	case additional:
		if qtype == dns.TypeNS && theirs.text[p] == "" {
			return "no addresses beside NS"
		}
	}
	return ""
}

// limit is how long a reply may be.
func limit(q query) int {
	if opt := q.IsEdns0(); opt != nil {
		return max(int(opt.UDPSize()), dns.MinMsgSize)
	}
	return dns.MinMsgSize
}
