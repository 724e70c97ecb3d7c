package cli

import (
	"bytes"
	"strings"
	"testing"
)

func TestProgress(t *testing.T) {
	var plain, terminal bytes.Buffer
	p := &progress{plain: &plain, every: 2, total: 4, what: "domains"}
	b := &progress{bar: newBar(&terminal, 4, "domains"), plain: &plain, every: 1, total: 4, what: "bars"}
	for range 4 {
		p.step()
		b.step()
	}
	p.finish()
	b.finish()
	if want := "2 of 4 domains\n"; plain.String() != want {
		t.Errorf("without a terminal it wrote %q, want %q", plain.String(), want)
	}
	if got := terminal.String(); !strings.Contains(got, "domains") || !strings.Contains(got, "(0/4)") {
		t.Errorf("to a terminal it wrote %q, want a bar", got)
	}
}
