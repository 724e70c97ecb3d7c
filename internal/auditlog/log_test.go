package auditlog_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dkimzone/dkimzone/internal/auditlog"
)

func options(path string) auditlog.Options {
	return auditlog.Options{Path: path, Now: time.Now, Logger: slog.New(slog.DiscardHandler)}
}

func open(t testing.TB, o auditlog.Options) *auditlog.Log {
	t.Helper()
	l, err := auditlog.Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func shut(t testing.TB, l *auditlog.Log) {
	t.Helper()
	if err := l.Close(context.Background()); err != nil {
		t.Error(err)
	}
}

func record(t testing.TB, l *auditlog.Log, calls ...string) {
	t.Helper()
	for _, c := range calls {
		if err := l.Record(context.Background(), auditlog.Entry{Call: c, Outcome: "OK"}); err != nil {
			t.Fatal(err)
		}
	}
}

// check reads the files of a log and returns their calls. It must be whole.
func check(t testing.TB, path string) []string {
	t.Helper()
	calls, breaks := read(t, path)
	if len(breaks) > 0 {
		t.Errorf("breaks %v", breaks)
	}
	return calls
}

func read(t testing.TB, path string) (calls []string, breaks []auditlog.Break) {
	t.Helper()
	names, err := filepath.Glob(path + ".0*")
	if err != nil {
		t.Fatal(err)
	}
	v := auditlog.Verifier{Each: func(e auditlog.Entry) {
		call := e.Call
		if e.Reason != "" {
			call += " " + e.Reason
		}
		calls = append(calls, call)
	}}
	for _, name := range append(names, path) {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := v.File(filepath.Base(name), bytes.NewReader(text)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(v.Chains()); n != 1 {
		t.Errorf("%d chains, want 1", n)
	}
	return calls, v.Breaks()
}

func TestGoesOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	for _, call := range []string{"one", "two"} {
		l := open(t, options(path))
		record(t, l, call)
		shut(t, l)
		if err := l.Record(t.Context(), auditlog.Entry{}); !errors.Is(err, auditlog.ErrFailing) || l.Ready() == nil {
			t.Errorf("a closed log: %v, Ready %v", err, l.Ready())
		}
	}
	want := []string{"dkimd/start", "one", "dkimd/stop", "dkimd/start", "two", "dkimd/stop"}
	if diff := cmp.Diff(want, check(t, path)); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
}

func TestOneProcessOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, options(path))
	defer shut(t, l)
	if other, err := auditlog.Open(t.Context(), options(path)); err == nil {
		t.Error("opened twice")
		shut(t, other)
	}
	if _, err := auditlog.Open(t.Context(), options(filepath.Join(t.TempDir(), "no", "audit.log"))); err == nil {
		t.Error("opened in a directory that is not there")
	}
}

func TestConcurrentRecords(t *testing.T) {
	for _, delay := range []time.Duration{0, time.Millisecond} {
		path := filepath.Join(t.TempDir(), "audit.log")
		o := options(path)
		o.Sync, o.MaxSize = delay, 20_000
		l := open(t, o)
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for k := range 50 {
					if err := l.Record(t.Context(), auditlog.Entry{Call: fmt.Sprintf("%d/%d", i, k), Outcome: "OK"}); err != nil {
						t.Error(err)
					}
					l.Note(auditlog.Entry{Call: "note", Outcome: "OK"})
				}
			})
		}
		wg.Wait()
		shut(t, l)
		calls := check(t, path)
		if len(calls) != 802 {
			t.Errorf("%d lines, want 802", len(calls))
		}
		next := make([]int, 8) // lines of one caller stand in order
		for _, c := range calls {
			var i, k int
			if n, _ := fmt.Sscanf(c, "%d/%d", &i, &k); n == 2 {
				if next[i] != k {
					t.Errorf("%s comes when %d was expected", c, next[i])
				}
				next[i] = k + 1
			}
		}
	}
}

func TestRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	o := options(path)
	o.MaxSize, o.Keep = 1000, 2
	l := open(t, o)
	for i := range 20 {
		record(t, l, fmt.Sprintf("call%d", i))
	}
	shut(t, l)
	files, err := filepath.Glob(path + ".0*")
	if err != nil || len(files) != 2 {
		t.Fatalf("rotated to %v, %v; want two", files, err)
	}
	for _, f := range append(files, path) {
		if info, err := os.Stat(f); err != nil || info.Size() > 1000 {
			t.Errorf("%s: %v, %v", f, info.Size(), err)
		}
	}
	calls := check(t, path)
	if n := len(calls); n < 5 || calls[n-1] != "dkimd/stop" || calls[n-2] != "call19" {
		t.Errorf("calls %v", calls)
	}

	// The chain goes on also if dkimd ends between the two files.
	newest := files[1]
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	l = open(t, o)
	record(t, l, "more")
	shut(t, l)
	if _, breaks := read(t, path); len(breaks) != 0 {
		t.Errorf("breaks %v after %s", breaks, newest)
	}
}

// A crash leaves the beginning of a line, or nothing of it.
func TestUnfinishedLine(t *testing.T) {
	for _, tt := range []struct{ name, rest string }{
		{"half a line", `{"chain":"aaaa`}, {"zeros", strings.Repeat("\x00", 5000)}, {"one octet", "{"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "audit.log")
			l := open(t, options(path))
			record(t, l, "one")
			shut(t, l)
			appendTo(t, path, tt.rest)
			var told bytes.Buffer
			o := options(path)
			o.Logger = slog.New(slog.NewTextHandler(&told, nil))
			l = open(t, o)
			shut(t, l)
			want := []string{"dkimd/start", "one", "dkimd/stop", "dkimd/mend", "dkimd/start", "dkimd/stop"}
			if diff := cmp.Diff(want, check(t, path)); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
			if !strings.Contains(told.String(), "audit log was not as it was left") {
				t.Errorf("told %q", told.String())
			}
		})
	}
}

