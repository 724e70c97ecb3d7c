package bench_test

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
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
			text := base64.StdEncoding.EncodeToString(octets)
			if _, err := keypair.ParsePublicKey([]byte(text)); err == nil {
				return text
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
func BenchmarkPublishBatch(b *testing.B) { publishBatches(b, start(b)) }

// BenchmarkPublishBatchQuota does so in a brand whose domains are counted.
func BenchmarkPublishBatchQuota(b *testing.B) {
	s := start(b)
	s.setQuota(b)
	publishBatches(b, s)
}

func publishBatches(b *testing.B, s *standalone) {
	b.Helper()
	const size, parallel = 500, 4
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
// the processes. Every write is synced to disk.
func BenchmarkPublishFile(b *testing.B) {
	eachInstallation(b, func(b *testing.B, in *installation) {
		file := filepath.Join(b.TempDir(), "keys.tsv")
		writeKeys(b, file)
		in.measure(b, fmt.Sprintf("%d keys are published\n", b.N), "records", "key", "publish", "--brand", "acme", "--from-file", file)
	})
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
