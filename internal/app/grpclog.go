package app

import (
	"io"

	"google.golang.org/grpc/grpclog"
)

// What gRPC and the REST routes log by themselves goes to standard error past the
// process's logger, a line for each caller who hangs up. The interceptors log what
// matters.
func init() {
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard))
}
