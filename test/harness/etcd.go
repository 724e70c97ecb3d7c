package harness

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/etcdclient"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// clusterLimit is how long a cluster may take to come up or to elect a leader.
const clusterLimit = 2 * time.Minute

// Cluster is an etcd cluster of three members or one, each a process. Clients and
// members show certificates of its PKI, and a client is the etcd user that the
// certificate's common name says:
//
//	root    everything
//	dkimd   reads and writes all keys of dkimzone
//	dns     reads the public records
type Cluster struct {
	PKI     *PKI
	Members []*Member

	links [][]*Proxy // between members, from and to; nil if they are direct
}

// Member is a member of a Cluster. Its data stays when it is killed.
type Member struct {
	Process *Process // of the last start
	URL     string   // for clients
	DataDir string

	name string
	env  []string
	args []string
}

// StartCluster starts a cluster with access control switched on.
func StartCluster(tb testing.TB, pki *PKI) *Cluster {
	tb.Helper()
	return startCluster(tb, pki, 3, false)
}

// StartEtcd starts a cluster of one member.
func StartEtcd(tb testing.TB, pki *PKI) *Cluster {
	tb.Helper()
	return startCluster(tb, pki, 1, false)
}

func startCluster(tb testing.TB, pki *PKI, size int, divisible bool) *Cluster {
	tb.Helper()
	c := &Cluster{PKI: pki}
	dir := tb.TempDir()
	var initial, peers, hosts []string
	for i := range size {
		name, peer := fmt.Sprintf("etcd%d", i+1), Addr(tb)
		peers, hosts = append(peers, peer), append(hosts, peer)
		if divisible {
			hosts[i] = name + ".test:1" // for the proxies
		}
		initial = append(initial, name+"=https://"+hosts[i])
		c.Members = append(c.Members, &Member{name: name, URL: "https://" + Addr(tb)})
	}
	if divisible {
		c.connect(tb, hosts, peers)
	}
	for i, m := range c.Members {
		// A member also checks the address from which another one connects.
		cert := pki.Peer(tb, m.name, Host(), "127.0.0.1", m.name+".test")
		m.DataDir = filepath.Join(dir, m.name)
		m.args = []string{
			"--name", m.name, "--data-dir", m.DataDir,
			"--listen-client-urls", m.URL, "--advertise-client-urls", m.URL,
			"--listen-peer-urls", "https://" + peers[i], "--initial-advertise-peer-urls", "https://" + hosts[i],
			"--initial-cluster", strings.Join(initial, ","), "--initial-cluster-state", "new",
			"--client-cert-auth", "--trusted-ca-file", cert.CA, "--cert-file", cert.Cert, "--key-file", cert.Key,
			"--peer-client-cert-auth", "--peer-trusted-ca-file", cert.CA, "--peer-cert-file", cert.Cert, "--peer-key-file", cert.Key,
			"--enable-grpc-gateway=false", "--log-level", "warn", "--unsafe-no-fsync",
		}
		c.Start(tb, i)
	}
	c.allowUsers(tb)
	return c
}

// Start starts member i again, on the data that it had.
func (c *Cluster) Start(tb testing.TB, i int) {
	tb.Helper()
	m := c.Members[i]
	m.Process = Start(tb, m.name, Etcd, m.env, m.args...)
}

// Kill kills all members.
func (c *Cluster) Kill() {
	for _, m := range c.Members {
		m.Process.Kill()
	}
}

// Endpoints are the client URLs of all members.
func (c *Cluster) Endpoints() []string {
	var urls []string
	for _, m := range c.Members {
		urls = append(urls, m.URL)
	}
	return urls
}

// Client connects as the given etcd user.
func (c *Cluster) Client(tb testing.TB, user string) *clientv3.Client {
	tb.Helper()
	cert := c.PKI.Client(tb, user, "etcd")
	client, err := etcdclient.Dial(etcdclient.Config{
		Endpoints: c.Endpoints(), CAFile: cert.CA, CertFile: cert.Cert, KeyFile: cert.Key,
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = client.Close() })
	return client
}

// allowUsers makes the users and their roles and switches access control on.
func (c *Cluster) allowUsers(tb testing.TB) {
	tb.Helper()
	client := c.Client(tb, "root")
	ctx, cancel := context.WithTimeout(tb.Context(), clusterLimit)
	defer cancel()
	try := func(what string, err error) {
		if err != nil {
			tb.Fatalf("set up etcd: %s: %v", what, err)
		}
	}
	grants := []struct {
		user, prefix string
		permission   clientv3.PermissionType
	}{
		{"root", "", 0},
		{"dkimd", schema.Root, clientv3.PermissionType(clientv3.PermReadWrite)},
		{"dns", schema.PubPrefix, clientv3.PermissionType(clientv3.PermRead)},
	}
	for _, g := range grants {
		_, err := client.UserAddWithOptions(ctx, g.user, "", &clientv3.UserAddOptions{NoPassword: true})
		try("add user "+g.user, err)
		_, err = client.RoleAdd(ctx, g.user)
		try("add role "+g.user, err)
		if g.prefix != "" {
			_, err = client.RoleGrantPermission(ctx, g.user, g.prefix, clientv3.GetPrefixRangeEnd(g.prefix), g.permission)
			try("grant to role "+g.user, err)
		}
		_, err = client.UserGrantRole(ctx, g.user, g.user)
		try("grant role to user "+g.user, err)
	}
	_, err := client.AuthEnable(ctx)
	try("enable access control", err)
}
