package embedetcd_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/embedetcd"
)

func config(dir string) embedetcd.Config {
	return embedetcd.Config{Dir: dir, Logger: slog.New(slog.DiscardHandler), UnsafeNoFsync: true}
}

func start(t *testing.T, dir string) *embedetcd.Server {
	t.Helper()
	s, err := embedetcd.Start(t.Context(), config(dir))
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	t.Cleanup(s.Close)
	return s
}

// deadline bounds a whole test; nothing here should take a second.
func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func put(t *testing.T, c *clientv3.Client, key, value string) int64 {
	t.Helper()
	resp, err := c.Put(deadline(t), key, value)
	if err != nil {
		t.Fatalf("Put(%s): %v", key, err)
	}
	return resp.Header.Revision
}

func TestRestartContinues(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "etcd")
	s := start(t, dir)
	rev := put(t, s.Client(), "k", "v")
	status, err := s.Client().Status(deadline(t), "")
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	s.Close() // again: no effect
	select {
	case <-s.Done():
	default:
		t.Error("Done is open after Close")
	}

	s = start(t, dir)
	resp, err := s.Client().Get(deadline(t), "k")
	if err != nil || len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != "v" {
		t.Fatalf("Get after restart = %v, %v; want v", resp, err)
	}
	if resp.Header.Revision != rev || resp.Header.ClusterId != status.Header.ClusterId {
		t.Errorf("after restart revision %d, cluster %x; want %d, %x",
			resp.Header.Revision, resp.Header.ClusterId, rev, status.Header.ClusterId)
	}
}

func TestMembersOfTwoDirectoriesAreTwoClusters(t *testing.T) {
	ids := make(map[uint64]bool)
	for range 2 {
		s := start(t, t.TempDir())
		resp, err := s.Client().Get(deadline(t), "k")
		if err != nil {
			t.Fatal(err)
		}
		ids[resp.Header.ClusterId] = true
	}
	if len(ids) != 2 {
		t.Errorf("cluster ids %v are equal; a replica could not tell a new directory from the old one", ids)
	}
}

func TestStartsQuicklyAndQuietly(t *testing.T) {
	// etcd tells when something takes it a tenth of a second, as it may on a busy machine.
	const tries = 10
	var log bytes.Buffer
	for range tries {
		log.Reset()
		cfg := config(t.TempDir())
		cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second) // generous: the race detector, a busy machine
		defer cancel()
		began := time.Now()
		s, err := embedetcd.Start(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("started in %v", time.Since(began))
		put(t, s.Client(), "k", "v")
		s.Close()
		if log.Len() == 0 {
			return
		}
	}
	t.Errorf("a start and stop without trouble logged, each of %d times: %s", tries, log.String())
}

func TestListensOnNothing(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("counts sockets in /proc")
	}
	before := sockets(t)
	start(t, t.TempDir())
	if after := sockets(t); after > before {
		t.Errorf("%d sockets open, %d before the start", after, before)
	}
}

func sockets(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name()))
		if err == nil && strings.HasPrefix(target, "socket:") {
			n++
		}
	}
	return n
}

func TestDirectoryModes(t *testing.T) {
	mode := func(path string) os.FileMode {
		t.Helper()
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Mode().Perm()
	}
	parent := t.TempDir()
	created, empty, shared := filepath.Join(parent, "new"), filepath.Join(parent, "empty"), filepath.Join(parent, "shared")
	for _, dir := range []string{empty, shared} {
		if err := errors.Join(os.Mkdir(dir, 0o755), os.Chmod(dir, 0o755)); err != nil { // whatever the umask is
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(shared, "other"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, dir string
		want      os.FileMode
	}{
		{"created", created, 0o700},
		{"empty", empty, 0o700},
		{"with something else in it", shared, 0o755},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			start(t, tt.dir)
			if got := mode(tt.dir); got != tt.want {
				t.Errorf("mode of the directory %o, want %o", got, tt.want)
			}
			if got := mode(filepath.Join(tt.dir, "member")); got != 0o700 {
				t.Errorf("mode of member/ %o, want 700", got)
			}
		})
	}
}

