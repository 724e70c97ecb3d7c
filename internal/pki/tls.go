package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
)

// ServerTLS returns the configuration of a server that shows the certificate
// in certFile and accepts clients with one of an authority in caFile, or with
// none: they must say who they are in another way. It uses a [Reloader], so a
// renewed certificate needs no restart; a new caFile does.
func ServerTLS(caFile, certFile, keyFile string, logger *slog.Logger) (*tls.Config, error) {
	pool, reloader, err := load(caFile, certFile, keyFile, logger)
	if err != nil {
		return nil, fmt.Errorf("server TLS: %w", err)
	}
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		ClientAuth:     tls.VerifyClientCertIfGiven,
		ClientCAs:      pool,
		GetCertificate: reloader.GetCertificate,
	}, nil
}

// ClientTLS returns the configuration of a client that shows the certificate
// in certFile and talks only to servers with one of an authority in caFile for
// serverName. With an empty serverName it is the name the client dials. Like
// ServerTLS it uses a [Reloader].
func ClientTLS(caFile, certFile, keyFile, serverName string, logger *slog.Logger) (*tls.Config, error) {
	pool, reloader, err := load(caFile, certFile, keyFile, logger)
	if err != nil {
		return nil, fmt.Errorf("client TLS: %w", err)
	}
	return &tls.Config{
		MinVersion:           tls.VersionTLS13,
		RootCAs:              pool,
		ServerName:           serverName,
		GetClientCertificate: reloader.GetClientCertificate,
	}, nil
}

// AnonymousTLS is ClientTLS for a client that shows no certificate.
func AnonymousTLS(caFile, serverName string) (*tls.Config, error) {
	pool, err := loadPool(caFile)
	if err != nil {
		return nil, fmt.Errorf("client TLS: %w", err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, ServerName: serverName}, nil
}

func load(caFile, certFile, keyFile string, logger *slog.Logger) (*x509.CertPool, *Reloader, error) {
	if caFile == "" || certFile == "" || keyFile == "" {
		return nil, nil, errors.New("the CA, certificate and key files must all be given")
	}
	pool, err := loadPool(caFile)
	if err != nil {
		return nil, nil, err
	}
	reloader, err := NewReloader(certFile, keyFile, logger)
	if err != nil {
		return nil, nil, err
	}
	return pool, reloader, nil
}

func loadPool(caFile string) (*x509.CertPool, error) {
	data, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("read CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("%s holds no PEM certificate", caFile)
	}
	return pool, nil
}
