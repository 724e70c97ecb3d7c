package etcdclient_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/dkimzone/dkimzone/internal/etcdclient"
)

// authority signs certificates for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	dir  string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{cert: cert, key: key, dir: t.TempDir()}
	writePEM(t, a.caFile(), "CERTIFICATE", der)
	return a
}

func (a *authority) caFile() string { return filepath.Join(a.dir, "ca.crt") }

// issue writes name.crt and name.key, valid for 127.0.0.1 in both directions.
func (a *authority) issue(t *testing.T, name string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(a.dir, name+".crt"), filepath.Join(a.dir, name+".key")
	writePEM(t, certFile, "CERTIFICATE", der)
	writePEM(t, keyFile, "PRIVATE KEY", keyDER)
	return certFile, keyFile
}

func writePEM(t *testing.T, file, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// fakeKV answers every Range with one key, whose value is the common name of
// the client's certificate.
type fakeKV struct {
	pb.UnimplementedKVServer
	calls atomic.Int32
}

func (s *fakeKV) Range(ctx context.Context, _ *pb.RangeRequest) (*pb.RangeResponse, error) {
	s.calls.Add(1)
	var name string
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			name = info.State.PeerCertificates[0].Subject.CommonName
		}
	}
	return &pb.RangeResponse{Header: &pb.ResponseHeader{}, Count: 1, Kvs: []*mvccpb.KeyValue{{Key: []byte("k"), Value: []byte(name)}}}, nil
}

// serve starts a fake etcd; a nil authority means without TLS. It returns the
// address and a function that stops it.
func serve(t *testing.T, a *authority, address string) (kv *fakeKV, addr string, stop func()) {
	t.Helper()
	var opts []grpc.ServerOption
	if a != nil {
		certFile, keyFile := a.issue(t, "server")
		cert, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			t.Fatal(err)
		}
		pool := x509.NewCertPool()
		pool.AddCert(a.cert)
		opts = append(opts, grpc.Creds(credentials.NewTLS(&tls.Config{
			Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
			MinVersion: tls.VersionTLS13,
		})))
	}
	l, err := net.Listen("tcp", address)
	for limit := time.Now().Add(time.Minute); errors.Is(err, syscall.EADDRINUSE) && time.Now().Before(limit); {
		l, err = net.Listen("tcp", address) // of a server before, but somebody connects from there just now
	}
	if err != nil {
		t.Fatal(err)
	}
	kv = &fakeKV{}
	s := grpc.NewServer(opts...)
	pb.RegisterKVServer(s, kv)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	stop = func() { s.Stop(); <-done }
	t.Cleanup(stop)
	return kv, l.Addr().String(), stop
}

