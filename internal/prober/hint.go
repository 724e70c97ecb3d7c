package prober

import (
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// hint says how to mend what class means, with the records concerned as they
// stand in a master file. v is the last view.
func (e *examination) hint(class Class, v view) string {
	right := cnameRecord(e.owner, e.target)
	switch class {
	case OK:
		return ""
	case IndirectOK:
		return "It works. A CNAME straight to us would depend on fewer others: " + right
	case Missing:
		return e.missing(v, right)
	case WrongTarget:
		return "Delete: " + e.wrong() + " Add instead: " + right
	case OtherDomainTarget:
		return "The CNAME points at another domain's key, or another selector's. Delete: " + e.wrong() + " Add instead: " + right
	case DoubledSuffix:
		return e.doubledHint(v, right)
	case FlattenedTXT:
		if e.record == "" {
			return "There is a TXT record with a key where a CNAME should be; it will not follow when the key changes. Delete it, or switch off the flattening of CNAMEs (ALIAS, ANAME) for it. Add: " + right
		}
		if v.name != e.owner {
			return "The key is the right one now, but the CNAME leads to a copy of it in a TXT record, which breaks at the next rotation. Delete: " + e.wrong() + " Add instead: " + right
		}
		return "The key is the right one now, but as a copy in a TXT record, which breaks at the next rotation. Delete it, or switch off the flattening of CNAMEs (ALIAS, ANAME) for it. Add: " + right
	case StaleTXT:
		hint := "There is a TXT record with a key that is not, or will not stay, the one in use. Delete: " + e.txts()
		if len(v.cnames) > 0 {
			return hint + " Nothing may stand beside the CNAME, which is to be: " + right
		}
		return hint + " Add instead: " + right
	case ProxiedAddress:
		return "There is an address where a CNAME should be. Switch off proxying for this name, or delete the address records, a wildcard's too if that is where they come from. Add: " + right
	case Loop:
		return "The CNAMEs lead back to themselves, or there are more than resolvers follow. Delete: " + e.wrong() + " Add instead: " + right
	case Lame:
		return "The name servers to which " + plain(v.zone) + " is delegated do not serve it" + e.said(v) + ". Correct the delegation, or configure the zone on them. Then there must be: " + right
	case Unreachable:
		return "The name servers of " + plain(v.zone) + " could not be asked" + e.said(v) + ". When they answer, there must be: " + right
	case DNSSECBogus:
		hint := "The record is right, but validating resolvers refuse it"
		if e.bogus != "" {
			hint += " (" + e.bogus + ")"
		}
		return hint + ". Sign the zone of " + plain(v.name) + " anew, or correct or remove its DS record in the parent zone."
	case ServersDisagree:
		return "The name servers of " + plain(v.zone) + " give different answers: " + e.opinions(v) + ". Wait for their zone transfers, or mend them. On all of them there must be: " + right
	}
	return ""
}

func (e *examination) missing(v view, right string) string {
	hint := "Add: " + right
	switch {
	case len(v.txts) > 0:
		hint += " (the TXT record that is there now is no key; a wildcard may be where it comes from)"
	case v.name == e.owner && dns.CountLabel(v.zone) <= 1 && v.zone != e.domain:
		registry := plain(v.zone)
		if v.zone == "." {
			registry = "the root zone"
		}
		return "The domain " + plain(e.domain) + " does not exist: " + registry + " does not delegate it. When it does, add: " + right
	}
	return hint
}

func (e *examination) doubledHint(v view, right string) string {
	if e.misplaced != "" {
		return "The DNS editor appended the zone to a name that had it already. Delete: " + e.misplaced + " Add instead: " + right +
			" (in many editors the name is entered as " + strings.TrimSuffix(strings.TrimSuffix(e.owner, "."+e.zoneOf(v)), ".") + ")"
	}
	return "The DNS editor appended the zone to the target; enter it with a dot at its end. Delete: " + e.wrong() + " Add instead: " + right
}

// zoneOf is the customer's zone, as far as it is known.
func (e *examination) zoneOf(v view) string {
	if v.zone != "." && below(v.zone, e.owner) {
		return v.zone
	}
	return e.domain
}

// wrong is the record at the owner.
func (e *examination) wrong() string {
	return strings.Join(slices.DeleteFunc(slices.Clone(e.report.Found), func(r string) bool { return !strings.HasPrefix(r, e.owner+" ") }), " and ")
}

func (e *examination) txts() string {
	return strings.Join(slices.DeleteFunc(slices.Clone(e.report.Found), func(r string) bool { return !strings.HasPrefix(r, e.owner+" IN TXT ") }), " and ")
}

// said is why the servers are no help, in brackets.
func (e *examination) said(v view) string {
	var parts []string
	for _, s := range v.sightings {
		if s.err == "" || len(parts) == 4 {
			continue
		}
		who := plain(s.host)
		if s.host == "" && s.addr.IsValid() {
			who = s.addr.String()
		}
		if part := strings.TrimPrefix(who+": "+s.err, ": "); !slices.Contains(parts, part) {
			parts = append(parts, part)
		}
	}
	if len(parts) == 0 {
		return ""
	}
	return " (" + strings.Join(parts, "; ") + ")"
}

// opinions is which servers say what.
func (e *examination) opinions(v view) string {
	var order []string
	who := map[string][]string{}
	for _, s := range v.sightings {
		if !s.kind.settled() {
			continue
		}
		got := s.got()
		if who[got] == nil {
			order = append(order, got)
		}
		who[got] = append(who[got], s.addr.Addr().String())
	}
	parts := make([]string, len(order))
	for i, got := range order {
		parts[i] = strings.Join(who[got], ", ") + " has " + got
	}
	return strings.Join(parts, "; ")
}
