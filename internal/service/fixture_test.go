package service_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/testing/protocmp"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/authn"
	"github.com/dkimzone/dkimzone/internal/authz"
	"github.com/dkimzone/dkimzone/internal/envelope"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/keystore/keystoretest"
	"github.com/dkimzone/dkimzone/internal/mint"
	"github.com/dkimzone/dkimzone/internal/pki"
	"github.com/dkimzone/dkimzone/internal/service"
	"github.com/dkimzone/dkimzone/test/output"
)

const (
	rsa2048 = dkimv1.KeyAlgorithm_KEY_ALGORITHM_RSA_2048
	rsa3072 = dkimv1.KeyAlgorithm_KEY_ALGORITHM_RSA_3072
	rsa4096 = dkimv1.KeyAlgorithm_KEY_ALGORITHM_RSA_4096
	ed25519 = dkimv1.KeyAlgorithm_KEY_ALGORITHM_ED25519
)

// start is when the clock of every fixture begins. The store keeps microseconds.
var start = time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.UTC)

// fixture is a server of the API over TLS on a store in memory, and a client of
// it who may do everything.
type fixture struct {
	fake    *keystoretest.Fake
	store   *keystore.Store
	service *service.Service
	sealer  *envelope.Sealer
	keys    *keySource
	dns     *fakeDNS
	gate    *fakeGate
	api     dkimv1.KeyManagementClient
	signer  dkimv1.SignerClient // of signer mx
	access  dkimv1.AccessControlClient
	health  healthpb.HealthClient
	log     *output.Buffer

	dial    func(context.Context, string) (net.Conn, error)
	ca      *pki.CA
	now     atomic.Pointer[func() time.Time]
	method  atomic.Pointer[string] // that was called last
	streams chan string            // methods of streams, as their handlers return
	rival   atomic.Pointer[func()] // acts before every transaction, if there
}

// rival is a Fake with somebody else at work on it.
type rival struct {
	*keystoretest.Fake

	act *atomic.Pointer[func()]
}

func (r *rival) Txn(ctx context.Context) clientv3.Txn {
	if act := r.act.Load(); act != nil {
		(*act)()
	}
	return r.Fake.Txn(ctx)
}

// newFixture starts a server. The store holds the zone keys.example.net and the
// brands acme and other in it.
func newFixture(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{fake: keystoretest.NewFake(), keys: newKeySource(), dns: &fakeDNS{}, gate: &fakeGate{}, log: &output.Buffer{}, streams: make(chan string, 100)}
	f.setTime(start)
	f.store = keystore.New(&rival{Fake: f.fake, act: &f.rival}, time.Minute)
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
	now := func() time.Time { return (*f.now.Load())() }
	f.sealer = envelope.NewSealer(keeper, f.store)
	f.service = service.New(f.store, mint.New(f.keys, f.sealer), f.dns, now, logger, service.WithGate(f.gate))
	f.serve(t, logger)

	must(f.api.CreateZone(t.Context(), &dkimv1.CreateZoneRequest{ZoneId: "keys.example.net", Zone: &dkimv1.Zone{NameServers: outside}}))(t)
	// Brands as they were before they had keys of their own, which few tests are
	// about.
	for _, b := range []string{"acme", "other"} {
		must(f.store.CreateBrand(t.Context(), keystore.Brand{Name: b, Zone: "keys.example.net", CreateTime: start}))(t)
	}
	return f
}

// prove lets a day pass in which DNS shows all that a domain needs.
func (f *fixture) prove(t testing.TB, name string) {
	t.Helper()
	req := &dkimv1.CheckDomainRequest{Name: name}
	must(f.api.CheckDomain(context.Background(), req))(t)
	f.setTime((*f.now.Load())().Add(25 * time.Hour))
	must(f.api.CheckDomain(context.Background(), req))(t)
}

