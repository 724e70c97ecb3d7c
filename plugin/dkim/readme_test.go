package dkim

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coredns/coredns/core/dnsserver"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"

	"github.com/dkimzone/dkimzone/internal/replica"
)

func readme(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Each Corefile of the README starts, with its files elsewhere and its ports
// free ones.
func TestReadmeCorefiles(t *testing.T) {
	dir := t.TempDir()
	writeCertificate(t, dir)
	defer func(port string) { dnsserver.Port = port }(dnsserver.Port)
	dnsserver.Port = "0"
	blocks := regexp.MustCompile("(?ms)^~~~ corefile\n(.*?)^~~~$").FindAllStringSubmatch(readme(t), -1)
	if len(blocks) != 4 {
		t.Fatalf("%d Corefiles, want 4", len(blocks))
	}
	for _, b := range blocks {
		text := strings.NewReplacer("/etc/coredns", dir, "/var/lib/coredns", dir, ":9153", ":0", ":8181", ":0").Replace(b[1])
		s := startServer(t, text)
		if got := len(replica.Statuses()); got == 0 {
			t.Errorf("no replica runs for\n%s", text)
		}
		s.stop()
	}
}

func TestReadmeSections(t *testing.T) {
	text, at := readme(t), 0
	for _, section := range []string{"# dkim\n", "\n## Name\n", "\n## Description\n", "\n## Syntax\n", "\n## Examples\n", "\n## Metrics\n", "\n## Ready\n", "\n## Bugs\n"} {
		i := strings.Index(text[at:], section)
		if i < 0 {
			t.Fatalf("section %q is missing or out of order", section)
		}
		at += i
	}
}

// What the README says of metrics is what there is.
func TestMetrics(t *testing.T) {
	m := newMemory()
	m.put(zoneValues(t, testZone, testApex(), testRecords(t)))
	d := newHandler(t, m, testZone)
	ask(t, d, query(goldenName+"."+testZone+".", dns.TypeTXT), false)
	writeToServed.WithLabelValues(testZone + ".").Observe(0.002)
	waitUntil(t, func() bool { return d.zones[0].replica.Load().Status().State == replica.Synced })

	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	text := readme(t)
	values := make(map[string]float64)
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "coredns_dkim_") {
			continue
		}
		if !strings.Contains(text, "`"+f.GetName()+"{zone") {
			t.Errorf("metric %s is not in the README", f.GetName())
		}
		problems, err := promlint.NewWithMetricFamilies([]*dto.MetricFamily{f}).Lint()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range problems {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			values[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	for _, match := range regexp.MustCompile("`(coredns_dkim_[a-z_]+)\\{").FindAllStringSubmatch(text, -1) {
		if !slices.ContainsFunc(families, func(f *dto.MetricFamily) bool { return f.GetName() == match[1] }) {
			t.Errorf("metric %s of the README is not there", match[1])
		}
	}
	for name, want := range map[string]float64{
		"coredns_dkim_records keys.example.net.":              6,
		"coredns_dkim_revision keys.example.net.":             2,
		"coredns_dkim_held_deletions keys.example.net.":       0,
		"coredns_dkim_replica_state synced keys.example.net.": 1,
		"coredns_dkim_replica_state held keys.example.net.":   0,
		"coredns_dkim_resyncs_total start keys.example.net.":  1,
	} {
		if got, ok := values[name]; !ok || got != want {
			t.Errorf("%s = %v, %v; want %v", name, got, ok, want)
		}
	}
}

func TestQueriesAreCounted(t *testing.T) {
	m := newMemory()
	m.put(zoneValues(t, testZone, testApex(), testRecords(t)))
	d := newHandler(t, m, testZone)
	for r, q := range map[result]*dns.Msg{
		resultSuccess:  query(goldenName+"."+testZone+".", dns.TypeTXT),
		resultNoData:   query("_domainkey."+testZone+".", dns.TypeTXT),
		resultNXDomain: query("x."+testZone+".", dns.TypeTXT),
		resultRefused:  query(testZone+".", dns.TypeAXFR),
		resultNotImp:   query(testZone+".", dns.TypeMAILA),
		resultFormErr:  query(testZone+".", dns.TypeTSIG),
	} {
		before := counted(t, d)
		ask(t, d, q, false)
		want := before
		want[r]++
		if got := counted(t, d); got != want {
			t.Errorf("%s: counters %v, want %v", resultNames[r], got, want)
		}
	}
}

func counted(t *testing.T, d *DKIM) (values [resultCount]float64) {
	t.Helper()
	for i, c := range d.zones[0].counts {
		var m dto.Metric
		if err := c.Write(&m); err != nil {
			t.Fatal(err)
		}
		values[i] = m.GetCounter().GetValue()
	}
	return values
}

// writeCertificate writes a client certificate that is its own authority.
func writeCertificate(t *testing.T, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	cert, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"node.crt": {Type: "CERTIFICATE", Bytes: cert}, "ca.crt": {Type: "CERTIFICATE", Bytes: cert}, "node.key": {Type: "PRIVATE KEY", Bytes: der},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