func TestSecondStartFailsAtOnce(t *testing.T) {
	dir := t.TempDir()
	s := start(t, dir)
	if _, err := embedetcd.Start(deadline(t), config(dir)); !errors.Is(err, embedetcd.ErrInUse) {
		t.Errorf("second Start: %v, want %v", err, embedetcd.ErrInUse)
	}
	put(t, s.Client(), "k", "v") // the first one is not disturbed
	s.Close()
	start(t, dir)
}

// A stock etcd takes no lock but the one on its database.
func TestStartBesideStockEtcd(t *testing.T) {
	dir := t.TempDir()
	start(t, dir).Close()
	db, err := bbolt.Open(filepath.Join(dir, "member", "snap", "db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := embedetcd.Start(deadline(t), config(dir)); !errors.Is(err, embedetcd.ErrInUse) {
		t.Errorf("Start: %v, want %v", err, embedetcd.ErrInUse)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	start(t, dir)
}

func TestUnusableDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	corrupt := t.TempDir()
	snap := filepath.Join(corrupt, "member", "snap")
	if err := os.MkdirAll(snap, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(snap, "db"), bytes.Repeat([]byte("x"), 65536), 0o600); err != nil {
		t.Fatal(err)
	}
	foreign := t.TempDir()
	if err := os.WriteFile(filepath.Join(foreign, "member"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	readOnly := t.TempDir()
	if err := os.Chmod(readOnly, 0o500); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, dir string
		asRoot    bool // fails for root too
	}{
		{"none", "", true},
		{"a file", file, true},
		{"below a file", filepath.Join(file, "etcd"), true},
		{"a corrupt database", corrupt, true},
		{"member is a file", foreign, true},
		{"cannot be created", filepath.Join(readOnly, "etcd"), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if !tt.asRoot && os.Geteuid() == 0 {
				t.Skip("root may write everywhere")
			}
			s, err := embedetcd.Start(deadline(t), config(tt.dir))
			if !errors.Is(err, embedetcd.ErrUnusableDir) {
				t.Fatalf("Start = %v, %v; want %v", s, err, embedetcd.ErrUnusableDir)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error has more than one line: %q", err)
			}
		})
	}
}

// etcd ends the process when its write-ahead log is unreadable; here that is
// an error.
func TestCorruptLog(t *testing.T) {
	dir := t.TempDir()
	start(t, dir).Close()
	wals, err := filepath.Glob(filepath.Join(dir, "member", "wal", "*.wal"))
	if err != nil || len(wals) == 0 {
		t.Fatalf("no write-ahead log: %v", err)
	}
	for _, wal := range wals {
		if err := os.WriteFile(wal, bytes.Repeat([]byte{0xff}, 4096), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := embedetcd.Start(deadline(t), config(dir))
	if err == nil {
		s.Close()
		t.Fatal("Start with a corrupt log succeeded")
	}
	if !strings.Contains(err.Error(), dir) || strings.Contains(err.Error(), "\n") {
		t.Errorf("error %q does not name the directory in one line", err)
	}
}

func TestStartIsCancelled(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := embedetcd.Start(ctx, config(dir)); !errors.Is(err, context.Canceled) {
		t.Fatalf("Start: %v, want %v", err, context.Canceled)
	}
	// The member that was on its way is stopped, the directory is free, and
	// what the first start left in it does no harm.
	bound := deadline(t)
	for {
		s, err := embedetcd.Start(bound, config(dir))
		if err == nil {
			s.Close()
			return
		}
		if !errors.Is(err, embedetcd.ErrInUse) || bound.Err() != nil {
			t.Fatalf("Start after a cancelled one: %v", err)
		}
		runtime.Gosched()
	}
}
