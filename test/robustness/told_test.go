package robustness_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/dkimzone/dkimzone/test/harness"
)

// What a node tells, as the log has it before the zone's name.
const (
	interrupted = "following etcd is interrupted, serving what there is"
	followed    = "following etcd again"
	loaded      = "data file is loaded"
	setAside    = "data file is set aside, the zone is read from etcd"
	notWritten  = "data file is not written, serving goes on from memory"
	writtenNow  = "data file is written again"
	heldNow     = "resync is held, serving the old records: it would delete too many"
	heldNoMore  = "resync is no longer held"
	repaired    = "records differed from etcd although the watch was on, repaired"
)

// listing is what tells of a listing of the zone.
func listing(cause string) string { return "listing the zone cause=" + cause }

// lines is what the plugin has told since tells was called last.
func (n *node) lines() []string {
	var all []string
	for line := range strings.Lines((n.log + n.Output())[n.told:]) {
		if _, text, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "plugin/dkim: "); ok {
			all = append(all, text)
		}
	}
	return all
}

// tells waits until a node has told one of the given sequences of lines, and
// fails the test if it told anything else, or anything again. When the machine
// stood still meanwhile, it may have been interrupted, too.
func (n *node) tells(t *testing.T, allowed ...[]string) {
	t.Helper()
	harness.Eventually(t, limit, n.name+" tells what happens", func() error {
		now, stalled := time.Now(), stalledSince(n.toldAt)
		whole := len(n.log + n.Output())
		lines := n.lines()
		told := [][]string{lines}
		if stalled {
			told = withoutEpisodes(lines, 0)
		}
		short := errors.New("nothing yet")
		waits := stalled && len(lines) > 0 && match(lines[len(lines)-1:], []string{interrupted}) == nil
		for _, want := range allowed {
			for _, lines := range told {
				switch err := match(lines, want); {
				case err == nil:
					n.told, n.toldAt = whole, now
					return nil
				case len(lines) < len(want):
					short, waits = err, true
				}
			}
		}
		if waits {
			return short
		}
		n.told, n.toldAt = whole, now // which is nothing to blame what comes next for
		t.Fatalf("%s told, of %q:\n%s", n.name, allowed, strings.Join(lines, "\n"))
		return nil
	})
}

func match(lines, want []string) error {
	if len(lines) != len(want) {
		return fmt.Errorf("%d lines of %q: %q", len(lines), want, lines)
	}
	for i, line := range lines {
		text := strings.Replace(line, " zone="+zone, "", 1)
		if !strings.HasPrefix(text, want[i]) {
			return fmt.Errorf("line %q, want %q", text, want[i])
		}
	}
	return nil
}
