package cli_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/authn"
	"github.com/dkimzone/dkimzone/internal/authz"
	"github.com/dkimzone/dkimzone/internal/cli"
	"github.com/dkimzone/dkimzone/internal/config"
	"github.com/dkimzone/dkimzone/internal/custody"
	"github.com/dkimzone/dkimzone/internal/envelope"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/keystore/keystoretest"
	"github.com/dkimzone/dkimzone/internal/mint"
	"github.com/dkimzone/dkimzone/internal/pki"
	"github.com/dkimzone/dkimzone/internal/prober"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/service"
)

// fixture is an installation: the service over a store in memory, behind mTLS,
// and two name servers of the zone keys.example.net.
type fixture struct {
	store       *keystore.Store
	service     *service.Service
	keys        *keySource
	clock       *clock
	customers   *customers
	faults      *faults
	nameServers map[string]*nameServer // ns1, ns2

	sealer      *sealer
	custody     *service.Custody
	stopCustody context.CancelFunc

	credentials credentials.TransportCredentials
	address     string
	server      *grpc.Server
}

// newFixture leaves a client configuration in dir/data, as dkimd standalone
// does, and the files of another authority in dir/other.
func newFixture(dir string) (*fixture, error) {
	f := &fixture{keys: newKeySource(), clock: &clock{}, customers: &customers{}, faults: &faults{}, nameServers: make(map[string]*nameServer)}
	f.store = keystore.New(keystoretest.NewFake(), time.Minute)
	var err error
	if f.sealer, err = newSealer(dir, f.store); err != nil {
		return nil, err
	}
	f.service = service.New(f.store, mint.New(f.keys, f.sealer), f.customers, f.clock.now, slog.New(slog.DiscardHandler))
	rotations := custody.New(custody.Options{
		Store: f.store, Direct: f.store, Sealer: f.sealer.keys, Name: "dkimd1", Now: time.Now, Logger: slog.New(slog.DiscardHandler),
		Poll: 10 * time.Millisecond, TakeOver: time.Minute, Settle: time.Millisecond,
	})
	f.custody = service.NewCustody(rotations)
	ctx, stop := context.WithCancel(context.Background())
	f.stopCustody = stop
	go func() { _ = rotations.Run(ctx) }()

	server, client, err := certificates(filepath.Join(dir, "data", "pki"))
	if err != nil {
		return nil, err
	}
	if _, _, err := certificates(filepath.Join(dir, "other")); err != nil {
		return nil, err
	}
	tls, err := pki.ServerTLS(server.CAFile, server.CertFile, server.KeyFile, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	f.credentials = credentials.NewTLS(tls)
	if err := f.start("127.0.0.1:0"); err != nil {
		return nil, err
	}

	client.Address = f.address
	client.NameServers = make(map[string]netip.AddrPort)
	for _, name := range []string{"ns1", "ns2"} {
		ns, err := newNameServer(f.service)
		if err != nil {
			return nil, err
		}
		f.nameServers[name] = ns
		client.NameServers[name+".keys.example.net"] = ns.address
	}
	if err := client.Write(filepath.Join(dir, "data", "dkimctl.yaml")); err != nil {
		return nil, err
	}
	_, err = f.service.CreateZone(context.Background(), &dkimv1.CreateZoneRequest{
		ZoneId: "keys.example.net",
		Zone: &dkimv1.Zone{NameServers: []*dkimv1.NameServer{
			{Host: "ns1.keys.example.net", Addresses: []string{"192.0.2.1"}},
			{Host: "ns2.keys.example.net", Addresses: []string{"192.0.2.2", "2001:db8::2"}},
		}},
	})
	return f, err
}

// clock stands still, but for what is added.
type clock struct{ added atomic.Int64 }

func (c *clock) now() time.Time {
	return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).Add(time.Duration(c.added.Load()))
}

// customers are the customers' DNS, which is as it should be unless told
// otherwise, and what dkimd sees of the zone's.
type customers struct {
	mu  sync.Mutex
	bad map[string]string // reason by owner
	txt map[string]string // challenges by domain
}

