package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"google.golang.org/grpc"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/auditlog"
	"github.com/dkimzone/dkimzone/internal/authn"
	"github.com/dkimzone/dkimzone/internal/config"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/embedetcd"
	"github.com/dkimzone/dkimzone/internal/envelope"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/leader"
	"github.com/dkimzone/dkimzone/internal/pki"
	"github.com/dkimzone/dkimzone/internal/prober"
	"github.com/dkimzone/dkimzone/internal/replica"
	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/internal/telemetry"
)

// Standalone says how to run everything in one process.
type Standalone struct {
	DataDir string // created with mode 0700 when absent
	Zone    string // created on the first start
	DNS     string // address of the name server, UDP and TCP
	KEK     KEK    // without a URL: <DataDir>/kek.key, made on the first start
	Listen
	Access  Access
	Guard   Guard
	Checks  Checks
	Audit   Audit
	Signing Signing
	Logger  *slog.Logger
	// Out gets the few lines that tell a person how to go on.
	Out io.Writer
	// Started, if not nil, is called with the bound addresses once all serve.
	Started func(Addresses)
}

// Addresses are the sockets of a running dkimd.
type Addresses struct {
	DNS, GRPC, HTTP, Metrics string
	ClientConfig             string // path of dkimctl.yaml
}

// renewInterval is how often certificates are looked at for renewal.
const renewInterval = 12 * time.Hour

// Run runs until ctx ends and everything is stopped and on disk, or until
// something fails.
func (o Standalone) Run(ctx context.Context) (err error) {
	defer holdBallast()()
	zone, dir, err := o.prepare()
	if err != nil {
		return err
	}
	guard, err := o.Guard.open(o.Logger)
	if err != nil {
		return err
	}
	defer guard.close()
	if err := probeDNS(o.DNS); err != nil {
		return err
	}
	bound, err := o.bind()
	if err != nil {
		return err
	}
	defer bound.close()

	etcd, err := embedetcd.Start(ctx, embedetcd.Config{Dir: filepath.Join(dir, "etcd"), Logger: o.Logger})
	if err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	defer etcd.Close()
	store := keystore.New(etcd.Client(), storeTimeout)
	kek := o.KEK
	if kek.URL == "" {
		kek.URL, err = ensureKeyFile(ctx, store, dir)
	}
	if err != nil {
		return err
	}
	dns, err := o.ownProber()
	if err != nil {
		return err
	}
	backend, err := newBackend(ctx, etcd.Client(), kek, o.Access, guard, dns, o.Logger)
	if err != nil {
		return err
	}
	defer backend.close()
	account, err := o.Audit.open(ctx, filepath.Join(dir, "audit.log"), o.Logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, account.close()) }()
	backend.keepAccount(account)
	if err := ensureZone(ctx, store, backend, zone, o.DNS); err != nil {
		return err
	}

	ns, err := o.startDNS(ctx, etcd, store, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ns.stop()) }()

	certs, err := ensureCertificates(dir, bound, time.Now())
	if err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	tlsConfig, err := pki.ServerTLS(certs.ca, certs.serverCert, certs.serverKey, o.Logger)
	if err != nil {
		return err
	}
	addresses := bound.addresses()
	addresses.DNS, addresses.ClientConfig = ns.address, filepath.Join(dir, "dkimctl.yaml")
	if err := writeClientConfig(ctx, store, certs, addresses); err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}

	changed := func(ctx context.Context, zones []string) error {
		return errors.Join(ns.reload(zones), writeClientConfig(ctx, store, certs, addresses))
	}
	follow := followZones(store, changed, o.Logger)
	backend.afterRestore = func(ctx context.Context) { serveZones(ctx, store, changed, o.Logger) }
	stopSigning, err := backend.startSigning(ctx, o.Signing, o.Logger)
	if err != nil {
		return err
	}
	defer stopSigning()
	srv, err := newServers(bound, tlsConfig, backend, []telemetry.Check{ns.check()}, o.Logger, follow)
	if err != nil {
		return err
	}
	ctx, cancel := endWith(ctx, etcd)
	defer cancel()
	go renewCertificates(ctx, dir, bound, o.Logger)
	if !o.Audit.toOut("") { // else standard output is for that
		o.greet(zone, addresses)
	}
	if o.Started != nil {
		o.Started(addresses)
	}
	candidate := leader.NewCandidate(etcd.Client(), schema.LeaderPrefix(), candidate(), leaseTTL)
	defer backend.startCustody(ctx)()
	defer backend.startRotation(ctx, candidate, o.Checks.Rate, o.Logger)()
	if err := srv.run(ctx); err != nil {
		return err
	}
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// prepare checks the zone and makes the data directory, of which it returns the
// absolute path.
func (o Standalone) prepare() (zone dnsname.Zone, dir string, err error) {
	if zone, err = dnsname.ParseZone(o.Zone); err != nil {
		return "", "", fmt.Errorf("--zone: %w", err)
	}
	if dir, err = filepath.Abs(o.DataDir); err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return "", "", fmt.Errorf("--data-dir: %w", err)
	}
	return zone, dir, nil
}

