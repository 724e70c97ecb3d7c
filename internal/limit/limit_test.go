package limit_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/dkimzone/dkimzone/internal/authn"
	"github.com/dkimzone/dkimzone/internal/limit"
)

var (
	acme  = authn.Identity{Role: authn.Brand, Name: "shop", Brand: "acme"}
	other = authn.Identity{Role: authn.Brand, Name: "shop", Brand: "other"}
	admin = authn.Identity{Role: authn.Admin, Name: "alice"}
	mta   = authn.Identity{Role: authn.Signer, Name: "mx1"}
)

// clock is one that a test sets.
type clock struct{ at time.Time }

func newClock() *clock                { return &clock{time.Unix(1_800_000_000, 0)} }
func (c *clock) now() time.Time       { return c.at }
func (c *clock) pass(d time.Duration) { c.at = c.at.Add(d) }
func rate(r float64) limit.Options    { return limit.Options{Rates: rates(r)} }
func rates(r float64) map[limit.Class]float64 {
	m := make(map[limit.Class]float64)
	for _, c := range limit.Classes {
		m[c] = r
	}
	return m
}

// many makes calls that end at once until one is refused, and returns how many
// were let through.
func many(l *limit.Limiter, who authn.Identity, class limit.Class, most int) (n int, refused *limit.Refusal) {
	for n = range most {
		done, r := l.Begin(who, class, 1, false)
		if r != nil {
			return n, r
		}
		done()
	}
	return most, nil
}

func TestClassOf(t *testing.T) {
	tests := map[string]limit.Class{
		"/dkim.v1.KeyManagement/GetDomain":                          limit.Read,
		"/dkim.v1.KeyManagement/ListBrands":                         limit.Read,
		"/dkim.v1.KeyManagement/WatchDomains":                       limit.Read,
		"/dkim.v1.KeyManagement/PlanRotation":                       limit.Read,
		"/dkim.v1.KeyManagement/CheckDomain":                        limit.Mutation,
		"/dkim.v1.KeyManagement/DeleteDomain":                       limit.Mutation,
		"/dkim.v1.KeyManagement/RotateDomain":                       limit.Mutation,
		"/dkim.v1.KeyManagement/ProvisionDomain":                    limit.Provision,
		"/dkim.v1.KeyManagement/PublishKey":                         limit.Provision,
		"/dkim.v1.KeyManagement/BatchPublishKeys":                   limit.Provision,
		"/dkim.v1.KeyManagement/ImportKey":                          limit.Provision,
		"/dkim.v1.AccessControl/CreateToken":                        limit.Mutation,
		"/dkim.v1.Signer/ResolveSigningKeys":                        limit.Signer,
		"/dkim.v1.Signer/RegisterSigner":                            limit.Signer,
		"/grpc.health.v1.Health/Check":                              limit.Read,
		"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": limit.Read,
		"/dkim.v1.Unknown/Frobnicate":                               limit.Mutation,
		"":                                                          limit.Read,
	}
	for method, want := range tests {
		if got := limit.ClassOf(method); got != want {
			t.Errorf("ClassOf(%q) = %s, want %s", method, got, want)
		}
	}
}

