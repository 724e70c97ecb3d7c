package embedetcd

import (
	"context"
	"errors"
	"io"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
)

// streamingKV adds to etcd's client in this process the one call that it leaves out:
// a range in one call, for which etcd need not count the rest of the range with each
// part.
type streamingKV struct {
	pb.KVClient

	server pb.KVServer

	mu      sync.Mutex
	stopped bool
	ctx     context.Context //nolint:containedctx // ends with the server, not with a call
	cancel  context.CancelFunc
	running sync.WaitGroup
}

func newStreamingKV(client pb.KVClient, server pb.KVServer) *streamingKV {
	c := &streamingKV{KVClient: client, server: server}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// stop ends the streams, and waits until none reads from the store.
func (c *streamingKV) stop() {
	c.mu.Lock()
	c.stopped = true
	c.mu.Unlock()
	c.cancel()
	c.running.Wait()
}

// RangeStream implements pb.KVClient.
func (c *streamingKV) RangeStream(ctx context.Context, in *pb.RangeRequest, _ ...grpc.CallOption) (pb.KV_RangeStreamClient, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return nil, rpctypes.ErrGRPCStopped
	}
	ctx, cancel := context.WithCancelCause(ctx)
	unlink := context.AfterFunc(c.ctx, func() { cancel(rpctypes.ErrGRPCStopped) })
	s := &rangeStream{ctx: ctx, parts: make(chan *pb.RangeStreamResponse)}
	c.running.Go(func() {
		defer cancel(nil)
		defer unlink()
		s.err = c.server.RangeStream(in, sendingStream{rangeStream: s})
		close(s.parts)
	})
	return receivingStream{rangeStream: s}, nil
}

// rangeStream takes the parts of a range from the server to the client.
type rangeStream struct {
	ctx   context.Context //nolint:containedctx // as streams of gRPC have one
	parts chan *pb.RangeStreamResponse
	err   error // once parts is closed
}

// sendingStream and receivingStream are its two ends. etcd calls no other methods
// of a stream than these.
type sendingStream struct {
	grpc.ServerStream
	*rangeStream
}

// Context implements grpc.ServerStream.
func (s sendingStream) Context() context.Context { return s.ctx }

// Send implements pb.KV_RangeStreamServer.
func (s sendingStream) Send(part *pb.RangeStreamResponse) error {
	select {
	case s.parts <- part:
		return nil
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	}
}

type receivingStream struct {
	grpc.ClientStream
	*rangeStream
}

// Context implements grpc.ClientStream.
func (s receivingStream) Context() context.Context { return s.ctx }

// Recv implements pb.KV_RangeStreamClient.
func (s receivingStream) Recv() (*pb.RangeStreamResponse, error) {
	part, ok := <-s.parts // closed soon after the context ends
	switch cause := context.Cause(s.ctx); {
	case ok:
		return part, nil
	case s.err == nil:
		return nil, io.EOF
	case errors.Is(cause, rpctypes.ErrGRPCStopped): // whatever reading made of it
		return nil, cause
	default:
		return nil, s.err
	}
}
