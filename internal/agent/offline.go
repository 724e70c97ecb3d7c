package agent

import (
	"context"
	"log/slog"
	"time"
)

// goOffline goes by the cache.
func (a *Agent) goOffline(ctx context.Context) {
	if a.gaveUp {
		return
	}
	a.gaveUp = true
	if a.cache == nil {
		a.trouble(ctx, "offline", "no dkimd answers, and there is no cache: the files stay as they are", nil)
		return
	}
	s, err := a.cache.found, a.cache.problem
	if err != nil {
		a.trouble(ctx, "offline", "no dkimd answers, and there is nothing to go by: the files stay as they are", err)
		return
	}
	if now := a.o.Now(); s.Confirmed.After(now) { // the clock went back
		s.Confirmed = now
	}
	a.offline = &s
	a.o.Logger.LogAttrs(ctx, slog.LevelWarn, "no dkimd answers: going by the cache", slog.Time("confirmed", s.Confirmed), slog.Int("domains", len(s.Entries)))
}

// store brings the cache to s, which dkimd said. A cache that cannot be written is no
// reason for anything else to fail.
func (a *Agent) store(ctx context.Context, s cached) {
	if a.cache == nil {
		return
	}
	err := a.cache.storeKeys(a.keyNames(), a.readKey)
	if err == nil {
		err = a.cache.store(s)
	}
	if err != nil {
		a.cache.stored = false
		a.trouble(ctx, "cache", "the cache is not in step", err)
		return
	}
	a.over("cache")
}

func (a *Agent) keyNames() []string {
	names := make([]string, 0, len(a.refs))
	for _, r := range a.refs {
		names = append(names, r.Key)
	}
	return names
}

const (
	minConfirm = time.Second
	maxConfirm = time.Minute
)

// confirm notes in the cache until when all was known to be right, every minute or
// as often as makes no difference.
func (a *Agent) confirm(ctx context.Context, at, now time.Time) {
	if a.cache == nil || !a.cache.stored || a.offline != nil || !at.After(a.cache.confirmed) {
		return
	}
	interval := maxConfirm
	for _, e := range a.entries {
		interval = min(interval, e.Hold/20)
	}
	if now.Sub(a.cache.written) < max(minConfirm, interval) {
		return
	}
	a.cache.written = now
	if err := a.cache.confirm(at); err != nil {
		a.trouble(ctx, "cache", "the cache is not in step", err)
	}
}