// endWith returns a context that ends with ctx, when etcd stops, which is its cause
// then, or when cancel is called.
func endWith(ctx context.Context, etcd *embedetcd.Server) (_ context.Context, cancel func()) {
	ctx, end := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-etcd.Done():
			end(errors.New("the embedded etcd has stopped"))
		case <-ctx.Done():
		}
	}()
	return ctx, func() { end(nil) }
}

// ownProber asks this process's name server, whose port need not be 53, where a
// zone names its address.
func (o Standalone) ownProber() (*prober.Prober, error) {
	own, err := netip.ParseAddrPort(askable(o.DNS))
	if err != nil {
		return nil, fmt.Errorf("--dns-listen: %w; give an IP address, it becomes the address of the zone's name server", err)
	}
	return o.Checks.prober(map[string]netip.AddrPort{own.Addr().String(): own})
}

// ensureZone creates the zone on the first start, with one name server: this
// process. What a restore that was cut short has left, only another one may touch.
func ensureZone(ctx context.Context, store *keystore.Store, b *backend, zone dnsname.Zone, dnsListen string) error {
	if restoring, err := store.Restoring(ctx); err != nil || restoring {
		return err
	}
	_, err := store.Zone(ctx, zone)
	if err == nil || !errors.Is(err, keystore.ErrZoneNotFound) {
		return err
	}
	host, _, err := net.SplitHostPort(askable(dnsListen))
	if err != nil {
		return fmt.Errorf("--dns-listen: %w", err)
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return fmt.Errorf("--dns-listen: %w; give an IP address, it becomes the address of the zone's name server", err)
	}
	created, err := b.api.CreateZone(ctx, &dkimv1.CreateZoneRequest{ZoneId: string(zone), Zone: &dkimv1.Zone{
		NameServers: []*dkimv1.NameServer{{Host: "ns1." + string(zone), Addresses: []string{addr.String()}}},
	}})
	if err != nil {
		return fmt.Errorf("--zone: %w", err)
	}
	return b.account.auditor.Record(ctx, auditlog.Entry{
		Who: auditlog.Who{Name: "dkimd"}, Call: "dkimd/create-zone", Resource: created.GetName(), Outcome: "OK", Revision: created.GetRevision(),
	})
}

// ensureKeyFile returns the URL of the key-encryption key in the data directory.
// It makes one only while nothing is encrypted with another.
func ensureKeyFile(ctx context.Context, store *keystore.Store, dir string) (string, error) {
	file := filepath.Join(dir, "kek.key")
	if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
		brand, err := store.AnyDataKeyBrand(ctx)
		if err != nil {
			return "", err
		}
		if brand != "" {
			return "", fmt.Errorf("%s is missing, but private keys are stored that only it can open: put it back from your backup", file)
		}
		if err := envelope.CreateKeyFile(file); err != nil {
			return "", fmt.Errorf("--data-dir: %w", err)
		}
	}
	return "file://" + file, nil
}

func (o Standalone) startDNS(ctx context.Context, etcd *embedetcd.Server, store *keystore.Store, dir string) (*nameServer, error) {
	zones, err := zoneNames(ctx, store)
	if err != nil {
		return nil, err
	}
	if len(zones) == 0 { // they come at the end of a restore
		zones = []string{o.Zone}
	}
	replicas := filepath.Join(dir, "replica")
	// The name is unique in the process, as tests run several at a time.
	unregister := replica.RegisterInProcess(dir, etcd.Client())
	ns := &nameServer{listen: o.DNS, dataDir: replicas, source: replica.InProcessScheme + dir, released: unregister}
	if err := ns.start(zones, o.Logger); err != nil {
		unregister()
		return nil, err
	}
	return ns, nil
}

// maxZones is how many zones one process serves at most; a provider has a few.
const maxZones = 1000

func zoneNames(ctx context.Context, store *keystore.Store) ([]string, error) {
	zones, _, err := store.Zones(ctx, "", maxZones)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(zones))
	for i, z := range zones {
		names[i] = string(z.Name)
	}
	return names, nil
}

