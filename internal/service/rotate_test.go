package service_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/prober"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// asSigner is a call by signer mx, in the form of those of other clients.
func asSigner[Req, Resp any](f *fixture, method func(dkimv1.SignerClient, context.Context, *Req, ...grpc.CallOption) (*Resp, error), req *Req) func(context.Context, dkimv1.KeyManagementClient) error {
	return func(ctx context.Context, _ dkimv1.KeyManagementClient) error {
		_, err := method(f.signer, ctx, req)
		return err
	}
}

func withAccess[Req, Resp any](f *fixture, method func(dkimv1.AccessControlClient, context.Context, *Req, ...grpc.CallOption) (*Resp, error), req *Req) func(context.Context, dkimv1.KeyManagementClient) error {
	return func(ctx context.Context, _ dkimv1.KeyManagementClient) error {
		_, err := method(f.access, ctx, req)
		return err
	}
}

func (f *fixture) get(t testing.TB, name string) *dkimv1.Domain {
	t.Helper()
	return must(f.api.GetDomain(context.Background(), &dkimv1.GetDomainRequest{Name: name}))(t)
}

func statesOf(d *dkimv1.Domain) map[string]dkimv1.KeyState {
	states := make(map[string]dkimv1.KeyState)
	for _, s := range d.GetSelectors() {
		states[s.GetSelector()] = s.GetKeyState()
	}
	return states
}

func TestRotateDomain(t *testing.T) {
	f := newFixture(t)
	d := f.provision(t, spamtrap, "a", "b", "c")
	must(f.api.ProvisionDomain(t.Context(), &dkimv1.ProvisionDomainRequest{
		Name: d.GetName(), Algorithm: rsa2048, Selectors: specs("r1", "r2"),
	}))(t)
	f.publish(t, d.GetName(), "theirs")
	rotating := func() error {
		_, err := f.api.RotateDomain(t.Context(), &dkimv1.RotateDomainRequest{Name: d.GetName()})
		return err
	}

	// Nothing is proven yet.
	unproven := rejection{codes.FailedPrecondition, "STANDBY_NOT_PROVEN", ""}
	f.refused(t, unproven, rotating)
	must(f.api.CheckDomain(t.Context(), &dkimv1.CheckDomainRequest{Name: spamtrap}))(t)
	f.refused(t, unproven, rotating)
	err := rotating()
	violations := 0
	for _, detail := range status.Convert(err).Details() {
		if p, ok := detail.(*errdetails.PreconditionFailure); ok {
			violations = len(p.GetViolations())
			for _, v := range p.GetViolations() {
				if v.GetType() != rotation.ReasonLead || v.GetDescription() == "" || v.GetSubject() == "" {
					t.Errorf("violation %v, want one of %s", v, rotation.ReasonLead)
				}
			}
		}
	}
	if violations == 0 {
		t.Errorf("no PreconditionFailure in %v", err)
	}

	before := len(f.under(schema.RecordPrefix("keys.example.net")))
	got := f.rotate(t, spamtrap)
	states := statesOf(got)
	wantEqual(t, "states of RSA", []dkimv1.KeyState{states["r1"], states["r2"]}, []dkimv1.KeyState{active, prepared})
	wantEqual(t, "states of Ed25519", []dkimv1.KeyState{states["a"], states["b"], states["c"]}, []dkimv1.KeyState{active, prepared, prepared})
	wantEqual(t, "key made elsewhere", states["theirs"], active)
	wantEqual(t, "domain as read", f.get(t, spamtrap), got)
	wantEqual(t, "records", len(f.under(schema.RecordPrefix("keys.example.net"))), before)

	got = f.rotate(t, spamtrap)
	states = statesOf(got)
	wantEqual(t, "states after the second", states, map[string]dkimv1.KeyState{
		"a": retiring, "b": active, "c": prepared, "r1": retiring, "r2": active, "theirs": active,
	})
	f.prove(t, spamtrap)
	f.refused(t, rejection{codes.FailedPrecondition, "NO_STANDBY_KEY", ""}, rotating) // of RSA

	resp := must(f.api.ListDomainEvents(t.Context(), &dkimv1.ListDomainEventsRequest{Parent: spamtrap, PageSize: 4}))(t)
	var history []string
	for _, e := range resp.GetEvents() {
		history = append(history, strings.Join([]string{e.GetActor(), e.GetAction(), e.GetSelector(), e.GetToState().String(), e.GetReason()}, " "))
	}
	wantEqual(t, "history", history, []string{
		"admin/alice ACTIVATE r2 KEY_STATE_ACTIVE REQUESTED", "admin/alice RETIRE r1 KEY_STATE_RETIRING REQUESTED",
		"admin/alice ACTIVATE b KEY_STATE_ACTIVE REQUESTED", "admin/alice RETIRE a KEY_STATE_RETIRING REQUESTED",
	})
	older := must(f.api.ListDomainEvents(t.Context(), &dkimv1.ListDomainEventsRequest{Parent: spamtrap, PageToken: resp.GetNextPageToken()}))(t)
	if n := len(older.GetEvents()); n != 9 || older.GetEvents()[n-1].GetAction() != "CREATE" || older.GetNextPageToken() != "" {
		t.Errorf("%d older events, the first is %v", n, older.GetEvents()[n-1])
	}
}

