package admission_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dkimzone/dkimzone/internal/admission"
	"github.com/dkimzone/dkimzone/internal/authn"
	"github.com/dkimzone/dkimzone/internal/pki"
	"github.com/dkimzone/dkimzone/test/output"
)

// question is what the tests ask.
var question = admission.Request{
	Brand: "acme", Domain: "spamtrap.dk", Operation: admission.Provision,
	Caller: authn.Caller{
		Identity: authn.Identity{Role: authn.Brand, Name: "shop", Brand: "acme"}, Method: authn.Secret,
		Addr: netip.MustParseAddr("192.0.2.7"), RequestID: "r-1",
	},
}

const token = "correct-horse"

// provider is the system that is asked, over TLS, and what it takes to ask it.
type provider struct {
	ca      *pki.CA
	options admission.Options
	log     *output.Buffer
}

func newProvider(t *testing.T) *provider {
	t.Helper()
	p := &provider{ca: newCA(t), log: &output.Buffer{}}
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cert, key, err := p.ca.EnsureClient("dkimd", pki.Identity{Role: "etcd", Name: "dkimd"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	p.options = admission.Options{
		Timeout: 10 * time.Second, CAFile: p.ca.CertFile(), CertFile: cert, KeyFile: key, TokenFile: file,
		Logger: slog.New(slog.NewTextHandler(p.log, nil)),
	}
	return p
}

func newCA(t *testing.T) *pki.CA {
	t.Helper()
	ca, err := pki.EnsureCA(t.TempDir(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// serverTLS is that of a server which wants a client certificate of the same CA.
func serverTLS(t *testing.T, ca *pki.CA, hosts ...string) *tls.Config {
	t.Helper()
	certFile, keyFile, err := ca.EnsureServer("server", hosts, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(ca.CertFile())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	return &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, MinVersion: tls.VersionTLS12}
}

// serve lets the provider answer so over HTTP.
func (p *provider) serve(t *testing.T, h http.HandlerFunc) {
	t.Helper()
	p.serveTLS(t, serverTLS(t, p.ca, "127.0.0.1"), h)
}

func (p *provider) serveTLS(t *testing.T, c *tls.Config, h http.HandlerFunc) {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.TLS = c
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	t.Cleanup(s.Close)
	p.options.URL = s.URL + "/admit?from=dkimd"
}

func (p *provider) gate(t *testing.T) *admission.Gate {
	t.Helper()
	g, err := admission.New(p.options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return g
}

// wantUnavailable checks that there was no answer, and that nobody is told more.
func (p *provider) wantUnavailable(t *testing.T, err error) {
	t.Helper()
	var denied *admission.DeniedError
	if !errors.Is(err, admission.ErrUnavailable) || errors.As(err, &denied) {
		t.Fatalf("got %v, want %v", err, admission.ErrUnavailable)
	}
	if text := err.Error(); strings.Contains(text, "127.0.0.1") || strings.Contains(text, token) {
		t.Errorf("the error says too much: %s", text)
	}
	if log := p.log.String(); !strings.Contains(log, "admission unknown") || strings.Contains(log, token) {
		t.Errorf("log: %s", log)
	}
}

func says(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		_, _ = io.WriteString(w, body)
	}
}

func TestHTTPQuestion(t *testing.T) {
	p := newProvider(t)
	type asked struct {
		Method, Path, Authorization, ContentType, Peer string
		Body                                           any
	}
	seen := make(chan asked, 1)
	p.serve(t, func(w http.ResponseWriter, r *http.Request) {
		a := asked{
			Method: r.Method, Path: r.URL.String(), Authorization: r.Header.Get("Authorization"), ContentType: r.Header.Get("Content-Type"),
			Peer: r.TLS.PeerCertificates[0].Subject.CommonName,
		}
		if err := json.NewDecoder(r.Body).Decode(&a.Body); err != nil {
			t.Error(err)
		}
		seen <- a
		says(`{"allowed":true}`)(w, r)
	})
	if err := p.gate(t).Admit(t.Context(), question); err != nil {
		t.Fatal(err)
	}
	want := asked{
		Method: "POST", Path: "/admit?from=dkimd", Authorization: "Bearer " + token, ContentType: "application/json", Peer: "dkimd",
		Body: map[string]any{
			"brand": "acme", "domain": "spamtrap.dk", "operation": "provision",
			"caller": map[string]any{
				"role": "brand", "name": "shop", "brand": "acme", "method": "secret", "address": "192.0.2.7", "request_id": "r-1",
			},
		},
	}
	if diff := cmp.Diff(want, <-seen); diff != "" {
		t.Errorf("question (-want +got):\n%s", diff)
	}
}

func TestHTTPAnswers(t *testing.T) {
	tests := []struct {
		name, body string
		reason     string // of a denial
		denied     bool
	}{
		{"allowed", `{"allowed":true}`, "", false},
		{"allowed, with more", `{"allowed":true,"reason":"x","ttl":5}`, "", false},
		{"denied", `{"allowed":false}`, "", true},
		{"denied without a reason", `{"allowed":false,"reason":null}`, "", true},
		{"denied for a reason", `{"allowed":false,"reason":"no such mail domain"}`, "no such mail domain", true},
		{"denied for a reason that is no text for terminals", `{"allowed":false,"reason":" a\u001b[31m\nb\u202e "}`, "a [31m b", true},
		{"denied for a long reason", `{"allowed":false,"reason":"` + strings.Repeat("ü", 1000) + `"}`, strings.Repeat("ü", 200), true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newProvider(t)
			p.serve(t, says(tt.body))
			err := p.gate(t).Admit(t.Context(), question)
			if !tt.denied {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			var denied *admission.DeniedError
			if !errors.As(err, &denied) || errors.Is(err, admission.ErrUnavailable) {
				t.Fatalf("got %v, want a DeniedError", err)
			}
			want := admission.DeniedError{Brand: "acme", Domain: "spamtrap.dk", Reason: tt.reason}
			if diff := cmp.Diff(want, *denied); diff != "" {
				t.Errorf("denial (-want +got):\n%s", diff)
			}
			if text := denied.Error(); !strings.Contains(text, "spamtrap.dk") || !strings.Contains(text, "acme") || !strings.HasSuffix(text, tt.reason) {
				t.Errorf("error %q", text)
			}
		})
	}
}

func TestHTTPWithoutClearAnswer(t *testing.T) {
	tests := map[string]http.HandlerFunc{
		"server error": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"allowed, with an error status": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, `{"allowed":true}`)
		},
		"created":    func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusCreated) },
		"no content": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) },
		"empty":      says(""),
		"no JSON":    says("OK"),
		"a page":     func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"allowed":true}<html>`) },
		"JSON named a page": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			_, _ = io.WriteString(w, `{"allowed":true}`)
		},
		"no object":           says(`true`),
		"null":                says(`null`),
		"array":               says(`[{"allowed":true}]`),
		"nothing in it":       says(`{}`),
		"allowed is a text":   says(`{"allowed":"true"}`),
		"allowed is null":     says(`{"allowed":null}`),
		"allowed is a number": says(`{"allowed":1}`),
		"in capitals":         says(`{"Allowed":true}`),
		"reason is an object": says(`{"allowed":false,"reason":{}}`),
		"two objects":         says(`{"allowed":true}{"allowed":false}`),
		"cut":                 says(`{"allowed":true`),
		"huge":                says(`{"allowed":true,"more":"` + strings.Repeat("x", 1<<20) + `"}`),
		"endless": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"allowed":true,"more":"`)
			for {
				if _, err := w.Write(bytes.Repeat([]byte{'x'}, 4096)); err != nil {
					return
				}
			}
		},
		"huge header": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-More", strings.Repeat("x", 64<<10))
			says(`{"allowed":true}`)(w, r)
		},
		"broken off": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, `{"allowed":true}`)
			panic(http.ErrAbortHandler)
		},
	}
	for name, h := range tests {
		t.Run(name, func(t *testing.T) {
			p := newProvider(t)
			p.serve(t, h)
			p.wantUnavailable(t, p.gate(t).Admit(t.Context(), question))
		})
	}
}

