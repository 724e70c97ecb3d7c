package audit

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

var (
	failuresTotal = promauto.NewCounter(prometheus.CounterOpts{
		Namespace: "dkimd", Subsystem: "audit", Name: "unstored_total",
		Help: "Changes and calls that ended before their line of the audit log was stored.",
	})
	repeatedTotal = promauto.NewCounter(prometheus.CounterOpts{
		Namespace: "dkimd", Subsystem: "audit", Name: "repeated_total",
		Help: "Refused calls that have no line of their own in the audit log, being many of one caller; one line counts them.",
	})
)
