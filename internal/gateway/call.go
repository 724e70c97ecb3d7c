package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"

	"github.com/fullstorydev/grpchan/inprocgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"
)

// caller is what the service learns of who makes a request: what a gRPC call
// brings by its connection and its metadata.
type caller struct {
	peer     peer.Peer
	metadata metadata.MD
}

type callerKey struct{}

// passed are the header fields that go on as metadata, by their names there. All
// values of each go on: it is for the service to refuse two of what may be there
// once.
var passed = map[string]string{"Authorization": "authorization", "X-Request-Id": "x-request-id"}

// withCaller returns the request's context with its caller.
func withCaller(r *http.Request) context.Context {
	c := &caller{metadata: metadata.MD{}}
	if at, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		c.peer.Addr = net.TCPAddrFromAddrPort(at)
	}
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		c.peer.LocalAddr = local
	}
	c.peer.AuthInfo = credentials.TLSInfo{
		State: *r.TLS, CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}
	for field, key := range passed {
		if values := r.Header.Values(field); len(values) > 0 {
			c.metadata[key] = values
		}
	}
	return context.WithValue(r.Context(), callerKey{}, c)
}

// asCaller returns the context of a call as it would be had the caller made it
// over gRPC. A call that no request has made keeps a peer whom nobody knows.
func asCaller(ctx context.Context) context.Context {
	c, ok := inprocgrpc.ClientContext(ctx).Value(callerKey{}).(*caller)
	if !ok {
		return metadata.NewIncomingContext(ctx, nil)
	}
	return metadata.NewIncomingContext(peer.NewContext(ctx, &c.peer), c.metadata.Copy())
}

// newChannel returns a connection to the services in this process.
func newChannel(o Options) grpc.ClientConnInterface {
	unary, stream := chainUnary(o.Unary), chainStream(o.Stream)
	ch := (&inprocgrpc.Channel{}).
		WithCloner(cloner{}).
		WithServerUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			return unary(asCaller(ctx), req, info, handler)
		}).
		WithServerStreamInterceptor(func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			return stream(srv, callersStream{ss, asCaller(ss.Context())}, info, handler)
		})
	o.Register(ch)
	return channel{ch}
}

// callersStream is a stream with the context of its caller.
type callersStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s callersStream) Context() context.Context { return s.ctx }

func chainUnary(all []grpc.UnaryServerInterceptor) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		for _, interceptor := range slices.Backward(all) {
			next := handler
			handler = func(ctx context.Context, req any) (any, error) { return interceptor(ctx, req, info, next) }
		}
		return handler(ctx, req)
	}
}

func chainStream(all []grpc.StreamServerInterceptor) grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		for _, interceptor := range slices.Backward(all) {
			next := handler
			handler = func(srv any, ss grpc.ServerStream) error { return interceptor(srv, ss, info, next) }
		}
		return handler(srv, ss)
	}
}

// channel is a connection on which a stream that is refused is so at once, when
// its only request is sent. HTTP has to know before it says 200.
type channel struct{ *inprocgrpc.Channel }

// NewStream implements grpc.ClientConnInterface.
func (c channel) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := c.Channel.NewStream(ctx, desc, method, opts...)
	if err != nil || desc.ClientStreams || !desc.ServerStreams {
		return s, err
	}
	return &eagerStream{ClientStream: s}, nil
}

// eagerStream is a stream of responses that waits for the first of them, or for
// the end, when the request is complete.
type eagerStream struct {
	grpc.ClientStream
	first held
	ended error // io.EOF when there is no response at all
}

// held takes a message of any type out of a stream.
type held struct{ message any }

func (s *eagerStream) SendMsg(m any) error {
	if err := s.ClientStream.SendMsg(m); !errors.Is(err, io.EOF) {
		return err
	}
	return nil // the stream has ended already; CloseSend finds why
}

func (s *eagerStream) CloseSend() error {
	if err := s.ClientStream.CloseSend(); err != nil {
		return err
	}
	if _, err := s.Header(); err != nil { // before RecvMsg, after which it would wait for a second message
		return err
	}
	s.ended = s.ClientStream.RecvMsg(&s.first)
	if s.ended != nil && !errors.Is(s.ended, io.EOF) {
		return s.ended
	}
	return nil
}

func (s *eagerStream) RecvMsg(m any) error {
	if s.ended != nil {
		return s.ended
	}
	if s.first.message == nil {
		return s.ClientStream.RecvMsg(m)
	}
	first := s.first.message
	s.first.message = nil
	return cloner{}.Copy(m, first)
}

// cloner copies messages between the two sides of the channel.
type cloner struct{ inprocgrpc.ProtoCloner }

// Copy implements inprocgrpc.Cloner.
func (c cloner) Copy(out, in any) error {
	if h, ok := out.(*held); ok {
		h.message = in // the sender has cloned it
		return nil
	}
	to, ok := out.(proto.Message)
	from, isMessage := in.(proto.Message)
	if !ok || !isMessage || to.ProtoReflect().Descriptor() != from.ProtoReflect().Descriptor() {
		return c.ProtoCloner.Copy(out, in)
	}
	proto.Reset(to)
	proto.Merge(to, from)
	return nil
}