// followZones calls changed with the names of all zones after a caller created or
// deleted one.
func followZones(store *keystore.Store, changed func(context.Context, []string) error, logger *slog.Logger) grpc.UnaryServerInterceptor {
	methods := []string{
		dkimv1.KeyManagement_CreateZone_FullMethodName, dkimv1.KeyManagement_UpdateZone_FullMethodName, dkimv1.KeyManagement_DeleteZone_FullMethodName,
	}
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		resp, err := handler(ctx, req)
		if err != nil || !slices.Contains(methods, info.FullMethod) {
			return resp, err
		}
		serveZones(ctx, store, changed, logger)
		return resp, nil
	}
}

// serveZones calls changed with the names of all zones, if there is one.
func serveZones(ctx context.Context, store *keystore.Store, changed func(context.Context, []string) error, logger *slog.Logger) {
	zones, err := zoneNames(ctx, store)
	if err == nil && len(zones) > 0 {
		err = changed(ctx, zones)
	}
	if err != nil {
		logger.LogAttrs(ctx, slog.LevelError, "DNS goes on with the zones it had", slog.Any("error", err))
	}
}

// certificates are the files of an installation's own PKI.
type certificates struct {
	ca, serverCert, serverKey, adminCert, adminKey string
}

func ensureCertificates(dir string, bound *listeners, now time.Time) (certificates, error) {
	ca, err := pki.EnsureCA(filepath.Join(dir, "pki"), now)
	if err != nil {
		return certificates{}, err
	}
	c := certificates{ca: ca.CertFile()}
	if c.serverCert, c.serverKey, err = ca.EnsureServer("server", certificateHosts(bound), now); err != nil {
		return certificates{}, err
	}
	c.adminCert, c.adminKey, err = ca.EnsureClient("admin", pki.Identity{Role: string(authn.Admin), Name: "admin"}, now)
	return c, err
}

// certificateHosts are the names by which clients may call the server.
func certificateHosts(bound *listeners) []string {
	hosts := []string{"localhost", "127.0.0.1", "::1"}
	for _, ln := range []net.Listener{bound.grpc, bound.http} {
		host, _, err := net.SplitHostPort(ln.Addr().String())
		if err != nil {
			continue
		}
		if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
			if name, err := os.Hostname(); err == nil && !slices.Contains(hosts, name) {
				hosts = append(hosts, name)
			}
			continue
		}
		if !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	return hosts
}

func renewCertificates(ctx context.Context, dir string, bound *listeners, logger *slog.Logger) {
	ticker := time.NewTicker(renewInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			if _, err := ensureCertificates(dir, bound, now); err != nil {
				logger.LogAttrs(ctx, slog.LevelError, "certificates not renewed", slog.Any("error", err))
			}
		}
	}
}

// writeClientConfig writes dkimctl.yaml, with the port of this name server, which
// in a first try is not 53.
func writeClientConfig(ctx context.Context, store *keystore.Store, certs certificates, a Addresses) error {
	c := config.Client{
		Address: askable(a.GRPC), CAFile: certs.ca, CertFile: certs.adminCert, KeyFile: certs.adminKey,
		NameServers: make(map[string]netip.AddrPort),
	}
	own, err := netip.ParseAddrPort(askable(a.DNS))
	if err != nil {
		return fmt.Errorf("address of the name server: %w", err)
	}
	zones, _, err := store.Zones(ctx, "", maxZones)
	if err != nil {
		return err
	}
	for _, z := range zones {
		for _, ns := range z.NameServers {
			if slices.Contains(ns.Addresses, own.Addr()) {
				c.NameServers[ns.Name] = own
			}
		}
	}
	return c.Write(a.ClientConfig)
}

func (o Standalone) greet(zone dnsname.Zone, a Addresses) {
	host, port, err := net.SplitHostPort(askable(a.DNS))
	if err != nil {
		host, port = a.DNS, "53"
	}
	fmt.Fprintf(o.Out, `dkimd serves zone %s
  DNS      %s (UDP and TCP)
  gRPC     %s (TLS; client configuration %s)
  REST     https://%s (described in /openapi.json)
  metrics  http://%s/metrics

Go on in another terminal:
  bin/dkimctl brand create acme
  bin/dkimctl domain provision acme spamtrap.dk --wait
  dig @%s -p %s TXT selector1-spamtrap-dk._domainkey.%s

Ctrl-C stops it; the data stays in %s.
`, zone, a.DNS, a.GRPC, a.ClientConfig, a.HTTP, a.Metrics, host, port, zone, filepath.Dir(a.ClientConfig))
}
