package auditlog_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/dkimzone/dkimzone/internal/auditlog"
)

// chain is n lines of a chain, from its first one.
func chain(name string, n int) []string {
	var lines []string
	var prev auditlog.Hash
	for i := range n {
		e := auditlog.Entry{
			Chain: name, Seq: uint64(i) + 1, Prev: prev, Time: at.Add(time.Duration(i) * time.Second),
			Call: "dkim.v1.KeyManagement/CreateBrand", Resource: fmt.Sprintf("brands/b%d", i), Outcome: "OK",
		}
		var line []byte
		line, prev = e.Append(nil)
		lines = append(lines, string(line))
	}
	return lines
}

func verify(t testing.TB, v *auditlog.Verifier, text string) []string {
	t.Helper()
	if err := v.File("f", strings.NewReader(text)); err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, b := range v.Breaks() {
		found = append(found, fmt.Sprintf("%d %s", b.Line, b.Kind))
	}
	return found
}

func TestVerify(t *testing.T) {
	l := chain("aaaaaaaa", 5)
	forged := func(line string, change func(*auditlog.Entry)) string {
		e, err := auditlog.Parse([]byte(line))
		if err != nil {
			t.Fatal(err)
		}
		change(&e)
		text, _ := e.Append(nil)
		return string(text)
	}
	other := chain("bbbbbbbb", 3)
	text := func(lines ...string) string { return strings.Join(lines, "\n") + "\n" }
	for _, tt := range []struct {
		name, text string
		want       []string
	}{
		{"as written", text(l...), nil},
		{"without its beginning", text(l[2:]...), nil},
		{"two chains", text(l[0], other[0], l[1], l[2], other[1], l[3]), nil},
		{"a line changed", text(l[0], strings.Replace(l[1], "b1", "b9", 1), l[2]), []string{"2 CHANGED"}},
		{"a line changed, with a new hash", text(l[0], forged(l[1], func(e *auditlog.Entry) { e.Resource = "brands/b9" }), l[2]), []string{"3 DETACHED"}},
		{"a line removed", text(l[0], l[2], l[3]), []string{"2 MISSING"}},
		{"two lines removed", text(l[0], l[3], l[4]), []string{"2 MISSING"}},
		{"a line removed and the next one forged", text(l[0], forged(l[2], func(e *auditlog.Entry) { e.Seq = 2 })), []string{"2 DETACHED"}},
		{"a line inserted", text(l[0], forged(l[1], func(e *auditlog.Entry) { e.Resource = "brands/x" }), l[1], l[2]), []string{"3 UNEXPECTED", "4 DETACHED"}},
		{"a line twice", text(l[0], l[1], l[1], l[2]), []string{"3 UNEXPECTED"}},
		{"two lines swapped", text(l[0], l[2], l[1], l[3]), []string{"2 MISSING", "3 UNEXPECTED"}},
		{"something else", text(l[0], "hello", l[1]), []string{"2 MALFORMED"}},
		{"an empty line", text(l[0], "", l[1]), []string{"2 MALFORMED"}},
		{"cut in a line", text(l[0]) + l[1][:100], []string{"2 CUT"}},
		{"cut before the newline", text(l[0]) + l[1], []string{"2 CUT"}},
		{"a new chain that pretends to go on", text(forged(l[0], func(e *auditlog.Entry) { e.Prev[0] = 1 })), []string{"1 DETACHED"}},
		{"a line that is too long", text(l[0], strings.Repeat("x", auditlog.MaxLine+10), l[1]), []string{"2 MALFORMED"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var v auditlog.Verifier
			if diff := cmp.Diff(tt.want, verify(t, &v, tt.text)); diff != "" {
				t.Errorf("breaks (-want +got):\n%s%v", diff, v.Breaks())
			}
		})
	}
}

func TestVerifyOverFiles(t *testing.T) {
	l := chain("aaaaaaaa", 6)
	var v auditlog.Verifier
	for _, part := range [][]string{l[:2], l[2:4], l[4:]} {
		verify(t, &v, strings.Join(part, "\n")+"\n")
	}
	if b := v.Breaks(); len(b) > 0 {
		t.Errorf("breaks %v", b)
	}
	got := v.Chains()
	last, err := auditlog.Parse([]byte(l[5]))
	if err != nil {
		t.Fatal(err)
	}
	want := []auditlog.Chain{{Name: "aaaaaaaa", First: 1, Last: 6, Begin: at, End: at.Add(5 * time.Second), Lines: 6, Head: last.Hash}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("chains (-want +got):\n%s", diff)
	}
}

// Lines that are gone from the end are noticed by a head that is known.
func TestExpect(t *testing.T) {
	l := chain("aaaaaaaa", 4)
	hash := func(line string) auditlog.Hash {
		e, err := auditlog.Parse([]byte(line))
		if err != nil {
			t.Fatal(err)
		}
		return e.Hash
	}
	for _, tt := range []struct {
		name  string
		lines []string
		want  int
	}{{"whole", l, 0}, {"without its beginning", l[1:], 0}, {"cut", l[:3], 1}} {
		var v auditlog.Verifier
		v.Expect(hash(l[3]))
		v.Expect(hash(l[1]))
		verify(t, &v, strings.Join(tt.lines, "\n")+"\n")
		if got := v.Absent(); len(got) != tt.want {
			t.Errorf("%s: %d hashes are absent, want %d", tt.name, len(got), tt.want)
		}
	}
}

// Whatever is done to a log is found, unless whole lines are gone from an end.
func TestAnyChangeIsFound(t *testing.T) {
	l := chain("aaaaaaaa", 8)
	whole := strings.Join(l, "\n") + "\n"
	rapid.Check(t, func(t *rapid.T) {
		text := []byte(whole)
		from := rapid.IntRange(0, len(text)-1).Draw(t, "from")
		to := rapid.IntRange(from, min(len(text), from+600)).Draw(t, "to")
		put := rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "put")
		if rapid.Bool().Draw(t, "copy") {
			at := rapid.IntRange(0, len(text)-1).Draw(t, "of")
			put = slices.Clone(text[at:min(len(text), at+400)])
		}
		text = slices.Concat(text[:from], put, text[to:])
		if strings.Contains("\n"+whole, "\n"+string(text)) && (len(text) == 0 || text[len(text)-1] == '\n') {
			return // the same, or cut between lines
		}
		var v auditlog.Verifier
		if err := v.File("f", bytes.NewReader(text)); err != nil {
			t.Fatal(err)
		}
		if len(v.Breaks()) == 0 {
			t.Errorf("not found: %q in place of octets %d to %d", put, from, to)
		}
	})
}
