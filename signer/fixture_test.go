package signer_test

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/signer"
)

// dkimd is a service with keys in memory, which do what a test says.
type dkimd struct {
	dkimv1.UnimplementedSignerServer

	mu       sync.Mutex
	keys     map[string]crypto.Signer // by name
	active   map[string][]*dkimv1.SigningKey
	standby  map[string][]*dkimv1.SigningKey
	fallback map[string]bool // by domain
	down     bool
	hold     time.Duration
	refresh  time.Duration
	calls    map[string]int
	changed  chan struct{} // closed and replaced at each change
	log      []string      // names of domains, as they changed
	uses     []*dkimv1.ReportUseRequest
	batches  []int // sizes of calls of Sign
	listener *bufconn.Listener
}

func newDkimd(t *testing.T) *dkimd {
	t.Helper()
	d := &dkimd{listener: bufconn.Listen(1 << 20)}
	d.reset()
	server := grpc.NewServer()
	dkimv1.RegisterSignerServer(server, d)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(d.listener) // ends with Stop
	}()
	t.Cleanup(func() { server.Stop(); <-done })
	d.rotate(t, "brands/acme/domains/acme.keys.example.net", "default1")
	return d
}

// reset gives it no keys and no callers.
func (d *dkimd) reset() {
	d.keys, d.active, d.standby = make(map[string]crypto.Signer), make(map[string][]*dkimv1.SigningKey), make(map[string][]*dkimv1.SigningKey)
	d.fallback, d.hold, d.refresh = make(map[string]bool), time.Hour, time.Hour
	d.calls, d.changed = make(map[string]int), make(chan struct{})
}

// client is a Client of it.
func (d *dkimd) client(t testing.TB, o signer.Options) *signer.Client {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///dkimd", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return d.listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	o.Conn = conn
	c, err := signer.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		conn.Close()
	})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := c.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	return c
}

// newKey makes a key of a domain; RSA for selectors that begin with "rsa".
func (d *dkimd) newKey(t testing.TB, domain, selector string) *dkimv1.SigningKey {
	t.Helper()
	var key crypto.Signer
	var err error
	if strings.HasPrefix(selector, "rsa") {
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	} else {
		_, key, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	name := fmt.Sprintf("%s/keys/k%d", domain, len(d.keys))
	d.keys[name] = key
	_, bare, _ := strings.Cut(domain, "/domains/")
	return &dkimv1.SigningKey{Domain: bare, Selector: selector, Key: name}
}

// rotate lets new keys sign for a domain.
func (d *dkimd) rotate(t testing.TB, domain string, selectors ...string) []*dkimv1.SigningKey {
	t.Helper()
	var keys []*dkimv1.SigningKey
	for _, s := range selectors {
		keys = append(keys, d.newKey(t, domain, s))
	}
	d.set(func() { d.active[domain] = keys }, domain)
	return keys
}

// set changes something of a domain.
func (d *dkimd) set(do func(), domain string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	do()
	d.log = append(d.log, domain)
	close(d.changed)
	d.changed = make(chan struct{})
}

// setDown lets all calls fail, and watches end.
func (d *dkimd) setDown(down bool) { d.set(func() { d.down = down }, "") }

func (d *dkimd) count(method string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.calls[method]
}

func rejection(code codes.Code, reason string) error {
	st, err := status.New(code, reason).WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: "dkimzone"})
	if err != nil {
		return err
	}
	return st.Err()
}

// heldLast is what a signer reported last of a domain: keys, with whether they signed.
// It is nil if there was no report.
func (d *dkimd) heldLast(domain string) map[string]bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	var held map[string]bool
	for _, u := range d.uses {
		for _, use := range u.GetDomains() {
			if use.GetDomain() == domain {
				held = make(map[string]bool)
				for _, k := range use.GetKeys() {
					held[k.GetKey()] = k.GetLastUseTime() != nil
				}
			}
		}
	}
	return held
}

// forgetReports forgets what was reported so far.
func (d *dkimd) forgetReports() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.uses = nil
}

// enter begins a call, with the lock held.
func (d *dkimd) enter(method string) error {
	d.mu.Lock()
	d.calls[method]++
	if d.down {
		d.mu.Unlock()
		return rejection(codes.Unavailable, "STORE_UNAVAILABLE")
	}
	return nil
}

func (d *dkimd) ResolveSigningKeys(_ context.Context, req *dkimv1.ResolveSigningKeysRequest) (*dkimv1.ResolveSigningKeysResponse, error) {
	if err := d.enter("Resolve"); err != nil {
		return nil, err
	}
	defer d.mu.Unlock()
	_, bare, _ := strings.Cut(req.GetName(), "/domains/")
	if strings.HasPrefix(bare, "denied") {
		return nil, rejection(codes.PermissionDenied, "PERMISSION_DENIED")
	}
	keys, ok := d.active["brands/acme/domains/"+bare]
	if !ok {
		return nil, rejection(codes.NotFound, "DOMAIN_NOT_FOUND")
	}
	return &dkimv1.ResolveSigningKeysResponse{
		Keys: keys, Fallback: d.fallback[bare], Reason: "OWN_KEY", RefreshDuration: durationpb.New(d.refresh), HoldDuration: durationpb.New(d.hold),
	}, nil
}

// find is a key that may sign, or why not. The lock is held.
func (d *dkimd) find(name string, standby bool) (crypto.Signer, error) {
	domain, _, _ := strings.Cut(name, "/keys/")
	keys := d.active[domain]
	if standby {
		keys = append(append([]*dkimv1.SigningKey(nil), keys...), d.standby[domain]...)
	}
	for _, k := range keys {
		if k.GetKey() == name {
			return d.keys[name], nil
		}
	}
	return nil, rejection(codes.FailedPrecondition, "KEY_NOT_SIGNING")
}

