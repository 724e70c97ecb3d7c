// Package peers runs other name servers, and ours, on loopback with one zone
// each, to be measured and compared.
package peers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

// packages are Debian's packages by the program that is needed of each.
var packages = map[string][]string{
	"nsd":         {"nsd"},
	"knotd":       {"knot"},
	"named":       {"bind9"},
	"pdns_server": {"pdns-server", "pdns-backend-lmdb"},
	"dnsperf":     {"dnsperf"},
}

// installed reports whether the program is there, PowerDNS with its backend.
func installed(program string) bool {
	if _, err := exec.LookPath(program); err != nil {
		return false
	}
	if program != "pdns_server" {
		return true
	}
	backends, _ := filepath.Glob("/usr/lib/*/pdns/liblmdbbackend.so") // the pattern is good
	return len(backends) > 0
}

// noStart keeps Debian from starting the daemons that it installs.
const noStart = "/usr/sbin/policy-rc.d"

// Install installs those of the programs that are missing, with apt-get, as
// root. What it does is written to out.
func Install(ctx context.Context, out io.Writer, programs ...string) error {
	var missing []string
	for _, program := range programs {
		if !installed(program) {
			missing = append(missing, packages[program]...)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	slices.Sort(missing)
	if os.Geteuid() != 0 {
		return fmt.Errorf("missing: run as root: apt-get install %v", missing)
	}
	if _, err := os.Lstat(noStart); errors.Is(err, fs.ErrNotExist) {
		if err := os.WriteFile(noStart, []byte("#!/bin/sh\nexit 101\n"), 0o755); err != nil { //nolint:gosec // a script for root's package manager
			return err
		}
		defer os.Remove(noStart) //nolint:errcheck // the file is ours
	}
	install := append([]string{"install", "-y", "--no-install-recommends"}, missing...)
	for _, args := range [][]string{{"update"}, install} {
		cmd := exec.CommandContext(ctx, "apt-get", args...) //nolint:gosec // packages of the list above
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%v: %w", cmd, err)
		}
	}
	return nil
}
