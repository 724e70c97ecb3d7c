package milter

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// What becomes of a message.
const (
	signed     = "signed"
	unsigned   = "unsigned"
	tempFailed = "tempfailed"
)

// Why a message is unsigned or has to wait.
const (
	notInternal   = "not_internal"
	noSender      = "no_sender_domain"
	longHeader    = "long_header"
	longLines     = "long_lines"
	unknownDomain = "unknown_domain"
	noKey         = "no_key"
	failed        = "trouble"
)

// metrics are those of a Server.
type metrics struct {
	messages    *prometheus.CounterVec
	signatures  *prometheus.CounterVec
	seconds     prometheus.Histogram
	longLines   prometheus.Counter
	connections prometheus.Gauge
}

// newMetrics registers metrics, nowhere if r is nil. Counts that were not told of yet
// are 0, so that the first one shows as a rise.
func newMetrics(r prometheus.Registerer) *metrics {
	factory := promauto.With(r)
	m := &metrics{
		messages: factory.NewCounterVec(prometheus.CounterOpts{
			Namespace: "dkimd", Subsystem: "milter", Name: "messages_total",
			Help: "Messages, by what became of them, signed, unsigned or tempfailed, and why.",
		}, []string{"outcome", "reason"}),
		signatures: factory.NewCounterVec(prometheus.CounterOpts{
			Namespace: "dkimd", Subsystem: "milter", Name: "signatures_total",
			Help: "Signatures that were put into messages, by algorithm.",
		}, []string{"algorithm"}),
		seconds: factory.NewHistogram(prometheus.HistogramOpts{
			Namespace: "dkimd", Subsystem: "milter", Name: "sign_duration_seconds",
			Help:    "Time from the end of a message to its signatures, or to the failure to make them.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}),
		longLines: factory.NewCounter(prometheus.CounterOpts{
			Namespace: "dkimd", Subsystem: "milter", Name: "long_line_messages_total",
			Help: "Messages with lines that are too long to be sent as they are.",
		}),
		connections: factory.NewGauge(prometheus.GaugeOpts{
			Namespace: "dkimd", Subsystem: "milter", Name: "connections",
			Help: "Open connections of mail servers.",
		}),
	}
	m.messages.WithLabelValues(signed, "")
	m.messages.WithLabelValues(tempFailed, failed)
	for _, reason := range []string{notInternal, noSender, longHeader, longLines, unknownDomain, noKey, failed} {
		m.messages.WithLabelValues(unsigned, reason)
	}
	for _, algorithm := range []string{"rsa-sha256", "ed25519-sha256"} {
		m.signatures.WithLabelValues(algorithm)
	}
	return m
}
