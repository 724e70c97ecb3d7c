package coredump_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dkimzone/dkimzone/internal/coredump"
)

// child is set in the processes that TestDisable starts: they crash.
const child = "DKIMZONE_TEST_CRASH"

func TestMain(m *testing.M) {
	switch os.Getenv(child) {
	case "":
		os.Exit(m.Run())
	case "protected":
		if err := coredump.Disable(); err != nil {
			println(err.Error())
			os.Exit(3)
		}
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		os.Exit(3)
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		os.Exit(3)
	}
	println("limit", limit.Cur, limit.Max, "dumpable", dumpable)
	// Not a Go panic: what the kernel does of itself.
	_ = unix.Kill(os.Getpid(), unix.SIGSEGV)
	select {}
}

func TestDisable(t *testing.T) {
	crash := func(t *testing.T, mode string) (out string, cored bool, files []string) {
		t.Helper()
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		// GOTRACEBACK=crash lets Go's runtime abort, which dumps core.
		cmd := exec.Command("/bin/sh", "-c", `ulimit -c unlimited 2>/dev/null; exec "$0"`, exe)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), child+"="+mode, "GOTRACEBACK=crash")
		text, err := cmd.CombinedOutput()
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			t.Fatalf("the process did not crash: %v, %s", err, text)
		}
		status, ok := exit.Sys().(syscall.WaitStatus)
		if !ok || !status.Signaled() {
			t.Fatalf("the process ended with %v, not by a signal: %s", exit, text)
		}
		files, err = filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		return string(text), status.CoreDump(), files
	}
	out, cored, files := crash(t, "protected")
	if !strings.Contains(out, "limit 0 0 dumpable 0") {
		t.Errorf("protected process says %q, want no core size and not dumpable", out)
	}
	if cored || len(files) > 0 {
		t.Errorf("protected process dumped core: %t, left %q", cored, files)
	}
	if out, _, _ := crash(t, "bare"); strings.Contains(out, "dumpable 0") {
		t.Errorf("a process that did not ask for it says %q, so that the test says nothing", out)
	}
}
