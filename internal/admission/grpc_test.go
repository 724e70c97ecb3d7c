package admission_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	admissionv1 "github.com/dkimzone/dkimzone/api/dkim/admission/v1"
	"github.com/dkimzone/dkimzone/internal/admission"
)

// answers is an Admission service.
type answers struct {
	admissionv1.UnimplementedAdmissionServer

	answer func(context.Context, *admissionv1.AdmitDomainRequest) (*admissionv1.AdmitDomainResponse, error)
}

func (a *answers) AdmitDomain(ctx context.Context, req *admissionv1.AdmitDomainRequest) (*admissionv1.AdmitDomainResponse, error) {
	return a.answer(ctx, req)
}

// serveGRPC lets the provider answer so over gRPC.
func (p *provider) serveGRPC(t *testing.T, c *tls.Config, answer func(context.Context, *admissionv1.AdmitDomainRequest) (*admissionv1.AdmitDomainResponse, error)) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(c)))
	admissionv1.RegisterAdmissionServer(s, &answers{answer: answer})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(ln) // ends with Stop
	}()
	t.Cleanup(func() { s.Stop(); <-done })
	p.options.URL = "grpc://" + ln.Addr().String()
}

func TestGRPCQuestion(t *testing.T) {
	p := newProvider(t)
	var got *admissionv1.AdmitDomainRequest
	var tokens []string
	p.serveGRPC(t, serverTLS(t, p.ca, "127.0.0.1"), func(ctx context.Context, req *admissionv1.AdmitDomainRequest) (*admissionv1.AdmitDomainResponse, error) {
		got = req
		tokens = metadata.ValueFromIncomingContext(ctx, "authorization")
		return &admissionv1.AdmitDomainResponse{Allowed: true}, nil
	})
	g := p.gate(t)
	for operation, want := range map[admission.Operation]admissionv1.Operation{
		admission.Provision: admissionv1.Operation_OPERATION_PROVISION,
		admission.Publish:   admissionv1.Operation_OPERATION_PUBLISH,
		admission.Import:    admissionv1.Operation_OPERATION_IMPORT,
		admission.TakeOver:  admissionv1.Operation_OPERATION_TAKE_OVER,
	} {
		r := question
		r.Operation = operation
		if err := g.Admit(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		wantRequest := &admissionv1.AdmitDomainRequest{
			Brand: "acme", Domain: "spamtrap.dk", Operation: want,
			Caller: &admissionv1.Caller{Role: "brand", Name: "shop", Brand: "acme", Method: "secret", Address: "192.0.2.7", RequestId: "r-1"},
		}
		if diff := cmp.Diff(wantRequest, got, protocmp.Transform()); diff != "" {
			t.Errorf("question (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]string{"Bearer " + token}, tokens); diff != "" {
			t.Errorf("authorization (-want +got):\n%s", diff)
		}
	}
}

func TestGRPCAnswers(t *testing.T) {
	type response = admissionv1.AdmitDomainResponse
	for name, resp := range map[string]*response{
		"denied":       {Reason: "no such\nmail domain"},
		"says nothing": {},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProvider(t)
			p.serveGRPC(t, serverTLS(t, p.ca, "127.0.0.1"), func(context.Context, *admissionv1.AdmitDomainRequest) (*response, error) {
				return resp, nil
			})
			var denied *admission.DeniedError
			if err := p.gate(t).Admit(t.Context(), question); !errors.As(err, &denied) || denied.Reason != strings.ReplaceAll(resp.GetReason(), "\n", " ") {
				t.Errorf("got %v, want a DeniedError", err)
			}
		})
	}
	for name, answer := range map[string]func(ctx context.Context) (*response, error){
		"error": func(context.Context) (*response, error) {
			return &response{Allowed: true}, status.Error(codes.Internal, "it is broken")
		},
		"denied by its status": func(context.Context) (*response, error) { return nil, status.Error(codes.PermissionDenied, "no") },
		"not there":            func(context.Context) (*response, error) { return nil, status.Error(codes.Unimplemented, "what?") },
		"huge": func(context.Context) (*response, error) {
			return &response{Allowed: true, Reason: strings.Repeat("x", 1<<20)}, nil
		},
		"slow": nil,
	} {
		t.Run(name, func(t *testing.T) {
			p := newProvider(t)
			if name == "slow" {
				p.options.Timeout = 100 * time.Millisecond
				refused := make(chan struct{})
				answer = func(context.Context) (*response, error) {
					<-refused // an answer at the end of the timeout may still be in time
					return &response{Allowed: true}, nil
				}
				defer close(refused)
			}
			p.serveGRPC(t, serverTLS(t, p.ca, "127.0.0.1"), func(ctx context.Context, _ *admissionv1.AdmitDomainRequest) (*response, error) {
				return answer(ctx)
			})
			p.wantUnavailable(t, p.gate(t).Admit(t.Context(), question))
		})
	}
}

func TestGRPCWrongPeer(t *testing.T) {
	allow := func(context.Context, *admissionv1.AdmitDomainRequest) (*admissionv1.AdmitDomainResponse, error) {
		return &admissionv1.AdmitDomainResponse{Allowed: true}, nil
	}
	p := newProvider(t)
	p.options.Timeout = 3 * time.Second
	p.serveGRPC(t, serverTLS(t, newCA(t), "127.0.0.1"), allow)
	p.wantUnavailable(t, p.gate(t).Admit(t.Context(), question))
	p.serveGRPC(t, serverTLS(t, p.ca, "127.0.0.2"), allow)
	p.wantUnavailable(t, p.gate(t).Admit(t.Context(), question))
	p.options.CertFile, p.options.KeyFile = "", ""
	p.serveGRPC(t, serverTLS(t, p.ca, "127.0.0.1"), allow)
	p.wantUnavailable(t, p.gate(t).Admit(t.Context(), question))
	p.options.URL = "grpc://127.0.0.1:1"
	p.wantUnavailable(t, p.gate(t).Admit(t.Context(), question))
}

// A provider's system that was away is asked again soon after it is back.
func TestGRPCComesBack(t *testing.T) {
	p := newProvider(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := ln.Addr().String()
	ln.Close()
	p.options.URL = "grpc://" + address
	g := p.gate(t)
	p.wantUnavailable(t, g.Admit(t.Context(), question))

	if ln, err = net.Listen("tcp", address); err != nil {
		t.Skip(err) // somebody else has the port now
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(serverTLS(t, p.ca, "127.0.0.1"))))
	admissionv1.RegisterAdmissionServer(s, &answers{answer: func(context.Context, *admissionv1.AdmitDomainRequest) (*admissionv1.AdmitDomainResponse, error) {
		return &admissionv1.AdmitDomainResponse{Allowed: true}, nil
	}})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(ln) // ends with Stop
	}()
	defer func() { s.Stop(); <-done }()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for g.Admit(ctx, question) != nil {
		select {
		case <-ctx.Done():
			t.Fatal("it is not asked again")
		case <-tick.C:
		}
	}
}
