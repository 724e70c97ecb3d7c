package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/authn"
	"github.com/dkimzone/dkimzone/internal/authz"
	"github.com/dkimzone/dkimzone/internal/gateway"
	"github.com/dkimzone/dkimzone/internal/limit"
	"github.com/dkimzone/dkimzone/internal/service"
	"github.com/dkimzone/dkimzone/internal/telemetry"
)

const (
	// maxMessage bounds a request. The largest that makes sense is a batch of a
	// thousand keys.
	maxMessage = 1 << 20
	// maxHeader bounds the headers of a request.
	maxHeader = 32 << 10
	// maxStreams bounds the calls in flight on one connection.
	maxStreams = 1000
	// maxSlow is how many gRPC requests may take longer than slowAfter to arrive.
	maxSlow   = 128
	slowAfter = time.Second
	// healthInterval is how often the gRPC health status is looked at.
	healthInterval = 5 * time.Second
)

// servers are the listening ends of dkimd.
type servers struct {
	grpc    *grpc.Server
	health  *health.Server
	http    *http.Server
	metrics *http.Server
	// disclosure serves the keys that are public; nil without.
	disclosure *http.Server
	bound      *listeners
	checks     []telemetry.Check
	logger     *slog.Logger

	stopping chan struct{} // closed when drain begins
}

// newServers sets up the servers of api on bound sockets. They do not serve
// until run.
func newServers(bound *listeners, tlsConfig *tls.Config, b *backend, checks []telemetry.Check, logger *slog.Logger, unary ...grpc.UnaryServerInterceptor) (*servers, error) {
	s := &servers{
		bound: bound, checks: append([]telemetry.Check{b.storeCheck(), b.sealer.readiness(), b.account.readiness(), b.signingReadiness()}, checks...), logger: logger, stopping: make(chan struct{}),
	}
	// REST goes through the same interceptors: see package gateway.
	unary, stream := append(s.unary(b), unary...), s.stream(b)
	arrivals := limit.NewArrivals(maxSlow, slowAfter)
	s.grpc = grpc.NewServer(
		grpc.InTapHandle(arrivals.Tap),
		grpc.Creds(credentials.NewTLS(tlsConfig)),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.MaxHeaderListSize(maxHeader),
		grpc.ChainUnaryInterceptor(append([]grpc.UnaryServerInterceptor{arrivals.Unary}, unary...)...),
		grpc.ChainStreamInterceptor(append([]grpc.StreamServerInterceptor{arrivals.Stream}, stream...)...),
	)
	b.register(s.grpc)
	s.health = health.NewServer()
	healthpb.RegisterHealthServer(s.grpc, s.health)
	reflection.Register(s.grpc)

	rest, err := gateway.New(gateway.Options{Register: b.register, Unary: unary, Stream: stream, Signing: b.view.Ready, Logger: logger})
	if err != nil {
		return nil, err
	}
	s.http = &http.Server{
		Handler:           rest,
		TLSConfig:         tlsConfig.Clone(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
	s.metrics = telemetry.NewServer(prometheus.DefaultGatherer, s.checks, logger)
	if bound.disclosure != nil {
		s.disclosure = newDisclosureServer(b.store, logger)
	}
	return s, nil
}

// unary are the interceptors that every unary call goes through, in this order.
func (s *servers) unary(b *backend) []grpc.UnaryServerInterceptor {
	return []grpc.UnaryServerInterceptor{
		countUnary, authn.TagUnary, b.account.auditor.Unary, service.UnaryInterceptor(s.logger), b.authn.UnaryInterceptor, authz.UnaryInterceptor,
		b.guard.limiter.Unary(), b.account.auditor.Gate,
	}
}

// stream is unary for streams.
func (s *servers) stream(b *backend) []grpc.StreamServerInterceptor {
	return []grpc.StreamServerInterceptor{
		countStream, endStreams(s.stopping), authn.TagStream, b.account.auditor.Stream, service.StreamInterceptor(s.logger), b.authn.StreamInterceptor,
		authz.StreamInterceptor, b.guard.limiter.Stream(), b.account.auditor.GateStream,
	}
}

// register registers the services of the API, with a gRPC server or for REST.
func (b *backend) register(r grpc.ServiceRegistrar) {
	dkimv1.RegisterKeyManagementServer(r, b.api)
	dkimv1.RegisterSignerServer(r, b.api)
	dkimv1.RegisterAccessControlServer(r, b.access)
	dkimv1.RegisterCallersServer(r, service.Callers{})
	dkimv1.RegisterCustodyServer(r, service.NewCustody(b.custody))
}

// run serves until ctx ends or a server fails, then lets calls in flight end,
// for drainTimeout at most.
func (s *servers) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return serving("gRPC", s.grpc.Serve(s.bound.grpc)) })
	group.Go(func() error { return serving("HTTPS", s.http.ServeTLS(s.bound.http, "", "")) })
	group.Go(func() error { return serving("metrics", s.metrics.Serve(s.bound.metrics)) })
	if s.disclosure != nil {
		group.Go(func() error { return serving("disclosure", s.disclosure.Serve(s.bound.disclosure)) })
	}
	group.Go(func() error { s.watchHealth(ctx); return nil })
	group.Go(func() error {
		<-ctx.Done()
		s.drain()
		return nil
	})
	return group.Wait()
}

func serving(what string, err error) error {
	if err == nil || errors.Is(err, http.ErrServerClosed) || errors.Is(err, grpc.ErrServerStopped) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return fmt.Errorf("%s server: %w", what, err)
}

func (s *servers) drain() {
	close(s.stopping)
	s.health.Shutdown()
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout) // the run's context is over
	defer cancel()
	stopped := make(chan struct{})
	go func() {
		s.grpc.GracefulStop()
		close(stopped)
	}()
	if err := s.http.Shutdown(ctx); err != nil {
		_ = s.http.Close() // cut off what does not end by itself
	}
	if s.disclosure != nil {
		if err := s.disclosure.Shutdown(ctx); err != nil {
			_ = s.disclosure.Close()
		}
	}
	select {
	case <-stopped:
	case <-ctx.Done():
		s.grpc.Stop()
		<-stopped
	}
	if err := s.metrics.Shutdown(ctx); err != nil {
		_ = s.metrics.Close()
	}
}

// watchHealth keeps the gRPC health status in step with the checks.
func (s *servers) watchHealth(ctx context.Context) {
	ticker := time.NewTicker(healthInterval)
	defer ticker.Stop()
	for {
		all := healthpb.HealthCheckResponse_SERVING
		withoutSigners := all
		for _, c := range s.checks {
			if err := c.Func(ctx); err != nil {
				all = healthpb.HealthCheckResponse_NOT_SERVING
				if c.Name != signingCheck {
					withoutSigners = all
				}
			}
		}
		s.health.SetServingStatus("", all)
		s.health.SetServingStatus(dkimv1.Signer_ServiceDesc.ServiceName, all)
		for _, service := range []string{
			dkimv1.KeyManagement_ServiceDesc.ServiceName, dkimv1.AccessControl_ServiceDesc.ServiceName,
			dkimv1.Custody_ServiceDesc.ServiceName, dkimv1.Callers_ServiceDesc.ServiceName,
		} {
			s.health.SetServingStatus(service, withoutSigners)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
