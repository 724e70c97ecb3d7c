package harness_test

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/dkimzone/dkimzone/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

func TestAddr(t *testing.T) {
	seen := make(map[string]bool)
	for range 50 {
		addr := harness.Addr(t)
		if seen[addr] {
			t.Fatalf("%s given out twice", addr)
		}
		seen[addr] = true
		if ip := net.ParseIP(addr[:strings.LastIndex(addr, ":")]); !ip.IsLoopback() {
			t.Fatalf("%s is no loopback address", addr)
		}
	}
}

func TestRun(t *testing.T) {
	r := harness.Run(t, t.TempDir(), harness.Etcd, nil, "--version")
	if r.Code != 0 || !strings.Contains(r.Stdout, "etcd Version: 3.") {
		t.Errorf("etcd --version: exit code %d, output %q", r.Code, r.Stdout)
	}
	// The test's own settings of the programs must not reach them, those given must.
	t.Setenv("ETCD_NAME", "from-outside")
	r = harness.Run(t, t.TempDir(), harness.Etcd, []string{"ETCD_ELECTION_TIMEOUT=nonsense"})
	if out := r.Stdout + r.Stderr; r.Code == 0 || strings.Contains(out, "from-outside") || !strings.Contains(out, "nonsense") {
		t.Errorf("etcd with a bad setting: exit code %d, output %q", r.Code, out)
	}
}

func TestCluster(t *testing.T) {
	c := harness.StartCluster(t, harness.NewPKI(t))
	client := c.Client(t, "dkimd")
	put := func(value string) {
		t.Helper()
		harness.Eventually(t, time.Minute, "write "+value, func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			_, err := client.Put(ctx, "/dkim/v1/test", value)
			return err
		})
	}
	put("all")
	c.Members[0].Process.Kill()
	put("one killed")
	c.Start(t, 0)
	c.Members[1].Process.Pause()
	put("one back, one paused")
	c.Members[1].Process.Resume()
	c.Members[2].Process.Terminate()
	if code := c.Members[2].Process.Exit(t, time.Minute); code != -1 && code != 0 {
		t.Errorf("etcd ended with exit code %d after SIGTERM", code)
	}
	if c.Members[2].Process.Running() == nil {
		t.Error("an ended process counts as running")
	}
	put("one ended")

	c.Kill()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := client.Get(ctx, "/dkim/v1/test"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("read with all members killed: %v, want %v", err, context.DeadlineExceeded)
	}
	for i := range c.Members {
		c.Start(t, i)
	}
	harness.Eventually(t, time.Minute, "read what was written last", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		resp, err := client.Get(ctx, "/dkim/v1/test")
		if err != nil {
			return err
		}
		if len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != "one ended" {
			t.Errorf("read %v, want the last value written", resp.Kvs)
		}
		return nil
	})
}
