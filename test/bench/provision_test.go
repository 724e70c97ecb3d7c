package bench_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// BenchmarkProvisionFile provisions a file of b.N domains with dkimctl, each with
// two selectors of Ed25519, and looks at the processes. Every write is synced to
// disk.
func BenchmarkProvisionFile(b *testing.B) {
	eachInstallation(b, func(b *testing.B, in *installation) {
		file := filepath.Join(b.TempDir(), "domains.txt")
		writeDomains(b, file)
		in.measure(b, fmt.Sprintf("%d domains are provisioned\n", b.N), "domains",
			"domain", "provision", "acme", "--from-file", file, "--algorithm", "ed25519", "--parallel", "64")
	})
}

func writeDomains(b *testing.B, file string) {
	b.Helper()
	f, err := os.Create(file)
	if err != nil {
		b.Fatal(err)
	}
	w := bufio.NewWriter(f)
	for i := range b.N {
		fmt.Fprintf(w, "customer-%07d.example\n", i)
	}
	if err := errors.Join(w.Flush(), f.Close()); err != nil {
		b.Fatal(err)
	}
}
