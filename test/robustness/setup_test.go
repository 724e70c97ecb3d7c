// Package robustness takes etcd, the network, the disk and the clients of DNS
// nodes away or turns them bad, and checks every answer that is given meanwhile
// against a model of what was written. docs/reliability.md says what is
// promised.
package robustness_test

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/test/harness"
)

const (
	zone = "keys.example.net"

	// limit is how long anything may take that is to happen in the end. It is no
	// promise: it leaves room for a busy machine.
	limit = 2 * time.Minute
)

// faultTime is how long a fault lasts that has no end of its own.
var faultTime = flag.Duration("fault", time.Second, "how long each fault lasts")

// sites is how many tests run at a time. They wait more than they work, but not
// under the race detector: with eight of them two processors are so busy that
// etcd needs more than the 5 s after which a node rightly tells that it is
// interrupted.
func sites() string {
	if harness.RaceEnabled {
		return "2"
	}
	return "8"
}

func TestMain(m *testing.M) {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		if err := flag.Set("test.parallel", sites()); err != nil {
			panic(err)
		}
	}
	go watchStalls()
	os.Exit(harness.Main(m))
}

// last lets a fault last.
func last(t *testing.T) {
	t.Helper()
	select {
	case <-time.After(*faultTime):
	case <-t.Context().Done():
	}
}

