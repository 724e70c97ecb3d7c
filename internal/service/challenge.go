package service

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/prober"
)

// challengeValue is the TXT data by which a domain shows that a brand may have
// it. It holds for one zone, and until the domain is deleted once more.
func challengeValue(brand string, e *keystore.ClaimError) string {
	sum := sha256.Sum256([]byte(strings.Join([]string{
		"dkimzone-challenge", brand, string(e.Zone), string(e.Domain), strconv.FormatInt(e.DeleteTime.UnixMicro(), 10),
	}, "\x00")))
	return "dkimzone-challenge=" + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:20]))
}

// mayTakeOver reports whether err, of the store, stands for a domain that
// another brand had and that shows now, in DNS, that it is the caller's. If it
// does not show it, the rejection says how to.
func (s *Service) mayTakeOver(ctx context.Context, brand string, err error) (bool, error) {
	claim, ok := errors.AsType[*keystore.ClaimError](err)
	if !ok || claim.Reason != keystore.ReservedForBrand {
		return false, nil
	}
	if s.prober != nil {
		look, cancel := context.WithTimeout(ctx, checkTime)
		defer cancel()
		if shown, _ := s.prober.Challenge(look, string(claim.Domain), challengeValue(brand, claim)); shown {
			return true, nil
		}
	}
	return false, reserved(brand, claim)
}

// reserved is the rejection of a domain that another brand had.
func reserved(brand string, claim *keystore.ClaimError) error {
	owner, value := prober.ChallengeLabel+"."+string(claim.Domain), challengeValue(brand, claim)
	return fail(codes.FailedPrecondition, "DOMAIN_RESERVED", fmt.Sprintf(
		"%v. If the domain is this brand's now, let its owner add the record `%s. IN TXT \"%s\"` and try again; it may be removed afterwards",
		claim, owner, value),
		"domain", string(claim.Domain), "zone", string(claim.Zone), "challenge_owner", owner, "challenge_value", value)
}

// inZone refuses a customer's domain that lies in a hosting zone: its names, and
// what is signed in them, are the provider's.
func inZone(field string, d dnsname.Domain, zone dnsname.Zone) error {
	if string(d) == string(zone) || strings.HasSuffix(string(d), "."+string(zone)) {
		return invalid(field, "INVALID_DOMAIN", fmt.Sprintf("%s lies in the hosting zone %s, whose names are not customers'", d, zone))
	}
	return nil
}
