// Package keygen makes key pairs ahead of time. RSA keys take tenths of
// seconds to seconds each; a [Pool] keeps a stock of them, bounds how many are
// made at once, and lets callers wait when the stock runs dry.
package keygen

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/dkimzone/dkimzone/internal/keypair"
)

// ErrClosed is returned by Get once the pool is closed.
var ErrClosed = errors.New("key pool is closed")

// After a failure nobody waited for, refilling pauses for minPause, twice as
// long after each further one, up to maxPause.
const (
	minPause = time.Second
	maxPause = time.Minute
)

// Options configures a Pool. The zero value keeps no stock.
type Options struct {
	// Workers is how many RSA keys are made at once, each on a CPU of its
	// own. Zero or less means one less than there are CPUs, at least one.
	Workers int

	// Stock is how many keys of each RSA algorithm to have ready. Ed25519
	// keys, made in microseconds, are never kept.
	Stock map[keypair.Algorithm]int

	// Generate makes a key pair; nil means keypair.Generate. It must be safe
	// for concurrent use.
	Generate func(keypair.Algorithm) (*keypair.KeyPair, error)

	// Logger gets the failures that no caller of Get is told; nil drops them.
	Logger *slog.Logger
}

// Pool hands out key pairs, each once. It is safe for concurrent use. The
// caller closes it.
type Pool struct {
	generate func(keypair.Algorithm) (*keypair.KeyPair, error)
	logger   *slog.Logger
	workers  sync.WaitGroup

	mu     sync.Mutex
	wake   *sync.Cond // there may be work for workers, or the end
	lines  []*line    // one for each RSA algorithm, in their order
	ticket uint64     // of the last waiter
	closed bool
}

// line is one algorithm's stock, and the callers that wait for more.
type line struct {
	algorithm keypair.Algorithm
	target    int
	stock     []*keypair.KeyPair
	waiters   []*waiter // in the order they came
	making    int       // keys on their way; the first waiters get them

	pause  time.Duration // the last pause of refilling, 0 after a success
	paused time.Time     // when that ends
	timer  *time.Timer   // wakes a worker then; may be nil

	made, failed, dry uint64
}

// waiter is a Get that found no stock.
type waiter struct {
	ticket uint64      // waiters of all lines are numbered in the order they came
	done   chan result // buffered: who serves does not wait
}

type result struct {
	pair *keypair.KeyPair
	err  error
}

// New starts a pool, which begins to fill its stock.
func New(opts Options) *Pool {
	p := &Pool{generate: opts.Generate, logger: opts.Logger}
	if p.generate == nil {
		p.generate = keypair.Generate
	}
	if p.logger == nil {
		p.logger = slog.New(slog.DiscardHandler)
	}
	p.wake = sync.NewCond(&p.mu)
	for _, a := range keypair.Algorithms() {
		if a != keypair.Ed25519 {
			p.lines = append(p.lines, &line{algorithm: a, target: opts.Stock[a]})
		}
	}
	workers := opts.Workers
	if workers <= 0 {
		workers = max(1, runtime.NumCPU()-1)
	}
	for range workers {
		p.workers.Go(p.work)
	}
	return p
}

// Get returns a new key pair: from stock, else when one is made. It waits as
// long as that takes; callers are served in the order they came. Errors are
// ctx's, ErrClosed, or say why no key could be made.
func (p *Pool) Get(ctx context.Context, a keypair.Algorithm) (*keypair.KeyPair, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	pair, w, err := p.take(a)
	if pair != nil || err != nil {
		return pair, err
	}
	if w == nil {
		return p.makeInline(a)
	}
	select {
	case r := <-w.done:
		return r.pair, r.err
	case <-ctx.Done():
		p.leave(a, w)
		return nil, ctx.Err()
	}
}

// take returns a pair from stock, or the place in the line to wait at, or
// neither for an algorithm without a line.
func (p *Pool) take(a keypair.Algorithm) (*keypair.KeyPair, *waiter, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, nil, ErrClosed
	}
	l := p.line(a)
	if l == nil {
		return nil, nil, nil
	}
	p.wake.Signal()
	if len(l.stock) > 0 {
		pair := l.stock[0]
		l.stock[0] = nil
		l.stock = l.stock[1:]
		return pair, nil, nil
	}
	l.dry++
	p.ticket++
	w := &waiter{ticket: p.ticket, done: make(chan result, 1)}
	l.waiters = append(l.waiters, w)
	return nil, w, nil
}

func (p *Pool) makeInline(a keypair.Algorithm) (*keypair.KeyPair, error) {
	pair, err := p.generate(a)
	if err != nil {
		return nil, fmt.Errorf("make %s key: %w", a, err)
	}
	return pair, nil
}

