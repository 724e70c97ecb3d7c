package app

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/dkimzone/dkimzone/internal/keygen"
	"github.com/dkimzone/dkimzone/internal/keypair"
)

func TestMetricNames(t *testing.T) {
	pool := keygen.New(keygen.Options{Stock: map[keypair.Algorithm]int{keypair.RSA2048: 0}})
	t.Cleanup(pool.Close)
	pools.add(pool)
	t.Cleanup(func() { pools.remove(pool) })
	callsTotal.WithLabelValues("/x/Y", "OK").Inc()
	callSeconds.WithLabelValues("/x/Y").Observe(1)

	problems, err := testutil.GatherAndLint(prometheus.DefaultGatherer, "dkimd_grpc_calls_total", "dkimd_grpc_call_duration_seconds",
		"dkimd_keygen_stock", "dkimd_keygen_waiting", "dkimd_keygen_keys_made_total", "dkimd_keygen_failures_total", "dkimd_keygen_dry_total")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, f := range families {
		found = found || strings.HasPrefix(f.GetName(), "dkimd_keygen_stock")
	}
	if !found {
		t.Error("a running pool does not show")
	}
}
