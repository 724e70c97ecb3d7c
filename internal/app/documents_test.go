package app

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// documents is the text of all pages.
func documents(t *testing.T) string {
	t.Helper()
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatalf("no pages: %v", err)
	}
	var all strings.Builder
	for _, page := range append(pages, "../../README.md", "../../plugin/dkim/README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(text)
	}
	return all.String()
}

// Every flag of dkimd is on a page, and says what stands for its value.
func TestFlagsAreDocumented(t *testing.T) {
	pages := documents(t)
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Name == "help" || f.Name == "version" {
				return
			}
			if !regexp.MustCompile("--" + f.Name + `\b[^-]`).MatchString(pages) {
				t.Errorf("%s: no page names --%s", c.CommandPath(), f.Name)
			}
		})
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(Command("test"))
}

// Every metric of dkimd is on a page, and every one that a page names is there.
func TestMetricsAreDocumented(t *testing.T) {
	inCode := make(map[string]bool)
	direct := regexp.MustCompile(`Namespace: "dkimd", Subsystem: "([a-z]+)", Name: "([a-z_]+)"`)
	variable := regexp.MustCompile(`"((?:[a-z]+_)*(?:total|seconds|bytes|domains|keys|stock|waiting|failing|sequence|synced))"`)
	sources, err := filepath.Glob("../*/*.go")
	if err != nil || len(sources) == 0 {
		t.Fatalf("no sources: %v", err)
	}
	others := make(map[string]bool) // names whose subsystem stands elsewhere
	for _, source := range sources {
		if strings.HasSuffix(source, "_test.go") {
			continue
		}
		text, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range direct.FindAllSubmatch(text, -1) {
			inCode["dkimd_"+string(m[1])+"_"+string(m[2])] = true
		}
		for _, m := range variable.FindAllSubmatch(text, -1) {
			others[string(m[1])] = true
		}
	}
	pages := documents(t)
	for name := range inCode {
		if !regexp.MustCompile(name + `\b`).MatchString(pages) {
			t.Errorf("no page names %s", name)
		}
	}
	for _, name := range regexp.MustCompile(`\bdkimd_[a-z]+_[a-z_]*[a-z]\b`).FindAllString(pages, -1) {
		_, last, _ := strings.Cut(strings.TrimPrefix(name, "dkimd_"), "_")
		if !inCode[name] && !others[last] {
			t.Errorf("a page names %s, which no code has", name)
		}
	}
}
