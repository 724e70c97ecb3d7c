package keystoretest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// Lagging is a Client whose reads, where one member may answer alone, come from a
// member that is Behind revisions behind.
type Lagging struct {
	Client

	// Behind is asked before each such read. It must be safe for concurrent use.
	Behind func() int64

	answered atomic.Int64
}

// Answered is how many reads a single member answered.
func (l *Lagging) Answered() int64 { return l.answered.Load() }

// revision is the one at which a member answers.
func (l *Lagging) revision(ctx context.Context) (int64, error) {
	resp, err := l.Client.Get(ctx, schema.Root)
	if err != nil {
		return 0, err
	}
	l.answered.Add(1)
	return max(1, resp.Header.Revision-l.Behind()), nil
}

// Get implements Client.
func (l *Lagging) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	if !clientv3.OpGet(key, opts...).IsSerializable() {
		return l.Client.Get(ctx, key, opts...)
	}
	revision, err := l.revision(ctx)
	if err != nil {
		return nil, err
	}
	resp, err := l.Client.Get(ctx, key, append(slices.Clip(opts), clientv3.WithRev(revision))...)
	if err == nil {
		resp.Header.Revision = revision
	}
	return resp, err
}

// Txn implements Client.
func (l *Lagging) Txn(ctx context.Context) clientv3.Txn { return &laggingTxn{l: l, ctx: ctx} }

type laggingTxn struct {
	l    *Lagging
	ctx  context.Context //nolint:containedctx // as that of clientv3 is
	cmps []clientv3.Cmp
	then []clientv3.Op
	els  []clientv3.Op
}

func (t *laggingTxn) If(cs ...clientv3.Cmp) clientv3.Txn   { t.cmps = cs; return t }
func (t *laggingTxn) Then(ops ...clientv3.Op) clientv3.Txn { t.then = ops; return t }
func (t *laggingTxn) Else(ops ...clientv3.Op) clientv3.Txn { t.els = ops; return t }

// Commit implements clientv3.Txn.
func (t *laggingTxn) Commit() (*clientv3.TxnResponse, error) {
	majority := func(op clientv3.Op) bool { return !op.IsGet() || !op.IsSerializable() }
	if len(t.cmps)+len(t.els) > 0 || slices.ContainsFunc(t.then, majority) {
		return t.l.Client.Txn(t.ctx).If(t.cmps...).Then(t.then...).Else(t.els...).Commit()
	}
	revision, err := t.l.revision(t.ctx)
	if err != nil {
		return nil, err
	}
	gets := slices.Clone(t.then)
	for i := range gets {
		clientv3.WithRev(revision)(&gets[i])
	}
	resp, err := t.l.Client.Txn(t.ctx).Then(gets...).Commit()
	if err == nil {
		resp.Header.Revision = revision
	}
	return resp, err
}

// lagging returns a Store whose members lag behind by up to most revisions, each
// time by another number.
func (e *env) lagging(most int64) (*keystore.Store, *Lagging) {
	l := &Lagging{Client: e.client, Behind: func() int64 { return rand.Int64N(most + 1) }}
	return keystore.New(l, storeTimeout), l
}

// provisionOnce does what a call does that provisions a new domain: it looks,
// decides, and begins again if somebody else was faster.
func provisionOnce(ctx context.Context, s *keystore.Store, brand string, name dnsname.Domain, selectors ...dnsname.Selector) (keystore.Domain, error) {
	ctx = keystore.WithFloor(ctx)
	var err error
	for range rounds {
		var b keystore.Brand
		if b, err = s.Brand(ctx, brand); err != nil {
			return keystore.Domain{}, err
		}
		if _, err = s.Zone(ctx, b.Zone); err != nil {
			return keystore.Domain{}, err
		}
		d, readErr := s.Domain(ctx, brand, name)
		if !errors.Is(readErr, keystore.ErrDomainNotFound) {
			return d, readErr
		}
		c := newDomain(brand, name, selectors...)
		if c.Look, err = s.Admit(ctx, c.Domain, selectors, false); err == nil {
			d, err = s.Apply(ctx, c)
		}
		if !errors.Is(err, keystore.ErrConflict) {
			return d, err
		}
	}
	return keystore.Domain{}, err
}

