package robustness_test

import "testing"

// What the model must find wrong.
func TestModelFindsWhatIsWrong(t *testing.T) {
	m := newModel(nil)
	// Written at revision 10, deleted at 20, written at 30, then a write of which
	// nobody knows whether etcd has it.
	m.names[0] = history{
		versions: map[uint64]version{1: {}, 2: {deleted: true}, 3: {}, 4: {}},
		acked:    []ack{{10, 1}, {20, 2}, {30, 3}}, current: 3, revision: 30,
	}
	for _, tt := range []struct {
		name          string
		floor, serial uint64
		version       uint64
		denied        bool
		wrong         bool
	}{
		{name: "first", version: 1},
		{name: "the one of the serial", serial: 15, version: 1},
		{name: "newer than the serial", serial: 15, version: 3},
		{name: "not known to be written", serial: 30, version: 4},
		{name: "denied", denied: true},
		{name: "denied when it was deleted", serial: 20, denied: true},
		{name: "denied, and the serial lags behind", floor: 2, denied: true},
		{name: "goes back", floor: 3, version: 1, wrong: true},
		{name: "goes back to the deletion", floor: 3, denied: true, wrong: true},
		{name: "lost the deletion", serial: 20, version: 1, wrong: true},
		{name: "lost the last write", serial: 30, denied: true, wrong: true},
		{name: "lost all writes", serial: 31, version: 1, wrong: true},
		{name: "never written", version: 5, wrong: true},
		{name: "a deletion as a key", version: 2, wrong: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := m.check(0, tt.floor, tt.serial, tt.version, !tt.denied); (err != nil) != tt.wrong {
				t.Errorf("check = %v, want wrong %v", err, tt.wrong)
			}
		})
	}
	m.names[1] = history{versions: map[uint64]version{1: {}}, acked: []ack{{10, 1}}, current: 1}
	if _, err := m.check(1, 0, 0, 0, false); err == nil {
		t.Error("a name that was never deleted may be denied")
	}
	if _, err := versionOf(0, keyOf(1, 1)); err == nil {
		t.Error("the key of another name is taken for this one's")
	}
}
