package admission

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/url"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	admissionv1 "github.com/dkimzone/dkimzone/api/dkim/admission/v1"
)

// grpcAsker puts a question by the Admission service.
type grpcAsker struct {
	conn   *grpc.ClientConn
	client admissionv1.AdmissionClient
	token  bearer
}

func newGRPC(u *url.URL, tlsConfig *tls.Config, token bearer) (*grpcAsker, error) {
	conn, err := grpc.NewClient("dns:///"+u.Host,
		grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
		grpc.WithMaxHeaderListSize(16<<10),
		// A server that comes back is found soon, and one that is gone without a
		// word is noticed (TCP_USER_TIMEOUT).
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: time.Second}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 5 * time.Second}),
		grpc.WithNoProxy(), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(),
		grpc.WithUserAgent("dkimd"))
	if err != nil {
		return nil, fmt.Errorf("connection to %s: %w", u.Host, err)
	}
	return &grpcAsker{conn, admissionv1.NewAdmissionClient(conn), token}, nil
}

var reconnect = backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second}

var operations = map[Operation]admissionv1.Operation{
	Provision: admissionv1.Operation_OPERATION_PROVISION,
	Publish:   admissionv1.Operation_OPERATION_PUBLISH,
	Import:    admissionv1.Operation_OPERATION_IMPORT,
	TakeOver:  admissionv1.Operation_OPERATION_TAKE_OVER,
}

func (g *grpcAsker) ask(ctx context.Context, r Request) (answer, error) {
	token, err := g.token.read()
	if err != nil {
		return answer{}, err
	}
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	resp, err := g.client.AdmitDomain(ctx, &admissionv1.AdmitDomainRequest{
		Brand: r.Brand, Domain: r.Domain, Operation: operations[r.Operation],
		Caller: &admissionv1.Caller{
			Role: string(r.Caller.Role), Name: r.Caller.Name, Brand: r.Caller.Brand,
			Method: string(r.Caller.Method), Address: address(r), RequestId: r.Caller.RequestID,
		},
	})
	if err != nil {
		return answer{}, err
	}
	return answer{resp.GetAllowed(), resp.GetReason()}, nil
}

func (g *grpcAsker) close() { _ = g.conn.Close() }
