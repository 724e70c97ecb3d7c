package agent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dkimzone/dkimzone/internal/agent"
	"github.com/dkimzone/dkimzone/signer"
)

// lines is what was logged.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

// want compares the numbers of keys in SigningTable, by pattern.
func want(t *testing.T, dir string, want map[string]int) {
	t.Helper()
	got, err := signing(dir)
	if err != nil {
		t.Fatal(err)
	}
	counts := make(map[string]int)
	for pattern, files := range got {
		counts[pattern] = len(files)
	}
	if diff := cmp.Diff(want, counts); diff != "" {
		t.Errorf("SigningTable (-want +got):\n%s", diff)
	}
}

func TestRotation(t *testing.T) {
	w := newWorld(t, "opendkim")
	a := w.open(t)
	one, ed, next := info("a.dk", "s1", "k1"), info("a.dk", "ed1", "k2"), info("a.dk", "s2", "k3")
	w.domains["a.dk"], w.standby = []signer.KeyInfo{ed, one}, []signer.KeyInfo{next}
	agent.Step(t.Context(), a, w)
	want(t, w.dir, map[string]int{"*@a.dk": 1})
	if w.reloads != 1 || !slices.Equal(w.told, []string{one.Owner()}) {
		t.Errorf("%d reloads, told of %v", w.reloads, w.told)
	}
	// The standby is held, and never signed.
	if diff := cmp.Diff(map[string]time.Time{one.Name: start, ed.Name: start, next.Name: {}}, a.Holds(one.Owner())); diff != "" {
		t.Errorf("holds (-want +got):\n%s", diff)
	}
	agent.Step(t.Context(), a, w)
	if w.reloads != 1 || len(w.told) != 1 {
		t.Errorf("%d reloads, told of %v when nothing has changed", w.reloads, w.told)
	}

	// It takes over. The one before stays, and counts as used, until nobody can be
	// signing with it any more.
	w.add(time.Hour)
	w.confirm = w.now()
	w.domains["a.dk"], w.standby = []signer.KeyInfo{ed, next}, nil
	agent.Step(t.Context(), a, w)
	switched := w.now()
	want(t, w.dir, map[string]int{"*@a.dk": 1})
	w.add(agent.Grace - time.Second)
	agent.Step(t.Context(), a, w)
	if diff := cmp.Diff(map[string]time.Time{one.Name: w.now(), ed.Name: w.now(), next.Name: w.now()}, a.Holds(one.Owner())); diff != "" {
		t.Errorf("holds while the old key stays (-want +got):\n%s", diff)
	}
	if keys, err := filepath.Glob(filepath.Join(w.dir, "keys", "*")); err != nil || len(keys) != 3 {
		t.Errorf("%d key files: %v", len(keys), err)
	}
	if agent.Due(t.Context(), a, w) {
		t.Error("something is due before the old key may go")
	}
	w.add(time.Second)
	if !agent.Due(t.Context(), a, w) {
		t.Error("nothing is due when the old key may go")
	}
	w.told = nil
	agent.Step(t.Context(), a, w)
	if got := a.Holds(one.Owner()); len(got) != 2 || !slices.Equal(w.told, []string{one.Owner()}) {
		t.Errorf("holds %v, told of %v, %s after the switch", got, w.told, w.now().Sub(switched))
	}
	if keys, err := filepath.Glob(filepath.Join(w.dir, "keys", "*")); err != nil || len(keys) != 2 {
		t.Errorf("%d key files: %v", len(keys), err)
	}
	want(t, w.dir, map[string]int{"*@a.dk": 1})
}

// A key is acknowledged when the signer was reloaded, not before.
func TestReloadFails(t *testing.T) {
	w := newWorld(t, "opendkim")
	a := w.open(t)
	k := info("a.dk", "s1", "k1")
	w.domains["a.dk"], w.broken = []signer.KeyInfo{k}, errors.New("no such process")
	for range 2 {
		agent.Step(t.Context(), a, w)
	}
	if len(w.told) > 0 || len(a.Holds(k.Owner())) > 0 || a.Stats().ReloadFailures != 2 || a.Stats().Synced {
		t.Errorf("told of %v, %+v", w.told, a.Stats())
	}
	if n := w.log.count("no such process"); n != 1 {
		t.Errorf("%d lines about it", n)
	}
	w.broken = nil
	agent.Step(t.Context(), a, w)
	if len(w.told) != 1 || len(a.Holds(k.Owner())) != 1 || !a.Stats().Synced {
		t.Errorf("told of %v, %+v", w.told, a.Stats())
	}

	// While the tables with the next key were not read, the one before may sign.
	next := info("a.dk", "s2", "k2")
	w.broken = errors.New("no such process")
	w.domains["a.dk"] = []signer.KeyInfo{next}
	agent.Step(t.Context(), a, w)
	w.add(2 * agent.Grace)
	if got := a.Holds(k.Owner()); !got[k.Name].Equal(w.now()) || len(got) != 1 {
		t.Errorf("holds %v", got)
	}
}

