package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/evidence"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/mint"
	"github.com/dkimzone/dkimzone/internal/rotation"
)

// RotateDomain implements dkim.v1.KeyManagement.
func (s *Service) RotateDomain(ctx context.Context, req *dkimv1.RotateDomainRequest) (*dkimv1.Domain, error) {
	n, err := parseExistingDomainName("name", req.GetName())
	if err != nil {
		return nil, err
	}
	d, err := s.changeKnown(ctx, n, req.GetEtag(), func(d keystore.Domain) (*keystore.Change, error) {
		if req.GetWhenReady() {
			return s.requestRotation(ctx, d)
		}
		p, err := s.look(ctx, d)
		if err != nil {
			return nil, err
		}
		steps, err := rotation.Request(p.policy(d), p.view(), p.evidence, s.now())
		if err != nil {
			return nil, gateFailure(d, err)
		}
		change, err := s.mint.Change(ctx, d, steps, mint.Options{Now: s.now(), Actor: actor(ctx)})
		return &change, err
	})
	if err != nil {
		return nil, err
	}
	return s.describe(ctx, d)
}

// requestRotation leaves it to the controller to rotate.
func (s *Service) requestRotation(ctx context.Context, d keystore.Domain) (*keystore.Change, error) {
	if len(d.Selectors) == 0 {
		return nil, nothingToRotate(d)
	}
	if pending(d) {
		return nil, nil // asked for already
	}
	d.RotateRequested = s.now()
	return &keystore.Change{Domain: d, Actor: actor(ctx), Events: []keystore.Event{s.event(ctx, "REQUEST_ROTATION")}}, nil
}

// pending reports whether a rotation was asked for that has not been carried out
// in all algorithms.
func pending(d keystore.Domain) bool {
	if d.RotateRequested.IsZero() {
		return false
	}
	for _, s := range d.Selectors {
		if !slices.ContainsFunc(d.Keys, func(k keystore.Key) bool {
			in := d.Selector(k.Selector)
			return in != nil && in.Algorithm == s.Algorithm && k.State == rotation.Active && !k.ActivateTime.Before(d.RotateRequested)
		}) {
			return true
		}
	}
	return false
}

func nothingToRotate(d keystore.Domain) error {
	return fail(codes.FailedPrecondition, "NO_STANDBY_KEY", fmt.Sprintf("%s has no keys that the service rotates; provision it first", d.Name))
}

// gateFailure turns the refusal of a rotation into a rejection.
func gateFailure(d keystore.Domain, err error) error {
	if errors.Is(err, rotation.ErrNoGroups) {
		return nothingToRotate(d)
	}
	gate, ok := errors.AsType[*rotation.GateError](err)
	if !ok {
		return err
	}
	reason := "STANDBY_NOT_PROVEN"
	var texts []string
	failed := &errdetails.PreconditionFailure{}
	for _, c := range gate.Conditions {
		if !standsBy(d, c.Group) {
			reason = "NO_STANDBY_KEY"
		}
		texts = append(texts, c.Message)
		failed.Violations = append(failed.Violations, &errdetails.PreconditionFailure_Violation{
			Type: c.Reason, Subject: c.Group.String(), Description: c.Message,
		})
	}
	return failWith(codes.FailedPrecondition, reason, fmt.Sprintf("%s cannot rotate now: %s", d.Name, strings.Join(texts, "; ")), failed)
}

// standsBy reports whether a selector of an algorithm holds a PREPARED key.
func standsBy(d keystore.Domain, a keypair.Algorithm) bool {
	return slices.ContainsFunc(d.Keys, func(k keystore.Key) bool {
		in := d.Selector(k.Selector)
		return in != nil && in.Algorithm == a && k.State == rotation.Prepared
	})
}

// planPage is how many domains a plan reads, and answers for, at a time.
const planPage = 500

// planner makes the plan of a brand.
type planner struct {
	place
	signers []keystore.Signer
	asked   bool // as if each rotation were asked for now
	now     time.Time
	pace    time.Duration // between rotations; 0: none
	next    time.Time     // the earliest turn of the next one, with a pace
	sums    *dkimv1.PlanSummary
}

