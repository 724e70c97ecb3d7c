package signer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"golang.org/x/net/idna"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// normal is a domain as dkimd has it.
func normal(domain string) (string, error) {
	name, err := idna.Lookup.ToASCII(strings.TrimSuffix(domain, "."))
	if err == nil && name == "" {
		err = errors.New("it is empty")
	}
	return strings.ToLower(name), err
}

// failure turns an error of a call into one of ours.
func failure(err error) error {
	st, ok := status.FromError(err)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), !ok:
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return failureOf(st)
}

func failureOf(st *status.Status) error {
	kind := ErrUnavailable
	switch reason := reasonOf(st); {
	case reason == "KEY_NOT_SIGNING", reason == "KEY_NOT_FOUND":
		kind = ErrNotSigning
	case st.Code() == codes.NotFound:
		kind = ErrUnknownDomain
	case st.Code() == codes.PermissionDenied, st.Code() == codes.Unauthenticated, st.Code() == codes.InvalidArgument, st.Code() == codes.FailedPrecondition, st.Code() == codes.Unimplemented:
		kind = ErrRefused
	}
	return fmt.Errorf("%w: %s", kind, st.Message())
}

func reasonOf(st *status.Status) string {
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}

// backoff is how long to wait before one more attempt. Many clients that lost the
// same dkimd do not come back at the same time.
type backoff struct{ last time.Duration }

const (
	firstWait = 50 * time.Millisecond
	maxWait   = 10 * time.Second
)

func (b *backoff) next() time.Duration {
	b.last = min(maxWait, max(firstWait, 2*b.last))
	return rand.N(b.last) + b.last/4
}

func (b *backoff) reset() { b.last = 0 }

// sleep waits, and reports whether ctx is still on.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
