package bench_test

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/config"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/test/dataset"
	"github.com/dkimzone/dkimzone/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// publicKeys makes keys like those of RSA-2048: their moduli are random octets
// without the small factors that keypair refuses.
func publicKeys(b *testing.B) func() string {
	b.Helper()
	random := rand.NewChaCha8([32]byte{1})
	octets := dataset.New(2).Record(0, false).PublicKey
	modulus := octets[len(octets)-5-256 : len(octets)-5]
	return func() string {
		for {
			_, _ = random.Read(modulus) // never fails
			modulus[0] |= 0x80
			modulus[len(modulus)-1] |= 1
			if _, err := keypair.NewPublicKey(keypair.RSA2048, octets); err == nil {
				return base64.StdEncoding.EncodeToString(octets)
			}
		}
	}
}

// line returns the domain and the selector of line i of a file of keys.
func line(i int) (domain, selector string) {
	return fmt.Sprintf("customer-%07d.example", i/2), fmt.Sprintf("selector%d", i%2+1)
}

// BenchmarkPublishBatch publishes b.N keys in batches of 500, four at a time, in
// this process: for profiles.
func BenchmarkPublishBatch(b *testing.B) {
	const size, parallel = 500, 4
	s := start(b)
	key := publicKeys(b)
	var reqs []*dkimv1.BatchPublishKeysRequest
	for i := range b.N {
		if i%size == 0 {
			reqs = append(reqs, &dkimv1.BatchPublishKeysRequest{Parent: "brands/acme"})
		}
		domain, selector := line(i)
		req := reqs[len(reqs)-1]
		req.Requests = append(req.Requests, &dkimv1.PublishKeyRequest{Parent: "brands/acme/domains/" + domain, Selector: selector, PublicKey: key()})
	}
	work := make(chan *dkimv1.BatchPublishKeysRequest)
	var callers sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	for range parallel {
		callers.Go(func() {
			for req := range work {
				resp, err := s.client.BatchPublishKeys(b.Context(), req)
				if err != nil {
					b.Error(err)
				}
				for _, res := range resp.GetResults() {
					if res.GetError() != nil {
						b.Error(res)
					}
				}
			}
		})
	}
	for _, req := range reqs {
		work <- req
	}
	close(work)
	callers.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
}

// BenchmarkPublishFile publishes a file of b.N keys with dkimctl, and looks at
// the processes: at dkimd standalone, and at dkimd serve with an etcd of one
// member. Every write is synced to disk.
func BenchmarkPublishFile(b *testing.B) {
	b.Run("standalone", func(b *testing.B) {
		dir := filepath.Join(b.TempDir(), "data")
		metrics := harness.Addr(b)
		dkimd := harness.Start(b, "dkimd", harness.Dkimd, nil, "standalone", "--data-dir", dir, "--dns-listen", harness.Addr(b),
			"--grpc-listen", harness.Addr(b), "--http-listen", harness.Addr(b), "--metrics-listen", metrics)
		publishFile(b, filepath.Join(dir, "dkimctl.yaml"), metrics, map[string]*harness.Process{"dkimd": dkimd})
	})
	b.Run("serve", func(b *testing.B) {
		pki, url, peer := harness.NewPKI(b), "https://"+harness.Addr(b), "https://"+harness.Addr(b)
		member := pki.Peer(b, "etcd", harness.Host(), "127.0.0.1")
		etcd := harness.Start(b, "etcd", harness.Etcd, nil, "--name", "etcd", "--data-dir", filepath.Join(b.TempDir(), "etcd"),
			"--listen-client-urls", url, "--advertise-client-urls", url,
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "etcd="+peer,
			"--client-cert-auth", "--trusted-ca-file", member.CA, "--cert-file", member.Cert, "--key-file", member.Key,
			"--peer-client-cert-auth", "--peer-trusted-ca-file", member.CA, "--peer-cert-file", member.Cert, "--peer-key-file", member.Key,
			"--quota-backend-bytes", "8589934592", "--log-level", "error")
		server, user, admin := pki.Server(b, "server", harness.Host()), pki.Client(b, "dkimd", "etcd"), pki.Client(b, "admin", "admin")
		grpc, metrics := harness.Addr(b), harness.Addr(b)
		dkimd := harness.Start(b, "dkimd", harness.Dkimd, nil, "serve",
			"--etcd-endpoint", url, "--etcd-ca", user.CA, "--etcd-cert", user.Cert, "--etcd-key", user.Key,
			"--tls-ca", server.CA, "--tls-cert", server.Cert, "--tls-key", server.Key, "--kek-url", pki.KEK(b),
			"--grpc-listen", grpc, "--http-listen", harness.Addr(b), "--metrics-listen", metrics)
		file := filepath.Join(b.TempDir(), "dkimctl.yaml")
		if err := (config.Client{Address: grpc, CAFile: admin.CA, CertFile: admin.Cert, KeyFile: admin.Key}).Write(file); err != nil {
			b.Fatal(err)
		}
		waitReady(b, metrics)
		dkimctl(b, file, "zone", "create", zone, "--name-server", "ns1."+zone+"=192.0.2.53")
		publishFile(b, file, metrics, map[string]*harness.Process{"dkimd": dkimd, "etcd": etcd})
	})
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

func publishFile(b *testing.B, config, metrics string, processes map[string]*harness.Process) {
	b.Helper()
	waitReady(b, metrics)
	dkimctl(b, config, "brand", "create", "acme")
	waitReady(b, metrics) // the brand took keys of its own from the pool
	file := filepath.Join(b.TempDir(), "keys.tsv")
	writeKeys(b, file)
	before := make(map[string]time.Duration)
	for name, p := range processes {
		before[name] = cpuTime(b, p.PID())
	}
	b.ResetTimer()
	r := dkimctl(b, config, "key", "publish", "--brand", "acme", "--from-file", file)
	b.StopTimer()
	if want := fmt.Sprintf("%d keys are published\n", b.N); r.Stdout != want {
		b.Fatalf("dkimctl wrote %q, want %q", r.Stdout, want)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
	perRecord := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 / float64(b.N) }
	b.ReportMetric(perRecord(r.CPU), "µs-dkimctl/record")
	for name, p := range processes {
		b.ReportMetric(perRecord(cpuTime(b, p.PID())-before[name]), "µs-"+name+"/record")
		b.ReportMetric(statusMiB(b, p.PID(), "RssAnon:"), "MiB-"+name)
		b.ReportMetric(statusMiB(b, p.PID(), "RssFile:"), "MiB-mapped-"+name)
	}
}

func writeKeys(b *testing.B, file string) {
	b.Helper()
	f, err := os.Create(file)
	if err != nil {
		b.Fatal(err)
	}
	w := bufio.NewWriter(f)
	key := publicKeys(b)
	for i := range b.N {
		domain, selector := line(i)
		fmt.Fprintf(w, "%s\t%s\t%s\n", domain, selector, key())
	}
	if err := errors.Join(w.Flush(), f.Close()); err != nil {
		b.Fatal(err)
	}
}

// cpuTime is the user and system time that a process has taken.
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
