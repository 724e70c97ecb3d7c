//go:build unix && !linux && !aix

package coredump

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Disable makes this process leave no core file when it crashes.
func Disable() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("switch core files off: %w", err)
	}
	return nil
}
