package dkim

import (
	"github.com/coredns/coredns/plugin"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/dkimzone/dkimzone/internal/replica"
)

// result is what a question led to.
type result int

const (
	resultSuccess result = iota
	resultNoData
	resultNXDomain
	resultServFail
	resultRefused
	resultNotImp
	resultFormErr
	resultFallthrough
	resultCount
)

var resultNames = [resultCount]string{
	resultSuccess: "success", resultNoData: "nodata", resultNXDomain: "nxdomain", resultServFail: "servfail",
	resultRefused: "refused", resultNotImp: "notimp", resultFormErr: "formerr", resultFallthrough: "fallthrough",
}

var (
	queries = promauto.NewCounterVec(prometheus.CounterOpts{
		Namespace: plugin.Namespace,
		Subsystem: pluginName,
		Name:      "queries_total",
		Help:      "Counter of queries for names in the zone, by what they led to.",
	}, []string{"zone", "result"})

	transfers = promauto.NewCounterVec(prometheus.CounterOpts{
		Namespace: plugin.Namespace,
		Subsystem: pluginName,
		Name:      "transfers_total",
		Help:      "Counter of zone transfers, by what they led to.",
	}, []string{"zone", "result"})

	writeToServed = promauto.NewHistogramVec(prometheus.HistogramOpts{
		Namespace:                   plugin.Namespace,
		Subsystem:                   pluginName,
		Name:                        "write_to_served_seconds",
		Help:                        "Histogram of the time from when a record was written to when it was served.",
		Buckets:                     prometheus.ExponentialBuckets(0.001, 2, 16),
		NativeHistogramBucketFactor: plugin.NativeHistogramBucketFactor,
	}, []string{"zone"})
)

// What a transfer led to.
const (
	transferFull        = "full"
	transferIncremental = "incremental"
	transferCurrent     = "current"
	transferFailed      = "failed"
	transferRefused     = "refused"
)

var transferResults = []string{transferFull, transferIncremental, transferCurrent, transferFailed, transferRefused}

// counters are a zone's query counters, looked up once.
type counters [resultCount]prometheus.Counter

func newCounters(zone string) (c counters) {
	for i, name := range resultNames {
		c[i] = queries.WithLabelValues(zone, name)
	}
	for _, name := range transferResults {
		transfers.WithLabelValues(zone, name)
	}
	return c
}

func (c *counters) count(r result) { c[r].Inc() }

// rcode counts an error reply.
func (c *counters) rcode(rcode int) {
	switch rcode {
	case dns.RcodeRefused:
		c.count(resultRefused)
	case dns.RcodeNotImplemented:
		c.count(resultNotImp)
	case dns.RcodeFormatError:
		c.count(resultFormErr)
	default:
		c.count(resultServFail)
	}
}

// replicas tells of the replicas of this process when it is asked. There is one
// for the process, since replicas outlive a reload.
type replicas struct{}

func init() { prometheus.MustRegister(replicas{}) }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(plugin.Namespace, pluginName, name), help, append([]string{"zone"}, labels...), nil)
}

var (
	recordsDesc    = desc("records", "Number of records that are served.")
	revisionDesc   = desc("revision", "etcd revision of the last change of the zone that is served, 0 if the zone is not loaded.")
	stalenessDesc  = desc("staleness_seconds", "Time since what is served was last known to be all that etcd has.")
	stateDesc      = desc("replica_state", "1 for the state that the replica is in, 0 for the others.", "state")
	heldDesc       = desc("held_deletions", "Number of records that a resync in hold would delete, 0 if none is held.")
	resyncsDesc    = desc("resyncs_total", "Counter of listings of the whole zone, by cause.", "cause")
	repairsDesc    = desc("reconcile_repairs_total", "Counter of records that a periodic listing found wrong.")
	invalidDesc    = desc("invalid_values_total", "Counter of values in etcd that could not be served.")
	fileErrorsDesc = desc("file_errors_total", "Counter of failures to read or write the data file.")
)

// Describe implements prometheus.Collector.
func (replicas) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		recordsDesc, revisionDesc, stalenessDesc, stateDesc, heldDesc, resyncsDesc, repairsDesc, invalidDesc, fileErrorsDesc,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (replicas) Collect(ch chan<- prometheus.Metric) {
	for _, s := range replica.Statuses() {
		zone := s.Zone + "."
		gauge := func(d *prometheus.Desc, v float64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, append([]string{zone}, labels...)...)
		}
		counter := func(d *prometheus.Desc, v uint64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), append([]string{zone}, labels...)...)
		}
		gauge(recordsDesc, float64(s.Records))
		gauge(revisionDesc, float64(s.ZoneRevision))
		gauge(stalenessDesc, s.Staleness.Seconds())
		for _, state := range replica.States {
			v := 0.0
			if state == s.State {
				v = 1
			}
			gauge(stateDesc, v, string(state))
		}
		gauge(heldDesc, float64(s.HeldRecords))
		for cause, n := range s.Resyncs {
			counter(resyncsDesc, n, string(cause))
		}
		counter(repairsDesc, s.Repairs)
		counter(invalidDesc, s.Invalid)
		counter(fileErrorsDesc, s.FileErrors)
	}
}
