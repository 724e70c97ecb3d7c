package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/dkimzone/dkimzone/test/harness"
)

// root is where the documents are.
const root = "../.."

// The first screen of README.md is what a newcomer types. All its sh blocks are
// run, and then looked at more closely than a newcomer would.
func TestREADME(t *testing.T) {
	t.Parallel()
	blocks := parseBlocks(t, "README.md")
	s := newStandalone(t)
	outputs := runBlocks(t, s, blocks, func(b block) bool { return b.language == "sh" })
	if len(outputs) < 2 {
		t.Fatalf("README.md has %d sh blocks, want the start and the use", len(outputs))
	}

	for _, sel := range []string{"selector1", "selector2"} {
		k := s.key(t, "acme", "spamtrap.dk", sel)
		if want := sel + "-spamtrap-dk._domainkey." + zone; k.GetOwnerName() != want {
			t.Errorf("owner name is %s, want %s", k.GetOwnerName(), want)
		}
		checkServed(t, s.dns, k)
		if strs := mustTXT(t, "udp", s.dns, k.GetOwnerName()); len(strs) != 2 || len(strs[0]) != 255 {
			t.Errorf("record is %q, want two strings, the first of 255 octets", strs)
		}
	}
	d := s.domain(t, "acme", "spamtrap.dk")
	checkUsable(t, s.dns, d, d.GetSelectors()[0].GetAlgorithm())

	// What it says dkimctl domain cnames prints stands in a block of its own.
	cnames := s.ctl(t, "domain", "cnames", "acme", "spamtrap.dk")
	shown := slices.IndexFunc(blocks, func(b block) bool { return strings.Contains(b.text, " IN CNAME ") })
	if shown < 0 {
		t.Fatal("README.md shows no CNAME")
	}
	checkShown(t, blocks[shown], cnames)
}

// Blocks of the other documents that begin with "```sh test" are run, those of a
// document one after the other beside one dkimd standalone. A text block that
// follows shows what is printed; "…" stands for anything.
func TestDocuments(t *testing.T) {
	t.Parallel()
	var files []string
	for _, pattern := range []string{"docs/*.md", "plugin/dkim/*.md"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	marked := func(b block) bool { return b.language == "sh test" }
	for _, file := range files {
		name, err := filepath.Rel(root, file)
		if err != nil {
			t.Fatal(err)
		}
		blocks := parseBlocks(t, name)
		if slices.ContainsFunc(blocks, marked) {
			t.Run(name, func(t *testing.T) { runBlocks(t, newStandalone(t), blocks, marked) })
		}
	}
}

// block is a fenced block of a document.
type block struct {
	where    string // file and line
	language string // what stands behind the fence
	text     string
	adjacent bool // only empty lines between it and the block before
}

func parseBlocks(t *testing.T, name string) []block {
	t.Helper()
	var blocks []block
	var open *block
	adjacent := false
	n := 0
	for line := range strings.Lines(readFile(t, filepath.Join(root, name))) {
		n++
		switch fence, isFence := strings.CutPrefix(strings.TrimSpace(line), "```"); {
		case isFence && open == nil:
			open = &block{where: fmt.Sprintf("%s:%d", name, n), language: fence, adjacent: adjacent}
		case isFence:
			blocks = append(blocks, *open)
			open, adjacent = nil, true
		case open != nil:
			open.text += line
		case strings.TrimSpace(line) != "":
			adjacent = false
		}
	}
	if open != nil {
		t.Fatalf("%s: the block is not closed", open.where)
	}
	return blocks
}

// runBlocks runs the chosen blocks in a directory that looks like that of the
// repository after make build, with dkimd standalone running, and returns what
// each has printed. Default addresses become those of s.
func runBlocks(t *testing.T, s *standalone, blocks []block, chosen func(block) bool) []string {
	t.Helper()
	dir := t.TempDir()
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{
		"dkimd": harness.Dkimd.Path(t), "dkimctl": harness.Dkimctl.Path(t), "coredns": harness.CoreDNS.Path(t), digName: self,
	} {
		if err := os.Symlink(target, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	s.dataDir = filepath.Join(dir, "data")
	s.config = filepath.Join(s.dataDir, "dkimctl.yaml")
	s.Process = harness.Start(t, "make run", harness.Dkimd, append(s.environment(), "DKIMD_DATA_DIR="+s.dataDir), makeRun(t)...)
	s.waitReady(t)

	host, port, _ := strings.Cut(s.dns, ":")
	addresses := strings.NewReplacer(
		"@127.0.0.1 -p 1053", "@"+host+" -p "+port,
		"127.0.0.1:1053", s.dns, "127.0.0.1:9443", s.grpc, "127.0.0.1:9080", s.http, "127.0.0.1:9081", s.metrics,
		"make run\n", "", // it runs
	)
	var outputs []string
	for i, b := range blocks {
		if !chosen(b) {
			continue
		}
		if _, err := exec.LookPath("curl"); err != nil && strings.Contains(b.text, "curl ") {
			t.Skipf("%s: there is no curl", b.where)
		}
		cmd := exec.CommandContext(deadline(t), "sh", "-e", "-c", addresses.Replace(b.text))
		cmd.Dir = dir
		cmd.Env = harness.Environ(t, []string{"PATH=" + bin + ":" + os.Getenv("PATH")})
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s\n%s", b.where, err, cmd, out)
		}
		outputs = append(outputs, string(out))
		if i+1 < len(blocks) && blocks[i+1].adjacent && blocks[i+1].language == "text" {
			checkShown(t, blocks[i+1], string(out))
		}
	}
	return outputs
}

// makeRun is the arguments of the dkimd that make run starts.
func makeRun(t *testing.T) []string {
	t.Helper()
	recipe := regexp.MustCompile(`(?m)^run: build.*\n\tbin/dkimd (.*)$`).FindStringSubmatch(readFile(t, filepath.Join(root, "Makefile")))
	if recipe == nil {
		t.Fatal("make run does not start bin/dkimd")
	}
	return strings.Fields(recipe[1])
}

// checkShown looks whether a document shows what was printed: each line, but for
// the number of spaces and for what "…" stands for.
func checkShown(t *testing.T, b block, output string) {
	t.Helper()
	var printed []string
	for line := range strings.Lines(output) {
		printed = append(printed, strings.Join(strings.Fields(line), " "))
	}
	for line := range strings.Lines(b.text) {
		words := strings.Join(strings.Fields(line), " ")
		pattern := regexp.MustCompile("^" + strings.ReplaceAll(regexp.QuoteMeta(words), "…", ".*") + "$")
		if !slices.ContainsFunc(printed, pattern.MatchString) {
			t.Errorf("%s shows %q, but this is printed:\n%s", b.where, words, output)
		}
	}
}
