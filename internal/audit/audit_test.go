package audit

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/auditlog"
	"github.com/dkimzone/dkimzone/internal/authn"
	"github.com/dkimzone/dkimzone/internal/refusal"
)

var (
	now     = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	discard = slog.New(slog.DiscardHandler)
	denied  = status.Error(codes.PermissionDenied, "no")
)

func clock() time.Time { return now }

// sink keeps entries. It fails while err is set.
type sink struct {
	mu      sync.Mutex
	entries []auditlog.Entry
	noted   int
	err     error
}

func (s *sink) Record(_ context.Context, e auditlog.Entry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries = append(s.entries, e)
	return s.err
}

func (s *sink) Note(e auditlog.Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries = append(s.entries, e)
	s.noted++
}

func (s *sink) Ready() error { return s.err }

func (s *sink) Head() auditlog.Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	return auditlog.Position{Chain: "aaaaaaaa", Seq: uint64(len(s.entries))}
}

// from is the context of a call of alice, an admin, or of somebody unknown.
func from(known bool) context.Context {
	ctx := peer.NewContext(context.Background(), &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 5}})
	if !known {
		return ctx
	}
	return authn.NewContext(ctx, authn.Caller{
		Identity: authn.Identity{Role: authn.Admin, Name: "alice"}, Method: authn.Token, CredentialID: "t1",
		Addr: netip.MustParseAddr("192.0.2.7"), RequestID: "r-1",
	})
}

var alice = auditlog.Who{Role: "admin", Name: "alice", Method: "token", Credential: "t1", Address: "192.0.2.7"}

// do makes a call that ends with resp and err, and does what inside says.
func do(t testing.TB, a *Auditor, method string, req, resp proto.Message, err error, inside ...func(context.Context)) (any, error) {
	t.Helper()
	return a.Unary(from(err == nil || status.Code(err) != codes.Unauthenticated), req, &grpc.UnaryServerInfo{FullMethod: method}, func(ctx context.Context, _ any) (any, error) {
		for _, f := range inside {
			f(ctx)
		}
		if err != nil {
			return nil, err
		}
		return resp, nil
	})
}

// filled is a message with a text in every field that takes one.
func filled(t testing.TB, d protoreflect.MessageDescriptor, text string) proto.Message {
	t.Helper()
	mt, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		t.Fatal(err)
	}
	m := mt.New()
	fill(m, text, 4)
	return m.Interface()
}

func fill(m protoreflect.Message, text string, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		var v protoreflect.Value
		switch {
		case fd.IsMap():
			continue
		case fd.Kind() == protoreflect.StringKind:
			v = protoreflect.ValueOfString(text)
		case fd.Kind() == protoreflect.BytesKind:
			v = protoreflect.ValueOfBytes([]byte(text))
		case fd.Kind() == protoreflect.MessageKind && depth > 0:
			if fd.IsList() {
				v = m.NewField(fd).List().NewElement()
			} else {
				v = m.NewField(fd)
			}
			fill(v.Message(), text, depth-1)
		default:
			continue
		}
		if fd.IsList() {
			m.Mutable(fd).List().Append(v)
		} else {
			m.Set(fd, v)
		}
	}
}

const (
	provision   = keyManagement + "ProvisionDomain"
	getDomain   = keyManagement + "GetDomain"
	updateBrand = keyManagement + "UpdateBrand"
	createZone  = keyManagement + "CreateZone"
)

func rejection(code codes.Code, why string) error {
	st, err := status.New(code, "no").WithDetails(&errdetails.ErrorInfo{Reason: why, Domain: "dkimzone"})
	if err != nil {
		panic(err)
	}
	return st.Err()
}

