package service

import (
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/dkimzone/dkimzone/internal/admission"
	"github.com/dkimzone/dkimzone/internal/authn"
	"github.com/dkimzone/dkimzone/internal/dnsname"
)

// Gate is asked whether a domain may have keys; *admission.Gate is one. Its
// errors are as of that. It must be safe for concurrent use.
type Gate interface {
	Admit(ctx context.Context, r admission.Request) error
}

const (
	// askTogether is how many domains of a batch the gate is asked about at a time.
	askTogether = 32
	// askAgain is what RetryInfo tells a caller to wait when the gate does not
	// answer.
	askAgain = 2 * time.Second
)

// ask asks the gate, if there is one, about a domain that is to get keys.
func (s *Service) ask(ctx context.Context, n domainName, operation admission.Operation) error {
	if s.gate == nil {
		return nil
	}
	caller, _ := authn.FromContext(ctx) // the interceptor put it there
	err := s.gate.Admit(ctx, admission.Request{Brand: n.brand, Domain: string(n.domain), Operation: operation, Caller: caller})
	return admissionFailure(err)
}

// askAll asks about several domains of a brand, and returns the rejections by
// their places. The error is that of a gate that does not answer.
func (s *Service) askAll(ctx context.Context, brand string, names []dnsname.Domain, operation admission.Operation) ([]error, error) {
	rejections := make([]error, len(names))
	if s.gate == nil {
		return rejections, nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	todo := make(chan int)
	var wg sync.WaitGroup
	for range min(askTogether, len(names)) {
		wg.Go(func() {
			for i := range todo {
				err := s.ask(ctx, domainName{brand, names[i]}, operation)
				if err != nil && status.Code(err) != codes.PermissionDenied {
					cancel(err) // the first one counts
					continue
				}
				rejections[i] = err
			}
		})
	}
	for i := range names {
		select {
		case todo <- i:
			continue
		case <-ctx.Done():
		}
		break
	}
	close(todo)
	wg.Wait()
	return rejections, context.Cause(ctx)
}

// admissionFailure turns an error of a gate into a rejection.
func admissionFailure(err error) error {
	var refusal *admission.DeniedError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refusal):
		return fail(codes.PermissionDenied, "ADMISSION_DENIED", refusal.Error(), "brand", refusal.Brand, "domain", refusal.Domain)
	case errors.Is(err, admission.ErrUnavailable):
		return failWith(codes.Unavailable, "ADMISSION_UNAVAILABLE",
			"the provider's system that admits domains has not answered; nothing was changed, try again",
			&errdetails.RetryInfo{RetryDelay: durationpb.New(askAgain)})
	case errors.Is(err, context.Canceled):
		return storeFailure(context.Canceled)
	}
	return err
}
