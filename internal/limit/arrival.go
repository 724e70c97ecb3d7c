package limit

import (
	"container/list"
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"google.golang.org/grpc"
	"google.golang.org/grpc/tap"
)

var abandonedTotal = promauto.NewCounter(prometheus.CounterOpts{
	Namespace: "dkimd", Subsystem: "limit", Name: "abandoned_total",
	Help: "Requests given up because too many others were slow to arrive too.",
})

// Arrivals bounds how many requests may be slow to arrive. Until a request is there
// nobody knows who sends it, and what has come of it takes memory. The one that has
// been on its way longest is given up when another becomes slow, so those who
// send all at once are always served. It is safe for concurrent use.
type Arrivals struct {
	most  int
	grace time.Duration

	mu   sync.Mutex
	slow *list.List // of func(), which give requests up; the oldest first
}

// NewArrivals returns an Arrivals that lets the given number of requests be on
// their way for longer than a grace.
func NewArrivals(most int, grace time.Duration) *Arrivals {
	return &Arrivals{most: most, grace: grace, slow: list.New()}
}

// Begin enters a request that begins to arrive. It calls abandon, which must not
// wait, to give the request up, once at most. Arrived is to be called when the
// request is there, or has ended otherwise; it may be called again.
func (a *Arrivals) Begin(abandon func()) (arrived func()) {
	var place *list.Element
	over := false
	timer := time.AfterFunc(a.grace, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if over {
			return
		}
		place = a.slow.PushBack(abandon)
		if a.slow.Len() <= a.most {
			return
		}
		oldest := a.slow.Remove(a.slow.Front()).(func()) //nolint:errcheck,forcetypeassert // nothing else is in it
		abandonedTotal.Inc()
		oldest()
	})
	return func() {
		if timer.Stop() {
			return
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		over = true
		if place != nil {
			a.slow.Remove(place) // of no effect when it was given up
		}
	}
}

type arrivedKey struct{}

// Tap is for grpc.InTapHandle: it sees a call before its request is there. The
// call ends with CANCELLED when it is given up. [Arrivals.Unary] and
// [Arrivals.Stream] have to be the outermost interceptors.
func (a *Arrivals) Tap(ctx context.Context, _ *tap.Info) (context.Context, error) {
	ctx, cancel := context.WithCancel(ctx)
	arrived := a.Begin(cancel)
	context.AfterFunc(ctx, arrived) // no interceptor sees what is cut off
	return context.WithValue(ctx, arrivedKey{}, arrived), nil
}

// Unary notes that the request is there.
func (a *Arrivals) Unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	noteArrived(ctx)
	return handler(ctx, req)
}

// Stream notes that a stream is in the hands of those who look at its caller,
// which they do before they read from it.
func (a *Arrivals) Stream(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	noteArrived(stream.Context())
	return handler(srv, stream)
}

func noteArrived(ctx context.Context) {
	if arrived, ok := ctx.Value(arrivedKey{}).(func()); ok {
		arrived()
	}
}
