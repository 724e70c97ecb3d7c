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
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/dkimzone/dkimzone/internal/authn"
	"github.com/dkimzone/dkimzone/internal/keystore"
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
		{"admin who may export keys", []string{"spiffe://dkimzone/role/admin/alice/export-keys"}, authn.Identity{Role: authn.Admin, Name: "alice", ExportKeys: true}},
		{"admin with an unknown permission", []string{"spiffe://dkimzone/role/admin/alice/all"}, authn.Identity{}},
		{"admin of a brand who may export keys", []string{"spiffe://dkimzone/role/admin/acme/alice/export-keys"}, authn.Identity{}},
		{"brand", []string{"spiffe://dkimzone/role/brand/acme/shop"}, authn.Identity{Role: authn.Brand, Brand: "acme", Name: "shop"}},
		{"brand without a brand", []string{"spiffe://dkimzone/role/brand/shop"}, authn.Identity{}},
		{"brand with an empty brand", []string{"spiffe://dkimzone/role/brand//shop"}, authn.Identity{}},
		{"brand in upper case", []string{"spiffe://dkimzone/role/brand/ACME/shop"}, authn.Identity{}},
		{"brand that stands for all", []string{"spiffe://dkimzone/role/brand/-/shop"}, authn.Identity{}},
		{"brand who may export keys", []string{"spiffe://dkimzone/role/brand/acme/shop/export-keys"}, authn.Identity{}},
		{"signer", []string{"spiffe://dkimzone/role/signer/mx1"}, authn.Identity{Role: authn.Signer, Name: "mx1"}},
		{"signer of a brand", []string{"spiffe://dkimzone/role/signer/acme/mx1"}, authn.Identity{Role: authn.Signer, Brand: "acme", Name: "mx1"}},
		{"auditor", []string{"spiffe://dkimzone/role/auditor/eve"}, authn.Identity{Role: authn.Auditor, Name: "eve"}},
		{"auditor of a brand", []string{"spiffe://dkimzone/role/auditor/acme/eve"}, authn.Identity{Role: authn.Auditor, Brand: "acme", Name: "eve"}},
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
			got, err := authn.FromCertificate(cert, nil)
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

// DNS SANs say who somebody is only where they are mapped, and no URI says it.
func TestFromCertificateByDNSName(t *testing.T) {
	names, err := authn.ParseDNSNames([]string{"MX1.example.net.=signer/mx1", "mx2.example.net=signer/acme/mx2", "ops.example.net=admin/ops"})
	if err != nil {
		t.Fatal(err)
	}
	mx1 := authn.Identity{Role: authn.Signer, Name: "mx1"}
	tests := []struct {
		name  string
		names []string
		uri   string
		want  authn.Identity // zero: none
	}{
		{"mapped", []string{"mx1.example.net"}, "", mx1},
		{"in another case", []string{"Mx1.Example.NET"}, "", mx1},
		{"beside others", []string{"other.example.net", "mx1.example.net"}, "", mx1},
		{"of a brand", []string{"mx2.example.net"}, "", authn.Identity{Role: authn.Signer, Brand: "acme", Name: "mx2"}},
		{"not mapped", []string{"mx3.example.net"}, "", authn.Identity{}},
		{"wildcard", []string{"*.example.net"}, "", authn.Identity{}},
		{"below a mapped one", []string{"a.mx1.example.net"}, "", authn.Identity{}},
		{"two mapped ones", []string{"mx1.example.net", "ops.example.net"}, "", authn.Identity{}},
		{"a URI decides", []string{"ops.example.net"}, "spiffe://dkimzone/role/auditor/eve", authn.Identity{Role: authn.Auditor, Name: "eve"}},
		{"a bad URI refuses", []string{"ops.example.net"}, "spiffe://dkimzone/role/root/eve", authn.Identity{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cert := &x509.Certificate{DNSNames: tt.names}
			if tt.uri != "" {
				u, err := url.Parse(tt.uri)
				if err != nil {
					t.Fatal(err)
				}
				cert.URIs = []*url.URL{u}
			}
			if got, err := authn.FromCertificate(cert, names); got != tt.want || (err == nil) != (tt.want != authn.Identity{}) {
				t.Errorf("got %v, %v; want %v", got, err, tt.want)
			}
		})
	}
	for _, bad := range [][]string{
		{"mx1.example.net"}, {"=signer/mx1"}, {"mx1.example.net=mx1"}, {"mx1.example.net=root/mx1"}, {"*.example.net=signer/mx1"},
		{"a.example=signer/a", "A.example=signer/b"}, {"a.example=brand/a"}, {"a.example=admin/acme/a"},
	} {
		if names, err := authn.ParseDNSNames(bad); err == nil {
			t.Errorf("ParseDNSNames(%q) = %v, want an error", bad, names)
		}
	}
}

