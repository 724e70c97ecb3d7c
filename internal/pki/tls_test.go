package pki_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dkimzone/dkimzone/internal/pki"
)

var discard = slog.New(slog.DiscardHandler)

// handshake connects client to server over a pipe and passes one octet
// back, since with TLS 1.3 a client learns only then that it was refused. It
// returns what the client saw, and the errors of both sides.
func handshake(t *testing.T, server, client *tls.Config) (clientSaw tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	a, b := net.Pipe()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s, c := tls.Server(a, server), tls.Client(b, client)
	done := make(chan error)
	go func() {
		err := s.HandshakeContext(ctx)
		if err == nil {
			_, err = s.Write([]byte{1})
		}
		if err != nil {
			a.Close()
		}
		done <- err
	}()
	clientErr = c.HandshakeContext(ctx)
	if clientErr == nil {
		_, clientErr = c.Read(make([]byte, 1))
	}
	if clientErr != nil {
		b.Close()
	}
	serverErr = <-done
	return c.ConnectionState(), serverErr, clientErr
}

// world is a CA with a server and a client.
type world struct {
	ca                               *pki.CA
	serverCert, serverKey            string
	clientCert, clientKey            string
	serverConfig, clientConfig       *tls.Config
	foreign                          *pki.CA
	foreignClientCert, foreignClient string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{ca: ensureCA(t, t.TempDir(), time.Now()), foreign: ensureCA(t, t.TempDir(), time.Now())}
	var err [5]error
	w.serverCert, w.serverKey, err[0] = w.ca.EnsureServer("server", []string{"dkim.example", "127.0.0.1"}, time.Now())
	w.clientCert, w.clientKey, err[1] = w.ca.EnsureClient("admin", pki.Identity{Role: "admin", Name: "admin"}, time.Now())
	w.foreignClientCert, w.foreignClient, err[2] = w.foreign.EnsureClient("admin", pki.Identity{Role: "admin", Name: "admin"}, time.Now())
	w.serverConfig, err[3] = pki.ServerTLS(w.ca.CertFile(), w.serverCert, w.serverKey, discard)
	w.clientConfig, err[4] = pki.ClientTLS(w.ca.CertFile(), w.clientCert, w.clientKey, "dkim.example", discard)
	if err := errors.Join(err[:]...); err != nil {
		t.Fatal(err)
	}
	return w
}

func TestHandshake(t *testing.T) {
	w := newWorld(t)
	state, serverErr, clientErr := handshake(t, w.serverConfig, w.clientConfig)
	if serverErr != nil || clientErr != nil {
		t.Fatalf("server: %v, client: %v", serverErr, clientErr)
	}
	if state.Version != tls.VersionTLS13 {
		t.Errorf("version %s, want TLS 1.3", tls.VersionName(state.Version))
	}
}

// A client without a certificate is let in, and seen to have none.
func TestHandshakeWithoutClientCertificate(t *testing.T) {
	w := newWorld(t)
	client, err := pki.AnonymousTLS(w.ca.CertFile(), "dkim.example")
	if err != nil {
		t.Fatal(err)
	}
	var seen []*x509.Certificate
	server := w.serverConfig.Clone()
	server.VerifyConnection = func(state tls.ConnectionState) error { seen = state.PeerCertificates; return nil }
	if _, serverErr, clientErr := handshake(t, server, client); serverErr != nil || clientErr != nil || len(seen) != 0 {
		t.Errorf("server: %v, client: %v, certificates: %v", serverErr, clientErr, seen)
	}
	if _, err := pki.AnonymousTLS(filepath.Join(t.TempDir(), "missing"), ""); err == nil {
		t.Error("no error for a CA that is not there")
	}
}