var lagTests = map[string]func(*testing.T, *env){
	"lag: what was acknowledged before is seen": func(t *testing.T, e *env) {
		e.setup(t, "acme", "other")
		e.quota(t, "acme", 2)
		s, l := e.lagging(30)
		for round := range rounds {
			name := dnsname.Domain(fmt.Sprintf("d%d.example", round))
			d, err := provisionOnce(t.Context(), s, "acme", name, "s1", "s-2")
			if err != nil {
				t.Fatal(err)
			}
			again, err := provisionOnce(t.Context(), s, "acme", name, "s1", "s-2")
			if err != nil || again.Revision != d.Revision {
				t.Fatalf("revision %d, %v; want what is there, %d", again.Revision, err, d.Revision)
			}
			_, err = provisionOnce(t.Context(), s, "other", name, "s1")
			wantClaim(t, err, keystore.ClaimedByOtherBrand)
			e.delete(t, d)
			_, err = provisionOnce(t.Context(), s, "other", name, "s1")
			wantClaim(t, err, keystore.ReservedForBrand)
			d, err = provisionOnce(t.Context(), s, "acme", name, "s1")
			if err != nil {
				t.Fatal(err)
			}
			e.delete(t, d)
		}
		if l.Answered() == 0 {
			t.Error("no member was asked alone")
		}
	},

	"lag: a brand and a zone that have just come or gone": func(t *testing.T, e *env) {
		s, _ := e.lagging(30)
		for round := range rounds {
			name, z := fmt.Sprintf("b%d", round), zoneName
			_, err := provisionOnce(t.Context(), s, name, "spamtrap.dk", "s1")
			wantErr(t, err, keystore.ErrBrandNotFound)
			e.setup(t, name+"@"+string(z))
			d, err := provisionOnce(t.Context(), s, name, dnsname.Domain(name+".example"), "s1")
			if err != nil {
				t.Fatal(err)
			}
			e.delete(t, d)
			if err := e.DeleteBrand(t.Context(), must(e.Brand(t.Context(), name))(t)); err != nil {
				t.Fatal(err)
			}
			_, err = provisionOnce(t.Context(), s, name, "spamtrap.dk", "s1")
			wantErr(t, err, keystore.ErrBrandNotFound)
		}
	},

	"lag: a look that is no longer true costs a second one": func(t *testing.T, e *env) {
		e.setup(t, "acme", "other")
		ctx := keystore.WithFloor(t.Context())
		s, _ := e.lagging(30)
		look := func(c *keystore.Change) {
			c.Look = must(s.Admit(ctx, c.Domain, []dnsname.Selector{c.Publish[0].Key.Selector}, false))(t)
		}
		plain := newDomain("acme", "a.b.com", "s1")
		look(&plain)
		e.provision(t, "other", "a-b.com", "s2")
		wantEqual(t, "label", must(s.Apply(ctx, plain))(t).HostLabel, hashed("a.b.com"))

		taken := newDomain("acme", "spamtrap.dk", "s1")
		look(&taken)
		e.provision(t, "other", "spamtrap.dk", "s2")
		_, err := s.Apply(ctx, taken)
		wantClaim(t, err, keystore.ClaimedByOtherBrand)

		e.quota(t, "acme", 2)
		full := newDomain("acme", "full.example", "s1")
		look(&full)
		e.provision(t, "acme", "other.example", "s1")
		_, err = s.Apply(ctx, full)
		var quota *keystore.QuotaError
		if !errors.As(err, &quota) || quota.Count != 2 {
			t.Fatalf("got error %v, want a QuotaError", err)
		}

		// One that refuses is not believed: another's, or of other selectors.
		e.quota(t, "acme", 10)
		c := newDomain("acme", "d.example", "s1")
		elsewhere := newDomain("other", "elsewhere.example", "s1")
		look(&elsewhere)
		c.Look = elsewhere.Look
		wantEqual(t, "label", must(s.Apply(ctx, c))(t).HostLabel, "d-example")
	},

	"lag: who was too slow sees what was faster": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		s := keystore.New(&Lagging{Client: e.client, Behind: func() int64 { return 1 }}, storeTimeout)
		ctx := keystore.WithFloor(t.Context())
		must(s.Brand(ctx, "acme"))(t)
		c := newDomain("acme", "spamtrap.dk", "s1")
		var err error
		c.Look, err = s.Admit(ctx, c.Domain, []dnsname.Selector{"s1"}, false)
		if err != nil {
			t.Fatal(err)
		}
		faster := e.provision(t, "acme", "spamtrap.dk", "s1")
		_, err = s.Apply(ctx, c)
		wantErr(t, err, keystore.ErrConflict)
		wantEqual(t, "revision", must(s.Domain(ctx, "acme", "spamtrap.dk"))(t).Revision, faster.Revision)
	},

	"lag: of the claimers of a name one gets it, and nobody passes a quota": func(t *testing.T, e *env) {
		const limit = 25
		e.setup(t, "acme", "other")
		e.quota(t, "acme", limit)
		var calls []func() error
		var made, full, claimed atomic.Int64
		for w := range 8 {
			s, _ := e.lagging(40)
			brand := []string{"acme", "other"}[w%2]
			calls = append(calls, func() error {
				for i := range 40 { // two writers of each brand want the same
					_, err := provisionOnce(context.Background(), s, brand, dnsname.Domain(fmt.Sprintf("d%d.p%d.example", i, w/4)), "s1")
					_, isFull := errors.AsType[*keystore.QuotaError](err)
					claim, isClaim := errors.AsType[*keystore.ClaimError](err)
					switch {
					case err == nil:
						made.Add(1)
					case isFull && brand == "acme":
						full.Add(1)
					case isClaim && claim.Reason == keystore.ClaimedByOtherBrand:
						claimed.Add(1)
					default:
						return err
					}
				}
				return nil
			})
		}
		for i, err := range together(calls...) {
			if err != nil {
				t.Errorf("writer %d: %v", i, err)
			}
		}
		acme, other := e.customers(t, "acme"), e.customers(t, "other")
		// Each name has one owner, and both writers of its brand were told so. A full
		// brand leaves the rest to the other.
		if acme > limit || acme+other != 80 || made.Load() != 2*(acme+other) && full.Load() == 0 {
			t.Errorf("acme has %d, other %d; %d made, %d full, %d claimed", acme, other, made.Load(), full.Load(), claimed.Load())
		}
		wantEqual(t, "number of domains", must(e.CustomerDomains(t.Context(), "acme"))(t), acme)
		e.wantConsistent(t)
	},
}
