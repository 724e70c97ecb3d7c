package bench_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/dkimzone/dkimzone/internal/config"
	"github.com/dkimzone/dkimzone/test/harness"
)

// installation is running processes, and a configuration of dkimctl with which
// an admin calls them. It has an empty brand "acme".
type installation struct {
	config    string
	dataDir   string // of etcd
	processes map[string]*harness.Process
}

// eachInstallation runs bench with dkimd standalone, and with dkimd serve and an
// etcd of one member. Customers' names do not exist in the DNS they look at.
func eachInstallation(b *testing.B, bench func(*testing.B, *installation)) {
	b.Helper()
	b.Run("standalone", func(b *testing.B) {
		dir := filepath.Join(b.TempDir(), "data")
		metrics := harness.Addr(b)
		dkimd := harness.Start(b, "dkimd", harness.Dkimd, nil, "standalone", "--data-dir", dir, "--dns-listen", harness.Addr(b), "--check-resolver", emptyDNS(b),
			"--grpc-listen", harness.Addr(b), "--http-listen", harness.Addr(b), "--metrics-listen", metrics)
		in := &installation{filepath.Join(dir, "dkimctl.yaml"), dir, map[string]*harness.Process{"dkimd": dkimd}}
		in.prepare(b, metrics)
		bench(b, in)
	})
	b.Run("serve", func(b *testing.B) {
		pki, url, peer := harness.NewPKI(b), "https://"+harness.Addr(b), "https://"+harness.Addr(b)
		member, dir := pki.Peer(b, "etcd", harness.Host(), "127.0.0.1"), filepath.Join(b.TempDir(), "etcd")
		etcd := harness.Start(b, "etcd", harness.Etcd, nil, "--name", "etcd", "--data-dir", dir,
			"--listen-client-urls", url, "--advertise-client-urls", url,
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "etcd="+peer,
			"--client-cert-auth", "--trusted-ca-file", member.CA, "--cert-file", member.Cert, "--key-file", member.Key,
			"--peer-client-cert-auth", "--peer-trusted-ca-file", member.CA, "--peer-cert-file", member.Cert, "--peer-key-file", member.Key,
			"--quota-backend-bytes", "8589934592", "--auto-compaction-retention", "5m", "--log-level", "error")
		server, user, admin := pki.Server(b, "server", harness.Host()), pki.Client(b, "dkimd", "etcd"), pki.Client(b, "admin", "admin")
		grpc, metrics := harness.Addr(b), harness.Addr(b)
		dkimd := harness.Start(b, "dkimd", harness.Dkimd, nil, "serve",
			"--etcd-endpoint", url, "--etcd-ca", user.CA, "--etcd-cert", user.Cert, "--etcd-key", user.Key,
			"--tls-ca", server.CA, "--tls-cert", server.Cert, "--tls-key", server.Key, "--kek-url", pki.KEK(b), "--check-resolver", emptyDNS(b),
			"--grpc-listen", grpc, "--http-listen", harness.Addr(b), "--metrics-listen", metrics)
		file := filepath.Join(b.TempDir(), "dkimctl.yaml")
		if err := (config.Client{Address: grpc, CAFile: admin.CA, CertFile: admin.Cert, KeyFile: admin.Key}).Write(file); err != nil {
			b.Fatal(err)
		}
		waitReady(b, metrics)
		dkimctl(b, file, "zone", "create", zone, "--name-server", "ns1."+zone+"=192.0.2.53")
		in := &installation{file, dir, map[string]*harness.Process{"dkimd": dkimd, "etcd": etcd}}
		in.prepare(b, metrics)
		bench(b, in)
	})
}

func (in *installation) prepare(b *testing.B, metrics string) {
	b.Helper()
	waitReady(b, metrics)
	dkimctl(b, in.config, "brand", "create", "acme")
	waitReady(b, metrics) // the brand took keys of its own from the pool
}

