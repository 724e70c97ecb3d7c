package gateway_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/authn"
	"github.com/dkimzone/dkimzone/internal/authz"
	"github.com/dkimzone/dkimzone/internal/envelope"
	"github.com/dkimzone/dkimzone/internal/gateway"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/keystore/keystoretest"
	"github.com/dkimzone/dkimzone/internal/mint"
	"github.com/dkimzone/dkimzone/internal/pki"
	"github.com/dkimzone/dkimzone/internal/prober"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/service"
	"github.com/dkimzone/dkimzone/test/output"
)

const (
	ed25519 = dkimv1.KeyAlgorithm_KEY_ALGORITHM_ED25519
	cloud   = "/cloudapi/v2/mail/dkim/"

	// readTimeout is how long a request may take to arrive.
	readTimeout = time.Second
)

// fixture is a service on a store in memory that listens for gRPC and for HTTPS,
// and a caller of both who may do everything.
type fixture struct {
	fake  *keystoretest.Fake
	store *keystore.Store
	dns   *fakeDNS
	log   *output.Buffer
	api   dkimv1.KeyManagementClient // over gRPC
	rest  *http.Client               // with the same certificate
	addr  string                     // of HTTPS
	ca    *pki.CA
	now   atomic.Int64 // nanoseconds

	act func() // is called before each call, if it is there
}