// Keys that do not come leave their domain as it was, and the others go on.
func TestKeysDoNotCome(t *testing.T) {
	w := newWorld(t, "opendkim")
	a := w.open(t)
	w.domains["a.dk"] = []signer.KeyInfo{info("a.dk", "s1", "k1")}
	agent.Step(t.Context(), a, w)
	before, err := signing(w.dir)
	if err != nil {
		t.Fatal(err)
	}
	next := info("a.dk", "s2", "k2")
	w.denied[next.Name] = signer.ErrRefused
	w.domains["a.dk"] = []signer.KeyInfo{next}
	w.domains["b.dk"] = []signer.KeyInfo{info("b.dk", "s1", "k3")}
	agent.Step(t.Context(), a, w)
	after, err := signing(w.dir)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(before["*@a.dk"], after["*@a.dk"]) || len(after["*@b.dk"]) != 1 || a.Stats().Synced {
		t.Errorf("%v became %v, %+v", before, after, a.Stats())
	}

	// But no longer than it was good for.
	w.add(hold)
	w.confirm = w.now()
	if !agent.Due(t.Context(), a, w) {
		t.Error("nothing is due when the old key must go")
	}
	agent.Step(t.Context(), a, w)
	want(t, w.dir, map[string]int{"*@b.dk": 1})
}

func TestAway(t *testing.T) {
	w := newWorld(t, "opendkim")
	a := w.open(t)
	w.domains["a.dk"] = []signer.KeyInfo{info("a.dk", "s1", "k1")}
	agent.Step(t.Context(), a, w)
	w.add(hold - time.Second)
	if agent.Due(t.Context(), a, w) {
		agent.Step(t.Context(), a, w)
	}
	want(t, w.dir, map[string]int{"*@a.dk": 1})
	w.add(time.Second)
	if !agent.Due(t.Context(), a, w) {
		t.Error("nothing is due when the keys must go")
	}
	agent.Step(t.Context(), a, w)
	want(t, w.dir, map[string]int{})
	if s := a.Stats(); s.Expired != 1 || s.Domains != 0 {
		t.Errorf("%+v", s)
	}
	w.add(time.Second)
	w.confirm = w.now()
	agent.Step(t.Context(), a, w)
	want(t, w.dir, map[string]int{"*@a.dk": 1})
}

// Without dkimd the files are made from the cache, with what is still good.
func TestOffline(t *testing.T) {
	for _, tt := range []struct {
		name   string
		damage func(t *testing.T, w *world)
		later  time.Duration
		want   map[string]int
		log    string
	}{
		{name: "good", want: map[string]int{"*@a.dk": 1, "*@b.dk": 1}},
		{name: "expired", later: hold, want: map[string]int{}},
		{name: "the clock went back", later: -48 * time.Hour, want: map[string]int{"*@a.dk": 1, "*@b.dk": 1}},
		{name: "half-written", damage: func(t *testing.T, w *world) { cut(t, filepath.Join(w.dir+".cache", "state")) }, log: "the cache cannot be used", want: map[string]int{}},
		{name: "no time", damage: func(t *testing.T, w *world) { cut(t, filepath.Join(w.dir+".cache", "confirmed")) }, log: "the cache cannot be used", want: map[string]int{}},
		{name: "empty", damage: func(t *testing.T, w *world) {
			if err := os.Truncate(filepath.Join(w.dir+".cache", "state"), 0); err != nil {
				t.Fatal(err)
			}
		}, log: "the cache cannot be used", want: map[string]int{}},
		{name: "half a key", damage: func(t *testing.T, w *world) {
			files, err := filepath.Glob(filepath.Join(w.dir+".cache", "keys", "*"))
			if err != nil || len(files) != 2 {
				t.Fatal(files, err)
			}
			cut(t, files[0])
		}, log: "private keys do not come", want: map[string]int{"one": 1}},
		{name: "keys exchanged", damage: func(t *testing.T, w *world) {
			files, err := filepath.Glob(filepath.Join(w.dir+".cache", "keys", "*"))
			if err != nil || len(files) != 2 {
				t.Fatal(files, err)
			}
			if err := os.Rename(files[0], files[1]); err != nil {
				t.Fatal(err)
			}
		}, log: "private keys do not come", want: map[string]int{}},
		{name: "another key file", damage: func(t *testing.T, w *world) {
			if err := os.WriteFile(w.dir+".cache.key", bytes.Repeat([]byte{1}, 32), 0o600); err != nil {
				t.Fatal(err)
			}
		}, log: "the cache cannot be used", want: map[string]int{}},
		{name: "no key file", damage: func(t *testing.T, w *world) {
			if err := os.Remove(w.dir + ".cache.key"); err != nil {
				t.Fatal(err)
			}
		}, log: "the cache cannot be used", want: map[string]int{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, "opendkim")
			a := w.open(t)
			w.domains["a.dk"] = []signer.KeyInfo{info("a.dk", "s1", "k1")}
			w.domains["b.dk"] = []signer.KeyInfo{info("b.dk", "s1", "k2")}
			agent.Step(t.Context(), a, w)
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(w.dir); err != nil { // as after a start of the machine
				t.Fatal(err)
			}
			if tt.damage != nil {
				tt.damage(t, w)
			}
			w.add(tt.later)
			a = w.open(t)
			agent.Step(t.Context(), a, nil)
			got, err := signing(w.dir)
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for _, k := range tt.want {
				n += k
			}
			if len(got) != n {
				t.Errorf("tables %v, want %v", got, tt.want)
			}
			if tt.log != "" && w.log.count(tt.log) == 0 {
				agent.Step(t.Context(), a, nil)
			}
			// dkimd comes back, and is told what is held.
			w.told = nil
			w.confirm = w.now()
			agent.Step(t.Context(), a, w)
			want(t, w.dir, map[string]int{"*@a.dk": 1, "*@b.dk": 1})
			slices.Sort(w.told)
			if !slices.Equal(w.told, []string{"brands/acme/domains/a.dk", "brands/acme/domains/b.dk"}) {
				t.Errorf("told of %v", w.told)
			}
			// The cache is good again.
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(w.dir); err != nil {
				t.Fatal(err)
			}
			agent.Step(t.Context(), w.open(t), nil)
			want(t, w.dir, map[string]int{"*@a.dk": 1, "*@b.dk": 1})
		})
	}
}