// newZone returns the zone object, changed by edit.
func newZone(edit ...func(*schema.Apex)) schema.Apex {
	a := schema.Apex{
		NameServers: []schema.NameServer{{Name: "ns1." + zone, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.53")}}},
		Mailbox:     "hostmaster." + zone, ApexTTL: 3600, Refresh: 3600, Retry: 600, Expire: 1209600,
		NegativeTTL: 300, RecordTTL: 3600, CreateTime: time.Unix(1700000000, 0),
	}
	for _, fn := range edit {
		fn(&a)
	}
	return a
}

// site is an etcd cluster, what is written to it, and DNS nodes that follow it.
type site struct {
	t     *testing.T // as long as which its processes run
	etcd  *harness.Cluster
	model *model
	nodes []*node
}

// newSite starts a site with so many nodes, which are asked from then on.
func newSite(t *testing.T, nodes int) *site {
	t.Helper()
	return newSiteOf(t, harness.StartCluster(t, harness.NewPKI(t)), nodes)
}

func newSiteOf(t *testing.T, etcd *harness.Cluster, nodes int) *site {
	t.Helper()
	s := &site{t: t, etcd: etcd}
	s.model = newModel(s.etcd.Client(t, "dkimd"))
	s.model.fill(t)
	for i := range nodes {
		n := newNode(s, fmt.Sprintf("coredns%d", i+1))
		n.start()
		s.nodes = append(s.nodes, n)
	}
	for _, n := range s.nodes {
		n.waitReady(t)
		s.model.query(t, n)
	}
	s.model.settle(t, s.nodes...)
	for _, n := range s.nodes {
		n.tells(t, []string{listing("start")})
	}
	return s
}

// leader is the index of the member that leads the cluster.
func (s *site) leader(t *testing.T) int {
	t.Helper()
	client := s.model.client
	leader := 0
	harness.Eventually(t, limit, "a leader", func() error {
		for i, m := range s.etcd.Members {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			st, err := client.Status(ctx, m.URL)
			cancel()
			if err == nil && st.Leader != 0 && st.Leader == st.Header.MemberId {
				leader = i
				return nil
			}
		}
		return fmt.Errorf("no member says that it leads")
	})
	return leader
}

// node is a DNS node, with a proxy of its own to each etcd member.
type node struct {
	*harness.Process // of the last start
	t                *testing.T
	name             string
	dns              string
	ready, metrics   string
	proxies          []*harness.Proxy
	corefile         string
	env              []string
	dataDir          string
	seen             *seen
	log              string // what the processes before this one wrote
	told             int    // how much of the log tells has read
	toldAt           time.Time
}

func newNode(s *site, name string, more ...string) *node {
	t := s.t
	t.Helper()
	n := &node{
		t: t, name: name, toldAt: time.Now(), dns: harness.Addr(t), ready: harness.Addr(t), metrics: harness.Addr(t),
		dataDir: filepath.Join(t.TempDir(), "replica"), corefile: filepath.Join(t.TempDir(), "Corefile"),
	}
	var urls []string
	for _, url := range s.etcd.Endpoints() {
		p := harness.StartProxy(t, strings.TrimPrefix(url, "https://"))
		n.proxies = append(n.proxies, p)
		urls = append(urls, "https://"+p.Addr)
	}
	host, port, err := net.SplitHostPort(n.dns)
	if err != nil {
		t.Fatal(err)
	}
	user := s.etcd.PKI.Client(t, "dns", "etcd")
	text := fmt.Sprintf(`%s:%s {
    bind %s
    ready %s {
        monitor continuously
    }
    prometheus %s
    errors
    %s
    dkim {
        endpoint %s
        tls %s %s %s
        data_dir %s
        reconcile 10s
    }
}
`, zone, port, host, n.ready, n.metrics, strings.Join(more, "\n    "), strings.Join(urls, " "), user.Cert, user.Key, user.CA, n.dataDir)
	if err := os.WriteFile(n.corefile, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	n.seen = newSeen(n)
	return n
}

func (n *node) start() {
	n.t.Helper()
	if n.Process != nil {
		n.log += n.Output()
	}
	n.Process = harness.Start(n.t, n.name, harness.CoreDNS, n.env, "-conf", n.corefile)
	n.t.Cleanup(func() { n.seen.set(&n.seen.down, true) }) // the process is killed next
}

// moveData gives the node another data directory.
func (n *node) moveData(t *testing.T, dir string) {
	t.Helper()
	b, err := os.ReadFile(n.corefile)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(n.corefile, []byte(strings.Replace(string(b), n.dataDir, dir, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	n.dataDir = dir
}

// each does something to all connections to etcd.
func (n *node) each(do func(*harness.Proxy)) {
	for _, p := range n.proxies {
		do(p)
	}
}

// conns is the number of connections to etcd.
func (n *node) conns() int {
	c := 0
	n.each(func(p *harness.Proxy) { c += p.Conns() })
	return c
}

func (n *node) waitReady(t *testing.T) {
	t.Helper()
	harness.Eventually(t, limit, n.name+" is ready", func() error {
		if err := n.Running(); err != nil {
			t.Fatal(err)
		}
		return n.isReady()
	})
}

func (n *node) isReady() error {
	_, err := get("http://" + n.ready + "/ready")
	return err
}

// waitState waits until the replica is in a state.
func (n *node) waitState(t *testing.T, state string) {
	t.Helper()
	n.waitMetric(t, fmt.Sprintf(`coredns_dkim_replica_state{state="%s",zone="%s."}`, state, zone), func(v float64) bool { return v == 1 })
}

// waitMetric waits until a metric is as it should be.
func (n *node) waitMetric(t *testing.T, name string, ok func(float64) bool) {
	t.Helper()
	harness.Eventually(t, limit, n.name+": "+name, func() error {
		v, err := n.metric(name)
		if err == nil && !ok(v) {
			err = fmt.Errorf("it is %v", v)
		}
		return err
	})
}

func (n *node) mustMetric(t *testing.T, name string) float64 {
	t.Helper()
	var v float64
	harness.Eventually(t, limit, n.name+": "+name, func() (err error) {
		v, err = n.metric(name) // CoreDNS gives itself 5 s for a page
		return err
	})
	return v
}

// metric is the sum of the series whose name and labels begin so, 0 if there
// are none.
func (n *node) metric(begin string) (float64, error) {
	body, err := get("http://" + n.metrics + "/metrics")
	if err != nil {
		return 0, err
	}
	sum := 0.0
	for line := range strings.Lines(body) {
		if strings.HasPrefix(line, begin) {
			v, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndexByte(line, ' '):]), 64)
			if err != nil {
				return 0, err
			}
			sum += v
		}
	}
	return sum, nil
}

// size is what a process takes.
type size struct {
	goroutines, memory, files float64
	conns                     int
}

func (n *node) size(t *testing.T) size {
	t.Helper()
	return size{n.mustMetric(t, "go_goroutines"), n.mustMetric(t, "process_resident_memory_bytes"), n.mustMetric(t, "process_open_fds"), n.conns()}
}

// garbage is how many octets a process may take more than before: what its heap
// holds until the next collection, which comes late because its ballast is large.
func garbage() float64 {
	if harness.RaceEnabled {
		return 512 << 20
	}
	return 128 << 20
}

// waitSize waits until a process takes not much more than before.
func (n *node) waitSize(t *testing.T, before size) {
	t.Helper()
	harness.Eventually(t, limit, n.name+" takes no more than before", func() error {
		now := n.size(t)
		if now.goroutines > before.goroutines+30 || now.memory > before.memory+garbage() || now.files > before.files+15 || now.conns > before.conns+3 {
			return fmt.Errorf("it takes %+v, before %+v", now, before)
		}
		return nil
	})
}

var plainHTTP = &http.Client{Timeout: limit, Transport: &http.Transport{DisableKeepAlives: true}}

// get reads a page; any status but 200 is an error.
func get(url string) (string, error) {
	resp, err := plainHTTP.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, resp.Status, body)
	}
	return string(body), err
}
