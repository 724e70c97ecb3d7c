//go:build !linux

package robustness_test

import "testing"

func smallDisk(t *testing.T) string {
	t.Helper()
	t.Skip("only on Linux")
	return ""
}
