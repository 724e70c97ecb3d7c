package cli

import (
	"context"
	"errors"
	"sync"
	"time"
)

// inParallel does something with each item, n at a time, and hands the results
// to take, one after the other. It stops early, with an error, when ctx ends,
// when take fails, or when something is wrong that no further item can do
// without.
func inParallel[T, R any](ctx context.Context, n int, items []T, do func(context.Context, T) (R, error), take func(T, R, error) error) error {
	type result struct {
		item   T
		result R
		err    error
	}
	work, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	todo, results := make(chan T), make(chan result)
	go func() {
		defer close(todo)
		for _, item := range items {
			select {
			case todo <- item:
			case <-work.Done():
				return
			}
		}
	}()
	var workers sync.WaitGroup
	for range n {
		workers.Go(func() {
			for item := range todo {
				r, err := do(work, item)
				results <- result{item, r, err}
			}
		})
	}
	go func() {
		workers.Wait()
		close(results)
	}()
	for res := range results {
		if res.err != nil && (work.Err() != nil || fatal(res.err)) {
			cancel(res.err) // the first one counts
			continue
		}
		if err := take(res.item, res.result, res.err); err != nil {
			cancel(err)
		}
	}
	if ctx.Err() != nil {
		return errInterrupted
	}
	return context.Cause(work)
}

// persist makes a call again and again while dkimd is away, busy or others make
// changes, but not longer than the time limit after the first failure.
func persist[R any](ctx context.Context, r *run, makeCall func() (R, error)) (R, error) {
	var pause backoff
	var deadline time.Time
	for {
		resp, err := makeCall()
		failed, ok := errors.AsType[*failure](err)
		if !ok || !failed.passes() {
			return resp, err
		}
		if deadline.IsZero() {
			deadline = time.Now().Add(r.timeout)
		}
		if !time.Now().Before(deadline) || pause.wait(ctx, failed.retryAfter) != nil {
			return resp, err
		}
	}
}
