// Command stockbuild checks that the dkim plugin builds into an unchanged
// CoreDNS, the way its documentation says external plugins are added: a line in
// plugin.cfg, go generate, go build.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
)

const (
	module  = "github.com/dkimzone/dkimzone"
	coredns = "github.com/coredns/coredns"
	line    = "dkim:" + module + "/plugin/dkim"
	before  = "loop:loop" // behind the plugins with zones, before those that forward
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := build(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "stockbuild:", err)
		os.Exit(1)
	}
	fmt.Println("stockbuild: a stock CoreDNS with", line, "builds and lists the plugin")
}

func build(ctx context.Context) (err error) {
	repo, err := output(ctx, ".", "go", "list", "-m", "-f", "{{.Dir}}", module)
	if err != nil {
		return err
	}
	source, err := output(ctx, ".", "go", "list", "-m", "-f", "{{.Dir}}", coredns)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "stockbuild")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := copyTree(dir, source); err != nil {
		return fmt.Errorf("copying CoreDNS: %w", err)
	}
	if err := addPlugin(filepath.Join(dir, "plugin.cfg")); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"go", "mod", "edit", "-require=" + module + "@v0.0.0", "-replace=" + module + "=" + repo},
		{"go", "generate", "coredns.go"},
		{"go", "build", "-mod=mod", "-o", "coredns", "."},
	} {
		if _, err := output(ctx, dir, args...); err != nil {
			return err
		}
	}
	plugins, err := output(ctx, dir, "./coredns", "-plugins")
	if err != nil {
		return err
	}
	if !slices.Contains(strings.Fields(plugins), "dkim") {
		return fmt.Errorf("coredns -plugins does not list dkim:\n%s", plugins)
	}
	return nil
}

// addPlugin puts our line into plugin.cfg.
func addPlugin(file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	text := strings.Replace(string(b), "\n"+before+"\n", "\n"+line+"\n"+before+"\n", 1)
	if text == string(b) {
		return fmt.Errorf("%s has no line %q", file, before)
	}
	return os.WriteFile(file, []byte(text), 0o600) //nolint:gosec // a file of ours
}

// copyTree copies the files of a module, which are read-only in the cache.
func copyTree(to, from string) error {
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		return err
	}
	return filepath.WalkDir(to, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		mode := os.FileMode(0o600)
		if d.IsDir() {
			mode = 0o700
		}
		return os.Chmod(path, mode) //nolint:gosec // nobody else writes there
	})
}

// output runs a command in dir and returns what it printed.
func output(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...) //nolint:gosec // the commands above
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return strings.TrimSpace(string(out)), nil
}