// PlanRotation implements dkim.v1.KeyManagement.
func (s *Service) PlanRotation(req *dkimv1.PlanRotationRequest, stream grpc.ServerStreamingServer[dkimv1.PlanRotationResponse]) error {
	ctx := stream.Context()
	brand, err := parseBrandName("parent", req.GetParent())
	if err != nil {
		return err
	}
	p := planner{asked: req.GetNow(), now: s.now(), sums: &dkimv1.PlanSummary{BlockedByReason: make(map[string]int64)}}
	p.next = p.now
	if p.place, err = s.place(ctx, brand); err != nil {
		return err
	}
	if p.signers, err = s.store.Signers(ctx, brand); err != nil {
		return storeFailure(err)
	}
	if most := p.most(); most > 0 && p.asked {
		p.pace = time.Hour / time.Duration(most)
	}
	var after keystore.Cursor
	for {
		domains, more, err := s.store.Domains(ctx, brand, after, planPage)
		if err != nil {
			return storeFailure(err)
		}
		if len(domains) > 0 {
			rotations, err := s.planPage(ctx, &p, domains)
			if err != nil {
				return err
			}
			if err := stream.Send(&dkimv1.PlanRotationResponse{Rotations: rotations}); err != nil {
				return err
			}
			after = keystore.Cursor{Brand: brand, Domain: domains[len(domains)-1].Name}
		}
		if !more {
			return stream.Send(&dkimv1.PlanRotationResponse{Summary: p.sums})
		}
	}
}

// most is how many rotations an hour zone and brand allow; 0 is any number.
func (p *planner) most() int {
	most := 0
	for _, o := range []rotation.Override{p.zone.Policy, p.brand.Policy} {
		if o.MaxPerHour != nil && *o.MaxPerHour > 0 && (most == 0 || *o.MaxPerHour < most) {
			most = *o.MaxPerHour
		}
	}
	return most
}

func (s *Service) planPage(ctx context.Context, p *planner, domains []keystore.Domain) ([]*dkimv1.PlannedRotation, error) {
	names := make([]dnsname.Domain, len(domains))
	for i, d := range domains {
		names[i] = d.Name
	}
	statuses, err := s.store.StatusesOf(ctx, p.brand.Name, names)
	if err != nil {
		return nil, storeFailure(err)
	}
	rotations := make([]*dkimv1.PlannedRotation, len(domains))
	for i, d := range domains {
		var reports []keystore.Report
		if len(p.signers) > 0 {
			if reports, err = s.store.Reports(ctx, d.Brand, d.Name); err != nil {
				return nil, storeFailure(err)
			}
		}
		rotations[i] = p.plan(d, evidence.Of(statuses[i], p.signers, reports))
	}
	return rotations, nil
}

func (p *planner) plan(d keystore.Domain, e rotation.Evidence) *dkimv1.PlannedRotation {
	m := &dkimv1.PlannedRotation{Domain: domainName{d.Brand, d.Name}.String()}
	p.sums.Domains++
	if len(d.Selectors) == 0 {
		p.sums.WithoutKeys++
		return m
	}
	if p.asked && !pending(d) {
		d.RotateRequested = p.now
	}
	at, blocked := rotation.Forecast(p.policy(d), p.view(d), e, p.now)
	seen := make(map[string]bool)
	for _, c := range blocked {
		m.BlockedBy = append(m.BlockedBy, conditionMessage(c))
		if !seen[c.Reason] {
			seen[c.Reason] = true
			p.sums.BlockedByReason[c.Reason]++
		}
	}
	if len(blocked) > 0 {
		p.sums.Blocked++
		m.RotateTime = timestamp(at)
		return m
	}
	p.sums.Ready++
	if p.pace > 0 && !at.IsZero() && !at.After(p.next) { // it waits for its turn
		at = p.next
		p.next = at.Add(p.pace)
	}
	m.RotateTime = timestamp(at)
	p.sums.FirstRotationTime = cmp.Or(p.sums.FirstRotationTime, m.GetRotateTime())
	if !at.IsZero() {
		if at.Before(p.sums.GetFirstRotationTime().AsTime()) {
			p.sums.FirstRotationTime = m.GetRotateTime()
		}
		if p.sums.GetLastRotationTime() == nil || at.After(p.sums.GetLastRotationTime().AsTime()) {
			p.sums.LastRotationTime = m.GetRotateTime()
		}
	}
	return m
}
