package conformance_test

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// Each row of docs/divergences.md has a test that pins it, and each case that
// names a row finds it there.
func TestDivergences(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", "docs", "divergences.md"))
	if err != nil {
		t.Fatal(err)
	}
	rows := make(map[string]bool)
	for _, match := range regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\|").FindAllSubmatch(b, -1) {
		rows[string(match[1])] = true
	}
	pinned := map[string]bool{badVersionRow: true, longQueriesRow: true}
	for _, c := range packetCases() {
		pinned[c.divergence] = true
	}
	for _, c := range ednsCases() {
		pinned[c.divergence] = true
	}
	for _, c := range refusalCases() {
		pinned[c.divergence] = true
	}
	delete(pinned, "")
	for row := range rows {
		if !pinned[row] {
			t.Errorf("no test pins %s", row)
		}
	}
	for row := range pinned {
		if !rows[row] {
			t.Errorf("%s is not in docs/divergences.md", row)
		}
	}
}
