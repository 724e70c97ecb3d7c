package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReadLines(t *testing.T) {
	good, bad, err := readLines(strings.NewReader("\ufeffa.example\r\n\n  # comment\n\tB.example rsa4096 # two\nbücher.example\na.example\nbad_.example\na.example ed25519\nc.example md5\nx y z\n"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range good {
		got = append(got, l.String())
	}
	for _, e := range bad {
		got = append(got, e.Error())
	}
	want := []string{
		"a.example", "b.example rsa4096", "xn--bcher-kva.example",
		`line 7: domain "bad_.example" is not valid: it has an underscore; give the name of the domain itself, not of a record below it`,
		"line 8: a.example is on line 1 with another algorithm",
		`line 9: "md5": unknown key algorithm; use rsa2048, rsa3072, rsa4096 or ed25519`,
		"line 10: 3 words, expected a domain and perhaps an algorithm",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("readLines (-want +got):\n%s", diff)
	}
	if good[2].number != 5 {
		t.Errorf("bücher.example is on line %d, want 5", good[2].number)
	}
}

// FuzzReadLines: what dkimctl writes for a good line it reads as the same line.
func FuzzReadLines(f *testing.F) {
	f.Add("a.example\n# x\nb.example rsa2048\n\ufeff\r\n_.example")
	f.Fuzz(func(t *testing.T, text string) {
		good, _, err := readLines(strings.NewReader(text))
		if err != nil {
			return
		}
		for _, l := range good {
			again, bad, err := readLines(strings.NewReader(l.String()))
			if err != nil || len(bad) != 0 || len(again) != 1 || again[0].String() != l.String() {
				t.Errorf("%q is read as %v, %v, %v", l, again, bad, err)
			}
		}
	})
}

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
	if err := j.close(); err != nil {
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
			if err := j.close(); err != nil {
				t.Fatal(err)
			}
			if j, err = openJournal(torn, title); err != nil {
				t.Fatal(err)
			}
			tt.want["d.example"] = true
			if diff := cmp.Diff(tt.want, j.done); diff != "" {
				t.Errorf("done after another line (-want +got):\n%s", diff)
			}
			if err := j.remove(); err != nil {
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

func TestReached(t *testing.T) {
	tests := []struct {
		name     string
		revision int64
		serial   uint32
		want     bool
	}{
		{"equal", 42, 42, true},
		{"before", 42, 41, false},
		{"after", 42, 43, true},
		{"the name server has gone around", 1<<32 - 2, 5, true},
		{"the revision has gone around", 1<<32 + 5, 1<<32 - 2, false},
		{"low 32 bits", 1<<32 + 5, 5, true},
		{"0 is 1", 1 << 32, 1, true},
		{"0 is 1, before", 1 << 32, 1<<32 - 1, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := reached(tt.serial, serial(tt.revision)); got != tt.want {
				t.Errorf("serial %d for revision %d: %t, want %t", tt.serial, tt.revision, got, tt.want)
			}
		})
	}
}

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

func TestOneLine(t *testing.T) {
	if got, want := oneLine("a\x1b[31m\tb\r\nc\u009bd bücher"), "a [31m b c d bücher"; got != want {
		t.Errorf("oneLine is %q, want %q", got, want)
	}
}
