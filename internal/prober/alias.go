package prober

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"

	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/rotation"
)

// Class is what is the matter with a customer's CNAME. The texts are stored and
// shown; docs/cname-doctor.md explains each.
type Class string

// The classes. Only OK and INDIRECT_OK are proof. LAME, UNREACHABLE and, if the
// present key is known, FLATTENED_TXT prove nothing and deny nothing.
const (
	OK                Class = "OK"                  // a CNAME to the target
	IndirectOK        Class = "INDIRECT_OK"         // a chain of CNAMEs that ends at the target
	Missing           Class = "MISSING"             // no CNAME
	WrongTarget       Class = "WRONG_TARGET"        // a CNAME to somewhere else
	OtherDomainTarget Class = "OTHER_DOMAIN_TARGET" // a CNAME into our zone, to another owner name
	DoubledSuffix     Class = "DOUBLED_SUFFIX"      // the customer's zone stands twice in the owner or behind the target
	FlattenedTXT      Class = "FLATTENED_TXT"       // a TXT record with the present key where the CNAME, or the end of its chain, should be
	StaleTXT          Class = "STALE_TXT"           // a TXT record with another key, or beside the CNAME
	ProxiedAddress    Class = "PROXIED_ADDRESS"     // an address where the CNAME should be
	Loop              Class = "LOOP"                // CNAMEs that lead back, or too many of them
	Lame              Class = "LAME"                // no server speaks for the zone, and at least one says so
	Unreachable       Class = "UNREACHABLE"         // no server was found, or none answered
	DNSSECBogus       Class = "DNSSEC_BOGUS"        // right, but validating resolvers refuse it
	ServersDisagree   Class = "SERVERS_DISAGREE"    // the servers of one zone say different things
)

// Finding is what c proves.
func (c Class) Finding() rotation.Finding {
	switch c {
	case OK, IndirectOK:
		return rotation.Proven
	case Lame, Unreachable, FlattenedTXT: // receivers do find the key, as long as it stays the same
		return rotation.Unreachable
	default:
		return rotation.Contradicted
	}
}

// Validation is what is known of the DNSSEC signatures.
type Validation string

// The validations. Without a resolver, and if the resolver does not answer, it
// is NotChecked.
const (
	NotChecked Validation = "NOT_CHECKED"
	Unsigned   Validation = "UNSIGNED" // the resolver answers, but does not vouch: unsigned, or it does not validate
	Secure     Validation = "SECURE"   // the resolver vouches for every CNAME
	Bogus      Validation = "BOGUS"    // the resolver refuses it, and answers when told not to validate
)

// AliasQuestion asks whether a CNAME is as it should be. Names are without a
// trailing dot.
type AliasQuestion struct {
	Owner  string // the customer's side: "selector1._domainkey.spamtrap.dk"
	Target string // where it should point: "selector1-spamtrap-dk._domainkey.keys.example.net"
	Zone   string // our zone, which Target is in: "keys.example.net"
	Record string // the TXT data that Target serves now; "" if not known. It tells a flattened CNAME from a stale copy
}

// AliasReport is the answer to an AliasQuestion.
type AliasReport struct {
	Class   Class
	Finding rotation.Finding
	Reason  string         // the class if Finding is not Proven, else ""
	Servers []ServerAnswer // who said what, for each link of the chain
	Found   []string       // the records that were found, in the form of a master file
	// NegativeTTL is how long resolvers keep it that a record is missing, in
	// seconds; 0 if no server said so.
	NegativeTTL uint32
	DNSSEC      Validation
	Hint        string // how to mend it, with the record to add or delete; "" for OK
}

// Alias asks the customer's authoritative servers for q.Owner, and those of
// other zones for the further links of a chain. All that can go wrong is a
// class; if ctx ends first, it is UNREACHABLE. The servers of our own zone are
// not asked: a link that ends at q.Target is good, and Served looks further.
//
// At least one server must give the answer, and none may give another. Servers
// that do not answer are listed, but as resolvers go on to the next one they
// do not spoil the proof.
func (p *Prober) Alias(ctx context.Context, q AliasQuestion) AliasReport {
	e := &examination{
		owner: canonical(q.Owner), target: canonical(q.Target), zone: canonical(q.Zone), record: q.Record,
		report: AliasReport{DNSSEC: NotChecked},
	}
	_, domain, _ := strings.Cut(e.owner, "._domainkey.")
	e.domain = domain
	ctx, done, err := p.begin(ctx)
	if err != nil {
		e.report.Servers = []ServerAnswer{{Name: plain(e.owner), Err: err.Error()}}
		return e.conclude(Unreachable, view{name: e.owner, zone: "."})
	}
	defer done()
	c := p.course()
	seen := []string{e.owner}
	for {
		v := c.view(ctx, seen[len(seen)-1])
		e.note(v)
		class, next := e.judge(v, seen)
		switch {
		case next != "":
			seen = append(seen, next)
			continue
		case class == Missing && c.doubled(ctx, e, v):
			class = DoubledSuffix
		case class.Finding() == rotation.Proven && p.resolver.IsValid() && !c.validate(ctx, e, seen):
			class = DNSSECBogus
		}
		return e.conclude(class, v)
	}
}