func TestRate(t *testing.T) {
	c := newClock()
	o := rate(100)
	o.Now = c.now
	l := limit.New(o)
	n, refused := many(l, acme, limit.Read, 1000)
	if n != 200 || refused == nil || refused.Reason != "RATE_LIMITED" || refused.Limit != 100 || refused.Class != limit.Read {
		t.Fatalf("%d calls, then %+v; want 200 of two seconds, then RATE_LIMITED", n, refused)
	}
	if refused.Delay < 10*time.Millisecond || refused.Delay > 12*time.Millisecond {
		t.Errorf("delay %s, want that of one call", refused.Delay)
	}
	// Other classes and callers have allowances of their own.
	for _, who := range []authn.Identity{other, mta, {Role: authn.Signer, Name: "mx2"}, {Role: authn.Auditor, Name: "shop"}} {
		if n, _ := many(l, who, limit.Read, 200); n != 200 {
			t.Errorf("%s: %d calls, want 200", who, n)
		}
	}
	if n, _ := many(l, acme, limit.Mutation, 200); n != 200 {
		t.Errorf("%d mutations, want 200", n)
	}
	// All who act for a brand have one.
	if n, _ := many(l, authn.Identity{Role: authn.Brand, Name: "another", Brand: "acme"}, limit.Read, 10); n != 0 {
		t.Errorf("another name of the brand made %d calls", n)
	}
	// It comes back as told, and at the rate.
	c.pass(refused.Delay)
	if n, _ := many(l, acme, limit.Read, 10); n != 1 {
		t.Errorf("%d calls after the delay, want 1", n)
	}
	c.pass(time.Second)
	if n, _ := many(l, acme, limit.Read, 1000); n != 100 {
		t.Errorf("%d calls after a second, want 100", n)
	}
	c.pass(time.Hour)
	if n, _ := many(l, acme, limit.Read, 1000); n != 200 {
		t.Errorf("%d calls after an hour, want 200", n)
	}
	// A clock that goes back gives nothing, and takes nothing.
	c.pass(-time.Hour)
	if n, _ := many(l, acme, limit.Read, 10); n != 0 {
		t.Errorf("%d calls after the clock went back", n)
	}
	c.pass(time.Second)
	if n, _ := many(l, acme, limit.Read, 1000); n != 100 {
		t.Errorf("%d calls a second later, want 100", n)
	}
}

func TestBatchIsPaidForAfterwards(t *testing.T) {
	c := newClock()
	l := limit.New(limit.Options{Rates: map[limit.Class]float64{limit.Provision: 100}, Now: c.now})
	total := 0
	for range 60 {
		for {
			done, refused := l.Begin(acme, limit.Provision, 1000, false)
			if refused != nil {
				if refused.Delay > 11*time.Second {
					t.Fatalf("delay %s", refused.Delay)
				}
				break
			}
			done()
			total += 1000
		}
		c.pass(time.Second)
	}
	// A minute's worth, the burst, and what the last one anticipates.
	if total < 6000 || total > 7200 {
		t.Errorf("%d keys in a minute at 100 a second", total)
	}
}

func TestLowRate(t *testing.T) {
	c := newClock()
	l := limit.New(limit.Options{Rates: map[limit.Class]float64{limit.Read: 0.1}, Now: c.now})
	n, refused := many(l, acme, limit.Read, 100)
	if n != 10 || refused.Delay < 10*time.Second {
		t.Errorf("%d calls, then %+v; want 10, then 10 s", n, refused)
	}
}

func TestConcurrency(t *testing.T) {
	l := limit.New(limit.Options{Concurrent: 3, Streams: 2, Total: 5})
	var ends []func()
	begin := func(who authn.Identity, stream bool) string {
		done, refused := l.Begin(who, limit.Read, 1, stream)
		if refused != nil {
			if refused.Delay <= 0 {
				t.Errorf("%s without a delay", refused.Reason)
			}
			return refused.Reason
		}
		ends = append(ends, done)
		return ""
	}
	steps := []struct {
		who    authn.Identity
		stream bool
		want   string
	}{
		{acme, false, ""},
		{acme, false, ""},
		{acme, false, ""},
		{acme, false, "TOO_MANY_CALLS"},
		{acme, true, ""},
		{acme, true, ""},
		{acme, true, "TOO_MANY_STREAMS"},
		{other, false, ""},
		{admin, false, ""},
		{other, false, "OVERLOADED"},
		{admin, false, "OVERLOADED"},
		{other, true, ""},
		{admin, true, ""},
		{admin, true, ""},
		{admin, true, "OVERLOADED"},
	}
	for i, s := range steps {
		if got := begin(s.who, s.stream); got != s.want {
			t.Fatalf("step %d: %q, want %q", i, got, s.want)
		}
	}
	for _, done := range ends {
		done()
		done() // counts once
	}
	for _, s := range steps[:3] {
		if got := begin(s.who, s.stream); got != "" {
			t.Fatalf("after all have ended: %s", got)
		}
	}
	if got := begin(acme, false); got != "TOO_MANY_CALLS" {
		t.Fatalf("%q after calls ended twice", got)
	}
}

