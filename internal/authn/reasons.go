package authn

import (
	"google.golang.org/grpc/codes"

	"github.com/dkimzone/dkimzone/internal/refusal"
)

// Reasons of refusals, in their ErrorInfo.
const (
	ReasonUnauthenticated = "UNAUTHENTICATED"
	ReasonTooManyAttempts = "TOO_MANY_ATTEMPTS"
	ReasonUnavailable     = "STORE_UNAVAILABLE"
	ReasonIssuer          = "ISSUER_UNAVAILABLE"
)

// Messages of refusals. Whoever shows a credential that is not good learns
// nothing of why, unless it once was his.
const (
	messageWrong = "the credentials are not valid"
	messageNone  = "no credentials: present a client certificate that names a role, a bearer token, or brand:secret"
)

func unauthenticated(message string) error {
	return refusal.New(codes.Unauthenticated, ReasonUnauthenticated, message).Err()
}