// newFixture starts both. The store holds the zone keys.example.net and the brands
// acme and other in it.
func newFixture(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{fake: keystoretest.NewFake(), dns: &fakeDNS{}, log: &output.Buffer{}}
	f.now.Store(time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC).UnixNano())
	f.store = keystore.New(f.fake, time.Minute)
	kek := filepath.Join(t.TempDir(), "kek.key")
	if err := envelope.CreateKeyFile(kek); err != nil {
		t.Fatal(err)
	}
	keeper, err := envelope.OpenKeeper(t.Context(), "file://"+kek)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keeper.Close() })
	logger := slog.New(slog.NewTextHandler(f.log, nil))
	s := service.New(f.store, mint.New(keySource{}, envelope.NewSealer(keeper, f.store)), f.dns, f.clock, logger)
	f.serve(t, s, logger)

	_, err = f.api.CreateZone(t.Context(), &dkimv1.CreateZoneRequest{
		ZoneId: "keys.example.net", Zone: &dkimv1.Zone{NameServers: []*dkimv1.NameServer{{Host: "ns1.example.org"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range []string{"acme", "other"} { // without keys of their own
		if _, err := f.store.CreateBrand(t.Context(), keystore.Brand{Name: b, Zone: "keys.example.net", CreateTime: f.clock()}); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func (f *fixture) clock() time.Time { return time.Unix(0, f.now.Load()).UTC() }

func (f *fixture) serve(t testing.TB, s *service.Service, logger *slog.Logger) {
	t.Helper()
	var err error
	if f.ca, err = pki.EnsureCA(t.TempDir(), time.Now()); err != nil {
		t.Fatal(err)
	}
	cert, key, err := f.ca.EnsureServer("server", []string{"127.0.0.1"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	config, err := pki.ServerTLS(f.ca.CertFile(), cert, key, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	who := authn.New(authn.Options{Credentials: f.store, Now: time.Now, Logger: logger})
	unary := []grpc.UnaryServerInterceptor{service.UnaryInterceptor(logger), authn.TagUnary, who.UnaryInterceptor, authz.UnaryInterceptor, f.before}
	stream := []grpc.StreamServerInterceptor{service.StreamInterceptor(logger), authn.TagStream, who.StreamInterceptor, authz.StreamInterceptor}
	register := func(r grpc.ServiceRegistrar) {
		dkimv1.RegisterKeyManagementServer(r, s)
		dkimv1.RegisterSignerServer(r, s)
		dkimv1.RegisterAccessControlServer(r, service.NewAccess(f.store, who.Forget, time.Now))
		dkimv1.RegisterCallersServer(r, service.Callers{})
	}
	handler, err := gateway.New(gateway.Options{Register: register, Unary: unary, Stream: stream, Signing: func() error { return nil }, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)), grpc.ChainUnaryInterceptor(unary...), grpc.ChainStreamInterceptor(stream...))
	register(server)
	web := &http.Server{
		Handler: handler, TLSConfig: config.Clone(), ReadHeaderTimeout: readTimeout, ReadTimeout: readTimeout,
		MaxHeaderBytes: 32 << 10, ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
	var done sync.WaitGroup
	listen := func(serve func(net.Listener) error) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		done.Go(func() { _ = serve(l) }) // ends when it is stopped
		return l.Addr().String()
	}
	address := listen(server.Serve)
	f.addr = listen(func(l net.Listener) error { return web.ServeTLS(l, "", "") })
	t.Cleanup(func() { server.Stop(); web.Close(); done.Wait() })

	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(f.clientTLS(t, "admin", "alice"))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	f.api = dkimv1.NewKeyManagementClient(conn)
	f.rest = f.as(t, "admin", "alice")
}

func (f *fixture) before(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if f.act != nil {
		f.act()
	}
	return handler(ctx, req)
}

// clientTLS is the configuration of a caller of a role, or of a stranger.
func (f *fixture) clientTLS(t testing.TB, role, name string) *tls.Config {
	t.Helper()
	if role == "" {
		config := f.clientTLS(t, "admin", "alice")
		config.GetClientCertificate = nil
		return config
	}
	cert, key, err := f.ca.EnsureClient(role+"-"+name, pki.Identity{Role: role, Name: name}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	config, err := pki.ClientTLS(f.ca.CertFile(), cert, key, "127.0.0.1", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// as is an HTTP client of a role; of role "", without a certificate.
func (f *fixture) as(t testing.TB, role, name string) *http.Client {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: f.clientTLS(t, role, name), ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// answer is what came back.
type answer struct {
	code   int
	header http.Header
	body   []byte
}

// do makes a request as the fixture's caller. edit may change it before.
func (f *fixture) do(t testing.TB, method, path, body string, edit ...func(*http.Request)) answer {
	t.Helper()
	return f.doAs(t, f.rest, method, path, body, edit...)
}

func (f *fixture) doAs(t testing.TB, client *http.Client, method, path, body string, edit ...func(*http.Request)) answer {
	t.Helper()
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(context.Background(), method, "https://"+f.addr+path, reader)
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, e := range edit {
		e(req)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, got}
}

// ok is do for a request that succeeds with a message.
func (f *fixture) ok(t testing.TB, method, path, body string, m proto.Message) {
	t.Helper()
	a := f.do(t, method, path, body)
	if a.code != http.StatusOK {
		t.Fatalf("%s %s: %d %s", method, path, a.code, a.body)
	}
	if err := protojson.Unmarshal(a.body, m); err != nil {
		t.Fatalf("%s %s: %v: %s", method, path, err, a.body)
	}
}

// document is the JSON of an answer.
func (a answer) document(t testing.TB) map[string]any {
	t.Helper()
	var doc map[string]any
	if err := json.Unmarshal(a.body, &doc); err != nil {
		t.Fatalf("%v: %s", err, a.body)
	}
	return doc
}

// status is the error of an answer, and the reason in it.
func (a answer) status(t testing.TB) (*status.Status, string) {
	t.Helper()
	var p spb.Status
	if err := protojson.Unmarshal(a.body, &p); err != nil {
		t.Fatalf("%v: %s", err, a.body)
	}
	st := status.FromProto(&p)
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			if info.GetDomain() != "dkimzone" {
				t.Errorf("ErrorInfo of domain %q", info.GetDomain())
			}
			return st, info.GetReason()
		}
	}
	return st, ""
}

// refused fails the test if an answer is not the wanted refusal, or if it can be
// cached.
func (a answer) refused(t testing.TB, code int, reason string) {
	t.Helper()
	if a.code != code {
		t.Fatalf("answered %d %s, want %d %s", a.code, a.body, code, reason)
	}
	st, got := a.status(t)
	if got != reason || st.Message() == "" {
		t.Errorf("refused with %s %q, want %s", got, st.Message(), reason)
	}
	if a.header.Get("Content-Type") != "application/json" || a.header.Get("Cache-Control") != "no-store" {
		t.Errorf("header fields %v", a.header)
	}
}

// unchanged runs call and fails the test if the store is another afterwards.
func (f *fixture) unchanged(t testing.TB, call func()) {
	t.Helper()
	before := f.fake.Dump()
	call()
	if diff := cmp.Diff(before, f.fake.Dump()); diff != "" {
		t.Errorf("the store has changed (-before +after):\n%s", diff)
	}
}

// prove lets a day pass in which DNS shows all that a domain needs.
func (f *fixture) prove(t testing.TB, name string) {
	t.Helper()
	for i := range 2 {
		f.now.Add(int64(i) * int64(25*time.Hour))
		if _, err := f.api.CheckDomain(t.Context(), &dkimv1.CheckDomainRequest{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
}

func wantEqual[T any](t testing.TB, what string, got, want T) {
	t.Helper()
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// keySource makes Ed25519 keys, and of RSA one key for each call.
type keySource struct{}

func (keySource) Get(_ context.Context, a keypair.Algorithm) (*keypair.KeyPair, error) {
	return keypair.Generate(a)
}

// fakeDNS shows all that there should be, unless it is told otherwise.
type fakeDNS struct{ missing atomic.Bool }

func (f *fakeDNS) Alias(context.Context, prober.AliasQuestion) prober.AliasReport {
	if f.missing.Load() {
		return prober.AliasReport{Finding: rotation.Contradicted, Reason: "MISSING"}
	}
	return prober.AliasReport{Finding: rotation.Proven}
}

func (f *fakeDNS) Served(context.Context, string, []prober.NameServer, string, string) prober.ServedReport {
	return prober.ServedReport{Finding: rotation.Proven}
}

func (*fakeDNS) Challenge(context.Context, string, string) (bool, []prober.ServerAnswer) {
	return false, nil
}