// view is what all servers of a name's zone say of it together.
type view struct {
	name, zone  string
	kind        kind // the best of all; failed also when servers disagree
	disagree    bool
	cnames      []string
	txts        []string
	addrs       []string
	negativeTTL uint32
	sightings   []sighting
}

// view asks them.
func (c *course) view(ctx context.Context, name string) view {
	zone, sightings := c.survey(ctx, name, func(t peer, zone string) reply { return c.look(ctx, t, zone, name) })
	return settle(name, zone, sightings)
}

// look asks one server for all that tells what stands at name. Where there is a
// TXT record, a CNAME may be beside it, though it must not (RFC 1034 §3.6.2);
// where there is neither, an address may be.
func (c *course) look(ctx context.Context, t peer, zone, name string) reply {
	r := c.ask(ctx, t.addr, zone, name, dns.TypeTXT, thorough)
	switch {
	case r.kind == present && len(r.cnames) == 0:
		r.cnames = c.ask(ctx, t.addr, zone, name, dns.TypeCNAME, thorough).cnames
	case r.kind == absent:
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
			if a := c.ask(ctx, t.addr, zone, name, qtype, thorough); a.kind == present {
				r.kind, r.addrs, r.cnames = present, a.addrs, a.cnames
				break
			}
		}
	}
	return r
}

// settle makes one view of what each server said.
func settle(name, zone string, sightings []sighting) view {
	v := view{name: name, zone: zone, sightings: sightings}
	var said []string
	for _, s := range sightings {
		v.negativeTTL = max(v.negativeTTL, s.negativeTTL)
		if !s.kind.settled() {
			v.kind = max(v.kind, min(s.kind, lame))
			continue
		}
		if s.apex != "" {
			v.zone = s.apex
		}
		said = append(said, s.opinion())
		v.cnames = append(v.cnames, s.cnames...)
		v.txts = append(v.txts, s.txts...)
		for _, a := range s.addrs {
			v.addrs = append(v.addrs, a.String())
		}
	}
	for _, list := range []*[]string{&said, &v.cnames, &v.txts, &v.addrs} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	switch {
	case len(said) > 1:
		v.kind, v.disagree = failed, true
	case len(said) == 1 && said[0] == nothing:
		v.kind = absent
	case len(said) == 1:
		v.kind = present
	}
	return v
}

// nothing is the opinion of a server that has no record that matters.
const nothing = ""

// opinion is what servers must agree on. Addresses may differ from one answer to
// the next.
func (r reply) opinion() string {
	if r.kind != present {
		return nothing
	}
	said := append([]string{"CNAME"}, r.cnames...)
	for _, t := range r.txts {
		said = append(said, "TXT", strconv.Quote(t)) // whole, unlike quoted
	}
	if len(r.addrs) > 0 {
		said = append(said, "A")
	}
	return strings.Join(said, " ")
}

// examination is an AliasQuestion on its way to an AliasReport.
type examination struct {
	owner, target, zone, domain string // canonical
	record                      string

	misplaced string // the record that DoubledSuffix found, in the form of a master file
	bogus     string // why a validating resolver refuses it
	report    AliasReport
}

// note puts what was seen into the report.
func (e *examination) note(v view) {
	e.report.NegativeTTL = max(e.report.NegativeTTL, v.negativeTTL)
	e.report.Servers = append(e.report.Servers, answers(v.name, v.sightings)...)
	e.report.Found = append(e.report.Found, v.records()...)
}

// records are those that were found, in the form of a master file.
func (v view) records() []string {
	var found []string
	for _, c := range v.cnames {
		found = append(found, cnameRecord(v.name, c))
	}
	for _, t := range v.txts {
		found = append(found, v.name+" IN TXT "+quoted(t))
	}
	for _, a := range v.addrs {
		kind := "A"
		if strings.Contains(a, ":") {
			kind = "AAAA"
		}
		found = append(found, v.name+" IN "+kind+" "+a)
	}
	return found[:min(len(found), maxGot)]
}

func cnameRecord(owner, target string) string { return owner + " IN CNAME " + target }

// answers are sightings as they are reported.
func answers(name string, sightings []sighting) []ServerAnswer {
	out := make([]ServerAnswer, len(sightings))
	for i, s := range sightings {
		out[i] = ServerAnswer{Name: plain(name), Host: plain(s.host), Network: "udp", Rcode: s.rcode, Got: s.got(), Err: s.err}
		if s.addr.IsValid() {
			out[i].Addr = s.addr.String()
		}
	}
	return out
}

