package harness

import (
	"net"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/dkimzone/dkimzone/test/output"
)

// StartSystem runs a program of the system, and what that starts, until the end of the
// test. What it wrote is shown if the test has failed.
func StartSystem(tb testing.TB, path string, args ...string) {
	tb.Helper()
	var out output.Buffer
	cmd := exec.Command(path, args...) //nolint:gosec // a program that a test names
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		tb.Fatalf("%v: make interop installs it", err)
	}
	tb.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait() // it was killed
		if tb.Failed() {
			tb.Logf("%s wrote\n%s", path, tail(out.String()))
		}
	})
}

// Listens waits until something takes connections at a TCP address.
func Listens(tb testing.TB, what, addr string) {
	tb.Helper()
	Eventually(tb, time.Minute, what+" listens", func() error {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			err = c.Close()
		}
		return err
	})
}