func TestHandshakeRefused(t *testing.T) {
	w := newWorld(t)
	config := func(cfg *tls.Config, err error) *tls.Config {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	changed := func(change func(*tls.Config)) *tls.Config {
		cfg := w.clientConfig.Clone()
		change(cfg)
		return cfg
	}
	expired := ensureCA(t, filepath.Dir(w.ca.CertFile()), time.Now())
	expiredCert, expiredKey, err := expired.EnsureClient("expired", pki.Identity{Role: "admin", Name: "late"}, time.Now().Add(-400*day))
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name           string
		server, client *tls.Config
		byServer       string // what the refusing side says
		byClient       string
	}{
		{
			name:   "client of another CA",
			server: w.serverConfig, client: changed(func(c *tls.Config) {
				c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
					cert, err := tls.LoadX509KeyPair(w.foreignClientCert, w.foreignClient)
					return &cert, err
				}
			}),
			byServer: "unknown authority",
		},
		{
			name:     "expired client certificate",
			server:   w.serverConfig,
			client:   config(pki.ClientTLS(w.ca.CertFile(), expiredCert, expiredKey, "dkim.example", discard)),
			byServer: "expired",
		},
		{
			name:     "server certificate used by a client",
			server:   w.serverConfig,
			client:   config(pki.ClientTLS(w.ca.CertFile(), w.serverCert, w.serverKey, "dkim.example", discard)),
			byServer: "incompatible key usage",
		},
		{
			name:     "client certificate used by a server",
			server:   config(pki.ServerTLS(w.ca.CertFile(), w.clientCert, w.clientKey, discard)),
			client:   w.clientConfig,
			byClient: "not valid for", // it has no host name either
		},
		{
			name:     "server of another CA",
			server:   w.serverConfig,
			client:   config(pki.ClientTLS(w.foreign.CertFile(), w.clientCert, w.clientKey, "dkim.example", discard)),
			byClient: "unknown authority",
		},
		{
			name:     "another host",
			server:   w.serverConfig,
			client:   changed(func(c *tls.Config) { c.ServerName = "other.example" }),
			byClient: "not other.example",
		},
		{
			name:     "TLS 1.2",
			server:   w.serverConfig,
			client:   changed(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }),
			byServer: "unsupported versions",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, serverErr, clientErr := handshake(t, tt.server, tt.client)
			if serverErr == nil || clientErr == nil {
				t.Fatalf("server: %v, client: %v; want both to fail", serverErr, clientErr)
			}
			if !strings.Contains(serverErr.Error(), tt.byServer) || !strings.Contains(clientErr.Error(), tt.byClient) {
				t.Errorf("server: %v, client: %v; want %q, %q", serverErr, clientErr, tt.byServer, tt.byClient)
			}
		})
	}
}

// A client certificate is refused as a server's for its usage too, not only
// for its lack of a host name.
func TestClientCertificateIsNoServerCertificate(t *testing.T) {
	w := newWorld(t)
	roots := x509.NewCertPool()
	roots.AddCert(parse(t, w.ca.CertFile()))
	_, err := parse(t, w.clientCert).Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	var invalid x509.CertificateInvalidError
	if !errors.As(err, &invalid) || invalid.Reason != x509.IncompatibleUsage {
		t.Errorf("Verify as a server: %v, want incompatible usage", err)
	}
}