func TestRedirectIsNotFollowed(t *testing.T) {
	p := newProvider(t)
	var hits atomic.Int64
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hits.Add(1)
		says(`{"allowed":true}`)(w, r)
	}))
	defer elsewhere.Close()
	for _, code := range []int{301, 302, 303, 307, 308} {
		p.serve(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere.URL, code) })
		p.wantUnavailable(t, p.gate(t).Admit(t.Context(), question))
	}
	if hits.Load() != 0 {
		t.Errorf("%d redirects were followed", hits.Load())
	}
}

// A slow answer, before or in the middle of it, does not hold anybody up beyond the
// timeout.
func TestSlow(t *testing.T) {
	for name, first := range map[string]string{"nothing": "", "half": `{"allowed":`} {
		t.Run(name, func(t *testing.T) {
			p := newProvider(t)
			p.options.Timeout = 50 * time.Millisecond
			p.serve(t, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body) // else the end of the connection is not noticed
				w.Header().Set("Content-Type", "application/json")
				_, _ = io.WriteString(w, first)
				if first != "" {
					w.(http.Flusher).Flush()
				}
				<-r.Context().Done()
			})
			start := time.Now()
			p.wantUnavailable(t, p.gate(t).Admit(t.Context(), question))
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("took %s", took)
			}
		})
	}
}

