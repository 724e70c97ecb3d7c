package prober

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"
)

// pacer spreads the queries to one address: after a burst of a tenth of a
// second's worth each waits for its turn.
type pacer struct {
	interval, burst time.Duration
	limit           int

	mu   sync.Mutex
	next map[netip.AddrPort]time.Time
}

func newPacer(perSecond, limit int) *pacer {
	return &pacer{
		interval: time.Second / time.Duration(perSecond), burst: time.Second / 10, limit: limit,
		next: map[netip.AddrPort]time.Time{},
	}
}

// reserve takes the next turn at a and says how long it is until then.
func (p *pacer) reserve(now time.Time, a netip.AddrPort) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	next, ok := p.next[a]
	if !ok && len(p.next) >= p.limit {
		p.shrink(now)
	}
	if idle := now.Add(-p.burst); next.Before(idle) {
		next = idle
	}
	p.next[a] = next.Add(p.interval)
	return max(0, next.Sub(now))
}

// shrink forgets the addresses that owe nothing, and some others if all do.
func (p *pacer) shrink(now time.Time) {
	for a, next := range p.next {
		if next.Before(now) {
			delete(p.next, a)
		}
	}
	for a := range p.next {
		if len(p.next) < p.limit {
			return
		}
		delete(p.next, a)
	}
}

// wait waits for the next turn at a, or until ctx ends.
func (p *pacer) wait(ctx context.Context, a netip.AddrPort) error {
	delay := p.reserve(time.Now(), a)
	if delay == 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// cache keeps a bounded number of values for a time each.
type cache[V any] struct {
	limit int

	mu      sync.Mutex
	entries map[string]cached[V]
}

type cached[V any] struct {
	value   V
	expires time.Time
}

func newCache[V any](limit int) *cache[V] {
	return &cache[V]{limit: limit, entries: map[string]cached[V]{}}
}

// put keeps v for ttl, at most an hour. Another entry makes room if need be: an
// expired one if the first few that come up have one, else any.
func (c *cache[V]) put(now time.Time, key string, v V, ttl time.Duration) {
	if ttl <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.entries[key]; !ok && len(c.entries) >= c.limit {
		victim, looked := "", 0
		for k, e := range c.entries {
			victim = k
			if looked++; looked == 8 || !e.expires.After(now) {
				break
			}
		}
		delete(c.entries, victim)
	}
	c.entries[key] = cached[V]{v, now.Add(min(ttl, maxKeepFor))}
}

func (c *cache[V]) get(now time.Time, key string) (V, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[key]
	if !ok || !e.expires.After(now) {
		var zero V
		return zero, false
	}
	return e.value, true
}

func (c *cache[V]) drop(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.entries, key)
}

// shuffled is a copy of s in random order, so that load spreads over servers.
func shuffled[T any](s []T) []T {
	out := append([]T(nil), s...)
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}
