// Package etcdclient opens etcd clients the one way dkimzone uses them: over
// mutual TLS, without waiting for the cluster, noticing a dead connection
// within seconds and coming back within seconds of the cluster.
package etcdclient

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

const (
	// DefaultDialTimeout is used when Config.DialTimeout is zero.
	DefaultDialTimeout = 5 * time.Second

	// A dead connection is noticed after at most keepAliveTime +
	// keepAliveTimeout while a call or a watch is open. etcd closes
	// connections that ping more often than every 5 s.
	keepAliveTime    = 10 * time.Second
	keepAliveTimeout = 5 * time.Second

	// gRPC's own ceiling is two minutes, which would keep a node that long
	// from a cluster that is back.
	maxReconnectDelay = 3 * time.Second
)

// Config says how to reach an etcd cluster. The zero value is not usable.
type Config struct {
	// Endpoints are client URLs such as "https://etcd1.example.net:2379", at
	// least one, each with a port. All are https, or all are http; http is
	// refused for anything but a loopback address.
	Endpoints []string

	// CAFile, CertFile and KeyFile are PEM files: the authorities that may
	// have signed the servers' certificates, and the certificate and private
	// key this client shows. https needs all three, http takes none.
	// CertFile and KeyFile are read again for each connection, so a renewed
	// certificate is used without a restart.
	CAFile   string
	CertFile string
	KeyFile  string

	// DialTimeout bounds one attempt to connect to one endpoint. Zero means
	// DefaultDialTimeout; it must not be negative.
	DialTimeout time.Duration
}

// ConfigError reports a Config that cannot work. Field is the name of the
// field to mend.
type ConfigError struct {
	Field  string
	Reason string
	Err    error // the cause, may be nil
}

// Error says what is wrong with which field.
func (e *ConfigError) Error() string {
	s := "etcd client: " + e.Field + ": " + e.Reason
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause, or nil.
func (e *ConfigError) Unwrap() error { return e.Err }

// Dial returns a client for cfg. It does not wait for a connection, and calls
// made while the cluster cannot be reached wait for it: every call needs a
// context with a deadline. The caller closes the client. The client's own log
// is silenced; logger gets what the operator can act on.
//
// It returns a *ConfigError when cfg is wrong or a file it names is unusable.
func Dial(cfg Config, logger *slog.Logger) (*clientv3.Client, error) {
	if cfg.DialTimeout < 0 {
		return nil, &ConfigError{Field: "DialTimeout", Reason: "must not be negative"}
	}
	if cfg.DialTimeout == 0 {
		cfg.DialTimeout = DefaultDialTimeout
	}
	secure, err := checkEndpoints(cfg.Endpoints)
	if err != nil {
		return nil, err
	}
	tlsConfig, err := cfg.tlsConfig(secure, logger)
	if err != nil {
		return nil, err
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            cfg.Endpoints,
		TLS:                  tlsConfig,
		DialTimeout:          cfg.DialTimeout,
		DialKeepAliveTime:    keepAliveTime,
		DialKeepAliveTimeout: keepAliveTimeout,
		Logger:               zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay:  200 * time.Millisecond,
				Multiplier: 1.6,
				Jitter:     0.2,
				MaxDelay:   maxReconnectDelay,
			},
			MinConnectTimeout: cfg.DialTimeout,
		})},
	})
	if err != nil {
		return nil, fmt.Errorf("etcd client: %w", err)
	}
	return client, nil
}

// checkEndpoints reports whether the endpoints use TLS.
func checkEndpoints(endpoints []string) (secure bool, err error) {
	if len(endpoints) == 0 {
		return false, &ConfigError{Field: "Endpoints", Reason: "none given; give one or more such as https://etcd1.example.net:2379"}
	}
	schemes := make(map[string]bool)
	for _, endpoint := range endpoints {
		scheme, err := checkEndpoint(endpoint)
		if err != nil {
			return false, err
		}
		schemes[scheme] = true
	}
	if len(schemes) > 1 {
		return false, &ConfigError{Field: "Endpoints", Reason: "http and https are mixed; use one of them for all"}
	}
	return schemes["https"], nil
}

