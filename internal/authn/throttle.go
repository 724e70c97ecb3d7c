package authn

import (
	"net/netip"
	"sync"
	"time"
)

// maxBuckets bounds the memory of a throttle.
const maxBuckets = 10_000

// throttle bounds how often something may be tried under a key: so many times at
// once, and again one each interval. It is safe for concurrent use.
type throttle struct {
	burst    float64
	interval time.Duration

	mu      sync.Mutex
	buckets map[string]*bucket
}

type bucket struct {
	left float64
	at   time.Time
}

func newThrottle(burst int, interval time.Duration) *throttle {
	return &throttle{burst: float64(burst), interval: interval, buckets: make(map[string]*bucket)}
}

// take takes an attempt, or says how long to wait for the next one. Who takes
// one and is right gives it back.
func (t *throttle) take(key string, now time.Time) (ok bool, wait time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.buckets[key]
	if b == nil {
		t.makeRoom(now)
		b = &bucket{left: t.burst, at: now}
		t.buckets[key] = b
	}
	t.refill(b, now)
	if b.left < 1 {
		return false, time.Duration((1 - b.left) * float64(t.interval))
	}
	b.left--
	return true, 0
}

func (t *throttle) giveBack(key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if b := t.buckets[key]; b != nil {
		b.left = min(b.left+1, t.burst)
	}
}

func (t *throttle) refill(b *bucket, now time.Time) {
	if d := now.Sub(b.at); d > 0 {
		b.left = min(b.left+float64(d)/float64(t.interval), t.burst)
		b.at = now
	}
}

// makeRoom forgets the buckets that are full again and, if there are none, any
// one.
func (t *throttle) makeRoom(now time.Time) {
	if len(t.buckets) < maxBuckets {
		return
	}
	for key, b := range t.buckets {
		if t.refill(b, now); b.left >= t.burst {
			delete(t.buckets, key)
		}
	}
	for key := range t.buckets {
		if len(t.buckets) < maxBuckets {
			return
		}
		delete(t.buckets, key)
	}
}

// addrKey is the key of an address: with IPv6 its /64, which one customer has.
func addrKey(a netip.Addr) string {
	a = a.Unmap()
	if a.Is6() {
		if p, err := a.WithZone("").Prefix(64); err == nil {
			return p.String()
		}
	}
	return a.String()
}
