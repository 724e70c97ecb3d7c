//go:build linux

package bench_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/pki"
)

// measureFor is how long each figure is measured.
const measureFor = 4 * time.Second

// BenchmarkSigning measures what signers ask of dkimd, with all that answers on one CPU
// and those who ask on another. It wants two CPUs and -benchtime 1x.
func BenchmarkSigning(b *testing.B) {
	if runtime.NumCPU() < 2 {
		b.Skip("there is one CPU only")
	}
	s := newSigning(b)
	b.Run("view", func(b *testing.B) {
		domains := s.metric(b, "dkimd_signing_view_domains")
		b.ReportMetric(domains, "domains")
		b.ReportMetric(s.metric(b, "dkimd_signing_view_bytes")/domains, "record-B/domain")
		b.ReportMetric(statusMiB(b, s.dkimd.PID(), "VmRSS:"), "MiB")
		b.ReportMetric(statusMiB(b, s.dkimd.PID(), "VmHWM:"), "MiB-peak")
	})
	b.Run("idle", s.benchIdle)
	b.Run("resolve", s.benchResolve)
	b.Run("vault", s.benchVault)
	b.Run("sign", s.benchSign)
	b.Run("milter", s.benchMilter)
	b.Run("memory", func(b *testing.B) {
		b.ReportMetric(statusMiB(b, s.dkimd.PID(), "VmRSS:"), "MiB")
		b.ReportMetric(statusMiB(b, s.dkimd.PID(), "VmHWM:"), "MiB-peak")
	})
}

// metric is the value of a metric of dkimd without labels.
func (s *signing) metric(b *testing.B, name string) float64 {
	b.Helper()
	body, err := get("http://" + s.metrics + "/metrics")
	if err != nil {
		return 0
	}
	m := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindSubmatch(body)
	if m == nil {
		return 0
	}
	v, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		b.Fatal(err)
	}
	return v
}

// served is what a histogram of dkimd says of the calls so far: how many took a bound
// at most, by that in seconds.
type served []struct{ bound, calls float64 }

// served reads a histogram, of one of dkimd's methods if it is given.
func (s *signing) served(b *testing.B, name, method string) served {
	b.Helper()
	body, err := get("http://" + s.metrics + "/metrics")
	if err != nil {
		b.Fatal(err)
	}
	labels := ""
	if method != "" {
		labels = `method="` + method + `",`
	}
	var t served
	line := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name+"_bucket{"+labels) + `le="([^"]+)"} (\S+)$`)
	for _, m := range line.FindAllSubmatch(body, -1) {
		bound, err := strconv.ParseFloat(string(m[1]), 64)
		calls, err2 := strconv.ParseFloat(string(m[2]), 64)
		if err := errors.Join(err, err2); err != nil {
			b.Fatal(err)
		}
		t = append(t, struct{ bound, calls float64 }{bound, calls})
	}
	return t
}

// quantile is how long that part of the calls since before took at most, as if those
// between two bounds were spread evenly.
func (t served) quantile(b *testing.B, before served, part float64) time.Duration {
	b.Helper()
	since := func(i int) float64 {
		if len(before) == 0 { // there was none yet
			return t[i].calls
		}
		return t[i].calls - before[i].calls
	}
	if len(t) == 0 || since(len(t)-1) == 0 {
		b.Fatal("dkimd has counted no calls")
	}
	lower, below := 0.0, 0.0
	for i := range t {
		if n := since(i); n >= part*since(len(t)-1) && !math.IsInf(t[i].bound, 1) {
			seconds := lower + (t[i].bound-lower)*(part*since(len(t)-1)-below)/(n-below)
			return time.Duration(seconds * float64(time.Second))
		}
		lower, below = t[i].bound, since(i)
	}
	b.Fatal("calls took longer than the histogram tells apart")
	return 0
}

// load has so many workers ask one question after the other, all that they can, or at a
// rate for all together if it is not 0. The time of an answer is then from when the
// question was due.
func load(b *testing.B, workers int, rate float64, ask func(worker int) error) (perSecond float64, took []time.Duration) {
	b.Helper()
	var mu sync.Mutex
	var failed atomic.Pointer[error]
	var running sync.WaitGroup
	begin := time.Now()
	for w := range workers {
		running.Go(func() {
			var mine []time.Duration
			for n := 0; failed.Load() == nil; n++ {
				due := time.Now()
				if rate > 0 {
					due = begin.Add(time.Duration((float64(n)*float64(workers) + float64(w)) / rate * float64(time.Second)))
					time.Sleep(time.Until(due))
				}
				if due.Sub(begin) >= measureFor {
					break
				}
				if err := ask(w); err != nil {
					failed.Store(&err)
				}
				mine = append(mine, time.Since(due))
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, mine...)
		})
	}
	running.Wait()
	if err := failed.Load(); err != nil {
		b.Fatal(*err)
	}
	slices.Sort(took)
	return float64(len(took)) / time.Since(begin).Seconds(), took
}

