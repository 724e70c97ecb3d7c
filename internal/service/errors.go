package service

import (
	"context"
	"errors"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	"github.com/dkimzone/dkimzone/internal/dkimrecord"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/envelope"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/refusal"
)

// retryAfter is what RetryInfo tells a caller to wait when the store is away.
const retryAfter = time.Second

// fail is a rejection: a code, a reason for programs, a message for people, and
// pairs of metadata.
func fail(code codes.Code, reason, message string, metadata ...string) error {
	return failWith(code, reason, message, nil, metadata...)
}

// invalid is a rejection of one field of the request.
func invalid(field, reason, message string, metadata ...string) error {
	violation := &errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
		{Field: field, Description: message, Reason: reason},
	}}
	return failWith(codes.InvalidArgument, reason, field+": "+message, violation, metadata...)
}

func failWith(code codes.Code, reason, message string, detail protoadapt.MessageV1, metadata ...string) error {
	var named map[string]string
	for i := 0; i+1 < len(metadata); i += 2 {
		if named == nil {
			named = make(map[string]string)
		}
		named[metadata[i]] = metadata[i+1]
	}
	var details []protoadapt.MessageV1
	if detail != nil {
		details = append(details, detail)
	}
	return refusal.WithMetadata(code, reason, message, named, details...).Err()
}

// storeFailure turns a failure of the store into a rejection. Errors it does not
// know go on as they are: the interceptor logs them and tells the caller
// nothing but INTERNAL.
func storeFailure(err error) error {
	var claim *keystore.ClaimError
	var quota *keystore.QuotaError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &claim):
		return claimFailure(claim)
	case errors.As(err, &quota):
		return quotaFailure(quota)
	case errors.Is(err, keystore.ErrZoneNotFound):
		return fail(codes.NotFound, "ZONE_NOT_FOUND", err.Error()+"; list zones, or create it first")
	case errors.Is(err, keystore.ErrZoneExists):
		return fail(codes.AlreadyExists, "ZONE_EXISTS", err.Error()+"; use UpdateZone to change it")
	case errors.Is(err, keystore.ErrZoneInUse):
		return fail(codes.FailedPrecondition, "ZONE_IN_USE", err.Error()+"; delete its brands first")
	case errors.Is(err, keystore.ErrBrandNotFound):
		return fail(codes.NotFound, "BRAND_NOT_FOUND", err.Error()+"; create it first")
	case errors.Is(err, keystore.ErrBrandExists):
		return fail(codes.AlreadyExists, "BRAND_EXISTS", err.Error()+"; choose another name")
	case errors.Is(err, keystore.ErrBrandNotEmpty):
		return fail(codes.FailedPrecondition, "BRAND_NOT_EMPTY", err.Error()+"; delete them first")
	case errors.Is(err, keystore.ErrDomainNotFound):
		return fail(codes.NotFound, "DOMAIN_NOT_FOUND", err.Error()+" in this brand; provision it first")
	case errors.Is(err, keystore.ErrKeyNotFound):
		return fail(codes.NotFound, "KEY_NOT_FOUND", err.Error())
	case errors.Is(err, keystore.ErrSignerNotFound):
		return fail(codes.NotFound, "SIGNER_NOT_FOUND", err.Error()+"; ListSigners shows which are there")
	case errors.Is(err, keystore.ErrTooManyKeys):
		return fail(codes.FailedPrecondition, "TOO_MANY_KEYS", err.Error()+"; delete those that are not needed, or choose selectors without dashes")
	case errors.Is(err, keystore.ErrConflict):
		return fail(codes.Aborted, "CONFLICT", "it is being changed by others at the same time; try again")
	case errors.Is(err, keystore.ErrRestoring):
		return failWith(codes.Unavailable, "RESTORE_UNFINISHED",
			"a backup is being restored; if that was cut short, restore it again from the beginning: until then nothing works",
			refusal.Retry(retryAfter))
	case errors.Is(err, keystore.ErrUnavailable):
		return &storeDown{cause: err, rejection: failWith(codes.Unavailable, "STORE_UNAVAILABLE",
			"the store does not answer; try again. If this was a change, look first whether it happened",
			refusal.Retry(retryAfter))}
	case errors.Is(err, envelope.ErrKeeperUnavailable), errors.Is(err, envelope.ErrKeeperRefuses):
		return &storeDown{cause: err, rejection: failWith(codes.Unavailable, "KEEPER_UNAVAILABLE",
			"the keeper of the key-encryption key does not answer, or refuses; try again, and look at the log of dkimd if that lasts",
			refusal.Retry(retryAfter))}
	case errors.Is(err, context.Canceled):
		return status.FromContextError(context.Canceled).Err()
	}
	return err
}