func TestUnary(t *testing.T) {
	step := auditlog.Step{Action: "PREPARE", Resource: "brands/acme/domains/spamtrap.dk/keys/k", To: "PREPARED"}
	request := &dkimv1.ProvisionDomainRequest{Name: "brands/acme/domains/spamtrap.dk", Algorithm: dkimv1.KeyAlgorithm_KEY_ALGORITHM_ED25519}
	entry := auditlog.Entry{
		Time: now, Who: alice, Request: "r-1", Call: provision[1:], Resource: "brands/acme/domains/spamtrap.dk", Outcome: "OK", Revision: 9,
		Asked: map[string]string{"algorithm": "KEY_ALGORITHM_ED25519"},
	}
	with := func(change func(*auditlog.Entry)) []auditlog.Entry {
		e := entry
		change(&e)
		return []auditlog.Entry{e}
	}
	empty := map[string]string{}
	for _, tt := range []struct {
		name, method string
		req, resp    proto.Message
		err          error
		inside       func(a *Auditor) func(context.Context)
		want         []auditlog.Entry
		noted        int
	}{
		{
			name: "a change", method: provision, req: request, resp: &dkimv1.Domain{Revision: 8},
			inside: func(a *Auditor) func(context.Context) {
				return func(ctx context.Context) {
					a.Changed(ctx, "admin/alice", "brands/acme/domains/spamtrap.dk", 9, nil, []auditlog.Step{step})
				}
			},
			want: with(func(e *auditlog.Entry) { e.Steps = []auditlog.Step{step} }),
		},
		{
			name: "nothing to change", method: provision, req: request, resp: &dkimv1.Domain{Revision: 9},
			want: with(func(*auditlog.Entry) {}),
		},
		{
			name: "refused for what it asks", method: provision, req: request, err: rejection(codes.NotFound, "BRAND_NOT_FOUND"),
			want: with(func(e *auditlog.Entry) { e.Outcome, e.Reason, e.Revision = "NOT_FOUND", "BRAND_NOT_FOUND", 0 }),
		},
		{
			name: "denied", method: provision, req: request, err: rejection(codes.PermissionDenied, "PERMISSION_DENIED"),
			want: with(func(e *auditlog.Entry) { e.Outcome, e.Reason, e.Revision = "PERMISSION_DENIED", "PERMISSION_DENIED", 0 }), noted: 1,
		},
		{
			name: "of nobody", method: provision, req: request, err: rejection(codes.Unauthenticated, "UNAUTHENTICATED"),
			want: with(func(e *auditlog.Entry) {
				e.Outcome, e.Reason, e.Revision = "UNAUTHENTICATED", "UNAUTHENTICATED", 0
				e.Who, e.Request = auditlog.Who{Address: "192.0.2.1"}, ""
			}), noted: 1,
		},
		{name: "a read", method: getDomain, req: &dkimv1.GetDomainRequest{Name: "brands/acme/domains/spamtrap.dk"}, resp: &dkimv1.Domain{}},
		{name: "a read of nothing", method: getDomain, req: &dkimv1.GetDomainRequest{Name: "x"}, err: rejection(codes.NotFound, "DOMAIN_NOT_FOUND")},
		{
			name: "a read that is denied", method: getDomain, req: &dkimv1.GetDomainRequest{Name: "brands/acme/domains/spamtrap.dk"},
			err: rejection(codes.PermissionDenied, "PERMISSION_DENIED"), noted: 1,
			want: with(func(e *auditlog.Entry) {
				e.Call, e.Outcome, e.Reason, e.Revision, e.Asked = getDomain[1:], "PERMISSION_DENIED", "PERMISSION_DENIED", 0, empty
			}),
		},
		{
			name: "a read that changes something all the same", method: getDomain, req: &dkimv1.GetDomainRequest{Name: "brands/acme/domains/spamtrap.dk"},
			resp: &dkimv1.Domain{},
			inside: func(a *Auditor) func(context.Context) {
				return func(ctx context.Context) { a.Changed(ctx, "admin/alice", "x", 9, nil, []auditlog.Step{step}) }
			},
			want: with(func(e *auditlog.Entry) { e.Call, e.Asked, e.Steps = getDomain[1:], empty, []auditlog.Step{step} }),
		},
		{
			name: "settings", method: updateBrand, req: &dkimv1.UpdateBrandRequest{Brand: &dkimv1.Brand{Name: "brands/acme"}},
			resp: &dkimv1.Brand{
				Zone: "zones/keys.example.net", SigningMode: dkimv1.SigningMode_SIGNING_MODE_BRAND_SHARED, DisplayName: "secret",
				Disclosure: &dkimv1.KeyDisclosure{Enabled: true, Lag: durationpb.New(240 * time.Hour)},
			},
			inside: func(*Auditor) func(context.Context) {
				return func(ctx context.Context) {
					Before(ctx, &dkimv1.Brand{Zone: "zones/keys.example.net", SigningMode: dkimv1.SigningMode_SIGNING_MODE_PER_DOMAIN})
				}
			},
			want: with(func(e *auditlog.Entry) {
				e.Call, e.Resource, e.Revision, e.Asked = updateBrand[1:], "brands/acme", 0, empty
				e.Before = map[string]string{"signing_mode": "SIGNING_MODE_PER_DOMAIN"}
				e.After = map[string]string{"signing_mode": "SIGNING_MODE_BRAND_SHARED", "disclosure": "{enabled=true lag=240h0m0s}"}
			}),
		},
		{
			name: "a deletion", method: keyManagement + "DeleteBrand", req: &dkimv1.DeleteBrandRequest{Name: "brands/acme"}, resp: &emptypb.Empty{},
			inside: func(*Auditor) func(context.Context) {
				return func(ctx context.Context) { Before(ctx, &dkimv1.Brand{Zone: "zones/keys.example.net"}) }
			},
			want: with(func(e *auditlog.Entry) {
				e.Call, e.Resource, e.Revision, e.Asked = "dkim.v1.KeyManagement/DeleteBrand", "brands/acme", 0, empty
				e.Before, e.After = map[string]string{"zone": "zones/keys.example.net"}, empty
			}),
		},
		{
			name: "lists", method: createZone, req: &dkimv1.CreateZoneRequest{ZoneId: "keys.example.net"},
			resp: &dkimv1.Zone{Revision: 9, NameServers: []*dkimv1.NameServer{{Host: "ns1.example", Addresses: []string{"192.0.2.1", "2001:db8::1"}}, {Host: "ns2.example"}}},
			want: with(func(e *auditlog.Entry) {
				e.Call, e.Resource, e.Asked = createZone[1:], "zones/keys.example.net", empty
				e.After = map[string]string{"name_servers": "{host=ns1.example addresses=192.0.2.1, 2001:db8::1}, {host=ns2.example}"}
			}),
		},
		{
			name: "a batch", method: keyManagement + "BatchPublishKeys", req: &dkimv1.BatchPublishKeysRequest{Parent: "brands/acme"},
			resp: &dkimv1.BatchPublishKeysResponse{Results: []*dkimv1.BatchPublishKeysResponse_Result{
				{Key: "a"}, {Error: status.Convert(rejection(codes.AlreadyExists, "KEY_PUBLISHED")).Proto()}, {Key: "b"},
			}},
			want: with(func(e *auditlog.Entry) {
				e.Call, e.Resource, e.Revision, e.Asked = "dkim.v1.KeyManagement/BatchPublishKeys", "brands/acme", 0, empty
				e.After = map[string]string{"done": "2", "KEY_PUBLISHED": "1"}
			}),
		},
		{
			name: "a method without a row", method: "/dkim.v1.Novelty/Do", req: &emptypb.Empty{}, resp: &emptypb.Empty{},
			want: with(func(e *auditlog.Entry) { e.Call, e.Resource, e.Revision, e.Asked = "dkim.v1.Novelty/Do", "", 0, empty }),
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &sink{}
			a := New(s, clock, discard)
			var inside []func(context.Context)
			if tt.inside != nil {
				inside = append(inside, tt.inside(a))
			}
			resp, err := do(t, a, tt.method, tt.req, tt.resp, tt.err, inside...)
			if !errors.Is(err, tt.err) || err == nil && resp != any(tt.resp) {
				t.Errorf("answered %v, %v", resp, err)
			}
			if diff := cmp.Diff(tt.want, s.entries); diff != "" || s.noted != tt.noted {
				t.Errorf("%d noted, want %d; lines (-want +got):\n%s", s.noted, tt.noted, diff)
			}
		})
	}
}

