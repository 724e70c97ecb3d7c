package app

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// endStreams ends the streams that are open when stopping is closed: a client
// that watches goes on with another dkimd at once and does not hold up the end.
func endStreams(stopping <-chan struct{}) grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		ctx, cancel := context.WithCancel(stream.Context())
		defer cancel()
		go func() {
			select {
			case <-stopping:
				cancel()
			case <-ctx.Done():
			}
		}()
		err := handler(srv, endingStream{stream, ctx})
		if err == nil || stream.Context().Err() != nil {
			return err
		}
		select {
		case <-stopping:
			return status.Error(codes.Unavailable, "dkimd is stopping; connect again")
		default:
			return err
		}
	}
}

// endingStream is a stream with another context.
type endingStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s endingStream) Context() context.Context { return s.ctx }