func TestWrongPeer(t *testing.T) {
	tests := map[string]func(t *testing.T, p *provider){
		"certificate of another CA": func(t *testing.T, p *provider) {
			p.serveTLS(t, serverTLS(t, newCA(t), "127.0.0.1"), says(`{"allowed":true}`))
		},
		"certificate of another host": func(t *testing.T, p *provider) {
			p.serveTLS(t, serverTLS(t, p.ca, "127.0.0.2"), says(`{"allowed":true}`))
		},
		"client certificate as the server's": func(t *testing.T, p *provider) {
			c := serverTLS(t, p.ca, "127.0.0.1")
			pair, err := tls.LoadX509KeyPair(p.options.CertFile, p.options.KeyFile)
			if err != nil {
				t.Fatal(err)
			}
			c.Certificates = []tls.Certificate{pair}
			p.serveTLS(t, c, says(`{"allowed":true}`))
		},
		"old protocol": func(t *testing.T, p *provider) {
			c := serverTLS(t, p.ca, "127.0.0.1")
			c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
			p.serveTLS(t, c, says(`{"allowed":true}`))
		},
		"client certificate is wanted": func(t *testing.T, p *provider) {
			p.serve(t, says(`{"allowed":true}`))
			p.options.CertFile, p.options.KeyFile = "", ""
		},
		"nobody listens": func(t *testing.T, p *provider) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			p.options.URL = "https://" + ln.Addr().String()
			ln.Close()
		},
		"no TLS": func(t *testing.T, p *provider) {
			s := httptest.NewServer(says(`{"allowed":true}`))
			t.Cleanup(s.Close)
			p.options.URL = strings.Replace(s.URL, "http://", "https://", 1)
		},
	}
	for name, set := range tests {
		t.Run(name, func(t *testing.T) {
			p := newProvider(t)
			set(t, p)
			p.wantUnavailable(t, p.gate(t).Admit(t.Context(), question))
		})
	}
}

// raise makes most n if it is less.
func raise(most *atomic.Int64, n int64) {
	for {
		if m := most.Load(); n <= m || most.CompareAndSwap(m, n) {
			return
		}
	}
}

// Thousands who ask at the same time a system that does not answer: few questions
// are under way, all are refused in time, and nothing is left of them.
func TestThousandsOfCallers(t *testing.T) {
	p := newProvider(t)
	p.options.Timeout, p.options.Concurrency = 500*time.Millisecond, 4
	var now, most atomic.Int64
	p.serve(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		n := now.Add(1)
		defer now.Add(-1)
		raise(&most, n)
		<-r.Context().Done()
	})
	g := p.gate(t)
	before := runtime.NumGoroutine()
	start := time.Now()
	var wg sync.WaitGroup
	var unavailable atomic.Int64
	for i := range 3000 {
		wg.Go(func() {
			r := question
			r.Domain = fmt.Sprintf("d%d.example", i)
			if err := g.Admit(t.Context(), r); errors.Is(err, admission.ErrUnavailable) {
				unavailable.Add(1)
			}
		})
	}
	wg.Wait()
	if unavailable.Load() != 3000 {
		t.Errorf("%d of 3000 were refused", unavailable.Load())
	}
	// A turn may pass on while the server has not noticed yet that the one before
	// is over.
	if most.Load() > 2*4 {
		t.Errorf("%d questions at a time, want 4", most.Load())
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("took %s", took)
	}
	if after := runtime.NumGoroutine(); after > before+100 {
		t.Errorf("%d goroutines, %d before", after, before)
	}
}

func TestCallerGivesUp(t *testing.T) {
	p := newProvider(t)
	ctx, cancel := context.WithCancel(t.Context())
	p.serve(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		cancel()
		<-r.Context().Done()
	})
	if err := p.gate(t).Admit(ctx, question); !errors.Is(err, context.Canceled) || errors.Is(err, admission.ErrUnavailable) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

