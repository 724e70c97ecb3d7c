// Package admission asks a system of the provider, over HTTP or gRPC, whether a
// brand may have keys for a domain. Where there is no clear answer in time there
// is no admission.
package admission

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/dkimzone/dkimzone/internal/authn"
	"github.com/dkimzone/dkimzone/internal/pki"
)

var (
	asksTotal = promauto.NewCounterVec(prometheus.CounterOpts{
		Namespace: "dkimd", Subsystem: "admission", Name: "asks_total",
		Help: "Domains whose admission was asked for, by result: allowed, denied, unavailable, or remembered as allowed.",
	}, []string{"result"})

	askSeconds = promauto.NewHistogram(prometheus.HistogramOpts{
		Namespace: "dkimd", Subsystem: "admission", Name: "ask_duration_seconds",
		Help:    "Time that the provider's system took to answer or to fail, waiting for a turn included.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
	})
)

// Operation is what is about to happen to a domain.
type Operation string

// The operations.
const (
	Provision Operation = "provision" // keys are made for it
	Publish   Operation = "publish"   // a public key made elsewhere is published
	Import    Operation = "import"    // a private key made elsewhere is taken in
	TakeOver  Operation = "take_over" // it goes over from another brand
)

// Request is what is asked.
type Request struct {
	Brand     string
	Domain    string // lower case, A-labels, no dot at the end
	Operation Operation
	Caller    authn.Caller
}

// ErrUnavailable is wrapped by the errors of questions that got no clear answer.
var ErrUnavailable = errors.New("no answer on the admission of a domain")

// DeniedError is the answer that a domain is not admitted.
type DeniedError struct {
	Brand, Domain string
	Reason        string // for people, one line of at most 200 characters; may be empty
}

func (e *DeniedError) Error() string {
	text := fmt.Sprintf("domain %s is not admitted to brand %s", e.Domain, e.Brand)
	if e.Reason != "" {
		text += ": " + e.Reason
	}
	return text
}

// Options say whom to ask, and how.
type Options struct {
	// URL is https://host[:port]/path, grpc://host:port for gRPC over TLS, or
	// http:// of an address on this machine.
	URL string
	// Timeout bounds a question, with the wait for a turn; 0 stands for 2 s.
	Timeout time.Duration
	// CAFile has the authorities of the server's certificate; empty: those of the
	// system.
	CAFile string
	// CertFile and KeyFile are the client certificate to show; both or none. They
	// are read again when they change.
	CertFile, KeyFile string
	// TokenFile has a bearer token to send. It is read for each question.
	TokenFile string
	// Concurrency is how many questions are under way at a time; 0 stands for 64.
	Concurrency int
	// Remember is how long "allowed" is taken for the answer to the same question;
	// 0: not at all.
	Remember time.Duration
	Logger   *slog.Logger
	// Now is the clock of what is remembered; nil stands for time.Now.
	Now func() time.Time
}

const (
	defaultTimeout     = 2 * time.Second
	defaultConcurrency = 64
	// maxAnswer bounds what an answer may take, in octets.
	maxAnswer = 64 << 10
	// maxReason bounds the reason of a denial, in characters.
	maxReason = 200
	// maxToken bounds a bearer token, in octets.
	maxToken = 8 << 10
)

// Gate asks. It is safe for concurrent use.
type Gate struct {
	asker   asker
	timeout time.Duration
	turns   chan struct{}
	seen    memory
	logger  *slog.Logger
}

// answer is a clear one.
type answer struct {
	allowed bool
	reason  string
}

// asker is a way to put a question.
type asker interface {
	// ask returns an error where there is no clear answer. Its text is for the log
	// of dkimd only.
	ask(ctx context.Context, r Request) (answer, error)
	close()
}