// cut leaves half of a file.
func cut(t *testing.T, file string) {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, info.Size()/2); err != nil {
		t.Fatal(err)
	}
}

// Nothing of the cache is readable without its key.
func TestSealed(t *testing.T) {
	w := newWorld(t, "opendkim")
	if err := os.Remove(w.dir + ".cache.key"); err != nil { // the agent makes one
		t.Fatal(err)
	}
	w.domains["a.dk"] = []signer.KeyInfo{info("a.dk", "s1", "k1")}
	agent.Step(t.Context(), w.open(t), w)
	secret := private(info("a.dk", "s1", "k1").Name)
	for _, pattern := range []string{"*", "keys/*"} {
		files, err := filepath.Glob(filepath.Join(w.dir+".cache", pattern))
		if err != nil || len(files) == 0 {
			t.Fatal(files, err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err == nil && (bytes.Contains(data, []byte("a.dk")) || bytes.Contains(data, secret[len(secret)-32:])) {
				t.Errorf("%s shows what it holds", file)
			}
		}
	}
	if info, err := os.Stat(w.dir + ".cache.key"); err != nil || info.Size() != 32 || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestStrangeDirectories(t *testing.T) {
	for name, prepare := range map[string]func(w *world) error{
		"a file of somebody": func(w *world) error { return os.WriteFile(filepath.Join(w.dir, "main.cf"), nil, 0o600) },
		"a table of somebody": func(w *world) error {
			return os.WriteFile(filepath.Join(w.dir, "KeyTable"), []byte("x a:b:c\n"), 0o600)
		},
		"keys of somebody": func(w *world) error {
			return errors.Join(os.Mkdir(filepath.Join(w.dir, "keys"), 0o700), os.WriteFile(filepath.Join(w.dir, "keys", "x.pem"), nil, 0o600))
		},
		"a link":            func(w *world) error { return os.Symlink("/etc/passwd", filepath.Join(w.dir, "manifest.json")) },
		"a broken manifest": func(w *world) error { return os.WriteFile(filepath.Join(w.dir, "manifest.json"), []byte("{"), 0o600) },
		"of another format": func(w *world) error {
			return os.WriteFile(filepath.Join(w.dir, "manifest.json"), []byte(`{"format":"exim"}`), 0o600)
		},
		"a directory inside": func(w *world) error { return os.Mkdir(filepath.Join(w.dir, "KeyTable"), 0o700) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "opendkim")
			if err := os.Mkdir(w.dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := prepare(w); err != nil {
				t.Fatal(err)
			}
			before := listing(t, w.dir)
			_, err := agent.New(w.options())
			if err == nil || !strings.Contains(err.Error(), w.dir) {
				t.Errorf("error %v", err)
			}
			if name != "a broken manifest" && !errors.Is(err, agent.ErrStrange) {
				t.Errorf("error %v, want ErrStrange", err)
			}
			if diff := cmp.Diff(before, listing(t, w.dir)); diff != "" {
				t.Errorf("it changed (-before +after):\n%s", diff)
			}
		})
	}
	t.Run("two agents", func(t *testing.T) {
		w := newWorld(t, "opendkim")
		w.open(t)
		if _, err := agent.New(w.options()); err == nil || !strings.Contains(err.Error(), "another agent") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("a name with a space", func(t *testing.T) {
		w := newWorld(t, "opendkim")
		w.dir += " x"
		if _, err := agent.New(w.options()); err == nil || !strings.Contains(err.Error(), "cannot stand in tables") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("an open key file", func(t *testing.T) {
		w := newWorld(t, "opendkim")
		if err := os.Chmod(w.dir+".cache.key", 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := agent.New(w.options()); err == nil || !strings.Contains(err.Error(), "can be read by others") {
			t.Errorf("error %v", err)
		}
	})
}

func listing(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		all = append(all, fmt.Sprint(path, " ", info.Mode(), " ", info.Size()))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// What could escape from a table or the directory is left out.
func TestInvalidNames(t *testing.T) {
	good := info("a.dk", "s1", "k1")
	for name, change := range map[string]func(k *signer.KeyInfo){
		"domain with a newline":    func(k *signer.KeyInfo) { k.Domain = "a.dk\n*@b.dk x" },
		"domain with a colon":      func(k *signer.KeyInfo) { k.Domain = "a.dk:x:/etc/passwd" },
		"domain that goes up":      func(k *signer.KeyInfo) { k.Domain = "../../a.dk" },
		"selector with a space":    func(k *signer.KeyInfo) { k.Selector = "s1 x" },
		"selector with a slash":    func(k *signer.KeyInfo) { k.Selector = "../s" },
		"upper case":               func(k *signer.KeyInfo) { k.Domain = "A.dk" },
		"key that goes up":         func(k *signer.KeyInfo) { k.Name = "brands/acme/domains/../../keys/k1" },
		"key with a newline":       func(k *signer.KeyInfo) { k.Name = good.Name + "\nx" },
		"algorithm with a newline": func(k *signer.KeyInfo) { k.Algorithm = "rsa-sha256\n" },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "opendkim")
			a := w.open(t)
			k := info("b.dk", "s1", "k2")
			change(&k)
			w.domains["a.dk"], w.domains["b.dk"], w.standby = []signer.KeyInfo{good}, []signer.KeyInfo{k}, []signer.KeyInfo{k}
			agent.Step(t.Context(), a, w)
			want(t, w.dir, map[string]int{"*@a.dk": 1})
			if keys, err := filepath.Glob(filepath.Join(w.dir, "keys", "*")); err != nil || len(keys) != 1 {
				t.Errorf("%v, %v", keys, err)
			}
			if w.log.count("left out") != 1 {
				t.Error("nothing is said of it")
			}
		})
	}
	t.Run("sender", func(t *testing.T) {
		w := newWorld(t, "opendkim")
		w.domains["x * y"], w.domains["a.dk"] = []signer.KeyInfo{good}, []signer.KeyInfo{good}
		agent.Step(t.Context(), w.open(t), w)
		want(t, w.dir, map[string]int{"*@a.dk": 1})
	})
}

// Run follows each change, starts offline when nobody answers, and ends with its
// context.
func TestRun(t *testing.T) {
	w := newWorld(t, "opendkim")
	w.domains["a.dk"] = []signer.KeyInfo{info("a.dk", "s1", "k1")}
	run := func(a *agent.Agent) (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); a.Run(ctx, w) }()
		return func() {
			cancel()
			<-done
			if err := a.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	await := func(what string, n int) {
		t.Helper()
		limit := time.After(30 * time.Second)
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			if got, err := signing(w.dir); err != nil {
				t.Fatal(err)
			} else if len(got) == n {
				return
			}
			select {
			case <-limit:
				t.Fatalf("%s: not so", what)
			case <-tick.C:
				w.add(50 * time.Millisecond)
			}
		}
	}
	stop := run(w.open(t))
	await("the first table", 1)
	w.set(func() { w.domains["b.dk"] = []signer.KeyInfo{info("b.dk", "s1", "k2")} })
	await("a domain that came", 2)
	stop()

	if err := os.RemoveAll(w.dir); err != nil {
		t.Fatal(err)
	}
	w.locked(func() { w.confirm = time.Time{} })
	stop = run(w.open(t))
	await("tables from the cache", 2)
	w.set(func() { w.confirm = w.now(); delete(w.domains, "a.dk") })
	await("dkimd is back", 1)
	stop()
}
