package e2e_test

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/miekg/dns"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/config"
	"github.com/dkimzone/dkimzone/test/harness"
)

// installation is three etcd members, two dkimd and two DNS nodes.
type installation struct {
	etcd  *harness.Cluster
	kek   string // URL
	admin harness.Cert
	dkimd []*dkimd
	nodes []*node // name servers ns1, ns2, … of the zone
}

// newInstallation starts all of it, with the zone created.
func newInstallation(t *testing.T) *installation {
	t.Helper()
	pki := harness.NewPKI(t)
	in := &installation{etcd: harness.StartCluster(t, pki), kek: pki.KEK(t), admin: pki.Client(t, "alice", "admin")}
	for i := range 2 {
		in.nodes = append(in.nodes, newNode(t, fmt.Sprintf("coredns%d", i+1)))
	}
	for i := range 2 {
		in.dkimd = append(in.dkimd, in.newDkimd(t, fmt.Sprintf("dkimd%d", i+1), in.kek))
		in.dkimd[i].launch(t)
		in.dkimd[i].waitReady(t)
	}
	args := []string{"zone", "create", zone}
	for i := range in.nodes {
		args = append(args, "--name-server", fmt.Sprintf("%s=%s", in.nameServer(i), harness.Host()))
	}
	in.dkimd[0].ctl(t, args...)
	for i := range in.nodes {
		in.startNode(t, i)
	}
	return in
}

func (in *installation) nameServer(i int) string { return fmt.Sprintf("ns%d.%s", i+1, zone) }

// dkimd is a dkimd serve, and a client that asks it.
type dkimd struct {
	*harness.Process // of the last start
	client
	name                string
	grpc, http, metrics string
	args                []string
}

func (in *installation) newDkimd(t *testing.T, name, kek string) *dkimd {
	t.Helper()
	server, user := in.etcd.PKI.Server(t, name, harness.Host()), in.etcd.PKI.Client(t, "dkimd", "etcd")
	d := &dkimd{name: name, grpc: harness.Addr(t), http: harness.Addr(t), metrics: harness.Addr(t)}
	d.args = []string{
		"serve", "--etcd-endpoint", strings.Join(in.etcd.Endpoints(), ","),
		"--etcd-ca", user.CA, "--etcd-cert", user.Cert, "--etcd-key", user.Key,
		"--tls-ca", server.CA, "--tls-cert", server.Cert, "--tls-key", server.Key, "--kek-url", kek,
		"--grpc-listen", d.grpc, "--http-listen", d.http, "--metrics-listen", d.metrics,
	}
	c := config.Client{
		Address: d.grpc, CAFile: in.admin.CA, CertFile: in.admin.Cert, KeyFile: in.admin.Key,
		NameServers: make(map[string]netip.AddrPort),
	}
	for i, n := range in.nodes {
		c.NameServers[in.nameServer(i)] = netip.MustParseAddrPort(n.dns)
	}
	d.config = filepath.Join(t.TempDir(), "dkimctl.yaml")
	if err := c.Write(d.config); err != nil {
		t.Fatal(err)
	}
	return d
}

// launch starts it, waitReady waits until it is ready.
func (d *dkimd) launch(t *testing.T) {
	t.Helper()
	d.Process = harness.Start(t, d.name, harness.Dkimd, nil, d.args...)
}

func (d *dkimd) waitReady(t *testing.T) {
	t.Helper()
	waitReady(t, d.Process, "http://"+d.metrics+"/readyz")
}

// waitUnready waits until it says that it is not ready, and why.
func (d *dkimd) waitUnready(t *testing.T, why string) {
	t.Helper()
	harness.Eventually(t, startLimit, d.name+" is not ready", func() error {
		status, body, err := get(t, "http://"+d.metrics+"/readyz")
		if err == nil && (status != http.StatusServiceUnavailable || !strings.Contains(body, why)) {
			err = fmt.Errorf("status %d, %s", status, body)
		}
		return err
	})
}

func (in *installation) api(t *testing.T, i int) dkimv1.KeyManagementClient {
	t.Helper()
	return dial(t, in.dkimd[i].grpc, tlsConfig(t, in.admin))
}

// node is a DNS node: a coredns with the dkim plugin.
type node struct {
	*harness.Process // of the last start
	name, dataDir    string
	dns              string
	ready, metrics   string
}

func newNode(t *testing.T, name string) *node {
	t.Helper()
	return &node{name: name, dataDir: filepath.Join(t.TempDir(), "replica"), dns: harness.Addr(t), ready: harness.Addr(t), metrics: harness.Addr(t)}
}

// startNode starts a DNS node and waits until it is ready.
func (in *installation) startNode(t *testing.T, i int) {
	t.Helper()
	n := in.nodes[i]
	in.launch(t, n)
	waitReady(t, n.Process, "http://"+n.ready+"/ready")
}

// launch starts a DNS node.
func (in *installation) launch(t *testing.T, n *node) {
	t.Helper()
	user := in.etcd.PKI.Client(t, "dns", "etcd")
	host, port, err := net.SplitHostPort(n.dns)
	if err != nil {
		t.Fatal(err)
	}
	corefile := filepath.Join(t.TempDir(), "Corefile")
	text := fmt.Sprintf(`%s:%s {
    bind %s
    ready %s
    prometheus %s
    errors
    dkim {
        endpoint %s
        tls %s %s %s
        data_dir %s
    }
}
`, zone, port, host, n.ready, n.metrics, strings.Join(in.etcd.Endpoints(), " "), user.Cert, user.Key, user.CA, n.dataDir)
	if err := os.WriteFile(corefile, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	n.Process = harness.Start(t, n.name, harness.CoreDNS, nil, "-conf", corefile)
}

// metric reads the value of a metric whose name and labels begin so.
func (n *node) metric(t *testing.T, begin string) (float64, error) {
	t.Helper()
	status, body, err := get(t, "http://"+n.metrics+"/metrics")
	if err != nil || status != http.StatusOK {
		return 0, fmt.Errorf("metrics of %s: status %d, %w", n.name, status, err)
	}
	for line := range strings.Lines(body) {
		if strings.HasPrefix(line, begin) {
			return strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndexByte(line, ' '):]), 64)
		}
	}
	return 0, fmt.Errorf("%s has no metric %s", n.name, begin)
}

// answers is what a name server says to each question, in wire format but for
// the message ID.
func answers(t *testing.T, server string, names []string) string {
	t.Helper()
	var b strings.Builder
	for _, name := range names {
		for _, qtype := range []uint16{dns.TypeTXT, dns.TypeA} {
			resp, err := ask("udp", server, name, qtype)
			if err != nil {
				t.Fatalf("%s does not answer for %s: %v", server, name, err)
			}
			resp.Id = 0
			wire, err := resp.Pack()
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&b, "%s %s %x\n", name, dns.RcodeToString[resp.Rcode], wire)
		}
	}
	return b.String()
}
