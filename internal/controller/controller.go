// Package controller carries each domain's keys through their life. Of all
// dkimd one leads; it takes the domains that are due from the index, gathers the
// evidence, lets rotation decide, and applies the decision in one transaction
// that only the leader can commit. It holds nothing that matters: it may end at
// any point, and another one goes on from what is stored.
package controller

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/dkimzone/dkimzone/internal/evidence"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/mint"
)

const (
	// Actor stands in the history for what the controller did.
	Actor = "controller"

	// storeRetry is between two tries of a store in trouble.
	storeRetry = time.Second
	// pageSize is how many due domains are read at a time.
	pageSize = 500
	// handleTimeout bounds the work on one domain: questions to slow servers,
	// and keys that have to be generated.
	handleTimeout = 2 * time.Minute
	// retryAfter is when a domain that could not be handled is due again.
	retryAfter = 5 * time.Minute
	// brandValid is how long what is read of brands, zones and signers is used.
	brandValid = 2 * time.Second
	// reindexPause is between two pages of the search for domains that the index
	// has lost: a million domains take seven minutes.
	reindexPause = 200 * time.Millisecond
)

// Term is a time of leadership. Done is closed when it may have ended;
// transactions with its Fence fail from then on.
type Term interface {
	Fence() *keystore.Fence
	Done() <-chan struct{}
	Resign() error
}

// Elector waits until this process leads.
type Elector interface {
	Campaign(ctx context.Context) (Term, error)
}

// Options is what a Controller works with. All fields are needed.
type Options struct {
	Store   *keystore.Store
	Mint    *mint.Mint
	Opener  Opener
	Prober  evidence.Prober
	Elector Elector
	Now     func() time.Time
	Logger  *slog.Logger
	// Workers is how many domains are handled at a time. Most of their time they
	// wait for DNS.
	Workers int
	// Rate is how many domains are begun a second at most, so that a million new
	// ones leave room for the callers of the API and for etcd. After a pause
	// as many may be begun at once.
	Rate int
	// Poll is how often the index is asked for what is due.
	Poll time.Duration
}

// Controller is one candidate. Run it once.
type Controller struct {
	Options

	brands *brands
	pacer  *pacer
}

// New returns a Controller.
func New(o Options) *Controller {
	return &Controller{Options: o, brands: newBrands(o.Store, o.Now), pacer: newPacer()}
}

// Run waits to lead, leads, and waits again when leadership is lost, until ctx
// ends. It returns ctx's error.
func (c *Controller) Run(ctx context.Context) error {
	for {
		term, err := c.Elector.Campaign(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			c.Logger.LogAttrs(ctx, slog.LevelWarn, "election failed, trying again", slog.Any("error", err))
			if !pause(ctx, retryElection) {
				return ctx.Err()
			}
			continue
		}
		c.lead(ctx, term)
		if err := term.Resign(); err != nil {
			c.Logger.LogAttrs(ctx, slog.LevelDebug, "leadership left to expire", slog.Any("error", err))
		}
	}
}

const retryElection = 5 * time.Second

// lead handles what is due until the term or ctx ends and all work is done.
func (c *Controller) lead(ctx context.Context, term Term) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-term.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	c.Logger.LogAttrs(ctx, slog.LevelInfo, "leads the rotation")
	leading.Set(1)
	defer leading.Set(0)
	defer c.Logger.LogAttrs(ctx, slog.LevelInfo, "leads the rotation no more")

	c.pacer.reset()
	r := &round{Controller: c, fence: term.Fence(), depose: cancel, working: make(map[keystore.Cursor]bool), slots: make(chan struct{}, c.Workers),
		rate: rate.NewLimiter(rate.Limit(c.Rate), c.Rate)}
	defer r.wg.Wait()
	r.wg.Go(func() { r.reindex(ctx) })
	r.wg.Go(func() { r.discloseAll(ctx) })
	for {
		busy, err := r.dispatch(ctx)
		if err != nil && ctx.Err() == nil {
			failures.WithLabelValues("index").Inc()
			c.Logger.LogAttrs(ctx, slog.LevelWarn, "what is due cannot be read, trying again", slog.Any("error", err))
		}
		if busy && err == nil {
			continue
		}
		if !pause(ctx, r.Poll) {
			return
		}
	}
}

// round is the work of one term.
type round struct {
	*Controller
	fence  *keystore.Fence
	depose func() // ends the term: somebody else leads
	slots  chan struct{}
	rate   *rate.Limiter
	wg     sync.WaitGroup

	mu      sync.Mutex
	working map[keystore.Cursor]bool
}

// dispatch gives one page of due domains to workers. It reports whether there is
// likely more to do at once.
func (r *round) dispatch(ctx context.Context) (busy bool, err error) {
	now := r.Now()
	// What is being worked on still stands in the index, ahead of the rest.
	entries, err := r.Store.DueBefore(ctx, now, pageSize+r.inWork())
	if err != nil {
		return false, err
	}
	lag := time.Duration(0)
	if len(entries) > 0 {
		lag = now.Sub(entries[0].Time)
	}
	dueLag.Set(lag.Seconds())
	started := 0
	for _, e := range entries {
		name := keystore.Cursor{Brand: e.Brand, Domain: e.Domain}
		if !r.begin(name) {
			continue
		}
		started++
		if err := r.rate.Wait(ctx); err != nil {
			r.end(name)
			return false, err
		}
		select {
		case r.slots <- struct{}{}:
		case <-ctx.Done():
			r.end(name)
			return false, ctx.Err()
		}
		r.wg.Go(func() {
			defer func() { r.end(name); <-r.slots }()
			r.work(ctx, e)
		})
	}
	return started >= pageSize, nil
}

func (r *round) inWork() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.working)
}

func (r *round) begin(name keystore.Cursor) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.working[name] {
		return false
	}
	r.working[name] = true
	return true
}

func (r *round) end(name keystore.Cursor) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.working, name)
}

// work handles a domain. What fails is due again later, so that it does not hold
// up others; what fails because the store is away, or because somebody changed
// the domain meanwhile, stays due.
func (r *round) work(ctx context.Context, e keystore.DueEntry) {
	handleCtx, cancel := context.WithTimeout(ctx, handleTimeout)
	defer cancel()
	err := r.handle(handleCtx, e)
	switch {
	case err == nil:
		handled.Inc()
		return
	case errors.Is(err, keystore.ErrFenced):
		r.depose()
		return
	case ctx.Err() != nil, errors.Is(err, keystore.ErrConflict):
		return
	}
	failures.WithLabelValues("domain").Inc()
	attrs := []slog.Attr{slog.String("brand", e.Brand), slog.String("domain", string(e.Domain)), slog.Any("error", err)}
	if errors.Is(err, keystore.ErrUnavailable) {
		r.Logger.LogAttrs(ctx, slog.LevelDebug, "domain not handled, trying again", attrs...)
		pause(ctx, storeRetry) // with the slot held: no storm on a store in trouble
		return
	}
	r.Logger.LogAttrs(ctx, slog.LevelError, "domain not handled, trying again later", attrs...)
	if err := r.postpone(ctx, e); err != nil {
		r.Logger.LogAttrs(ctx, slog.LevelDebug, "domain not postponed", slog.Any("error", err))
	}
}

func (r *round) postpone(ctx context.Context, e keystore.DueEntry) error {
	st, err := r.Store.Status(ctx, e.Brand, e.Domain)
	if err != nil {
		return err
	}
	st.Due = r.Now().Add(retryAfter)
	_, err = r.Store.SaveStatus(ctx, st, r.fence, e)
	return err
}

// pause waits, and reports whether the whole time has passed.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