func TestRotateDomainWhenReady(t *testing.T) {
	f := newFixture(t)
	f.provision(t, spamtrap)
	d := must(f.api.RotateDomain(t.Context(), &dkimv1.RotateDomainRequest{Name: spamtrap, WhenReady: true}))(t)
	asked := timestamppb.New(start.Truncate(time.Microsecond))
	wantEqual(t, "rotation_request_time", d.GetRotationRequestTime(), asked)
	wantEqual(t, "states", statesOf(d), map[string]dkimv1.KeyState{"selector1": prepared, "selector2": prepared})
	f.setTime(start.Add(time.Hour))
	if err := f.unchanged(t, func() error {
		_, err := f.api.RotateDomain(t.Context(), &dkimv1.RotateDomainRequest{Name: spamtrap, WhenReady: true})
		return err
	}); err != nil {
		t.Error(err)
	}
	done := f.rotate(t, spamtrap)
	if done.GetRotationRequestTime() != nil {
		t.Errorf("rotation_request_time %v after the rotation", done.GetRotationRequestTime())
	}
}

func TestCheckDomain(t *testing.T) {
	f := newFixture(t)
	f.provision(t, spamtrap)
	hint := "Add the record selector2._domainkey.spamtrap.dk."
	f.dns.showAlias("selector2._domainkey.spamtrap.dk", prober.AliasReport{
		Finding: rotation.Contradicted, Reason: "MISSING", Hint: hint,
		Servers: []prober.ServerAnswer{{Host: "ns1.customer.example", Addr: "192.0.2.53:53", Rcode: "NXDOMAIN"}},
	})
	resp := must(f.api.CheckDomain(t.Context(), &dkimv1.CheckDomainRequest{Name: spamtrap}))(t)
	at := timestamppb.New(start.Truncate(time.Second))
	good, bad := &dkimv1.Check{Finding: dkimv1.Check_FINDING_PROVEN, CheckTime: at, ProvenSince: at}, &dkimv1.Check{Finding: dkimv1.Check_FINDING_CONTRADICTED, Reason: "MISSING", CheckTime: at}
	var got []string
	for _, r := range resp.GetRecords() {
		got = append(got, strings.Join([]string{r.GetType().String(), r.GetOwnerName(), r.GetCheck().GetFinding().String(), r.GetHint()}, " "))
	}
	wantEqual(t, "records", got, []string{
		"RECORD_TYPE_CNAME selector1._domainkey.spamtrap.dk FINDING_PROVEN ",
		"RECORD_TYPE_CNAME selector2._domainkey.spamtrap.dk FINDING_CONTRADICTED " + hint,
		"RECORD_TYPE_TXT selector1-spamtrap-dk._domainkey.keys.example.net FINDING_PROVEN ",
		"RECORD_TYPE_TXT selector2-spamtrap-dk._domainkey.keys.example.net FINDING_PROVEN ",
	})
	wantEqual(t, "server", resp.GetRecords()[1].GetServers(), []*dkimv1.ServerAnswer{{Host: "ns1.customer.example", Address: "192.0.2.53:53", Rcode: "NXDOMAIN"}})

	d := f.get(t, spamtrap)
	wantEqual(t, "check of the good CNAME", d.GetSelectors()[0].GetCnameCheck(), good)
	wantEqual(t, "check of the bad CNAME", d.GetSelectors()[1].GetCnameCheck(), bad)
	wantEqual(t, "check of the record", d.GetSelectors()[1].GetRecordCheck(), good)
	if len(d.GetConditions()) != 2 || d.GetConditions()[0].GetMessage() == "" || d.GetEffectiveRotationPolicy().GetInterval().AsDuration() != 90*24*time.Hour {
		t.Errorf("conditions %v, policy %v", d.GetConditions(), d.GetEffectiveRotationPolicy())
	}
	list := must(f.api.ListDomains(t.Context(), &dkimv1.ListDomainsRequest{Parent: "brands/acme"}))(t)
	wantEqual(t, "domain in a list", list.GetDomains(), []*dkimv1.Domain{d})

	// Deleted, the CNAME that is there is one to remove.
	gone := must(f.api.DeleteDomain(t.Context(), &dkimv1.DeleteDomainRequest{Name: spamtrap}))(t)
	wantEqual(t, "dangling CNAMEs", gone.GetDanglingCnames(), []string{"selector1._domainkey.spamtrap.dk"})
	events := must(f.api.ListDomainEvents(t.Context(), &dkimv1.ListDomainEventsRequest{Parent: spamtrap}))(t)
	wantEqual(t, "last event of a deleted domain", events.GetEvents()[0].GetAction(), "DELETE")
}

