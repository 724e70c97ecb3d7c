//go:build interop

package interop_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/dkimzone/dkimzone/internal/prober"
	"github.com/dkimzone/dkimzone/test/harness"
	"github.com/dkimzone/dkimzone/test/peers"
)

const (
	cnameTarget = "selector1-spamtrap-dk._domainkey." + zone
	cnameKey    = "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
	cnameSOA    = "@ 300 IN SOA ns.example. hostmaster.example. 1 3600 600 86400 60\n@ 300 IN NS ns.example.\n$TTL 300\n"
)

// customerZone has a selector for each class that a server can be made to show.
const customerZone = cnameSOA + `
ok._domainkey CNAME ` + cnameTarget + `.
wrong._domainkey CNAME web.hoster.net.
gone._domainkey CNAME gone.hoster.net.
other._domainkey CNAME selector1-other._domainkey.` + zone + `.
owner._domainkey.spamtrap.dk CNAME ` + cnameTarget + `.
suffix._domainkey CNAME ` + cnameTarget + `
flat._domainkey TXT "` + cnameKey + `"
stale._domainkey TXT "v=DKIM1; k=rsa; p=AAAA"
large._domainkey TXT "v=DKIM1; p=" LARGE
address._domainkey A 203.0.113.7
address6._domainkey AAAA 2001:db8::7
loop._domainkey CNAME back.hoster.net.
chain._domainkey CNAME alias.hoster.net.
_domainkey.dname DNAME _domainkey.hoster.net.
_domainkey.sub NS ns.sub
ns.sub A NSD
*.wild TXT "v=spf1 -all"
_dkimzone-challenge TXT "token"
`

// TestCNAMEs has a Knot with the root and the top-level domains, another with
// customers' zones and an NSD with a hoster's, each at an address of its own
// and, as delegations have no port, at port 53. BIND, which listens only at
// addresses that are set up, has a zone that is known by configuration.
func TestCNAMEs(t *testing.T) {
	hosts := map[string]string{}
	for i, name := range []string{"root", "knotd", "nsd", "nobody"} {
		hosts[name] = fmt.Sprintf("127.%d.%d.%d", 128+i, os.Getpid()>>8&255, os.Getpid()&255)
	}
	port, err := peers.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	bind := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port))
	var delegations strings.Builder
	for _, d := range []struct {
		domain  string
		servers []string
	}{
		{"spamtrap", []string{"knotd"}},
		{"disagree", []string{"knotd", "nsd"}},
		{"half", []string{"knotd", "root", "nobody"}}, // root is lame for it, nobody is not there
		{"lame", []string{"nsd"}},
		{"unreachable", []string{"nobody"}},
	} {
		for _, s := range d.servers {
			fmt.Fprintf(&delegations, "%[1]s NS %[2]s.%[1]s\n%[2]s.%[1]s A %[3]s\n", d.domain, s, hosts[s])
		}
	}
	large := strings.TrimSpace(strings.Repeat(`"`+strings.Repeat("A", 200)+`" `, 10))
	files := map[string]map[string]string{
		"root": {
			".":   "$ORIGIN .\n" + cnameSOA + "dk NS ns.dk\nns.dk A " + hosts["root"] + "\nnet NS ns.net\nns.net A " + hosts["root"] + "\n",
			"dk":  "$ORIGIN dk.\n" + cnameSOA + delegations.String(),
			"net": "$ORIGIN net.\n" + cnameSOA + "hoster NS ns.hoster\nns.hoster A " + hosts["nsd"] + "\n",
		},
		"named": {
			"bind.dk": "$ORIGIN bind.dk.\n" + cnameSOA + "ok._domainkey CNAME " + cnameTarget + ".\nchain._domainkey CNAME alias.hoster.net.\nowner._domainkey.bind.dk CNAME " + cnameTarget + ".\n",
		},
		"knotd": {
			"spamtrap.dk": "$ORIGIN spamtrap.dk.\n" + strings.NewReplacer("LARGE", large, "NSD", hosts["nsd"]).Replace(customerZone),
			"disagree.dk": "$ORIGIN disagree.dk.\n" + cnameSOA + "ok._domainkey CNAME " + cnameTarget + ".\n",
			"half.dk":     "$ORIGIN half.dk.\n" + cnameSOA + "ok._domainkey CNAME " + cnameTarget + ".\n",
		},
		"nsd": {
			"disagree.dk":                "$ORIGIN disagree.dk.\n" + cnameSOA,
			"_domainkey.sub.spamtrap.dk": "$ORIGIN _domainkey.sub.spamtrap.dk.\n" + cnameSOA + "ok CNAME " + cnameTarget + ".\n",
			"hoster.net": "$ORIGIN hoster.net.\n" + cnameSOA + "web A 203.0.113.9\nalias CNAME " + cnameTarget +
				".\nback CNAME loop._domainkey.spamtrap.dk.\nok._domainkey CNAME " + cnameTarget + ".\n",
		},
	}
	startAuthority(t, "knotd", hosts["root"]+":53", files["root"])
	startAuthority(t, "knotd", hosts["knotd"]+":53", files["knotd"])
	startAuthority(t, "nsd", hosts["nsd"]+":53", files["nsd"])
	startAuthority(t, "named", bind.String(), files["named"])

	p, err := prober.New(prober.Config{
		RootHints: []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr(hosts["root"]), 53)}, PrivateAddresses: true, Timeout: time.Second,
		Stubs: map[string][]netip.AddrPort{"bind.dk": {bind}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]prober.Class{
		"ok._domainkey.spamtrap.dk":       prober.OK,
		"ok._domainkey.sub.spamtrap.dk":   prober.OK,
		"ok._domainkey.half.dk":           prober.OK,
		"ok._domainkey.bind.dk":           prober.OK,
		"chain._domainkey.bind.dk":        prober.IndirectOK,
		"none._domainkey.bind.dk":         prober.Missing,
		"owner._domainkey.bind.dk":        prober.DoubledSuffix,
		"chain._domainkey.spamtrap.dk":    prober.IndirectOK,
		"ok._domainkey.dname.spamtrap.dk": prober.IndirectOK,
		"none._domainkey.spamtrap.dk":     prober.Missing,
		"ok._domainkey.nowhere.dk":        prober.Missing,
		"ok._domainkey.wild.spamtrap.dk":  prober.Missing,
		"wrong._domainkey.spamtrap.dk":    prober.WrongTarget,
		"gone._domainkey.spamtrap.dk":     prober.WrongTarget,
		"other._domainkey.spamtrap.dk":    prober.OtherDomainTarget,
		"owner._domainkey.spamtrap.dk":    prober.DoubledSuffix,
		"suffix._domainkey.spamtrap.dk":   prober.DoubledSuffix,
		"flat._domainkey.spamtrap.dk":     prober.FlattenedTXT,
		"stale._domainkey.spamtrap.dk":    prober.StaleTXT,
		"large._domainkey.spamtrap.dk":    prober.StaleTXT,
		"address._domainkey.spamtrap.dk":  prober.ProxiedAddress,
		"address6._domainkey.spamtrap.dk": prober.ProxiedAddress,
		"loop._domainkey.spamtrap.dk":     prober.Loop,
		"ok._domainkey.disagree.dk":       prober.ServersDisagree,
		"ok._domainkey.lame.dk":           prober.Lame,
		"ok._domainkey.unreachable.dk":    prober.Unreachable,
	} {
		t.Run(name, func(t *testing.T) {
			got := p.Alias(t.Context(), prober.AliasQuestion{Owner: name, Target: cnameTarget, Zone: zone, Record: cnameKey})
			if got.Class != want || got.Finding != want.Finding() {
				t.Errorf("got %+v, want %s", got, want)
			}
			t.Logf("%s: %s", got.Class, got.Hint)
		})
	}
	if ok, servers := p.Challenge(t.Context(), "spamtrap.dk", "token"); !ok {
		t.Errorf("the challenge is not found: %+v", servers)
	}
}

