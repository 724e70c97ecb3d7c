package keygen_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dkimzone/dkimzone/internal/keygen"
	"github.com/dkimzone/dkimzone/internal/keypair"
)

// generator makes a key, quick ones whatever the algorithm, in a time of the
// bubble.
type generator struct {
	takes time.Duration

	mu      sync.Mutex
	err     error
	calls   []keypair.Algorithm
	running int
	most    int // of running
}

func (g *generator) generate(a keypair.Algorithm) (*keypair.KeyPair, error) {
	g.mu.Lock()
	g.calls = append(g.calls, a)
	g.running++
	g.most = max(g.most, g.running)
	g.mu.Unlock()
	time.Sleep(g.takes)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running--
	if g.err != nil {
		return nil, g.err
	}
	return keypair.Generate(keypair.Ed25519)
}

func (g *generator) fail(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.err = err
}

func (g *generator) made() []keypair.Algorithm {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]keypair.Algorithm(nil), g.calls...)
}

// getting is a Get in a goroutine of its own.
type getting struct {
	pair  *keypair.KeyPair
	err   error
	after time.Duration
	ended chan struct{}
}

func get(ctx context.Context, p *keygen.Pool, a keypair.Algorithm) *getting {
	g := &getting{ended: make(chan struct{})}
	began := time.Now()
	go func() {
		defer close(g.ended)
		g.pair, g.err = p.Get(ctx, a)
		g.after = time.Since(began)
	}()
	synctest.Wait() // it is in the line before anything else happens
	return g
}

func (g *getting) wantKey(t *testing.T, after time.Duration) {
	t.Helper()
	<-g.ended
	if g.err != nil || g.pair == nil || g.after != after {
		t.Errorf("Get = %v, %v after %v; want a key after %v", g.pair, g.err, g.after, after)
	}
}

func (g *getting) wantError(t *testing.T, want error, after time.Duration) {
	t.Helper()
	<-g.ended
	if !errors.Is(g.err, want) || g.pair != nil || g.after != after {
		t.Errorf("Get = %v, %v after %v; want %v after %v", g.pair, g.err, g.after, want, after)
	}
}

func stats(p *keygen.Pool, a keypair.Algorithm) keygen.Stats {
	for _, s := range p.Stats() {
		if s.Algorithm == a {
			return s
		}
	}
	return keygen.Stats{}
}

func TestStockIsFilledEvenly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &generator{takes: time.Second}
		p := keygen.New(keygen.Options{Workers: 1, Generate: g.generate, Stock: map[keypair.Algorithm]int{keypair.RSA2048: 4, keypair.RSA4096: 2}})
		defer p.Close()
		time.Sleep(3*time.Second + 1)
		if a, b := stats(p, keypair.RSA2048).Stock, stats(p, keypair.RSA4096).Stock; a != 2 || b != 1 {
			t.Errorf("after half the time the stock is %d of 4 and %d of 2, want half of each", a, b)
		}
		time.Sleep(time.Hour)
		want := []keygen.Stats{
			{Algorithm: keypair.RSA2048, Stock: 4, Target: 4, Made: 4},
			{Algorithm: keypair.RSA3072},
			{Algorithm: keypair.RSA4096, Stock: 2, Target: 2, Made: 2},
		}
		if diff := cmp.Diff(want, p.Stats()); diff != "" {
			t.Errorf("stats of a full pool (-want +got):\n%s", diff)
		}
	})
}

func TestDryPoolSlowsButServes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &generator{takes: time.Second}
		p := keygen.New(keygen.Options{Workers: 1, Generate: g.generate, Stock: map[keypair.Algorithm]int{keypair.RSA2048: 2}})
		defer p.Close()
		time.Sleep(time.Minute)
		var gets []*getting
		for range 5 {
			gets = append(gets, get(t.Context(), p, keypair.RSA2048))
		}
		seen := make(map[[32]byte]bool)
		for i, g := range gets {
			g.wantKey(t, time.Duration(max(0, i-1))*time.Second)
			seen[g.pair.Public().Fingerprint()] = true
		}
		if len(seen) != len(gets) {
			t.Errorf("%d different keys in %d calls", len(seen), len(gets))
		}
		if s := stats(p, keypair.RSA2048); s.Dry != 3 || s.Waiting != 0 {
			t.Errorf("stats %+v, want 3 calls that found no stock and none waiting", s)
		}
		time.Sleep(time.Minute)
		if s := stats(p, keypair.RSA2048); s.Stock != 2 {
			t.Errorf("stock %d in the end, want it full again", s.Stock)
		}
	})
}

func TestNoStockAtAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &generator{takes: time.Second}
		p := keygen.New(keygen.Options{Workers: 1, Generate: g.generate})
		defer p.Close()
		time.Sleep(time.Hour)
		if calls := g.made(); len(calls) != 0 {
			t.Errorf("made %v without being asked", calls)
		}
		get(t.Context(), p, keypair.RSA3072).wantKey(t, time.Second)
	})
}

func TestWorkersBoundWhatIsMadeAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &generator{takes: time.Second}
		p := keygen.New(keygen.Options{Workers: 3, Generate: g.generate, Stock: map[keypair.Algorithm]int{keypair.RSA4096: 5}})
		defer p.Close()
		var gets []*getting
		for range 20 {
			gets = append(gets, get(t.Context(), p, keypair.RSA2048))
		}
		for _, g := range gets {
			<-g.ended
		}
		time.Sleep(time.Minute)
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.most != 3 {
			t.Errorf("%d keys made at once, want 3", g.most)
		}
	})
}

func TestWaitersComeBeforeStockAndInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &generator{takes: time.Second}
		p := keygen.New(keygen.Options{Workers: 1, Generate: g.generate, Stock: map[keypair.Algorithm]int{keypair.RSA2048: 100}})
		defer p.Close()
		time.Sleep(500 * time.Millisecond) // the first for stock is half done
		order := []keypair.Algorithm{keypair.RSA4096, keypair.RSA3072, keypair.RSA4096, keypair.RSA3072}
		var gets []*getting
		for _, a := range order {
			gets = append(gets, get(t.Context(), p, a))
		}
		for i, g := range gets {
			g.wantKey(t, 500*time.Millisecond+time.Duration(i+1)*time.Second)
		}
		if diff := cmp.Diff(append([]keypair.Algorithm{keypair.RSA2048}, order...), g.made()[:5]); diff != "" {
			t.Errorf("order of making (-want +got):\n%s", diff)
		}
	})
}

// A key on its way to stock goes to who asks in the meantime, and no second
// one is made for that caller.
func TestWaiterGetsTheKeyOnItsWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &generator{takes: time.Second}
		p := keygen.New(keygen.Options{Workers: 2, Generate: g.generate, Stock: map[keypair.Algorithm]int{keypair.RSA2048: 1}})
		defer p.Close()
		time.Sleep(900 * time.Millisecond)
		get(t.Context(), p, keypair.RSA2048).wantKey(t, 100*time.Millisecond)
		time.Sleep(time.Minute)
		if s := stats(p, keypair.RSA2048); s.Stock != 1 || s.Made != 2 {
			t.Errorf("stats %+v, want 2 made in all and 1 in stock", s)
		}
	})
}

func TestGetIsCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &generator{takes: 10 * time.Second}
		p := keygen.New(keygen.Options{Workers: 1, Generate: g.generate})
		defer p.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		first := get(ctx, p, keypair.RSA2048)
		second := get(t.Context(), p, keypair.RSA2048)
		first.wantError(t, context.DeadlineExceeded, 3*time.Second)
		second.wantKey(t, 10*time.Second) // what was being made for the first
		get(ctx, p, keypair.RSA2048).wantError(t, context.DeadlineExceeded, 0)
		time.Sleep(time.Minute)
		if calls := g.made(); len(calls) != 1 {
			t.Errorf("%d keys made, want 1", len(calls))
		}
	})
}

