package conformance_test

import (
	"bytes"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

const (
	zone = "keys.example.net"

	startLimit = time.Minute
	ioLimit    = 30 * time.Second
)

// TestConformance runs everything against one node.
func TestConformance(t *testing.T) {
	n := startNode(t)
	t.Run("answers", n.testAnswers)
	t.Run("EDNS", n.testEDNS)
	t.Run("compliance", n.testCompliance)
	t.Run("packets", n.testPackets)
	t.Run("prefixes", n.testPrefixes)
	t.Run("records", n.testRecords)
	t.Run("sizes", n.testSizes)
	t.Run("serial", n.testSerial)
	t.Run("TCP", n.testTCP)
	t.Run("long UDP queries", n.testLongUDP)
	t.Run("refusals", n.testRefusals)
	t.Run("identity", n.testIdentity)
}

// node is a running DNS node.
type node struct {
	etcd    *clientv3.Client
	rev     int64
	servers []server
	// named is a server that also tells who it is, with nsid and chaos.
	named server
}

// server is one server block of the node.
type server struct {
	name, addr string
	// root says that the block is "." and not the zone: then the dkim plugin
	// also answers for what is outside of it.
	root bool
}

// startNode starts etcd with a zone in it, and CoreDNS with a server block for
// the zone and one for all names, as in Corefile.example.
func startNode(t *testing.T) *node {
	t.Helper()
	local := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	cfg := embed.NewConfig()
	cfg.Dir, cfg.LogLevel, cfg.UnsafeNoFsync = t.TempDir(), "panic", true
	cfg.ListenClientUrls, cfg.ListenPeerUrls = []url.URL{local}, []url.URL{local}
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	select {
	case <-e.Server.ReadyNotify():
	case err := <-e.Err():
		t.Fatal(err)
	}
	n := &node{etcd: v3client.New(e.Server)}
	t.Cleanup(func() { n.etcd.Close() })
	n.rev = n.put(t, testApex(), testKeys())
	n.listen(t, "http://"+e.Clients[0].Addr().String(), http.StatusOK)
	return n
}

// listen starts CoreDNS and waits until ready answers as it should.
func (n *node) listen(t *testing.T, endpoint string, ready int) {
	t.Helper()
	n.servers = []server{{name: "zone block", addr: harness.Addr(t)}, {name: "root block", addr: harness.Addr(t), root: true}}
	n.named = server{name: "nsid and chaos", addr: harness.Addr(t), root: true}
	readiness := harness.Addr(t)
	corefile := fmt.Sprintf("%s:%s {\n ready %s\n dkim {\n", zone, port(n.servers[0].addr), readiness) + rest(endpoint) +
		fmt.Sprintf(".:%s {\n dkim %s {\n", port(n.servers[1].addr), zone) + rest(endpoint) +
		fmt.Sprintf(".:%s {\n nsid node-1\n chaos node\n dkim %s {\n", port(n.named.addr), zone) + rest(endpoint)
	file := filepath.Join(t.TempDir(), "Corefile")
	if err := os.WriteFile(file, []byte(corefile), 0o600); err != nil {
		t.Fatal(err)
	}
	p := harness.Start(t, "coredns", harness.CoreDNS, nil, "-conf", file)
	client := &http.Client{Timeout: ioLimit, Transport: &http.Transport{DisableKeepAlives: true}}
	harness.Eventually(t, startLimit, fmt.Sprintf("/ready says %d", ready), func() error {
		if err := p.Running(); err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+readiness+"/ready", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != ready {
			return fmt.Errorf("status %d", resp.StatusCode)
		}
		return nil
	})
}

func port(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }

// rest is the end of a server block from the inside of its dkim directive on.
func rest(endpoint string) string {
	return fmt.Sprintf("  endpoint %s\n }\n bind %s\n errors\n}\n", endpoint, harness.Host())
}

// put writes a zone in one transaction and returns its revision.
func (n *node) put(t *testing.T, apex schema.Apex, records map[string]schema.PublicRecord) int64 {
	t.Helper()
	b, err := apex.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	ops := []clientv3.Op{clientv3.OpPut(schema.ApexKey(zone), string(b))}
	for owner, rec := range records {
		if b, err = rec.Marshal(); err != nil {
			t.Fatal(err)
		}
		ops = append(ops, clientv3.OpPut(schema.RecordKey(zone, owner), string(b)))
	}
	resp, err := n.etcd.Txn(t.Context()).Then(ops...).Commit()
	if err != nil {
		t.Fatal(err)
	}
	return resp.Header.Revision
}

func testApex() schema.Apex {
	return schema.Apex{
		NameServers: []schema.NameServer{
			{Name: "ns1." + zone, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}},
			{Name: "ns2.site." + zone, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.2")}},
			{Name: "ns3.example.org"},
		},
		Mailbox: "hostmaster.example.org",
		ApexTTL: 3600, Refresh: 7200, Retry: 900, Expire: 1209600, NegativeTTL: 300, RecordTTL: 1800,
	}
}

// testKeys has a key of each kind and size, and texts of a length at which the
// character-strings or the packet are just full.
func testKeys() map[string]schema.PublicRecord {
	key := func(n int) []byte { return bytes.Repeat([]byte{0xa5}, n) }
	keys := map[string]schema.PublicRecord{
		"rsa2048-a._domainkey":                  {PublicKey: key(294), TTL: 1800},
		"rsa3072-a._domainkey":                  {PublicKey: key(422), TTL: 1800},
		"rsa4096-a._domainkey":                  {PublicKey: key(550), TTL: 1800},
		"huge-a._domainkey":                     {PublicKey: key(1500), TTL: 1800}, // over 1232 octets
		"ed25519-a._domainkey":                  {KeyType: dkimrecord.Ed25519, PublicKey: key(32), TTL: 60},
		"revoked-a._domainkey":                  {TTL: 1800},
		"revoked-ed-a._domainkey":               {KeyType: dkimrecord.Ed25519, TTL: 1800},
		"2026.q1-a._domainkey":                  {KeyType: dkimrecord.Ed25519, PublicKey: key(32), TTL: 1800},
		"a.b.c-a._domainkey":                    {KeyType: dkimrecord.Ed25519, PublicKey: key(32), TTL: 1800},
		strings.Repeat("l", 63) + "._domainkey": {PublicKey: key(294), TTL: 1800},
	}
	// The text without its base64 has 18 octets, and 4, 5 or 7 more for k=ed25519, t=y and t=y:s.
	for _, length := range []int{253, 254, 255, 257, 258, 509, 510, 511, 513, 514} {
		rec := schema.PublicRecord{TTL: 1800}
		fixed := 18
		switch length % 4 {
		case 3:
			rec.Testing, fixed = true, 23
		case 1:
			rec.Testing, rec.SameDomain, fixed = true, true, 25
		}
		rec.PublicKey = key((length - fixed) / 4 * 3)
		keys[fmt.Sprintf("text%d-a._domainkey", length)] = rec
	}
	return keys
}