func get(t *testing.T, cfg etcdclient.Config, timeout time.Duration) (string, error) {
	t.Helper()
	client, err := etcdclient.Dial(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	resp, err := client.Get(ctx, "k")
	if err != nil {
		return "", err
	}
	return string(resp.Kvs[0].Value), nil
}

func TestDialMutualTLS(t *testing.T) {
	a := newAuthority(t)
	_, addr1, _ := serve(t, a, "127.0.0.1:0")
	_, addr2, _ := serve(t, a, "127.0.0.1:0")
	certFile, keyFile := a.issue(t, "client-one")
	cfg := etcdclient.Config{
		Endpoints: []string{"https://" + addr1, "https://" + addr2 + "/"},
		CAFile:    a.caFile(), CertFile: certFile, KeyFile: keyFile,
	}
	got, err := get(t, cfg, 10*time.Second)
	if err != nil || got != "client-one" {
		t.Errorf("name seen by the server = %q, %v; want client-one", got, err)
	}
}

func TestDialRefusesUntrustedServer(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	kv, addr, _ := serve(t, a, "127.0.0.1:0")
	certFile, keyFile := a.issue(t, "client")
	cfg := etcdclient.Config{Endpoints: []string{"https://" + addr}, CertFile: certFile, KeyFile: keyFile}

	cfg.CAFile = other.caFile()
	if _, err := get(t, cfg, 500*time.Millisecond); err == nil {
		t.Error("call through a server of another authority succeeded")
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	cfg.CAFile = a.caFile()
	cfg.Endpoints = []string{"https://localhost:" + port} // the certificate names 127.0.0.1 only
	if _, err := get(t, cfg, 500*time.Millisecond); err == nil {
		t.Error("call through a server whose certificate names another host succeeded")
	}
	if n := kv.calls.Load(); n != 0 {
		t.Errorf("%d calls reached the server, want 0", n)
	}
}

func TestDialPlainLoopback(t *testing.T) {
	_, addr, _ := serve(t, nil, "127.0.0.1:0")
	if _, err := get(t, etcdclient.Config{Endpoints: []string{"http://" + addr}}, 10*time.Second); err != nil {
		t.Errorf("Get over http on loopback: %v", err)
	}
}

// The cluster may start after the client, and the certificate may be renewed
// while the client runs.
func TestReconnectUsesRenewedCertificate(t *testing.T) {
	a := newAuthority(t)
	_, addr, stop := serve(t, a, "127.0.0.1:0")
	certFile, keyFile := a.issue(t, "client")
	var log bytes.Buffer
	client, err := etcdclient.Dial(etcdclient.Config{
		Endpoints: []string{"https://" + addr}, CAFile: a.caFile(), CertFile: certFile, KeyFile: keyFile,
	}, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	name := func() string {
		t.Helper()
		resp, err := client.Get(ctx, "k")
		if err != nil {
			t.Fatalf("Get: %v", err)
		}
		return string(resp.Kvs[0].Value)
	}
	if got := name(); got != "client" {
		t.Fatalf("first name = %q, want client", got)
	}

	stop()
	renewedCert, renewedKey := a.issue(t, "renewed")
	if err := errors.Join(os.Rename(renewedCert, certFile), os.Rename(renewedKey, keyFile)); err != nil {
		t.Fatal(err)
	}
	_, _, stop = serve(t, a, addr)
	if got := name(); got != "renewed" {
		t.Errorf("name after renewal = %q, want renewed", got)
	}

	stop()
	if err := os.WriteFile(keyFile, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	serve(t, a, addr)
	if got := name(); got != "renewed" {
		t.Errorf("name with a broken key file = %q, want the one before", got)
	}
	client.Close()
	if !strings.Contains(log.String(), "client certificate for etcd not readable") {
		t.Errorf("log does not say that the certificate is not readable: %q", log.String())
	}
}

func TestDialDoesNotWait(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, never answers
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = get(t, etcdclient.Config{Endpoints: []string{"http://" + l.Addr().String()}}, 50*time.Millisecond)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Get on a silent endpoint: %v, want %v", err, context.DeadlineExceeded)
	}
}

func TestDialConfigErrors(t *testing.T) {
	a := newAuthority(t)
	certFile, keyFile := a.issue(t, "client")
	_, otherKey := a.issue(t, "other")
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(t.TempDir(), "missing")
	secure := func(edit func(*etcdclient.Config)) etcdclient.Config {
		cfg := etcdclient.Config{Endpoints: []string{"https://etcd.example.net:2379"}, CAFile: a.caFile(), CertFile: certFile, KeyFile: keyFile}
		edit(&cfg)
		return cfg
	}
	plain := func(endpoints ...string) etcdclient.Config { return etcdclient.Config{Endpoints: endpoints} }
	tests := []struct {
		name  string
		cfg   etcdclient.Config
		field string
		text  string
	}{
		{"no endpoint", plain(), "Endpoints", "none given"},
		{"no scheme", plain("127.0.0.1:2379"), "Endpoints", "https://host:2379"},
		{"host only", plain("etcd.example.net"), "Endpoints", "https://host:2379"},
		{"no port", plain("https://etcd.example.net"), "Endpoints", "lacks a host or a port"},
		{"no host", plain("https://:2379"), "Endpoints", "lacks a host or a port"},
		{"other scheme", plain("unix:///run/etcd.sock"), "Endpoints", "not an http or https URL"},
		{"path", plain("http://127.0.0.1:2379/v3"), "Endpoints", "end after the port"},
		{"password", plain("https://root:secret@etcd.example.net:2379"), "Endpoints", "client certificate"},
		{"password in a broken URL", plain("https://root:secret@etcd.example.net:23 79"), "Endpoints", "not a URL"},
		{"http to another host", plain("http://etcd.example.net:2379"), "Endpoints", "use https"},
		{"http to a private address", plain("http://10.0.0.1:2379"), "Endpoints", "use https"},
		{"http to a name that starts like loopback", plain("http://127.0.0.1.example.net:2379"), "Endpoints", "use https"},
		{"mixed", plain("http://[::1]:2379", "https://etcd.example.net:2379"), "Endpoints", "mixed"},
		{"no CA", secure(func(c *etcdclient.Config) { c.CAFile = "" }), "CAFile", "missing"},
		{"no certificate", secure(func(c *etcdclient.Config) { c.CertFile = "" }), "CertFile", "missing"},
		{"no key", secure(func(c *etcdclient.Config) { c.KeyFile = "" }), "KeyFile", "missing"},
		{"files with http", secure(func(c *etcdclient.Config) { c.Endpoints = []string{"http://127.0.0.1:2379"} }), "CAFile", "use https"},
		{"CA unreadable", secure(func(c *etcdclient.Config) { c.CAFile = missing }), "CAFile", missing},
		{"CA empty", secure(func(c *etcdclient.Config) { c.CAFile = empty }), "CAFile", "no PEM certificate"},
		{"certificate unreadable", secure(func(c *etcdclient.Config) { c.CertFile = missing }), "CertFile", missing},
		{"key unreadable", secure(func(c *etcdclient.Config) { c.KeyFile = missing }), "KeyFile", missing},
		{"key of another certificate", secure(func(c *etcdclient.Config) { c.KeyFile = otherKey }), "CertFile", "does not match"},
		{"negative timeout", secure(func(c *etcdclient.Config) { c.DialTimeout = -time.Second }), "DialTimeout", "negative"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			client, err := etcdclient.Dial(tt.cfg, slog.New(slog.DiscardHandler))
			var configErr *etcdclient.ConfigError
			if !errors.As(err, &configErr) {
				t.Fatalf("Dial = %v, %v; want a *ConfigError", client, err)
			}
			if configErr.Field != tt.field || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("Dial: %v; want field %s and text %q", err, tt.field, tt.text)
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("Dial: error %q shows the password", err)
			}
		})
	}
}
