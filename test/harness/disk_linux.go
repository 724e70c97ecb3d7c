package harness

import (
	"syscall"
	"testing"
)

// SmallDisk mounts a disk of 1 MiB until the end of the test, which is skipped where it
// may not.
func SmallDisk(tb testing.TB) string {
	tb.Helper()
	dir := tb.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m,mode=0700"); err != nil {
		tb.Skipf("no disk can be mounted: %v", err)
	}
	tb.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			tb.Error(err)
		}
	})
	return dir
}
