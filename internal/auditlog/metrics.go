package auditlog

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

func counter(name, help string) prometheus.Counter {
	return promauto.NewCounter(prometheus.CounterOpts{Namespace: "dkimd", Subsystem: "audit", Name: name, Help: help})
}

func gauge(name, help string) prometheus.Gauge {
	return promauto.NewGauge(prometheus.GaugeOpts{Namespace: "dkimd", Subsystem: "audit", Name: name, Help: help})
}

var (
	linesTotal     = counter("lines_total", "Lines written to the audit log.")
	octetsTotal    = counter("octets_total", "Octets written to the audit log.")
	failuresTotal  = counter("failures_total", "Tries to write the audit log that failed. What they were to write is tried again.")
	lostTotal      = counter("lost_total", "Refused calls that are not in the audit log because it could not be written for too long.")
	rotationsTotal = counter("rotations_total", "Files of the audit log that were full.")
	failingGauge   = gauge("failing", "1 while the audit log cannot be written and changes are refused.")
	sequence       = gauge("sequence", "Place of the last line in the chain of the audit log.")

	commitSeconds = promauto.NewHistogram(prometheus.HistogramOpts{
		Namespace: "dkimd", Subsystem: "audit", Name: "commit_seconds",
		Help:    "Time to store the lines that waited, all at once.",
		Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .5, 1},
	})
)
