package controller

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/dkimzone/dkimzone/internal/evidence"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/mint"
	"github.com/dkimzone/dkimzone/internal/rotation"
)

// subject is all that is stored about a due domain.
type subject struct {
	entry   keystore.DueEntry
	domain  keystore.Domain
	brand   keystore.Brand
	zone    keystore.Zone
	shared  *keystore.Domain // holds the keys that the brand's customers share, if domain is one
	status  keystore.Status
	signers []keystore.Signer
	reports []keystore.Report
}

func (s *subject) view() rotation.Domain { return evidence.Domain(s.domain, s.zone, s.shared) }

func (s *subject) policy() rotation.Policy { return evidence.Policy(s.zone, s.brand, s.domain) }

func (s *subject) evidence() rotation.Evidence {
	return evidence.Of(s.status, s.signers, s.reports)
}

// handle brings one domain as far as it can go now.
func (r *round) handle(ctx context.Context, e keystore.DueEntry) error {
	s, err := r.load(ctx, e)
	if errors.Is(err, keystore.ErrDomainNotFound) {
		return r.Store.DropDue(ctx, r.fence, e)
	}
	if err != nil {
		return err
	}
	now := r.Now()
	policy := s.policy()
	decision := rotation.Next(policy, s.view(), s.evidence(), now)
	if !decision.CheckAt.IsZero() && !decision.CheckAt.After(now) {
		if err := r.check(ctx, s); err != nil {
			return err
		}
		now = r.Now()
		decision = rotation.Next(policy, s.view(), s.evidence(), now)
	}
	if decision.Voluntary {
		at := r.pacer.reserve(s, now)
		if at.After(now) {
			decision.Steps, decision.Due = nil, at
			paced.Inc()
		}
	}
	s.status.Conditions = rotation.MergeConditions(s.status.Conditions, decision.Conditions)
	if len(decision.Steps) == 0 {
		s.status.Due = r.nextLook(decision.Due, policy, now)
		_, err := r.Store.SaveStatus(ctx, s.status, r.fence, e)
		return err
	}
	return r.apply(ctx, s, decision, now)
}

// apply carries out the steps in one transaction. The domain is due again at
// once, for what follows from them.
func (r *round) apply(ctx context.Context, s *subject, decision rotation.Decision, now time.Time) error {
	change, err := r.Mint.Change(ctx, s.domain, decision.Steps, mint.Options{
		Now: now, Actor: Actor, TTL: s.zone.RecordTTL, Disclosure: s.brand.Disclosure.Enabled,
	})
	if err != nil {
		return err
	}
	change.Status, change.Due, change.Fence = &s.status, now, r.fence
	change.Handled = []keystore.DueEntry{s.entry}
	if _, err := r.Store.Apply(ctx, change); err != nil {
		return err
	}
	for _, step := range decision.Steps {
		steps.WithLabelValues(step.Kind.String(), step.Reason).Inc()
		r.Logger.LogAttrs(ctx, slog.LevelInfo, "key changed state", slog.String("brand", s.domain.Brand),
			slog.String("domain", string(s.domain.Name)), slog.String("step", step.Kind.String()),
			slog.String("selector", string(step.Selector)), slog.String("reason", step.Reason))
	}
	return nil
}

// check asks DNS and folds the answers into the status.
func (r *round) check(ctx context.Context, s *subject) error {
	records, err := r.Store.Records(ctx, s.domain)
	if err != nil {
		return err
	}
	status, report, err := evidence.Gather(ctx, r.Prober, evidence.Subject{
		Domain: s.domain, Zone: s.zone, Shared: s.shared, Records: records,
	}, s.status, r.Now())
	if err != nil {
		return err
	}
	for _, a := range report.Aliases {
		findings.WithLabelValues("cname", string(a.Class)).Inc()
	}
	for _, k := range report.Served {
		findings.WithLabelValues("record", k.Finding.String()).Inc()
	}
	s.status = status
	return nil
}

func (r *round) load(ctx context.Context, e keystore.DueEntry) (*subject, error) {
	d, err := r.Store.Domain(ctx, e.Brand, e.Domain)
	if err != nil {
		return nil, err
	}
	s := &subject{entry: e, domain: d}
	if s.brand, s.zone, s.signers, err = r.brands.get(ctx, d.Brand, d.Zone); err != nil {
		return nil, err
	}
	if s.brand.Mode == rotation.ModeBrandShared && d.Kind == rotation.Customer {
		shared, err := r.Store.Domain(ctx, d.Brand, keystore.SharedDomainName(s.brand))
		if err != nil {
			return nil, err
		}
		s.shared = &shared
	}
	if s.status, err = r.Store.Status(ctx, e.Brand, e.Domain); err != nil {
		return nil, err
	}
	if len(s.signers) > 0 {
		s.reports, err = r.Store.Reports(ctx, e.Brand, e.Domain)
	}
	return s, err
}

// nextLook is when a domain with which nothing is to be done now is due. One
// without a time is looked at all the same now and then; none is due sooner than
// the index is read.
func (r *round) nextLook(due time.Time, p rotation.Policy, now time.Time) time.Time {
	if due.IsZero() {
		return now.Add(p.CheckInterval)
	}
	if earliest := now.Add(r.Poll); due.Before(earliest) {
		return earliest
	}
	return due
}

// reindex makes domains due that no index entry names, as an older version or a
// restored backup may have left them. It goes through all domains once a term,
// slowly.
func (r *round) reindex(ctx context.Context) {
	var after keystore.Cursor
	total := 0
	for {
		added, next, more, err := r.Store.Reindex(ctx, r.fence, r.Now(), after, pageSize)
		switch {
		case errors.Is(err, keystore.ErrFenced):
			r.depose()
			return
		case ctx.Err() != nil:
			return
		case err != nil:
			r.Logger.LogAttrs(ctx, slog.LevelDebug, "index not looked through, trying again", slog.Any("error", err))
		default:
			after, total = next, total+added
		}
		if err == nil && !more {
			break
		}
		if !pause(ctx, reindexPause) {
			return
		}
	}
	if total > 0 {
		r.Logger.LogAttrs(ctx, slog.LevelWarn, "domains were missing in the index of what is due", slog.Int("domains", total))
	}
}
