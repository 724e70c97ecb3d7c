package peers

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Usage is what a server uses, with the processes that it has started and its
// store.
type Usage struct {
	CPU  time.Duration // user and system
	RSS  int64         // octets; pages that processes share are counted once
	Peak int64         // octets; the highest RSS that one process has had

	StoreCPU time.Duration // of CPU, what the store uses
	StoreRSS int64         // of RSS, what the store uses
}

// tick is the unit of times in /proc: USER_HZ is 100 on every architecture Go
// runs on.
const tick = 10 * time.Millisecond

// Usage reads what the server uses. With memory false it is quick and leaves
// the octets out.
func (p *Process) Usage(memory bool) (Usage, error) {
	u, err := usage(p.cmd.Process.Pid, memory)
	if err != nil || p.store == nil {
		return u, err
	}
	store, err := usage(p.store.cmd.Process.Pid, memory)
	return Usage{
		CPU: u.CPU + store.CPU, RSS: u.RSS + store.RSS, Peak: max(u.Peak, store.Peak),
		StoreCPU: store.CPU, StoreRSS: store.RSS,
	}, err
}

// usage reads what a process and its children use.
func usage(root int, memory bool) (Usage, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return Usage{}, err
	}
	type process struct {
		parent int
		cpu    time.Duration
	}
	all := make(map[int]process)
	for _, file := range stats {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // ended since
		}
		// The name, in parentheses, may hold anything.
		fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if len(fields) < 13 {
			return Usage{}, fmt.Errorf("%s: %q", file, b)
		}
		pid, parent := atoi(filepath.Base(filepath.Dir(file))), atoi(fields[1])
		all[pid] = process{parent, time.Duration(atoi(fields[11])+atoi(fields[12])) * tick}
	}
	var u Usage
	for pid := range all {
		ancestor := pid
		for ancestor != root && ancestor > 1 {
			ancestor = all[ancestor].parent
		}
		if ancestor != root {
			continue
		}
		u.CPU += all[pid].cpu
		if !memory {
			continue
		}
		share, err := field(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Pss:")
		if err != nil {
			return Usage{}, err
		}
		peak, err := field(fmt.Sprintf("/proc/%d/status", pid), "VmHWM:")
		if err != nil {
			return Usage{}, err
		}
		u.RSS += share
		u.Peak = max(u.Peak, peak)
	}
	return u, nil
}

// field is a number of KiB in a file of /proc, in octets.
func field(file, name string) (int64, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close() //nolint:errcheck // only read
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), name); ok {
			return int64(atoi(strings.TrimSpace(strings.TrimSuffix(rest, "kB")))) << 10, nil
		}
	}
	return 0, fmt.Errorf("%s has no %s", file, name)
}

// atoi is for numbers that the kernel wrote.
func atoi(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}