func checkEndpoint(endpoint string) (scheme string, err error) {
	refuse := func(reason string) (string, error) {
		return "", &ConfigError{Field: "Endpoints", Reason: fmt.Sprintf("%q %s", endpoint, reason)}
	}
	u, err := url.Parse(endpoint)
	switch {
	case err != nil && strings.Contains(endpoint, "@"):
		return "", &ConfigError{Field: "Endpoints", Reason: "one is not a URL"} // it may hold a password
	case err != nil || (u.Scheme != "http" && u.Scheme != "https"):
		return refuse("is not an http or https URL; write it as https://host:2379")
	case u.User != nil:
		return "", &ConfigError{Field: "Endpoints", Reason: "user names and passwords are not supported; use a client certificate"}
	case u.Hostname() == "" || u.Port() == "":
		return refuse("lacks a host or a port; write it as https://host:2379")
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return refuse("must end after the port")
	case u.Scheme == "http" && !isLoopback(u.Hostname()):
		return refuse("is not encrypted; http is allowed on a loopback address only, use https")
	}
	return u.Scheme, nil
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

func (cfg Config) tlsConfig(secure bool, logger *slog.Logger) (*tls.Config, error) {
	files := []struct{ field, file string }{
		{"CAFile", cfg.CAFile}, {"CertFile", cfg.CertFile}, {"KeyFile", cfg.KeyFile},
	}
	for _, f := range files {
		switch {
		case secure && f.file == "":
			return nil, &ConfigError{Field: f.field, Reason: "missing; https endpoints need a CA, a client certificate and its key"}
		case !secure && f.file != "":
			return nil, &ConfigError{Field: f.field, Reason: "given, but the endpoints are http; use https"}
		}
	}
	if !secure {
		return nil, nil
	}
	pem, err := os.ReadFile(cfg.CAFile)
	if err != nil {
		return nil, &ConfigError{Field: "CAFile", Reason: "cannot be read", Err: err}
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, &ConfigError{Field: "CAFile", Reason: fmt.Sprintf("%s holds no PEM certificate", cfg.CAFile)}
	}
	source, err := newCertSource(cfg.CertFile, cfg.KeyFile, logger)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:           tls.VersionTLS13,
		RootCAs:              roots,
		GetClientCertificate: source.clientCertificate,
	}, nil
}

// certSource reads the client certificate anew for each handshake, and keeps
// the last good one for when the files are just being replaced.
type certSource struct {
	certFile, keyFile string
	logger            *slog.Logger
	last              atomic.Pointer[tls.Certificate]
}

func newCertSource(certFile, keyFile string, logger *slog.Logger) (*certSource, error) {
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		configErr := &ConfigError{Field: "CertFile", Reason: "is no certificate for the key in KeyFile", Err: err}
		if pathErr, ok := errors.AsType[*os.PathError](err); ok {
			configErr.Reason = "cannot be read"
			if pathErr.Path == keyFile {
				configErr.Field = "KeyFile"
			}
		}
		return nil, configErr
	}
	s := &certSource{certFile: certFile, keyFile: keyFile, logger: logger}
	s.last.Store(&cert)
	return s, nil
}

func (s *certSource) clientCertificate(req *tls.CertificateRequestInfo) (*tls.Certificate, error) {
	cert, err := tls.LoadX509KeyPair(s.certFile, s.keyFile)
	if err != nil {
		s.logger.LogAttrs(req.Context(), slog.LevelWarn, "client certificate for etcd not readable, using the one read before",
			slog.String("file", s.certFile), slog.Any("error", err))
		return s.last.Load(), nil
	}
	s.last.Store(&cert)
	return &cert, nil
}
