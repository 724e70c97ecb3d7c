package signer

import (
	"container/list"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
)

// resolved is what to sign with, as somebody said.
type resolved struct {
	keys     []*dkimv1.SigningKey
	fallback bool
	reason   string
	refresh  time.Time // when to ask again
	until    time.Time
	err      error // ErrUnknownDomain, remembered for a while
}

// nothingFor is how long it is remembered that nobody has a domain, or that it has no
// key of its own that signs: mail of a domain that has just got one should not wait for
// long to be signed.
const nothingFor = 10 * time.Second

// cache has the answers for the domains that were asked for last.
type cache struct {
	size int

	mu      sync.Mutex
	entries map[string]*list.Element // of *cached
	order   list.List                // the one used last first
	// pause is until when dkimd is not waited for, since it did not answer.
	pause   time.Time
	backoff backoff
}

type cached struct {
	name   string
	answer *resolved
	// asking is closed when the question that is on its way is answered; nil: none
	// is.
	asking chan struct{}
	err    error // of the last question
}

func newCache(size int) *cache { return &cache{size: size, entries: make(map[string]*list.Element)} }

// entry finds a domain's entry, or makes it. The cache is locked.
func (c *cache) entry(name string) *cached {
	if e := c.entries[name]; e != nil {
		c.order.MoveToFront(e)
		if found, ok := e.Value.(*cached); ok {
			return found
		}
	}
	made := &cached{name: name}
	c.entries[name] = c.order.PushFront(made)
	for c.order.Len() > c.size {
		if old, ok := c.order.Remove(c.order.Back()).(*cached); ok {
			delete(c.entries, old.name)
		}
	}
	return made
}

func (c *cache) drop(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries[name]; e != nil {
		c.order.Remove(e)
		delete(c.entries, name)
	}
}

// ask says what to sign mail of a domain with: what is remembered while that is
// fresh; else what dkimd says; and if that does not answer, what is remembered as
// long as it is good.
func (c *Client) ask(ctx context.Context, name string) (*resolved, error) {
	for {
		now := c.now()
		c.cache.mu.Lock()
		e := c.cache.entry(name)
		a := e.answer
		good := a != nil && now.Before(a.until)
		fresh := good && now.Before(a.refresh)
		if fresh || good && now.Before(c.cache.pause) {
			c.cache.mu.Unlock()
			return a, a.err
		}
		asking := e.asking
		if asking == nil {
			asking = make(chan struct{})
			e.asking = asking
			c.group.Go(func() { c.question(e, asking) })
		}
		c.cache.mu.Unlock()
		// One who holds a good answer waits a little, for a revocation that just came,
		// and no longer than a message can wait.
		wait := c.o.Timeout
		if good {
			wait = min(wait, 500*time.Millisecond)
		}
		limit := time.NewTimer(wait)
		select {
		case <-asking:
		case <-limit.C:
		case <-ctx.Done():
			limit.Stop()
			return nil, ctx.Err()
		}
		limit.Stop()
		c.cache.mu.Lock()
		answer, err := e.answer, e.err
		answered := e.asking != asking
		c.cache.mu.Unlock()
		switch {
		case answered && err == nil:
			return answer, answer.err
		case good && (!answered || errors.Is(err, ErrUnavailable)):
			return a, a.err
		case answered:
			return nil, err
		default:
			return nil, ErrUnavailable
		}
	}
}

// question asks dkimd about a domain.
func (c *Client) question(e *cached, asking chan struct{}) {
	ctx, cancel := context.WithTimeout(c.ctx, c.o.Timeout)
	defer cancel()
	resp, err := c.api.ResolveSigningKeys(ctx, &dkimv1.ResolveSigningKeysRequest{Name: c.resource(e.name)})
	err = failure(err)
	now := c.now()
	c.cache.mu.Lock()
	defer c.cache.mu.Unlock()
	e.asking, e.err = nil, err
	switch {
	case err == nil:
		refresh := resp.GetRefreshDuration().AsDuration()
		if len(resp.GetKeys()) == 0 || resp.GetFallback() {
			refresh = min(refresh, nothingFor)
		}
		e.answer = &resolved{
			keys: resp.GetKeys(), fallback: resp.GetFallback(), reason: resp.GetReason(),
			refresh: now.Add(refresh*4/5 + rand.N(refresh/5+1)), until: now.Add(resp.GetHoldDuration().AsDuration()),
		}
	case errors.Is(err, ErrUnknownDomain):
		e.answer, e.err = &resolved{err: err, refresh: now.Add(nothingFor), until: now.Add(nothingFor)}, nil
	case errors.Is(err, ErrRefused):
		e.answer = nil
	}
	if errors.Is(err, ErrUnavailable) {
		c.cache.pause = now.Add(c.cache.backoff.next())
	} else {
		c.cache.backoff.reset()
	}
	close(asking)
}
