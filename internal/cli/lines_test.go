package cli

import (
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
