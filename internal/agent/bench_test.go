package agent_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dkimzone/dkimzone/internal/agent"
	"github.com/dkimzone/dkimzone/signer"
)

var (
	benchDomains = flag.String("agent-domains", "1000", "how many domains BenchmarkAgent has: numbers with commas between")
	benchDir     = flag.String("agent-dir", "", "an empty directory for the files of BenchmarkAgent, on the disk that is meant; default a temporary one")
)

// BenchmarkAgent measures, for many domains with an RSA-2048 key that signs and one that
// stands by, what it takes to write all files, to follow the rotation of one domain, and
// to start anew. The source is in this process: what dkimd does is not in it.
func BenchmarkAgent(b *testing.B) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		b.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(rsaKey)
	if err != nil {
		b.Fatal(err)
	}
	for domains := range strings.SplitSeq(*benchDomains, ",") {
		n, err := strconv.Atoi(domains)
		if err != nil {
			b.Fatal(err)
		}
		for _, format := range []string{"opendkim", "exim", "rspamd"} {
			b.Run(fmt.Sprintf("%s/%d", format, n), func(b *testing.B) { benchAgent(b, format, n, der) })
		}
	}
}

// usage is what the process has used.
func usage(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func benchAgent(b *testing.B, format string, domains int, der []byte) {
	w := newWorld(b, format)
	dir, err := os.MkdirTemp(*benchDir, "agent") //nolint:usetesting // on the disk that is meant
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			b.Error(err)
		}
	})
	w.dir, w.der = filepath.Join(dir, "files"), der
	if err := os.WriteFile(w.dir+".cache.key", make([]byte, 32), 0o600); err != nil {
		b.Fatal(err)
	}
	name := func(i int) string { return fmt.Sprintf("customer-%07d.example", i) }
	for i := range domains {
		w.domains[name(i)] = []signer.KeyInfo{info(name(i), "selector1", fmt.Sprintf("k%da", i))}
		w.standby = append(w.standby, info(name(i), "selector2", fmt.Sprintf("k%db", i)))
	}
	o := w.options()
	syncs := 0
	var inFiles time.Time
	o = agent.WithFault(o, func(operation, _ string) error {
		if operation == "sync" {
			syncs++
		}
		return nil
	})
	o.Now = time.Now
	w.confirm = time.Now()
	o.Reload = func(context.Context) error {
		inFiles = time.Now()
		return nil
	}
	a, err := agent.New(o)
	if err != nil {
		b.Fatal(err)
	}
	step := func() (files, all, cpu time.Duration) {
		begin, used := time.Now(), usage(b)
		agent.Step(b.Context(), a, w)
		if !a.Stats().Synced {
			b.Fatal(w.log.b.String())
		}
		return inFiles.Sub(begin), time.Since(begin), usage(b) - used
	}
	files, all, cpu := step()
	b.ReportMetric(files.Seconds(), "s-first")
	b.ReportMetric(all.Seconds(), "s-first-with-cache")
	b.ReportMetric(cpu.Seconds(), "CPU-s-first")
	b.ReportMetric(float64(syncs), "fsync-first")

	// One domain after the other rotates. The cache is not due meanwhile.
	syncs = 0
	var times, cpus []time.Duration
	const changes = 9
	for i := range changes {
		w.domains[name(i)] = []signer.KeyInfo{info(name(i), "selector2", fmt.Sprintf("k%db", i))}
		w.standby[i] = info(name(i), "selector1", fmt.Sprintf("k%dc", i))
		files, _, cpu := step()
		times, cpus = append(times, files), append(cpus, cpu)
	}
	slices.Sort(times)
	slices.Sort(cpus)
	b.ReportMetric(times[changes/2].Seconds(), "s-change")
	b.ReportMetric(times[changes-1].Seconds(), "s-change-max")
	b.ReportMetric(cpus[changes/2].Seconds(), "CPU-s-change")
	b.ReportMetric(float64(syncs)/changes, "fsync-change")
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	b.ReportMetric(float64(m.HeapAlloc)/(1<<20), "MiB-heap")

	begin, used := time.Now(), usage(b)
	if err := agent.StoreCache(b.Context(), a); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(time.Since(begin).Seconds(), "s-cache")
	b.ReportMetric((usage(b) - used).Seconds(), "CPU-s-cache")
	b.ReportMetric(size(b, w.dir+".cache"), "MiB-cache")
	b.ReportMetric(size(b, w.dir), "MiB-files")
	if err := a.Close(); err != nil {
		b.Fatal(err)
	}
	begin, used = time.Now(), usage(b)
	if a, err = agent.New(o); err != nil {
		b.Fatal(err)
	}
	step()
	b.ReportMetric(time.Since(begin).Seconds(), "s-start")
	b.ReportMetric((usage(b) - used).Seconds(), "CPU-s-start")
	if err := a.Close(); err != nil {
		b.Fatal(err)
	}
}

// size is that of all files below a directory.
func size(b *testing.B, dir string) float64 {
	b.Helper()
	sum := 0.0
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			sum += float64(info.Size())
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return sum / (1 << 20)
}