// rotate proves a domain's standby and rotates to it.
func (f *fixture) rotate(t testing.TB, name string) *dkimv1.Domain {
	t.Helper()
	f.prove(t, name)
	return must(f.api.RotateDomain(context.Background(), &dkimv1.RotateDomainRequest{Name: name}))(t)
}

// outside is a name server that needs no address.
var outside = []*dkimv1.NameServer{{Host: "ns1.example.org"}}

func (f *fixture) serve(t testing.TB, logger *slog.Logger) {
	t.Helper()
	var err error
	if f.ca, err = pki.EnsureCA(t.TempDir(), time.Now()); err != nil {
		t.Fatal(err)
	}
	cert, key, err := f.ca.EnsureServer("server", []string{"localhost"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	tlsConfig, err := pki.ServerTLS(f.ca.CertFile(), cert, key, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	now := func() time.Time { return (*f.now.Load())() }
	// Certificates and credentials live by the real time.
	who := authn.New(authn.Options{Credentials: f.store, Now: time.Now, Logger: slog.New(slog.DiscardHandler)})
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(tlsConfig)),
		grpc.ChainUnaryInterceptor(service.UnaryInterceptor(logger), authn.TagUnary, who.UnaryInterceptor, authz.UnaryInterceptor),
		grpc.ChainStreamInterceptor(f.watchStreams, service.StreamInterceptor(logger), authn.TagStream, who.StreamInterceptor, authz.StreamInterceptor))
	dkimv1.RegisterKeyManagementServer(server, f.service)
	dkimv1.RegisterSignerServer(server, f.service)
	dkimv1.RegisterAccessControlServer(server, service.NewAccess(f.store, who.Forget, now))
	healthpb.RegisterHealthServer(server, health.NewServer())
	listener := bufconn.Listen(1 << 20)
	f.dial = func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener) // ends with Stop
	}()
	t.Cleanup(func() { server.Stop(); <-done })

	cert, key, err = f.ca.EnsureClient("admin", pki.Identity{Role: "admin", Name: "alice"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	conn := f.connect(t, cert, key)
	f.api, f.health = dkimv1.NewKeyManagementClient(conn), healthpb.NewHealthClient(conn)
	f.access = dkimv1.NewAccessControlClient(conn)
	f.signer = dkimv1.NewSignerClient(f.as(t, "signer", "mx"))
}

// as is a connection of a caller of a role, who is bound to a brand if one is
// given.
func (f *fixture) as(t testing.TB, role, name string, brand ...string) *grpc.ClientConn {
	t.Helper()
	id := pki.Identity{Role: role, Name: name}
	file := role + "-" + name
	for _, b := range brand {
		id.Brand = b
		file += "-" + b
	}
	cert, key, err := f.ca.EnsureClient(file, id, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return f.connect(t, cert, key)
}

func (f *fixture) watchStreams(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	defer func() { f.streams <- path.Base(info.FullMethod) }()
	return handler(srv, stream)
}

// connect is a connection with a client certificate.
func (f *fixture) connect(t testing.TB, certFile, keyFile string) *grpc.ClientConn {
	t.Helper()
	tlsConfig, err := pki.ClientTLS(f.ca.CertFile(), certFile, keyFile, "localhost", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return f.dialWith(t, tlsConfig)
}

// anonymous is a connection without one.
func (f *fixture) anonymous(t testing.TB) *grpc.ClientConn {
	t.Helper()
	tlsConfig, err := pki.AnonymousTLS(f.ca.CertFile(), "localhost")
	if err != nil {
		t.Fatal(err)
	}
	return f.dialWith(t, tlsConfig)
}

func (f *fixture) dialWith(t testing.TB, tlsConfig *tls.Config) *grpc.ClientConn {
	t.Helper()
	note := func(method string) { method = path.Base(method); f.method.Store(&method) }
	conn, err := grpc.NewClient("passthrough:///localhost",
		grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)), grpc.WithContextDialer(f.dial),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, resp any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			note(method)
			return invoke(ctx, method, req, resp, conn, opts...)
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			note(method)
			return streamer(ctx, desc, conn, method, opts...)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func (f *fixture) setTime(at time.Time) {
	clock := func() time.Time { return at }
	f.now.Store(&clock)
}

// must is for calls that a test does not expect to fail.
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatalf("%v %v", err, status.Convert(err).Details())
		}
		return v
	}
}