// judge says what v, the view of the last name of the chain, means: a class, or
// the name that the chain goes on with.
func (e *examination) judge(v view, chain []string) (class Class, next string) {
	first := len(chain) == 1
	at := func(c Class) (Class, string) { // c if it stands at the owner itself
		if first {
			return c, ""
		}
		return WrongTarget, ""
	}
	switch {
	case v.disagree:
		return ServersDisagree, ""
	case v.kind == lame:
		return Lame, ""
	case v.kind < lame:
		return Unreachable, ""
	case v.kind == absent:
		return at(Missing)
	case len(v.cnames) > 0 && len(v.txts) > 0:
		return at(StaleTXT)
	case len(v.cnames) > 1:
		return WrongTarget, ""
	case len(v.cnames) == 1:
		return e.follow(v.cnames[0], chain)
	case len(v.txts) > 0 && !slices.ContainsFunc(v.txts, looksLikeKey):
		return at(Missing) // of a wildcard, most likely
	case len(v.txts) == 1 && sameKey(v.txts[0], e.record):
		return FlattenedTXT, ""
	case len(v.txts) > 0 && e.record == "":
		return at(FlattenedTXT)
	case len(v.txts) > 0:
		return at(StaleTXT)
	default:
		return at(ProxiedAddress)
	}
}

func (e *examination) follow(to string, chain []string) (class Class, next string) {
	suffix, appended := strings.CutPrefix(to, e.target)
	switch {
	case to == e.target && len(chain) == 1:
		return OK, ""
	case to == e.target:
		return IndirectOK, ""
	case appended && suffix != "." && below(suffix, e.owner):
		return DoubledSuffix, ""
	case below(e.zone, to):
		return OtherDomainTarget, ""
	case slices.Contains(chain, to), len(chain) >= maxLinks:
		return Loop, ""
	}
	return "", to
}

// looksLikeKey reports whether a TXT record is meant as a DKIM key, good or bad.
func looksLikeKey(txt string) bool {
	for tag := range strings.SplitSeq(txt, ";") {
		name, value, ok := strings.Cut(tag, "=")
		switch name = strings.TrimSpace(name); {
		case ok && name == "p":
			return true
		case ok && name == "v":
			return strings.TrimSpace(value) == "DKIM1"
		}
	}
	return false
}

// sameKey reports whether two records have the same key, whatever their other
// tags.
func sameKey(a, b string) bool {
	if a == b {
		return true
	}
	ka, errA := keypair.ParsePublicKey([]byte(a))
	kb, errB := keypair.ParsePublicKey([]byte(b))
	return errA == nil && errB == nil && ka.Fingerprint() == kb.Fingerprint()
}

// doubled looks whether the record stands where a customer gets it whose DNS
// editor appends the zone to names that have it already.
func (c *course) doubled(ctx context.Context, e *examination, v view) bool {
	suffixes := []string{e.domain}
	if v.zone != e.domain && dns.CountLabel(v.zone) > 1 {
		suffixes = append(suffixes, v.zone)
	}
	for _, suffix := range suffixes {
		name := e.owner + suffix
		if _, ok := dns.IsDomainName(name); suffix == "" || !ok {
			continue
		}
		_, seen := c.descend(ctx, name, dns.TypeTXT, 0)
		last := seen[len(seen)-1]
		if len(last.cnames) != 1 || last.kind != present {
			continue
		}
		to := last.cnames[0]
		if rest, ok := strings.CutPrefix(to, e.target); ok && (rest == "" || below(rest, e.owner)) {
			e.misplaced = cnameRecord(name, to)
			e.report.Found = append(e.report.Found, e.misplaced)
			e.report.Servers = append(e.report.Servers, answers(name, seen[len(seen)-1:])...)
			return true
		}
	}
	return false
}

// validate asks the resolver for each CNAME of the chain and reports false if
// it answers only when it is told not to validate. A resolver that cannot
// resolve the root itself is no witness.
func (c *course) validate(ctx context.Context, e *examination, chain []string) bool {
	status := Secure
	for _, name := range chain {
		m, err := c.recurse(ctx, query{name: name, qtype: dns.TypeCNAME})
		if err != nil {
			return true
		}
		switch {
		case m.Rcode == dns.RcodeServerFailure:
			unchecked, err := c.recurse(ctx, query{name: name, qtype: dns.TypeCNAME, noCheck: true})
			if err != nil || unchecked.Rcode != dns.RcodeSuccess || len(unchecked.Answer) == 0 {
				return true
			}
			root, err := c.recurse(ctx, query{name: ".", qtype: dns.TypeNS})
			if err != nil || root.Rcode != dns.RcodeSuccess {
				return true
			}
			e.report.DNSSEC, e.bogus = Bogus, extendedError(m)
			e.report.Servers = append(e.report.Servers, ServerAnswer{
				Name: plain(name), Addr: c.p.resolver.String(), Network: "udp", Rcode: rcodeName(m.Rcode), Err: e.bogus,
			})
			return false
		case m.Rcode != dns.RcodeSuccess:
			return true
		case !m.AuthenticatedData:
			status = Unsigned
		}
	}
	e.report.DNSSEC = status
	return true
}

func (e *examination) conclude(class Class, v view) AliasReport {
	r := e.report
	r.Class, r.Finding = class, class.Finding()
	if class == FlattenedTXT && e.record == "" {
		r.Finding = rotation.Contradicted // of what, nobody knows
	}
	if r.Finding != rotation.Proven {
		r.Reason = string(class)
	}
	r.Hint = e.hint(class, v)
	return r
}
