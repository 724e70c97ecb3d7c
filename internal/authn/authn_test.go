package authn_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"net"
	"net/url"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/test/bufconn"

	"github.com/dkimzone/dkimzone/internal/authn"
	"github.com/dkimzone/dkimzone/internal/pki"
)

func TestFromCertificate(t *testing.T) {
	tests := []struct {
		name string
		uris []string
		want authn.Identity // zero: none
	}{
		{"admin", []string{"spiffe://dkimzone/role/admin/alice"}, authn.Identity{Role: authn.Admin, Name: "alice"}},
		{"another installation's name beside it", []string{"spiffe://example.org/role/admin/bob", "spiffe://dkimzone/role/admin/alice"}, authn.Identity{Role: authn.Admin, Name: "alice"}},
		{"no URI", nil, authn.Identity{}},
		{"of another installation", []string{"spiffe://example.org/role/admin/alice"}, authn.Identity{}},
		{"user information", []string{"spiffe://admin@dkimzone/role/admin/alice"}, authn.Identity{}},
		{"port", []string{"spiffe://dkimzone:443/role/admin/alice"}, authn.Identity{}},
		{"longer trust domain", []string{"spiffe://dkimzone.example.org/role/admin/alice"}, authn.Identity{}},
		{"another scheme", []string{"https://dkimzone/role/admin/alice"}, authn.Identity{}},
		{"no role", []string{"spiffe://dkimzone/role/"}, authn.Identity{}},
		{"no name", []string{"spiffe://dkimzone/role/admin"}, authn.Identity{}},
		{"empty name", []string{"spiffe://dkimzone/role/admin/"}, authn.Identity{}},
		{"unknown role", []string{"spiffe://dkimzone/role/root/alice"}, authn.Identity{}},
		{"role in upper case", []string{"spiffe://dkimzone/role/ADMIN/alice"}, authn.Identity{}},
		{"more path", []string{"spiffe://dkimzone/role/admin/alice/bob"}, authn.Identity{}},
		{"query", []string{"spiffe://dkimzone/role/admin/alice?role=root"}, authn.Identity{}},
		{"fragment", []string{"spiffe://dkimzone/role/admin/alice#x"}, authn.Identity{}},
		{"escaped", []string{"spiffe://dkimzone/role/admin/a%2Fb"}, authn.Identity{}},
		{"twice", []string{"spiffe://dkimzone/role/admin/alice", "spiffe://dkimzone/role/admin/bob"}, authn.Identity{}},
		{"a good and a bad one", []string{"spiffe://dkimzone/role/admin/alice", "spiffe://dkimzone/role/root/alice"}, authn.Identity{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			// The common name and DNS names say nothing.
			cert := &x509.Certificate{Subject: pkix.Name{CommonName: "admin/alice"}, DNSNames: []string{"admin"}}
			for _, raw := range tt.uris {
				u, err := url.Parse(raw)
				if err != nil {
					t.Fatal(err)
				}
				cert.URIs = append(cert.URIs, u)
			}
			got, err := authn.FromCertificate(cert)
			if got != tt.want || (err == nil) != (tt.want != authn.Identity{}) {
				t.Errorf("got %v, %v; want %v", got, err, tt.want)
			}
			if err != nil && !errors.Is(err, authn.ErrNoIdentity) {
				t.Errorf("error %v is not %v", err, authn.ErrNoIdentity)
			}
		})
	}
	if got, want := (authn.Identity{Role: authn.Admin, Name: "alice"}).String(), "admin/alice"; got != want {
		t.Errorf("String() = %q, want %q", got, want)
	}
}

func TestFromPeerWithoutTLS(t *testing.T) {
	contexts := map[string]context.Context{
		"no peer": context.Background(),
		"no TLS":  peer.NewContext(context.Background(), &peer.Peer{}),
		"not verified": peer.NewContext(context.Background(), &peer.Peer{AuthInfo: credentials.TLSInfo{State: tls.ConnectionState{
			PeerCertificates: []*x509.Certificate{{URIs: []*url.URL{{Scheme: "spiffe", Host: "dkimzone", Path: "/role/admin/alice"}}}},
		}}}),
		"empty chain": peer.NewContext(context.Background(), &peer.Peer{AuthInfo: credentials.TLSInfo{State: tls.ConnectionState{
			VerifiedChains: [][]*x509.Certificate{{}},
		}}}),
	}
	for name, ctx := range contexts {
		if id, err := authn.FromPeer(ctx); !errors.Is(err, authn.ErrNoIdentity) || id != (authn.Identity{}) {
			t.Errorf("%s: got %v, %v; want %v", name, id, err, authn.ErrNoIdentity)
		}
	}
}

