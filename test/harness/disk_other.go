//go:build !linux

package harness

import "testing"

// SmallDisk skips the test.
func SmallDisk(tb testing.TB) string {
	tb.Helper()
	tb.Skip("disks are mounted on Linux only")
	return ""
}
