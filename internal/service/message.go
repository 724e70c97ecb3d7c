package service

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	dkimv1 "github.com/dkimzone/dkimzone/api/dkim/v1"
	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/keypair"
	"github.com/dkimzone/dkimzone/internal/keystore"
	"github.com/dkimzone/dkimzone/internal/rotation"
	"github.com/dkimzone/dkimzone/internal/schema"
)

// Bounds of a record's TTL in seconds.
const (
	minTTL = 60
	maxTTL = 86400
)

var algorithms = map[dkimv1.KeyAlgorithm]keypair.Algorithm{
	dkimv1.KeyAlgorithm_KEY_ALGORITHM_RSA_2048: keypair.RSA2048,
	dkimv1.KeyAlgorithm_KEY_ALGORITHM_RSA_3072: keypair.RSA3072,
	dkimv1.KeyAlgorithm_KEY_ALGORITHM_RSA_4096: keypair.RSA4096,
	dkimv1.KeyAlgorithm_KEY_ALGORITHM_ED25519:  keypair.Ed25519,
}

var states = map[rotation.State]dkimv1.KeyState{
	rotation.Prepared:  dkimv1.KeyState_KEY_STATE_PREPARED,
	rotation.Active:    dkimv1.KeyState_KEY_STATE_ACTIVE,
	rotation.Retiring:  dkimv1.KeyState_KEY_STATE_RETIRING,
	rotation.Revoked:   dkimv1.KeyState_KEY_STATE_REVOKED,
	rotation.Destroyed: dkimv1.KeyState_KEY_STATE_DESTROYED,
}

var custodies = map[rotation.Custody]dkimv1.KeyCustody{
	rotation.Service:    dkimv1.KeyCustody_KEY_CUSTODY_SERVICE,
	rotation.Signer:     dkimv1.KeyCustody_KEY_CUSTODY_SIGNER,
	rotation.PublicOnly: dkimv1.KeyCustody_KEY_CUSTODY_PUBLIC_ONLY,
}

// parseAlgorithm takes the API's algorithm; unspecified is the zero Algorithm.
func parseAlgorithm(field string, a dkimv1.KeyAlgorithm) (keypair.Algorithm, error) {
	if a == dkimv1.KeyAlgorithm_KEY_ALGORITHM_UNSPECIFIED {
		return 0, nil
	}
	if v, ok := algorithms[a]; ok {
		return v, nil
	}
	return 0, invalid(field, "INVALID_ALGORITHM", fmt.Sprintf(
		"%d is no algorithm: use RSA_2048, RSA_3072, RSA_4096 or ED25519 (RSA keys of 1024 bits are no longer accepted by receivers)", a))
}

func algorithmMessage(a keypair.Algorithm) dkimv1.KeyAlgorithm {
	for api, v := range algorithms {
		if v == a {
			return api
		}
	}
	return dkimv1.KeyAlgorithm_KEY_ALGORITHM_UNSPECIFIED
}

// parseTTL checks a TTL; 0 is preset.
func parseTTL(ttl int32, preset uint32) (uint32, error) {
	if ttl == 0 {
		return preset, nil
	}
	if ttl < minTTL || ttl > maxTTL {
		return 0, invalid("ttl_seconds", "INVALID_TTL", fmt.Sprintf("%d is out of range: use %d to %d seconds", ttl, minTTL, maxTTL))
	}
	return uint32(ttl), nil
}

func checkETag(given, present string) error {
	if given == "" || given == present {
		return nil
	}
	return fail(codes.Aborted, "ETAG_MISMATCH", "it was changed since it was read: read it again and decide again", "etag", present)
}

// maskPaths are the fields an update changes: those of the mask, or those that
// are set in the message.
func maskPaths(mask *fieldmaskpb.FieldMask, msg proto.Message, allowed []string) ([]string, error) {
	if len(mask.GetPaths()) == 0 {
		var set []string
		msg.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
			if name := string(fd.Name()); slices.Contains(allowed, name) {
				set = append(set, name)
			}
			return true
		})
		return set, nil
	}
	if slices.Equal(mask.GetPaths(), []string{"*"}) {
		return allowed, nil
	}
	for _, p := range mask.GetPaths() {
		if !slices.Contains(allowed, p) {
			return nil, invalid("update_mask", "INVALID_FIELD_MASK", fmt.Sprintf("%.60q cannot be changed: use %s, or *", p, strings.Join(allowed, ", ")))
		}
	}
	return mask.GetPaths(), nil
}