// set makes the CNAME at owner look bad for a reason, or good for "ok".
func (c *customers) set(owner, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bad == nil {
		c.bad, c.txt = make(map[string]string), make(map[string]string)
	}
	if rest, ok := strings.CutPrefix(owner, prober.ChallengeLabel+"."); ok {
		c.txt[rest] = reason
		return
	}
	c.bad[owner] = reason
}

func (c *customers) Alias(_ context.Context, q prober.AliasQuestion) prober.AliasReport {
	c.mu.Lock()
	defer c.mu.Unlock()
	if reason := c.bad[q.Owner]; reason != "" && reason != "ok" {
		return prober.AliasReport{
			Finding: rotation.Contradicted, Reason: reason, Hint: "Add the record " + q.Owner + ".",
			Servers: []prober.ServerAnswer{{Host: "ns1.customer.example", Addr: "192.0.2.53:53", Rcode: "NXDOMAIN", Err: "no such name"}},
		}
	}
	return prober.AliasReport{Finding: rotation.Proven, Found: []string{q.Owner + ". CNAME " + q.Target + "."}}
}

func (*customers) Served(context.Context, string, []prober.NameServer, string, string) prober.ServedReport {
	return prober.ServedReport{Finding: rotation.Proven}
}

func (c *customers) Challenge(_ context.Context, domain, token string) (bool, []prober.ServerAnswer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.txt[domain] == token, nil
}

// certificates makes an authority with a server for 127.0.0.1 and an admin.
func certificates(dir string) (server, client config.Client, _ error) {
	ca, err := pki.EnsureCA(dir, time.Now())
	if err != nil {
		return server, client, err
	}
	server.CAFile, client.CAFile = ca.CertFile(), ca.CertFile()
	if server.CertFile, server.KeyFile, err = ca.EnsureServer("server", []string{"127.0.0.1"}, time.Now()); err != nil {
		return server, client, err
	}
	client.CertFile, client.KeyFile, err = ca.EnsureClient("admin", pki.Identity{Role: "admin", Name: "test"}, time.Now())
	return server, client, err
}

// start serves at address, which may be one used before.
func (f *fixture) start(address string) error {
	l, err := net.Listen("tcp", address)
	for limit := time.Now().Add(time.Minute); errors.Is(err, syscall.EADDRINUSE) && time.Now().Before(limit); {
		l, err = net.Listen("tcp", address) // somebody connects from there just now
	}
	if err != nil {
		return err
	}
	logger := slog.New(slog.DiscardHandler)
	f.address = l.Addr().String()
	who := authn.New(authn.Options{Credentials: f.store, Now: time.Now, Logger: logger})
	f.server = grpc.NewServer(grpc.Creds(f.credentials),
		grpc.ChainUnaryInterceptor(f.faults.intercept, service.UnaryInterceptor(logger), authn.TagUnary, who.UnaryInterceptor, authz.UnaryInterceptor),
		grpc.ChainStreamInterceptor(service.StreamInterceptor(logger), authn.TagStream, who.StreamInterceptor, authz.StreamInterceptor))
	dkimv1.RegisterKeyManagementServer(f.server, f.service)
	dkimv1.RegisterSignerServer(f.server, f.service)
	dkimv1.RegisterAccessControlServer(f.server, service.NewAccess(f.store, who.Forget, time.Now))
	dkimv1.RegisterCustodyServer(f.server, f.custody)
	go func() { _ = f.server.Serve(l) }()
	return nil
}

func (f *fixture) stop() {
	f.stopCustody()
	f.server.Stop()
	for _, ns := range f.nameServers {
		ns.stop()
	}
}

// faults makes calls fail.
type faults struct {
	mu     sync.Mutex
	method string
	code   codes.Code
	left   int
}

// set makes the next n calls of a method fail.
func (f *faults) set(method string, code codes.Code, n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.method, f.code, f.left = method, code, n
}

func (f *faults) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	f.mu.Lock()
	fail := f.left > 0 && path.Base(info.FullMethod) == f.method
	if fail {
		f.left--
	}
	code := f.code
	f.mu.Unlock()
	if fail {
		return nil, status.Error(code, "told to fail")
	}
	return handler(ctx, req)
}

