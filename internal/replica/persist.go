package replica

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

const (
	persistInterval = time.Second     // changes wait at most this long for their transaction
	persistRetryMax = time.Minute     // after a failure
	maxPending      = 50_000          // more changed names than this: the file is written anew
	reopenAfter     = 100_000         // names written
	idleMeta        = 5 * time.Minute // how old a revision on disk may get when nothing changes
)

// persister writes behind what the loop changed. Serving never waits for it.
//
// The names that changed are noted, not their values: when their turn comes,
// the value is read from the view, which may be newer than the revision written
// with it. That is harmless, since a restart replays the changes from that
// revision on and ends with the same values.
type persister struct {
	view   *view
	logger *slog.Logger
	failed func()
	file   *file
	wake   chan struct{}

	mu      sync.Mutex
	pending map[string]struct{}
	all     bool // pending is not everything: write the file anew
	meta    meta
	fresh   bool // meta was not written yet
	urgent  bool // there is more to write than a newer revision
}

func newPersister(f *file, v *view, logger *slog.Logger, failed func()) *persister {
	return &persister{
		view: v, logger: logger, failed: failed, file: f,
		wake: make(chan struct{}, 1), pending: make(map[string]struct{}),
	}
}

// note records that the name's record changed. Nil receivers do nothing, for
// replicas without a file.
func (p *persister) note(owner []byte) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.all:
	case len(p.pending) >= maxPending:
		p.forget()
	default:
		p.pending[string(owner)] = struct{}{}
	}
}

// noteAll records that any name may have changed.
func (p *persister) noteAll() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forget()
}

func (p *persister) forget() {
	p.all = true
	p.pending = make(map[string]struct{})
}

// commit says what the view stands for now that all noted changes are in it.
func (p *persister) commit(m meta, urgent bool) {
	if p == nil {
		return
	}
	p.mu.Lock()
	p.meta, p.fresh = m, true
	p.urgent = p.urgent || urgent
	wake := p.urgent
	p.mu.Unlock()
	if wake {
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
}

// run writes until ctx ends, and once more then.
func (p *persister) run(ctx context.Context) {
	defer p.file.close() //nolint:errcheck // every transaction is already on disk
	idle := time.NewTicker(idleMeta)
	defer idle.Stop()
	delay := persistInterval
	written := 0
	for {
		select {
		case <-ctx.Done():
			if _, err := p.flush(); err != nil {
				p.report(err, true)
			}
			return
		case <-idle.C:
		case <-p.wake:
			if !wait(ctx, delay) {
				continue // to the last flush
			}
		}
		n, err := p.flush()
		if err != nil {
			p.report(err, delay == persistInterval)
			delay = min(2*delay, persistRetryMax)
			p.commitAgain()
			continue
		}
		if delay != persistInterval {
			p.logger.LogAttrs(ctx, slog.LevelInfo, "data file is written again")
			delay = persistInterval
		}
		if written += n; written > reopenAfter {
			written = 0
			if err := p.file.reopen(); err != nil {
				p.report(err, true)
			}
		}
	}
}

// flush writes what is pending and returns how many names that was.
func (p *persister) flush() (int, error) {
	p.mu.Lock()
	if !p.fresh {
		p.mu.Unlock()
		return 0, nil
	}
	pending, all, m := p.pending, p.all, p.meta
	p.pending, p.all, p.fresh, p.urgent = make(map[string]struct{}), false, false, false
	p.mu.Unlock()

	names := make([]string, 0, len(pending))
	for name := range pending {
		names = append(names, name)
	}
	err := p.write(all, names, m)
	if err == nil {
		if all {
			return p.view.len(), nil
		}
		return len(names), nil
	}

	p.mu.Lock()
	defer p.mu.Unlock()
	p.urgent = true
	if !p.fresh {
		p.meta, p.fresh = m, true
	}
	switch {
	case all || p.all || errors.Is(err, errCorrupt):
		p.forget()
	default:
		for _, name := range names {
			p.pending[name] = struct{}{}
		}
	}
	return 0, err
}

func (p *persister) write(all bool, names []string, m meta) error {
	if p.file.db == nil {
		aside, err := p.file.openOrSetAside()
		if err != nil {
			return err
		}
		all = all || aside != nil
	}
	if all {
		return p.file.replace(p.view, m)
	}
	err := p.file.save(p.view, names, m)
	if errors.Is(err, errCorrupt) {
		if aerr := p.file.setAside(); aerr != nil {
			return errors.Join(err, aerr)
		}
	}
	return err
}

// commitAgain wakes run for what flush could not write.
func (p *persister) commitAgain() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *persister) report(err error, first bool) {
	p.failed()
	if first {
		p.logger.LogAttrs(context.Background(), slog.LevelError, "data file is not written, serving goes on from memory",
			slog.Any("error", err))
	}
}

// wait reports whether d passed before ctx ended.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