// report measures at full load, and the times of answers at half of it, as the caller
// sees them and by what dkimd counted, if that is given; and what each process used for one.
func report(b *testing.B, unit string, each float64, workers int, processes map[string]int, counted func() served, ask func(worker int) error) {
	b.Helper()
	for w := range workers { // connections are made, and what is remembered is
		if err := ask(w); err != nil {
			b.Fatal(err)
		}
	}
	before := make(map[string]time.Duration)
	for name, pid := range processes {
		before[name] = cpuTime(b, pid)
	}
	perSecond, took := load(b, workers, 0, ask)
	b.ReportMetric(perSecond*each, unit+"/s")
	for name, pid := range processes {
		b.ReportMetric(float64((cpuTime(b, pid)-before[name]).Nanoseconds())/1000/float64(len(took))/each, "µs-"+name)
	}
	var first served
	if counted != nil {
		first = counted()
	}
	_, took = load(b, workers, perSecond/2, ask)
	if counted != nil {
		last := counted()
		b.ReportMetric(float64(last.quantile(b, first, .5).Nanoseconds())/1000, "µs-p50-half-dkimd")
		b.ReportMetric(float64(last.quantile(b, first, .99).Nanoseconds())/1000, "µs-p99-half-dkimd")
	}
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs-p50-half")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "µs-p99-half")
	b.ReportMetric(0, "ns/op")
}

// clients are connections of one signer, each with a worker or more.
func (s *signing) clients(b *testing.B, n int) []dkimv1.SignerClient {
	b.Helper()
	var clients []dkimv1.SignerClient
	for range n {
		conn, err := grpc.NewClient(s.grpc, grpc.WithTransportCredentials(credentials.NewTLS(s.tls(b))))
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { conn.Close() })
		clients = append(clients, dkimv1.NewSignerClient(conn))
	}
	return clients
}

// calls reads how long calls of a method took.
func (s *signing) calls(b *testing.B, method string) func() served {
	return func() served { return s.served(b, "dkimd_grpc_call_duration_seconds", method) }
}

func (s *signing) processes() map[string]int {
	return map[string]int{"dkimd": s.dkimd.PID(), "etcd": s.etcd.PID()}
}

// benchIdle measures what dkimd and etcd use while nobody asks anything.
func (s *signing) benchIdle(b *testing.B) {
	before := make(map[string]time.Duration)
	for name, pid := range s.processes() {
		before[name] = cpuTime(b, pid)
	}
	begin := time.Now()
	time.Sleep(measureFor) // what is measured is a span
	for name, pid := range s.processes() {
		b.ReportMetric(float64((cpuTime(b, pid)-before[name]).Milliseconds())/time.Since(begin).Seconds(), "ms/s-"+name)
	}
	b.ReportMetric(0, "ns/op")
}

func (s *signing) benchResolve(b *testing.B) {
	clients := s.clients(b, 4)
	report(b, "requests", 1, 16, s.processes(), s.calls(b, dkimv1.Signer_ResolveSigningKeys_FullMethodName), func(w int) error {
		resp, err := clients[w%4].ResolveSigningKeys(context.Background(), &dkimv1.ResolveSigningKeysRequest{
			Name: "brands/-/domains/" + edDomain(rand.IntN(*signingDomains)),
		})
		if err == nil && len(resp.GetKeys()) != 1 {
			err = errors.New("no key signs")
		}
		return err
	})
}

func (s *signing) benchVault(b *testing.B) {
	config, err := pki.AnonymousTLS(s.ca, "")
	if err != nil {
		b.Fatal(err)
	}
	// Each request waits for the disk, where its line of the audit log goes together with others'.
	const workers = 64
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig: config, MaxIdleConnsPerHost: workers, TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}, // HTTP/1.1
	}}
	defer client.CloseIdleConnections()
	counted := func() served { return s.served(b, "dkimd_vault_request_duration_seconds", "") }
	report(b, "requests", 1, workers, s.processes(), counted, func(int) error {
		req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "https://"+s.http+"/vault/v1/dkim/"+edDomain(rand.IntN(*signingDomains)), nil)
		if err != nil {
			return err
		}
		req.Header.Set("X-Vault-Token", s.token)
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err == nil && (resp.StatusCode != http.StatusOK || !bytes.Contains(body, []byte(`"alg":"ed25519"`))) {
			err = fmt.Errorf("%s: %s", resp.Status, body)
		}
		return err
	})
}

