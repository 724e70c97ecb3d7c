package limit

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/dkimzone/dkimzone/internal/authn"
	"github.com/dkimzone/dkimzone/internal/refusal"
)

var (
	refusedTotal = promauto.NewCounterVec(prometheus.CounterOpts{
		Namespace: "dkimd", Subsystem: "limit", Name: "refused_total",
		Help: "Calls refused for their number, by class and reason.",
	}, []string{"class", "reason"})

	callers = promauto.NewGauge(prometheus.GaugeOpts{
		Namespace: "dkimd", Subsystem: "limit", Name: "callers",
		Help: "Callers whose calls are counted.",
	})
)

// Unary lets those calls through that are within the bounds. It comes after the
// interceptor that puts the caller into the context: calls without one share an
// account. Refusals are RESOURCE_EXHAUSTED with ErrorInfo and RetryInfo.
func (l *Limiter) Unary() grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		done, refused := l.begin(ctx, info.FullMethod, keys(req), false)
		if refused != nil {
			return nil, refused
		}
		defer done()
		return handler(ctx, req)
	}
}

// Stream is Unary for streams, which count when they are opened.
func (l *Limiter) Stream() grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		done, refused := l.begin(stream.Context(), info.FullMethod, 1, true)
		if refused != nil {
			return refused
		}
		defer done()
		return handler(srv, stream)
	}
}

func (l *Limiter) begin(ctx context.Context, method string, n int, stream bool) (done func(), _ error) {
	caller, _ := authn.FromContext(ctx)
	done, refused := l.Begin(caller.Identity, ClassOf(method), n, stream)
	if refused == nil {
		return done, nil
	}
	refusedTotal.WithLabelValues(string(refused.Class), refused.Reason).Inc()
	return nil, refused.status().Err()
}

// keys is how many keys or domains a request is about: a batch has them in its
// field requests.
func keys(req any) int {
	m, ok := req.(proto.Message)
	if !ok {
		return 1
	}
	r := m.ProtoReflect()
	field := r.Descriptor().Fields().ByName("requests")
	if field == nil || !field.IsList() {
		return 1
	}
	return max(1, r.Get(field).List().Len())
}

// Error says what there is too much of, and when to try again.
func (r *Refusal) Error() string {
	limit := strconv.FormatFloat(r.Limit, 'f', -1, 64)
	again := r.Delay.Round(time.Millisecond)
	switch r.Reason {
	case "RATE_LIMITED":
		return fmt.Sprintf("more than %s calls a second of class %s: try again in %s", limit, r.Class, again)
	case "TOO_MANY_STREAMS":
		return fmt.Sprintf("%s streams are open, which is all that one caller may have: close some, and try again in %s", limit, again)
	case "TOO_MANY_CALLS":
		return fmt.Sprintf("%s calls are under way, which is all that one caller may have: wait for some, and try again in %s", limit, again)
	}
	return fmt.Sprintf("%s calls are under way here, which is all that this dkimd takes: try again in %s, or another dkimd", limit, again)
}

func (r *Refusal) status() *status.Status {
	return refusal.WithMetadata(codes.ResourceExhausted, r.Reason, r.Error(), map[string]string{
		"class": string(r.Class), "limit": strconv.FormatFloat(r.Limit, 'f', -1, 64),
	}, refusal.Retry(r.Delay))
}
