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
// in certFile and accepts only clients with one of an authority in caFile. It
// uses a [Reloader], so a renewed certificate needs no restart; a new caFile
// does.
func ServerTLS(caFile, certFile, keyFile string, logger *slog.Logger) (*tls.Config, error) {
	pool, reloader, err := load(caFile, certFile, keyFile, logger)
	if err != nil {
		return nil, fmt.Errorf("server TLS: %w", err)
	}
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		ClientAuth:     tls.RequireAndVerifyClientCert,
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

func load(caFile, certFile, keyFile string, logger *slog.Logger) (*x509.CertPool, *Reloader, error) {
	if caFile == "" || certFile == "" || keyFile == "" {
		return nil, nil, errors.New("the CA, certificate and key files must all be given")
	}
	data, err := os.ReadFile(caFile)
	if err != nil {
		return nil, nil, fmt.Errorf("read CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, nil, fmt.Errorf("%s holds no PEM certificate", caFile)
	}
	reloader, err := NewReloader(certFile, keyFile, logger)
	if err != nil {
		return nil, nil, err
	}
	return pool, reloader, nil
}
