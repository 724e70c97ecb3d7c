//go:build interop

package interop_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/dns"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/test/harness"
)

// delv and unbound validate what the dnssec plugin makes of our answers.
func TestDNSSEC(t *testing.T) {
	etcd := harness.StartCluster(t, harness.NewPKI(t))
	client := etcd.Client(t, "dkimd")
	apex := &schema.Apex{
		NameServers: []schema.NameServer{{Name: "ns1." + zone, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}},
		Mailbox:     "hostmaster.example.org", ApexTTL: 3600, Refresh: 7200, Retry: 900, Expire: 1209600, NegativeTTL: 300, RecordTTL: 1800,
	}
	change(t, client, rand.New(rand.NewPCG(1, 2)), apex)
	rec, err := schema.PublicRecord{TTL: 600, PublicKey: make([]byte, 294)}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	value, err := apex.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	const owner = "selector1-spamtrap-dk._domainkey"
	if _, err := client.Txn(t.Context()).Then(clientv3.OpPut(schema.ApexKey(zone), string(value)),
		clientv3.OpPut(schema.RecordKey(zone, owner), string(rec))).Commit(); err != nil {
		t.Fatal(err)
	}

	key := &dns.DNSKEY{
		Hdr:   dns.RR_Header{Name: zone + ".", Rrtype: dns.TypeDNSKEY, Class: dns.ClassINET, Ttl: 3600},
		Flags: 257, Protocol: 3, Algorithm: dns.ECDSAP256SHA256,
	}
	private, err := key.Generate(256)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	base := filepath.Join(dir, fmt.Sprintf("K%s.+013+%05d", zone, key.KeyTag()))
	write(t, base+".key", key.String()+"\n")
	write(t, base+".private", key.PrivateKeyString(private))
	n := &server{name: "node", addr: harness.Addr(t)}
	host, port, _ := net.SplitHostPort(n.addr)
	cert := etcd.PKI.Client(t, "dns", "etcd")
	harness.Start(t, n.name, harness.CoreDNS, nil, "-conf", write(t, filepath.Join(dir, "Corefile"), fmt.Sprintf(`%s:%s {
    bind %s
    dnssec {
        key file %s
    }
    dkim {
        endpoint %s
        tls %s %s %s
    }
    errors
}
`, zone, port, host, base, strings.Join(etcd.Endpoints(), " "), cert.Cert, cert.Key, cert.CA)))
	harness.Eventually(t, limit, "the zone is served", func() error { _, err := n.soa(t.Context()); return err })

	anchors := write(t, filepath.Join(dir, "anchors"), fmt.Sprintf("trust-anchors { %q static-key 257 3 13 %q; };\n", zone+".", key.PublicKey))
	unbound := func(caps string) string {
		return write(t, filepath.Join(dir, "unbound-"+caps+".conf"), fmt.Sprintf(`server:
    chroot: ""
    username: ""
    trust-anchor-file: "%s"
    do-not-query-localhost: no
    use-caps-for-id: %s
    qname-minimisation: yes
stub-zone:
    name: "%s"
    stub-addr: %s@%s
`, base+".key", caps, zone, host, port))
	}
	plain, caps := unbound("no"), unbound("yes")
	for _, tt := range []struct{ name, qname, qtype string }{
		{"key", owner + "." + zone, "TXT"},
		{"key in mixed case", "SeLector1-Spamtrap-DK._DomainKey.KEYS.example.NET", "TXT"},
		{"SOA", zone, "SOA"},
		{"name server", "ns1." + zone, "A"},
		{"no such type", owner + "." + zone, "A"},
		{"no such type in mixed case", strings.ToUpper(owner) + "." + zone, "MX"},
		{"no such name", "x._domainkey." + zone, "TXT"},
		{"no such name in mixed case", "Y._DomainKey." + zone, "TXT"},
		{"empty non-terminal", "_domainkey." + zone, "TXT"},
	} {
		out, err := exec.Command("delv", "@"+host, "-p", port, "-a", anchors, "+root="+zone, tt.qname, tt.qtype).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "fully validated") {
			t.Errorf("delv, %s: %v\n%s", tt.name, err, out)
		}
		for _, conf := range []string{plain, caps} {
			out, err := exec.Command("unbound-host", "-C", conf, "-v", "-t", tt.qtype, tt.qname).CombinedOutput()
			if err != nil || !strings.Contains(string(out), "(secure)") {
				t.Errorf("unbound-host with %s, %s: %v\n%s", filepath.Base(conf), tt.name, err, out)
			}
		}
	}
}
