// Package leader elects one of several processes, through etcd. Whoever leads
// holds a fence: a write that compares it fails once the lead is lost, however
// late its writer learns of that.
package leader

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

// ErrUnavailable means that etcd did not grant, or no longer keeps, the lease
// under which a candidate stands.
var ErrUnavailable = errors.New("etcd unavailable")

// Fence is what a transaction compares to be sure that its writer still leads:
// the key that was made when it won, by the revision of its creation.
type Fence struct {
	Key            string
	CreateRevision int64
}

// Term is the time during which one candidate leads. It is safe for concurrent
// use.
type Term struct {
	fence   Fence
	session *concurrency.Session
}

// Candidate stands in elections, one after the other.
type Candidate struct {
	client     *clientv3.Client
	prefix, id string
	ttl        time.Duration
}

// NewCandidate returns a Candidate whose campaigns are as those of [Campaign].
func NewCandidate(client *clientv3.Client, prefix, id string, ttl time.Duration) *Candidate {
	return &Candidate{client, prefix, id, ttl}
}

// Campaign stands in the next election.
func (c *Candidate) Campaign(ctx context.Context) (*Term, error) {
	return Campaign(ctx, c.client, c.prefix, c.id, c.ttl)
}

// Campaign waits until the candidate leads and returns its term. prefix names
// the election, id the candidate, for whoever looks into etcd. ttl, of at least
// a second, is for how long a leader that is gone without a word is waited for.
//
// It returns the error of ctx when that ends, and ErrUnavailable when etcd is
// lost; the candidate stands no longer then.
func Campaign(ctx context.Context, client *clientv3.Client, prefix, id string, ttl time.Duration) (*Term, error) {
	seconds := max(1, int(ttl/time.Second))
	// A lease asked for when ctx ends may be granted all the same: it is not
	// kept alive, and nothing hangs on it.
	lease, err := client.Grant(ctx, int64(seconds))
	if err != nil {
		return nil, failure(ctx, err)
	}
	// The session outlives ctx, so that the lead can be laid down in order.
	session, err := concurrency.NewSession(client,
		concurrency.WithTTL(seconds), concurrency.WithLease(lease.ID), concurrency.WithContext(context.WithoutCancel(ctx)))
	if err != nil {
		return nil, failure(ctx, err)
	}
	campaignCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(session.Ctx(), cancel) // a candidate without a lease would wait for ever
	defer stop()
	election := concurrency.NewElection(session, prefix)
	if err := election.Campaign(campaignCtx, id); err != nil {
		err = failure(ctx, err)
		_ = session.Close() // the lease ends by itself if etcd is gone
		return nil, err
	}
	return &Term{fence: Fence{Key: election.Key(), CreateRevision: election.Rev()}, session: session}, nil
}

// Fence is what the leader's writes compare.
func (t *Term) Fence() Fence { return t.fence }

// Done is closed when the lead is lost: when the lease has not been renewed in
// time, or the lead was laid down. etcd may have ended the lease a moment before.
func (t *Term) Done() <-chan struct{} { return t.session.Done() }

// Resign lays the lead down, so that another candidate need not wait for the
// lease to end. It waits for etcd no longer than the lease lasts. The term is over
// whatever it returns.
func (t *Term) Resign() error {
	// The key hangs on the lease.
	if err := t.session.Close(); err != nil {
		return fmt.Errorf("resign: %w", err)
	}
	return nil
}

func failure(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}
