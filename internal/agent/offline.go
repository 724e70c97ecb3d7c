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

// store brings the cache to what dkimd said last, if it is due. A cache that cannot be
// written is no reason for anything else to fail.
func (a *Agent) store(ctx context.Context, now time.Time) {
	if a.cache == nil || !a.behind || now.Before(a.storeTime) {
		return
	}
	a.behind = false
	err := a.cache.storeKeys(a.keyNames(), a.readKey)
	if err == nil {
		err = a.cache.store(a.known)
	}
	end := a.o.Now()
	a.storeTime = end.Add(min(storeShare*end.Sub(now), a.confirmInterval()))
	if err != nil {
		a.cache.stored = false
		a.behind = true
		a.storeTime = end.Add(max(minRetry, end.Sub(now)))
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
	// storeShare is how many times as long as writing it took the cache is then left alone:
	// with many domains it is large.
	storeShare = 20
)

// confirmInterval is how old the cache may be, as that makes no difference.
func (a *Agent) confirmInterval() time.Duration {
	return max(minConfirm, min(maxConfirm, a.minHold/20))
}

// confirm notes in the cache until when all was known to be right, every minute or
// as often as makes no difference.
func (a *Agent) confirm(ctx context.Context, at, now time.Time) {
	if a.cache == nil || !a.cache.stored || a.offline != nil || !at.After(a.cache.confirmed) {
		return
	}
	if now.Sub(a.cache.written) < a.confirmInterval() {
		return
	}
	a.cache.written = now
	if err := a.cache.confirm(at); err != nil {
		a.trouble(ctx, "cache", "the cache is not in step", err)
	}
}
