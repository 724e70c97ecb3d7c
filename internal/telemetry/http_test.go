package telemetry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dkimzone/dkimzone/internal/telemetry"
)

var discard = slog.New(slog.DiscardHandler)

func ask(h http.Handler, method, path string) (status int, body string, header http.Header) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
	return w.Code, w.Body.String(), w.Header()
}

func holds(context.Context) error { return nil }

func fails(text string) func(context.Context) error {
	return func(context.Context) error { return errors.New(text) }
}

func TestReady(t *testing.T) {
	tests := []struct {
		name   string
		checks []telemetry.Check
		status int
		body   string
	}{
		{"no check", nil, 200, ""},
		{"all hold", []telemetry.Check{{"etcd", holds}, {"dns", holds}}, 200, "etcd: ok\ndns: ok\n"},
		{"one fails", []telemetry.Check{{"etcd", holds}, {"dns", fails("zone a.example is not served")}}, 503, "etcd: ok\ndns: zone a.example is not served\n"},
		{"both fail", []telemetry.Check{{"etcd", fails("gone")}, {"dns", fails("down")}}, 503, "etcd: gone\ndns: down\n"},
		{"an error of several lines", []telemetry.Check{{"etcd", fails("gone\nfor good")}}, 503, "etcd: gone for good\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := telemetry.NewHandler(prometheus.NewRegistry(), tt.checks, discard)
			status, body, header := ask(h, http.MethodGet, "/readyz")
			if status != tt.status || body != tt.body {
				t.Errorf("GET /readyz = %d %q, want %d %q", status, body, tt.status, tt.body)
			}
			if header.Get("Cache-Control") != "no-store" {
				t.Error("the answer may be cached")
			}
			if status, body, _ := ask(h, http.MethodGet, "/healthz"); status != 200 || body != "ok\n" {
				t.Errorf("GET /healthz = %d %q, want 200 whatever the checks say", status, body)
			}
		})
	}
}

func TestReadyWithout(t *testing.T) {
	h := telemetry.NewHandler(prometheus.NewRegistry(), []telemetry.Check{{"etcd", fails("gone")}, {"audit log", fails("full")}, {"dns", holds}}, discard)
	for query, want := range map[string]string{
		"exclude=etcd":                     "503 audit log: full\ndns: ok\n",
		"exclude=etcd&exclude=audit%20log": "200 dns: ok\n",
		"exclude=dns":                      "503 etcd: gone\naudit log: full\n",
		"exclude=dsn":                      "400 exclude: there is no check of that name\n",
		"":                                 "503 etcd: gone\naudit log: full\ndns: ok\n",
	} {
		if status, body, _ := ask(h, http.MethodGet, "/readyz?"+query); fmt.Sprintf("%d %s", status, body) != want {
			t.Errorf("/readyz?%s = %d %q, want %q", query, status, body, want)
		}
	}
}

func TestChecksAreBoundedAndRunAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangs := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		h := telemetry.NewHandler(prometheus.NewRegistry(), []telemetry.Check{{"one", hangs}, {"two", hangs}, {"three", holds}}, discard)
		began := time.Now()
		status, body, _ := ask(h, http.MethodGet, "/readyz")
		const want = "one: no answer in time: context deadline exceeded\ntwo: no answer in time: context deadline exceeded\nthree: ok\n"
		if status != 503 || body != want {
			t.Errorf("GET /readyz = %d %q, want 503 %q", status, body, want)
		}
		if took := time.Since(began); took != 4*time.Second {
			t.Errorf("two checks that hang took %v, want 4s", took)
		}
	})
}

func TestPathsAndMethods(t *testing.T) {
	h := telemetry.NewHandler(prometheus.NewRegistry(), nil, discard)
	tests := []struct {
		method, path string
		want         int
	}{
		{http.MethodGet, "/metrics", 200},
		{http.MethodHead, "/metrics", 200},
		{http.MethodHead, "/readyz", 200},
		{http.MethodHead, "/healthz", 200},
		{http.MethodPost, "/readyz", 405},
		{http.MethodPut, "/metrics", 405},
		{http.MethodGet, "/", 404},
		{http.MethodGet, "/debug/pprof/", 404},
	}
	for _, tt := range tests {
		t.Run(tt.method+" "+tt.path, func(t *testing.T) {
			if got, _, _ := ask(h, tt.method, tt.path); got != tt.want {
				t.Errorf("status %d, want %d", got, tt.want)
			}
		})
	}
}

// broken is a collector that cannot tell its value.
type broken struct{ desc *prometheus.Desc }

func (b broken) Describe(ch chan<- *prometheus.Desc) { ch <- b.desc }

func (b broken) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.NewInvalidMetric(b.desc, errors.New("out of order"))
}

func TestMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	counter := prometheus.NewCounter(prometheus.CounterOpts{Name: "things_total", Help: "Things."})
	counter.Add(3)
	registry.MustRegister(counter, broken{prometheus.NewDesc("broken", "Broken.", nil, nil)})
	var log bytes.Buffer
	h := telemetry.NewHandler(registry, nil, slog.New(slog.NewTextHandler(&log, nil)))
	status, body, _ := ask(h, http.MethodGet, "/metrics")
	if status != 200 || !strings.Contains(body, "things_total 3") {
		t.Errorf("GET /metrics = %d %q, want the good metric", status, body)
	}
	if !strings.Contains(log.String(), "out of order") {
		t.Errorf("log does not tell of the broken metric: %q", log.String())
	}
}

func TestNewServer(t *testing.T) {
	s := telemetry.NewServer(prometheus.DefaultGatherer, []telemetry.Check{{"etcd", fails("gone")}}, discard)
	if s.ReadHeaderTimeout <= 0 || s.ReadTimeout <= 0 || s.WriteTimeout <= 4*time.Second || s.IdleTimeout <= 0 || s.MaxHeaderBytes <= 0 {
		t.Errorf("server lacks a limit: %+v", s)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- s.Serve(l) }()
	get := func(path string) (int, string) {
		t.Helper()
		resp, err := http.Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	if status, body := get("/readyz"); status != 503 || body != "etcd: gone\n" {
		t.Errorf("/readyz = %d %q", status, body)
	}
	if status, body := get("/metrics"); status != 200 || !strings.Contains(body, "go_goroutines") {
		t.Errorf("/metrics = %d without the process's metrics", status)
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		t.Errorf("Serve: %v", err)
	}
}
