package authn

import (
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Reasons of refusals, in their ErrorInfo.
const (
	ReasonUnauthenticated = "UNAUTHENTICATED"
	ReasonTooManyAttempts = "TOO_MANY_ATTEMPTS"
	ReasonUnavailable     = "STORE_UNAVAILABLE"
	ReasonIssuer          = "ISSUER_UNAVAILABLE"
)

// errorDomain is the domain of every ErrorInfo of this service.
const errorDomain = "dkimzone"

// refusal is an error for the caller. With retry it says when to try again.
func refusal(code codes.Code, reason, message string, retry time.Duration) error {
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{Reason: reason, Domain: errorDomain}}
	if retry > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(retry)})
	}
	st, err := status.New(code, message).WithDetails(details...)
	if err != nil {
		return fmt.Errorf("details of %s: %w", reason, err)
	}
	return st.Err()
}

// Messages of refusals. Whoever shows a credential that is not good learns
// nothing of why, unless it once was his.
const (
	messageWrong = "the credentials are not valid"
	messageNone  = "no credentials: present a client certificate that names a role, a bearer token, or brand:secret"
)

func unauthenticated(message string) error {
	return refusal(codes.Unauthenticated, ReasonUnauthenticated, message, 0)
}
