// Package refusal has the form of every error that a caller of dkimd is meant to
// see: a gRPC status with an ErrorInfo, by whose reason programs tell errors apart.
package refusal

import (
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Domain is the domain of every ErrorInfo.
const Domain = "dkimzone"

// New is a status with a reason for programs, in UPPER_SNAKE_CASE, a message for
// people, and further details. The code is not OK.
func New(code codes.Code, reason, message string, details ...protoadapt.MessageV1) *status.Status {
	return WithMetadata(code, reason, message, nil, details...)
}

// WithMetadata is New with metadata in the ErrorInfo.
func WithMetadata(code codes.Code, reason, message string, metadata map[string]string, details ...protoadapt.MessageV1) *status.Status {
	st := status.New(code, message)
	info := &errdetails.ErrorInfo{Reason: reason, Domain: Domain, Metadata: metadata}
	if detailed, err := st.WithDetails(append([]protoadapt.MessageV1{info}, details...)...); err == nil {
		return detailed
	}
	return st // a message in Go always has a form on the wire
}

// Retry is the detail that says after how long to try again.
func Retry(after time.Duration) protoadapt.MessageV1 {
	return &errdetails.RetryInfo{RetryDelay: durationpb.New(after)}
}

// Reason is the reason of an error's first ErrorInfo, "" without one.
func Reason(err error) string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}
