package agent

import (
	"context"
	"errors"
	"time"
)

// WithFault lets operations on files fail as fault says.
func WithFault(o Options, fault func(operation, path string) error) Options {
	o.fault = fault
	return o
}

// WithMany lets so many files and more be synced together.
func WithMany(o Options, files int) Options {
	o.many = files
	return o
}

// ErrDone is what fault returns for an operation that is to be left out.
var ErrDone = errDone

// Step brings the files in step once. Without a source it goes by the cache.
func Step(ctx context.Context, a *Agent, source Source) {
	if source == nil {
		a.gaveUp = false
		a.goOffline(ctx)
		if a.offline != nil {
			a.step(ctx, nil, *a.offline)
		}
		return
	}
	if e, err := source.Everything(); err == nil {
		a.offline = nil
		a.step(ctx, source, want(e))
	}
}

// StoreCache brings the cache in step, though it may not be due.
func StoreCache(ctx context.Context, a *Agent) error {
	a.storeTime = time.Time{}
	a.store(ctx, a.o.Now())
	if a.behind {
		return errors.New("the cache is not in step")
	}
	return nil
}

// Due is what a tick of the clock does.
func Due(ctx context.Context, a *Agent, source Source) bool { return a.due(ctx, source, a.o.Now()) }

// Render is what a Format makes of a View.
func Render(f Format, v View) ([][]byte, error) { return f.render(v) }

// Tables are the names of a Format's files.
func Tables(f Format) []string { return f.tables }

// KeyPath is the file of a key.
func KeyPath(dir string, r Ref) string { return r.path(dir) }
