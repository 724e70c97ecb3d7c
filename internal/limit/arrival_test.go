package limit_test

import (
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/dkimzone/dkimzone/internal/limit"
)

func TestArrivals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := limit.NewArrivals(2, time.Second)
		var mu sync.Mutex
		var given []string
		begin := func(name string) (arrived func()) {
			return a.Begin(func() {
				mu.Lock()
				defer mu.Unlock()
				given = append(given, name)
			})
		}
		pass := func(d time.Duration, want ...string) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if !slices.Equal(given, want) {
				t.Fatalf("given up: %q, want %q", given, want)
			}
		}
		for range 100 { // many that are quick
			begin("quick")()
		}
		first := begin("first")
		pass(time.Millisecond)
		begin("second")
		pass(time.Millisecond)
		third := begin("third")
		pass(999 * time.Millisecond)
		pass(time.Millisecond, "first")
		begin("fourth")
		pass(999*time.Millisecond, "first")
		pass(time.Millisecond, "first", "second")
		first() // too late, and of no effect
		third()
		third()
		begin("fifth")
		pass(2*time.Second, "first", "second")
		begin("sixth")
		pass(2*time.Second, "first", "second", "fourth")
	})
}

// A unary call whose request does not come is given up for another, and frees its
// place when its caller goes.
func TestTap(t *testing.T) {
	a := limit.NewArrivals(1, time.Millisecond)
	server := grpc.NewServer(grpc.InTapHandle(a.Tap), grpc.ChainUnaryInterceptor(a.Unary), grpc.ChainStreamInterceptor(a.Stream))
	healthpb.RegisterHealthServer(server, health.NewServer())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	t.Cleanup(running.Wait)
	t.Cleanup(server.Stop)
	running.Go(func() {
		if err := server.Serve(l); err != nil {
			t.Error(err)
		}
	})
	conn, err := grpc.NewClient("passthrough:///"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })

	open := func() grpc.ClientStream {
		s, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true}, healthpb.Health_Check_FullMethodName)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	type end struct {
		who int
		err error
	}
	streams, ends := []grpc.ClientStream{open(), open()}, make(chan end)
	for i, s := range streams {
		go func() { ends <- end{i, s.RecvMsg(new(healthpb.HealthCheckResponse))} }()
	}
	given := <-ends
	if status.Code(given.err) != codes.Canceled {
		t.Fatalf("given up with %v, want Canceled", given.err)
	}
	other := streams[1-given.who]
	if err := other.SendMsg(new(healthpb.HealthCheckRequest)); err != nil {
		t.Fatal(err)
	}
	if err := other.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if kept := <-ends; kept.err != nil {
		t.Errorf("the other one: %v", kept.err)
	}
	// A stream is in the hands of its method, however long it lasts.
	watch, err := healthpb.NewHealthClient(conn).Watch(t.Context(), new(healthpb.HealthCheckRequest))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		a, b := open(), open()
		go func() { ends <- end{err: a.RecvMsg(new(healthpb.HealthCheckResponse))} }()
		go func() { ends <- end{err: b.RecvMsg(new(healthpb.HealthCheckResponse))} }()
		<-ends
		_, _ = a.CloseSend(), b.CloseSend() // ends the one that is left, without a request
		<-ends
	}
	if r, err := watch.Recv(); err != nil || r.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("watch: %v, %v", r, err)
	}
}
