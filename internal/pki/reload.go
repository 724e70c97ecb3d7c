package pki

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// checkInterval is how often a Reloader looks at its files at most.
const checkInterval = 10 * time.Second

// Reloader hands out the certificate in a pair of files for handshakes and
// reads it again after the files were replaced. When they cannot be used, it
// logs a warning and stays with the last good pair. It is safe for concurrent
// use.
type Reloader struct {
	certFile, keyFile string
	logger            *slog.Logger

	mu      sync.Mutex
	checked time.Time
	pair    pair
}

// pair is a certificate and the files it was read from.
type pair struct {
	cert              *tls.Certificate
	certInfo, keyInfo os.FileInfo
}

// NewReloader reads the files for the first time. The error names the file
// that cannot be used.
func NewReloader(certFile, keyFile string, logger *slog.Logger) (*Reloader, error) {
	p, err := readPair(certFile, keyFile)
	if err != nil {
		return nil, err
	}
	return &Reloader{certFile: certFile, keyFile: keyFile, logger: logger, checked: time.Now(), pair: p}, nil
}

// GetCertificate is for tls.Config.GetCertificate. It never fails.
func (r *Reloader) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	return r.certificate(hello.Context()), nil
}

// GetClientCertificate is for tls.Config.GetClientCertificate. It never fails.
func (r *Reloader) GetClientCertificate(req *tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return r.certificate(req.Context()), nil
}

func (r *Reloader) certificate(ctx context.Context) *tls.Certificate {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.checked) < checkInterval {
		return r.pair.cert
	}
	r.checked = time.Now()
	if !r.changed() {
		return r.pair.cert
	}
	p, err := readPair(r.certFile, r.keyFile)
	if err != nil {
		r.logger.LogAttrs(ctx, slog.LevelWarn, "changed certificate cannot be used, keeping the one before",
			slog.Time("not_after", r.pair.cert.Leaf.NotAfter), slog.Any("error", err))
		return r.pair.cert
	}
	r.pair = p
	r.logger.LogAttrs(ctx, slog.LevelInfo, "certificate reloaded",
		slog.String("file", r.certFile), slog.Time("not_after", p.cert.Leaf.NotAfter))
	return r.pair.cert
}

// changed reports whether the files are others than those of the pair, or are
// not there.
func (r *Reloader) changed() bool {
	differs := func(file string, before os.FileInfo) bool {
		info, err := os.Stat(file)
		return err != nil || !os.SameFile(info, before) || info.Size() != before.Size() || !info.ModTime().Equal(before.ModTime())
	}
	return differs(r.certFile, r.pair.certInfo) || differs(r.keyFile, r.pair.keyInfo)
}

// readPair looks at the files before it reads them: should they be replaced in
// between, the next look finds that.
func readPair(certFile, keyFile string) (pair, error) {
	certInfo, err := os.Stat(certFile)
	if err != nil {
		return pair{}, fmt.Errorf("certificate: %w", err)
	}
	keyInfo, err := os.Stat(keyFile)
	if err != nil {
		return pair{}, fmt.Errorf("private key: %w", err)
	}
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return pair{}, fmt.Errorf("certificate %s with key %s: %w", certFile, keyFile, err)
	}
	return pair{cert: &cert, certInfo: certInfo, keyInfo: keyInfo}, nil
}
