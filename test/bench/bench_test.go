package bench_test

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/app"
	"github.com/dkimzone/dkimzone/internal/config"
	"github.com/dkimzone/dkimzone/internal/etcdclient"
	"github.com/dkimzone/dkimzone/internal/pki"
	"github.com/dkimzone/dkimzone/internal/replica"
)

const zone = "keys.example.net"

// standalone is a running `dkimd standalone` with a brand "acme".
type standalone struct {
	client  dkimv1.KeyManagementClient
	rest    *http.Client
	address string // of REST
	dataDir string
}

var auditTo = flag.String("audit", "disk", "the audit log: disk, memory (a line may take a second to the disk) or off")

// auditLog is as -audit says.
func auditLog(b *testing.B) app.Audit {
	b.Helper()
	switch *auditTo {
	case "disk":
		return app.Audit{}
	case "memory":
		return app.Audit{Sync: time.Second}
	case "off":
		return app.Audit{Log: "-", Out: io.Discard}
	}
	b.Fatalf("-audit %s: use disk, memory or off", *auditTo)
	return app.Audit{}
}

func start(b *testing.B) *standalone {
	b.Helper()
	s := &standalone{dataDir: b.TempDir()}
	ctx, cancel := context.WithCancel(b.Context())
	started := make(chan app.Addresses, 1)
	done := make(chan error, 1)
	go func() {
		done <- app.Standalone{
			DataDir: s.dataDir, Zone: zone, DNS: freeAddress(b),
			Listen: app.Listen{GRPC: "127.0.0.1:0", HTTP: "127.0.0.1:0", Metrics: "127.0.0.1:0"},
			Checks: app.Checks{Rate: 200},
			Logger: slog.New(slog.DiscardHandler), Out: io.Discard, Audit: auditLog(b),
			Started: func(a app.Addresses) { started <- a },
		}.Run(ctx)
	}()
	b.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.Errorf("dkimd: %v", err)
		}
	})
	var a app.Addresses
	select {
	case a = <-started:
	case err := <-done:
		done <- nil
		b.Fatalf("dkimd: %v", err)
	}
	c, err := config.Load(a.ClientConfig)
	if err != nil {
		b.Fatal(err)
	}
	tlsConfig, err := pki.ClientTLS(c.CAFile, c.CertFile, c.KeyFile, "", slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	conn, err := grpc.NewClient(a.GRPC, grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = conn.Close() })
	s.client = dkimv1.NewKeyManagementClient(conn)
	transport := &http.Transport{TLSClientConfig: tlsConfig.Clone(), ForceAttemptHTTP2: true}
	b.Cleanup(transport.CloseIdleConnections)
	s.rest, s.address = &http.Client{Transport: transport}, a.HTTP
	if _, err := s.client.CreateBrand(b.Context(), &dkimv1.CreateBrandRequest{BrandId: "acme"}); err != nil {
		b.Fatal(err)
	}
	waitForKeys(b)
	return s
}

// freeAddress is a loopback address nobody listens on.
func freeAddress(b *testing.B) string {
	b.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	return ln.Addr().String()
}

func (s *standalone) provision(ctx context.Context, n int64, a dkimv1.KeyAlgorithm) (*dkimv1.Domain, error) {
	return s.client.ProvisionDomain(ctx, &dkimv1.ProvisionDomainRequest{
		Name: fmt.Sprintf("brands/acme/domains/d%d.example", n), Algorithm: a,
	})
}

// waitForKeys returns when the pool is full, so that it does not use a CPU.
func waitForKeys(b *testing.B) {
	b.Helper()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	full := float64(16 * runtime.GOMAXPROCS(0))
	for range poll.C {
		families, err := prometheus.DefaultGatherer.Gather()
		if err != nil {
			b.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() != "dkimd_keygen_stock" {
				continue
			}
			for _, m := range f.GetMetric() {
				if m.GetLabel()[0].GetValue() == "rsa2048" && m.GetGauge().GetValue() >= full {
					return
				}
			}
		}
	}
}

// times collects durations and reports their percentiles.
type times struct {
	mu sync.Mutex
	d  []time.Duration
}

