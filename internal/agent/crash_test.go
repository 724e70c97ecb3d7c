package agent_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/dkimzone/dkimzone/internal/agent"
	"github.com/dkimzone/dkimzone/signer"
)

var errCrash = errors.New("the process is gone")

// phases is a life of a directory, step by step.
var phases = []func(w *world){
	func(w *world) {
		w.domains["a.dk"] = []signer.KeyInfo{info("a.dk", "s1", "k1"), info("a.dk", "ed1", "k2")}
		w.domains["b.dk"] = []signer.KeyInfo{info("b.dk", "s1", "k3")}
		w.standby = []signer.KeyInfo{info("a.dk", "s2", "k4")}
	},
	func(w *world) { // a rotation, and a domain goes
		w.domains["a.dk"] = []signer.KeyInfo{info("a.dk", "s2", "k4"), info("a.dk", "ed1", "k2")}
		w.standby = []signer.KeyInfo{info("a.dk", "ed2", "k5")}
		delete(w.domains, "b.dk")
	},
	func(w *world) { w.add(agent.Grace) }, // old keys go
	func(w *world) { // a new key in the selector of an old one
		w.domains["a.dk"] = []signer.KeyInfo{info("a.dk", "s1", "k6"), info("a.dk", "ed2", "k5")}
		w.standby = nil
		w.domains["c.dk"] = []signer.KeyInfo{info("c.dk", "s1", "k7")}
	},
	func(w *world) { w.add(agent.Grace) },
}

// The process is ended before every operation on a file in turn, or the operation
// fails half-way. No table then names a key that is not there whole, neither before nor
// after the next start, which brings all in step and leaves nothing else behind.
func TestCrashes(t *testing.T) {
	for _, many := range []int{0, 2} { // files are synced one by one, or together
		for _, once := range []bool{false, true} { // one operation fails, or all from then on
			operations := 0
			for at := 1; ; at++ {
				done := crash(t, "opendkim", at, once, many)
				if done {
					operations = at - 1
					break
				}
				if t.Failed() {
					t.Fatalf("operation %d, only that one: %t, together from %d files on", at, once, many)
				}
			}
			t.Logf("%d operations", operations)
			if operations < 80 {
				t.Errorf("%d operations only", operations)
			}
		}
	}
}

// The same holds for files of other formats, which differ in their names only: every
// seventh operation is enough.
func TestCrashesOfFormats(t *testing.T) {
	for _, f := range formats(t) {
		if f.Name == "opendkim" {
			continue
		}
		t.Run(f.Name, func(t *testing.T) {
			t.Parallel()
			for at := 1; !crash(t, f.Name, at, at%2 == 0, 0); at += 7 {
				if t.Failed() {
					t.Fatalf("operation %d", at)
				}
			}
		})
	}
}

func crash(t *testing.T, format string, at int, once bool, many int) (done bool) {
	t.Helper()
	w := newWorld(t, format)
	options := func(fault func(operation, path string) error) agent.Options {
		return agent.WithMany(agent.WithFault(w.options(), fault), many)
	}
	n, failing := 0, true
	fault := func(operation, path string) error {
		n++
		// How it is before other operations is looked at when it is their turn.
		if n == at || !failing && (operation == "rename" || operation == "remove") {
			if err := sound(w.dir); err != nil {
				t.Errorf("before %s %s: %v", operation, path, err)
			}
		}
		if failing && (n == at || n > at && !once) {
			return errCrash
		}
		return unsynced(operation, path)
	}
	for phase := range phases {
		phases[phase](w)
		a, err := agent.New(options(fault))
		if err == nil {
			agent.Step(t.Context(), a, w)
			err = a.Close()
		}
		if n < at && err != nil {
			t.Fatal(err)
		}
		if err := sound(w.dir); err != nil {
			t.Errorf("phase %d: %v", phase, err)
		}
		if n >= at && !once || err != nil {
			break
		}
	}
	if n < at {
		return true
	}
	// The next start.
	failing = false
	for range 2 {
		a, err := agent.New(options(fault))
		if err != nil {
			t.Fatal(err)
		}
		agent.Step(t.Context(), a, w)
		if !a.Stats().Synced {
			t.Errorf("not in step after the next start: %+v", a.Stats())
		}
		w.add(agent.Grace)
		w.confirm = w.now()
		agent.Step(t.Context(), a, w)
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
	}
	files := 0
	for _, keys := range w.domains {
		files += len(keys)
	}
	if err := sound(w.dir); err != nil {
		t.Error(err)
	}
	if format == "opendkim" {
		got, err := signing(w.dir)
		if err != nil {
			t.Fatal(err)
		}
		for name := range w.domains {
			if len(got["*@"+name]) != 1 { // the RSA key
				t.Errorf("%s: %v", name, got)
			}
		}
	}
	there, err := filepath.Glob(filepath.Join(w.dir, "keys", "*"))
	if err != nil || len(there) != files+len(w.standby) {
		t.Errorf("%d key files, want %d: %v", len(there), files+len(w.standby), there)
	}
	entries, err := os.ReadDir(w.dir)
	if err != nil || len(entries) != 2+len(agent.Tables(w.format)) {
		t.Errorf("%v, %v", entries, err)
	}
	return false
}

// keyPath is how a file of a key is named in any table.
var keyPath = regexp.MustCompile(`/[A-Za-z0-9/._+-]+\.pem`)

// sound checks that no table names what is not there.
func sound(dir string) error {
	if _, err := signing(dir); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if e.IsDir() || e.Name() == "manifest.json" || filepath.Ext(e.Name()) == ".tmp" {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		for _, path := range keyPath.FindAllString(string(data), -1) {
			if err := wholeKey(path); err != nil {
				return fmt.Errorf("%s names %w", e.Name(), err)
			}
		}
	}
	return nil
}

// A disk that is full leaves the files as they are, which is said once, and the agent
// goes on when there is room.
func TestFullDisk(t *testing.T) {
	w := newWorld(t, "opendkim")
	full := false
	a, err := agent.New(agent.WithFault(w.options(), func(operation, _ string) error {
		if full && operation == "write" {
			return fmt.Errorf("no space left on device")
		}
		return unsynced(operation, "")
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	phases[0](w)
	agent.Step(t.Context(), a, w)
	before, err := signing(w.dir)
	if err != nil {
		t.Fatal(err)
	}
	full = true
	phases[1](w)
	for range 3 {
		w.add(time.Minute)
		agent.Step(t.Context(), a, w)
	}
	after, err := signing(w.dir)
	if err != nil || len(after) != len(before) {
		t.Errorf("%v, %v", after, err)
	}
	if n := w.log.count("no space left"); n != 1 || a.Stats().Synced || a.Stats().Failures != 3 {
		t.Errorf("%d lines, %+v", n, a.Stats())
	}
	if !agent.Due(t.Context(), a, w) {
		w.add(time.Minute)
		if !agent.Due(t.Context(), a, w) {
			t.Error("it is not tried again")
		}
	}
	full = false
	agent.Step(t.Context(), a, w)
	want(t, w.dir, map[string]int{"*@a.dk": 1})
}
