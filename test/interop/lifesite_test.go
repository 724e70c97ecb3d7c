//go:build interop

package interop_test

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/durationpb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/envelope"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/test/harness"
)

const callLimit = 5 * time.Second

// lifeSite is what TestLife and TestSigners run: etcd, two dkimd, two DNS nodes, a
// Knot with the customers' zones, and an unbound that receivers ask.
type lifeSite struct {
	etcd      *harness.Cluster
	dkimd     []*dkimd
	nodes     []*node
	customers string // Knot
	resolver  string // unbound
	keys      *privateKeys
}

// dkimd is a dkimd serve with clients of it.
type dkimd struct {
	*harness.Process // of the last start
	name, metrics    string
	grpc, http       string
	args             []string
	admin            dkimv1.KeyManagementClient
	signer           dkimv1.SignerClient
	access           dkimv1.AccessControlClient
}

func (d *dkimd) start(t *testing.T) {
	t.Helper()
	d.Process = harness.Start(t, d.name, harness.Dkimd, nil, d.args...)
}

// get asks for a page of its metrics listener, which is whole only with status 200.
func (d *dkimd) get(ctx context.Context, page string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.metrics+page, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", errors.New(resp.Status)
	}
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// node is a DNS node.
type node struct {
	*harness.Process // of the last start
	server           *server
	args             []string
}

func (n *node) start(t *testing.T) {
	t.Helper()
	n.Process = harness.Start(t, n.server.name, harness.CoreDNS, nil, n.args...)
}

// leads reports whether it says that it leads the rotation.
func (d *dkimd) leads(ctx context.Context) bool {
	page, err := d.get(ctx, "/metrics")
	return err == nil && strings.Contains(page, "\ndkimd_controller_leading 1\n")
}

// newLifeSite starts it, with the customers' zones empty and keys that are rotated
// every minute.
func newLifeSite(t *testing.T, zones []string) *lifeSite {
	t.Helper()
	return newSite(t, harness.Addr(t), time.Minute, zones)
}

// newSite starts it with the resolver at an address, and keys that are rotated
// every interval.
func newSite(t *testing.T, resolver string, interval time.Duration, zones []string) *lifeSite {
	t.Helper()
	pki := harness.NewPKI(t)
	s := &lifeSite{etcd: harness.StartCluster(t, pki), customers: harness.Addr(t), resolver: resolver}
	nodes := map[string]string{"ns1." + zone: harness.Addr(t), "ns2." + zone: harness.Addr(t)}
	kek := pki.KEK(t)
	for i := range 2 {
		s.newDkimd(t, fmt.Sprintf("dkimd%d", i+1), kek, nodes, zones)
	}
	startCustomers(t, s.customers, zones)
	startResolver(t, s.resolver, s.customers, zones, nodes)

	keeper, err := envelope.OpenKeeper(t.Context(), kek)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = keeper.Close() })
	store := keystore.New(s.etcd.Client(t, "dkimd"), callLimit)
	s.keys = &privateKeys{store: store, sealer: envelope.NewSealer(keeper, store), known: make(map[string]crypto.Signer)}

	z := &dkimv1.Zone{
		RecordTtlSeconds: 60, NegativeTtlSeconds: 30,
		RotationPolicy: &dkimv1.RotationPolicy{
			Interval: durationpb.New(interval), Drain: durationpb.New(lifeDrain), Gap: durationpb.New(time.Second),
			PublishLead: durationpb.New(0), CheckInterval: durationpb.New(lifeCheck),
		},
	}
	for host := range nodes {
		z.NameServers = append(z.NameServers, &dkimv1.NameServer{Host: host, Addresses: []string{harness.Host()}})
	}
	harness.Eventually(t, limit, "the zone is created", func() error {
		return s.call(t.Context(), func(ctx context.Context, d *dkimd) error {
			_, err := d.admin.CreateZone(ctx, &dkimv1.CreateZoneRequest{ZoneId: zone, Zone: z})
			return err
		})
	})
	s.startNodes(t, nodes)
	return s
}

