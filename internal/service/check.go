package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/evidence"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/prober"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// checkTime bounds what one call asks of DNS.
const checkTime = 20 * time.Second

// CheckDomain implements dkim.v1.KeyManagement.
func (s *Service) CheckDomain(ctx context.Context, req *dkimv1.CheckDomainRequest) (*dkimv1.CheckDomainResponse, error) {
	if s.prober == nil {
		return nil, fail(codes.FailedPrecondition, "CHECKS_DISABLED", "this server does not look at DNS")
	}
	for range conflictRetries {
		d, err := s.domain(ctx, "name", req.GetName())
		if err != nil {
			return nil, err
		}
		p, records, err := s.check(ctx, d)
		if errors.Is(err, keystore.ErrConflict) {
			continue // somebody else looked at the same time, or changed the domain
		}
		if err != nil {
			return nil, err
		}
		resp := &dkimv1.CheckDomainResponse{Records: records}
		if resp.Domain, err = s.message(p); err != nil {
			return nil, err
		}
		return resp, nil
	}
	return nil, storeFailure(keystore.ErrConflict)
}

// check looks at DNS and keeps what it saw.
func (s *Service) check(ctx context.Context, d keystore.Domain) (picture, []*dkimv1.RecordCheck, error) {
	p, err := s.look(ctx, d)
	if err != nil {
		return picture{}, nil, err
	}
	subject := evidence.Subject{Domain: d, Zone: p.zone, Shared: p.sharedBy(d)}
	if subject.Records, err = s.store.Records(ctx, d); err != nil {
		if errors.Is(err, keystore.ErrConflict) {
			return picture{}, nil, err
		}
		return picture{}, nil, storeFailure(err)
	}
	now := s.now()
	look, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	status, report, err := evidence.Gather(look, s.prober, subject, p.status, now)
	if err != nil {
		return picture{}, nil, gatherFailure(ctx, err)
	}
	p.evidence.Aliases, p.evidence.Served = status.Aliases, status.Served
	status.Conditions = rotation.MergeConditions(p.status.Conditions, rotation.Next(p.policy(d), p.view(), p.evidence, now).Conditions)
	status.Due = now // what was seen may let something happen
	if p.status, err = s.store.SaveStatus(ctx, status, nil); err != nil && !errors.Is(err, keystore.ErrConflict) {
		err = storeFailure(err)
	}
	return p, recordChecks(p, report, subject.Records), err
}

// gatherFailure turns the end of a look at DNS into a rejection.
func gatherFailure(ctx context.Context, err error) error {
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return fail(codes.DeadlineExceeded, "CHECK_SLOW", fmt.Sprintf("name servers did not answer within %s; try again", checkTime))
	}
	return err
}

func recordChecks(p picture, report evidence.Report, records map[dnsname.Selector]schema.PublicRecord) []*dkimv1.RecordCheck {
	var all []*dkimv1.RecordCheck
	for _, a := range report.Aliases {
		all = append(all, &dkimv1.RecordCheck{
			Selector: string(a.Selector), Type: dkimv1.RecordCheck_RECORD_TYPE_CNAME, OwnerName: a.Owner, Expected: a.Target,
			Found: a.Found, Check: checkMessage(p.status.Aliases[a.Selector]), Hint: a.Hint, Servers: serverAnswers(a.Servers),
		})
	}
	for _, k := range report.Served {
		record := records[k.Selector]
		c := &dkimv1.RecordCheck{
			Selector: string(k.Selector), Type: dkimv1.RecordCheck_RECORD_TYPE_TXT, OwnerName: k.Owner, Expected: record.Record().String(),
			Check: checkMessage(p.status.Served[k.KeyID]), Servers: serverAnswers(k.Servers),
		}
		if k.Finding != rotation.Proven {
			c.Hint = servedHint(k.ServedReport)
			for _, server := range k.Servers {
				if server.Got != "" && !slices.Contains(c.GetFound(), server.Got) {
					c.Found = append(c.Found, server.Got)
				}
			}
		}
		all = append(all, c)
	}
	return all
}

// servedHint says how to mend that the zone's name servers do not serve a record.
func servedHint(r prober.ServedReport) string {
	var hosts []string
	for _, s := range r.Servers {
		if host := cmp.Or(s.Host, s.Addr); s.Err != "" && !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	if len(hosts) == 0 {
		return "The zone's name servers could not be asked: look at their addresses in the zone, and at the way there."
	}
	return fmt.Sprintf("Look at %s: a name server that is down, cut off from etcd or not ours does not have the record.", strings.Join(hosts, " and "))
}

func serverAnswers(servers []prober.ServerAnswer) []*dkimv1.ServerAnswer {
	var all []*dkimv1.ServerAnswer
	for _, a := range servers {
		all = append(all, &dkimv1.ServerAnswer{Host: a.Host, Address: a.Addr, Rcode: a.Rcode, Answer: a.Got, Error: a.Err})
	}
	return all
}