func TestCallersWithoutTLS(t *testing.T) {
	contexts := map[string]context.Context{
		"no peer": context.Background(),
		"no TLS":  peer.NewContext(context.Background(), &peer.Peer{}),
		"not verified": peer.NewContext(context.Background(), &peer.Peer{AuthInfo: credentials.TLSInfo{State: tls.ConnectionState{
			PeerCertificates: []*x509.Certificate{{URIs: []*url.URL{{Scheme: "spiffe", Host: "dkimzone", Path: "/role/admin/alice"}}}},
		}}}),
		"empty chain": peer.NewContext(context.Background(), &peer.Peer{AuthInfo: credentials.TLSInfo{State: tls.ConnectionState{
			VerifiedChains: [][]*x509.Certificate{{}},
		}}}),
		"expired": peer.NewContext(context.Background(), &peer.Peer{AuthInfo: credentials.TLSInfo{State: tls.ConnectionState{
			VerifiedChains: [][]*x509.Certificate{{{
				URIs: []*url.URL{{Scheme: "spiffe", Host: "dkimzone", Path: "/role/admin/alice"}}, NotAfter: now.Add(-time.Second),
			}}},
		}}}),
	}
	a := newStore(t).authenticator(nil)
	for name, ctx := range contexts {
		if caller, err := a.Authenticate(ctx); status.Code(err) != codes.Unauthenticated || caller != (authn.Caller{}) {
			t.Errorf("%s: got %v, %v; want %v", name, caller, err, codes.Unauthenticated)
		}
	}
}

// The identity of callers over real connections with real chains.
func TestCallersOverTLS(t *testing.T) {
	at := time.Now()
	newCA := func() *pki.CA {
		ca, err := pki.EnsureCA(t.TempDir(), at)
		if err != nil {
			t.Fatal(err)
		}
		return ca
	}
	ours, foreign := newCA(), newCA()
	type pair struct{ cert, key string }
	client := func(ca *pki.CA, role string) pair {
		cert, key, err := ca.EnsureClient(role, pki.Identity{Role: role, Name: "alice"}, at)
		if err != nil {
			t.Fatal(err)
		}
		return pair{cert, key}
	}
	roleless, rolelessKey, err := ours.EnsurePeer("peer", []string{"localhost"}, at)
	if err != nil {
		t.Fatal(err)
	}

	store := newStore(t)
	store.now = at
	token := store.token(t, keystore.Token{Role: "auditor", Name: "eve", ExpireTime: at.Add(time.Hour)})
	a := store.authenticator(nil)
	var seen authn.Caller
	var seenErr error
	address := serve(t, ours, func(ctx context.Context) { seen, seenErr = a.Authenticate(ctx) })
	call := func(t *testing.T, creds credentials.TransportCredentials, authorization ...string) error {
		t.Helper()
		seen, seenErr = authn.Caller{}, nil
		conn, err := grpc.NewClient("passthrough:///localhost", grpc.WithTransportCredentials(creds), grpc.WithContextDialer(address))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ctx := t.Context()
		for _, v := range authorization {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", v)
		}
		_, err = healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
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
	anonymous := func(t *testing.T) credentials.TransportCredentials {
		t.Helper()
		cfg, err := pki.AnonymousTLS(ours.CertFile(), "localhost")
		if err != nil {
			t.Fatal(err)
		}
		return credentials.NewTLS(cfg)
	}
	alice := authn.Identity{Role: authn.Admin, Name: "alice"}
	eve := authn.Identity{Role: authn.Auditor, Name: "eve"}
	tests := []struct {
		name          string
		creds         credentials.TransportCredentials
		authorization []string
		want          authn.Identity // zero: unauthenticated
	}{
		{"certificate", with(t, client(ours, "admin")), nil, alice},
		{"of an unknown role", with(t, client(ours, "operator")), nil, authn.Identity{}},
		{"of no role", with(t, pair{roleless, rolelessKey}), nil, authn.Identity{}},
		{"nothing", anonymous(t), nil, authn.Identity{}},
		{"token", anonymous(t), []string{"Bearer " + token}, eve},
		{"the token decides", with(t, client(ours, "admin")), []string{"Bearer " + token}, eve},
		{"a wrong token refuses", with(t, client(ours, "admin")), []string{"Bearer " + token + "x"}, authn.Identity{}},
		{"an empty header refuses", with(t, client(ours, "admin")), []string{""}, authn.Identity{}},
		{"two headers refuse", with(t, client(ours, "admin")), []string{"Bearer " + token, "Bearer " + token}, authn.Identity{}},
		{"two in one refuse", anonymous(t), []string{"Bearer " + token + ", Bearer " + token}, authn.Identity{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := call(t, tt.creds, tt.authorization...); err != nil {
				t.Fatal(err)
			}
			if seen.Identity != tt.want || (status.Code(seenErr) == codes.Unauthenticated) != (tt.want == authn.Identity{}) {
				t.Errorf("got %v, %v; want %v", seen.Identity, seenErr, tt.want)
			}
		})
	}
	// These do not even get as far as a method.
	pool := x509.NewCertPool()
	good := with(t, client(ours, "admin"))
	refused := map[string]credentials.TransportCredentials{
		"foreign certificate": with(t, client(foreign, "admin")),
		"no TLS":              insecure.NewCredentials(),
		"server not trusted":  credentials.NewTLS(&tls.Config{RootCAs: pool, ServerName: "localhost"}),
	}
	for name, creds := range refused {
		t.Run(name, func(t *testing.T) {
			if err := call(t, creds); err == nil || seen != (authn.Caller{}) {
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
