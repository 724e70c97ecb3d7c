package rotation_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dkimzone/dkimzone/internal/rotation"
)

// at is a time of so many hours.
func at(hours int) time.Time { return now.Add(time.Duration(hours) * time.Hour) }

func TestObserve(t *testing.T) {
	type look struct {
		finding rotation.Finding
		hours   int
	}
	tests := []struct {
		name  string
		looks []look
		want  rotation.Observation
	}{
		{"proven", []look{{rotation.Proven, 1}}, rotation.Observation{Finding: rotation.Proven, Since: at(1), CheckTime: at(1)}},
		{"proven again", []look{{rotation.Proven, 1}, {rotation.Proven, 2}}, rotation.Observation{Finding: rotation.Proven, Since: at(1), CheckTime: at(2)}},
		{
			"unreachable keeps the proof", []look{{rotation.Proven, 1}, {rotation.Unreachable, 2}},
			rotation.Observation{Finding: rotation.Unreachable, Since: at(1), CheckTime: at(2), Reason: "UNREACHABLE"},
		},
		{
			"unreachable proves nothing", []look{{rotation.Unreachable, 2}},
			rotation.Observation{Finding: rotation.Unreachable, CheckTime: at(2), Reason: "UNREACHABLE"},
		},
		{
			"contradicted", []look{{rotation.Proven, 1}, {rotation.Contradicted, 2}, {rotation.Contradicted, 3}},
			rotation.Observation{Finding: rotation.Contradicted, CheckTime: at(3), DenyTime: at(2), Reason: "CONTRADICTED"},
		},
		{
			"contradicted from the beginning", []look{{rotation.Contradicted, 1}, {rotation.Unreachable, 2}, {rotation.Contradicted, 3}},
			rotation.Observation{Finding: rotation.Contradicted, CheckTime: at(3), DenyTime: at(1), Reason: "CONTRADICTED"},
		},
		{
			"back again", []look{{rotation.Proven, 1}, {rotation.Contradicted, 2}, {rotation.Unreachable, 3}, {rotation.Proven, 4}},
			rotation.Observation{Finding: rotation.Proven, Since: at(4), CheckTime: at(4), DenyTime: at(2)},
		},
		{
			"gone a second time", []look{{rotation.Contradicted, 1}, {rotation.Proven, 2}, {rotation.Contradicted, 3}, {rotation.Contradicted, 4}},
			rotation.Observation{Finding: rotation.Contradicted, CheckTime: at(4), DenyTime: at(3), Reason: "CONTRADICTED"},
		},
		{
			"the same result twice", []look{{rotation.Contradicted, 1}, {rotation.Contradicted, 1}},
			rotation.Observation{Finding: rotation.Contradicted, CheckTime: at(1), DenyTime: at(1), Reason: "CONTRADICTED"},
		},
		{
			"a late proof", []look{{rotation.Contradicted, 2}, {rotation.Proven, 1}},
			rotation.Observation{Finding: rotation.Contradicted, CheckTime: at(2), DenyTime: at(2), Reason: "CONTRADICTED"},
		},
		{
			"a late proof of what is proven", []look{{rotation.Proven, 2}, {rotation.Proven, 1}},
			rotation.Observation{Finding: rotation.Proven, Since: at(2), CheckTime: at(2)},
		},
		{
			"a late contradiction from before the proof", []look{{rotation.Proven, 2}, {rotation.Contradicted, 1}},
			rotation.Observation{Finding: rotation.Proven, Since: at(2), CheckTime: at(2), DenyTime: at(1)},
		},
		{
			"a late contradiction of what was held to be proven", []look{{rotation.Proven, 1}, {rotation.Proven, 3}, {rotation.Contradicted, 2}},
			rotation.Observation{Finding: rotation.Contradicted, CheckTime: at(3), DenyTime: at(2), Reason: "CONTRADICTED"},
		},
		{
			"a late contradiction where nothing is proven", []look{{rotation.Unreachable, 3}, {rotation.Contradicted, 2}},
			rotation.Observation{Finding: rotation.Contradicted, CheckTime: at(3), DenyTime: at(2), Reason: "CONTRADICTED"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got rotation.Observation
			for _, l := range tt.looks {
				got = got.Observe(l.finding, l.finding.String(), at(l.hours))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("observation (-want +got):\n%s", diff)
			}
		})
	}
}

func TestMergeConditions(t *testing.T) {
	previous := []rotation.Condition{
		{Group: 1, Type: "SIGNING", OK: true, Reason: "A", Since: at(1)},
		{Group: 1, Type: "ROTATION", OK: false, Reason: "B", Since: at(2)},
		{Group: 4, Type: "ROTATION", OK: false, Reason: "B", Since: at(3)},
		{Group: 3, Type: "ROTATION", OK: false, Reason: "B", Since: at(4)},
	}
	fresh := []rotation.Condition{
		{Group: 1, Type: "SIGNING", OK: true, Reason: "A", Message: "as before", Since: at(9)},
		{Group: 1, Type: "ROTATION", OK: false, Reason: "C", Since: at(9)},
		{Group: 4, Type: "ROTATION", OK: true, Reason: "B", Since: at(9)},
		{Group: 2, Type: "ROTATION", OK: false, Reason: "B", Since: at(9)},
	}
	want := append([]rotation.Condition(nil), fresh...)
	want[0].Since = at(1)
	if diff := cmp.Diff(want, rotation.MergeConditions(previous, fresh)); diff != "" {
		t.Errorf("conditions (-want +got):\n%s", diff)
	}
	if fresh[0].Since != at(9) {
		t.Error("MergeConditions changed what it was given")
	}
}

func TestTake(t *testing.T) {
	for _, from := range states {
		for kind, to := range map[rotation.StepKind]rotation.State{
			rotation.Activate: rotation.Active, rotation.Retire: rotation.Retiring, rotation.Revoke: rotation.Revoked, rotation.Refill: rotation.Destroyed, 0: 0,
		} {
			for _, reason := range []string{rotation.ReasonDrained, rotation.ReasonCompromised} {
				want := rotation.Key{ID: "k", State: from}
				got := want
				wantErr := want.Step(to, now)
				if kind == rotation.Revoke && wantErr == nil {
					want.Compromised = reason == rotation.ReasonCompromised
				}
				err := got.Take(rotation.Step{Kind: kind, KeyID: "k", Reason: reason}, now)
				if diff := cmp.Diff(wantErr, err); diff != "" || got != want {
					t.Errorf("%v of a key that is %v: %+v, %v; want %+v, %v", kind, from, got, err, want, wantErr)
				}
			}
		}
	}
}
