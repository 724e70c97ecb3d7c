package keystore

import (
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/dkimzone/dkimzone/internal/dnsname"
	"github.com/dkimzone/dkimzone/internal/schema"
	"github.com/dkimzone/dkimzone/internal/schema/schemapb"
)

// claim says to whom a host label belongs. The claim of a deleted domain stays
// as a tombstone: its CNAMEs may still point here.
type claim struct {
	brand      string
	domain     dnsname.Domain
	deleteTime time.Time // zero while the domain exists
	revision   int64     // 0: the label is free
}

// ClaimReason says why a domain may not have a host label.
type ClaimReason uint8

// Reasons of a ClaimError.
const (
	ClaimedByOtherBrand  ClaimReason = iota + 1 // another brand has the domain in this zone
	ReservedForBrand                            // another brand had it, and nothing shows that it let go
	LabelsTaken                                 // other domains have all labels it could have
	SelectorTaken                               // owner names of the selector could be another domain's
	SelectorDoesNotFit                          // selector and label together are longer than 63 octets
	PublicKeyUsedElsewhere                      // the public key is published under another owner name
)

// ClaimError says that a name, or a key, belongs to somebody else. It never
// tells to whom.
type ClaimError struct {
	Reason   ClaimReason
	Domain   dnsname.Domain
	Zone     dnsname.Zone
	Selector dnsname.Selector  // of the last three reasons
	Label    dnsname.HostLabel // of SelectorTaken and SelectorDoesNotFit
}

func (e *ClaimError) Error() string {
	switch e.Reason {
	case ClaimedByOtherBrand:
		return fmt.Sprintf("domain %s is in use by another brand in zone %s", e.Domain, e.Zone)
	case ReservedForBrand:
		return fmt.Sprintf("domain %s is reserved in zone %s: another brand used it, and CNAMEs that trust that brand may still exist", e.Domain, e.Zone)
	case LabelsTaken:
		return fmt.Sprintf("all host labels that domain %s could have in zone %s are taken", e.Domain, e.Zone)
	case SelectorTaken:
		return fmt.Sprintf("selector %s of domain %s would give an owner name that can also be read as another domain's", e.Selector, e.Domain)
	case SelectorDoesNotFit:
		return fmt.Sprintf("selector %s and host label %s together are longer than a DNS label (63 octets)", e.Selector, e.Label)
	case PublicKeyUsedElsewhere:
		return fmt.Sprintf("the public key for selector %s of domain %s is already published under another name", e.Selector, e.Domain)
	}
	return fmt.Sprintf("domain %s cannot have its names in zone %s", e.Domain, e.Zone)
}

// chooseLabel picks the host label of a new domain: the first candidate that is
// free, or the brand's own already. All candidates are looked at, so that a
// domain is never in two brands under two labels.
func chooseLabel(d *Domain, candidates []dnsname.HostLabel, claims map[dnsname.HostLabel]claim, selectors []dnsname.Selector) (dnsname.HostLabel, error) {
	for _, l := range candidates {
		c := claims[l]
		if c.revision == 0 || c.domain != d.Name || c.brand == d.Brand {
			continue
		}
		reason := ClaimedByOtherBrand
		if !c.deleteTime.IsZero() {
			reason = ReservedForBrand
		}
		return "", &ClaimError{Reason: reason, Domain: d.Name, Zone: d.Zone}
	}
	var unfit *ClaimError
	for _, l := range candidates {
		c := claims[l]
		if c.revision != 0 && c.domain != d.Name {
			continue
		}
		if sel, ok := firstUnfit(selectors, l); !ok {
			unfit = &ClaimError{Reason: SelectorDoesNotFit, Domain: d.Name, Zone: d.Zone, Selector: sel, Label: l}
			continue
		}
		return l, nil
	}
	if unfit != nil {
		return "", unfit
	}
	return "", &ClaimError{Reason: LabelsTaken, Domain: d.Name, Zone: d.Zone}
}

func firstUnfit(selectors []dnsname.Selector, l dnsname.HostLabel) (dnsname.Selector, bool) {
	for _, sel := range selectors {
		if !sel.FitsLabel(l) {
			return sel, false
		}
	}
	return "", true
}

func (c claim) marshal() ([]byte, error) {
	return proto.Marshal(&schemapb.LabelClaim{
		Brand: c.brand, Domain: string(c.domain), DeleteTimeMicros: schema.Micros(c.deleteTime),
	})
}

// claimFrom decodes a claim; a nil kv is a free label.
func claimFrom(kv *mvccpb.KeyValue) (claim, error) {
	if kv == nil {
		return claim{}, nil
	}
	var v schemapb.LabelClaim
	if err := proto.Unmarshal(kv.Value, &v); err != nil {
		return claim{}, fmt.Errorf("%w: claim %q: %w", schema.ErrCorrupt, kv.Key, err)
	}
	return claim{
		brand:      v.GetBrand(),
		domain:     dnsname.Domain(v.GetDomain()),
		deleteTime: schema.FromMicros(v.GetDeleteTimeMicros()),
		revision:   kv.ModRevision,
	}, nil
}