// The identity of callers over real connections with real chains.
func TestFromPeer(t *testing.T) {
	now := time.Now()
	newCA := func() *pki.CA {
		ca, err := pki.EnsureCA(t.TempDir(), now)
		if err != nil {
			t.Fatal(err)
		}
		return ca
	}
	ours, foreign := newCA(), newCA()
	type pair struct{ cert, key string }
	client := func(ca *pki.CA, role string) pair {
		cert, key, err := ca.EnsureClient(role, pki.Identity{Role: role, Name: "alice"}, now)
		if err != nil {
			t.Fatal(err)
		}
		return pair{cert, key}
	}
	roleless, rolelessKey, err := ours.EnsurePeer("peer", []string{"localhost"}, now)
	if err != nil {
		t.Fatal(err)
	}

	var seen authn.Identity
	var seenErr error
	address := serve(t, ours, func(ctx context.Context) { seen, seenErr = authn.FromPeer(ctx) })
	call := func(t *testing.T, creds credentials.TransportCredentials) error {
		t.Helper()
		conn, err := grpc.NewClient("passthrough:///localhost", grpc.WithTransportCredentials(creds), grpc.WithContextDialer(address))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, err = healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
		return err
	}
	with := func(t *testing.T, p pair) credentials.TransportCredentials {
		t.Helper()
		cfg, err := pki.ClientTLS(ours.CertFile(), p.cert, p.key, "localhost", slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return credentials.NewTLS(cfg)
	}

	t.Run("admin", func(t *testing.T) {
		if err := call(t, with(t, client(ours, "admin"))); err != nil {
			t.Fatal(err)
		}
		if want := (authn.Identity{Role: authn.Admin, Name: "alice"}); seen != want || seenErr != nil {
			t.Errorf("got %v, %v; want %v", seen, seenErr, want)
		}
	})
	for name, p := range map[string]pair{"unknown role": client(ours, "brand"), "no role": {roleless, rolelessKey}} {
		t.Run(name, func(t *testing.T) {
			if err := call(t, with(t, p)); err != nil {
				t.Fatal(err)
			}
			if !errors.Is(seenErr, authn.ErrNoIdentity) {
				t.Errorf("got %v, %v; want %v", seen, seenErr, authn.ErrNoIdentity)
			}
		})
	}
	// These do not even get as far as a method.
	pool := x509.NewCertPool()
	good := with(t, client(ours, "admin"))
	refused := map[string]credentials.TransportCredentials{
		"foreign certificate": with(t, client(foreign, "admin")),
		"no certificate":      credentials.NewTLS(&tls.Config{InsecureSkipVerify: true}),
		"no TLS":              insecure.NewCredentials(),
		"server not trusted":  credentials.NewTLS(&tls.Config{RootCAs: pool, ServerName: "localhost"}),
	}
	for name, creds := range refused {
		t.Run(name, func(t *testing.T) {
			seen = authn.Identity{}
			if err := call(t, creds); err == nil || seen != (authn.Identity{}) {
				t.Errorf("got through as %v, %v", seen, err)
			}
			if err := call(t, good); err != nil {
				t.Errorf("a good caller afterwards: %v", err)
			}
		})
	}
}

// serve starts a server that lets see look at each call, and returns its dialer.
func serve(t *testing.T, ca *pki.CA, see func(context.Context)) func(context.Context, string) (net.Conn, error) {
	t.Helper()
	cert, key, err := ca.EnsureServer("server", []string{"localhost"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := pki.ServerTLS(ca.CertFile(), cert, key, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(cfg)), grpc.UnaryInterceptor(
		func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			see(ctx)
			return handler(ctx, req)
		}))
	healthpb.RegisterHealthServer(server, health.NewServer())
	listener := bufconn.Listen(1 << 16)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener) // ends with Stop
	}()
	t.Cleanup(func() { server.Stop(); <-done })
	return func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }
}
