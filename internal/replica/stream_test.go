package replica

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/dkimzone/dkimzone/internal/etcdclient"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// grpcEtcd is a fakeEtcd behind the protocol of etcd, where each gRPC stream of
// watches can hang by itself.
type grpcEtcd struct {
	pb.UnimplementedKVServer
	pb.UnimplementedWatchServer
	*fakeEtcd

	watched chan struct{} // a value for each watch

	mu      sync.Mutex
	streams map[*grpcStream]struct{}
	opened  int
}

func newGRPCEtcd() *grpcEtcd {
	return &grpcEtcd{fakeEtcd: newFakeEtcd(), watched: make(chan struct{}, 100), streams: make(map[*grpcStream]struct{})}
}

type grpcStream struct {
	pb.Watch_WatchServer
	mu   sync.Mutex
	hung bool
}

// send sends nothing on a stream that hangs, and nobody is told.
func (s *grpcStream) send(resp *pb.WatchResponse) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hung {
		return nil
	}
	return s.Send(resp)
}

// hang lets the streams that are open bring nothing any more.
func (g *grpcEtcd) hang() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for s := range g.streams {
		s.mu.Lock()
		s.hung = true
		s.mu.Unlock()
	}
}

// count returns how many streams are open and how many ever were.
func (g *grpcEtcd) count() (open, opened int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.streams), g.opened
}

// Range implements pb.KVServer for what a replica asks.
func (g *grpcEtcd) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	opts := []clientv3.OpOption{clientv3.WithRev(r.GetRevision()), clientv3.WithLimit(r.GetLimit())}
	if len(r.GetRangeEnd()) > 0 {
		opts = append(opts, clientv3.WithRange(string(r.GetRangeEnd())))
	}
	resp, err := g.Get(ctx, string(r.GetKey()), opts...)
	if err != nil {
		return nil, err
	}
	return (*pb.RangeResponse)(resp), nil
}

// Watch implements pb.WatchServer.
func (g *grpcEtcd) Watch(ws pb.Watch_WatchServer) error {
	s := &grpcStream{Watch_WatchServer: ws}
	g.mu.Lock()
	g.streams[s] = struct{}{}
	g.opened++
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.streams, s)
	}()
	for id := int64(1); ; id++ {
		req, err := ws.Recv()
		if err != nil {
			return err
		}
		create := req.GetCreateRequest()
		if create == nil {
			continue // a watch that nobody listens to any more is let be
		}
		header := &pb.ResponseHeader{ClusterId: g.clusterID, Revision: 1}
		if err := s.send(&pb.WatchResponse{Header: header, WatchId: id, Created: true}); err != nil {
			return err
		}
		g.watched <- struct{}{}
		events := g.fakeEtcd.Watch(ws.Context(), string(create.GetKey()),
			clientv3.WithRange(string(create.GetRangeEnd())), clientv3.WithRev(create.GetStartRevision()))
		go func() {
			for {
				select {
				case <-ws.Context().Done():
					return
				case resp, ok := <-events:
					if !ok {
						return
					}
					out := &pb.WatchResponse{Header: resp.Header, WatchId: id}
					for _, ev := range resp.Events {
						out.Events = append(out.Events, (*mvccpb.Event)(ev))
					}
					_ = s.send(out) // the context tells
				}
			}
		}()
	}
}

// connect starts a server of g and returns a client of it.
func (g *grpcEtcd) connect(t *testing.T) *clientv3.Client {
	t.Helper()
	l := bufconn.Listen(1 << 20)
	server := grpc.NewServer()
	pb.RegisterKVServer(server, g)
	pb.RegisterWatchServer(server, g)
	var running sync.WaitGroup
	running.Go(func() { _ = server.Serve(l) }) // ends with Stop
	client, err := clientv3.New(clientv3.Config{
		Endpoints: []string{"http://127.0.0.1:1"}, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		server.Stop()
		running.Wait()
	})
	return client
}

// The client puts watches of one process on one gRPC stream. One that hangs, on
// a connection that lives, must not be joined by the watch that replaces the
// first, although a zone without changes still listens to it. The client does
// not run in a bubble, so this takes the time until a hung watch is given up.
func TestHungStreamIsLeft(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 10*hangTimeout)
	defer cancel()
	g := newGRPCEtcd()
	const quietZone = "quiet.example.net"
	g.write(zoneOf(t, 3))
	g.write(map[string][]byte{schema.ApexKey(quietZone): apexValue(t)})
	unregister := RegisterInProcess(t.Name(), &dialled{Client: g.connect(t)})
	t.Cleanup(unregister)
	handles := make(map[string]*Handle)
	for _, zone := range []string{testZone, quietZone} {
		h, err := Acquire(Config{Zone: zone, Etcd: etcdclient.Config{Endpoints: []string{InProcessScheme + t.Name()}}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := h.Release(); err != nil {
				t.Error(err)
			}
		})
		handles[zone] = h
		select {
		case <-g.watched:
		case <-ctx.Done():
			t.Fatal("the zone is not watched")
		}
	}

	g.hang()
	h := handles[testZone]
	for i, key := range []string{"first", "second", "third"} {
		if err := h.WaitRevision(ctx, g.write(touch(t, i, key))); err != nil {
			t.Fatal(err)
		}
		wantKey(t, h, i, key)
	}
	if n := h.Status().Resyncs[CauseHung]; n != 0 {
		t.Errorf("the zone was listed %d times, want the changes from a watch", n)
	}
	if open, opened := g.count(); open > 2 || opened > 3 {
		t.Errorf("%d streams are open and %d were, want no more than two zones need", open, opened)
	}
}
