package telemetry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// checkTimeout bounds each check, so that /readyz answers before those who ask
// give up.
const checkTimeout = 4 * time.Second

// Check is a condition for being ready. Func returns nil when it holds, else
// why it does not, in words for whoever asks. It must return soon after its
// context ends and be safe for concurrent use.
type Check struct {
	Name string
	Func func(ctx context.Context) error
}

// NewHandler serves three paths over GET and HEAD:
//
//   - /metrics: the metrics of gatherer.
//   - /healthz: 200 as long as the process answers.
//   - /readyz: 200 when all checks hold, else 503. The body has a line for
//     each check, "etcd: ok" or "etcd: " and why not. With ?exclude=NAME, which may
//     be there more than once, it is asked without that check; 400 if there is none of
//     that name.
//
// Failures to gather metrics go to logger.
func NewHandler(gatherer prometheus.Gatherer, checks []Check, logger *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(logger.Handler(), slog.LevelError),
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: 8,
	}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		write(w, http.StatusOK, []byte("ok\n"))
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		checks := checks
		for _, name := range r.URL.Query()["exclude"] {
			named := func(c Check) bool { return c.Name == name }
			if !slices.ContainsFunc(checks, named) {
				write(w, http.StatusBadRequest, []byte("exclude: there is no check of that name\n"))
				return
			}
			checks = slices.DeleteFunc(slices.Clone(checks), named)
		}
		status := http.StatusOK
		var body bytes.Buffer
		for i, err := range run(r.Context(), checks) {
			if err == nil {
				fmt.Fprintf(&body, "%s: ok\n", checks[i].Name)
				continue
			}
			status = http.StatusServiceUnavailable
			fmt.Fprintf(&body, "%s: %s\n", checks[i].Name, oneLine(err))
		}
		write(w, status, body.Bytes())
	})
	return mux
}

// NewServer returns a server of [NewHandler] with limits on slow clients. It is for plain HTTP on an address that only
// operators reach. The caller serves and shuts it down.
func NewServer(gatherer prometheus.Gatherer, checks []Check, logger *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           NewHandler(gatherer, checks, logger),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
	}
}

// run runs all checks at once and returns their errors in their order.
func run(ctx context.Context, checks []Check) []error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	errs := make([]error, len(checks))
	var wg sync.WaitGroup
	for i, c := range checks {
		wg.Go(func() {
			errs[i] = c.Func(ctx)
			if errors.Is(errs[i], context.DeadlineExceeded) {
				errs[i] = fmt.Errorf("no answer in time: %w", errs[i])
			}
		})
	}
	wg.Wait()
	return errs
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

func write(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client is gone
}

// CallBuckets are the upper bounds, in seconds, of histograms of what is answered from memory in
// some 10 µs or has to wait for etcd, the disk or a key. Up to 100 ms they grow by two thirds at most.
func CallBuckets() []float64 {
	return []float64{
		10e-6, 15e-6, 20e-6, 30e-6, 50e-6, 70e-6, 100e-6, 150e-6, 200e-6, 300e-6, 500e-6, 700e-6,
		1e-3, 1.5e-3, 2e-3, 3e-3, 5e-3, 7e-3, 10e-3, 15e-3, 20e-3, 30e-3, 50e-3, 70e-3, .1, .25, .5, 1, 2.5, 5, 10, 30,
	}
}