// auditFailed checks that err is AUDIT_FAILED with all that belongs to it.
func auditFailed(t *testing.T, err error) {
	t.Helper()
	st := status.Convert(err)
	var retry bool
	for _, d := range st.Details() {
		_, isRetry := d.(*errdetails.RetryInfo)
		retry = retry || isRetry
	}
	if st.Code() != codes.Unavailable || refusal.Reason(err) != "AUDIT_FAILED" || !retry || strings.Contains(st.Message(), "disk") {
		t.Errorf("%v %v, want UNAVAILABLE AUDIT_FAILED with a RetryInfo", err, st.Details())
	}
}

// Without a log nothing changes, and nobody is told that something has.
func TestLogFails(t *testing.T) {
	s := &sink{err: errors.New("disk full")}
	a := New(s, clock, discard)
	if resp, err := do(t, a, provision, &dkimv1.ProvisionDomainRequest{}, &dkimv1.Domain{}, nil); resp != nil {
		t.Errorf("answered %v", resp)
	} else {
		auditFailed(t, err)
	}
	if _, err := do(t, a, provision, &dkimv1.ProvisionDomainRequest{}, nil, rejection(codes.NotFound, "BRAND_NOT_FOUND")); refusal.Reason(err) != "BRAND_NOT_FOUND" {
		t.Errorf("a refusal became %v", err)
	}
	if _, err := do(t, a, getDomain, &dkimv1.GetDomainRequest{}, &dkimv1.Domain{}, nil); err != nil {
		t.Errorf("a read: %v", err)
	}
	handled := false
	handler := func(context.Context, any) (any, error) { handled = true; return nil, nil }
	_, err := a.Gate(from(true), nil, &grpc.UnaryServerInfo{FullMethod: provision}, handler)
	auditFailed(t, err)
	if handled {
		t.Error("a change was let through")
	}
	if _, err := a.Gate(from(true), nil, &grpc.UnaryServerInfo{FullMethod: getDomain}, handler); err != nil || !handled {
		t.Errorf("a read was not let through: %v", err)
	}
	auditFailed(t, a.Ready())
	// What the gate refused needs no line.
	s.entries, s.err = nil, nil
	if _, err := do(t, a, provision, nil, nil, a.gateFailure()); len(s.entries) != 0 {
		t.Errorf("%v has the lines %v", err, s.entries)
	}
}