func (t *times) add(d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.d = append(t.d, d)
}

func (t *times) report(b *testing.B, what string) {
	b.Helper()
	if len(t.d) == 0 {
		return
	}
	slices.Sort(t.d)
	at := func(q float64) float64 {
		return float64(t.d[min(len(t.d)-1, int(q*float64(len(t.d))))].Microseconds()) / 1000
	}
	b.ReportMetric(at(.5), "ms-"+what+"-p50")
	b.ReportMetric(at(.99), "ms-"+what+"-p99")
}

// BenchmarkProvisionEd25519 provisions domains of two selectors from 64 callers
// at a time.
func BenchmarkProvisionEd25519(b *testing.B) { provisionMany(b, start(b)) }

// BenchmarkProvisionEd25519Quota does so in a brand whose domains are counted.
func BenchmarkProvisionEd25519Quota(b *testing.B) {
	s := start(b)
	s.setQuota(b)
	provisionMany(b, s)
}

// setQuota has the domains of the brand counted, and leaves room for any number.
func (s *standalone) setQuota(b *testing.B) {
	b.Helper()
	if _, err := s.client.UpdateBrand(b.Context(), &dkimv1.UpdateBrandRequest{
		Brand: &dkimv1.Brand{Name: "brands/acme", MaxDomains: 1_000_000_000}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"max_domains"}},
	}); err != nil {
		b.Fatal(err)
	}
}

func provisionMany(b *testing.B, s *standalone) {
	b.Helper()
	var n atomic.Int64
	var calls times
	b.SetParallelism(32) // times GOMAXPROCS
	before := cpuTime(b, os.Getpid())
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			began := time.Now()
			if _, err := s.provision(b.Context(), n.Add(1), dkimv1.KeyAlgorithm_KEY_ALGORITHM_ED25519); err != nil {
				b.Error(err)
				return
			}
			calls.add(time.Since(began))
		}
	})
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "domains/s")
	b.ReportMetric(float64((cpuTime(b, os.Getpid())-before).Microseconds())/float64(b.N), "µs-cpu/domain")
	calls.report(b, "call")
}

// BenchmarkProvisionRSA2048 is one caller at a time, with a full pool at each
// call.
func BenchmarkProvisionRSA2048(b *testing.B) {
	s := start(b)
	var calls times
	for i := range int64(b.N) {
		b.StopTimer()
		waitForKeys(b)
		b.StartTimer()
		began := time.Now()
		if _, err := s.provision(b.Context(), i, dkimv1.KeyAlgorithm_KEY_ALGORITHM_RSA_2048); err != nil {
			b.Fatal(err)
		}
		calls.add(time.Since(began))
	}
	b.StopTimer()
	calls.report(b, "call")
}

// BenchmarkWriteToServed writes 1 000 domains (Ed25519, two records each) per
// second and measures from the answer of the call to the moment the name
// server's replica holds the change.
func BenchmarkWriteToServed(b *testing.B) {
	const perSecond = 1000
	s := start(b)
	handle, err := replica.Acquire(replica.Config{
		Zone: zone, Dir: filepath.Join(s.dataDir, "replica"),
		Etcd: etcdclient.Config{Endpoints: []string{replica.InProcessScheme + s.dataDir}},
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = handle.Release() })

	var calls, served times
	var wg sync.WaitGroup
	b.ResetTimer()
	begin := time.Now()
	for i := range int64(b.N) {
		// Each when its time has come: a ticker leaves out what is late.
		time.Sleep(time.Until(begin.Add(time.Duration(i) * time.Second / perSecond)))
		wg.Go(func() {
			began := time.Now()
			d, err := s.provision(b.Context(), i, dkimv1.KeyAlgorithm_KEY_ALGORITHM_ED25519)
			if err != nil {
				b.Error(err)
				return
			}
			answered := time.Now()
			if err := handle.WaitRevision(b.Context(), d.GetRevision()); err != nil {
				b.Error(err)
				return
			}
			calls.add(answered.Sub(began))
			served.add(time.Since(answered))
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "writes/s")
	calls.report(b, "call")
	served.report(b, "served")
}