// New returns a Gate. The error names what of o cannot be used. Nothing is asked
// yet, so the provider's system need not be there.
func New(o Options) (*Gate, error) {
	u, err := parseURL(o.URL)
	if err != nil {
		return nil, err
	}
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.Concurrency == 0 {
		o.Concurrency = defaultConcurrency
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Timeout < 0 || o.Concurrency < 0 || o.Remember < 0 {
		return nil, errors.New("timeout, concurrency and how long to remember must not be negative")
	}
	tlsConfig, err := clientTLS(o)
	if err != nil {
		return nil, err
	}
	token := bearer{o.TokenFile}
	if _, err := token.read(); err != nil {
		return nil, err
	}
	g := &Gate{
		timeout: o.Timeout, turns: make(chan struct{}, o.Concurrency),
		seen: memory{keep: o.Remember, now: o.Now}, logger: o.Logger,
	}
	if u.Scheme == "grpc" {
		g.asker, err = newGRPC(u, tlsConfig, token)
	} else {
		g.asker = newHTTP(u, tlsConfig, token, o)
	}
	return g, err
}

// Close ends the connections. No question must be under way.
func (g *Gate) Close() { g.asker.close() }

// Admit returns nil if the domain is admitted, a *DeniedError if it is not, an
// error that wraps ErrUnavailable if that could not be found out, or the error of
// ctx if the caller has given up.
func (g *Gate) Admit(ctx context.Context, r Request) error {
	if g.seen.has(r) {
		asksTotal.WithLabelValues("remembered").Inc()
		return nil
	}
	start := time.Now()
	a, err := g.ask(ctx, r)
	askSeconds.Observe(time.Since(start).Seconds())
	switch {
	case err != nil && errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err()
	case err != nil:
		asksTotal.WithLabelValues("unavailable").Inc()
		g.logger.LogAttrs(ctx, slog.LevelWarn, "admission unknown",
			slog.String("brand", r.Brand), slog.String("domain", r.Domain), slog.String("request_id", r.Caller.RequestID), slog.Any("error", err))
		return fmt.Errorf("%w: %s of brand %s", ErrUnavailable, r.Domain, r.Brand)
	case !a.allowed:
		asksTotal.WithLabelValues("denied").Inc()
		return &DeniedError{Brand: r.Brand, Domain: r.Domain, Reason: oneLine(a.reason)}
	}
	asksTotal.WithLabelValues("allowed").Inc()
	g.seen.add(r)
	return nil
}

func (g *Gate) ask(ctx context.Context, r Request) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	select {
	case g.turns <- struct{}{}:
		defer func() { <-g.turns }()
	case <-ctx.Done():
		return answer{}, fmt.Errorf("waiting for one of %d questions under way to end: %w", cap(g.turns), ctx.Err())
	}
	a, err := g.asker.ask(ctx, r)
	if err == nil && ctx.Err() != nil {
		return answer{}, ctx.Err() // it came too late
	}
	return a, err
}

// oneLine makes text of others fit to be shown.
func oneLine(s string) string {
	var b strings.Builder
	n := 0
	for _, r := range strings.TrimSpace(s) {
		if n == maxReason {
			break
		}
		n++
		if !unicode.IsPrint(r) {
			r = ' '
		}
		b.WriteRune(r)
	}
	return strings.TrimSpace(b.String())
}

func parseURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, errors.New("it is no URL") // the error of url.Parse quotes it, with a password if one is in it
	}
	switch {
	case u.Scheme != "https" && u.Scheme != "http" && u.Scheme != "grpc":
		return nil, fmt.Errorf("scheme %q: use https://host/path or grpc://host:port", u.Scheme)
	case u.Hostname() == "":
		return nil, errors.New("it names no host")
	case u.User != nil:
		return nil, errors.New("it must not hold a user or a password: use a token file or a client certificate")
	case u.Fragment != "":
		return nil, errors.New("it must not have a fragment")
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return nil, fmt.Errorf("plain http:// is for this machine only, and %s is another: use https://", u.Hostname())
	case u.Scheme == "grpc" && (u.Port() == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != ""):
		return nil, errors.New("the form for gRPC is grpc://host:port")
	}
	return u, nil
}

func loopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}

func clientTLS(o Options) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CAFile != "" {
		data, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read CA: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("%s holds no PEM certificate", o.CAFile)
		}
	}
	if (o.CertFile == "") != (o.KeyFile == "") {
		return nil, errors.New("a client certificate and its key must be given together")
	}
	if o.CertFile != "" {
		reloader, err := pki.NewReloader(o.CertFile, o.KeyFile, o.Logger)
		if err != nil {
			return nil, err
		}
		c.GetClientCertificate = reloader.GetClientCertificate
	}
	return c, nil
}

// bearer is a file with a token.
type bearer struct{ file string }

// read returns the token, or "" if none is to be sent. Errors never quote it.
func (b bearer) read() (string, error) {
	if b.file == "" {
		return "", nil
	}
	data, err := os.ReadFile(b.file)
	if err != nil {
		return "", fmt.Errorf("read token: %w", err)
	}
	token := strings.TrimSpace(string(data))
	if token == "" || len(token) > maxToken || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("%s does not hold one token of printable ASCII characters", b.file)
	}
	return token, nil
}