func (a *Auditor) gateFailure() error { return failed(errors.New("disk full")) }

func TestChangesByThemselves(t *testing.T) {
	s := &sink{}
	a := New(s, clock, discard)
	steps := []auditlog.Step{{Action: "ACTIVATE"}}
	a.Changed(t.Context(), "controller", "brands/acme/domains/spamtrap.dk", 7, nil, steps)
	a.Changed(t.Context(), "controller", "brands/acme/domains/spamtrap.dk", 0, errors.New("etcd is away"), steps)
	want := []auditlog.Entry{
		{Time: now, Who: auditlog.Who{Name: "controller"}, Call: "controller/change", Resource: "brands/acme/domains/spamtrap.dk", Outcome: "OK", Revision: 7, Steps: steps},
		{Time: now, Who: auditlog.Who{Name: "controller"}, Call: "controller/change", Resource: "brands/acme/domains/spamtrap.dk", Outcome: "UNKNOWN", Steps: steps},
	}
	if diff := cmp.Diff(want, s.entries); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

// Who is refused again and again has some lines, then a sum.
func TestRepeatedRefusals(t *testing.T) {
	s := &sink{}
	a := New(s, clock, discard)
	for range 100 {
		_, _ = do(t, a, getDomain, &dkimv1.GetDomainRequest{Name: "brands/acme"}, nil, denied)
	}
	if len(s.entries) != refusalLines {
		t.Fatalf("%d lines, want %d", len(s.entries), refusalLines)
	}
	a.tellRefusals()
	a.tellRefusals()
	if n := len(s.entries); n != refusalLines+1 || s.entries[n-1].Repeated != 100-refusalLines-1 || s.entries[n-1].Who != alice {
		t.Errorf("lines %+v", s.entries[refusalLines:])
	}
}

// No number of addresses makes more than some lines.
func TestRefusalsOfMany(t *testing.T) {
	r := newRefusals()
	lines := 0
	for i := range 100_000 {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		if i%2 == 1 {
			a = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0, 0, byte(i >> 8), byte(i), byte(i), 1})
		}
		if r.admit(auditlog.Entry{Outcome: "UNAUTHENTICATED", Who: auditlog.Who{Address: a.String()}}) {
			lines++
		}
	}
	if limit := (maxRefused + 1) * refusalLines; lines > limit {
		t.Errorf("%d lines, want %d at most", lines, limit)
	}
	var sum uint64
	for _, e := range r.take() {
		sum += e.Repeated + 1
	}
	if sum+uint64(lines) != 100_000 {
		t.Errorf("%d refusals are told of, want all", sum+uint64(lines))
	}
	// A host with many IPv6 addresses is one.
	for i := range 10 {
		if got := r.admit(auditlog.Entry{Who: auditlog.Who{Address: netip.AddrFrom16([16]byte{0x20, 1, 15: byte(i)}).String()}}); got != (i < refusalLines) {
			t.Errorf("address %d: %t", i, got)
		}
	}
}

