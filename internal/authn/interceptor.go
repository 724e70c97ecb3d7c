package authn

import (
	"context"
	"crypto/rand"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	// requestIDHeader carries the request id, in both directions.
	requestIDHeader = "x-request-id"
	// streamRecheck is how often the caller of a stream is asked again who he is.
	streamRecheck = 30 * time.Second
)

var requestIDForm = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// requestID is the one that the caller sent, if it can be written into a log, or
// a new one.
func requestID(ctx context.Context) string {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get(requestIDHeader); len(v) == 1 && requestIDForm.MatchString(v[0]) {
		return v[0]
	}
	return strings.ToLower(rand.Text())
}

// TagUnary notes where a call comes from and gives it a request id, which it
// answers in the header x-request-id. It comes before all that writes of calls
// in a log, those too that are refused: see [FromContext].
func TagUnary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	id := requestID(ctx)
	// It fails where nobody listens to headers.
	_ = grpc.SetHeader(ctx, metadata.Pairs(requestIDHeader, id))
	return handler(begin(ctx, callerAddr(ctx), id), req)
}

// TagStream is TagUnary for streams.
func TagStream(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	id := requestID(stream.Context())
	_ = stream.SetHeader(metadata.Pairs(requestIDHeader, id))
	return handler(srv, contextStream{stream, begin(stream.Context(), callerAddr(stream.Context()), id)})
}

// UnaryInterceptor lets only those calls through whose caller is known, and puts
// him into their context.
func (a *Authenticator) UnaryInterceptor(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	caller, err := a.Authenticate(ctx)
	if err != nil {
		return nil, err
	}
	return handler(NewContext(ctx, caller), req)
}

// StreamInterceptor is UnaryInterceptor for streams. A stream ends when its
// caller's credentials do.
func (a *Authenticator) StreamInterceptor(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	caller, err := a.Authenticate(stream.Context())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(NewContext(stream.Context(), caller))
	defer cancel()
	var refused atomic.Pointer[error]
	go func() {
		ticker := time.NewTicker(streamRecheck)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			if _, err := a.authenticate(stream.Context(), true); status.Code(err) == codes.Unauthenticated {
				refused.Store(&err)
				cancel()
				return
			}
		}
	}()
	err = handler(srv, contextStream{stream, ctx})
	if why := refused.Load(); why != nil && err != nil {
		return *why
	}
	return err
}

// contextStream is a stream with another context.
type contextStream struct {
	grpc.ServerStream

	ctx context.Context //nolint:containedctx // it stands in for the stream's
}

// Context is the context of the call.
func (s contextStream) Context() context.Context { return s.ctx }