// measure runs a dkimctl command that does b.N things and prints want.
func (in *installation) measure(b *testing.B, want, things string, args ...string) {
	b.Helper()
	before := make(map[string]time.Duration)
	for name, p := range in.processes {
		before[name] = cpuTime(b, p.PID())
	}
	b.ResetTimer()
	r := dkimctl(b, in.config, args...)
	b.StopTimer()
	if r.Stdout != want {
		b.Fatalf("dkimctl wrote %q, want %q", r.Stdout, want)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), things+"/s")
	per := strings.TrimSuffix(things, "s")
	each := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 / float64(b.N) }
	b.ReportMetric(each(r.CPU), "µs-dkimctl/"+per)
	for name, p := range in.processes {
		b.ReportMetric(each(cpuTime(b, p.PID())-before[name]), "µs-"+name+"/"+per)
		b.ReportMetric(statusMiB(b, p.PID(), "RssAnon:"), "MiB-"+name)
		b.ReportMetric(statusMiB(b, p.PID(), "RssFile:"), "MiB-mapped-"+name)
	}
	b.ReportMetric(in.stored(b), "MiB-stored")
}

// stored is the size of etcd's database.
func (in *installation) stored(b *testing.B) float64 {
	b.Helper()
	var size int64
	err := filepath.WalkDir(in.dataDir, func(path string, _ os.DirEntry, err error) error {
		if err != nil || filepath.Base(path) != "db" {
			return err
		}
		info, err := os.Stat(path)
		if err == nil {
			size += info.Size()
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	const mib = 1 << 20
	return float64(size) / mib
}

// emptyDNS is the address of a resolver for which no name exists.
func emptyDNS(b *testing.B) string {
	b.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, req *dns.Msg) {
		_ = w.WriteMsg(new(dns.Msg).SetRcode(req, dns.RcodeNameError)) // who does not get it asks again
	})}
	done := make(chan error, 1)
	go func() { done <- server.ActivateAndServe() }()
	b.Cleanup(func() {
		_ = server.Shutdown() // ends ActivateAndServe, whose error counts
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	return conn.LocalAddr().String()
}

func dkimctl(b *testing.B, config string, args ...string) harness.Result {
	b.Helper()
	r := harness.Run(b, b.TempDir(), harness.Dkimctl, []string{"DKIMCTL_CONFIG=" + config}, args...)
	if r.Code != 0 {
		b.Fatalf("dkimctl %s: %s", strings.Join(args, " "), r.Stderr)
	}
	return r
}

// waitReady returns when dkimd is ready and its pool of RSA keys is full, so that
// it does not use a CPU.
func waitReady(b *testing.B, metrics string) {
	b.Helper()
	stock := regexp.MustCompile(`(?m)^dkimd_keygen_stock\{algorithm="rsa2048"\} (\d+)$`)
	harness.Eventually(b, time.Minute, "dkimd is ready", func() error {
		if _, err := get("http://" + metrics + "/readyz"); err != nil {
			return err
		}
		body, err := get("http://" + metrics + "/metrics")
		if err != nil {
			return err
		}
		m := stock.FindSubmatch(body)
		if m == nil || number(b, string(m[1])) < 16*runtime.GOMAXPROCS(0) {
			return fmt.Errorf("stock of RSA keys: %q", m)
		}
		return nil
	})
}

func get(url string) ([]byte, error) {
	resp, err := http.Get(url)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return body, errors.Join(err, resp.Body.Close())
}

func cpuTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:])) // a name may hold anything
	const tick = 10 * time.Millisecond                                        // USER_HZ is 100 wherever Go runs
	return time.Duration(number(b, fields[11])+number(b, fields[12])) * tick
}

// statusMiB is a size in /proc/PID/status.
func statusMiB(b *testing.B, pid int, name string) float64 {
	b.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), name)
	return float64(number(b, strings.Fields(rest)[0])) / 1024
}

func number(b *testing.B, s string) int {
	b.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		b.Fatal(err)
	}
	return n
}
