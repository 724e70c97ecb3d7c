package audit

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/dkimzone/dkimzone/internal/auditlog"
	"github.com/dkimzone/dkimzone/internal/refusal"
)

// Unary writes the line of a call. It comes before all interceptors that refuse
// calls, so that it sees how they end. If a call has changed something, or gives a
// private key away, the answer waits until its line is stored; if that fails the
// answer is UNAVAILABLE AUDIT_FAILED.
func (a *Auditor) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	c := &call{row: rowOf(info.FullMethod)}
	resp, err := handler(context.WithValue(ctx, callKey{}, c), req)
	request, _ := req.(proto.Message)
	response, _ := resp.(proto.Message)
	if failure := a.finish(ctx, c, info.FullMethod, request, response, err); failure != nil {
		return nil, failure
	}
	return resp, err
}

// Gate refuses what must have a line while there can be none. It comes after the
// interceptors that refuse callers.
func (a *Auditor) Gate(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if rowOf(info.FullMethod).kind != read {
		if err := a.Ready(); err != nil {
			return nil, err
		}
	}
	return handler(ctx, req)
}

// Stream is Unary for streams. One that has to have a line has a first one, with
// the outcome STARTED, before anything is sent.
func (a *Auditor) Stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	ctx := stream.Context()
	c := &call{row: rowOf(info.FullMethod)}
	s := &auditedStream{
		ServerStream: stream, auditor: a, call: c, method: info.FullMethod, ctx: context.WithValue(ctx, callKey{}, c),
	}
	err := handler(srv, s)
	s.mu.Lock()
	first, last := s.first, s.last
	s.mu.Unlock()
	if failure := a.finish(ctx, c, info.FullMethod, first, last, err); failure != nil {
		return failure
	}
	return err
}

// GateStream is Gate for streams.
func (a *Auditor) GateStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if rowOf(info.FullMethod).kind != read {
		if err := a.Ready(); err != nil {
			return err
		}
	}
	return handler(srv, stream)
}

// auditedStream keeps the first message received and the last one sent.
type auditedStream struct {
	grpc.ServerStream

	auditor *Auditor
	call    *call
	method  string
	ctx     context.Context //nolint:containedctx // grpc.ServerStream is made so

	mu          sync.Mutex
	first, last proto.Message
	started     bool
}

// Context implements grpc.ServerStream.
func (s *auditedStream) Context() context.Context { return s.ctx }

// RecvMsg implements grpc.ServerStream. The stream is not closed by an error.
func (s *auditedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if msg, ok := m.(proto.Message); ok && s.first == nil {
		s.first = msg
	}
	return nil
}

// SendMsg implements grpc.ServerStream. Before the first message it stores the
// line that the stream has begun.
func (s *auditedStream) SendMsg(m any) error {
	s.mu.Lock()
	begin := !s.started && s.call.row.kind != read
	s.started = true
	first := s.first
	if msg, ok := m.(proto.Message); ok && s.call.row.kind != read {
		s.last = msg
	}
	s.mu.Unlock()
	if begin {
		e := s.auditor.entry(s.ctx, s.call, s.method, first, nil, nil)
		e.Outcome = "STARTED"
		if err := s.auditor.Record(s.ctx, e); err != nil {
			return err
		}
	}
	return s.ServerStream.SendMsg(m)
}

// refused reports whether a call ended before it was looked at.
func refused(c codes.Code) bool { return c == codes.Unauthenticated || c == codes.PermissionDenied }

// finish writes the line of a call that has ended, if it is to have one.
func (a *Auditor) finish(ctx context.Context, c *call, method string, req, resp proto.Message, err error) error {
	code := status.Code(err)
	c.mu.Lock()
	stepped := len(c.steps) > 0
	c.mu.Unlock()
	switch {
	case c.row.kind == read && !stepped && !refused(code), isFailure(err) && !stepped:
		return nil
	case refused(code) || code == codes.ResourceExhausted && !stepped:
		e := a.entry(ctx, c, method, req, nil, err)
		if a.refusals.admit(e) {
			a.sink.Note(e)
		} else {
			repeatedTotal.Inc()
		}
		return nil
	}
	e := a.entry(ctx, c, method, req, resp, err)
	failure := a.Record(ctx, e)
	if failure == nil {
		return nil
	}
	a.logger.LogAttrs(ctx, slog.LevelError, "call is not in the audit log yet",
		slog.String("method", method), slog.String("resource", e.Resource), slog.String("outcome", e.Outcome), slog.Any("error", failure))
	if err != nil && !stepped {
		return nil // it has changed nothing, and the caller should know why
	}
	return failure
}

// entry is the line of a call.
func (a *Auditor) entry(ctx context.Context, c *call, method string, req, resp proto.Message, err error) auditlog.Entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := auditlog.Entry{
		Time: a.now(), Call: strings.TrimPrefix(method, "/"), Outcome: outcome(status.Code(err)), Reason: refusal.Reason(err),
		Revision: c.revision, Before: c.before, Steps: c.steps,
	}
	e.Who, e.Request = who(ctx)
	if req != nil {
		e.Resource, e.Asked = c.row.name(c.row.resource, req), pick(req, c.row.asked)
	}
	if err == nil && resp != nil {
		if c.row.created != "" {
			e.Resource = cmp.Or(c.row.name(c.row.created, resp), e.Resource)
		}
		e.Revision = max(e.Revision, revision(resp, c.row.revision))
		e.After = c.row.settings(resp)
		if c.row.count != nil {
			e.After = c.row.count(resp)
		}
		if c.row.steps != nil {
			e.Steps = append(slices.Clip(e.Steps), c.row.steps(resp)...)
		}
	}
	e.Before, e.After = differing(e.Before, e.After)
	return e
}

// differing leaves out what is the same before and after.
func differing(before, after map[string]string) (changedFrom, changedTo map[string]string) {
	if before == nil || after == nil {
		return before, after
	}
	changedFrom, changedTo = make(map[string]string), make(map[string]string)
	for k, v := range before {
		if after[k] != v {
			changedFrom[k] = v
		}
	}
	for k, v := range after {
		if before[k] != v {
			changedTo[k] = v
		}
	}
	return changedFrom, changedTo
}
