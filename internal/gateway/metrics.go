package gateway

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/dkimzone/dkimzone/internal/telemetry"
)

var vaultSeconds = promauto.NewHistogram(prometheus.HistogramOpts{
	Namespace: "dkimd", Subsystem: "vault", Name: "request_duration_seconds",
	Help:    "Time that requests to the Vault endpoint took, each of which makes one or two calls.",
	Buckets: telemetry.CallBuckets(),
})