// keySource makes keys, of which it can be told to make only some.
type keySource struct {
	mu      sync.Mutex
	left    int           // -1: any number
	dry     chan struct{} // closed when somebody waits for a key in vain
	release chan struct{} // closed when there are keys again
	used    map[keypair.Algorithm]int
}

func newKeySource() *keySource { return &keySource{left: -1, used: make(map[keypair.Algorithm]int)} }

// stock are keys that were made for some installation. All may have them.
var stock = keyStock{made: make(map[keypair.Algorithm][]*keypair.KeyPair)}

type keyStock struct {
	mu   sync.Mutex
	made map[keypair.Algorithm][]*keypair.KeyPair
}

// get is the n-th key of an algorithm.
func (s *keyStock) get(a keypair.Algorithm, n int) (*keypair.KeyPair, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.made[a]) <= n {
		k, err := keypair.Generate(a)
		if err != nil {
			return nil, err
		}
		s.made[a] = append(s.made[a], k)
	}
	return s.made[a][n], nil
}

// limit lets n more keys be made until the next call; -1 is any number.
func (k *keySource) limit(n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.release != nil {
		close(k.release)
	}
	k.left, k.dry, k.release = n, make(chan struct{}), make(chan struct{})
}

// awaitDry returns when somebody waits for a key in vain.
func (k *keySource) awaitDry() {
	k.mu.Lock()
	dry := k.dry
	k.mu.Unlock()
	<-dry
}

