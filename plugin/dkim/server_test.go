package dkim

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/dnssec"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/metrics"
	_ "github.com/coredns/coredns/plugin/nsid"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/root"
	_ "github.com/coredns/coredns/plugin/transfer"
	_ "github.com/coredns/coredns/plugin/tsig"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"github.com/dkimzone/dkimzone/internal/replica"
	"github.com/dkimzone/dkimzone/internal/schema"
)

func init() {
	if err := dnsserver.SetDirectives([]string{
		"root", "nsid", "bind", "ready", "prometheus", "errors", "tsig", "cache", "dnssec", "transfer", pluginName, "forward", "early",
	}); err != nil {
		panic(err)
	}
	plugin.Register("early", func(c *caddy.Controller) error {
		c.OnStartup(func() error { early(); return nil })
		return nil
	})
}

// early is what the plugin of this name does when all plugins have started and
// the server does not listen yet.
var early func()

// cluster is a real etcd of one member.
type cluster struct {
	*clientv3.Client
	endpoint string
}

func startEtcd(t testing.TB) *cluster {
	t.Helper()
	local := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	cfg := embed.NewConfig()
	cfg.Dir = t.TempDir()
	cfg.LogLevel = "panic"
	cfg.ListenClientUrls, cfg.ListenPeerUrls = []url.URL{local}, []url.URL{local}
	cfg.UnsafeNoFsync = true
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
	c := v3client.New(e.Server)
	t.Cleanup(func() { c.Close() })
	return &cluster{Client: c, endpoint: "http://" + e.Clients[0].Addr().String()}
}

// put writes values in one transaction and returns its revision.
func (c *cluster) put(t testing.TB, values map[string][]byte) int64 {
	t.Helper()
	var ops []clientv3.Op
	for key, value := range values {
		ops = append(ops, clientv3.OpPut(key, string(value)))
	}
	resp, err := c.Txn(t.Context()).Then(ops...).Commit()
	if err != nil {
		t.Fatal(err)
	}
	return resp.Header.Revision
}

// server is a running CoreDNS.
type server struct {
	*caddy.Instance
	udp, tcp string
}

func startServer(t testing.TB, corefile string) *server {
	t.Helper()
	i, err := caddy.Start(input(corefile))
	if err != nil {
		t.Fatalf("starting CoreDNS: %v\n%s", err, corefile)
	}
	s := &server{Instance: i}
	t.Cleanup(s.stop)
	for _, srv := range i.Servers() {
		s.udp, s.tcp = srv.LocalAddr().String(), srv.Addr().String()
	}
	return s
}

func (s *server) stop() {
	if s.Instance != nil {
		_ = s.Stop()
		s.ShutdownCallbacks()
		s.Instance = nil
	}
}

func input(corefile string) caddy.CaddyfileInput {
	return caddy.CaddyfileInput{Filepath: "Corefile", Contents: []byte(corefile), ServerTypeName: "dns"}
}