func (d *dkimd) Sign(_ context.Context, req *dkimv1.SignRequest) (*dkimv1.SignResponse, error) {
	if err := d.enter("Sign"); err != nil {
		return nil, err
	}
	defer d.mu.Unlock()
	d.batches = append(d.batches, len(req.GetDigests()))
	resp := &dkimv1.SignResponse{}
	for _, digest := range req.GetDigests() {
		r := &dkimv1.SignResponse_Result{}
		resp.Results = append(resp.Results, r)
		key, err := d.find(digest.GetKey(), false)
		if err != nil {
			r.Error = status.Convert(err).Proto()
			continue
		}
		if r.PublicKey, err = x509.MarshalPKIXPublicKey(key.Public()); err != nil {
			return nil, err
		}
		if digest.GetDigest() == nil {
			continue
		}
		opts := crypto.SignerOpts(crypto.SHA256)
		if _, ok := key.(ed25519.PrivateKey); ok {
			opts = crypto.Hash(0)
		}
		if r.Signature, err = key.Sign(rand.Reader, digest.GetDigest(), opts); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

func (d *dkimd) FetchPrivateKeys(_ context.Context, req *dkimv1.FetchPrivateKeysRequest) (*dkimv1.FetchPrivateKeysResponse, error) {
	if err := d.enter("Fetch"); err != nil {
		return nil, err
	}
	defer d.mu.Unlock()
	resp := &dkimv1.FetchPrivateKeysResponse{}
	for _, name := range req.GetKeys() {
		r := &dkimv1.FetchPrivateKeysResponse_Result{Key: name}
		key, err := d.find(name, true)
		if err != nil {
			r.Error = status.Convert(err).Proto()
		} else if r.PrivateKey, err = x509.MarshalPKCS8PrivateKey(key); err != nil {
			return nil, err
		}
		resp.Results = append(resp.Results, r)
	}
	return resp, nil
}

func (d *dkimd) RegisterSigner(context.Context, *dkimv1.RegisterSignerRequest) (*dkimv1.SignerRegistration, error) {
	if err := d.enter("Register"); err != nil {
		return nil, err
	}
	defer d.mu.Unlock()
	return &dkimv1.SignerRegistration{}, nil
}

func (d *dkimd) ReportUse(_ context.Context, req *dkimv1.ReportUseRequest) (*dkimv1.ReportUseResponse, error) {
	if err := d.enter("ReportUse"); err != nil {
		return nil, err
	}
	defer d.mu.Unlock()
	if d.calls["Register"] == 0 {
		return nil, rejection(codes.NotFound, "SIGNER_NOT_FOUND")
	}
	d.uses = append(d.uses, req)
	return &dkimv1.ReportUseResponse{}, nil
}

// isOwn reports whether a domain is a brand's own, of which a watch does not tell.
func isOwn(name string) bool { return strings.HasSuffix(name, ".keys.example.net") }

// entry is a domain as a watch tells of it. The lock is held.
func (d *dkimd) entry(name string) *dkimv1.SigningDomain {
	keys, ok := d.active[name]
	return &dkimv1.SigningDomain{
		Name: name, Deleted: !ok, Keys: keys, Fallback: ok && len(keys) == 0, Reason: "OWN_KEY",
		HoldDuration: durationpb.New(d.hold), StandbyKeys: d.standby[name],
	}
}

func (d *dkimd) WatchSigningKeys(req *dkimv1.WatchSigningKeysRequest, stream grpc.ServerStreamingServer[dkimv1.WatchSigningKeysResponse]) error {
	if err := d.enter("Watch"); err != nil {
		return err
	}
	at := 0
	const own = "brands/acme/domains/acme.keys.example.net"
	if _, err := fmt.Sscanf(req.GetResumeToken(), "at%d", &at); err != nil {
		d.calls["Snapshot"]++
		resp := &dkimv1.WatchSigningKeysResponse{Snapshot: true, Brands: []*dkimv1.SigningBrand{{Name: "brands/acme", DefaultKeys: d.active[own], HoldDuration: durationpb.New(d.hold)}}}
		for name := range d.active {
			if !isOwn(name) {
				resp.Domains = append(resp.Domains, d.entry(name))
			}
		}
		at = len(d.log)
		d.mu.Unlock()
		if err := stream.Send(resp); err != nil {
			return err
		}
		if err := stream.Send(&dkimv1.WatchSigningKeysResponse{Synced: true, ResumeToken: fmt.Sprintf("at%d", at), Age: durationpb.New(0)}); err != nil {
			return err
		}
		d.mu.Lock()
	}
	for {
		if d.down {
			d.mu.Unlock()
			return status.Error(codes.Unavailable, "stopping")
		}
		resp := &dkimv1.WatchSigningKeysResponse{ResumeToken: fmt.Sprintf("at%d", len(d.log)), Age: durationpb.New(0)}
		for ; at < len(d.log); at++ {
			if name := d.log[at]; name != "" && !isOwn(name) {
				resp.Domains = append(resp.Domains, d.entry(name))
			}
		}
		changed := d.changed
		d.mu.Unlock()
		if err := stream.Send(resp); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
		d.mu.Lock()
	}
}

// await waits until something is so.
func await(t testing.TB, what string, there func() bool) {
	t.Helper()
	limit := time.After(30 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !there() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("%s does not come", what)
		}
	}
}
