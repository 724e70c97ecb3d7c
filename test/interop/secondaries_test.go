//go:build interop

package interop_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

const (
	zone       = "keys.example.net"
	tsigKey    = "secondary.example.org."
	tsigSecret = "c2VjcmV0IG9mIHRoZSBzZWNvbmRhcmllcw=="

	limit = time.Minute // for a change to get to a secondary
)

// server is a name server of the zone: a node of ours or a secondary.
type server struct {
	name, addr, metrics string
	serial              uint32 // last seen
}

func write(t *testing.T, file, text string) string {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// startSecondaries starts a BIND, a Knot and an NSD that have the nodes as
// primaries.
func startSecondaries(t *testing.T, addrs map[string]string, nodes []*server) []*server {
	t.Helper()
	primaries := func(format, sep string) string {
		var all []string
		for _, n := range nodes {
			host, port, _ := net.SplitHostPort(n.addr)
			all = append(all, strings.NewReplacer("HOST", host, "PORT", port, "NAME", n.name).Replace(format))
		}
		return strings.Join(all, sep)
	}
	for name, text := range map[string]string{
		"named": `options { directory "DIR"; pid-file "DIR/named.pid"; session-keyfile "DIR/session.key"; listen-on port PORT { HOST; };
  listen-on-v6 { none; }; recursion no; notify no; dnssec-validation no; allow-notify { 127.0.0.0/8; }; allow-transfer { 127.0.0.0/8; }; };
controls { };
key "` + tsigKey + `" { algorithm hmac-sha256; secret "` + tsigSecret + `"; };
zone "` + zone + `" { type secondary; file "DIR/zone.db"; primaries { ` + primaries("HOST port PORT key "+tsigKey+";", " ") + ` }; };
`,
		"knotd": `server:
    listen: HOST@PORT
    rundir: DIR
    user: root
database:
    storage: DIR
key:
  - id: ` + tsigKey + `
    algorithm: hmac-sha256
    secret: ` + tsigSecret + `
remote:
` + primaries("  - id: NAME\n    address: HOST@PORT\n    key: "+tsigKey, "\n") + `
acl:
  - id: local
    address: 127.0.0.0/8
    action: [notify, transfer]
zone:
  - domain: ` + zone + `
    storage: DIR
    master: [` + primaries("NAME", ", ") + `]
    acl: local
`,
		"nsd": `server:
    ip-address: HOST@PORT
    username: root
    zonesdir: DIR
    database: ""
    xfrdir: DIR
    xfrdfile: DIR/xfrd.state
    zonelistfile: DIR/zone.list
    pidfile: DIR/nsd.pid
remote-control:
    control-enable: no
key:
    name: ` + tsigKey + `
    algorithm: hmac-sha256
    secret: "` + tsigSecret + `"
zone:
    name: ` + zone + `
    zonefile: zone.db
    allow-notify: 127.0.0.0/8 NOKEY
    provide-xfr: 127.0.0.0/8 NOKEY
` + primaries("    request-xfr: HOST@PORT "+tsigKey, "\n") + "\n",
	} {
		dir := t.TempDir()
		host, port, _ := net.SplitHostPort(addrs[name])
		file := write(t, filepath.Join(dir, name+".conf"), strings.NewReplacer("DIR", dir, "HOST", host, "PORT", port).Replace(text))
		switch name {
		case "named":
			harness.StartSystem(t, "/usr/sbin/named", "-g", "-c", file)
		case "knotd":
			harness.StartSystem(t, "/usr/sbin/knotd", "-c", file)
		case "nsd":
			harness.StartSystem(t, "/usr/sbin/nsd", "-d", "-c", file)
		}
	}
	var all []*server
	for name, addr := range addrs {
		all = append(all, &server{name: name, addr: addr})
	}
	return all
}

// startNodes starts two DNS nodes that tell the secondaries of changes.
func startNodes(t *testing.T, etcd *harness.Cluster, secondaries map[string]string) []*server {
	t.Helper()
	cert := etcd.PKI.Client(t, "dns", "etcd")
	to := "*"
	for _, addr := range secondaries {
		to += " " + addr
	}
	var nodes []*server
	for i := range 2 {
		n := &server{name: fmt.Sprintf("node%d", i+1), addr: harness.Addr(t), metrics: harness.Addr(t)}
		host, port, _ := net.SplitHostPort(n.addr)
		dir := t.TempDir()
		corefile := fmt.Sprintf(`%s:%s {
    bind %s
    tsig {
        secret %s %s
        require AXFR IXFR
    }
    transfer {
        to %s
    }
    dkim {
        endpoint %s
        tls %s %s %s
        data_dir %s
    }
    prometheus %s
    errors
}
`, zone, port, host, tsigKey, tsigSecret, to, strings.Join(etcd.Endpoints(), " "), cert.Cert, cert.Key, cert.CA, dir, n.metrics)
		harness.Start(t, n.name, harness.CoreDNS, nil, "-conf", write(t, filepath.Join(dir, "Corefile"), corefile))
		nodes = append(nodes, n)
	}
	return nodes
}

// soa asks for the serial, which must not go back.
func (s *server) soa(ctx context.Context) (uint32, error) {
	c := dns.Client{Timeout: 2 * time.Second}
	reply, _, err := c.ExchangeContext(ctx, new(dns.Msg).SetQuestion(zone+".", dns.TypeSOA), s.addr)
	if err != nil {
		return 0, err
	}
	if reply.Rcode != dns.RcodeSuccess || len(reply.Answer) != 1 {
		return 0, fmt.Errorf("%s: %s", s.name, dns.RcodeToString[reply.Rcode])
	}
	serial := reply.Answer[0].(*dns.SOA).Serial
	if s.serial != 0 && serial != s.serial && serial-s.serial >= 1<<31 {
		return 0, fmt.Errorf("%s: serial went back from %d to %d", s.name, s.serial, serial)
	}
	s.serial = serial
	return serial, nil
}

// zone is what a full transfer has, sorted.
func (s *server) zone(t *testing.T) []string {
	t.Helper()
	q := new(dns.Msg).SetAxfr(zone+".").SetTsig(tsigKey, dns.HmacSHA256, 300, time.Now().Unix())
	tr := &dns.Transfer{TsigSecret: map[string]string{tsigKey: tsigSecret}}
	if s.metrics == "" { // a secondary gives it to all
		q, tr = new(dns.Msg).SetAxfr(zone+"."), new(dns.Transfer)
	}
	ch, err := tr.In(q, s.addr)
	if err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
	var all []string
	for e := range ch {
		if e.Error != nil {
			t.Fatalf("%s: %v", s.name, e.Error)
		}
		for _, rr := range e.RR {
			all = append(all, rr.String())
		}
	}
	all = all[:len(all)-1] // the SOA record is there twice
	slices.Sort(all)
	return all
}

// incremental is how many incremental transfers the node has sent.
func (s *server) incremental(t *testing.T) int {
	t.Helper()
	resp, err := http.Get("http://" + s.metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(body)) {
		if rest, ok := strings.CutPrefix(line, `coredns_dkim_transfers_total{result="incremental",zone="`+zone+`."} `); ok {
			if _, err := fmt.Sscan(rest, &n); err != nil {
				t.Fatal(err)
			}
		}
	}
	return n
}

// change makes a random change in one transaction and returns its revision.
func change(t *testing.T, etcd *clientv3.Client, rng *rand.Rand, apex *schema.Apex) int64 {
	t.Helper()
	var ops []clientv3.Op
	record := func(owner string) {
		rec := schema.PublicRecord{KeyType: dkimrecord.Ed25519, TTL: uint32(60 + rng.IntN(100)), PublicKey: make([]byte, 32)}
		switch rng.IntN(4) {
		case 0:
			ops = append(ops, clientv3.OpDelete(schema.RecordKey(zone, owner)))
			return
		case 1:
			rec.KeyType, rec.PublicKey = dkimrecord.RSA, make([]byte, 294)
		case 2:
			rec.PublicKey = nil
		}
		for i := range rec.PublicKey {
			rec.PublicKey[i] = byte(rng.Uint32())
		}
		value, err := rec.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		ops = append(ops, clientv3.OpPut(schema.RecordKey(zone, owner), string(value)))
	}
	if rng.IntN(20) == 0 {
		apex.NegativeTTL = uint32(60 + rng.IntN(600))
		apex.NameServers[0].Addresses[0] = netip.AddrFrom4([4]byte{192, 0, 2, byte(rng.Uint32())})
	}
	first := rng.IntN(300)
	for i := range 1 + rng.IntN(3) {
		record(fmt.Sprintf("selector%d-d%d._domainkey", 1+i, first))
	}
	value, err := apex.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	ops = append(ops, clientv3.OpPut(schema.ApexKey(zone), string(value)))
	resp, err := etcd.Txn(t.Context()).Then(ops...).Commit()
	if err != nil {
		t.Fatal(err)
	}
	return resp.Header.Revision
}

// BIND, Knot and NSD end up equal to us after random changes, by NOTIFY, IXFR
// and AXFR with TSIG.
func TestSecondaries(t *testing.T) {
	const rounds, perRound = 10, 100
	etcd := harness.StartCluster(t, harness.NewPKI(t))
	client := etcd.Client(t, "dkimd")
	rng := rand.New(rand.NewPCG(1, 2))
	apex := &schema.Apex{
		NameServers: []schema.NameServer{{Name: "ns1." + zone, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}, {Name: "ns2.example.org"}},
		Mailbox:     "hostmaster.example.org", ApexTTL: 3600, Refresh: 7200, Retry: 900, Expire: 1209600, NegativeTTL: 300, RecordTTL: 1800,
	}
	rev := int64(0)
	for range 500 {
		rev = change(t, client, rng, apex)
	}
	addrs := map[string]string{"named": harness.Addr(t), "knotd": harness.Addr(t), "nsd": harness.Addr(t)}
	// BIND listens on addresses that an interface has, and not on all of 127/8.
	_, port, _ := net.SplitHostPort(addrs["named"])
	addrs["named"] = net.JoinHostPort("127.0.0.1", port)
	nodes := startNodes(t, etcd, addrs)
	all := append(slices.Clone(nodes), startSecondaries(t, addrs, nodes)...)

	// equal waits until all have the revision, and compares them.
	equal := func() {
		t.Helper()
		for _, s := range all {
			harness.Eventually(t, limit, s.name+" has the last change", func() error {
				serial, err := s.soa(t.Context())
				if err == nil && serial != schema.Serial(rev) {
					err = fmt.Errorf("serial %d, want %d", serial, schema.Serial(rev))
				}
				return err
			})
		}
		want := nodes[0].zone(t)
		for _, s := range all[1:] {
			if diff := cmp.Diff(want, s.zone(t)); diff != "" {
				t.Fatalf("%s at serial %d (-%s +%s):\n%s", s.name, s.serial, nodes[0].name, s.name, diff)
			}
		}
	}
	equal()
	for range rounds {
		for range perRound {
			rev = change(t, client, rng, apex)
		}
		equal()
	}
	n := 0
	for _, s := range nodes {
		n += s.incremental(t)
	}
	if n == 0 {
		t.Error("no transfer was incremental")
	}
	t.Logf("%d changes, %d servers equal after each %d, %d incremental transfers", rounds*perRound, len(all), perRound, n)

	// What is not of the zone does not move the serial.
	for range 20 {
		if _, err := client.Put(t.Context(), schema.BrandKey("acme"), "x"); err != nil {
			t.Fatal(err)
		}
		for _, s := range all {
			if serial, err := s.soa(t.Context()); err != nil || serial != schema.Serial(rev) {
				t.Fatalf("%s: serial %d, %v; want %d", s.name, serial, err, schema.Serial(rev))
			}
		}
	}
}
