// Package evidence gathers what DNS shows of one domain, its customer's CNAMEs
// and the records on all name servers of the zone, and joins it with what the
// signers report into the evidence that rotation decides on.
package evidence

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/prober"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// Prober asks DNS; *prober.Prober is one. It must be safe for concurrent use.
type Prober interface {
	Alias(ctx context.Context, q prober.AliasQuestion) prober.AliasReport
	Served(ctx context.Context, zone string, servers []prober.NameServer, owner, want string) prober.ServedReport
}

// Subject is a domain with what is needed to ask DNS about it.
type Subject struct {
	Domain keystore.Domain
	Zone   keystore.Zone
	// Shared is the domain that holds the brand's shared keys when Domain is a
	// customer's and the brand signs with them; else nil.
	Shared *keystore.Domain
	// Records are those of Domain's published keys, by selector.
	Records map[dnsname.Selector]schema.PublicRecord
}

// AliasResult is what a customer's DNS shows at one selector.
type AliasResult struct {
	Selector dnsname.Selector
	prober.AliasQuestion
	prober.AliasReport
}

// ServedResult is what the zone's name servers serve for one key.
type ServedResult struct {
	KeyID    string
	Selector dnsname.Selector
	Owner    string
	prober.ServedReport
}

// Report is what was seen, in order of selector.
type Report struct {
	Aliases []AliasResult
	Served  []ServedResult
}

// Gather asks DNS about a domain and returns its status with what was seen
// folded in, dated now. It takes as long as the slowest answer, bounded by the
// Prober and by ctx. When ctx ends early the status is as before.
func Gather(ctx context.Context, p Prober, s Subject, before keystore.Status, now time.Time) (keystore.Status, Report, error) {
	aliases, err := aliasQuestions(s)
	if err != nil {
		return before, Report{}, err
	}
	served, err := servedQuestions(s)
	if err != nil {
		return before, Report{}, err
	}
	r := Report{Aliases: aliases, Served: make([]ServedResult, len(served))}
	var wg sync.WaitGroup
	for i := range r.Aliases {
		wg.Go(func() { r.Aliases[i].AliasReport = p.Alias(ctx, r.Aliases[i].AliasQuestion) })
	}
	servers := nameServers(s.Zone)
	for i, q := range served {
		r.Served[i] = q.ServedResult
		wg.Go(func() { r.Served[i].ServedReport = p.Served(ctx, string(s.Zone.Name), servers, q.Owner, q.want) })
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return before, Report{}, err
	}
	return fold(before, r, now), r, nil
}

// fold returns the status with a report's findings. Selectors and keys that
// were not asked about are forgotten.
func fold(before keystore.Status, r Report, now time.Time) keystore.Status {
	after := before
	after.Aliases = make(map[dnsname.Selector]rotation.Observation, len(r.Aliases))
	for _, a := range r.Aliases {
		after.Aliases[a.Selector] = before.Aliases[a.Selector].Observe(a.Finding, a.Reason, now)
	}
	after.Served = make(map[string]rotation.Observation, len(r.Served))
	for _, s := range r.Served {
		after.Served[s.KeyID] = before.Served[s.KeyID].Observe(s.Finding, s.Reason, now)
	}
	return after
}

// aliasQuestions asks for each selector whose CNAME the customer adds.
func aliasQuestions(s Subject) ([]AliasResult, error) {
	if s.Domain.Kind != rotation.Customer {
		return nil, nil
	}
	target := s.Domain
	if s.Shared != nil {
		target = *s.Shared
	}
	var questions []AliasResult
	for _, sel := range target.Selectors {
		owner, err := dnsname.AliasOwnerName(sel.Selector, s.Domain.Name)
		if err != nil {
			return nil, fmt.Errorf("alias of %s: %w", s.Domain.Name, err)
		}
		to, err := target.OwnerName(sel.Selector)
		if err != nil {
			return nil, fmt.Errorf("alias target of %s: %w", s.Domain.Name, err)
		}
		q := prober.AliasQuestion{Owner: owner, Target: to, Zone: string(s.Zone.Name)}
		if record, ok := s.Records[sel.Selector]; ok && s.Shared == nil {
			q.Record = record.Record().String()
		}
		questions = append(questions, AliasResult{Selector: sel.Selector, AliasQuestion: q})
	}
	return questions, nil
}

type servedQuestion struct {
	ServedResult
	want string
}

// servedQuestions asks for each key that signs or may come to sign.
func servedQuestions(s Subject) ([]servedQuestion, error) {
	var questions []servedQuestion
	for _, k := range s.Domain.Keys {
		if k.State != rotation.Prepared && k.State != rotation.Active || k.Custody == rotation.PublicOnly {
			continue
		}
		record, ok := s.Records[k.Selector]
		if !ok {
			return nil, fmt.Errorf("%w: record of selector %s of %s is missing", schema.ErrCorrupt, k.Selector, s.Domain.Name)
		}
		owner, err := s.Domain.OwnerName(k.Selector)
		if err != nil {
			return nil, fmt.Errorf("owner name of %s: %w", s.Domain.Name, err)
		}
		questions = append(questions, servedQuestion{ServedResult{KeyID: k.ID, Selector: k.Selector, Owner: owner}, record.Record().String()})
	}
	return questions, nil
}

func nameServers(z keystore.Zone) []prober.NameServer {
	servers := make([]prober.NameServer, len(z.NameServers))
	for i, ns := range z.NameServers {
		servers[i] = prober.NameServer{Host: ns.Name, Addrs: ns.Addresses}
	}
	return servers
}

// Of is the evidence that rotation decides on: what a domain's status holds,
// and what the signers of its brand report.
func Of(status keystore.Status, signers []keystore.Signer, reports []keystore.Report) rotation.Evidence {
	e := rotation.Evidence{Aliases: status.Aliases, Served: status.Served}
	for _, s := range signers {
		view := rotation.SignerView{ID: s.ID, LeaseExpiry: s.LeaseExpiry}
		i := slices.IndexFunc(reports, func(r keystore.Report) bool { return r.Signer == s.ID })
		if i >= 0 {
			view.ReportTime, view.Holds = reports[i].Time, reports[i].Holds
		}
		e.Signers = append(e.Signers, view)
	}
	return e
}

// Domain is a stored domain as rotation sees it. shared is as in Subject.
func Domain(d keystore.Domain, z keystore.Zone, shared *keystore.Domain) rotation.Domain {
	r := rotation.Domain{
		Name: d.Name, Brand: d.Brand, Kind: d.Kind, CreateTime: d.CreateTime,
		NegativeTTL: z.NegativeTTL, RotateRequested: d.RotateRequested,
	}
	r.Selectors = slices.Clone(d.Selectors)
	for _, k := range d.Keys {
		r.Keys = append(r.Keys, k.Key)
	}
	if shared != nil {
		for _, sel := range shared.Selectors {
			r.Shared = append(r.Shared, sel.Selector)
		}
	}
	return r
}

// Policy is the policy of a domain: the default, changed by its zone, its brand
// and itself, in this order.
func Policy(z keystore.Zone, b keystore.Brand, d keystore.Domain) rotation.Policy {
	return rotation.DefaultPolicy().With(z.Policy).With(b.Policy).With(d.Policy)
}