func TestAdmins(t *testing.T) {
	c := newClock()
	o := limit.Options{Rates: rates(1), Concurrent: 1, Now: c.now}
	if n, refused := many(limit.New(o), admin, limit.Provision, 100_000); refused != nil {
		t.Errorf("refused after %d calls: %+v", n, refused)
	}
	o.Admins = true
	l := limit.New(o)
	if n, _ := many(l, admin, limit.Provision, 100); n != 10 {
		t.Errorf("%d calls, want 10", n)
	}
	if n, _ := many(l, authn.Identity{Role: authn.Admin, Name: "bob"}, limit.Provision, 100); n != 10 {
		t.Errorf("%d calls of another administrator, want 10", n)
	}
}

func TestManyCallers(t *testing.T) {
	c := newClock()
	l := limit.New(limit.Options{Rates: rates(100), Concurrent: 10, Callers: 1000, Now: c.now})
	caller := func(i int) authn.Identity { return authn.Identity{Role: authn.Signer, Name: fmt.Sprintf("mx%d", i)} }
	busy, refused := l.Begin(caller(0), limit.Signer, 1, false)
	if refused != nil {
		t.Fatal(refused)
	}
	if n, _ := many(l, caller(1), limit.Signer, 1000); n != 200 {
		t.Fatalf("%d calls, want 200", n)
	}
	// A crowd pushes nobody out who is known for something.
	through := 0
	for i := range 100_000 {
		if n, _ := many(l, caller(10+i), limit.Signer, 1); n == 1 {
			through++
		}
	}
	if through < 998 || through > 998+200 {
		t.Errorf("%d calls of the crowd, want those of 998 callers and of one more for all others", through)
	}
	if n, _ := many(l, caller(1), limit.Signer, 1); n != 0 {
		t.Error("the crowd gave a caller a new allowance")
	}
	// When they are quiet again, they make room.
	c.pass(time.Minute)
	for i := range 100_000 {
		c.pass(time.Millisecond)
		if n, refused := many(l, caller(200_000+i), limit.Signer, 1); n != 1 {
			t.Fatalf("caller %d: %+v", i, refused)
		}
	}
	busy()
}

func TestBoundedMemory(t *testing.T) {
	l := limit.New(rate(100))
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	for i := range 300_000 {
		if done, refused := l.Begin(authn.Identity{Role: authn.Signer, Name: fmt.Sprintf("signer-with-a-long-name-%d", i)}, limit.Signer, 1, false); refused == nil {
			done()
		}
	}
	if grown := int64(heap()) - int64(before); grown > 16<<20 {
		t.Errorf("%d octets for 300 000 callers", grown)
	}
	runtime.KeepAlive(l)
}

// raise makes most n if it is less.
func raise(most *atomic.Int64, n int64) {
	for {
		if m := most.Load(); n <= m || most.CompareAndSwap(m, n) {
			return
		}
	}
}

func TestInParallel(t *testing.T) {
	c := newClock()
	l := limit.New(limit.Options{Rates: rates(100), Concurrent: 7, Total: 20, Callers: 3, Now: c.now})
	var wg sync.WaitGroup
	var now, most, through atomic.Int64
	for w := range 32 {
		who := authn.Identity{Role: authn.Signer, Name: fmt.Sprintf("mx%d", w%8)}
		wg.Go(func() {
			for range 200 {
				done, refused := l.Begin(who, limit.Signer, 1, false)
				if refused != nil {
					continue
				}
				n := now.Add(1)
				raise(&most, n)
				through.Add(1)
				runtime.Gosched()
				now.Add(-1)
				done()
			}
		})
	}
	wg.Wait()
	// Three callers with a place, and one account for the others.
	if most.Load() > 20 || through.Load() > 4*200 {
		t.Errorf("%d at a time, %d in all", most.Load(), through.Load())
	}
	// Nothing is left under way.
	c.pass(time.Hour)
	if n, refused := many(l, mta, limit.Signer, 200); n != 200 {
		t.Errorf("%d calls afterwards: %+v", n, refused)
	}
}