// leave takes a waiter out of its line. A key that it was given already goes
// to the next one.
func (p *Pool) leave(a keypair.Algorithm, w *waiter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.line(a)
	if i := slices.Index(l.waiters, w); i >= 0 {
		l.waiters = slices.Delete(l.waiters, i, i+1)
		return
	}
	if r := <-w.done; r.pair != nil && !p.closed {
		l.hand(r)
	}
}

// Close stops the pool and returns when no key is being made any more, which
// can take as long as it takes to make one. Waiting calls of Get return
// ErrClosed at once. Calling it again has no effect.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	for _, l := range p.lines {
		for _, w := range l.waiters {
			w.done <- result{err: ErrClosed}
		}
		l.waiters, l.stock = nil, nil
		l.endPause()
	}
	p.wake.Broadcast()
	p.mu.Unlock()
	p.workers.Wait()
}

func (p *Pool) line(a keypair.Algorithm) *line {
	for _, l := range p.lines {
		if l.algorithm == a {
			return l
		}
	}
	return nil
}

// work makes one key after the other until the pool is closed.
func (p *Pool) work() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.closed {
		l := p.next()
		if l == nil {
			p.wake.Wait()
			continue
		}
		l.making++
		p.mu.Unlock()
		pair, err := p.generate(l.algorithm)
		p.mu.Lock()
		l.making--
		p.finish(l, pair, err)
	}
}

// next returns the line to make a key for: that of the first waiter whose key
// is not on its way, else the one with the smallest part of its stock.
func (p *Pool) next() *line {
	var first *line
	now := time.Now()
	for _, l := range p.lines {
		if len(l.waiters) > l.making && (first == nil || l.waiters[l.making].ticket < first.waiters[first.making].ticket) {
			first = l
		}
	}
	if first != nil {
		return first
	}
	for _, l := range p.lines {
		if l.missing() > 0 && !now.Before(l.paused) && (first == nil || l.filled() < first.filled()) {
			first = l
		}
	}
	return first
}

func (l *line) missing() int { return l.target - len(l.stock) - l.making }

func (l *line) filled() float64 { return float64(l.target-l.missing()) / float64(l.target) }

// finish hands out what a worker made.
func (p *Pool) finish(l *line, pair *keypair.KeyPair, err error) {
	switch {
	case p.closed:
	case err == nil:
		l.made++
		l.endPause()
		l.hand(result{pair: pair})
	case len(l.waiters) > 0:
		l.failed++
		l.hand(result{err: fmt.Errorf("make %s key: %w", l.algorithm, err)})
	default:
		l.failed++
		p.startPause(l)
		// This is nobody's request, so there is no context.
		p.logger.LogAttrs(context.Background(), slog.LevelError, "making a key for the stock failed",
			slog.String("algorithm", l.algorithm.String()), slog.Duration("pause", l.pause), slog.Any("error", err))
	}
}

// hand gives a result to the first waiter; a key that nobody waits for goes
// into stock.
func (l *line) hand(r result) {
	if len(l.waiters) > 0 {
		l.waiters[0].done <- r
		l.waiters = slices.Delete(l.waiters, 0, 1)
		return
	}
	l.stock = append(l.stock, r.pair)
}

// startPause stops refilling, but not serving, for a while.
func (p *Pool) startPause(l *line) {
	pause := min(max(2*l.pause, minPause), maxPause)
	l.endPause()
	l.pause, l.paused = pause, time.Now().Add(pause)
	l.timer = time.AfterFunc(pause, func() {
		p.mu.Lock() // else a worker about to wait could miss it
		defer p.mu.Unlock()
		p.wake.Broadcast()
	})
}

func (l *line) endPause() {
	if l.timer != nil {
		l.timer.Stop()
	}
	l.pause, l.paused, l.timer = 0, time.Time{}, nil
}

// Stats is what a pool has of one algorithm, and did since it was started.
type Stats struct {
	Algorithm keypair.Algorithm
	Stock     int // keys ready
	Target    int // keys to have ready
	Waiting   int // calls of Get
	Making    int // keys on their way

	Made   uint64 // keys
	Failed uint64 // attempts to make one
	Dry    uint64 // calls of Get that found no stock
}

// Stats returns one element for each RSA algorithm.
func (p *Pool) Stats() []Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	stats := make([]Stats, len(p.lines))
	for i, l := range p.lines {
		stats[i] = Stats{
			Algorithm: l.algorithm,
			Stock:     len(l.stock), Target: l.target, Waiting: len(l.waiters), Making: l.making,
			Made: l.made, Failed: l.failed, Dry: l.dry,
		}
	}
	return stats
}
