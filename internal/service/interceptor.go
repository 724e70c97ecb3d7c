package service

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"github.com/dkimzone/dkimzone/internal/refusal"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// callTimeout bounds a unary call whose caller set no deadline. Generating
// several RSA-4096 keys on a busy machine takes a while.
const callTimeout = 2 * time.Minute

// UnaryInterceptor sees to it that a call ends in time, and that no internal error
// leaves the process. It comes before those of authn and authz, which refuse
// callers.
func UnaryInterceptor(logger *slog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
		defer func() { err = outward(ctx, logger, info.FullMethod, recover(), err) }()
		callCtx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		return handler(callCtx, req)
	}
}

// StreamInterceptor is UnaryInterceptor for streams, which may last.
func StreamInterceptor(logger *slog.Logger) grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
		defer func() { err = outward(stream.Context(), logger, info.FullMethod, recover(), err) }()
		return handler(srv, stream)
	}
}

// ownServices begins the names of the methods that answer for their errors with
// an ErrorInfo; health and reflection do not.
const ownServices = "/dkim."

// outward is the error that a caller sees. Rejections pass; anything else is
// logged here, and only here, and becomes INTERNAL.
func outward(ctx context.Context, logger *slog.Logger, method string, panicked any, err error) error {
	if panicked != nil {
		logger.LogAttrs(ctx, slog.LevelError, "call panicked",
			slog.String("method", method), slog.Any("panic", panicked), slog.String("stack", string(debug.Stack())))
		return internal()
	}
	if err == nil {
		return nil
	}
	if down, ok := errors.AsType[*storeDown](err); ok {
		if ctx.Err() == nil {
			logger.LogAttrs(ctx, slog.LevelWarn, "store unavailable", slog.String("method", method), slog.Any("error", down.cause))
		}
		return down.rejection
	}
	if _, ok := status.FromError(err); ok {
		if !strings.HasPrefix(method, ownServices) {
			return err
		}
		if refusal.Reason(err) != "" {
			return err
		}
	}
	if ctx.Err() != nil { // the caller is gone or its time is up
		return status.FromContextError(ctx.Err()).Err()
	}
	logger.LogAttrs(ctx, slog.LevelError, "call failed", slog.String("method", method), slog.Any("error", err))
	return internal()
}

func internal() error {
	return fail(codes.Internal, "INTERNAL", "the service failed; its log says why")
}
