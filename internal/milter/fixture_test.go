package milter_test

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	gomilter "github.com/emersion/go-milter"
	"github.com/emersion/go-msgauth/dkim"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/milter"
	"github.com/dkimzone/dkimzone/signer"
)

// dkimd is a service with keys in memory.
type dkimd struct {
	dkimv1.UnimplementedSignerServer
	listener *bufconn.Listener

	mu   sync.Mutex
	keys map[string]crypto.Signer        // by name
	used map[string][]*dkimv1.SigningKey // by domain
	down bool
}

func newDkimd(t testing.TB) *dkimd {
	t.Helper()
	d := &dkimd{listener: bufconn.Listen(1 << 20), keys: make(map[string]crypto.Signer), used: make(map[string][]*dkimv1.SigningKey)}
	server := grpc.NewServer()
	dkimv1.RegisterSignerServer(server, d)
	var running sync.WaitGroup
	running.Go(func() { _ = server.Serve(d.listener) }) // ends with Stop
	t.Cleanup(func() { server.Stop(); running.Wait() })
	return d
}

// rotate lets new keys sign for a domain and no others: RSA for selectors that begin
// with "rsa".
func (d *dkimd) rotate(t testing.TB, domain string, selectors ...string) {
	t.Helper()
	var used []*dkimv1.SigningKey
	for _, s := range selectors {
		var key crypto.Signer
		var err error
		if strings.HasPrefix(s, "rsa") {
			key, err = rsa.GenerateKey(rand.Reader, 2048)
		} else {
			_, key, err = ed25519.GenerateKey(rand.Reader)
		}
		if err != nil {
			t.Fatal(err)
		}
		name := "brands/acme/domains/" + domain + "/keys/" + s
		d.mu.Lock()
		d.keys[name] = key
		d.mu.Unlock()
		used = append(used, &dkimv1.SigningKey{Domain: domain, Selector: s, Key: name})
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.used[domain] = used
}

func (d *dkimd) setDown() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.down = true
}

func rejection(code codes.Code, reason string) error {
	st, err := status.New(code, reason).WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: "dkimzone"})
	if err != nil {
		return err
	}
	return st.Err()
}

func (d *dkimd) ResolveSigningKeys(_ context.Context, req *dkimv1.ResolveSigningKeysRequest) (*dkimv1.ResolveSigningKeysResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.down {
		return nil, rejection(codes.Unavailable, "STORE_UNAVAILABLE")
	}
	_, domain, _ := strings.Cut(req.GetName(), "/domains/")
	keys, ok := d.used[domain]
	if !ok {
		return nil, rejection(codes.NotFound, "DOMAIN_NOT_FOUND")
	}
	return &dkimv1.ResolveSigningKeysResponse{Keys: keys, Reason: "OWN_KEY", RefreshDuration: durationpb.New(time.Hour), HoldDuration: durationpb.New(time.Hour)}, nil
}