// waitFor waits until the zone is served up to revision rev.
func waitFor(t testing.TB, rev int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	started.mu.Lock()
	all := started.all
	started.mu.Unlock()
	for _, d := range all {
		for _, z := range d.zones {
			if err := z.replica.Load().WaitRevision(ctx, rev); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func (s *server) exchange(t testing.TB, network string, q *dns.Msg) *dns.Msg {
	t.Helper()
	addr := s.udp
	if network == "tcp" {
		addr = s.tcp
	}
	c := dns.Client{Net: network, Timeout: 10 * time.Second}
	reply, _, err := c.ExchangeContext(t.Context(), q, addr)
	if err != nil {
		t.Fatalf("%s: %v", network, err)
	}
	return reply
}

func corefile(endpoint, more string) string {
	return fmt.Sprintf(".:0 {\n bind 127.0.0.1\n cache\n dkim %s {\n  endpoint %s\n %s\n }\n}\n", testZone, endpoint, more)
}

func TestServer(t *testing.T) {
	e := startEtcd(t)
	s := startServer(t, corefile(e.endpoint, ""))
	name := goldenName + "." + testZone + "."
	q := query(name, dns.TypeTXT, edns(1232, false))
	if reply := s.exchange(t, "udp", q); reply.Rcode != dns.RcodeServerFailure {
		t.Errorf("before the zone exists: %s", dns.RcodeToString[reply.Rcode])
	}

	waitFor(t, e.put(t, zoneValues(t, testZone, testApex(), testRecords(t))))
	for _, network := range []string{"udp", "tcp"} {
		for _, qname := range []string{name, strings.ToUpper(name)} {
			reply := s.exchange(t, network, query(qname, dns.TypeTXT, edns(1232, false)))
			if len(reply.Answer) != 1 || !reply.Authoritative || reply.Answer[0].Header().Name != qname {
				t.Fatalf("%s %s: %v", network, qname, reply)
			}
			strs := text(t, reply)
			if len(strs) != 2 || len(strs[0]) != 255 || strings.Join(strs, "") != "v=DKIM1; k=rsa; p="+goldenKey {
				t.Errorf("%s %s: strings %q", network, qname, strs)
			}
		}
	}

	// What does not fit over UDP is the same over TCP.
	rsa4096 := query("rsa4096-spamtrap-dk._domainkey."+testZone+".", dns.TypeTXT, edns(512, false))
	if reply := s.exchange(t, "udp", rsa4096); !reply.Truncated || len(reply.Answer) != 0 {
		t.Errorf("RSA-4096 over UDP at 512: %v", reply)
	}
	overTCP := s.exchange(t, "tcp", rsa4096)
	overUDP := s.exchange(t, "udp", query(rsa4096.Question[0].Name, dns.TypeTXT, edns(1232, false)))
	if diff := cmp.Diff(short(overUDP), short(overTCP)); diff != "" || overTCP.Truncated || len(overTCP.Answer) != 1 {
		t.Errorf("RSA-4096 (-UDP +TCP):\n%s", diff)
	}

	// The cache plugin is in front and must not keep what changed.
	rec := testRecords(t)[goldenName]
	rec.PublicKey = nil
	waitFor(t, e.put(t, zoneValues(t, testZone, testApex(), map[string]schema.PublicRecord{goldenName: rec})))
	if got := text(t, s.exchange(t, "udp", q)); len(got) != 1 || got[0] != "v=DKIM1; k=rsa; p=" {
		t.Errorf("revoked key: %q", got)
	}
	if reply := s.exchange(t, "udp", query(testZone+".", dns.TypeAXFR)); reply.Rcode != dns.RcodeRefused {
		t.Errorf("AXFR: %s", dns.RcodeToString[reply.Rcode])
	}
}

// A node that says it is ready answers: also when its zone is loaded before the
// server listens, and all the time during a restart.
func TestReadyWhenItListens(t *testing.T) {
	m := newMemory()
	m.put(zoneValues(t, testZone, testApex(), testRecords(t)))
	defer replica.RegisterInProcess(t.Name(), m)()
	ready := func() bool {
		waitFor(t, m.rev)
		return started.all[len(started.all)-1].Ready()
	}
	text := strings.Replace(corefile(replica.InProcessScheme+t.Name(), ""), "cache", "early", 1)
	early = func() {
		if ready() {
			t.Error("ready, and does not listen")
		}
	}
	s := startServer(t, text)
	if !ready() {
		t.Error("not ready")
	}
	early = func() {
		if !ready() {
			t.Error("not ready in a restart")
		}
	}
	next, err := s.Restart(input(text))
	if err != nil {
		t.Fatal(err)
	}
	s.Instance = next
	if !ready() {
		t.Error("not ready after a restart")
	}
}

// The probes of RFC 8906 §8 that a zone's server must pass.
func TestCompliance(t *testing.T) {
	m := newMemory()
	m.put(zoneValues(t, testZone, testApex(), testRecords(t)))
	defer replica.RegisterInProcess(t.Name(), m)()
	s := startServer(t, corefile(replica.InProcessScheme+t.Name(), ""))
	waitFor(t, m.rev)
	soa := func(edit ...func(*dns.Msg)) *dns.Msg { return query(testZone+".", dns.TypeSOA, edit...) }
	version1 := func(m *dns.Msg) { m.IsEdns0().SetVersion(1) }
	option := func(m *dns.Msg) { m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_LOCAL{Code: 100}} }
	tests := []struct {
		name   string
		q      *dns.Msg
		rcode  int
		answer int
		do     bool
	}{
		{"SOA", soa(), dns.RcodeSuccess, 1, false},
		{"TYPE1000", query(testZone+".", 1000), dns.RcodeSuccess, 0, false},
		{"CD", soa(func(m *dns.Msg) { m.CheckingDisabled = true }), dns.RcodeSuccess, 1, false},
		{"AD", soa(func(m *dns.Msg) { m.AuthenticatedData = true }), dns.RcodeSuccess, 1, false},
		{"Z", soa(func(m *dns.Msg) { m.Zero = true }), dns.RcodeSuccess, 1, false},
		{"EDNS", soa(edns(1232, false)), dns.RcodeSuccess, 1, false},
		{"EDNS version 1", soa(edns(1232, false), version1), dns.RcodeBadVers, 0, false},
		{"EDNS option 100", soa(edns(1232, false), option), dns.RcodeSuccess, 1, false},
		{"EDNS flag 0x40", soa(edns(1232, false), func(m *dns.Msg) { m.IsEdns0().Hdr.Ttl |= 0x40 }), dns.RcodeSuccess, 1, false},
		{"EDNS flag 0x80", soa(edns(1232, false), func(m *dns.Msg) { m.IsEdns0().Hdr.Ttl |= 0x80 }), dns.RcodeSuccess, 1, false},
		{"EDNS version 1, flag 0x80", soa(edns(1232, false), version1, func(m *dns.Msg) { m.IsEdns0().Hdr.Ttl |= 0x80 }), dns.RcodeBadVers, 0, false},
		{"EDNS version 1, option 100", soa(edns(1232, false), version1, option), dns.RcodeBadVers, 0, false},
		{"EDNS size 512", soa(edns(512, false)), dns.RcodeSuccess, 1, false},
		{"DO", soa(edns(1232, true)), dns.RcodeSuccess, 1, true},
		{"opcode 15", soa(func(m *dns.Msg) { m.Opcode = 15 }), dns.RcodeNotImplemented, 0, false},
		{"NOTIFY", soa(func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }), dns.RcodeRefused, 0, false},
		{"class CH", query("version.bind.", dns.TypeTXT, func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), dns.RcodeRefused, 0, false},
	}
	for _, tt := range tests {
		for _, network := range []string{"udp", "tcp"} {
			t.Run(tt.name+" "+network, func(t *testing.T) {
				got := s.exchange(t, network, tt.q)
				if got.Rcode != tt.rcode || len(got.Answer) != tt.answer || got.Id != tt.q.Id || got.Opcode != tt.q.Opcode {
					t.Errorf("reply %v; want %s, %d answers", got, dns.RcodeToString[tt.rcode], tt.answer)
				}
				if got.AuthenticatedData || got.Zero || got.RecursionAvailable || got.CheckingDisabled {
					t.Errorf("flags of %v", got.MsgHdr)
				}
				q, opt := tt.q.IsEdns0(), got.IsEdns0()
				switch {
				case q == nil && opt != nil, q != nil && opt == nil:
					t.Errorf("OPT in reply: %v", opt)
				case opt != nil && (opt.Version() != 0 || opt.Do() != tt.do || opt.Z() != 0 || len(opt.Option) != 0):
					t.Errorf("OPT in reply: %v", opt)
				}
			})
		}
	}
}

// The nsid plugin finds our OPT record, and has no reason to set DO.
func TestNSID(t *testing.T) {
	m := newMemory()
	m.put(zoneValues(t, testZone, testApex(), testRecords(t)))
	defer replica.RegisterInProcess(t.Name(), m)()
	s := startServer(t, strings.Replace(corefile(replica.InProcessScheme+t.Name(), ""), "cache", "nsid node-1", 1))
	waitFor(t, m.rev)
	nsid := func(m *dns.Msg) { m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_NSID{Code: dns.EDNS0NSID}} }
	opt := s.exchange(t, "udp", query(testZone+".", dns.TypeSOA, edns(1232, false), nsid)).IsEdns0()
	if opt == nil || opt.Do() || len(opt.Option) != 1 || opt.Option[0].String() != "6e6f64652d31" {
		t.Errorf("OPT = %v, want NSID node-1 and no DO", opt)
	}
}