func (s *lifeSite) newDkimd(t *testing.T, name, kek string, nodes map[string]string, zones []string) {
	t.Helper()
	pki := s.etcd.PKI
	server, user := pki.Server(t, name, harness.Host(), name+".example.net"), pki.Client(t, "dkimd", "etcd")
	addr := harness.Addr(t)
	d := &dkimd{name: name, metrics: harness.Addr(t), http: harness.Addr(t), grpc: addr}
	d.args = []string{
		"serve", "--etcd-endpoint", strings.Join(s.etcd.Endpoints(), ","),
		"--etcd-ca", user.CA, "--etcd-cert", user.Cert, "--etcd-key", user.Key,
		"--tls-ca", server.CA, "--tls-cert", server.Cert, "--tls-key", server.Key, "--kek-url", kek,
		"--grpc-listen", addr, "--http-listen", d.http, "--metrics-listen", d.metrics, "--allow-key-fetch", "rspamd", "--allow-key-fetch", "milter-local", "--allow-key-fetch", "client-local", "--allow-key-fetch", "agent",
		"--allow-key-fetch", "agent-opendkim", "--allow-key-fetch", "agent-exim", "--allow-key-fetch", "agent-rspamd",
	}
	for host, at := range nodes {
		d.args = append(d.args, "--check-name-server", host+"="+at)
	}
	for _, z := range zones {
		d.args = append(d.args, "--check-stub", z+"="+s.customers)
	}
	admin := dialLife(t, addr, pki.Client(t, "alice", "admin"))
	d.admin, d.access = dkimv1.NewKeyManagementClient(admin), dkimv1.NewAccessControlClient(admin)
	d.signer = dkimv1.NewSignerClient(dialLife(t, addr, pki.Client(t, "mx", "signer")))
	d.start(t)
	s.dkimd = append(s.dkimd, d)
}

// dialLife connects with a certificate, and again soon after the server was away.
func dialLife(t *testing.T, addr string, c harness.Cert) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(addr,
		grpc.WithTransportCredentials(credentials.NewTLS(clientTLS(t, c))),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.5, MaxDelay: time.Second}, MinConnectTimeout: callLimit}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func clientTLS(t *testing.T, c harness.Cert) *tls.Config {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(c.CA)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots, MinVersion: tls.VersionTLS13}
}

// call asks one dkimd after the other until one answers.
func (s *lifeSite) call(ctx context.Context, do func(context.Context, *dkimd) error) error {
	var all error
	for _, d := range s.dkimd {
		callCtx, cancel := context.WithTimeout(ctx, callLimit)
		err := do(callCtx, d)
		cancel()
		if err == nil {
			return nil
		}
		all = errors.Join(all, fmt.Errorf("%s: %w", d.name, err))
	}
	return all
}

// startNodes starts the zone's name servers, given as host name and address.
func (s *lifeSite) startNodes(t *testing.T, nodes map[string]string) {
	t.Helper()
	cert := s.etcd.PKI.Client(t, "dns", "etcd")
	for name, addr := range nodes {
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		n := &node{server: &server{name: name, addr: addr}, args: []string{"-conf", write(t, filepath.Join(dir, "Corefile"), fmt.Sprintf(`%s:%s {
    bind %s
    dkim {
        endpoint %s
        tls %s %s %s
        data_dir %s
    }
    errors
}
`, zone, port, host, strings.Join(s.etcd.Endpoints(), " "), cert.Cert, cert.Key, cert.CA, dir))}}
		n.start(t)
		harness.Eventually(t, limit, name+" serves the zone", func() error { _, err := n.server.soa(t.Context()); return err })
		s.nodes = append(s.nodes, n)
	}
}

// startCustomers starts a Knot with empty zones that may be changed by DNS UPDATE.
func startCustomers(t *testing.T, addr string, zones []string) {
	t.Helper()
	dir := t.TempDir()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	var config strings.Builder
	fmt.Fprintf(&config, `server:
    listen: %[2]s@%[3]s
    rundir: %[1]s
    user: root
database:
    storage: %[1]s
acl:
  - id: local
    address: 127.0.0.0/8
    action: update
zone:
`, dir, host, port)
	for _, z := range zones {
		file := write(t, filepath.Join(dir, z), "$ORIGIN "+z+".\n"+cnameSOA)
		fmt.Fprintf(&config, "  - domain: %s\n    file: %s\n    zonefile-sync: -1\n    acl: local\n", z, file)
	}
	harness.StartSystem(t, "/usr/sbin/knotd", "-c", write(t, filepath.Join(dir, "knotd.conf"), config.String()))
	client := dns.Client{Timeout: time.Second}
	for _, z := range zones {
		harness.Eventually(t, limit, "Knot has "+z, func() error {
			reply, _, err := client.ExchangeContext(t.Context(), new(dns.Msg).SetQuestion(dns.Fqdn(z), dns.TypeSOA), addr)
			if err == nil && !reply.Authoritative {
				err = fmt.Errorf("got %v", reply)
			}
			return err
		})
	}
}

