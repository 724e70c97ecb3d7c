package app

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/pflag"

	"github.com/dkimzone/dkimzone/internal/admission"
	"github.com/dkimzone/dkimzone/internal/limit"
	"github.com/dkimzone/dkimzone/internal/service"
)

// Guard says what keeps callers from asking for too much, or for domains that are
// not theirs.
type Guard struct {
	Admission Admission
	Limits    Limits
}

func (g *Guard) add(f *pflag.FlagSet) {
	g.Admission.add(f)
	g.Limits.add(f)
}

// guard is what a Guard describes.
type guard struct {
	gate    *admission.Gate // nil: every domain is admitted
	limiter *limit.Limiter
}

func (g *Guard) open(logger *slog.Logger) (*guard, error) {
	limiter, err := g.Limits.limiter()
	if err != nil {
		return nil, err
	}
	gate, err := g.Admission.gate(logger)
	return &guard{gate, limiter}, err
}

func (g *guard) close() {
	if g.gate != nil {
		g.gate.Close()
	}
}

// options are those of a service that asks the gate.
func (g *guard) options() []service.Option {
	if g.gate == nil {
		return nil
	}
	return []service.Option{service.WithGate(g.gate)}
}

// Admission says which system of the provider is asked before a domain gets keys.
type Admission struct {
	URL                                  string // empty: none
	Timeout                              time.Duration
	CAFile, CertFile, KeyFile, TokenFile string
	Concurrency                          int
	Remember                             time.Duration
}

func (a *Admission) add(f *pflag.FlagSet) {
	f.StringVar(&a.URL, "admission-url", "", "`URL` of a system of yours that is asked whether a brand may have keys for a domain: https://host/path, or grpc://host:port over TLS (default none)")
	f.DurationVar(&a.Timeout, "admission-timeout", 2*time.Second, "`time` that it may take to answer; without an answer the domain is refused")
	f.StringVar(&a.CAFile, "admission-ca", "", "`file` with the CA of its certificate (default those of the system)")
	f.StringVar(&a.CertFile, "admission-cert", "", "`file` with the client certificate to show to it; read again when it changes")
	f.StringVar(&a.KeyFile, "admission-key", "", "`file` with its private key")
	f.StringVar(&a.TokenFile, "admission-token-file", "", "`file` with a bearer token to send to it; read for each question")
	f.IntVar(&a.Concurrency, "admission-concurrency", 64, "`number` of questions that may be under way at a time")
	f.DurationVar(&a.Remember, "admission-remember", 10*time.Second, "`time` for which an admission is remembered; 0: not at all")
}

// gate is nil if nobody is to be asked.
func (a *Admission) gate(logger *slog.Logger) (*admission.Gate, error) {
	if a.URL == "" {
		if a.CAFile != "" || a.CertFile != "" || a.KeyFile != "" || a.TokenFile != "" {
			return nil, errors.New("--admission-ca, --admission-cert, --admission-key and --admission-token-file are of use only with --admission-url")
		}
		return nil, nil
	}
	if a.Timeout <= 0 || a.Concurrency <= 0 || a.Remember < 0 {
		return nil, errors.New("--admission-timeout and --admission-concurrency must be above 0, --admission-remember not below")
	}
	g, err := admission.New(admission.Options{
		URL: a.URL, Timeout: a.Timeout, CAFile: a.CAFile, CertFile: a.CertFile, KeyFile: a.KeyFile, TokenFile: a.TokenFile,
		Concurrency: a.Concurrency, Remember: a.Remember, Logger: logger,
	})
	if err != nil {
		return nil, fmt.Errorf("--admission-url: %w", err)
	}
	return g, nil
}

// Limits bound what callers may ask.
type Limits struct {
	Read, Mutation, Provision, Signer float64 // calls a second of one caller; 0: any number
	Concurrent, Streams               int     // of one caller; 0: any number
	Total                             int     // of all callers; 0: any number
	Admins                            bool
}

func (l *Limits) add(f *pflag.FlagSet) {
	f.Float64Var(&l.Read, "limit-read", 500, "`number` of reading calls a second that one caller may make; 0: any number")
	f.Float64Var(&l.Mutation, "limit-mutation", 100, "`number` of changing calls a second that one caller may make; 0: any number")
	f.Float64Var(&l.Provision, "limit-provision", 200, "`number` of keys or domains a second that one caller may bring; 0: any number")
	f.Float64Var(&l.Signer, "limit-signer", 10000, "`number` of calls a second that one signer may make; 0: any number")
	f.IntVar(&l.Concurrent, "limit-concurrent", 256, "`number` of calls that one caller may have under way; 0: any number")
	f.IntVar(&l.Streams, "limit-streams", 32, "`number` of streams that one caller may have open; 0: any number")
	f.IntVar(&l.Total, "limit-total", 4096, "`number` of calls that all callers may have under way, and of streams that they may have open; 0: any number")
	f.BoolVar(&l.Admins, "limit-admins", false, "hold administrators to the limits of one caller too")
}

// limiter is one that keeps to l. The zero value limits nothing.
func (l *Limits) limiter() (*limit.Limiter, error) {
	if min(l.Read, l.Mutation, l.Provision, l.Signer) < 0 || min(l.Concurrent, l.Streams, l.Total) < 0 {
		return nil, errors.New("a --limit-… must not be below 0")
	}
	return limit.New(limit.Options{
		Rates: map[limit.Class]float64{
			limit.Read: l.Read, limit.Mutation: l.Mutation, limit.Provision: l.Provision, limit.Signer: l.Signer,
		},
		Concurrent: l.Concurrent, Streams: l.Streams, Total: l.Total, Admins: l.Admins,
	}), nil
}
