package robustness_test

import (
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	pulse = 100 * time.Millisecond
	// stall is how late a pulse comes when the machine stands still, as a virtual
	// one does now and then, or is so busy that a member of etcd misses heartbeats.
	stall = time.Second
	// afterStall is how long after it a node may tell that it is interrupted: it
	// may have to find out by itself.
	afterStall = 30 * time.Second
)

// lastStall is when the machine stood still last, in nanoseconds of Unix time. Then
// etcd may elect a leader, or answer so late that nodes rightly tell that they were
// interrupted.
var lastStall atomic.Int64

// watchStalls goes on until the process ends.
func watchStalls() {
	last := time.Now()
	for range time.Tick(pulse) {
		now := time.Now()
		if now.Sub(last) > stall {
			lastStall.Store(now.UnixNano())
		}
		last = now
	}
}

// stalledSince reports whether the machine stood still since a time, or so shortly
// before that it may only show now.
func stalledSince(at time.Time) bool {
	return lastStall.Load() > at.Add(-afterStall).UnixNano()
}

// withoutEpisodes are all that is left of what a node told when some episodes of
// being interrupted, and following again, are taken away, from a line on.
func withoutEpisodes(lines []string, from int) [][]string {
	all := [][]string{lines}
	for i := from; i+1 < len(lines); i++ {
		if match(lines[i:i+2], []string{interrupted, followed}) == nil {
			all = append(all, withoutEpisodes(slices.Delete(slices.Clone(lines), i, i+2), i)...)
		}
	}
	return all
}

func TestWithoutEpisodes(t *testing.T) {
	lines := []string{interrupted, followed, loaded, interrupted, listing("history"), followed, interrupted, followed}
	want := [][]string{
		lines,
		{loaded, interrupted, listing("history"), followed, interrupted, followed},
		{loaded, interrupted, listing("history"), followed},
		{interrupted, followed, loaded, interrupted, listing("history"), followed},
	}
	if diff := cmp.Diff(want, withoutEpisodes(lines, 0)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
