package app

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/spf13/pflag"

	"github.com/dkimzone/dkimzone/internal/pki"
	"github.com/dkimzone/dkimzone/internal/telemetry"
	"github.com/dkimzone/dkimzone/signer"
)

// Connection is how a signer reaches dkimd.
type Connection struct {
	// Dkimd are the gRPC addresses of dkimd.
	Dkimd []string
	// CAFile, and CertFile with KeyFile or TokenFile, are for the connection to them.
	CAFile, CertFile, KeyFile, TokenFile, ServerName string
	// Brand is the only one to sign for, "" for all.
	Brand string
}

func (c *Connection) add(f *pflag.FlagSet) {
	f.StringSliceVar(&c.Dkimd, "dkimd", nil, "gRPC `address` of a dkimd, host:port; repeat for each")
	f.StringVar(&c.CAFile, "tls-ca", "", "`file` with the CA of dkimd's certificate")
	f.StringVar(&c.CertFile, "tls-cert", "", "`file` with a certificate of role signer; read again when it changes")
	f.StringVar(&c.KeyFile, "tls-key", "", "`file` with its private key")
	f.StringVar(&c.TokenFile, "token-file", "", "`file` with a token of role signer, in place of a certificate")
	f.StringVar(&c.ServerName, "tls-server-name", "", "`name` in dkimd's certificate (default the host of --dkimd)")
	f.StringVar(&c.Brand, "brand", "", "`brand` to sign for only; domains that nobody has are then signed with its default key (default each domain with the keys of whose it is)")
}

// options are those of a client.
func (c *Connection) options(logger *slog.Logger) (signer.Options, error) {
	so := signer.Options{Addresses: c.Dkimd, Brand: c.Brand, Logger: logger}
	var err error
	switch {
	case len(c.Dkimd) == 0:
		return so, fmt.Errorf("--dkimd (or %s) is needed", envName("dkimd"))
	case c.CAFile == "":
		return so, fmt.Errorf("--tls-ca (or %s) is needed", envName("tls-ca"))
	case (c.CertFile == "") != (c.KeyFile == ""):
		return so, errors.New("--tls-cert and --tls-key go together")
	case (c.CertFile == "") == (c.TokenFile == ""):
		return so, errors.New("either --tls-cert with --tls-key, or --token-file is needed")
	}
	if so.TLS, err = c.tls(logger); err != nil {
		return so, err
	}
	if c.TokenFile != "" {
		if so.Token, err = tokenFile(c.TokenFile); err != nil {
			return so, err
		}
	}
	return so, nil
}

func (c *Connection) tls(logger *slog.Logger) (*tls.Config, error) {
	if c.CertFile == "" {
		return pki.AnonymousTLS(c.CAFile, c.ServerName)
	}
	return pki.ClientTLS(c.CAFile, c.CertFile, c.KeyFile, c.ServerName, logger)
}

// serveMetrics serves metrics and health until the returned function is called.
func serveMetrics(address string, registry *prometheus.Registry, check telemetry.Check, logger *slog.Logger) (stop func(), err error) {
	if address == "" {
		return func() {}, nil
	}
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("--metrics-listen: %w", err)
	}
	server := telemetry.NewServer(registry, []telemetry.Check{check}, logger)
	var running sync.WaitGroup
	running.Go(func() {
		if err := serving("metrics", server.Serve(ln)); err != nil {
			logger.Error("metrics are not served", slog.Any("error", err))
		}
	})
	return func() {
		_ = server.Close() // who asks may ask again
		running.Wait()
	}, nil
}

// addAge adds a metric of the time since confirmed.
func addAge(registry *prometheus.Registry, subsystem, help string, confirmed func() time.Time) {
	promauto.With(registry).NewGaugeFunc(prometheus.GaugeOpts{Namespace: "dkimd", Subsystem: subsystem, Name: "keys_age_seconds", Help: help}, func() float64 {
		at := confirmed()
		if at.IsZero() {
			return math.Inf(1)
		}
		return time.Since(at).Seconds()
	})
}
