package keystoretest

import (
	"context"
	"errors"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// picture is what decides which keys sign, as a watcher knows it.
type picture struct {
	brands    map[string]keystore.Brand
	domains   map[string]keystore.Domain
	statuses  map[string]keystore.Status
	damaged   int
	confirmed chan time.Time
	stop      func(*picture) bool // ends the watch after a change
}

func newPicture() *picture {
	return &picture{
		brands: make(map[string]keystore.Brand), domains: make(map[string]keystore.Domain), statuses: make(map[string]keystore.Status),
		confirmed: make(chan time.Time, 100),
	}
}

// Changed implements keystore.SigningWatcher.
func (p *picture) Changed(c keystore.SigningChange) error {
	if c.Damaged != nil {
		p.damaged++
	}
	put(p.brands, c.Brand, c.Deleted, func(b *keystore.Brand) string { return b.Name })
	put(p.domains, c.Domain, c.Deleted, func(d *keystore.Domain) string { return d.Brand + "/" + string(d.Name) })
	put(p.statuses, c.Status, c.Deleted, func(st *keystore.Status) string { return st.Brand + "/" + string(st.Domain) })
	if p.stop != nil && p.stop(p) {
		return errEnough
	}
	return nil
}

func put[T any](all map[string]T, v *T, deleted bool, key func(*T) string) {
	switch {
	case v == nil:
	case deleted:
		delete(all, key(v))
	default:
		all[key(v)] = *v
	}
}

// Confirmed implements keystore.SigningWatcher.
func (p *picture) Confirmed(at time.Time) {
	select {
	case p.confirmed <- at:
	default:
	}
}

func (e *env) list(t testing.TB) (*picture, keystore.SigningPosition) {
	t.Helper()
	p := newPicture()
	pos := must(e.SigningSnapshot(context.Background(), p.Changed))(t)
	return p, pos
}

// wantSame compares what a watcher knows with what is stored.
func (e *env) wantSame(t testing.TB, got *picture) {
	t.Helper()
	want, _ := e.list(t)
	wantEqual(t, "brands", got.brands, want.brands)
	wantEqual(t, "domains", got.domains, want.domains)
	if len(got.statuses) != len(want.statuses) {
		t.Errorf("%d statuses, want %d", len(got.statuses), len(want.statuses))
	}
	for k, st := range want.statuses {
		if got.statuses[k].Revision != st.Revision {
			t.Errorf("status of %s at revision %d, want %d", k, got.statuses[k].Revision, st.Revision)
		}
	}
}

const signingInterval = 10 * time.Millisecond

var signingTests = map[string]func(*testing.T, *env){
	"signing: what is listed and then watched is what is stored": func(t *testing.T, e *env) {
		e.setup(t, "acme", "other")
		e.provision(t, "acme", "before.dk", "s1")
		gone := e.provision(t, "acme", "gone.dk", "s1")
		p, pos := e.list(t)
		if len(p.brands) != 2 || len(p.domains) != 2 {
			t.Fatalf("listed %v and %v", p.brands, p.domains)
		}
		if len(p.domains["acme/before.dk"].Keys) != 1 || p.domains["acme/before.dk"].Events != nil {
			t.Errorf("listed domain %v", p.domains["acme/before.dk"])
		}

		must(e.DeleteDomain(t.Context(), gone, now))(t)
		after := e.provision(t, "other", "after.dk", "s1", "s2")
		st := keystore.Status{Brand: "other", Domain: after.Name, Due: now.Add(time.Hour), Revision: must(e.Status(t.Context(), "other", after.Name))(t).Revision}
		st.Served = map[string]rotation.Observation{after.Keys[0].ID: {Finding: rotation.Proven, Since: now.Truncate(time.Second), CheckTime: now.Truncate(time.Second)}}
		saved := must(e.SaveStatus(t.Context(), st, nil))(t)
		p.stop = func(p *picture) bool {
			_, there := p.domains["acme/gone.dk"]
			return !there && p.domains["other/after.dk"].Revision == after.Revision && p.statuses["other/after.dk"].Revision == saved.Revision
		}
		wantErr(t, e.WatchSigning(t.Context(), &pos, signingInterval, time.Now, p), errEnough)
		e.wantSame(t, p)
	},

	"signing: the watch goes on where it was, and is confirmed": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		p, pos := e.list(t)
		e.provision(t, "acme", "a.dk", "s1")
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		ended := make(chan error, 1)
		go func() { ended <- e.WatchSigning(ctx, &pos, signingInterval, time.Now, p) }()
		confirmation := func() (at time.Time) {
			select {
			case at = <-p.confirmed:
			case err := <-ended:
				t.Fatalf("the watch ended: %v", err)
			}
			return at
		}
		if at := confirmation(); at.Before(began) {
			t.Errorf("confirmed at %s, from before the watch", at)
		}
		// A change that nobody who watches this asked for does not hold up the next.
		must(e.client.Put(t.Context(), schema.Root+"meta/else", "x"))(t)
		confirmation()
		confirmation()
		cancel()
		wantErr(t, <-ended, context.Canceled)
		e.wantSame(t, p)

		e.provision(t, "acme", "b.dk", "s1")
		p.stop = func(p *picture) bool {
			return p.domains["acme/a.dk"].Revision == 0 || p.domains["acme/b.dk"].Revision != 0
		}
		wantErr(t, e.WatchSigning(t.Context(), &pos, signingInterval, time.Now, p), errEnough)
		e.wantSame(t, p)

		// Nothing is missing though nothing more is written, from the last change on too.
		p.stop = nil
		for range 2 {
			p.confirmed = make(chan time.Time, 100)
			ctx, cancel = context.WithCancel(t.Context())
			go func() { ended <- e.WatchSigning(ctx, &pos, signingInterval, time.Now, p) }()
			confirmation()
			cancel()
			wantErr(t, <-ended, context.Canceled)
		}
		e.wantSame(t, p)
	},

	"signing: an expired watch": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		p, pos := e.list(t)
		e.provision(t, "acme", "a.dk", "s1")
		e.provision(t, "acme", "b.dk", "s1")
		e.compact(t)
		wantErr(t, e.WatchSigning(t.Context(), &pos, signingInterval, time.Now, p), keystore.ErrCompacted)
	},

	"signing: damaged values count as missing": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		d := e.provision(t, "acme", "a.dk", "s1")
		must(e.client.Put(t.Context(), schema.DomainKey("acme", "a.dk"), "\xff"))(t)
		must(e.client.Put(t.Context(), schema.StatusKey("acme", "a.dk"), "\xff"))(t)
		must(e.client.Put(t.Context(), schema.BrandKey("acme"), "\xff"))(t)
		p, _ := e.list(t)
		if p.damaged != 3 || len(p.domains)+len(p.brands)+len(p.statuses) != 0 {
			t.Errorf("%d damaged, left %v %v %v", p.damaged, p.brands, p.domains, p.statuses)
		}
		if d.Name != dnsname.Domain("a.dk") {
			t.Errorf("provisioned %s", d.Name)
		}
	},

	"signing: a watch that is not confirmed ends": func(t *testing.T, e *env) {
		e.setup(t, "acme")
		p, pos := e.list(t)
		e.provision(t, "acme", "a.dk", "s1") // else the store itself confirms that nothing is missing
		s := keystore.New(mute{e.client}, 50*time.Millisecond)
		if err := s.WatchSigning(t.Context(), &pos, time.Millisecond, time.Now, p); !errors.Is(err, keystore.ErrUnavailable) {
			t.Errorf("got %v, want ErrUnavailable", err)
		}
	},
}

// mute is a client whose watches bring nothing.
type mute struct{ Client }

func (mute) Watch(ctx context.Context, _ string, _ ...clientv3.OpOption) clientv3.WatchChan {
	never := make(chan clientv3.WatchResponse)
	go func() {
		<-ctx.Done()
		close(never)
	}()
	return never
}

func (mute) RequestProgress(context.Context) error { return nil }