// provision provisions a domain with Ed25519 keys.
func (f *fixture) provision(t testing.TB, name string, selectors ...string) *dkimv1.Domain {
	t.Helper()
	req := &dkimv1.ProvisionDomainRequest{Name: name, Algorithm: ed25519}
	for _, s := range selectors {
		req.Selectors = append(req.Selectors, &dkimv1.SelectorSpec{Selector: s})
	}
	return must(f.api.ProvisionDomain(context.Background(), req))(t)
}

// unchanged runs call and fails the test if the store is another afterwards.
func (f *fixture) unchanged(t testing.TB, call func() error) error {
	t.Helper()
	before := f.fake.Dump()
	revision := must(f.store.Revision(context.Background()))(t)
	err := call()
	if diff := cmp.Diff(before, f.fake.Dump()); diff != "" {
		t.Errorf("the store has changed (-before +after):\n%s", diff)
	}
	if after := must(f.store.Revision(context.Background()))(t); after != revision {
		t.Errorf("the store went from revision %d to %d", revision, after)
	}
	return err
}

// rejection is what an error says.
type rejection struct {
	code   codes.Code
	reason string // of the ErrorInfo
	field  string // of the BadRequest
}

// refused checks that a call is refused as it should be, in the way that the
// API promises, and changes nothing. It returns the error's whole text.
func (f *fixture) refused(t testing.TB, want rejection, call func() error) string {
	t.Helper()
	err := f.unchanged(t, call)
	if err == nil {
		t.Fatalf("succeeded, want %v %s", want.code, want.reason)
	}
	st := status.Convert(err)
	got := rejection{code: st.Code()}
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			got.reason = d.GetReason()
			if d.GetDomain() != "dkimzone" {
				t.Errorf("ErrorInfo of domain %q", d.GetDomain())
			}
		case *errdetails.BadRequest:
			for _, v := range d.GetFieldViolations() {
				got.field = v.GetField()
				if v.GetReason() != want.reason || v.GetDescription() == "" {
					t.Errorf("field violation %v", v)
				}
			}
		}
	}
	if got != want {
		t.Errorf("refused with %+v, want %+v: %v", got, want, err)
	}
	if st.Message() == "" {
		t.Error("the error has no message")
	}
	if method := *f.method.Load(); !documented(t)[method][want.reason] {
		t.Errorf("the API does not say that %s may refuse with %s", method, want.reason)
	}
	return fmt.Sprint(st.Message(), st.Details())
}

// documented returns, by method, the words of its comment in the API and of
// that of the service.
var documented = func() func(t testing.TB) map[string]map[string]bool {
	read := sync.OnceValues(func() (map[string]map[string]bool, error) {
		var protos []byte
		for _, file := range []string{"key_management", "signer", "access"} {
			text, err := os.ReadFile("../../api/dkim/v1/" + file + ".proto")
			if err != nil {
				return nil, err
			}
			protos = append(protos, text...)
		}
		word := regexp.MustCompile(`[A-Z]+_[A-Z_]+|INTERNAL|CONFLICT|UNAUTHENTICATED`)
		declaration := regexp.MustCompile(`(?m)((?:^ *//.*\n)+) *(service|rpc) (\w+)`)
		methods := make(map[string]map[string]bool)
		var general []string
		for _, m := range declaration.FindAllSubmatch(protos, -1) {
			words := word.FindAllString(string(m[1]), -1)
			if string(m[2]) == "service" {
				general = words
				continue
			}
			methods[string(m[3])] = make(map[string]bool)
			for _, w := range slices.Concat(words, general) {
				methods[string(m[3])][w] = true
			}
		}
		if len(methods) < 20 || len(general) < 5 {
			return nil, fmt.Errorf("found %d methods and %d general reasons", len(methods), len(general))
		}
		return methods, nil
	})
	return func(t testing.TB) map[string]map[string]bool {
		t.Helper()
		return must(read())(t)
	}
}()