func TestUpdateDomain(t *testing.T) {
	f := newFixture(t)
	f.provision(t, spamtrap)
	ctx := t.Context()
	hours := func(n int) *durationpb.Duration { return durationpb.New(time.Duration(n) * time.Hour) }
	freeze := []*dkimv1.FreezeWindow{{StartTime: timestamppb.New(start.Truncate(time.Second)), EndTime: timestamppb.New(start.Add(time.Hour).Truncate(time.Second))}}
	update := func(p *dkimv1.RotationPolicy, paths ...string) *dkimv1.Domain {
		t.Helper()
		return must(f.api.UpdateDomain(ctx, &dkimv1.UpdateDomainRequest{Domain: &dkimv1.Domain{Name: spamtrap, RotationPolicy: p}, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths}}))(t)
	}
	whole := &dkimv1.RotationPolicy{
		Interval: hours(24), Drain: hours(1), Gap: hours(2), PublishLead: hours(3), CheckInterval: hours(4),
		JitterPercent: proto.Int32(0), Paused: new(true), MaxSwitchesPerHour: proto.Int32(7), FreezeWindows: freeze,
	}
	wantEqual(t, "policy", update(whole).GetRotationPolicy(), whole)
	d := update(&dkimv1.RotationPolicy{Paused: new(false)}, "rotation_policy.paused", "rotation_policy.gap", "rotation_policy.freeze_windows")
	want := proto.CloneOf(whole)
	want.Paused, want.Gap, want.FreezeWindows = new(false), nil, nil
	wantEqual(t, "policy after an update of some fields", d.GetRotationPolicy(), want)
	wantEqual(t, "policy as read", f.get(t, spamtrap).GetRotationPolicy(), want)

	// Zone and brand say what the domain does not.
	must(f.api.UpdateZone(ctx, &dkimv1.UpdateZoneRequest{Zone: &dkimv1.Zone{Name: "zones/keys.example.net", RotationPolicy: &dkimv1.RotationPolicy{Gap: hours(30), Drain: hours(31)}}}))(t)
	b := must(f.api.UpdateBrand(ctx, &dkimv1.UpdateBrandRequest{Brand: &dkimv1.Brand{Name: "brands/acme", RotationPolicy: &dkimv1.RotationPolicy{Gap: hours(40)}}}))(t)
	wantEqual(t, "brand's policy", b.GetRotationPolicy(), &dkimv1.RotationPolicy{Gap: hours(40)})
	p := update(nil, "rotation_policy.drain").GetEffectiveRotationPolicy()
	wantEqual(t, "gap and drain that hold", []*durationpb.Duration{p.GetGap(), p.GetDrain()}, []*durationpb.Duration{hours(40), hours(31)})
	if back := update(nil, "rotation_policy"); back.GetRotationPolicy() != nil {
		t.Errorf("policy %v after it was taken back", back.GetRotationPolicy())
	}

	// Another algorithm.
	changing := func(from, to dkimv1.KeyAlgorithm) *dkimv1.UpdateDomainRequest {
		return &dkimv1.UpdateDomainRequest{Domain: &dkimv1.Domain{Name: spamtrap}, AlgorithmChanges: []*dkimv1.AlgorithmChange{{From: from, To: to}}}
	}
	d = must(f.api.UpdateDomain(ctx, changing(ed25519, rsa3072)))(t)
	for _, s := range d.GetSelectors() {
		if s.GetAlgorithm() != rsa3072 || s.GetKeyState() != prepared {
			t.Errorf("selector %v", s)
		}
	}
	must(f.api.ProvisionDomain(ctx, &dkimv1.ProvisionDomainRequest{Name: spamtrap, Algorithm: ed25519, Selectors: specs("e1", "e2")}))(t)
	policy := func(p *dkimv1.RotationPolicy) *dkimv1.UpdateDomainRequest {
		return &dkimv1.UpdateDomainRequest{Domain: &dkimv1.Domain{Name: spamtrap, RotationPolicy: p}}
	}
	stale := policy(&dkimv1.RotationPolicy{Paused: new(true)})
	stale.Domain.Etag = "1"
	unknown := policy(&dkimv1.RotationPolicy{Paused: new(true)})
	unknown.Domain.Name = acme + "no.example"
	type api = dkimv1.KeyManagementClient
	f.refuse(t, []refusal{
		{"unused algorithm", rejection{codes.FailedPrecondition, "ALGORITHM_NOT_USED", ""}, calling(api.UpdateDomain, changing(rsa2048, rsa4096))},
		{"algorithm of others", rejection{codes.FailedPrecondition, "ALGORITHM_IN_USE", ""}, calling(api.UpdateDomain, changing(rsa3072, ed25519))},
		{"no new algorithm", badArgument("INVALID_ALGORITHM", "algorithm_changes[0].to"), calling(api.UpdateDomain, changing(rsa3072, 0))},
		{"short interval", badArgument("INVALID_ROTATION_POLICY", "domain.rotation_policy.interval"), calling(api.UpdateDomain, policy(&dkimv1.RotationPolicy{Interval: durationpb.New(time.Second)}))},
		{"negative lead", badArgument("INVALID_ROTATION_POLICY", "domain.rotation_policy.publish_lead"), calling(api.UpdateDomain, policy(&dkimv1.RotationPolicy{PublishLead: hours(-1)}))},
		{"much jitter", badArgument("INVALID_ROTATION_POLICY", "domain.rotation_policy.jitter_percent"), calling(api.UpdateDomain, policy(&dkimv1.RotationPolicy{JitterPercent: proto.Int32(51)}))},
		{"negative pace", badArgument("INVALID_ROTATION_POLICY", "domain.rotation_policy.max_switches_per_hour"), calling(api.UpdateDomain, policy(&dkimv1.RotationPolicy{MaxSwitchesPerHour: proto.Int32(-1)}))},
		{"freeze without an end", badArgument("INVALID_ROTATION_POLICY", "domain.rotation_policy"), calling(api.UpdateDomain, policy(&dkimv1.RotationPolicy{FreezeWindows: []*dkimv1.FreezeWindow{{StartTime: freeze[0].GetStartTime()}}}))},
		{"freeze that ends first", badArgument("INVALID_ROTATION_POLICY", "domain.rotation_policy.freeze_windows"), calling(api.UpdateDomain, policy(&dkimv1.RotationPolicy{FreezeWindows: []*dkimv1.FreezeWindow{{StartTime: freeze[0].GetEndTime(), EndTime: freeze[0].GetStartTime()}}}))},
		{"unknown field", badArgument("INVALID_FIELD_MASK", "update_mask"), calling(api.UpdateDomain, &dkimv1.UpdateDomainRequest{Domain: &dkimv1.Domain{Name: spamtrap}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"selectors"}}})},
		{"stale etag", rejection{codes.Aborted, "ETAG_MISMATCH", ""}, calling(api.UpdateDomain, stale)},
		{"unknown domain", rejection{codes.NotFound, "DOMAIN_NOT_FOUND", ""}, calling(api.UpdateDomain, unknown)},
		{"brand's policy", badArgument("INVALID_ROTATION_POLICY", "brand.rotation_policy.gap"), calling(api.UpdateBrand, &dkimv1.UpdateBrandRequest{Brand: &dkimv1.Brand{Name: "brands/acme", RotationPolicy: &dkimv1.RotationPolicy{Gap: durationpb.New(0)}}})},
		{"zone's policy", badArgument("INVALID_ROTATION_POLICY", "zone.rotation_policy.gap"), calling(api.UpdateZone, &dkimv1.UpdateZoneRequest{Zone: &dkimv1.Zone{Name: "zones/keys.example.net", RotationPolicy: &dkimv1.RotationPolicy{Gap: durationpb.New(0)}}})},
	})
}

