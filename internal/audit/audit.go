// Package audit keeps the account of who did what: a line for each call that
// changes something or reads a private key, for each that is refused because its
// caller is unknown or not allowed, and for each change that the service makes by
// itself. What goes into a line is named, field by field, in a table with a row
// for each method; nothing else gets there.
package audit

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/dkimzone/dkimzone/internal/auditlog"
	"github.com/dkimzone/dkimzone/internal/authn"
	"github.com/dkimzone/dkimzone/internal/refusal"
)

// Sink is where lines go; *auditlog.Log is one. It must be safe for concurrent
// use.
type Sink interface {
	// Record returns when the entry is stored, or why it is not yet.
	Record(ctx context.Context, e auditlog.Entry) error
	// Note does not wait.
	Note(e auditlog.Entry)
	// Ready returns an error while entries cannot be stored.
	Ready() error
	// Head is the place of the last stored line.
	Head() auditlog.Position
}

// storeTime is how long a call waits for its line, at most, after its work.
const storeTime = 10 * time.Second

// Auditor makes the lines. It is safe for concurrent use.
type Auditor struct {
	sink     Sink
	now      func() time.Time
	logger   *slog.Logger
	refusals *refusals
	told     atomic.Pointer[auditlog.Position]
}

// New returns an Auditor. Its Run must be running.
func New(sink Sink, now func() time.Time, logger *slog.Logger) *Auditor {
	return &Auditor{sink: sink, now: now, logger: logger, refusals: newRefusals()}
}

// Ready returns the rejection of what must not happen while there can be no line
// of it, or nil.
func (a *Auditor) Ready() error {
	if err := a.sink.Ready(); err != nil {
		return failed(err)
	}
	return nil
}

// failure is UNAVAILABLE AUDIT_FAILED.
type failure struct{ cause error }

func failed(cause error) error { return &failure{cause} }

// Error is for the log of the process.
func (f *failure) Error() string { return f.cause.Error() }

// Unwrap returns what the Sink said.
func (f *failure) Unwrap() error { return f.cause }

// GRPCStatus is what a caller sees.
func (f *failure) GRPCStatus() *status.Status {
	return refusal.New(codes.Unavailable, "AUDIT_FAILED",
		"the audit log cannot be written, so that nothing may be changed; reads go on. Try again. If this was a change, look first whether it happened",
		refusal.Retry(time.Second))
}

// Record writes a line of something that no caller asked for, and waits until it
// is stored. Without a time it is of now.
func (a *Auditor) Record(ctx context.Context, e auditlog.Entry) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTime)
	defer cancel()
	if e.Time.IsZero() {
		e.Time = a.now()
	}
	err := a.sink.Record(ctx, e)
	if err != nil {
		failuresTotal.Inc()
		return failed(err)
	}
	return nil
}

// Changed takes note of a change that was made, or may have been made if err is
// not nil: in the line of the call that ctx is of, or in a line of its own, with
// actor as the one who did it.
func (a *Auditor) Changed(ctx context.Context, actor, resource string, revision int64, err error, steps []auditlog.Step) {
	if c := callOf(ctx); c != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.steps = append(c.steps, steps...)
		c.revision = max(c.revision, revision)
		return
	}
	e := auditlog.Entry{
		Who: auditlog.Who{Name: actor}, Call: actor + "/change", Resource: resource,
		Outcome: outcome(codes.OK), Revision: revision, Steps: steps,
	}
	if err != nil {
		e.Outcome = outcome(codes.Unknown)
	}
	if err := a.Record(ctx, e); err != nil { // the log keeps it and refuses further changes
		a.logger.LogAttrs(ctx, slog.LevelError, "change is not in the audit log yet", slog.String("resource", resource), slog.Any("error", err))
	}
}

// call is a call under way.
type call struct {
	row row

	mu       sync.Mutex
	before   map[string]string
	steps    []auditlog.Step
	revision int64
}

type callKey struct{}

// callOf returns nil where no call is audited.
func callOf(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	return c
}

// Before tells the line of the call that ctx is of how the resource that it
// changes stood, in a message of the same type as the response. A later one takes
// the place of an earlier one.
func Before(ctx context.Context, resource proto.Message) {
	if c := callOf(ctx); c != nil {
		settings := c.row.settings(resource)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.before = settings
	}
}

// who makes the call of ctx, or at least where it came from, and the call's id.
func who(ctx context.Context) (auditlog.Who, string) {
	caller, known := authn.FromContext(ctx)
	w := auditlog.Who{Address: address(ctx)}
	if caller.Addr.IsValid() {
		w.Address = caller.Addr.String()
	}
	if !known {
		return w, caller.RequestID
	}
	w.Role, w.Name, w.Brand = string(caller.Role), caller.Name, caller.Brand
	w.Method, w.Credential = string(caller.Method), caller.CredentialID
	return w, caller.RequestID
}

// address is that of the connection, without its port.
func address(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return ""
	}
	if host, _, err := net.SplitHostPort(p.Addr.String()); err == nil {
		if a, err := netip.ParseAddr(host); err == nil {
			return a.Unmap().String()
		}
	}
	return p.Addr.Network()
}

func outcome(c codes.Code) string { return code.Code(c).String() } //nolint:gosec // the same numbers

// headInterval is how often the head of the log goes into that of the process,
// where it stands elsewhere.
const headInterval = 10 * time.Minute

// Run tells of repeated refusals, and of the head of the log now and then, until
// ctx ends.
func (a *Auditor) Run(ctx context.Context) {
	windows, heads := time.NewTicker(refusalWindow), time.NewTicker(headInterval)
	defer windows.Stop()
	defer heads.Stop()
	for {
		select {
		case <-ctx.Done():
			a.tellRefusals()
			return
		case <-windows.C:
			a.tellRefusals()
		case <-heads.C:
			a.TellHead(ctx)
		}
	}
}

func (a *Auditor) tellRefusals() {
	for _, e := range a.refusals.take() {
		a.sink.Note(e)
	}
}

// TellHead writes the head of the log into that of the process, unless it did
// already.
func (a *Auditor) TellHead(ctx context.Context) {
	head := a.sink.Head()
	if told := a.told.Swap(&head); told != nil && *told == head {
		return
	}
	a.logger.LogAttrs(ctx, slog.LevelInfo, "head of the audit log",
		slog.String("chain", head.Chain), slog.Uint64("line", head.Seq), slog.String("hash", head.Hash.String()))
}

// isFailure reports whether err is AUDIT_FAILED.
func isFailure(err error) bool {
	_, ok := errors.AsType[*failure](err)
	return ok
}