func TestInterceptors(t *testing.T) {
	c := newClock()
	l := limit.New(limit.Options{Rates: map[limit.Class]float64{limit.Provision: 10, limit.Read: 10}, Concurrent: 1, Streams: 1, Now: c.now})
	ctx := authn.NewContext(t.Context(), authn.Caller{Identity: acme})
	info := &grpc.UnaryServerInfo{FullMethod: "/dkim.v1.KeyManagement/ProvisionDomain"}
	failed := errors.New("handler")
	call := func(ctx context.Context, handle func() error) error {
		_, err := l.Unary()(ctx, nil, info, func(context.Context, any) (any, error) { return nil, handle() })
		return err
	}
	if err := call(ctx, func() error { return failed }); !errors.Is(err, failed) {
		t.Errorf("got %v, want that of the handler", err)
	}
	wantRefusal(t, call(ctx, func() error { return call(ctx, func() error { return nil }) }), "TOO_MANY_CALLS", "provision")
	func() {
		defer func() { _ = recover() }()
		_ = call(ctx, func() error { panic("handler") })
	}()
	for range 17 { // 20 in all: three above
		if err := call(ctx, func() error { return nil }); err != nil {
			t.Fatalf("after a panic: %v", err)
		}
	}
	wantRefusal(t, call(ctx, func() error { return nil }), "RATE_LIMITED", "provision")
	// Callers whom nobody named share an account.
	for range 20 {
		if err := call(t.Context(), func() error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	wantRefusal(t, call(context.Background(), func() error { return nil }), "RATE_LIMITED", "provision")

	watch := func(ctx context.Context, handle func() error) error {
		return l.Stream()(nil, stream{ctx: ctx}, &grpc.StreamServerInfo{FullMethod: "/dkim.v1.KeyManagement/WatchDomains"},
			func(any, grpc.ServerStream) error { return handle() })
	}
	wantRefusal(t, watch(ctx, func() error { return watch(ctx, func() error { return nil }) }), "TOO_MANY_STREAMS", "read")
	if err := watch(ctx, func() error { return failed }); !errors.Is(err, failed) {
		t.Errorf("got %v, want that of the handler", err)
	}
}

type stream struct {
	grpc.ServerStream

	ctx context.Context
}

func (s stream) Context() context.Context { return s.ctx }

func wantRefusal(t *testing.T, err error, reason, class string) {
	t.Helper()
	st := status.Convert(err)
	var info *errdetails.ErrorInfo
	var retry *errdetails.RetryInfo
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			info = d
		case *errdetails.RetryInfo:
			retry = d
		}
	}
	if st.Code() != codes.ResourceExhausted || info.GetReason() != reason || info.GetDomain() != "dkimzone" ||
		info.GetMetadata()["class"] != class || info.GetMetadata()["limit"] == "" {
		t.Errorf("got %v %v, want %s of class %s", err, info, reason, class)
	}
	if retry.GetRetryDelay().AsDuration() <= 0 || !strings.Contains(st.Message(), "try again in ") {
		t.Errorf("%v does not say when to try again: %v", err, retry)
	}
}

func BenchmarkBegin(b *testing.B) {
	l := limit.New(limit.Options{Rates: rates(1e12), Concurrent: 1 << 20, Streams: 64, Total: 1 << 20})
	who := make([]authn.Identity, 10_000)
	for i := range who {
		who[i] = authn.Identity{Role: authn.Signer, Name: fmt.Sprintf("mx%d", i)}
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			done, refused := l.Begin(who[i%len(who)], limit.Signer, 1, false)
			if refused != nil {
				b.Fatal(refused)
			}
			done()
		}
	})
}
