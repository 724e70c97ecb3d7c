package embedetcd_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/dkimzone/dkimzone/internal/embedetcd"
)

const childDir = "EMBEDETCD_TEST_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		writeForEver(dir)
	}
	os.Exit(m.Run())
}

// writeForEver is the child process: it prints each key it wrote after the
// write was acknowledged.
func writeForEver(dir string) {
	s, err := embedetcd.Start(context.Background(), embedetcd.Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	for i := 0; err == nil; i++ {
		key := fmt.Sprintf("k%d", i)
		if _, err = s.Client().Put(context.Background(), key, "v"); err == nil {
			_, err = fmt.Println(key)
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func TestKilledProcessLosesNothing(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(deadline(t), exe)
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	var keys []string
	for lines.Scan() {
		keys = append(keys, lines.Text())
		if len(keys) == 10 {
			if _, err := embedetcd.Start(deadline(t), config(dir)); !errors.Is(err, embedetcd.ErrInUse) {
				t.Errorf("Start while another process has the directory: %v, want %v", err, embedetcd.ErrInUse)
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err == nil || len(keys) < 10 {
		t.Fatalf("child wrote %d keys and ended with %v: %s", len(keys), err, stderr.String())
	}

	s := start(t, dir)
	for _, key := range keys {
		resp, err := s.Client().Get(deadline(t), key)
		if err != nil || len(resp.Kvs) != 1 {
			t.Fatalf("key %s of %d acknowledged before the kill: %v, %v", key, len(keys), resp, err)
		}
	}
}
