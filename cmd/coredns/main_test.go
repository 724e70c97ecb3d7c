package main

import (
	"bufio"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
)

// Each directive has its plugin and the other way round.
func TestDirectives(t *testing.T) {
	var plugins []string
	for _, full := range caddy.ListPlugins()["others"] {
		if name, ok := strings.CutPrefix(full, "dns."); ok {
			plugins = append(plugins, name)
		}
	}
	for _, name := range directives {
		if !slices.Contains(plugins, name) {
			t.Errorf("directive %q has no plugin", name)
		}
	}
	for _, name := range plugins {
		if !slices.Contains(directives, name) {
			t.Errorf("plugin %q has no directive", name)
		}
	}
}

// The order is CoreDNS' own; only dkim is put in.
func TestOrder(t *testing.T) {
	at := -1
	for _, name := range directives {
		if name == "dkim" {
			continue
		}
		i := slices.Index(dnsserver.Directives, name)
		if i <= at {
			t.Errorf("directive %q is at %d in CoreDNS, behind one at %d", name, i, at)
		}
		at = i
	}
	if i := slices.Index(directives, "dkim"); directives[i-1] != "file" || directives[i+1] != "forward" {
		t.Errorf("dkim stands between %q and %q", directives[i-1], directives[i+1])
	}
}

func TestPluginsFlag(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a program")
	}
	bin := filepath.Join(t.TempDir(), "coredns")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	out, err := exec.CommandContext(t.Context(), bin, "-plugins").Output()
	if err != nil {
		t.Fatal(err)
	}
	s := bufio.NewScanner(strings.NewReader(string(out)))
	for s.Scan() {
		if strings.TrimSpace(s.Text()) == "dkim" {
			return
		}
	}
	t.Errorf("dkim is not in\n%s", out)
}