// storeDown is a rejection that keeps, for the log, what the store said.
type storeDown struct{ rejection, cause error }

func (e *storeDown) Error() string { return e.cause.Error() }

// GRPCStatus is what the caller sees.
func (e *storeDown) GRPCStatus() *status.Status { return status.Convert(e.rejection) }

func quotaFailure(e *keystore.QuotaError) error {
	violation := &errdetails.QuotaFailure{Violations: []*errdetails.QuotaFailure_Violation{{
		Subject: "brands/" + e.Brand, Description: e.Error(),
	}}}
	return failWith(codes.ResourceExhausted, "QUOTA_EXCEEDED", e.Error()+"; delete domains that are not needed, or have an administrator raise the brand's max_domains", violation,
		"brand", e.Brand, "limit", strconv.FormatInt(e.Limit, 10), "count", strconv.FormatInt(e.Count, 10))
}

func claimFailure(e *keystore.ClaimError) error {
	meta := []string{"domain", string(e.Domain), "zone", string(e.Zone)}
	if e.Selector != "" {
		meta = append(meta, "selector", string(e.Selector))
	}
	switch e.Reason {
	case keystore.ClaimedByOtherBrand:
		return fail(codes.AlreadyExists, "DOMAIN_CLAIMED", e.Error()+"; it must be deleted there first", meta...)
	case keystore.ReservedForBrand:
		return fail(codes.FailedPrecondition, "DOMAIN_RESERVED", e.Error()+"; only that brand can provision it again", meta...)
	case keystore.LabelsTaken:
		return fail(codes.FailedPrecondition, "HOST_LABEL_TAKEN", e.Error()+"; host it in another zone", meta...)
	case keystore.SelectorTaken:
		return fail(codes.FailedPrecondition, "SELECTOR_CONFLICT", e.Error()+"; choose a selector without dashes", meta...)
	case keystore.SelectorDoesNotFit:
		return fail(codes.FailedPrecondition, "SELECTOR_TOO_LONG", e.Error()+"; choose a shorter selector", meta...)
	case keystore.PublicKeyUsedElsewhere:
		return fail(codes.AlreadyExists, "KEY_PUBLISHED", e.Error()+"; a key must not stand under two names, make one of its own", meta...)
	}
	return e
}

// nameFailure turns an error of dnsname into a rejection of a field.
func nameFailure(field, reason string, err error) error {
	if e, ok := errors.AsType[*dnsname.InvalidError](err); ok {
		return invalid(field, reason, e.Error(), "detail", string(e.Reason))
	}
	return err
}

// keyFailure turns an error of keypair's parsers into a rejection.
func keyFailure(field string, err error) error {
	if e, ok := errors.AsType[*keypair.InvalidError](err); ok {
		return invalid(field, keyReason(e), e.Error(), "detail", string(e.Reason))
	}
	if r, ok := errors.AsType[*dkimrecord.InvalidError](err); ok {
		return invalid(field, "INVALID_PUBLIC_KEY", r.Error(), "detail", string(r.Reason))
	}
	return err
}

// keyReason sorts keypair's reasons into those of the API.
func keyReason(e *keypair.InvalidError) string {
	switch e.Reason {
	case keypair.ReasonPrivateKey:
		return "PRIVATE_KEY_GIVEN"
	case keypair.ReasonPublicKey:
		return "PUBLIC_KEY_GIVEN"
	case keypair.ReasonBadKeySize:
		return "KEY_SIZE_REFUSED"
	case keypair.ReasonBadExponent:
		return "KEY_EXPONENT_REFUSED"
	case keypair.ReasonSmallFactor, keypair.ReasonROCA, keypair.ReasonClosePrimes, keypair.ReasonBadPrimes:
		return "WEAK_KEY"
	case keypair.ReasonWellKnown:
		return "WELL_KNOWN_KEY"
	}
	if e.Private {
		return "INVALID_PRIVATE_KEY"
	}
	return "INVALID_PUBLIC_KEY"
}