// Nothing is lost when a caller gives up at the moment its key is ready.
func TestKeyForOneWhoLeftIsKept(t *testing.T) {
	for range 50 {
		synctest.Test(t, func(t *testing.T) {
			g := &generator{takes: time.Second}
			p := keygen.New(keygen.Options{Workers: 1, Generate: g.generate})
			defer p.Close()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			first := get(ctx, p, keypair.RSA2048)
			<-first.ended
			synctest.Wait()
			if stock := stats(p, keypair.RSA2048).Stock; (first.err == nil) == (stock == 1) {
				t.Errorf("Get: %v, with %d keys in stock", first.err, stock)
			}
		})
	}
}

func TestErrorsGoToWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &generator{takes: time.Second}
		p := keygen.New(keygen.Options{Workers: 1, Generate: g.generate})
		defer p.Close()
		broken := errors.New("no entropy")
		g.fail(broken)
		first := get(t.Context(), p, keypair.RSA2048)
		second := get(t.Context(), p, keypair.RSA2048)
		first.wantError(t, broken, time.Second)
		if !strings.Contains(first.err.Error(), "rsa2048") {
			t.Errorf("error %q does not name the algorithm", first.err)
		}
		g.fail(nil)
		second.wantKey(t, 2*time.Second)
		time.Sleep(time.Hour)
		if s := stats(p, keypair.RSA2048); s.Failed != 1 || s.Made != 1 {
			t.Errorf("stats %+v, want 1 failed and 1 made", s)
		}
	})
}

func TestFailingRefillBacksOffAndIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &generator{takes: time.Millisecond}
		broken := errors.New("no entropy")
		g.fail(broken)
		var log bytes.Buffer
		p := keygen.New(keygen.Options{
			Workers: 2, Generate: g.generate, Stock: map[keypair.Algorithm]int{keypair.RSA2048: 1},
			Logger: slog.New(slog.NewTextHandler(&log, nil)),
		})
		defer p.Close()
		time.Sleep(time.Hour)
		synctest.Wait()
		// 1 s, 2 s, 4 s … 32 s, then every minute.
		if n := len(g.made()); n < 60 || n > 70 {
			t.Errorf("%d attempts in an hour of failures, want one a minute", n)
		}
		if n := strings.Count(log.String(), "no entropy"); n != len(g.made()) {
			t.Errorf("%d failures logged of %d", n, len(g.made()))
		}
		// A caller is served in a pause all the same.
		before := len(g.made())
		get(t.Context(), p, keypair.RSA2048).wantError(t, broken, time.Millisecond)
		g.fail(nil)
		get(t.Context(), p, keypair.RSA2048).wantKey(t, time.Millisecond)
		if n := len(g.made()) - before; n < 2 {
			t.Errorf("%d attempts for two callers", n)
		}
		time.Sleep(time.Second)
		if s := stats(p, keypair.RSA2048); s.Stock != 1 {
			t.Errorf("stock %d after it works again, want 1", s.Stock)
		}
	})
}

func TestRefillResumesByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &generator{}
		g.fail(errors.New("no entropy"))
		p := keygen.New(keygen.Options{Workers: 1, Generate: g.generate, Stock: map[keypair.Algorithm]int{keypair.RSA2048: 3}})
		defer p.Close()
		time.Sleep(10 * time.Minute)
		g.fail(nil)
		time.Sleep(time.Minute)
		if s := stats(p, keypair.RSA2048); s.Stock != 3 {
			t.Errorf("stock %d a minute after it works again, want 3", s.Stock)
		}
	})
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &generator{takes: 10 * time.Second}
		p := keygen.New(keygen.Options{Workers: 2, Generate: g.generate, Stock: map[keypair.Algorithm]int{keypair.RSA4096: 1}})
		waiting := get(t.Context(), p, keypair.RSA2048)
		time.Sleep(4 * time.Second)
		began := time.Now()
		p.Close()
		if took := time.Since(began); took != 6*time.Second || g.running != 0 {
			t.Errorf("Close returned after %v with %d keys being made, want 6s and none", took, g.running)
		}
		waiting.wantError(t, keygen.ErrClosed, 4*time.Second)
		for _, a := range keypair.Algorithms() {
			get(t.Context(), p, a).wantError(t, keygen.ErrClosed, 0)
		}
		p.Close()
		if s := stats(p, keypair.RSA4096); s.Stock != 0 {
			t.Errorf("a closed pool keeps %d private keys", s.Stock)
		}
	})
}

func TestCloseWithinAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &generator{}
		g.fail(errors.New("no entropy"))
		p := keygen.New(keygen.Options{Generate: g.generate, Stock: map[keypair.Algorithm]int{keypair.RSA2048: 1}})
		synctest.Wait()
		p.Close()
		calls := len(g.made())
		time.Sleep(time.Hour)
		if n := len(g.made()); n != calls {
			t.Errorf("%d attempts after Close", n-calls)
		}
	})
}

func TestEd25519IsMadeInline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &generator{takes: time.Second}
		p := keygen.New(keygen.Options{Workers: 1, Generate: g.generate, Stock: map[keypair.Algorithm]int{keypair.Ed25519: 10}})
		defer p.Close()
		time.Sleep(time.Hour)
		rsa := get(t.Context(), p, keypair.RSA4096) // keeps the only worker busy
		get(t.Context(), p, keypair.Ed25519).wantKey(t, time.Second)
		rsa.wantKey(t, time.Second)
		if diff := cmp.Diff([]keypair.Algorithm{keypair.RSA4096, keypair.Ed25519}, g.made()); diff != "" {
			t.Errorf("made (-want +got):\n%s", diff)
		}
		broken := errors.New("no entropy")
		g.fail(broken)
		get(t.Context(), p, keypair.Ed25519).wantError(t, broken, time.Second)
	})
}

func TestUnknownAlgorithm(t *testing.T) {
	p := keygen.New(keygen.Options{})
	defer p.Close()
	if pair, err := p.Get(t.Context(), keypair.Algorithm(0)); err == nil {
		t.Errorf("Get of no algorithm = %v", pair)
	}
}

func TestRealKeys(t *testing.T) {
	p := keygen.New(keygen.Options{})
	defer p.Close()
	for _, a := range []keypair.Algorithm{keypair.Ed25519, keypair.RSA2048} {
		pair, err := p.Get(t.Context(), a)
		if err != nil || pair.Algorithm() != a {
			t.Errorf("Get(%v) = %v, %v", a, pair, err)
		}
	}
}

func TestManyCallers(t *testing.T) {
	g := &generator{}
	p := keygen.New(keygen.Options{Workers: 4, Generate: g.generate, Stock: map[keypair.Algorithm]int{keypair.RSA2048: 10}})
	var mu sync.Mutex
	seen := make(map[[32]byte]bool)
	var callers sync.WaitGroup
	const each = 50
	for range 16 {
		callers.Go(func() {
			for range each {
				pair, err := p.Get(t.Context(), keypair.RSA2048)
				if err != nil {
					t.Errorf("Get: %v", err)
					return
				}
				mu.Lock()
				seen[pair.Public().Fingerprint()] = true
				mu.Unlock()
			}
		})
	}
	callers.Wait()
	p.Close()
	if len(seen) != 16*each {
		t.Errorf("%d different keys in %d calls", len(seen), 16*each)
	}
}

// BenchmarkGetWarm is a call that finds stock, while a worker puts back what
// it takes.
func BenchmarkGetWarm(b *testing.B) {
	pair, err := keypair.Generate(keypair.Ed25519)
	if err != nil {
		b.Fatal(err)
	}
	const stock = 1 << 16
	p := keygen.New(keygen.Options{
		Workers: 1, Stock: map[keypair.Algorithm]int{keypair.RSA2048: stock},
		Generate: func(keypair.Algorithm) (*keypair.KeyPair, error) { return pair, nil },
	})
	defer p.Close()
	for b.Loop() {
		if _, err := p.Get(b.Context(), keypair.RSA2048); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(stats(p, keypair.RSA2048).Dry)/float64(b.N), "dry/op")
}
