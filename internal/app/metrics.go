package app

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/dkimzone/dkimzone/internal/keygen"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/telemetry"
)

var (
	callsTotal = promauto.NewCounterVec(prometheus.CounterOpts{
		Namespace: "dkimd", Subsystem: "grpc", Name: "calls_total",
		Help: "gRPC calls that ended, by method and status code.",
	}, []string{"method", "code"})

	callSeconds = promauto.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: "dkimd", Subsystem: "grpc", Name: "call_duration_seconds",
		Help:    "Time that unary gRPC calls took, REST and the Vault endpoint included, by method.",
		Buckets: telemetry.CallBuckets(),
	}, []string{"method"})
)

func countUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	start := time.Now()
	resp, err := handler(ctx, req)
	callsTotal.WithLabelValues(info.FullMethod, status.Code(err).String()).Inc()
	callSeconds.WithLabelValues(info.FullMethod).Observe(time.Since(start).Seconds())
	return resp, err
}

func countStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	err := handler(srv, stream)
	callsTotal.WithLabelValues(info.FullMethod, status.Code(err).String()).Inc()
	return err
}

// poolCollector shows the key pools of the process.
type poolCollector struct {
	mu    sync.Mutex
	pools map[*keygen.Pool]struct{}

	stock, waiting, made, failed, dry *prometheus.Desc
}

var pools = newPoolCollector()

func newPoolCollector() *poolCollector {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("dkimd_keygen_"+name, help, []string{"algorithm"}, nil)
	}
	c := &poolCollector{
		pools:   make(map[*keygen.Pool]struct{}),
		stock:   desc("stock", "RSA keys that lie ready."),
		waiting: desc("waiting", "Calls that wait for a key."),
		made:    desc("keys_made_total", "RSA keys generated."),
		failed:  desc("failures_total", "Attempts to generate a key that failed."),
		dry:     desc("dry_total", "Calls that found no key ready and had to wait."),
	}
	prometheus.MustRegister(c)
	return c
}

func (c *poolCollector) add(p *keygen.Pool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pools[p] = struct{}{}
}

func (c *poolCollector) remove(p *keygen.Pool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pools, p)
}

// Describe implements prometheus.Collector.
func (c *poolCollector) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.stock, c.waiting, c.made, c.failed, c.dry} {
		descs <- d
	}
}

// Collect implements prometheus.Collector.
func (c *poolCollector) Collect(metrics chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	sums := make(map[keypair.Algorithm]keygen.Stats)
	for p := range c.pools {
		for _, s := range p.Stats() {
			sum := sums[s.Algorithm]
			sum.Stock += s.Stock
			sum.Waiting += s.Waiting
			sum.Made += s.Made
			sum.Failed += s.Failed
			sum.Dry += s.Dry
			sums[s.Algorithm] = sum
		}
	}
	for a, s := range sums {
		gauge := func(d *prometheus.Desc, v int) {
			metrics <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), a.String())
		}
		counter := func(d *prometheus.Desc, v uint64) {
			metrics <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), a.String())
		}
		gauge(c.stock, s.Stock)
		gauge(c.waiting, s.Waiting)
		counter(c.made, s.Made)
		counter(c.failed, s.Failed)
		counter(c.dry, s.Dry)
	}
}
