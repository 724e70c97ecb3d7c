package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "list.done")
	const title = "# brands/acme"
	j, err := openJournal(path, title)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"a.example", "b.example rsa2048"} {
		if err := j.add(text); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.end(false); err != nil {
		t.Fatal(err)
	}

	tests := []struct {
		name string
		tail string // what the end of the file was lost to or became
		cut  int
		want map[string]bool
	}{
		{name: "whole", want: map[string]bool{"a.example": true, "b.example rsa2048": true}},
		{name: "torn line", cut: 1, want: map[string]bool{"a.example": true}},
		{name: "half of another line", tail: "c.exa", want: map[string]bool{"a.example": true, "b.example rsa2048": true}},
		{name: "torn title", cut: len("a.example\nb.example rsa2048\n") + 1, want: map[string]bool{}},
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			torn := filepath.Join(t.TempDir(), "list.done")
			if err := os.WriteFile(torn, append(bytes.Clone(whole[:len(whole)-tt.cut]), tt.tail...), 0o600); err != nil {
				t.Fatal(err)
			}
			j, err := openJournal(torn, title)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, j.done); diff != "" {
				t.Errorf("done (-want +got):\n%s", diff)
			}
			// What is added now stands on a line of its own.
			if err := j.add("d.example"); err != nil {
				t.Fatal(err)
			}
			if err := j.end(false); err != nil {
				t.Fatal(err)
			}
			if j, err = openJournal(torn, title); err != nil {
				t.Fatal(err)
			}
			tt.want["d.example"] = true
			if diff := cmp.Diff(tt.want, j.done); diff != "" {
				t.Errorf("done after another line (-want +got):\n%s", diff)
			}
			if err := j.end(true); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(torn); !os.IsNotExist(err) {
				t.Errorf("after remove: %v", err)
			}
		})
	}
	if _, err := openJournal(path, "# brands/other"); err == nil || !strings.Contains(err.Error(), "another run") {
		t.Errorf("with another title: %v, want an error", err)
	}
}
