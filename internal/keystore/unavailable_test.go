package keystore_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/dkimzone/dkimzone/internal/embedetcd"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/keystore/keystoretest"
)

func TestErrUnavailable(t *testing.T) {
	tests := []struct {
		name        string
		err         error
		unavailable bool
	}{
		{"no leader", rpctypes.ErrGRPCNoLeader, true},
		{"leader changed", rpctypes.ErrGRPCLeaderChanged, true},
		{"timeout", rpctypes.ErrGRPCTimeoutDueToLeaderFail, true},
		{"server stopped", rpctypes.ErrGRPCStopped, true},
		{"unhealthy", rpctypes.ErrGRPCUnhealthy, true},
		{"disk full", rpctypes.ErrGRPCNoSpace, true},
		{"too many requests", rpctypes.ErrGRPCRequestTooManyRequests, true},
		{"no connection", status.Error(codes.Unavailable, "connection refused"), true},
		{"deadline", status.Error(codes.DeadlineExceeded, ""), true},
		{"client closed", status.Error(codes.Canceled, "the client connection is closing"), true},
		{"client closed, in this process", context.Canceled, true},
		{"failure inside", status.Error(codes.Unknown, "raft: stopped"), true},
		{"request too large", rpctypes.ErrGRPCRequestTooLarge, false},
		{"permission denied", rpctypes.ErrGRPCPermissionDenied, false},
		{"corrupt", rpctypes.ErrGRPCCorrupt, false},
		{"unknown", errors.New("unknown"), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			fake := keystoretest.NewFake()
			s := keystore.New(fake, time.Minute)
			fake.SetError(tt.err)
			_, readErr := s.Zone(t.Context(), zone)
			_, writeErr := s.CreateZone(t.Context(), keystore.Zone{Name: zone})
			watchErr := s.WatchDomains(t.Context(), "", 0, func(keystore.DomainEvent) error { return nil })
			for _, err := range []error{readErr, writeErr, watchErr} {
				if err == nil || errors.Is(err, keystore.ErrUnavailable) != tt.unavailable {
					t.Errorf("got %v, unavailable: %t; want %t", err, errors.Is(err, keystore.ErrUnavailable), tt.unavailable)
				}
			}
			if n := len(fake.Dump()); n != 0 {
				t.Errorf("%d keys were written", n)
			}
		})
	}
}

// When etcd stops, watches end and calls fail, and none of them takes that for
// its caller's wish.
func TestEtcdStops(t *testing.T) {
	server, err := embedetcd.Start(t.Context(), embedetcd.Config{
		Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler), UnsafeNoFsync: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	watching := make(chan struct{})
	s := keystore.New(&watched{Client: server.Client(), begun: watching}, time.Minute)
	from, err := s.Revision(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() {
		ended <- s.WatchDomains(t.Context(), "", from, func(keystore.DomainEvent) error { return nil })
	}()
	<-watching
	server.Close()
	if err := <-ended; !errors.Is(err, keystore.ErrUnavailable) {
		t.Errorf("watch: %v, want %v", err, keystore.ErrUnavailable)
	}
	if _, err := s.Zone(t.Context(), zone); !errors.Is(err, keystore.ErrUnavailable) {
		t.Errorf("read: %v, want %v", err, keystore.ErrUnavailable)
	}
	if _, err := s.CreateZone(t.Context(), keystore.Zone{Name: zone}); !errors.Is(err, keystore.ErrUnavailable) {
		t.Errorf("write: %v, want %v", err, keystore.ErrUnavailable)
	}
}

// watched says when a watch has begun.
type watched struct {
	*clientv3.Client

	begun chan struct{}
}

func (c *watched) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	defer close(c.begun)
	return c.Client.Watch(ctx, key, opts...)
}
