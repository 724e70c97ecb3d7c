//go:build linux

// Command scale measures what large zones cost: a whole resync under queries,
// the way of a write to several DNS nodes, zone transfers, starts, and what etcd
// carries. See docs/scale.md.
//
// It runs what is measured on CPU 0 and everything else on CPU 1.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/dkimzone/dkimzone/test/dataset"
)

const (
	measuredCPU = 0
	otherCPU    = 1
	anyCPU      = -1
)

// parts are what can be measured, in order.
var parts = []struct {
	name    string
	measure func(*bench, context.Context) error
}{
	{"etcd", (*bench).etcd},
	{"list", (*bench).list},
	{"fanout", (*bench).fanOut},
	{"storm", (*bench).storm},
	{"resync", (*bench).resync},
	{"served", (*bench).served},
	{"transfer", (*bench).transfer},
	{"start", (*bench).start},
	{"export", (*bench).export},
}

type bench struct {
	set dataset.Set
	dir string
	cpu int // of a DNS node under queries
}

func main() {
	goFirst()
	if len(os.Args) == 3 && os.Args[1] == probeCommand {
		exit(probeMain(os.Args[2]))
	}
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	records := flag.Int("records", 200_000, "records in the zone")
	part := flag.String("part", strings.Join(names, ","), "what to measure, of "+strings.Join(names, ", "))
	dir := flag.String("dir", "build/scale", "working directory; etcd's data and a DNS node's file stay in it for the next run")
	both := flag.Bool("both", false, "let a DNS node under queries use all CPUs")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	b := &bench{set: dataset.New(*records), dir: *dir, cpu: measuredCPU}
	if *both {
		b.cpu = anyCPU
	}
	exit(b.run(ctx, strings.Split(*part, ",")))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func (b *bench) run(ctx context.Context, chosen []string) error {
	for _, name := range chosen {
		if !slices.ContainsFunc(parts, func(p struct {
			name    string
			measure func(*bench, context.Context) error
		}) bool {
			return p.name == name
		}) {
			return fmt.Errorf("no part %q", name)
		}
	}
	dir, err := filepath.Abs(filepath.Join(b.dir, strconv.Itoa(b.set.Len())))
	if err != nil {
		return err
	}
	b.dir = dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := b.build(ctx); err != nil {
		return err
	}
	for _, p := range parts {
		if !slices.Contains(chosen, p.name) {
			continue
		}
		if err := stayOn(otherCPU); err != nil {
			return err
		}
		fmt.Printf("\n### %s, %d records\n\n", p.name, b.set.Len())
		if err := p.measure(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

// build builds our programs, and etcd.
func (b *bench) build(ctx context.Context) error {
	for name, pkg := range map[string]string{
		"coredns": "./cmd/coredns", "dkimd": "./cmd/dkimd", "dkimctl": "./cmd/dkimctl", "etcd": "go.etcd.io/etcd/server/v3",
	} {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", b.path(name), pkg) //nolint:gosec // of the list above
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w\n%s", cmd, err, out)
		}
	}
	return nil
}

// fresh makes a directory that is empty.
func (b *bench) fresh(name string) (string, error) {
	dir := b.path(name)
	return dir, errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700))
}

// say tells what is going on.
func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// row prints a row of a table.
func row(cells ...any) {
	var text []string
	for _, c := range cells {
		text = append(text, fmt.Sprint(c))
	}
	fmt.Println("| " + strings.Join(text, " | ") + " |")
}

// head prints the head of a table.
func head(cells ...any) {
	row(cells...)
	fmt.Println(strings.Repeat("|---", len(cells)) + "|")
}