// startAuthority starts a program of the system at addr with the zones, given as
// master files, and waits until it has them all.
func startAuthority(t *testing.T, name, addr string, zones map[string]string) {
	t.Helper()
	dir := t.TempDir()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	var config strings.Builder
	switch name {
	case "named":
		fmt.Fprintf(&config, `options { directory "%[1]s"; pid-file "%[1]s/named.pid"; session-keyfile "%[1]s/session.key";
  listen-on port %[3]s { %[2]s; }; listen-on-v6 { none; }; recursion no; notify no; dnssec-validation no; };
controls { };
`, dir, host, port)
	case "knotd":
		fmt.Fprintf(&config, "server:\n    listen: %[2]s@%[3]s\n    rundir: %[1]s\n    user: root\ndatabase:\n    storage: %[1]s\nzone:\n", dir, host, port)
	case "nsd":
		fmt.Fprintf(&config, `server:
    ip-address: %[2]s@%[3]s
    username: root
    zonesdir: %[1]s
    database: ""
    xfrdir: %[1]s
    xfrdfile: %[1]s/xfrd.state
    zonelistfile: %[1]s/zone.list
    pidfile: %[1]s/nsd.pid
remote-control:
    control-enable: no
`, dir, host, port)
	}
	n := 0
	for zone, text := range zones {
		n++
		file := write(t, filepath.Join(dir, fmt.Sprintf("zone%d", n)), text)
		switch name {
		case "named":
			fmt.Fprintf(&config, "zone \"%s\" { type primary; file \"%s\"; };\n", zone, file)
		case "knotd":
			fmt.Fprintf(&config, "  - domain: %s\n    file: %s\n    zonefile-sync: -1\n    journal-content: none\n", zone, file)
		case "nsd":
			fmt.Fprintf(&config, "zone:\n    name: %s\n    zonefile: %s\n", zone, file)
		}
	}
	file := write(t, filepath.Join(dir, name+".conf"), config.String())
	switch name {
	case "named":
		harness.StartSystem(t, "/usr/sbin/named", "-g", "-c", file)
	case "knotd":
		harness.StartSystem(t, "/usr/sbin/knotd", "-c", file)
	case "nsd":
		harness.StartSystem(t, "/usr/sbin/nsd", "-d", "-c", file)
	}
	client := dns.Client{Timeout: time.Second}
	for zone := range zones {
		harness.Eventually(t, limit, name+" has "+zone, func() error {
			reply, _, err := client.ExchangeContext(t.Context(), new(dns.Msg).SetQuestion(dns.Fqdn(zone), dns.TypeSOA), addr)
			if err == nil && (reply.Rcode != dns.RcodeSuccess || !reply.Authoritative) {
				err = fmt.Errorf("got %v", reply)
			}
			return err
		})
	}
}