func TestPeersAuthenticateEachOther(t *testing.T) {
	ca := ensureCA(t, t.TempDir(), time.Now())
	certFile, keyFile, err := ca.EnsurePeer("etcd1", []string{"127.0.0.1"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	server, err := pki.ServerTLS(ca.CertFile(), certFile, keyFile, discard)
	if err != nil {
		t.Fatal(err)
	}
	client, err := pki.ClientTLS(ca.CertFile(), certFile, keyFile, "127.0.0.1", discard)
	if err != nil {
		t.Fatal(err)
	}
	if _, serverErr, clientErr := handshake(t, server, client); serverErr != nil || clientErr != nil {
		t.Errorf("server: %v, client: %v", serverErr, clientErr)
	}
}

func TestTLSConfigErrors(t *testing.T) {
	w := newWorld(t)
	missing := filepath.Join(t.TempDir(), "missing")
	empty := filepath.Join(t.TempDir(), "empty")
	write(t, empty, "", 0o600)
	tests := []struct {
		name          string
		ca, cert, key string
		want          string
	}{
		{name: "nothing given", want: "must all be given"},
		{name: "CA missing", ca: missing, cert: w.serverCert, key: w.serverKey, want: missing},
		{name: "CA empty", ca: empty, cert: w.serverCert, key: w.serverKey, want: "no PEM certificate"},
		{name: "certificate missing", ca: w.ca.CertFile(), cert: missing, key: w.serverKey, want: missing},
		{name: "key missing", ca: w.ca.CertFile(), cert: w.serverCert, key: missing, want: missing},
		{name: "key of another certificate", ca: w.ca.CertFile(), cert: w.serverCert, key: w.clientKey, want: "does not match"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := pki.ServerTLS(tt.ca, tt.cert, tt.key, discard); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("ServerTLS: %v, want an error with %q", err, tt.want)
			}
			if _, err := pki.ClientTLS(tt.ca, tt.cert, tt.key, "", discard); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("ClientTLS: %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestReloader(t *testing.T) {
	dir := t.TempDir()
	ca := ensureCA(t, dir, now)
	ensure := func(hosts ...string) (certFile, keyFile string) {
		t.Helper()
		certFile, keyFile, err := ca.EnsureServer("server", hosts, now)
		if err != nil {
			t.Fatal(err)
		}
		return certFile, keyFile
	}
	certFile, keyFile := ensure("one.example")
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		r, err := pki.NewReloader(certFile, keyFile, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		want := func(host string) {
			t.Helper()
			served, err := r.GetCertificate(&tls.ClientHelloInfo{})
			if err != nil {
				t.Fatal(err)
			}
			shown, err := r.GetClientCertificate(&tls.CertificateRequestInfo{})
			if err != nil {
				t.Fatal(err)
			}
			if served != shown || served.Leaf.DNSNames[0] != host {
				t.Errorf("certificates for %s and %s, want %s", served.Leaf.DNSNames, shown.Leaf.DNSNames, host)
			}
		}
		want("one.example")
		ensure("two.example")
		time.Sleep(9 * time.Second) // of the bubble
		want("one.example")         // not looked yet
		time.Sleep(2 * time.Second)
		want("two.example")

		key := read(t, keyFile)
		write(t, keyFile, "half", 0o600)
		time.Sleep(11 * time.Second)
		want("two.example")
		if !strings.Contains(log.String(), "level=WARN") {
			t.Errorf("log does not warn of the unusable key: %s", log.String())
		}
		if err := os.Remove(keyFile); err != nil {
			t.Fatal(err)
		}
		time.Sleep(11 * time.Second)
		want("two.example")
		write(t, keyFile, string(key), 0o600)
		ensure("three.example")
		time.Sleep(11 * time.Second)
		want("three.example")

		reloads := strings.Count(log.String(), "certificate reloaded")
		time.Sleep(time.Hour)
		want("three.example")
		if reloads != 2 || strings.Count(log.String(), "certificate reloaded") != 2 {
			t.Errorf("%d reloads logged, want one for each change: %s", reloads, log.String())
		}
	})
}

// The whole way: a server that runs shows its renewed certificate.
func TestRenewalWithoutRestart(t *testing.T) {
	w := newWorld(t)
	if state, serverErr, clientErr := handshake(t, w.serverConfig, w.clientConfig); serverErr != nil || clientErr != nil || len(state.PeerCertificates) == 0 {
		t.Fatalf("server: %v, client: %v", serverErr, clientErr)
	}
	before := parse(t, w.serverCert)
	synctest.Test(t, func(t *testing.T) {
		// The bubble's clock begins in 2000, before any of these are valid, so
		// both sides are given a time to verify at.
		at := func() time.Time { return before.NotAfter.Add(-10 * day) }
		server, err := pki.ServerTLS(w.ca.CertFile(), w.serverCert, w.serverKey, discard)
		if err != nil {
			t.Fatal(err)
		}
		client := w.clientConfig.Clone()
		server.Time, client.Time = at, at
		if _, _, err := w.ca.EnsureServer("server", []string{"dkim.example", "127.0.0.1"}, before.NotAfter.Add(-50*day)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(11 * time.Second)
		state, serverErr, clientErr := handshake(t, server, client)
		if serverErr != nil || clientErr != nil {
			t.Fatalf("server: %v, client: %v", serverErr, clientErr)
		}
		if state.PeerCertificates[0].Equal(before) {
			t.Error("the server shows the certificate from before its renewal")
		}
	})
}
