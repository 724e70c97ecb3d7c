//go:build !linux || !amd64

package harness

import (
	"testing"
	"time"
)

// Clock is the clocks of one process, which differ from the system's.
type Clock struct{}

// Clock skips the test: there is no way here.
func (p *Process) Clock(tb testing.TB) *Clock {
	tb.Helper()
	tb.Skip("clocks of a process can be set on Linux on amd64 only")
	return nil
}

// Set is not reached.
func (c *Clock) Set(testing.TB, time.Duration, time.Duration) {}
