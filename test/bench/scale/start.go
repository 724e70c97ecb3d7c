//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dkimzone/dkimzone/test/dataset"
)

// start starts a DNS node from its file, with no etcd running: with the file in
// the page cache, and from the disk. It also says how fast the disk is.
func (b *bench) start(ctx context.Context) error {
	const times = 3
	dir, err := b.nodeDir(ctx, "node.start", nil)
	if err != nil {
		return err
	}
	file := filepath.Join(dir, dataset.Zone+".db")
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	fmt.Printf("The file has %d MiB, %d octets a record.\n\n", info.Size()>>20, info.Size()/int64(b.set.Len()))
	head("CPUs", "file", "first answer s", "CPU s", "peak MiB")
	for _, cpu := range []int{anyCPU, measuredCPU} {
		for _, cold := range []bool{false, true} {
			for range times {
				if err := b.startOnce(ctx, dir, file, cpu, cold); err != nil {
					return err
				}
			}
		}
	}
	if err := forget(file); err != nil {
		return err
	}
	began := time.Now()
	if err := readAll(file); err != nil {
		return err
	}
	took := time.Since(began).Seconds()
	fmt.Printf("\nReading the file alone, from the disk, from its beginning to its end: %.2f s, %.0f MB/s.\n", took, float64(info.Size())/took/1e6)
	return nil
}

func (b *bench) startOnce(ctx context.Context, dir, file string, cpu int, cold bool) error {
	prepare, where := readAll, "in memory"
	if cold {
		prepare, where = forget, "on disk"
	}
	if err := prepare(file); err != nil {
		return err
	}
	n, err := b.startNode(ctx, dir, nowhere, cpu)
	if err != nil {
		return err
	}
	used, err1 := n.cpu()
	peak, err2 := n.memory("VmHWM")
	if err := errors.Join(err1, err2, n.stop()); err != nil {
		return err
	}
	cpus := "both"
	if cpu != anyCPU {
		cpus = "one"
	}
	row(cpus, where, fmt.Sprintf("%.2f", n.first.Seconds()), fmt.Sprintf("%.2f", used.Seconds()), fmt.Sprintf("%.0f", peak))
	return nil
}

// forget takes a file out of the page cache.
func forget(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	return errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
}

func readAll(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	for buf := make([]byte, 1<<20); ; {
		n, err := f.Read(buf)
		if n == 0 {
			return nil //nolint:nilerr // the end; another error shows where the file is used
		}
		if err != nil {
			return err
		}
	}
}