func TestPlanRotation(t *testing.T) {
	f := newFixture(t)
	f.provision(t, acme+"a-new.example")
	f.provision(t, acme+"b.example")
	f.rotate(t, acme+"b.example")
	f.prove(t, acme+"b.example")
	f.provision(t, acme+"c.example")
	f.rotate(t, acme+"c.example")
	f.prove(t, acme+"c.example")
	must(f.api.CheckDomain(t.Context(), &dkimv1.CheckDomainRequest{Name: acme + "b.example"}))(t)
	f.publish(t, acme+"theirs.example", "s")
	must(f.api.UpdateBrand(t.Context(), &dkimv1.UpdateBrandRequest{Brand: &dkimv1.Brand{Name: "brands/acme", RotationPolicy: &dkimv1.RotationPolicy{MaxSwitchesPerHour: proto.Int32(2)}}}))(t)
	must(f.api.DeleteBrand(t.Context(), &dkimv1.DeleteBrandRequest{Name: "brands/other"}))(t)
	plan := func(now bool) (rotations map[string]*dkimv1.PlannedRotation, sums *dkimv1.PlanSummary) {
		rotations = make(map[string]*dkimv1.PlannedRotation)
		err := f.unchanged(t, func() error {
			stream, err := f.api.PlanRotation(t.Context(), &dkimv1.PlanRotationRequest{Parent: "brands/acme", Now: now})
			for err == nil {
				var resp *dkimv1.PlanRotationResponse
				if resp, err = stream.Recv(); err == nil {
					sums = resp.GetSummary()
				}
				for _, r := range resp.GetRotations() {
					rotations[strings.TrimPrefix(r.GetDomain(), acme)] = r
				}
			}
			return err
		})
		if !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		return rotations, sums
	}
	now := (*f.now.Load())()
	rotations, sums := plan(true)
	if len(rotations["a-new.example"].GetBlockedBy()) == 0 || rotations["a-new.example"].GetBlockedBy()[0].GetMessage() == "" {
		t.Errorf("%v, want it to be blocked", rotations["a-new.example"])
	}
	if r := rotations["theirs.example"]; r.GetRotateTime() != nil || r.GetBlockedBy() != nil {
		t.Errorf("%v, want nothing to rotate", r)
	}
	first, second := rotations["b.example"].GetRotateTime().AsTime(), rotations["c.example"].GetRotateTime().AsTime()
	if first.Before(now.Truncate(time.Microsecond)) || first.After(now.Add(time.Minute)) || second.Sub(first) != 30*time.Minute {
		t.Errorf("rotations at %v and %v, want them now and half an hour later", first, second)
	}
	wantEqual(t, "domains, ready, blocked, without keys", []int64{sums.GetDomains(), sums.GetReady(), sums.GetBlocked(), sums.GetWithoutKeys()}, []int64{5, 2, 2, 1})
	wantEqual(t, "last rotation", sums.GetLastRotationTime().AsTime(), second)

	rotations, _ = plan(false)
	if due := rotations["b.example"].GetRotateTime().AsTime().Sub(now); due < 70*24*time.Hour || due > 110*24*time.Hour {
		t.Errorf("by itself it rotates in %v, want about 90 days", due)
	}
	f.refuse(t, []refusal{{"plan of nobody", rejection{codes.NotFound, "BRAND_NOT_FOUND", ""}, func(ctx context.Context, api dkimv1.KeyManagementClient) error {
		stream, err := api.PlanRotation(ctx, &dkimv1.PlanRotationRequest{Parent: "brands/nobody"})
		if err != nil {
			return err
		}
		_, err = stream.Recv()
		return err
	}}})
}