func (d *dkimd) Sign(_ context.Context, req *dkimv1.SignRequest) (*dkimv1.SignResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.down {
		return nil, rejection(codes.Unavailable, "STORE_UNAVAILABLE")
	}
	resp := &dkimv1.SignResponse{}
	for _, digest := range req.GetDigests() {
		r := &dkimv1.SignResponse_Result{}
		resp.Results = append(resp.Results, r)
		domain, _, _ := strings.Cut(strings.TrimPrefix(digest.GetKey(), "brands/acme/domains/"), "/keys/")
		signs := false
		for _, k := range d.used[domain] {
			signs = signs || k.GetKey() == digest.GetKey()
		}
		if !signs {
			r.Error = status.Convert(rejection(codes.FailedPrecondition, "KEY_NOT_SIGNING")).Proto()
			continue
		}
		key := d.keys[digest.GetKey()]
		var err error
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

// lookup is the DNS of it.
func (d *dkimd) lookup(name string) ([]string, error) {
	selector, domain, _ := strings.Cut(name, "._domainkey.")
	d.mu.Lock()
	defer d.mu.Unlock()
	key, ok := d.keys["brands/acme/domains/"+domain+"/keys/"+selector]
	if !ok {
		return nil, fmt.Errorf("no record %s", name)
	}
	if public, ok := key.Public().(ed25519.PublicKey); ok {
		return []string{"v=DKIM1; k=ed25519; p=" + base64.StdEncoding.EncodeToString(public)}, nil
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	return []string{"v=DKIM1; k=rsa; p=" + base64.StdEncoding.EncodeToString(der)}, err
}

// filter is a milter that runs.
type filter struct {
	address string
	stop    func() error // ends it, and is what Serve returned
}

func (d *dkimd) filter(t testing.TB, o milter.Options) *filter {
	t.Helper()
	cc, err := grpc.NewClient("passthrough:///dkimd", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return d.listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	if o.Client, err = signer.New(signer.Options{Conn: cc}); err != nil {
		t.Fatal(err)
	}
	if o.InternalHosts == nil {
		o.InternalHosts = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}
	}
	server, err := milter.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, ln) }()
	f := &filter{address: ln.Addr().String(), stop: sync.OnceValue(func() error { cancel(); return <-served })}
	t.Cleanup(func() {
		if err := f.stop(); err != nil {
			t.Error(err)
		}
		if err := o.Client.Close(); err != nil {
			t.Error(err)
		}
		_ = cc.Close() // nothing goes over it any more
	})
	return f
}

// client is an SMTP client of the mail server.
type client struct {
	address string // "" for a Unix socket
	user    string // as which it authenticated
}

var inside = client{address: "192.0.2.7"}

// connect begins a session of a mail server.
func (f *filter) connect(t testing.TB, from client) *gomilter.ClientSession {
	t.Helper()
	mta := gomilter.NewClientWithOptions("tcp", f.address, gomilter.ClientOptions{
		ActionMask: gomilter.OptAddHeader, ReadTimeout: time.Minute, WriteTimeout: time.Minute,
	})
	s, err := mta.Session()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.Close() // the filter may have ended it
		_ = mta.Close()
	})
	family, port := gomilter.FamilyInet, uint16(25000)
	switch {
	case strings.Contains(from.address, ":"):
		family = gomilter.FamilyInet6
	case from.address == "":
		family, port = gomilter.FamilyUnix, 0
	}
	if a, err := s.Conn("client.example", family, port, from.address); err != nil || a.Code != gomilter.ActContinue {
		t.Fatalf("connection: %v, %v", a, err)
	}
	return s
}

// begin tells of everything up to the body, and is what the filter wants with it.
func begin(t testing.TB, s *gomilter.ClientSession, from client, header string) *gomilter.Action {
	t.Helper()
	if from.user != "" {
		if err := s.Macros(gomilter.CodeMail, "{auth_authen}", from.user, "{auth_type}", "PLAIN"); err != nil {
			t.Fatal(err)
		}
	}
	a, err := s.Mail("bounce@elsewhere.example", nil)
	if err != nil {
		t.Fatal(err)
	}
	if a.Code != gomilter.ActContinue {
		return a
	}
	for _, f := range fields(header) {
		name, value, _ := strings.Cut(f, ":")
		// As Postfix tells it: without the first space, folded with LF.
		value = strings.ReplaceAll(strings.TrimPrefix(value, " "), "\r\n", "\n")
		if a, err = s.HeaderField(name, value); err != nil || a.Code != gomilter.ActContinue {
			t.Fatalf("%s: %v, %v", name, a, err)
		}
	}
	if a, err = s.HeaderEnd(); err != nil {
		t.Fatal(err)
	}
	return a
}

// fields are the fields of a header, with their folds.
func fields(header string) []string {
	var out []string
	for line := range strings.SplitSeq(strings.TrimSuffix(header, "\r\n"), "\r\n") {
		if line != "" && (line[0] == ' ' || line[0] == '\t') {
			out[len(out)-1] += "\r\n" + line
		} else {
			out = append(out, line)
		}
	}
	return out
}

// send sends a message, and is what the filter made of it.
func send(t testing.TB, s *gomilter.ClientSession, from client, text string) (string, *gomilter.Action) {
	t.Helper()
	header, body, _ := strings.Cut(text, "\r\n\r\n")
	if a := begin(t, s, from, header); a.Code != gomilter.ActContinue {
		return text, a
	}
	changes, a, err := s.BodyReadFrom(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range changes {
		if c.Code != gomilter.ActInsertHeader || c.HeaderName != "DKIM-Signature" || strings.Contains(c.HeaderValue, "\r") {
			t.Fatalf("change %+v", c)
		}
		text = c.HeaderName + ": " + strings.ReplaceAll(c.HeaderValue, "\n", "\r\n") + "\r\n" + text
	}
	return text, a
}

// verify is what go-msgauth thinks of a message.
func (d *dkimd) verify(t testing.TB, text string) []*dkim.Verification {
	t.Helper()
	v, err := dkim.VerifyWithOptions(strings.NewReader(text), &dkim.VerifyOptions{LookupTXT: d.lookup})
	if err != nil {
		t.Fatal(err)
	}
	return v
}