// startResolver starts an unbound that knows where the customers' zones and ours
// are served, and caches as it does by default.
func startResolver(t *testing.T, addr, customers string, zones []string, nodes map[string]string) {
	t.Helper()
	dir := t.TempDir()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	at := func(addr string) string { return "    stub-addr: " + strings.Replace(addr, ":", "@", 1) + "\n" }
	var config strings.Builder
	fmt.Fprintf(&config, `server:
    interface: %s@%s
    access-control: 127.0.0.0/8 allow
    directory: "%s"
    pidfile: "%s/unbound.pid"
    chroot: ""
    username: ""
    use-syslog: no
    do-daemonize: no
    do-not-query-localhost: no
remote-control:
    control-enable: no
`, host, port, dir, dir)
	for _, z := range zones {
		config.WriteString("stub-zone:\n    name: " + z + "\n" + at(customers))
	}
	config.WriteString("stub-zone:\n    name: " + zone + "\n")
	for _, addr := range nodes {
		config.WriteString(at(addr))
	}
	harness.StartSystem(t, "/usr/sbin/unbound", "-d", "-c", write(t, filepath.Join(dir, "unbound.conf"), config.String()))
	harness.Eventually(t, limit, "unbound answers", func() error {
		_, _, err := (&dns.Client{Timeout: time.Second}).ExchangeContext(t.Context(), new(dns.Msg).SetQuestion(zones[0]+".", dns.TypeSOA), addr)
		return err
	})
}

// setCNAME makes a customer add a CNAME, or remove it if the target is empty.
func (s *lifeSite) setCNAME(t *testing.T, customer, owner, target string) {
	t.Helper()
	m := new(dns.Msg).SetUpdate(customer + ".")
	header := dns.RR_Header{Name: owner + ".", Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: 300}
	if target == "" {
		m.RemoveRRset([]dns.RR{&dns.CNAME{Hdr: header}})
	} else {
		m.Insert([]dns.RR{&dns.CNAME{Hdr: header, Target: target + "."}})
	}
	reply, _, err := (&dns.Client{Timeout: callLimit}).ExchangeContext(t.Context(), m, s.customers)
	if err != nil || reply.Rcode != dns.RcodeSuccess {
		t.Fatalf("change %s: %v, %v", owner, err, reply)
	}
}

// privateKeys reads private keys as dkimd stores them. It is safe for concurrent use.
type privateKeys struct {
	store  *keystore.Store
	sealer *envelope.Sealer

	mu    sync.Mutex
	known map[string]crypto.Signer
}

// get returns the private key of a key's resource name.
func (p *privateKeys) get(ctx context.Context, name string) (crypto.Signer, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if k, ok := p.known[name]; ok {
		return k, nil
	}
	parts := strings.Split(name, "/") // brands/B/domains/D/keys/K
	if len(parts) != 6 {
		return nil, fmt.Errorf("%q is no key", name)
	}
	sealed, err := p.store.SealedKey(ctx, parts[1], dnsname.Domain(parts[3]), parts[5])
	if err != nil {
		return nil, err
	}
	plain, err := p.sealer.Open(ctx, parts[1], name, sealed)
	if err != nil {
		return nil, err
	}
	pair, err := keypair.Unmarshal(plain)
	if err != nil {
		return nil, err
	}
	p.known[name] = pair.Signer()
	return p.known[name], nil
}

// lookup asks unbound, as a receiver does.
func (s *lifeSite) lookup(ctx context.Context, name string) ([]string, error) {
	var reply *dns.Msg
	var err error
	for range 3 { // receivers try again when there is no answer
		q := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeTXT).SetEdns0(4096, false)
		reply, _, err = (&dns.Client{Timeout: callLimit, UDPSize: 4096}).ExchangeContext(ctx, q, s.resolver)
		if err == nil && reply.Rcode != dns.RcodeServerFailure {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	if reply.Rcode != dns.RcodeSuccess {
		return nil, fmt.Errorf("%s: %s", name, dns.RcodeToString[reply.Rcode])
	}
	var all []string
	for _, rr := range reply.Answer {
		if txt, ok := rr.(*dns.TXT); ok {
			all = append(all, strings.Join(txt.Txt, ""))
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s has no TXT record: %v", name, reply.Answer)
	}
	return all, nil
}