func (k *keySource) Get(ctx context.Context, a keypair.Algorithm) (*keypair.KeyPair, error) {
	for {
		k.mu.Lock()
		if k.left != 0 {
			if k.left > 0 {
				k.left--
			}
			n := k.used[a]
			k.used[a]++
			k.mu.Unlock()
			return stock.get(a, n)
		}
		release := k.release
		select {
		case <-k.dry:
		default:
			close(k.dry)
		}
		k.mu.Unlock()
		select {
		case <-release:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// sealer seals nothing, as the store is in memory, until it has keys.
type sealer struct {
	keys  *envelope.Sealer // of new.key, and of old.key, which it opens with
	store *keystore.Store
	old   string // URL
	real  atomic.Bool
}

func newSealer(dir string, store *keystore.Store) (*sealer, error) {
	var urls []string
	for _, name := range []string{"new.key", "old.key"} {
		file := filepath.Join(dir, name)
		if err := envelope.CreateKeyFile(file); err != nil {
			return nil, err
		}
		urls = append(urls, "file://"+file)
	}
	keeper, err := envelope.OpenKeeper(context.Background(), urls[0], urls[1])
	if err != nil {
		return nil, err
	}
	return &sealer{keys: envelope.NewSealer(keeper, store), store: store, old: urls[1]}, nil
}

// begin lets old.key wrap what is sealed from now on.
func (s *sealer) begin(ctx context.Context) error {
	keeper, err := envelope.OpenKeeper(ctx, s.old)
	if err != nil {
		return err
	}
	s.real.Store(true)
	_, _, _, err = envelope.NewSealer(keeper, s.store).Propose(ctx) // makes the mark
	return err
}

func (s *sealer) Seal(ctx context.Context, brand, name string, plaintext []byte) ([]byte, error) {
	if s.real.Load() {
		return s.keys.Seal(ctx, brand, name, plaintext)
	}
	return append([]byte("sealed:"), plaintext...), nil
}

// nameServer answers for the zone what the service holds.
type nameServer struct {
	service *service.Service
	address netip.AddrPort
	servers []*dns.Server

	mu      sync.Mutex
	behind  int // so many answers are still of the serial before
	mode    string
	overTCP int           // questions that came over TCP
	asked   chan struct{} // if not nil: closed at the next question
}

func newNameServer(s *service.Service) (*nameServer, error) {
	ns := &nameServer{service: s}
	l, p, err := cli.ListenBoth()
	if err != nil {
		return nil, err
	}
	ns.address = netip.MustParseAddrPort(l.Addr().String())
	ns.servers = []*dns.Server{{Listener: l, Handler: ns}, {PacketConn: p, Handler: ns}}
	for _, server := range ns.servers {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		go func() { _ = server.ActivateAndServe() }()
		<-started
	}
	return ns, nil
}

func (ns *nameServer) stop() {
	for _, server := range ns.servers {
		_ = server.Shutdown()
	}
}

// set changes how it answers: "good", "truncate" (over UDP), "refuse", or
// "behind" for so many answers.
func (ns *nameServer) set(mode string, n int) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	ns.mode, ns.behind = mode, n
}

func (ns *nameServer) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	ns.mu.Lock()
	mode := ns.mode
	behind := mode == "behind" && ns.behind > 0
	if behind && q.Question[0].Qtype == dns.TypeSOA {
		ns.behind--
	}
	tcp := w.RemoteAddr().Network() == "tcp"
	if tcp {
		ns.overTCP++
	}
	if ns.asked != nil {
		close(ns.asked)
		ns.asked = nil
	}
	ns.mu.Unlock()

	reply := new(dns.Msg)
	reply.SetReply(q)
	reply.Authoritative = true
	if mode == "truncate" && !tcp {
		reply.Truncated = true
		_ = w.WriteMsg(reply)
		return
	}
	name := strings.TrimSuffix(q.Question[0].Name, ".")
	switch {
	case mode == "refuse":
		reply.Rcode = dns.RcodeRefused
	case q.Question[0].Qtype == dns.TypeSOA:
		z, err := ns.service.GetZone(context.Background(), &dkimv1.GetZoneRequest{Name: "zones/" + name})
		if err != nil {
			reply.Rcode = dns.RcodeNameError
			break
		}
		serial := uint32(z.GetRevision())
		if behind {
			serial--
		}
		reply.Answer = []dns.RR{&dns.SOA{
			Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 60},
			Ns:  "ns1.keys.example.net.", Mbox: "hostmaster.keys.example.net.", Serial: serial,
		}}
	default:
		record := ns.record(name)
		if record == "" {
			reply.Rcode = dns.RcodeNameError
			break
		}
		txt := &dns.TXT{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 60}}
		for len(record) > 255 {
			txt.Txt, record = append(txt.Txt, record[:255]), record[255:]
		}
		txt.Txt = append(txt.Txt, record)
		reply.Answer = []dns.RR{txt}
	}
	_ = w.WriteMsg(reply)
}

func (ns *nameServer) record(owner string) string {
	ctx := context.Background()
	domains, err := ns.service.ListDomains(ctx, &dkimv1.ListDomainsRequest{Parent: "brands/-"})
	if err != nil {
		return ""
	}
	for _, d := range domains.GetDomains() {
		keys, err := ns.service.ListKeys(ctx, &dkimv1.ListKeysRequest{Parent: d.GetName()})
		if err != nil {
			return ""
		}
		for _, k := range keys.GetKeys() {
			if k.GetOwnerName() == owner {
				return k.GetRecord()
			}
		}
	}
	return ""
}

// awaitQuestion returns after the next question.
func (ns *nameServer) awaitQuestion() {
	asked := make(chan struct{})
	ns.mu.Lock()
	ns.asked = asked
	ns.mu.Unlock()
	<-asked
}

// stillBehind is how many answers of the serial before it would still give.
func (ns *nameServer) stillBehind() int {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	return ns.behind
}

// questionsOverTCP is how many questions came over TCP.
func (ns *nameServer) questionsOverTCP() int {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	return ns.overTCP
}

// provision provisions a domain behind dkimctl's back.
func (f *fixture) provision(t *testing.T, brand, domain string) *dkimv1.Domain {
	t.Helper()
	d, err := f.service.ProvisionDomain(t.Context(), &dkimv1.ProvisionDomainRequest{
		Name: fmt.Sprintf("brands/%s/domains/%s", brand, domain), Algorithm: dkimv1.KeyAlgorithm_KEY_ALGORITHM_ED25519,
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}
