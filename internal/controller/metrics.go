package controller

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

var (
	leading = promauto.NewGauge(prometheus.GaugeOpts{
		Namespace: "dkimd", Subsystem: "controller", Name: "leading",
		Help: "1 while this process leads the rotation.",
	})
	dueLag = promauto.NewGauge(prometheus.GaugeOpts{
		Namespace: "dkimd", Subsystem: "controller", Name: "due_lag_seconds",
		Help: "How long the domain that has waited longest has been due.",
	})
	handled = promauto.NewCounter(prometheus.CounterOpts{
		Namespace: "dkimd", Subsystem: "controller", Name: "domains_handled_total",
		Help: "Due domains that were looked at.",
	})
	failures = promauto.NewCounterVec(prometheus.CounterOpts{
		Namespace: "dkimd", Subsystem: "controller", Name: "failures_total",
		Help: "Work that failed and is tried again: reading the index, or handling a domain.",
	}, []string{"what"})
	steps = promauto.NewCounterVec(prometheus.CounterOpts{
		Namespace: "dkimd", Subsystem: "controller", Name: "steps_total",
		Help: "Changes of keys' states, by step and reason.",
	}, []string{"step", "reason"})
	findings = promauto.NewCounterVec(prometheus.CounterOpts{
		Namespace: "dkimd", Subsystem: "controller", Name: "findings_total",
		Help: "What DNS showed of customers' CNAMEs, by class, and of our own records.",
	}, []string{"what", "class"})
	disclosed = promauto.NewCounter(prometheus.CounterOpts{
		Namespace: "dkimd", Subsystem: "controller", Name: "keys_disclosed_total",
		Help: "Private keys that were made public, as their brands wanted.",
	})
	paced = promauto.NewCounter(prometheus.CounterOpts{
		Namespace: "dkimd", Subsystem: "controller", Name: "paced_total",
		Help: "Switches that were put off to keep the pace.",
	})
)