// stream is a server's end of a stream.
type stream struct {
	grpc.ServerStream

	ctx  context.Context
	sent int
}

func (s *stream) Context() context.Context { return s.ctx }
func (s *stream) SendMsg(any) error        { s.sent++; return nil }
func (s *stream) RecvMsg(m any) error {
	proto.Merge(m.(proto.Message), &dkimv1.RevokeKeyRequest{Name: "brands/acme/domains/spamtrap.dk/keys/abcdefghijklmnop"})
	return nil
}

// A stream that must have a line has one before it answers, and one at its end.
func TestStream(t *testing.T) {
	// There is none in the table that is sure to stay one.
	info := &grpc.StreamServerInfo{FullMethod: keyManagement + "RevokeKey"}
	handler := func(_ any, s grpc.ServerStream) error {
		if err := s.RecvMsg(&dkimv1.RevokeKeyRequest{}); err != nil {
			return err
		}
		for range 2 {
			if err := s.SendMsg(&dkimv1.RevokeKeyResponse{Domain: &dkimv1.Domain{Revision: 5}}); err != nil {
				return err
			}
		}
		return nil
	}
	s := &sink{}
	a := New(s, clock, discard)
	if err := a.Stream(nil, &stream{ctx: from(true)}, info, handler); err != nil {
		t.Fatal(err)
	}
	e := auditlog.Entry{
		Time: now, Who: alice, Request: "r-1", Call: "dkim.v1.KeyManagement/RevokeKey", Resource: "brands/acme/domains/spamtrap.dk/keys/abcdefghijklmnop",
		Outcome: "STARTED", Asked: map[string]string{},
	}
	end := e
	end.Outcome, end.Revision = "OK", 5
	if diff := cmp.Diff([]auditlog.Entry{e, end}, s.entries); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}

	s.err = errors.New("disk full")
	out := &stream{ctx: from(true)}
	auditFailed(t, a.Stream(nil, out, info, handler))
	if out.sent != 0 {
		t.Error("something was sent without a line")
	}
	auditFailed(t, a.GateStream(nil, out, info, handler))

	s.entries = nil
	reading := &grpc.StreamServerInfo{FullMethod: keyManagement + "WatchDomains"}
	if err := a.Stream(nil, out, reading, handler); err != nil || len(s.entries) != 0 {
		t.Errorf("a stream that reads: %v, lines %v", err, s.entries)
	}
	if err := a.GateStream(nil, out, reading, handler); err != nil {
		t.Errorf("a stream that reads is held up: %v", err)
	}
}
