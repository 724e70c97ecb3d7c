// Package harness builds the programs of this repository, and etcd, and runs
// them as separate processes on loopback, for tests.
//
// A test package that uses it has this TestMain:
//
//	func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }
package harness

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Program is the import path of a main package.
type Program string

// The programs that tests start.
const (
	Dkimd   Program = "github.com/dkimzone/dkimzone/cmd/dkimd"
	Dkimctl Program = "github.com/dkimzone/dkimzone/cmd/dkimctl"
	CoreDNS Program = "github.com/dkimzone/dkimzone/cmd/coredns"
	Etcd    Program = "go.etcd.io/etcd/server/v3"
	Vault   Program = "github.com/dkimzone/dkimzone/tools/vault" // takes minutes to build for the first time
)

func (p Program) name() string {
	if p == Etcd {
		return "etcd"
	}
	return path.Base(string(p))
}

var (
	binDir string // set by Main

	builds = map[Program]func() error{}
)

func init() {
	for _, p := range []Program{Dkimd, Dkimctl, CoreDNS, Etcd, Vault} {
		builds[p] = sync.OnceValue(p.build)
	}
}

// Main runs the tests of m and removes the programs that were built for them.
// It returns the exit code.
func Main(m *testing.M) int {
	dir, err := os.MkdirTemp("", "dkimzone-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }() // in the temporary directory of the machine
	binDir = dir
	return m.Run()
}

// lookAtSources lets the go command know that the result of the tests depends
// on the sources of the programs. It keeps the results of tests until a file
// changes at which they have looked, but does not see what a go build that they
// run reads. Nor does it see what happens before the tests run.
var lookAtSources = sync.OnceValue(func() error {
	root, err := root()
	if err != nil {
		return err
	}
	for _, name := range []string{"go.mod", "go.sum", "api", "cmd", "internal", "plugin"} {
		err := filepath.WalkDir(filepath.Join(root, name), func(file string, e fs.DirEntry, err error) error {
			if err == nil && !strings.HasSuffix(file, "_test.go") {
				_, err = os.Stat(file)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
})

// root is the directory of this module.
func root() (string, error) {
	mod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	return filepath.Dir(strings.TrimSpace(string(mod))), nil
}

// Path is the file of the program, which is built on first use: with the race
// detector if the test was built with it, except for etcd and Vault, which are not
// ours to check.
func (p Program) Path(tb testing.TB) string {
	tb.Helper()
	if err := builds[p](); err != nil {
		tb.Fatal(err)
	}
	return p.file()
}

func (p Program) file() string { return filepath.Join(binDir, p.name()) }

func (p Program) build() error {
	if binDir == "" {
		return fmt.Errorf("build %s: TestMain does not call harness.Main", p)
	}
	if err := lookAtSources(); err != nil {
		return err
	}
	args := []string{"build", "-buildvcs=false", "-o", p.file()}
	if RaceEnabled && p != Etcd && p != Vault {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, string(p))...) //nolint:gosec // a program of the list above
	if p == Vault {
		// It is a module of its own.
		dir, err := root()
		if err != nil {
			return err
		}
		cmd.Dir = filepath.Join(dir, "tools", "vault")
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", cmd, err, out)
	}
	return nil
}