func TestMemory(t *testing.T) {
	p := newProvider(t)
	at := time.Unix(1_800_000_000, 0)
	p.options.Remember, p.options.Now = 10*time.Second, func() time.Time { return at }
	var asked atomic.Int64
	var body atomic.Value
	body.Store(`{"allowed":true}`)
	p.serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		says(body.Load().(string))(w, r)
	})
	g := p.gate(t)
	ask := func(r admission.Request, wantAllowed bool, wantAsked int64) {
		t.Helper()
		before := asked.Load()
		if err := g.Admit(t.Context(), r); (err == nil) != wantAllowed {
			t.Errorf("got %v", err)
		}
		if n := asked.Load() - before; n != wantAsked {
			t.Errorf("asked %d times, want %d", n, wantAsked)
		}
	}
	ask(question, true, 1)
	ask(question, true, 0)
	again := question
	again.Caller.RequestID, again.Caller.Addr = "r-2", netip.Addr{}
	ask(again, true, 0)
	for _, change := range []func(*admission.Request){
		func(r *admission.Request) { r.Brand = "other" },
		func(r *admission.Request) { r.Domain = "spamtrap.example" },
		func(r *admission.Request) { r.Operation = admission.TakeOver },
		func(r *admission.Request) { r.Caller.Name = "another" },
		func(r *admission.Request) { r.Caller.Role = authn.Admin },
		func(r *admission.Request) { r.Caller.Method = authn.Token },
	} {
		r := question
		change(&r)
		ask(r, true, 1)
	}
	body.Store(`{"allowed":false}`)
	at = at.Add(9 * time.Second)
	ask(question, true, 0)
	at = at.Add(time.Second)
	ask(question, false, 1)
	ask(question, false, 1) // a denial is not remembered
	body.Store(`no answer`)
	ask(question, false, 1)

	// It forgets rather than grow.
	body.Store(`{"allowed":true}`)
	for i := range 10_001 {
		r := question
		r.Domain = fmt.Sprintf("d%d.example", i)
		ask(r, true, 1)
	}
	first, last := question, question
	first.Domain, last.Domain = "d0.example", "d10000.example"
	ask(first, true, 1)
	ask(last, true, 0)
}

func TestNothingIsRememberedUnasked(t *testing.T) {
	p := newProvider(t)
	var asked atomic.Int64
	p.serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		says(`{"allowed":true}`)(w, r)
	})
	g := p.gate(t)
	for range 3 {
		if err := g.Admit(t.Context(), question); err != nil {
			t.Fatal(err)
		}
	}
	if asked.Load() != 3 {
		t.Errorf("asked %d times, want 3", asked.Load())
	}
}

func TestToken(t *testing.T) {
	p := newProvider(t)
	var seen atomic.Value
	p.serve(t, func(w http.ResponseWriter, r *http.Request) {
		seen.Store(r.Header.Get("Authorization"))
		says(`{"allowed":true}`)(w, r)
	})
	g := p.gate(t)
	if err := os.WriteFile(p.options.TokenFile, []byte("another-token"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := g.Admit(t.Context(), question); err != nil || seen.Load() != "Bearer another-token" {
		t.Errorf("sent %v: %v", seen.Load(), err)
	}
	for _, bad := range []string{"", "two words", "a\r\nX-Admin: yes", strings.Repeat("x", 9000), "ü"} {
		if err := os.WriteFile(p.options.TokenFile, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		seen.Store("")
		p.wantUnavailable(t, g.Admit(t.Context(), question))
		if seen.Load() != "" {
			t.Errorf("sent %v", seen.Load())
		}
		if _, err := admission.New(p.options); err == nil || bad != "" && strings.Contains(err.Error(), bad) {
			t.Errorf("New with token %.20q: %v", bad, err)
		}
	}
}

func TestOptions(t *testing.T) {
	p := newProvider(t)
	file := func(content string) string {
		name := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	bad := map[string]func(*admission.Options){
		"use https://":             func(o *admission.Options) { o.URL = "ftp://provider.example/" },
		"it is no URL":             func(o *admission.Options) { o.URL = "https://u:correct-horse@pro vider/" },
		"names no host":            func(o *admission.Options) { o.URL = "https:///admit" },
		"user or a password":       func(o *admission.Options) { o.URL = "https://user:correct-horse@provider.example/" },
		"fragment":                 func(o *admission.Options) { o.URL = "https://provider.example/#x" },
		"this machine only":        func(o *admission.Options) { o.URL = "http://provider.example/admit" },
		"grpc://host:port":         func(o *admission.Options) { o.URL = "grpc://provider.example" },
		"read CA":                  func(o *admission.Options) { o.CAFile = "/nonexistent" },
		"holds no PEM certificate": func(o *admission.Options) { o.CAFile = file("x") },
		"given together":           func(o *admission.Options) { o.KeyFile = "" },
		"certificate":              func(o *admission.Options) { o.CertFile = file("x") },
		"read token":               func(o *admission.Options) { o.TokenFile = "/nonexistent" },
		"negative":                 func(o *admission.Options) { o.Timeout = -1 },
	}
	for want, set := range bad {
		o := p.options
		o.URL = "https://provider.example/admit"
		set(&o)
		if _, err := admission.New(o); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), token) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	for _, good := range []string{"https://provider.example", "http://127.0.0.1:8080/admit", "http://[::1]/", "grpc://provider.example:443", "grpc://[2001:db8::1]:443/"} {
		o := p.options
		o.URL = good
		g, err := admission.New(o)
		if err != nil {
			t.Errorf("%s: %v", good, err)
			continue
		}
		g.Close()
	}
}