func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

var kinds = map[rotation.Kind]dkimv1.DomainKind{
	rotation.Customer:     dkimv1.DomainKind_DOMAIN_KIND_CUSTOMER,
	rotation.BrandDefault: dkimv1.DomainKind_DOMAIN_KIND_BRAND_DEFAULT,
	rotation.BrandShared:  dkimv1.DomainKind_DOMAIN_KIND_BRAND_SHARED,
}

// domainMessage is a domain as stored. shared, if not nil, holds the keys that
// the domains of its brand share.
func domainMessage(d keystore.Domain, shared *keystore.Domain) (*dkimv1.Domain, error) {
	name := domainName{d.Brand, d.Name}
	m := &dkimv1.Domain{
		Name:          name.String(),
		UnicodeDomain: d.Name.Unicode(),
		Zone:          "zones/" + string(d.Zone),
		HostLabel:     string(d.HostLabel),
		CreateTime:    timestamp(d.CreateTime),
		UpdateTime:    timestamp(d.UpdateTime),
		Revision:      d.Revision,
		Etag:          d.ETag(),

		Kind:           kinds[d.Kind],
		RotationPolicy: overrideMessage(d.Policy),
	}
	if pending(d) {
		m.RotationRequestTime = timestamp(d.RotateRequested)
	}
	add := func(in *keystore.Domain, sel dnsname.Selector, a keypair.Algorithm, k *keystore.Key) error {
		owner, err := in.OwnerName(sel)
		if err != nil {
			return fmt.Errorf("domain %s: %w", d.Name, err)
		}
		s := &dkimv1.Selector{Selector: string(sel), Algorithm: algorithmMessage(a), OwnerName: owner}
		if d.Kind == rotation.Customer {
			if s.CnameOwner, err = dnsname.AliasOwnerName(sel, d.Name); err != nil {
				return fmt.Errorf("domain %s: %w", d.Name, err)
			}
			s.CnameTarget = owner
		}
		if k != nil {
			s.Key, s.KeyState, s.Custody = domainName{in.Brand, in.Name}.key(k.ID), states[k.State], custodies[k.Custody]
		}
		m.Selectors = append(m.Selectors, s)
		return nil
	}
	for _, s := range d.Selectors {
		if err := add(&d, s.Selector, s.Algorithm, d.KeyIn(s.Selector)); err != nil {
			return nil, err
		}
	}
	for i := range d.Keys {
		k := &d.Keys[i]
		if !k.Published() || d.Selector(k.Selector) != nil {
			continue
		}
		if err := add(&d, k.Selector, k.Algorithm, k); err != nil {
			return nil, err
		}
	}
	if shared == nil {
		return m, nil
	}
	for _, s := range shared.Selectors {
		// A domain may have a selector of that name of its own: it has one CNAME.
		if d.Selector(s.Selector) != nil || d.KeyIn(s.Selector) != nil {
			continue
		}
		if err := add(shared, s.Selector, s.Algorithm, shared.KeyIn(s.Selector)); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func keyMessage(d keystore.Domain, k keystore.Key, record *schema.PublicRecord) (*dkimv1.Key, error) {
	m := &dkimv1.Key{
		Name:         domainName{d.Brand, d.Name}.key(k.ID),
		Selector:     string(k.Selector),
		Algorithm:    algorithmMessage(k.Algorithm),
		State:        states[k.State],
		Custody:      custodies[k.Custody],
		Fingerprint:  hex.EncodeToString(k.Fingerprint[:]),
		Testing:      k.Testing,
		TtlSeconds:   int32(k.TTL), //nolint:gosec // in range when stored
		PrepareTime:  timestamp(k.PrepareTime),
		ActivateTime: timestamp(k.ActivateTime),
		RetireTime:   timestamp(k.RetireTime),
		RevokeTime:   timestamp(k.RevokeTime),
		Revision:     d.Revision,
		Compromised:  k.Compromised,
		Imported:     k.Imported,
	}
	if record == nil {
		return m, nil
	}
	owner, err := d.OwnerName(k.Selector)
	if err != nil {
		return nil, fmt.Errorf("domain %s: %w", d.Name, err)
	}
	m.OwnerName, m.PublicKey, m.Record = owner, record.PublicKey, record.Record().String()
	return m, nil
}
