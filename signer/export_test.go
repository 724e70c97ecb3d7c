package signer

import (
	"runtime"
	"time"
)

// SetClock replaces a Client's clock, before it is used by others.
func SetClock(c *Client, now func() time.Time) { c.clock.Store(&now) }

// AwaitQueued waits until all who take digests to dkimd are on their way.
func AwaitQueued(c *Client) {
	for c.sending.Load() < senders {
		runtime.Gosched()
	}
}

// SettleAfter is when a change is reported once more.
const SettleAfter = settleAfter