// Opcodes in a bare header, and what is no query at all.
func TestRawPackets(t *testing.T) {
	m := newMemory()
	m.put(zoneValues(t, testZone, testApex(), testRecords(t)))
	defer replica.RegisterInProcess(t.Name(), m)()
	s := startServer(t, corefile(replica.InProcessScheme+t.Name(), ""))
	waitFor(t, m.rev)
	conn, err := net.Dial("udp", s.udp)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// exchange sends b and returns the reply with the id.
	exchange := func(b []byte, id byte) []byte {
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 2048)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			if buf[0] == 0xee {
				t.Errorf("reply %x to a packet that gets none", buf[:n])
			}
			if buf[0] == 0 && buf[1] == id {
				return buf[:n]
			}
		}
	}
	for opcode := range 16 {
		if opcode == dns.OpcodeQuery || opcode == dns.OpcodeNotify {
			continue
		}
		got := exchange([]byte{0, byte(opcode), byte(opcode << 3), 0, 0, 0, 0, 0, 0, 0, 0, 0}, byte(opcode))
		if rcode := int(got[3] & 0xf); rcode != dns.RcodeNotImplemented {
			t.Errorf("opcode %d: %s", opcode, dns.RcodeToString[rcode])
		}
	}
	// A response and a packet that is too short; neither gets a reply.
	for _, b := range [][]byte{{0xee, 2, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0}, {0xee, 3, 0, 0, 0}} {
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	for id := range 50 {
		probe, err := query(testZone+".", dns.TypeSOA, func(m *dns.Msg) { m.Id = uint16(100 + id) }).Pack()
		if err != nil {
			t.Fatal(err)
		}
		exchange(probe, byte(100+id))
	}
}