func (s *signing) benchSign(b *testing.B) {
	clients := s.clients(b, 4)
	for _, domain := range []string{rsaDomain, edDomain(1)} {
		resp, err := clients[0].ResolveSigningKeys(b.Context(), &dkimv1.ResolveSigningKeysRequest{Name: "brands/-/domains/" + domain})
		if err != nil || len(resp.GetKeys()) != 1 {
			b.Fatal(resp, err)
		}
		algorithm, _, _ := strings.Cut(strings.ToLower(strings.TrimPrefix(resp.GetKeys()[0].GetAlgorithm().String(), "KEY_ALGORITHM_")), " ")
		for _, n := range []int{1, 32} {
			req := &dkimv1.SignRequest{}
			for i := range n {
				digest := sha256.Sum256([]byte(fmt.Sprint(i)))
				req.Digests = append(req.Digests, &dkimv1.SignRequest_Digest{Key: resp.GetKeys()[0].GetKey(), Digest: digest[:]})
			}
			b.Run(fmt.Sprintf("%s/batch=%d", algorithm, n), func(b *testing.B) {
				report(b, "signatures", float64(n), max(4, 16/n), s.processes(), s.calls(b, dkimv1.Signer_Sign_FullMethodName), func(w int) error {
					resp, err := clients[w%4].Sign(context.Background(), req)
					if err == nil && len(resp.GetResults()[0].GetSignature()) == 0 {
						err = fmt.Errorf("%v", resp)
					}
					return err
				})
			})
		}
	}
	s.benchRaw(b)
}

// benchRaw measures what signs without dkimd: on the CPU that dkimd is measured on.
func (s *signing) benchRaw(b *testing.B) {
	pin(b, os.Getpid(), measuredCPU)
	defer pin(b, os.Getpid(), otherCPU)
	digest := sha256.Sum256(nil)
	key, err := readPEM(s.rsaPEM)
	if err != nil {
		b.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(nil)
	if err != nil {
		b.Fatal(err)
	}
	for name, sign := range map[string]func() error{
		"rsa2048": func() error { _, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, digest[:]); return err },
		"ed25519": func() error { _, err := ed.Sign(nil, digest[:], crypto.Hash(0)); return err },
	} {
		b.Run(name+"/go", func(b *testing.B) {
			perSecond, _ := load(b, 1, 0, func(int) error { return sign() })
			b.ReportMetric(perSecond, "signatures/s")
		})
	}
	for _, name := range []string{"rsa2048", "ed25519"} {
		b.Run(name+"/openssl", func(b *testing.B) {
			out, err := exec.Command("openssl", "speed", "-mr", "-seconds", "3", name).Output()
			m := regexp.MustCompile(`(?m)^\+F[26]:\d+:\d+:(?:Ed25519:)?([0-9.]+):`).FindSubmatch(out)
			if err != nil || m == nil {
				b.Skipf("%v: %s", err, out)
			}
			v, err := strconv.ParseFloat(string(m[1]), 64)
			if err != nil {
				b.Fatal(err)
			}
			if v < 1 { // seconds for one
				v = 1 / v
			}
			b.ReportMetric(v, "signatures/s")
		})
	}
}

func unmarshalJSON(b *testing.B, text string, into proto.Message) {
	b.Helper()
	if err := protojson.Unmarshal([]byte(text), into); err != nil {
		b.Fatal(err)
	}
}

func writePEM(file string, pair *keypair.KeyPair) error {
	der, err := pair.PKCS8()
	if err != nil {
		return err
	}
	return os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

func readPEM(file string) (*rsa.PrivateKey, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("no PEM in " + file)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	return key.(*rsa.PrivateKey), nil
}

// somePair is one of a few key pairs.
func somePair(i int) (*keypair.KeyPair, error) {
	pairs, err := fewPairs()
	if err != nil {
		return nil, err
	}
	return pairs[i%len(pairs)], nil
}

var fewPairs = sync.OnceValues(func() ([]*keypair.KeyPair, error) {
	var pairs []*keypair.KeyPair
	for range 64 {
		p, err := keypair.Generate(keypair.Ed25519)
		if err != nil {
			return nil, err
		}
		pairs = append(pairs, p)
	}
	return pairs, nil
})