// A log that somebody has changed is kept as it is, and the chain goes on from
// what is good.
func TestBrokenLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, options(path))
	record(t, l, "one", "two", "three")
	shut(t, l)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	evil := bytes.Replace(text, []byte(`"call":"two"`), []byte(`"call":"TWO"`), 1)
	if err := os.WriteFile(path, evil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // told once
		l = open(t, options(path))
		shut(t, l)
	}
	kept, err := os.ReadFile(path + ".broken-3-1")
	if err != nil || !bytes.Equal(kept, evil) {
		t.Errorf("the changed file is not kept as it was: %v", err)
	}
	want := []string{"dkimd/mend LOG_BROKEN", "dkimd/start", "dkimd/stop", "dkimd/start", "dkimd/stop"}
	if diff := cmp.Diff(want, check(t, path)); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	first, err := os.ReadFile(path)
	if err != nil || !bytes.Contains(first, []byte(`"seq":3,`)) {
		t.Errorf("the chain does not go on with line 3: %.300s", first)
	}
}

func appendTo(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// A log that is moved away goes on in a new file.
func TestMovedAway(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, options(path))
	record(t, l, "one")
	if err := os.Rename(path, path+".000000000001"); err != nil {
		t.Fatal(err)
	}
	record(t, l, "two")
	shut(t, l)
	want := []string{"dkimd/start", "one", "two", "dkimd/stop"}
	if diff := cmp.Diff(want, check(t, path)); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

// While nothing can be written callers are told at once, and what has happened is
// written as soon as that is possible.
func TestFailing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "log")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "audit.log")
		l := open(t, options(path))
		record(t, l, "one")
		if err := os.Rename(dir, dir+"2"); err != nil {
			t.Fatal(err)
		}
		for _, call := range []string{"two", "three"} {
			if err := l.Record(t.Context(), auditlog.Entry{Call: call, Outcome: "OK"}); !errors.Is(err, auditlog.ErrFailing) {
				t.Errorf("%s: %v, want ErrFailing", call, err)
			}
		}
		for range 20_000 {
			l.Note(auditlog.Entry{Call: "note", Outcome: "OK"})
		}
		time.Sleep(5 * time.Second)
		if err := l.Ready(); !errors.Is(err, auditlog.ErrFailing) {
			t.Errorf("Ready: %v, want ErrFailing", err)
		}
		if err := os.Rename(dir+"2", dir); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		if err := l.Ready(); err != nil {
			t.Errorf("Ready: %v", err)
		}
		record(t, l, "four")
		shut(t, l)
		calls := slices.DeleteFunc(check(t, path), func(c string) bool { return c == "note" })
		want := []string{"dkimd/start", "one", "two", "three", "dkimd/lost", "four", "dkimd/stop"}
		if diff := cmp.Diff(want, calls); diff != "" {
			t.Errorf("calls (-want +got):\n%s", diff)
		}
	})
}

// What cannot be written until the end is an error of Close.
func TestCloseWhileFailing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l := open(t, options(filepath.Join(dir, "audit.log")))
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := l.Record(t.Context(), auditlog.Entry{Call: "one"}); err == nil {
		t.Error("recorded without a directory")
	}
	if err := l.Close(t.Context()); err == nil || !strings.Contains(err.Error(), "2 entries are not in the audit log") {
		t.Errorf("Close: %v", err)
	}
}

// stuck fails after some octets until it is mended.
type stuck struct {
	mu   sync.Mutex
	room int // -1: any
	got  bytes.Buffer
}

func (s *stuck) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.room >= 0 && len(b) > s.room {
		n, _ := s.got.Write(b[:s.room])
		s.room = 0
		return n, io.ErrShortWrite
	}
	return s.got.Write(b)
}

func (s *stuck) allow(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.room = n
}

func TestOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &stuck{room: -1}
		l := open(t, auditlog.Options{Out: out, Now: time.Now, Logger: slog.New(slog.DiscardHandler)})
		record(t, l, "one")
		out.allow(30)
		if err := l.Record(t.Context(), auditlog.Entry{Call: "two"}); !errors.Is(err, auditlog.ErrFailing) {
			t.Errorf("%v, want ErrFailing", err)
		}
		out.allow(-1)
		time.Sleep(2 * time.Second)
		shut(t, l)
		var calls []string
		v := auditlog.Verifier{Each: func(e auditlog.Entry) { calls = append(calls, e.Call) }}
		if err := v.File("out", &out.got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"dkimd/start", "one", "two", "dkimd/stop"}, calls); diff != "" {
			t.Errorf("calls (-want +got):\n%s", diff)
		}
		// The torn piece stands on a line by itself.
		if b := v.Breaks(); len(b) != 1 || b[0].Kind != auditlog.Malformed {
			t.Errorf("breaks %v", b)
		}
	})
}

func BenchmarkRecord(b *testing.B) {
	for _, bb := range []struct {
		name    string
		sync    time.Duration
		callers int
	}{{"disk/1", 0, 1}, {"disk/64", 0, 64}, {"memory/1", time.Second, 1}, {"memory/64", time.Second, 64}} {
		b.Run(bb.name, func(b *testing.B) {
			o := options(filepath.Join(b.TempDir(), "audit.log"))
			o.Sync = bb.sync
			l := open(b, o)
			e := full()
			var wg sync.WaitGroup
			b.ResetTimer()
			for range bb.callers {
				wg.Go(func() {
					for range b.N / bb.callers {
						if err := l.Record(context.Background(), e); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			shut(b, l)
		})
	}
}
