package coredump

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Disable makes this process leave no core file when it crashes, and keeps other
// processes of the same user from reading its memory (ptrace, /proc/PID/mem). It
// holds until the process ends. Elsewhere than on Linux only the core file is
// seen to.
func Disable() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("switch core files off: %w", err)
	}
	// A core_pattern that is a pipe is not bound by the limit.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make the process not dumpable: %w", err)
	}
	return nil
}