// A reload shares the replica of the instance before, and leaves nothing.
func TestReload(t *testing.T) {
	e := startEtcd(t)
	rev := e.put(t, zoneValues(t, testZone, testApex(), testRecords(t)))
	dir := t.TempDir()
	s := startServer(t, corefile(e.endpoint, "data_dir "+dir))
	waitFor(t, rev)
	before := started.all[0].zones[0].replica.Load().Replica
	goroutines := 0
	for i := range 100 {
		next, err := s.Restart(input(corefile(e.endpoint, fmt.Sprintf("data_dir %s\n max_deletion %d", dir, i+1))))
		if err != nil {
			t.Fatal(err)
		}
		s.Instance = next
		s.udp = next.Servers()[0].LocalAddr().String()
		if reply := s.exchange(t, "udp", query(goldenName+"."+testZone+".", dns.TypeTXT)); len(reply.Answer) != 1 {
			t.Fatalf("after reload %d: %v", i, reply)
		}
		if i == 9 {
			goroutines = runtime.NumGoroutine()
		}
	}
	if after := started.all[0].zones[0].replica.Load().Replica; after != before || len(started.all) != 1 {
		t.Errorf("replica %p became %p, %d instances", before, after, len(started.all))
	}
	// The last instance may still be on its way out.
	waitUntil(t, func() bool { return runtime.NumGoroutine() <= goroutines+5 })
	if st := before.Status(); st.Resyncs[replica.CauseStart] != 1 || len(st.Resyncs) != 1 {
		t.Errorf("resyncs = %v, want one at the start", st.Resyncs)
	}
	waitFor(t, e.put(t, zoneValues(t, testZone, testApex(), nil)))
	s.stop()
	if all := replica.Statuses(); len(all) != 0 || len(started.all) != 0 {
		t.Errorf("after the stop: %v, %d instances", all, len(started.all))
	}
}

// A reload that fails leaves the old instance as it was.
func TestReloadFails(t *testing.T) {
	e := startEtcd(t)
	waitRev := e.put(t, zoneValues(t, testZone, testApex(), testRecords(t)))
	s := startServer(t, corefile(e.endpoint, ""))
	waitFor(t, waitRev)
	// forward comes after dkim and fails when the server starts.
	bad := strings.Replace(corefile(e.endpoint, "max_deletion 7"), "cache", "forward . tls://192.0.2.1 {\n tls_servername x\n health_check never\n }\n", 1)
	if _, err := s.Restart(input(bad)); err == nil {
		t.Fatal("reload with a broken Corefile succeeded")
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, port, err := net.SplitHostPort(taken.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		bad := strings.Replace(corefile(e.endpoint, ""), ".:0", "example.org:"+port, 1)
		bad = strings.Replace(bad, testZone, testZone+" other.example.net", 1)
		if _, err := s.Restart(input(bad)); err == nil {
			t.Fatal("reload onto a taken port succeeded")
		}
	}
	if all := replica.Statuses(); len(all) != 1 || len(started.all) != 1 {
		t.Errorf("after failed reloads: %v, %d instances", all, len(started.all))
	}
	if reply := s.exchange(t, "udp", query(goldenName+"."+testZone+".", dns.TypeTXT)); len(reply.Answer) != 1 {
		t.Errorf("after failed reloads: %v", reply)
	}
}

// Nothing of a cluster that cannot be dialled or a directory that cannot be
// written is found out later than at the start.
func TestStartErrors(t *testing.T) {
	for more, want := range map[string]string{
		"endpoint etcd.example.net":                          "Corefile:4 - ",
		"endpoint inprocess:nothing":                         `nothing in this process is called "nothing"`,
		"endpoint http://192.0.2.1:237":                      "use https",
		"endpoint http://127.0.0.1:1\n data_dir /dev/null/x": "/dev/null",
	} {
		text := strings.Replace(corefile("x", ""), "endpoint x", more, 1)
		i, err := caddy.Start(input(text))
		if err == nil {
			i.ShutdownCallbacks()
			t.Errorf("start with %q succeeded", more)
			continue
		}
		if !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "plugin/dkim: ") {
			t.Errorf("start with %q: %v; want %q", more, err, want)
		}
	}
	if all := replica.Statuses(); len(all) != 0 {
		t.Errorf("replicas are left: %v", all)
	}
}