func wantEqual[T any](t testing.TB, what string, got, want T) {
	t.Helper()
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// keySource hands out keys: of RSA ones a few that were made once, each of them
// once.
type keySource struct {
	mu   sync.Mutex
	used map[keypair.Algorithm]int
	made []*keypair.KeyPair // all that were handed out

	// To be set before the calls that they are for.
	err error // for all calls

	// Makes calls wait for their contexts, and gets an element from each. A call
	// of a caller who has left may still look at it.
	blocked atomic.Pointer[chan struct{}]
}

// block makes calls wait from now on, and returns what gets an element from each.
func (s *keySource) block() <-chan struct{} {
	calls := make(chan struct{})
	s.blocked.Store(&calls)
	return calls
}

func newKeySource() *keySource { return &keySource{used: make(map[keypair.Algorithm]int)} }

// rsaKeys are keys that were made for some test: all may have them.
var rsaKeys = struct {
	sync.Mutex

	made map[keypair.Algorithm][]*keypair.KeyPair
}{made: make(map[keypair.Algorithm][]*keypair.KeyPair)}

// rsaKey is the n-th key of an algorithm.
func rsaKey(a keypair.Algorithm, n int) (*keypair.KeyPair, error) {
	rsaKeys.Lock()
	defer rsaKeys.Unlock()
	for len(rsaKeys.made[a]) <= n {
		k, err := keypair.Generate(a)
		if err != nil {
			return nil, err
		}
		rsaKeys.made[a] = append(rsaKeys.made[a], k)
	}
	return rsaKeys.made[a][n], nil
}

func (s *keySource) Get(ctx context.Context, a keypair.Algorithm) (*keypair.KeyPair, error) {
	if calls := s.blocked.Load(); calls != nil {
		select {
		case *calls <- struct{}{}:
			<-ctx.Done()
		case <-ctx.Done():
		}
		return nil, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	var k *keypair.KeyPair
	var err error
	if a == keypair.Ed25519 {
		k, err = keypair.Generate(a)
	} else {
		k, err = rsaKey(a, s.used[a])
		s.used[a]++
	}
	if err != nil {
		return nil, err
	}
	s.made = append(s.made, k)
	return k, nil
}

// private returns the octets that nobody may see.
func (s *keySource) private() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	var secrets [][]byte
	for _, k := range s.made {
		form := k.Marshal()
		secrets = append(secrets, form[1:33])
	}
	return secrets
}

// checkPrivate fails the test if private octets stand in the store or the log.
func (f *fixture) checkPrivate(t testing.TB) {
	t.Helper()
	for _, secret := range f.keys.private() {
		for key, value := range f.fake.Dump() {
			if bytes.Contains([]byte(value), secret) {
				t.Errorf("%s holds a private key in the clear", key)
			}
		}
		if strings.Contains(f.log.String(), string(secret)) {
			t.Error("the log holds a private key")
		}
	}
}

// names returns the last parts of resource names, sorted.
func names[T interface{ GetName() string }](resources []T) []string {
	var all []string
	for _, r := range resources {
		all = append(all, path.Base(r.GetName()))
	}
	slices.Sort(all)
	return all
}

// under returns the keys of the store below a prefix, sorted, without the due
// index, to which each change adds until somebody looks at the domain.
func (f *fixture) under(prefix string) []string {
	var keys []string
	for _, key := range slices.Sorted(maps.Keys(f.fake.Dump())) {
		if rest, ok := strings.CutPrefix(key, prefix); ok && !strings.HasPrefix(key, "/dkim/v1/meta/due/") {
			keys = append(keys, rest)
		}
	}
	return keys
}
